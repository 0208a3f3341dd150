"""Training attention on hierarchies: how fast the cache is read, and what it saves.

    python benchmarks/attention_training.py           measures, prints the tables, writes results; with CUDA the
                                                      training alone, to results/attention_training_gpu.json
    python benchmarks/attention_training.py --quick   few samples and steps: does it run; nothing is written
    python benchmarks/table.py                        puts the tables into benchmarks/README.md

*Reading*: samples a second of three 64² targets from run lengths of 256 and 1024 px masks: straight to the grid, and by
way of bitmaps (pycocotools' decoder, then the same exact average); through the map-style data set and the stream, with
and without workers, with and without pictures. Workers are started before the clock is.

*Training*: pictures a second and peak memory of the default settings, with levels from the cache and with the segmenter
asked in every step; each in a process of its own, whose memory is counted from its start (PyTorch alone takes about
half a GiB). With CUDA, on the GPU and in one process: the eager and the Triton loss, float32 and bfloat16, whose losses
are told beside each other; memory is the GPU's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from granularity import machine, summary
from pycocotools import mask as coco_mask
from torch.utils.data import DataLoader

from arrcoc_sam.images import load_image
from arrcoc_sam.losses import HierarchicalAttentionLoss
from arrcoc_sam.masks import area_average
from arrcoc_sam.prompts import Prompts
from arrcoc_sam.segmenters import load_segmenter
from arrcoc_sam.segmenters.base import Segmenter
from arrcoc_sam.training.attention.feed import HeldSamples, StepSamples
from arrcoc_sam.training.attention.settings import AttentionTraining
from arrcoc_sam.training.attention.trainer import _accumulate, build_attention, peak_memory
from arrcoc_sam.training.cache.dataset import HierarchyCache, HierarchyDataset, HierarchyStream
from arrcoc_sam.training.cache.grids import rle_to_grid
from arrcoc_sam.training.distributed import SingleDevice
from arrcoc_sam.training.samples import collate_samples
from arrcoc_sam.training.samples_scenes import prepare_scenes

RESULTS = Path(__file__).parent / "results" / f"attention_training{'_gpu' if torch.cuda.is_available() else ''}.json"
TARGET_HW = (64, 64)
BAR = 500.0  # samples a second on two cores
SETTINGS = AttentionTraining()
WARM_UP = 2  # steps before the clock starts
TRAINING_ROUNDS = 3


def by_bitmaps(rles: list[dict[str, Any]]) -> np.ndarray:
    """The usual way: decode, then average."""
    masks = coco_mask.decode([{"size": r["size"], "counts": r["counts"].encode()} for r in rles])
    averaged: np.ndarray = area_average(torch.from_numpy(masks).permute(2, 0, 1).bool(), TARGET_HW).numpy()
    return averaged


def rate(work: Callable[[], int], rounds: int) -> dict[str, float]:
    """Samples a second, after a pass that is not counted."""
    work()
    rates = []
    for _ in range(rounds):
        began = time.perf_counter()
        count = work()
        rates.append(count / (time.perf_counter() - began))
    return summary(rates)


def measure_reading(cache: HierarchyCache, rounds: int, *, workers: int = 2) -> dict[str, dict[str, float]]:
    dataset = HierarchyDataset(cache, target_hw=TARGET_HW)
    rows = dataset.rows.to_pylist()
    triples = [[{"size": [row["height"], row["width"]], "counts": c} for c in row["counts"]] for row in rows]

    def straight() -> int:
        return sum(len(rle_to_grid(triple, TARGET_HW)) > 0 for triple in triples)

    def drawn() -> int:
        return sum(len(by_bitmaps(triple)) > 0 for triple in triples)

    stream = HierarchyStream(cache, target_hw=TARGET_HW)
    pictured = HierarchyStream(cache, target_hw=TARGET_HW, image_size=SETTINGS.image_size)
    return {
        "run lengths to the grid": rate(straight, rounds),
        "by way of bitmaps": rate(drawn, rounds),
        "map-style": rate(lambda: sum(dataset[i].targets.shape[0] > 0 for i in range(len(dataset))), rounds),
        "stream": rate(lambda: sum(1 for _ in stream), rounds),
        f"map-style, {workers} workers": rate(loaded(dataset, workers), rounds),
        f"stream, {workers} workers": rate(loaded(stream, workers), rounds),
        f"stream with pictures, {workers} workers": rate(loaded(pictured, workers), rounds),
    }


def loaded(data: Any, workers: int, *, passes: int = 4) -> Callable[[], int]:
    """Some passes through a loader whose workers stay."""
    loader = DataLoader(data, batch_size=32, num_workers=workers, collate_fn=collate_samples, persistent_workers=True)
    return lambda: sum(len(batch) for _ in range(passes) for batch in loader)


def ask(segmenter: Segmenter, picture: Path, points_xy: torch.Tensor, settings: AttentionTraining) -> torch.Tensor:
    """What the cache saves: targets of a picture's clicks, which are in the frame of the training pictures."""
    pixels = load_image(picture)
    scale = torch.tensor([pixels.shape[1], pixels.shape[0]], dtype=torch.float64) / settings.image_size
    points = (points_xy.double() + 0.5) * scale - 0.5
    masks = segmenter.decode(segmenter.encode(pixels), Prompts(points_xy=points[:, None])).hierarchy().masks
    return area_average(masks, (settings.target_size,) * 2)


