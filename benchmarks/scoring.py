"""SAM ViT-B scoring masks: ours and segment-anything's own predictor, interleaved in one process.

    python benchmarks/scoring.py                        measures, prints the tables, writes results/scoring.json, on a
                                                        GPU results/scoring_gpu.json
    python benchmarks/scoring.py --quick                8 masks, 1 round: does it run; nothing is written
    python benchmarks/table.py                          puts the tables into benchmarks/README.md

64 masks of one image, each prompted by its low-resolution logits and a click, three candidates each; the model has the
true architecture and random weights, on which time does not depend. A round runs every contestant once, in an order
that is shuffled anew; a ratio is that of one round, and the table gives the median over rounds and their extremes.
Everything is measured in one thread, and beside it in all of them. Peak memory of the encoder is what a process grows
by, measured in a process of its own. The bars of time are a processor's.

On a GPU everything is measured once, after a round that is not counted, with convolutions in TF32 as PyTorch has them;
peak memory is the GPU's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from segment_anything import SamPredictor, sam_model_registry
from segment_anything.modeling import Sam
from torch import Tensor

import arrcoc_sam as aa
from arrcoc_sam.segmenters.iou_only import predict_iou
from arrcoc_sam.segmenters.lean_encoder import lean_encoder
from arrcoc_sam.segmenters.sam import SamSegmenter

RESULTS = Path(__file__).parent / "results" / f"scoring{'_gpu' if torch.cuda.is_available() else ''}.json"
NUM_MASKS = 64
STOCK_BATCHES = (1, 2, 4, 16, 64)
LOOP = "SamPredictor.predict, a loop"
BEST_STOCK = "segment-anything's decoder, best batch"
OURS, OURS_FULL = "arrcoc_sam, low-resolution masks", "arrcoc_sam, masks at the image's size"
IOU, IOU_BF16 = "arrcoc_sam, IoU only", "arrcoc_sam, IoU only, bfloat16"
BARS = ((OURS_FULL, LOOP, 2.5), (IOU, LOOP, 3.5), (IOU_BF16, LOOP, 5.0), (OURS, BEST_STOCK, 2.2))
"""Ours, the peer, and how many times as long the peer has to take in one thread."""
ENCODER_BAR, ENCODER_MEMORY_BAR = 1.35, 0.5


def build_model() -> Sam:
    """ViT-B with random weights that are nowhere 0."""
    torch.manual_seed(0)
    model = sam_model_registry["vit_b"]().eval().requires_grad_(False)
    for name, weight in model.image_encoder.named_parameters():
        if "pos" in name:
            torch.nn.init.normal_(weight, std=0.02)
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


class Work:
    """The model, an embedded image of 1024 × 1024 and the prompts of K masks of it."""

    def __init__(self, num_masks: int) -> None:
        """Encode a picture."""
        model, rng = build_model(), np.random.default_rng(0)
        image = rng.integers(0, 255, (1024, 1024, 3), dtype=np.uint8)
        self.ours = SamSegmenter(model, name="random ViT-B")
        self.reduced = SamSegmenter(model, name="random ViT-B", dtype=torch.bfloat16)
        self.embedding = self.ours.encode(image)
        self.predictor = SamPredictor(model)
        self.predictor.original_size = self.predictor.input_size = (1024, 1024)
        self.predictor.features, self.predictor.is_image_set = self.embedding.features["image"], True
        self.points = rng.uniform(0, 1023, (num_masks, 1, 2))
        self.logits = rng.normal(0, 5, (num_masks, 256, 256)).astype(np.float32)
        self.prompts = aa.Prompts(points_xy=self.points, labels=np.ones((num_masks, 1)), mask_logits=self.logits)

    def loop(self) -> Tensor:
        """Predicted IoU of every mask by segment-anything's own predictor."""
        label = np.ones(1)
        answers = [
            self.predictor.predict(point, label, mask_input=logits[None], multimask_output=True)[1]
            for point, logits in zip(self.points, self.logits, strict=True)
        ]
        return torch.from_numpy(np.stack(answers))

    def batches(self, size: int) -> Tensor:
        """By segment-anything's prompt encoder and mask decoder, several prompts at a time, low-resolution masks."""
        model, answers = self.predictor.model, []
        points = torch.as_tensor(self.points, dtype=torch.float32, device=self.ours.device)
        logits = torch.as_tensor(self.logits, device=self.ours.device)[:, None]
        labels = torch.ones(len(points), 1, device=self.ours.device)
        for start in range(0, len(points), size):
            some = slice(start, start + size)
            sparse, dense = model.prompt_encoder(points=(points[some], labels[some]), boxes=None, masks=logits[some])
            answers.append(
                model.mask_decoder(
                    image_embeddings=self.predictor.features,
                    image_pe=model.prompt_encoder.get_dense_pe(),
                    sparse_prompt_embeddings=sparse,
                    dense_prompt_embeddings=dense,
                    multimask_output=True,
                )[1]
            )
        return torch.cat(answers)

    def full(self) -> Tensor:
        """With every candidate as a bool mask of the image's size, on the CPU, as the predictor gives it."""
        candidates = self.ours.decode(self.embedding, self.prompts)
        for _, masks in candidates.iter_masks():
            masks.cpu()
        return candidates.predicted_iou


