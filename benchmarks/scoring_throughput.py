"""Masks a second of `score`: in this process, and on Ray with one actor and with two.

    python benchmarks/scoring_throughput.py                       measures, writes results/scoring_throughput.json
    python benchmarks/scoring_throughput.py --masks 200 --quick   does it run; nothing is written
    python benchmarks/scoring_throughput.py --segmenter sam_vit_h --device cuda --engines local --quick

One torch thread each, and the same priority for all (Ray makes its workers nice by default). The first quarter of the
masks is left out of the time: start-up, first touch of the weights, and actors that are not there yet. The bar: two
actors ≥ 1.5 × one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from scoring_data import write_dataset

from arrcoc_sam.datasets.mask_forms import open_masks
from arrcoc_sam.quality.scoring.local import Engine, local_engine, run_scoring
from arrcoc_sam.quality.scoring.plan import scoring_plan
from arrcoc_sam.quality.scoring.spec import EstimatorSpec
from arrcoc_sam.report.provenance import installed_versions

RESULTS = Path(__file__).parent / "results" / "scoring_throughput.json"
ENGINES = ("local", "ray, 1 actor", "ray, 2 actors")
BAR = 1.5


def measure(name: str, spec: EstimatorSpec, path: Path, folder: Path, part_masks: int) -> dict[str, Any]:
    """Masks a second over the last three quarters of a data set."""
    estimator, data = spec.build(), open_masks(path)
    seen: list[tuple[float, int, int]] = []

    def note(stage: str, done: int, total: int) -> None:
        if stage == "Scoring":
            seen.append((time.perf_counter(), done, total))

    engine: Engine
    if name == "local":
        engine = local_engine(estimator)
    else:
        from arrcoc_sam.distributed import RayEngine

        engine = RayEngine(spec, actors=int(name.split()[1]))
    plan = scoring_plan(data, estimator, part_masks=part_masks)
    run_scoring(data, folder / f"{name}.parquet", plan, engine, manifest={}, progress=note)
    warm = next(event for event in seen if event[1] >= event[2] / 4)
    last = seen[-1]
    return {"engine": name, "masks_per_second": (last[1] - warm[1]) / (last[0] - warm[0]), "masks": last[1]}


def tables(results: dict[str, Any]) -> str:
    """The numbers as Markdown."""
    rates = {run["engine"]: run["masks_per_second"] for run in results["runs"]}
    lines = ["| engine | masks a second |", "| --- | ---: |"]
    lines += [f"| {name} | {rate:,.1f} |" for name, rate in rates.items()]
    if ENGINES[1] in rates and ENGINES[2] in rates:
        ratio = rates[ENGINES[2]] / rates[ENGINES[1]]
        verdict = "met" if ratio >= BAR else "missed"
        lines += ["", f"Two actors to one: {ratio:.2f} (bar: {BAR}, {verdict})."]
    lines += ["", f"{results['segmenter']} on {results['device']}, one thread each; {results['machine']}."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--masks", type=int, default=4_000)
    parser.add_argument("--part-masks", type=int, default=50)
    parser.add_argument("--segmenter", default="tiny")
    parser.add_argument("--checkpoint", default=None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--quick", action="store_true", help="write nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("RAY_worker_niceness", "0")
    spec = EstimatorSpec(options.segmenter, options.checkpoint, options.device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = write_dataset(folder, options.masks)
        runs = [measure(engine, spec, path, folder, options.part_masks) for engine in options.engines]
    device = torch.cuda.get_device_name() if options.device == "cuda" else options.device
    results = {
        "runs": runs,
        "segmenter": options.segmenter,
        "device": device,
        "machine": platform.platform(),
        "versions": installed_versions(),
    }
    print(tables(results))
    if not options.quick:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