def train_steps(folder: Path, steps: int, *, cached: bool, device: str, backend: str, autocast: bool) -> dict[str, Any]:
    """Pictures a second and peak memory of some training steps, in this process."""
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    settings = replace(SETTINGS, autocast=autocast)
    cache = HierarchyCache.open(folder)
    dataset = HierarchyDataset(cache, target_hw=(settings.target_size,) * 2, image_size=settings.image_size)
    devices = SingleDevice(device)
    torch.manual_seed(0)
    model = devices.prepare(build_attention(settings).train())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    criterion = HierarchicalAttentionLoss(reduction="sum", backend=backend)  # type: ignore[arg-type]
    batches = StepSamples(HeldSamples([dataset[i] for i in range(len(dataset))]), settings)
    segmenter = None if cached else load_segmenter("tiny", device=device)
    names = sorted({str(name) for name in dataset.rows["image"].to_pylist()})
    curve, began = [], 0.0
    for step in range(steps + WARM_UP):
        if step == WARM_UP:
            began = time.perf_counter()
        parts = batches[step]
        if segmenter is not None:  # as many pictures and clicks as the step has; which ones makes no difference
            for number in range(settings.num_images):
                picture = Path(cache.plan.root) / names[(step * settings.num_images + number) % len(names)]
                ask(segmenter, picture, parts[0].points_xy[: settings.num_queries], settings)
        loss = _accumulate(model, criterion, parts, settings, devices)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        curve.append(float(loss))
    seconds = time.perf_counter() - began
    return {
        "pictures_per_second": steps * settings.num_images / seconds,
        "peak_gib": peak_memory(devices.device),
        "curve": curve,
    }


def in_a_process(folder: Path, steps: int, **options: Any) -> dict[str, Any]:
    words = [sys.executable, __file__, "--steps-of", json.dumps({"folder": str(folder), "steps": steps, **options})]
    answer = subprocess.run(words, capture_output=True, text=True, check=True, env=os.environ)
    record: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return record


