"""Focal + Dice, forward and backward: ours and other libraries', interleaved in one process.

    python benchmarks/losses.py             measures, prints the tables, writes results/losses.json
    python benchmarks/losses.py --quick     few rounds, one small shape: does it run; nothing is written
    python benchmarks/table.py              puts the tables into benchmarks/README.md

A round calls every contestant four times in a row, in an order that is shuffled anew, on the same logits; the time is
forward and backward of the mean of 20 · focal + Dice. The first of the four finds caches and allocator as the one
before left them and is reported as "cold"; the other three are what counts, as in a training loop. Compilation is in
the warm-up. Peak memory is what the process grows by, beyond logits and targets, the gradient included, as a multiple
of the logits: measured in a process for each contestant whose allocator gives memory back at once (Linux; "–"
elsewhere).

On a GPU the floor is 20 bytes per float32 element: logits and targets read forward, both read and the gradient
written backward, at the bandwidth that a copy reaches in the same run.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from loss_peers import BUILDERS, Loss, peers
from torch import Tensor

from arrcoc_sam.losses import functional as LF
from arrcoc_sam.losses.arguments import Backend

RESULTS = Path(__file__).parent / "results" / f"losses{'_gpu' if torch.cuda.is_available() else ''}.json"
CPU_SHAPES = ((8, 3, 256, 256), (2, 3, 1024, 1024))
GPU_SHAPES = ((8, 3, 256, 256), (64, 3, 1024, 1024))
REFERENCE = "torchvision + SAM 2's Dice"
COMPILED = f"torch.compile of {REFERENCE}"
BARS = {REFERENCE: 4.0, COMPILED: 1.3}
"""How many times longer these peers have to take on a CPU."""
PEAK_BAR = 1.1
"""Peak memory of ours beyond the inputs, in multiples of the logits."""
FLOOR_BAR, FLOOR_BAR_BYTES = 1.25, 1 << 28
"""Time of ours on a GPU, in multiples of the bandwidth floor, and the size of the logits from which it is asked: what
fits into the GPU's cache is bounded by how fast kernels are launched."""


def contestants(device: str) -> dict[str, Callable[[], Loss]]:
    """Every way to the same number, by name, made when called; logits and targets are (R, H, W), the targets float."""
    ours: Backend = "triton" if device == "cuda" else "compiled"
    makers: dict[str, Callable[[], Loss]] = {
        f"arrcoc_sam ({ours})": lambda: lambda x, t: LF.focal_dice_loss(x, t, backend=ours),
        f"arrcoc_sam ({ours}), bool targets": lambda: lambda x, t: LF.focal_dice_loss(x, _as_bool(t), backend=ours),
        "arrcoc_sam (eager)": lambda: lambda x, t: LF.focal_dice_loss(x, t, backend="eager"),
        COMPILED: lambda: torch.compile(BUILDERS[REFERENCE]().focal_dice),
    }
    for name in BUILDERS:
        makers[name] = partial(_peer, name)
    return makers


def _peer(name: str) -> Loss:
    return BUILDERS[name]().focal_dice


_BOOLS: dict[int, Tensor] = {}


def _as_bool(targets: Tensor) -> Tensor:
    """The targets as a loader of masks would hand them over: converted once, outside the measurement."""
    key = id(targets)
    if key not in _BOOLS:
        _BOOLS[key] = targets > 0.5
    return _BOOLS[key]


