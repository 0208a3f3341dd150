"""Can the embedded model's IoU head learn to judge masks that it did not draw? See README.md.

uv run python experiments/iou_transfer/run.py
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import arrcoc_sam as aa
from arrcoc_sam.quality import MaskQualityEstimator, evaluate_iou_head
from arrcoc_sam.report.provenance import installed_versions
from arrcoc_sam.report.writing import write_text
from arrcoc_sam.scenes import GENERATOR_VERSION, VALIDATION_SEEDS, generate_scene
from arrcoc_sam.training.iou_transfer.scored_masks import DegradedMasks
from arrcoc_sam.training.iou_transfer.transfer import ScoredImage, TransferSettings, transfer_iou_head
from arrcoc_sam.training.sources import SceneSource

HERE = Path(__file__).parent
# Seeds that no weights of the embedded model were trained on; two disjoint runs of them.
LEARN, JUDGE = VALIDATION_SEEDS[1_000_000:], VALIDATION_SEEDS[2_000_000:]
ARMS = {
    "head, mask+point": TransferSettings(),
    "head, mask": TransferSettings(prompt="mask"),
    "token+head, mask+point": TransferSettings(part="token+head", epochs=4),
}
METRICS = ("pearson", "spearman", "mae", "rmse", "ece")


def external_masks(seeds: Sequence[int], masks_per_image: int, size: int, seed: int) -> list[ScoredImage]:
    """Degraded masks of scenes, drawn once for all arms."""
    scenes = [generate_scene(number, size) for number in seeds]
    return list(DegradedMasks(SceneSource(scenes), masks_per_image, seed=seed))


def bound(held_out: Sequence[ScoredImage]) -> dict[str, Any]:
    """What the quality estimator says of the same masks without any training: its lower bound."""
    estimator = MaskQualityEstimator(aa.load_segmenter("tiny", device="cpu"))
    quality = [estimator.estimate(scored.image, scored.masks).quality.numpy() for scored in held_out]
    names = [scored.name for scored in held_out for _ in scored.masks]
    actual = np.concatenate([scored.true_iou for scored in held_out])
    report = evaluate_iou_head(np.concatenate(quality)[:, None], actual[:, None], image_id=names)
    return {name: {"value": getattr(report, name), "interval": list(report.intervals[name])} for name in METRICS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learn", type=int, default=200, help="scenes to learn from")
    parser.add_argument("--judge", type=int, default=100, help="held-out scenes")
    parser.add_argument("--masks", type=int, default=6, help="masks a scene")
    parser.add_argument("--size", type=int, default=192, help="side of the scenes")
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    arguments = parser.parse_args()
    began = time.process_time()
    train = external_masks(LEARN[: arguments.learn], arguments.masks, arguments.size, seed=0)
    held_out = external_masks(JUDGE[: arguments.judge], arguments.masks, arguments.size, seed=1)
    results: dict[str, Any] = {
        "scenes": {"learn": len(train), "judge": len(held_out), "size": arguments.size, "generator": GENERATOR_VERSION},
        "checkpoint_hash": aa.load_segmenter("tiny", device="cpu").checkpoint_hash,
        "mean_true_iou": float(np.concatenate([scored.true_iou for scored in held_out]).mean()),
        "estimator_lower_bound": bound(held_out),
        "arms": {},
    }
    for name, settings in ARMS.items():
        segmenter = aa.load_segmenter("tiny", device="cpu")
        report = transfer_iou_head(segmenter, train, held_out, settings).report
        results["arms"][name] = {"settings": asdict(settings), **report.as_json()}
        print(name, {key: report.as_json()[key]["pearson"] for key in ("before", "after", "gain")}, flush=True)
    results["cpu_seconds"] = round(time.process_time() - began)
    results["machine"] = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    results["versions"] = installed_versions()
    write_text(arguments.out, json.dumps(rounded(results), indent=1) + "\n")


def rounded(value: Any) -> Any:
    """Figures to four places."""
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(each) for each in value]
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