def measure(scenes: int, rounds: int, steps: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        seeds, segmenter = range(5_000_000, 5_000_000 + scenes), load_segmenter("tiny")
        cache = prepare_scenes(Path(place) / "256", seeds, segmenter=segmenter, images_per_shard=16)
        reading = {} if torch.cuda.is_available() else measure_both_sizes(cache, Path(place), seeds, segmenter, rounds)
        del segmenter  # its memory would be counted
        training = measure_training(cache.folder, steps, rounds=min(rounds, TRAINING_ROUNDS))
    at = machine(("arrcoc-sam", "torch", "numpy", "timm", "pyarrow", "pycocotools"))
    at |= {"cores": os.cpu_count(), "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None}
    return {"reading": reading, "training": training, "machine": at}


def measure_both_sizes(
    cache: HierarchyCache, place: Path, seeds: range, segmenter: Segmenter, rounds: int
) -> dict[str, dict[str, dict[str, float]]]:
    large = prepare_scenes(
        place / "1024", seeds[: len(seeds) // 2], size=1024, segmenter=segmenter, images_per_shard=16
    )
    return {f"{side} px": measure_reading(found, rounds) for side, found in ((256, cache), (1024, large))}


def measure_training(folder: Path, steps: int, *, rounds: int) -> dict[str, Any]:
    """Every way to train, in turn; on a CPU each time in a process of its own."""
    ways: dict[str, dict[str, Any]] = {}
    run: Callable[..., dict[str, Any]]
    if torch.cuda.is_available():
        run = train_steps
        for backend in ("eager", "triton"):
            for autocast in (False, True):
                words = f"{backend} loss, {'bfloat16' if autocast else 'float32'}"
                ways[words] = {"device": "cuda", "backend": backend, "autocast": autocast, "cached": True}
        asking = {"device": "cuda", "backend": "triton", "autocast": False, "cached": False}
        ways["triton loss, float32, segmenter asked in every step"] = asking
    else:
        run = in_a_process
        cpu = {"device": "cpu", "backend": "auto", "autocast": False}
        ways["levels from the cache"] = {"cached": True, **cpu}
        ways["segmenter asked in every step"] = {"cached": False, **cpu}
    runs: dict[str, list[dict[str, Any]]] = {words: [] for words in ways}
    for _ in range(rounds):
        for words, options in ways.items():
            runs[words].append(run(folder, steps, **options))
    return {
        words: {
            "pictures_per_second": summary([run["pictures_per_second"] for run in found]),
            "peak_gib": max(run["peak_gib"] for run in found),
            "curve": found[0]["curve"],
        }
        for words, found in runs.items()
    }


def tables(measured: dict[str, Any]) -> str:
    """The numbers as Markdown."""
    at = measured["machine"]
    versions = ", ".join(f"{name} {number.partition('+')[0]}" for name, number in at["versions"].items())
    lines = [
        f"{at['cpu']}, {at['cores']} cores{'' if at['gpu'] is None else ', ' + at['gpu']}, {at['date']}; median of "
        f"several passes, and the middle half of them. Versions: {versions}.",
        "",
    ]
    if measured["reading"]:
        lines += ["| reading three 64² targets | masks of | samples/s | middle half | |"]
        lines += ["| --- | --- | --- | --- | --- |"]
    for size, found in measured["reading"].items():
        for name, row in found.items():
            bar = f"bar ≥ {BAR:,.0f}: {'met' if row['median'] >= BAR else 'missed'}" if "workers" in name else ""
            lines.append(f"| {name} | {size} | {row['median']:,.0f} | {row['low']:,.0f} – {row['high']:,.0f} | {bar} |")
    if measured["reading"]:
        lines.append("")
    lines += ["| training | pictures/s | middle half | peak memory, GiB |", "| --- | --- | --- | --- |"]
    for name, row in measured["training"].items():
        pace = row["pictures_per_second"]
        spread = f"{pace['low']:.1f} – {pace['high']:.1f}"
        lines.append(f"| {name} | {pace['median']:.1f} | {spread} | {row['peak_gib']:.2f} |")
    if at["gpu"]:
        lasts = {name: row["curve"] for name, row in measured["training"].items() if "asked" not in name}
        words = ", ".join(f"{curve[-1]:.4f} ({name})" for name, curve in lasts.items())
        lines += ["", f"Loss of the last step of {len(row['curve'])}: {words}."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 scenes, 2 steps; nothing is written")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the numbers go")
    parser.add_argument("--scenes", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--steps-of", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.steps_of:
        options = json.loads(given.steps_of)
        print(json.dumps(train_steps(Path(options.pop("folder")), options.pop("steps"), **options)))
        return
    measured = measure(4, 1, 2) if given.quick else measure(given.scenes, given.rounds, given.steps)
    print(tables(measured))
    if not given.quick:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main()