def contestants(work: Work) -> dict[str, Callable[[], Tensor]]:
    """Every way to the predicted IoU of all masks."""
    runners: dict[str, Callable[[], Tensor]] = {LOOP: work.loop}
    for batch in STOCK_BATCHES:
        runners[f"segment-anything's decoder, batches of {batch}"] = partial(work.batches, batch)
    runners[OURS] = lambda: work.ours.decode(work.embedding, work.prompts).predicted_iou
    runners[OURS_FULL] = work.full
    runners[IOU] = lambda: predict_iou(work.ours, work.embedding, work.prompts)
    runners[IOU_BF16] = lambda: predict_iou(work.reduced, work.embedding, work.prompts)
    return runners


def timed(call: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Wall time in seconds, the GPU's work included, and what was answered."""
    start = time.perf_counter()
    with torch.no_grad():
        found = call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, found.float().cpu()


def race(runners: dict[str, Callable[[], Tensor]], rounds: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of every contestant in every round, and how far its answers are from the first one's."""
    order = random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    answers: dict[str, Tensor] = {}
    for _ in range(rounds):
        for name in order.sample(list(runners), len(runners)):
            taken, answers[name] = timed(runners[name])
            seconds[name].append(taken)
    reference = next(iter(answers[name] for name in runners))
    return seconds, {name: float((answer - reference).abs().max()) for name, answer in answers.items()}


def encoders(work: Work) -> dict[str, Callable[[], Tensor]]:
    """Stock and lean, on one image."""
    encoder: Any = work.ours.model.image_encoder
    pixels = torch.randn(1, 3, 1024, 1024, device=work.ours.device)
    return {"segment-anything": lambda: encoder(pixels), "arrcoc_sam": lambda: lean_encoder(encoder, pixels)}


def peak_memory() -> dict[str, float]:
    """Bytes that the encoder needs beyond weights and image, each in a process of its own."""
    found = {}
    for name in ("segment-anything", "arrcoc_sam"):
        command = [sys.executable, __file__, "--peak-of", name]
        environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        found[name] = float(done.stdout.split()[-1])
    return found


def peak_of_this_process(name: str) -> float:
    """What this process grows by while it encodes once."""
    encoder: Any = build_model().image_encoder
    pixels = torch.randn(1, 3, 1024, 1024, device=next(encoder.parameters()).device)
    run = {"segment-anything": encoder, "arrcoc_sam": lambda x: lean_encoder(encoder, x)}[name]
    if torch.cuda.is_available():
        with torch.no_grad():
            run(pixels)  # the libraries' own workspaces stay
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            run(pixels)
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = _resident("VmHWM")
    with torch.no_grad():
        run(pixels)
    return _resident("VmHWM") - before


def _resident(field: str) -> float:
    status = Path("/proc/self/status").read_text()
    return 1024.0 * int(next(line.split()[1] for line in status.splitlines() if line.startswith(field)))


def measure(num_masks: int, rounds: int) -> dict[str, Any]:
    """All numbers."""
    work = Work(num_masks)
    every, on_gpu = torch.get_num_threads(), torch.cuda.is_available()
    results = []
    for threads in [every] if on_gpu else sorted({1, every}):
        torch.set_num_threads(threads)
        if on_gpu:  # every shape has kernels to choose and memory to ask for
            race(contestants(work), 1)
            race(encoders(work), 1)
        for warmed in (work.loop, work.full):
            warmed()
        seconds, differences = race(contestants(work), rounds)
        encoding, apart = race(encoders(work), rounds)
        results.append(
            {
                "threads": threads,
                "seconds": seconds,
                "differences": differences,
                "encoder_seconds": encoding,
                "encoder_difference": apart["arrcoc_sam"],
            }
        )
    torch.set_num_threads(every)
    return {
        "machine": machine(),
        "num_masks": num_masks,
        "rounds": rounds,
        "results": results,
        "encoder_peak": peak_memory(),
    }


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "versions": {name: version(name) for name in ("arrcoc-sam", "torch", "segment-anything")},
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d"),
    }


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Median over rounds of how many times as long the peer takes, and the extremes."""
    each = [b / a for a, b in zip(ours, theirs, strict=True)]
    return statistics.median(each), min(each), max(each)


def tables(measured: dict[str, Any]) -> str:
    """The numbers as Markdown."""
    at, count = measured["machine"], measured["num_masks"]
    where = at["gpu"] or f"{at['cpu']} ({at['cpu_capability']})"
    tf32 = " (convolutions in TF32)" if at["gpu"] else ""
    versions = ", ".join(f"{name} {number.partition('+')[0]}" for name, number in at["versions"].items())
    lines = [
        f"{count} masks of one image of 1024 × 1024, SAM ViT-B, mask and click as prompt, three candidates, float32"
        f"{tf32} if nothing else is said; {where}, {at['date']}; medians of {measured['rounds']} interleaved rounds. "
        f"Versions: {versions}.",
    ]
    for result in measured["results"]:
        seconds = dict(result["seconds"])
        stock = [name for name in seconds if name.startswith("segment-anything's decoder")]
        best = min(stock, key=lambda name: statistics.median(seconds[name]))
        seconds[BEST_STOCK] = seconds[best]
        if not at["gpu"]:
            lines += ["", f"**{result['threads']} thread{'s' if result['threads'] > 1 else ''}**"]
        lines += ["", "| | ms a mask | largest difference of IoU from the predictor's |", "| --- | --- | --- |"]
        for name, taken in result["seconds"].items():
            middle = 1e3 * statistics.median(taken) / count
            lines.append(f"| {name} | {middle:.{1 if middle >= 10 else 2}f} | {result['differences'][name]:.1e} |")
        lines += ["", "| ours | peer | peer takes × ours | extremes | |", "| --- | --- | --- | --- | --- |"]
        for ours, peer, bar in BARS:
            middle, low, high = ratios(seconds[ours], seconds[peer])
            note = f"bar {bar:g} ×: {'met' if middle >= bar else 'missed'}" if result["threads"] == 1 else ""
            named = best if peer == BEST_STOCK else peer
            lines.append(f"| {ours} | {named} | **{middle:.2f}** | {low:.2f} – {high:.2f} | {note} |")
        ours, theirs = result["encoder_seconds"]["arrcoc_sam"], result["encoder_seconds"]["segment-anything"]
        middle, low, high = ratios(ours, theirs)
        digits = 3 if at["gpu"] else 2
        note = f"bar {ENCODER_BAR} ×: {'met' if middle >= ENCODER_BAR else 'missed'}" if result["threads"] == 1 else ""
        lines.append(
            f"| encoder, {statistics.median(ours):.{digits}f} s | "
            f"segment-anything, {statistics.median(theirs):.{digits}f} s | "
            f"**{middle:.2f}** | {low:.2f} – {high:.2f} | {note} |"
        )
    peak = measured["encoder_peak"]
    share = peak["arrcoc_sam"] / peak["segment-anything"]
    lines += [
        "",
        f"Peak memory of the encoder beyond weights and image: {peak['arrcoc_sam'] / 2**30:.2f} GiB against "
        f"{peak['segment-anything'] / 2**30:.2f} GiB, {share:.2f} × (bar {ENCODER_MEMORY_BAR:g} ×: "
        f"{'met' if share <= ENCODER_MEMORY_BAR else 'missed'}).",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--masks", type=int, default=NUM_MASKS)
    parser.add_argument("--quick", action="store_true", help="8 masks, 1 round; nothing is written")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where every number goes")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak_of:
        print(peak_of_this_process(arguments.peak_of))
        return
    measured = measure(8, 1) if arguments.quick else measure(arguments.masks, arguments.rounds)
    print(tables(measured))
    if not arguments.quick:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main()
