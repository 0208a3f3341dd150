"""Training attention on hierarchies: how fast the cache is read, and what it saves.

    python benchmarks/attention_training.py           measures, prints the tables, writes results
    python benchmarks/attention_training.py --quick   few samples and steps: does it run; nothing is written
    python benchmarks/table.py                        puts the tables into benchmarks/README.md

*Reading*: samples a second of three 64² targets from run lengths of 256 px masks: straight to the grid, and by way of
bitmaps (pycocotools' decoder, then the same exact average); through the map-style data set and the stream, with and
without workers.

*Training*: pictures a second and peak memory of the default settings, with levels from the cache and with the segmenter
asked in every step; each in a process of its own. With CUDA also: the eager and the Triton loss, float32 and bfloat16.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch.utils.data import DataLoader

from arrcoc_sam.images import load_image
from arrcoc_sam.losses import HierarchicalAttentionLoss
from arrcoc_sam.masks import area_average
from arrcoc_sam.prompts import Prompts
from arrcoc_sam.segmenters import load_segmenter
from arrcoc_sam.training.attention_feed import HeldSamples, StepSamples
from arrcoc_sam.training.attention_settings import AttentionTraining
from arrcoc_sam.training.attention_trainer import _accumulate, build_attention
from arrcoc_sam.training.cache_dataset import HierarchyCache, HierarchyDataset, HierarchyStream
from arrcoc_sam.training.cache_grids import rle_to_grid
from arrcoc_sam.training.distributed import SingleDevice
from arrcoc_sam.training.samples import collate_samples
from arrcoc_sam.training.samples_scenes import prepare_scenes

RESULTS = Path(__file__).parent / "results" / "attention_training.json"
TARGET_HW = (64, 64)
BAR = 500.0  # samples a second on two cores
SETTINGS = AttentionTraining()


def by_bitmaps(rles: list[dict[str, Any]]) -> np.ndarray:
    """The usual way: decode, then average."""
    masks = coco_mask.decode([{"size": r["size"], "counts": r["counts"].encode()} for r in rles])
    averaged: np.ndarray = area_average(torch.from_numpy(masks).permute(2, 0, 1).bool(), TARGET_HW).numpy()
    return averaged


def rate(work: Callable[[], int], rounds: int) -> dict[str, float]:
    """Samples a second: median and middle half."""
    work()
    rates = []
    for _ in range(rounds):
        began = time.perf_counter()
        count = work()
        rates.append(count / (time.perf_counter() - began))
    low, high = np.quantile(rates, [0.25, 0.75])
    return {"median": statistics.median(rates), "low": float(low), "high": float(high)}


def measure_reading(cache: HierarchyCache, rounds: int, *, workers: int = 2) -> dict[str, dict[str, float]]:
    dataset = HierarchyDataset(cache, target_hw=TARGET_HW)
    rows = dataset.rows.to_pylist()
    triples = [[{"size": [row["height"], row["width"]], "counts": c} for c in row["counts"]] for row in rows]

    def map_style() -> int:
        return sum(dataset[i].targets.shape[0] > 0 for i in range(len(dataset)))

    def loaded(data: Any) -> Callable[[], int]:
        loader = DataLoader(data, batch_size=32, num_workers=workers, collate_fn=collate_samples)
        return lambda: sum(len(batch) for batch in loader)

    stream = HierarchyStream(cache, target_hw=TARGET_HW)
    return {
        "run lengths to the grid": rate(lambda: sum(len(rle_to_grid(r, TARGET_HW)) > 0 for r in triples), rounds),
        "by way of bitmaps": rate(lambda: sum(len(by_bitmaps(r)) > 0 for r in triples), rounds),
        "map-style": rate(map_style, rounds),
        "stream": rate(lambda: sum(1 for _ in stream), rounds),
        f"map-style, {workers} workers": rate(loaded(dataset), rounds),
        f"stream, {workers} workers": rate(loaded(stream), rounds),
    }


def train_steps(folder: Path, steps: int, *, cached: bool, device: str, backend: str, autocast: bool) -> dict[str, Any]:
    """Pictures a second and peak memory of some training steps, in this process."""
    settings = replace(SETTINGS, autocast=autocast)
    cache = HierarchyCache.open(folder)
    options = {"target_hw": (settings.target_size,) * 2, "image_size": settings.image_size}
    dataset = HierarchyDataset(cache, **options)
    devices = SingleDevice(device)
    torch.manual_seed(0)
    model = devices.prepare(build_attention(settings).train())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    criterion = HierarchicalAttentionLoss(reduction="sum", backend=backend)  # type: ignore[arg-type]
    samples = HeldSamples([dataset[i] for i in range(len(dataset))])
    batches = StepSamples(samples, settings)
    segmenter = None if cached else load_segmenter("tiny", device=device)
    names = sorted({str(name) for name in dataset.rows["image"].to_pylist()})
    curve, began = [], 0.0
    for step in range(steps + 2):
        if step == 2:
            began = time.perf_counter()
        parts = batches[step]
        if segmenter is not None:
            for picture in range(settings.num_images):
                path = Path(cache.plan.root) / names[(step * settings.num_images + picture) % len(names)]
                points = parts[0].points_xy[: settings.num_queries, None].double()
                labels = torch.ones(len(points), 1, dtype=torch.long)
                segmenter.decode(
                    segmenter.encode(load_image(path)), Prompts(points_xy=points, labels=labels)
                ).hierarchy()
        loss = _accumulate(model, criterion, parts, settings, devices)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        curve.append(float(loss))
    seconds = time.perf_counter() - began
    peak = (
        torch.cuda.max_memory_allocated()
        if device == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    return {"pictures_per_second": steps * settings.num_images / seconds, "peak_gib": peak / 2**30, "curve": curve}


def in_a_process(folder: Path, steps: int, **options: Any) -> dict[str, Any]:
    words = [sys.executable, __file__, "--steps-of", json.dumps({"folder": str(folder), "steps": steps, **options})]
    answer = subprocess.run(words, capture_output=True, text=True, check=True, env=os.environ)
    record: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return record


def measure(scenes: int, rounds: int, steps: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        cache = prepare_scenes(Path(place), range(5_000_000, 5_000_000 + scenes), segmenter=load_segmenter("tiny"))
        reading = measure_reading(cache, rounds)
        cpu = {"device": "cpu", "backend": "auto", "autocast": False}
        training = {
            "levels from the cache": in_a_process(cache.folder, steps, cached=True, **cpu),
            "segmenter asked in every step": in_a_process(cache.folder, steps, cached=False, **cpu),
        }
        if torch.cuda.is_available():
            for backend in ("eager", "triton"):
                for autocast in (False, True):
                    words = f"CUDA, {backend} loss, {'bfloat16' if autocast else 'float32'}"
                    options = {"device": "cuda", "backend": backend, "autocast": autocast, "cached": True}
                    training[words] = in_a_process(cache.folder, steps, **options)
    names = ("torch", "numpy", "timm", "pyarrow", "pycocotools")
    return {
        "reading": reading,
        "training": training,
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "versions": {name: version(name) for name in names},
    }


def tables(measured: dict[str, Any]) -> str:
    """The numbers as Markdown."""
    lines = [
        f"Machine: {measured['machine']['cpu']}, {measured['machine']['cores']} cores; {measured['device']}. "
        f"Versions: {', '.join(f'{name} {number}' for name, number in measured['versions'].items())}.",
        "",
        "| reading three 64² targets | samples/s | middle half |",
        "| --- | --- | --- |",
    ]
    for name, row in measured["reading"].items():
        lines.append(f"| {name} | {row['median']:,.0f} | {row['low']:,.0f} – {row['high']:,.0f} |")
    best = max(row["median"] for name, row in measured["reading"].items() if "workers" in name)
    lines += ["", f"Bar ≥ {BAR:,.0f} samples/s on two cores: {'met' if best >= BAR else 'missed'}.", ""]
    lines += ["| training | pictures/s | peak memory, GiB |", "| --- | --- | --- |"]
    for name, row in measured["training"].items():
        lines.append(f"| {name} | {row['pictures_per_second']:.1f} | {row['peak_gib']:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 scenes, 2 steps; nothing is written")
    parser.add_argument("--scenes", type=int, default=60)
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
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main()
