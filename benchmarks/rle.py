"""COCO run lengths: ours and pycocotools', interleaved in one process.

    python benchmarks/rle.py                            measures, prints the table, writes results/rle.json
    python benchmarks/rle.py --quick                    few masks and rounds: does it run, are the bytes the same
    python benchmarks/table.py                          puts the table into benchmarks/README.md

The work: row-major bool masks, as decoders give them, to COCO's strings. The peer gets each mask transposed by
``np.asfortranarray``, which it asks for; that is part of its time. Every round runs all contests in a new order; a
ratio is that of one round, and the table gives the median over rounds and the middle half of them. The bytes are
compared in the same run.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from granularity import machine, summary
from pycocotools import mask as coco

from arrcoc_sam.masks.run_lengths import coco_strings

RESULTS = Path(__file__).parent / "results" / "rle.json"
SIZES = ((480, 640), (683, 1024), (1024, 1024), (2160, 3840))
KINDS = ("blobs", "ragged", "noise", "empty")
BAR = 3.0


def make_masks(kind: str, size_hw: tuple[int, int], count: int) -> np.ndarray:
    """Smooth stars, the same with frayed outlines, a coin toss a pixel, or nothing."""
    rng = np.random.default_rng(0)
    height, width = size_hw
    masks = np.zeros((count, height, width), dtype=bool)
    if kind == "noise":
        masks[:] = rng.random(masks.shape) < 0.5
    if kind in ("blobs", "ragged"):
        y, x = np.mgrid[:height, :width].astype(np.float32)
        for mask in masks:
            row, column = rng.uniform(0.2, 0.8, 2) * size_hw
            angle, distance = np.arctan2(y - row, x - column), np.hypot(y - row, x - column)
            radius = rng.uniform(0.05, 0.3) * min(size_hw) * (1 + 0.3 * np.sin(5 * angle + rng.uniform(0, 6)))
            if kind == "ragged":
                distance = distance + rng.normal(0, 3, size_hw)
            mask[:] = distance < radius
    return masks


def theirs(masks: np.ndarray) -> list[str]:
    return [coco.encode(np.asfortranarray(mask.view(np.uint8)))["counts"].decode("ascii") for mask in masks]


def race(rounds: int, pixels: int) -> list[dict[str, Any]]:
    """Seconds a mask of every contest."""
    entries = [(kind, size) for size in SIZES for kind in KINDS]
    work = {entry: make_masks(*entry, max(1, pixels // (entry[1][0] * entry[1][1]))) for entry in entries}
    times: dict[tuple[str, tuple[int, int]], list[tuple[float, float]]] = {entry: [] for entry in entries}
    same: dict[tuple[str, tuple[int, int]], bool] = {}
    order = random.Random(0)
    for round_ in range(-1, rounds):  # the first one warms up
        for entry in order.sample(entries, len(entries)):
            masks = work[entry]
            begin = time.perf_counter()
            own = list(coco_strings(masks))
            between = time.perf_counter()
            peer = theirs(masks)
            end = time.perf_counter()
            same[entry] = own == peer
            if round_ >= 0:
                times[entry].append(((between - begin) / len(masks), (end - between) / len(masks)))
    return [
        {
            "kind": kind,
            "size_hw": size,
            "masks": len(work[kind, size]),
            "ratio": summary([peer / own for own, peer in times[kind, size]]),
            "ours_seconds": summary([own for own, _ in times[kind, size]]),
            "peer_seconds": summary([peer for _, peer in times[kind, size]]),
            "same_bytes": same[kind, size],
        }
        for kind, size in entries
    ]


def tables(measured: dict[str, Any]) -> str:
    """The numbers as Markdown, the ratio first."""
    at = measured["machine"]
    lines = [
        f"COCO run lengths of row-major masks against pycocotools {at['versions']['pycocotools']} with "
        f"`np.asfortranarray`; {at['cpu']} ({at['cpu_capability']}), one thread, {at['date']}. “× ours” is how many "
        f"times longer the peer takes: median of {measured['rounds']} interleaved rounds, and the "
        f"middle half of them. Bar: "
        f"{measured['bar']:g} × on smooth masks." + (" A quick try, not for the record." if measured["quick"] else ""),
        "",
        "| × ours | bar | middle half | masks | size | ours, ms | peer, ms | bytes |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in measured["results"]:
        ratio, (height, width) = row["ratio"], row["size_hw"]
        cells = [
            f"**{ratio['median']:.1f}**",
            ("met" if ratio["median"] >= measured["bar"] else "**missed**") if row["kind"] == "blobs" else "",
            f"{ratio['low']:.1f} – {ratio['high']:.1f}",
            row["kind"],
            f"{width} × {height}",
            f"{1e3 * row['ours_seconds']['median']:.2f}",
            f"{1e3 * row['peer_seconds']['median']:.2f}",
            "the same" if row["same_bytes"] else "**differ**",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--pixels", type=int, default=1 << 25, help="of all masks of a contest together")
    parser.add_argument("--quick", action="store_true", help="fewer masks, 2 rounds; nothing is written")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where every number goes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rounds, pixels = (2, 1 << 21) if arguments.quick else (arguments.rounds, arguments.pixels)
    measured = {
        "machine": machine(("arrcoc-sam", "numpy", "pycocotools")),
        "quick": arguments.quick,
        "rounds": rounds,
        "bar": BAR,
        "results": race(rounds, pixels),
    }
    print(tables(measured))
    if not arguments.quick:
        arguments.json.parent.mkdir(exist_ok=True)
        arguments.json.write_text(json.dumps(measured, indent=1) + "\n")
    return 0 if all(row["same_bytes"] for row in measured["results"]) else 1


if __name__ == "__main__":
    sys.exit(main())