def inputs(shape: tuple[int, ...], device: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Logits of a model that is mostly right, and hard float targets, (R, H, W)."""
    generator = torch.Generator(device).manual_seed(0)
    coarse = torch.randn((*shape[:2], 16, 16), generator=generator, device=device)
    targets = torch.nn.functional.interpolate(coarse, shape[2:]) > 0
    logits = torch.randn(shape, generator=generator, device=device) * 2 + 4 * targets - 2
    return logits.flatten(0, 1).to(dtype).requires_grad_(), targets.flatten(0, 1).to(dtype)


def step(loss: Loss, logits: Tensor, targets: Tensor) -> None:
    """One forward and backward pass."""
    logits.grad = None
    loss(logits, targets).backward()


def seconds(loss: Loss, logits: Tensor, targets: Tensor) -> float:
    """Wall time of one pass, the GPU's work included."""
    if logits.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    step(loss, logits, targets)
    if logits.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def race(shape: tuple[int, ...], device: str, rounds: int) -> dict[str, dict[str, Any]]:
    """Times of every contestant on one shape, in seconds."""
    logits, targets = inputs(shape, device)
    runners = {name: make() for name, make in contestants(device).items()}
    times: dict[str, list[float]] = {name: [] for name in runners}
    cold: dict[str, list[float]] = {name: [] for name in runners}
    order = random.Random(0)
    for round_ in range(-3, rounds):
        names = list(runners)
        order.shuffle(names)
        for name in names:
            first, *taken = (seconds(runners[name], logits, targets) for _ in range(4))
            if round_ >= 0:
                times[name] += taken
                cold[name].append(first)
    _BOOLS.clear()
    return {
        name: {"seconds": taken, **summary(taken), "cold": statistics.median(cold[name])}
        for name, taken in times.items()
    }


def summary(times: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    quartiles = statistics.quantiles(times, n=4)
    return {"median": statistics.median(times), "low": quartiles[0], "high": quartiles[2]}


def peak_memory(shape: tuple[int, ...], device: str) -> dict[str, float | None]:
    """Peak memory beyond the inputs as a multiple of the logits, by contestant."""
    if device == "cuda":
        logits, targets = inputs(shape, device)
        return {name: _peak_on_gpu(make(), logits, targets) for name, make in contestants(device).items()}
    if not Path("/proc/self/clear_refs").exists():
        return dict.fromkeys(contestants(device))
    # glibc keeps freed memory, which would hide what is allocated again: this threshold makes it give all of it back.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    peaks: dict[str, float | None] = {}
    for name in contestants(device):
        command = [sys.executable, __file__, "--peak-of", name, "--shape", *map(str, shape)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        peaks[name] = float(done.stdout.split()[-1])
    return peaks


def _peak_on_gpu(loss: Loss, logits: Tensor, targets: Tensor) -> float:
    step(loss, logits, targets)
    logits.grad = None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step(loss, logits, targets)
    logits.grad = None
    _BOOLS.clear()
    return (torch.cuda.max_memory_allocated() - before) / (logits.numel() * logits.element_size())


def peak_of_this_process(name: str, shape: tuple[int, ...]) -> float:
    """The same on the CPU: growth of the resident set, by the kernel's own high-water mark."""
    logits, targets = inputs(shape, "cpu")
    loss = contestants("cpu")[name]()
    for _ in range(2):
        step(loss, logits, targets)
    logits.grad = None
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    step(loss, logits, targets)
    return (_status("VmHWM") - before) / (logits.numel() * logits.element_size())


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def copy_bandwidth(num_bytes: int) -> float:
    """Bytes per second, read and written, of a device-to-device copy."""
    source = torch.randn(num_bytes // 4, device="cuda")
    target = torch.empty_like(source)
    times = []
    for _ in range(12):
        torch.cuda.synchronize()
        start = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 2 * num_bytes / statistics.median(times[2:])


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    names = ["arrcoc-sam", "torch", *dict.fromkeys(peer.distribution for peer in peers())]
    return {
        "versions": {name: version(name) for name in names},
        "python": platform.python_version(),
        "system": platform.system(),
        "cpu": _cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "date": time.strftime("%Y-%m-%d"),
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def measure(rounds: int, shapes: list[tuple[int, ...]] | None = None) -> dict[str, Any]:
    """All numbers."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    results = []
    for shape in shapes or (GPU_SHAPES if device == "cuda" else CPU_SHAPES):
        entry = {"shape": list(shape), "device": device, "contestants": race(shape, device, rounds)}
        for name, peak in peak_memory(shape, device).items():
            entry["contestants"][name]["peak"] = peak
        if device == "cuda":
            logits_bytes = 4 * shape[0] * shape[1] * shape[2] * shape[3]
            entry["bandwidth"] = copy_bandwidth(min(logits_bytes, 1 << 30))
            entry["floor"] = 5 * logits_bytes / entry["bandwidth"]
        results.append(entry)
    return {"machine": machine(), "rounds": rounds, "results": results}


def tables(measured: dict[str, Any]) -> str:
    """The numbers as Markdown, the ratio first."""
    at = measured["machine"]
    where = at["gpu"] or f"{at['cpu']} ({at['cpu_capability']}), {at['threads']} threads"
    versions = ", ".join(f"{name} {number.partition('+')[0]}" for name, number in at["versions"].items())
    lines = [
        f"Forward and backward of 20 · focal + Dice, float32, {where}, {at['date']}; median of {measured['rounds']} "
        "interleaved rounds and the middle half of them. “× ours” is how many times longer it takes; peak memory is "
        "beyond the inputs, in multiples of the logits.",
        "",
        f"Versions: {versions}.",
    ]
    for entry in measured["results"]:
        runners = entry["contestants"]
        ours, cold = (next(iter(runners.values()))[name] for name in ("median", "cold"))
        lines += ["", f"**{' × '.join(map(str, entry['shape']))}**", ""]
        lines += [
            "| | × ours | median, ms | middle half, ms | cold, × ours | peak memory | |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for name, row in sorted(runners.items(), key=lambda item: item[1]["median"]):
            peak = "–" if row.get("peak") is None else f"{row['peak']:.2f} ×"
            spread = f"{1e3 * row['low']:.2f} – {1e3 * row['high']:.2f}"
            ratio, slow, note = row["median"] / ours, f"{row['cold'] / cold:.2f}", ""
            if "floor" not in entry and name in BARS:
                note = verdict(ratio, BARS[name], least=True)
            elif row["median"] == ours and row.get("peak") is not None:
                note = f"memory: {verdict(row['peak'], PEAK_BAR, least=False)}"
            lines.append(f"| {name} | {ratio:.2f} | {1e3 * row['median']:.2f} | {spread} | {slow} | {peak} | {note} |")
        if "floor" in entry:
            times = ours / entry["floor"]
            large = 4 * math.prod(entry["shape"]) >= FLOOR_BAR_BYTES
            lines += [
                "",
                f"Bandwidth floor: {1e3 * entry['floor']:.3f} ms at {entry['bandwidth'] / 1e9:.0f} GB/s; "
                f"ours takes {times:.2f} × as long ({verdict(times, FLOOR_BAR, least=False) if large else 'no bar'}).",
            ]
    return "\n".join(lines)


def verdict(value: float, bar: float, *, least: bool) -> str:
    """What a bar says of a figure."""
    met = value >= bar if least else value <= bar
    return f"bar {'≥' if least else '≤'} {bar:g} ×: {'met' if met else 'missed'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, help="threads of the CPU; PyTorch's choice by default")
    parser.add_argument("--shape", type=int, nargs=4, metavar=("B", "L", "H", "W"), help="one shape instead of all")
    parser.add_argument("--quick", action="store_true", help="3 rounds of 2 × 3 × 64²; nothing is written")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where every number goes")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.peak_of:
        print(peak_of_this_process(arguments.peak_of, tuple(arguments.shape)))
        return
    shapes = [tuple(arguments.shape)] if arguments.shape else None
    measured = measure(3, [(2, 3, 64, 64)]) if arguments.quick else measure(arguments.rounds, shapes)
    print(tables(measured))
    if not arguments.quick:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main()
