"""Is a model better for training on masks that were filtered by quality? See README.md.

uv run python experiments/quality_filter/run.py                              # the embedded demonstration model
uv run python experiments/quality_filter/run.py --segmenter sam_vit_b        # a real one
uv run python experiments/quality_filter/run.py --scenes 20 --steps 20 --seeds 2 --no-record    # does it run?
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from rich.progress import track
from student import crop, mean_iou, stacked, train

import arrcoc_sam as aa
from arrcoc_sam.masks import encode_rle
from arrcoc_sam.quality import FittedCalibration, embedded_calibration_path, load_calibration
from arrcoc_sam.quality.degradations import degrade, mask_context
from arrcoc_sam.quality.filtering import KeepRules, judge
from arrcoc_sam.quality.scoring.local import score_masks
from arrcoc_sam.report.provenance import installed_versions
from arrcoc_sam.scenes import GENERATOR_VERSION, generate_scene

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
BEGIN, END = "<!-- results: written by run.py -->", "<!-- end of results -->"

SIZE = 128
TRAIN, TEST = 8_200_000, 8_500_000
"""First seeds of the scenes; the embedded model was trained, and its calibration fitted, on none of them."""
CORRUPTED = 0.30
SEVERITY = (0.3, 0.9)
LEAST_AREA = 100
SETS = ("all", "filtered", "clean")


@dataclass(frozen=True)
class Sample:
    """A mask as the training set has it, and as it should be."""

    image: np.ndarray
    given: np.ndarray
    true: np.ndarray
    kind: str


def samples(first: int, count: int, corrupted: float) -> Iterator[list[Sample]]:
    """The masks of each scene, some of them made worse."""
    donors: list[np.ndarray] = []
    for seed in range(first, first + count):
        scene, rng = generate_scene(seed, SIZE), np.random.default_rng(seed)
        found = []
        for node in np.flatnonzero(scene.masks.sum((1, 2)) >= LEAST_AREA).tolist():
            mask, kind = scene.masks[node], "clean"
            given = mask
            if rng.random() < corrupted:
                context = mask_context(scene.masks, node, donors[-20:])
                kind = str(rng.choice(context.kinds))
                given = degrade(mask, kind, rng.uniform(*SEVERITY), context=context, seed=[seed, node])  # type: ignore[arg-type]
            found.append(Sample(scene.image, given, mask, kind))
        donors += [mask for mask in scene.masks[:3] if mask.any()]
        yield found


def write_coco(scenes: list[list[Sample]], folder: Path) -> Path:
    """The training set as a data engineer would have it."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, scene in enumerate(scenes):
        if scene:
            Image.fromarray(scene[0].image).save(folder / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "height": SIZE, "width": SIZE})
        for sample in scene:
            record = {"id": len(annotations), "image_id": number, "segmentation": encode_rle(sample.given)}
            annotations.append(record)
    path = folder / "masks.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segmenter", default="tiny")
    parser.add_argument("--checkpoint", default=None)
    parser.add_argument("--scenes", type=int, default=250, help="of the training set; a third as many for the test")
    parser.add_argument("--steps", type=int, default=400, help="of each training")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--no-record", action="store_true", help="print the results only")
    options = parser.parse_args()
    began = time.process_time()
    scenes = list(track(samples(TRAIN, options.scenes, CORRUPTED), "Drawing", total=options.scenes))
    training = [sample for scene in scenes for sample in scene]
    kinds = np.array([sample.kind for sample in training])
    segmenter = aa.load_segmenter(options.segmenter, checkpoint=options.checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        estimator = aa.MaskQualityEstimator(segmenter, calibration=calibration_of(segmenter), keep_masks=False)
        summary = score_masks(write_coco(scenes, Path(folder)), Path(folder) / "scores.parquet", estimator)
        scores = pd.read_parquet(summary.scores).sort_values("id").reset_index(drop=True)
    kept = judge(scores, KeepRules(class_quantile=CORRUPTED)).kept.to_numpy()
    chosen = {"all": np.ones(len(kinds), bool), "filtered": kept, "clean": kinds == "clean"}
    inputs, masks = stacked([crop(sample.image, sample.given) for sample in training])
    tests = stacked([crop(s.image, s.true) for scene in samples(TEST, max(1, options.scenes // 3), 0.0) for s in scene])
    ious: dict[str, list[float]] = {name: [] for name in SETS}
    runs = [(seed, name) for seed in range(options.seeds) for name in SETS]
    for seed, name in track(runs, "Training"):
        rows = torch.from_numpy(np.flatnonzero(chosen[name]))
        model = train(inputs[rows], masks[rows], seed=seed, steps=options.steps)
        ious[name].append(mean_iou(model, *tests))
    results = {
        "segmenter": segmenter.name,
        "checkpoint_hash": segmenter.checkpoint_hash,
        "generator_version": GENERATOR_VERSION,
        "scenes": options.scenes,
        "steps": options.steps,
        "seeds": options.seeds,
        "masks": len(kinds),
        "test_masks": len(tests[0]),
        "quality_kind": str(scores["quality_kind"].iloc[0]),
        **detection(scores["quality"].to_numpy(np.float64), kinds, kept),
        "iou": ious,
        **recovery(ious),
        "cpu_minutes": (time.process_time() - began) / 60,
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
        "versions": installed_versions(),
    }
    print(table(results))
    if not options.no_record:
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
        page = (HERE / "README.md").read_text()
        head, rest = page.split(BEGIN)
        (HERE / "README.md").write_text(f"{head}{BEGIN}\n\n{table(results)}\n{END}{rest.split(END)[1]}")


def calibration_of(segmenter: Any) -> FittedCalibration | None:
    """The embedded model's own; other weights have none here, and quality is the lower bound."""
    embedded = load_calibration(embedded_calibration_path())
    return embedded if embedded.checkpoint_hash == segmenter.checkpoint_hash else None


def detection(quality: np.ndarray, kinds: np.ndarray, kept: np.ndarray) -> dict[str, Any]:
    """How well quality tells corrupted masks from clean ones, and what the filter took."""
    clean = kinds == "clean"
    below = (quality[~clean, None] < quality[None, clean]).mean()
    ties = (quality[~clean, None] == quality[None, clean]).mean()
    return {
        "corrupted_share": float((~clean).mean()),
        "masks_kept": int(kept.sum()),
        "corrupted_share_kept": float((~clean[kept]).mean()),
        "auc": float(below + ties / 2),
        "dropped_by_kind": {str(kind): float((~kept[kinds == kind]).mean()) for kind in np.unique(kinds)},
    }


def recovery(ious: dict[str, list[float]]) -> dict[str, Any]:
    """The share of the gap between all and clean that filtering closes; interval over seeds, paired."""
    values = np.array([ious[name] for name in SETS])
    draws = np.random.default_rng(0).integers(0, values.shape[1], (10_000, values.shape[1]))
    means = values[:, draws].mean(-1)
    gap, closed = values[2].mean() - values[0].mean(), values[1].mean() - values[0].mean()
    return {
        "gap": float(gap),
        "closed": float(closed),
        "recovered": float(closed / gap),
        "gap_interval": np.quantile(means[2] - means[0], [0.025, 0.975]).tolist(),
        "closed_interval": np.quantile(means[1] - means[0], [0.025, 0.975]).tolist(),
    }


def table(results: dict[str, Any]) -> str:
    rows = [
        "| trained on | masks | of them corrupted | mean IoU on clean test masks (seeds) |",
        "| --- | ---: | ---: | --- |",
    ]
    count, share = results["masks"], results["corrupted_share"]
    sizes = {"all": count, "filtered": results["masks_kept"], "clean": round(count * (1 - share))}
    corrupted = {"all": share, "filtered": results["corrupted_share_kept"], "clean": 0.0}
    for name in SETS:
        values = results["iou"][name]
        spread = f"{np.mean(values):.4f} ({', '.join(f'{value:.4f}' for value in values)})"
        rows.append(f"| {name} | {sizes[name]:,} | {100 * corrupted[name]:.1f} % | {spread} |")
    low, high = results["closed_interval"]
    gap_low, gap_high = results["gap_interval"]
    lines = [
        *rows,
        "",
        f"Gap between all and clean: {results['gap']:.4f} [{gap_low:.4f}, {gap_high:.4f}]. Closed by the filter: "
        f"{results['closed']:.4f} [{low:.4f}, {high:.4f}], {100 * results['recovered']:.0f} % of it (bar: 50 %). "
        f"AUC of quality ({results['quality_kind']}) for corrupted masks: {results['auc']:.3f}.",
        "",
        "| kind | dropped |",
        "| --- | ---: |",
        *(f"| {kind} | {100 * value:.0f} % |" for kind, value in results["dropped_by_kind"].items()),
        "",
        f"Segmenter {results['segmenter']}, weights {results['checkpoint_hash'][:12]}…; {results['seeds']} seeds of "
        f"{results['steps']} steps; {results['test_masks']} test masks; {results['cpu_minutes']:.1f} CPU minutes.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
