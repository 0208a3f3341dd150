"""Peak memory of `score` by the number of masks: does it grow?

    python benchmarks/scoring_memory.py                            1,000 and 100,000 masks; writes results/
    python benchmarks/scoring_memory.py --masks 200 1000 --quick   does it run; nothing is written

Each number of masks, 200 an image, is scored from a COCO file by a process of its own, with the embedded model on the
CPU in one thread, and the kernel says what that process held at most. The bar: 100,000 masks within 10 % of 1,000.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from scoring_data import write_dataset

from arrcoc_sam.report.provenance import installed_versions

RESULTS = Path(__file__).parent / "results" / "scoring_memory.json"
BAR = 1.10
SIZES = [1_000, 100_000]
MASKS_AN_IMAGE = 200
CHILD = """
import json, resource, sys, time
import torch
torch.set_num_threads(1)
from arrcoc_sam import MaskQualityEstimator, load_segmenter
from arrcoc_sam.quality.scoring.local import score_masks
began = time.process_time()
estimator = MaskQualityEstimator(load_segmenter("tiny", device="cpu"), keep_masks=False)
summary = score_masks(sys.argv[1], sys.argv[2], estimator)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps({"masks": summary.num_masks, "errors": summary.num_errors, "peak_bytes": peak,
                  "cpu_seconds": time.process_time() - began, "checkpoint_hash": estimator.segmenter.checkpoint_hash}))
"""


def measure(num_masks: int, folder: Path) -> dict[str, Any]:
    """What one process of its own held at most."""
    path = write_dataset(folder, num_masks, masks_an_image=MASKS_AN_IMAGE)
    command = [sys.executable, "-c", CHILD, str(path), str(folder / f"{num_masks}.parquet")]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(answer.stdout)
    return found


def tables(results: dict[str, Any]) -> str:
    """The numbers as Markdown."""
    first = results["runs"][0]["peak_bytes"]
    rows = [
        f"| {run['masks']:,} | {run['peak_bytes'] / 2**20:,.0f} MiB | {run['peak_bytes'] / first:.3f} | "
        f"{run['cpu_seconds'] / 60:.1f} |"
        for run in results["runs"]
    ]
    verdict = "met" if results["runs"][-1]["peak_bytes"] <= BAR * first else "missed"
    if [run["masks"] for run in results["runs"]] != SIZES:
        verdict = "for 1,000 and 100,000 masks, which these are not"
    lines = [
        "| masks | peak memory | to the first | CPU minutes |",
        "| ---: | ---: | ---: | ---: |",
        *rows,
        "",
        f"Bar: at most {BAR:.2f} ({verdict}). The embedded model, one thread, COCO JSON; {results['machine']}.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--masks", type=int, nargs="+", default=SIZES)
    parser.add_argument("--quick", action="store_true", help="write nothing")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = [measure(count, Path(folder)) for count in options.masks]
    results = {"runs": runs, "machine": platform.platform(), "versions": installed_versions()}
    print(tables(results))
    if not options.quick:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
