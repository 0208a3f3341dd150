"""Attention maps against mask levels: ours and other libraries', interleaved in one process.

    python benchmarks/granularity.py                    measures, prints the table, writes results/granularity.json
    python benchmarks/granularity.py --quick            few prompts and rounds: does it run, do the numbers agree
    python benchmarks/table.py                          puts the table into benchmarks/README.md

The work: 144 maps × 3 levels × 256 prompts, a value each, on an image of 1024 × 1024. Peers get the maps upsampled to
the image, for free; where they would take from minutes to a day, some pairs of map and level are measured and the time
is scaled by their number, which the table says. Ours is measured in full unless the table says otherwise. Every round
runs all contests in a new order, ours and the peer one after the other; a ratio is that of one round, and the table
gives the median over rounds and the middle half of them. Values are compared in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from arrcoc_sam.granularity import metrics as M

RESULTS = Path(__file__).parent / "results" / "granularity.json"
SIDE, NUM_MAPS, NUM_LEVELS = 1024, 144, 3
RANKED_MAPS = 16  # of all maps, where each one costs as much
EXACT = 1e-6
FLOAT32 = 5e-4  # what float32 sums over a million pixels leave in the peer; ours agrees with NumPy to 1e-7
VERSIONS = ("arrcoc-sam", "torch", "numpy", "scipy", "scikit-learn", "quantus", "torchmetrics")


@dataclass(frozen=True)
class Workload:
    """Maps, masks, and the pairs of map, prompt and level that slow peers are measured on."""

    maps: dict[int, Tensor]
    masks: Tensor
    pairs: list[tuple[int, int, int]]

    @property
    def num_values(self) -> int:
        return NUM_MAPS * NUM_LEVELS * len(self.masks)

    def upsampled(self, grid: int, maps: Sequence[int]) -> dict[int, np.ndarray]:
        """Some maps at the image's size, in double precision."""
        chosen = self.maps[grid][list(maps)].double()[:, None]
        large = torch.nn.functional.interpolate(chosen, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        return dict(zip(maps, large[:, 0].numpy(), strict=True))


@dataclass(frozen=True)
class Contest:
    """Ours against a peer; both answer values at the workload's pairs."""

    name: str
    peer: str
    grid: int
    bar: float | None
    ours: Callable[[], np.ndarray]
    theirs: Callable[[], np.ndarray]
    share_of_ours: float
    share_of_theirs: float
    tolerance: float | None
    note: str


def make_workload(num_prompts: int, num_pairs: int) -> Workload:
    """Random smooth-less maps (no ties) and nested ellipses."""
    generator = torch.Generator().manual_seed(0)
    maps = {grid: torch.rand(NUM_MAPS, grid, grid, generator=generator) for grid in (14, 37)}
    rng = np.random.default_rng(0)
    y, x = ((np.mgrid[:SIDE, :SIDE] + 0.5) / SIDE).astype(np.float32)
    masks = torch.zeros(num_prompts, NUM_LEVELS, SIDE, SIDE, dtype=torch.bool)
    for triple in masks:
        centre, radius = rng.uniform(0.35, 0.65, 2), rng.uniform(0.15, 0.35)
        for level, scale in enumerate((1.0, 0.55, 0.3)):
            a, b = rng.uniform(0.75, 1.0, 2) * radius * scale
            triple[level] = torch.from_numpy(((x - centre[0]) / a) ** 2 + ((y - centre[1]) / b) ** 2 < 1)
    pairs = [
        (int(rng.integers(NUM_MAPS)), int(rng.integers(num_prompts)), number % NUM_LEVELS)
        for number in range(num_pairs)
    ]
    return Workload(maps, masks, pairs)


def at_pairs(values: Tensor, pairs: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """Some of all values (N, K, 3)."""
    return np.array([float(values[pair]) for pair in pairs])


def correlation_contest(work: Workload, grid: int, bar: float) -> Contest:
    """Pearson's r, exactly that of upsampled maps, against NumPy's on each pair."""
    large = work.upsampled(grid, sorted({pair[0] for pair in work.pairs}))
    levels = [work.masks[prompt, level].numpy() for _, prompt, level in work.pairs]

    def theirs() -> np.ndarray:
        return np.array(
            [
                np.corrcoef(large[pair[0]].ravel(), level.ravel())[0, 1]
                for pair, level in zip(work.pairs, levels, strict=True)
            ]
        )

    return Contest(
        name="pearson, as if upsampled",
        peer="np.corrcoef",
        grid=grid,
        bar=bar,
        ours=lambda: at_pairs(M.pearson(work.maps[grid], work.masks, resolution="image"), work.pairs),
        theirs=theirs,
        share_of_ours=1.0,
        share_of_theirs=len(work.pairs) / work.num_values,
        tolerance=EXACT,
        note="",
    )


def torchmetrics_contest(work: Workload) -> Contest:
    """Pearson's r against torchmetrics', pair by pair."""
    from torchmetrics.functional import pearson_corrcoef

    grid = 14
    large = work.upsampled(grid, sorted({pair[0] for pair in work.pairs}))
    maps = [torch.from_numpy(large[pair[0]]).flatten().float() for pair in work.pairs]
    levels = [work.masks[prompt, level].flatten() for _, prompt, level in work.pairs]

    def theirs() -> np.ndarray:
        return np.array([pearson_corrcoef(a, m.float()).item() for a, m in zip(maps, levels, strict=True)])

    return Contest(
        name="pearson, as if upsampled",
        peer="torchmetrics, pair by pair (float32)",
        grid=grid,
        bar=45,
        ours=lambda: at_pairs(M.pearson(work.maps[grid], work.masks, resolution="image"), work.pairs),
        theirs=theirs,
        share_of_ours=1.0,
        share_of_theirs=len(work.pairs) / work.num_values,
        tolerance=FLOAT32,
        note="",
    )


def torch_contest(work: Workload, prompts_at_once: int) -> Contest:
    """Pearson's r against matrix products of standardised pixels in PyTorch, masks in chunks that fit memory.

    The strongest peer there is: all pairs in one product of matrices, as ours, but of a million pixels.
    """
    grid, count = 14, min(prompts_at_once, len(work.masks))
    maps = work.maps[grid][:, None]
    large = torch.nn.functional.interpolate(maps, size=(SIDE, SIDE), mode="bilinear", align_corners=False).flatten(1)
    pairs = [pair for pair in work.pairs if pair[1] < count] or [(0, 0, 0), (7, 0, 2)]

    def standard(rows: Tensor) -> Tensor:
        rows -= rows.mean(1, keepdim=True)  # in place: a map is four megabytes
        rows /= rows.norm(dim=1, keepdim=True)
        return rows

    def chunk() -> np.ndarray:
        # Maps are standardised once for all chunks: outside, at no charge.
        found = standardised @ standard(work.masks[:count].flatten(0, 1).flatten(1).float()).T
        return at_pairs(found.reshape(NUM_MAPS, count, NUM_LEVELS), pairs)

    standardised = standard(large)
    return Contest(
        name="pearson, as if upsampled",
        peer="torch, matrix product of standardised pixels (float32)",
        grid=grid,
        bar=None,
        ours=lambda: at_pairs(M.pearson(work.maps[grid], work.masks, resolution="image"), pairs),
        theirs=chunk,
        share_of_ours=1.0,
        share_of_theirs=count / len(work.masks),
        tolerance=FLOAT32,
        note="the strongest peer: all pairs in one product, as ours",
    )


def quantus_contest(work: Workload, name: str, ours: Callable[..., Tensor], bar: float, *, resolution: str) -> Contest:
    """A metric against Quantus', given a batch of pairs of map and level."""
    import quantus

    grid = 14
    metric = getattr(quantus, name)(abs=False, normalise=False, disable_warnings=True)
    large = work.upsampled(grid, sorted({pair[0] for pair in work.pairs}))
    maps = np.stack([large[pair[0]] for pair in work.pairs])[:, None]
    levels = np.stack([work.masks[prompt, level].numpy() for _, prompt, level in work.pairs])[:, None]
    images, classes = np.zeros(maps.shape, dtype=np.float32), np.zeros(len(maps), dtype=int)

    def theirs() -> np.ndarray:
        found = np.array(metric(model=None, x_batch=images, y_batch=classes, a_batch=maps, s_batch=levels), dtype=float)
        if name == "RelevanceRankAccuracy":  # ours is corrected for the level's area
            share = levels.mean((1, 2, 3))
            found = (found - share) / (1 - share)
        return found

    # Ranks at the image's size cost as much for each map: some maps are measured, against all masks.
    partial = resolution == "image" and name != "RelevanceMassAccuracy"
    asked = {pair[0] for pair in work.pairs}
    used = sorted([*asked, *(number for number in range(NUM_MAPS) if number not in asked)][:RANKED_MAPS])

    def answer() -> np.ndarray:
        if not partial:
            return at_pairs(ours(work.maps[grid], work.masks, resolution=resolution), work.pairs)
        values = ours(work.maps[grid][used], work.masks, resolution=resolution)
        return at_pairs(values, [(used.index(number), prompt, level) for number, prompt, level in work.pairs])

    notes = {
        "grid": "ours on the token grid (the default), masks averaged to it: another quantity than the peer's",
        "image": "ours upsamples and sorts, too: ranks are not linear" if partial else "",
    }
    return Contest(
        name=f"{ours.__name__}, {'token grid' if resolution == 'grid' else 'as if upsampled'}",
        peer=f"quantus.{name}",
        grid=grid,
        bar=bar,
        ours=answer,
        theirs=theirs,
        share_of_ours=len(used) / NUM_MAPS if partial else 1.0,
        share_of_theirs=len(work.pairs) / work.num_values,
        tolerance=None if resolution == "grid" else (1e-3 if name == "RelevanceRankAccuracy" else EXACT),
        note=notes[resolution],
    )


def contests(work: Workload) -> list[Contest]:
    """All of them, in the order of the table."""
    rank, area = "RelevanceRankAccuracy", "AUC"
    return [
        correlation_contest(work, 14, bar=400),
        correlation_contest(work, 37, bar=200),
        torchmetrics_contest(work),
        torch_contest(work, prompts_at_once=8),
        quantus_contest(work, "RelevanceMassAccuracy", M.mass_accuracy, 10_000, resolution="image"),
        quantus_contest(work, rank, M.rank_accuracy, 500, resolution="image"),
        quantus_contest(work, rank, M.rank_accuracy, 500, resolution="grid"),
        quantus_contest(work, area, M.auc, 500, resolution="image"),
        quantus_contest(work, area, M.auc, 500, resolution="grid"),
    ]


def timed(call: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    """Wall time in seconds, and what was answered."""
    start = time.perf_counter()
    found = call()
    return time.perf_counter() - start, found


def race(entries: Sequence[Contest], rounds: int) -> list[dict[str, Any]]:
    """Times of every contest, in seconds for the whole work, and how far the values differ."""
    ours: list[list[float]] = [[] for _ in entries]
    theirs: list[list[float]] = [[] for _ in entries]
    differences = [0.0] * len(entries)
    order = random.Random(0)
    for round_ in range(-1, rounds):  # the first one warms up
        for number in order.sample(range(len(entries)), len(entries)):
            entry = entries[number]
            own_time, own_values = timed(entry.ours)
            peer_time, peer_values = timed(entry.theirs)
            if round_ < 0:
                differences[number] = float(np.nanmax(np.abs(own_values - peer_values)))
                print(f"{entry.name} against {entry.peer}: {own_time:.2f} s, {peer_time:.2f} s", file=sys.stderr)
                continue
            ours[number].append(own_time / entry.share_of_ours)
            theirs[number].append(peer_time / entry.share_of_theirs)
    return [
        {
            "name": entry.name,
            "peer": entry.peer,
            "grid": entry.grid,
            "bar": entry.bar,
            "ratio": summary([b / a for a, b in zip(ours[number], theirs[number], strict=True)]),
            "ours_seconds": summary(ours[number]),
            "peer_seconds": summary(theirs[number]),
            "ours_measured_share": entry.share_of_ours,
            "peer_measured_share": entry.share_of_theirs,
            "difference": differences[number],
            "tolerance": entry.tolerance,
            "note": entry.note,
        }
        for number, entry in enumerate(entries)
    ]


def summary(times: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    if len(times) == 1:
        return dict.fromkeys(("median", "low", "high"), times[0])
    quartiles = statistics.quantiles(times, n=4, method="inclusive")
    return {"median": statistics.median(times), "low": quartiles[0], "high": quartiles[2]}


def machine(distributions: Sequence[str] = VERSIONS) -> dict[str, Any]:
    """What the numbers were measured on."""
    info = Path("/proc/cpuinfo")
    models = (
        [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return {
        "versions": {name: version(name) for name in distributions},
        "python": platform.python_version(),
        "system": platform.system(),
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d"),
    }


def tables(measured: dict[str, Any]) -> str:
    """The numbers as Markdown, the ratio first."""
    at, work = measured["machine"], measured["work"]
    versions = ", ".join(f"{name} {number.partition('+')[0]}" for name, number in at["versions"].items())
    lines = [
        f"{work['maps']} maps × {work['levels']} levels × {work['prompts']} prompts, image {work['side']} × "
        f"{work['side']}; {at['cpu']} ({at['cpu_capability']}), {at['threads']} threads, {at['date']}. “× ours” is how "
        f"many times longer the peer takes: median of {measured['rounds']} interleaved rounds, and the middle half of "
        "them. Peers get upsampled maps for free; “measured” is the share of the work whose time was scaled up.",
        "",
        f"Versions: {versions}." + (" A quick try, not for the record." if measured["quick"] else ""),
        "",
        "| × ours | middle half | ours | peer | grid | ours, s | peer, s | peer measured | largest difference | |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in measured["results"]:
        ratio = row["ratio"]
        notes = [row["note"]] if row["note"] else []
        if row["ours_measured_share"] < 1:
            notes.append(f"ours measured on {100 * row['ours_measured_share']:.2g} %")
        if row["bar"] is not None:
            notes.append(f"bar {row['bar']:,.0f} ×: {'met' if ratio['median'] >= row['bar'] else 'missed'}")
        cells = [
            f"**{ratio['median']:,.0f}**",
            f"{ratio['low']:,.0f} – {ratio['high']:,.0f}",
            row["name"],
            row["peer"],
            f"{row['grid']}²",
            f"{row['ours_seconds']['median']:,.2f}",
            f"{row['peer_seconds']['median']:,.0f}",
            "all" if row["peer_measured_share"] == 1 else f"{100 * row['peer_measured_share']:.2g} %",
            f"{row['difference']:.1e}",
            "; ".join(notes),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def disagreements(results: Sequence[dict[str, Any]]) -> list[str]:
    """Contests whose values differ by more than they may."""
    return [
        f"{row['name']} differs from {row['peer']} by {row['difference']:.2e}, more than {row['tolerance']:.0e}"
        for row in results
        if row["tolerance"] is not None and not row["difference"] <= row["tolerance"]
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=6, help="pairs of map and level that slow peers are measured on")
    parser.add_argument("--threads", type=int, help="threads of the CPU; PyTorch's choice by default")
    parser.add_argument("--quick", action="store_true", help="8 prompts, 2 rounds, 3 pairs; nothing is written")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where every number goes")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    prompts, pairs, rounds = (8, 3, 2) if arguments.quick else (arguments.prompts, arguments.pairs, arguments.rounds)
    measured = {
        "machine": machine(),
        "quick": arguments.quick,
        "rounds": rounds,
        "work": {"maps": NUM_MAPS, "levels": NUM_LEVELS, "prompts": prompts, "side": SIDE},
        "results": race(contests(make_workload(prompts, pairs)), rounds),
    }
    print(tables(measured))
    if not arguments.quick:
        arguments.json.parent.mkdir(exist_ok=True)
        arguments.json.write_text(json.dumps(measured, indent=1) + "\n")
    wrong = disagreements(measured["results"])
    for message in wrong:
        print(f"values differ: {message}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
