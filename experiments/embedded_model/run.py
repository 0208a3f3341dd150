"""Trains, judges and describes the embedded model; see README.md.

uv run python experiments/embedded_model/run.py all        # everything, in order; the shipped weights are replaced
uv run python experiments/embedded_model/run.py evaluate   # only the figures of the shipped weights
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from card import write_card
from evaluation import evaluate
from figures import draw_figures
from phases import PHASES, SHIPPED
from shipping import ship
from training import mean_of, train

from arrcoc_sam.segmenters.tiny import tiny_weights_path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["all", "train", "ship", "evaluate", "figures", "card"])
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "runs" / "embedded_model",
        help="scenes, checkpoints, parts of long runs",
    )
    parser.add_argument("--trained", type=Path, help="weights to ship; by default the mean of some phases")
    parser.add_argument("--phase", type=int, choices=PHASES, help="only this phase of the training")
    parser.add_argument("--device", default="cpu", help="of the training; phase 26 was run on a GPU")
    parser.add_argument("--workers", type=int, default=0, help="processes that draw batches; none on two cores")
    arguments = parser.parse_args()
    if arguments.what in ("all", "train"):
        phases = list(PHASES) if arguments.phase is None else [arguments.phase]
        train(arguments.out, phases, device=arguments.device, num_workers=arguments.workers)
    if arguments.what in ("all", "ship"):
        ship(arguments.trained or mean_of(arguments.out, SHIPPED))
    if arguments.what in ("all", "evaluate"):
        print(json.dumps(evaluate(arguments.out), indent=1))
    if arguments.what in ("all", "figures"):
        draw_figures()
    if arguments.what in ("all", "card"):
        results = json.loads((HERE / "results.json").read_text())
        write_card(results, Path(tiny_weights_path()).with_name("README.md"))


if __name__ == "__main__":
    main()
