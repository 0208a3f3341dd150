"""Calibrates the embedded model's scores of external masks, and judges bounds and calibration; see README.md.

uv run python experiments/mask_quality/run.py calibrate   # arrcoc_sam/weights/tiny_calibration.json
uv run python experiments/mask_quality/run.py evaluate    # results.json and figures/
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.progress import track

import arrcoc_sam as aa
from arrcoc_sam.masks.rle import decode_rle
from arrcoc_sam.quality import (
    AnnotatedImage,
    FittedCalibration,
    MaskQualityEstimator,
    calibration_samples,
    embedded_calibration_path,
    fit_calibration,
    jaccard_bounds,
    load_calibration,
)
from arrcoc_sam.quality.calibration_ablation import compare_protocols, protocol_estimators
from arrcoc_sam.quality.calibration_fit import bound_figures, coverage_figures, judge
from arrcoc_sam.report.calibration_plots import plot_calibration, plot_protocols
from arrcoc_sam.scenes import LEVEL_NAMES, TEST_V1, VALIDATION_SEEDS, Scene, generate_scene

HERE = Path(__file__).parent
CALIBRATION_SEEDS = range(VALIDATION_SEEDS.start + 3_000_000, VALIDATION_SEEDS.start + 3_000_540)
NUM_TEST_SCENES = 160
NUM_ABLATION_SCENES = 40
NUM_PHOTOGRAPHS = 100
SEED = 0


def calibrate() -> FittedCalibration:
    """Fits the shipped calibration on procedural scenes of the validation seeds and puts it into the package."""
    estimator = MaskQualityEstimator(aa.load_segmenter("tiny", device="cpu"), keep_masks=False)
    scenes = (generate_scene(seed, TEST_V1.size) for seed in CALIBRATION_SEEDS)
    images = track(annotated(scenes), "scenes", total=len(CALIBRATION_SEEDS))
    samples = calibration_samples({"": estimator}, images, seed=SEED)[""]
    data = {
        "name": "procedural scenes",
        "generator_version": TEST_V1.version,
        "seeds": [CALIBRATION_SEEDS.start, CALIBRATION_SEEDS.stop],
        "size": TEST_V1.size,
        "command": "python experiments/mask_quality/run.py calibrate",
    }
    fit = fit_calibration(samples, estimator, seed=SEED, data=data)
    fit.calibration.save(embedded_calibration_path())
    print(json.dumps(fit.calibration.report, indent=1))
    return fit.calibration


def evaluate() -> dict[str, Any]:
    """Bounds, ranks, calibration and coverage on the held-out split and on the real pack."""
    segmenter = aa.load_segmenter("tiny", device="cpu")
    estimator = MaskQualityEstimator(segmenter)
    calibration = load_calibration(embedded_calibration_path())
    MaskQualityEstimator(segmenter, calibration=calibration)  # refuses a calibration of other weights
    results: dict[str, Any] = {
        "checkpoint_hash": segmenter.checkpoint_hash,
        "calibration": calibration.digest,
        "seed": SEED,
        "versions": calibration.provenance["versions"],
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, no GPU",
    }
    figures = HERE / "figures"
    figures.mkdir(exist_ok=True)
    images = track(annotated(islice(TEST_V1, NUM_TEST_SCENES)), "held-out scenes", total=NUM_TEST_SCENES)
    samples = calibration_samples({"": estimator}, images, seed=SEED)[""]
    results[TEST_V1.name] = judged(samples, calibration, figures / "scenes.png")
    ways = protocol_estimators(segmenter)
    images = track(annotated(islice(TEST_V1, NUM_ABLATION_SCENES)), "protocols", total=NUM_ABLATION_SCENES)
    protocols = compare_protocols(calibration_samples(ways, images, seed=SEED), seed=SEED)
    plot_protocols(protocols).savefig(figures / "protocols.png")
    results["protocols"] = json.loads(protocols.round(4).to_json(orient="records"))
    pack = Path(os.environ.get("ARRCOC_SAM_DATA", HERE.parents[2] / "shared" / "data")) / "nested-masks"
    if pack.is_dir():
        images = track(photographs(pack, NUM_PHOTOGRAPHS), "photographs", total=NUM_PHOTOGRAPHS)
        samples = calibration_samples({"": estimator}, images, seed=SEED)[""]
        results["nested-masks"] = judged(samples, calibration, figures / "photographs.png")
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=1))
    return results


def judged(samples: pd.DataFrame, calibration: FittedCalibration, figure: Path) -> dict[str, Any]:
    """All figures of a set of samples, over all and by kind of degradation."""
    quality, low, high = calibration.estimate(samples)
    samples = samples.assign(quality=quality, interval_low=low, interval_high=high)
    samples["covered"] = samples["actual_iou"].between(samples["interval_low"], samples["interval_high"])
    reports = {name: judge(samples[name], samples, seed=SEED) for name in ("lower_bound", "quality")}
    plot_calibration(
        {"lower bound": reports["lower_bound"].reliability, "calibrated": reports["quality"].reliability},
        {"lower bound": reports["lower_bound"].ece, "calibrated": reports["quality"].ece},
    ).savefig(figure)
    metrics = ("spearman", "pearson", "mae", "ece")
    figures: dict[str, Any] = {
        "num_masks": len(samples),
        "num_images": int(samples["image"].nunique()),
        "bounds, oracle's IoU": rounded(bound_figures(with_oracle(samples))),
        "bounds, head's IoU": rounded(bound_figures(samples)),
        **{name: np.round(value, 4).tolist() for name, value in coverage_figures(samples, seed=SEED).items()},
        "interval_width": round(float((samples["interval_high"] - samples["interval_low"]).mean()), 4),
    }
    figures["ceiling"] = ceiling(samples)
    for name, report in reports.items():
        figures[name] = {
            metric: [round(float(value), 4) for value in (getattr(report, metric), *report.intervals[metric])]
            for metric in metrics
        }
    figures["by kind"] = {
        str(kind): {
            "num_masks": len(part),
            "actual_iou": round(float(part["actual_iou"].mean()), 4),
            "lower_bound": round(float(part["lower_bound"].mean()), 4),
            "quality": round(float(part["quality"].mean()), 4),
            "spearman": round(float(part["quality"].corr(part["actual_iou"], method="spearman")), 4)
            if part["actual_iou"].nunique() > 1
            else None,
            "inside": round(bound_figures(part)["inside"], 4),
            "covered": round(float(part["covered"].mean()), 4),
        }
        for kind, part in samples.groupby("kind")
    }
    return figures


def ceiling(samples: pd.DataFrame) -> dict[str, float]:
    """Rank correlations with the IoU with the nearest true mask, which is all that image and mask alone could tell.

    A part that is taken for a whole is a perfect mask of the part, so even an oracle of the nearest object does not
    rank masks by their IoU with the object that was meant.
    """
    nearest = samples["nearest_iou"]
    pairs = {"spearman of the nearest object's IoU": samples["actual_iou"], "of quality with it": samples["quality"]}
    return rounded({name: float(nearest.corr(other, method="spearman")) for name, other in pairs.items()})


def with_oracle(samples: pd.DataFrame) -> pd.DataFrame:
    """The samples with the bounds that a head that knew the closest candidate's IoU would give."""
    lower, upper = jaccard_bounds(*(samples[name].to_numpy(np.float64) for name in ("alignment_iou", "oracle_iou")))
    return samples.assign(lower_bound=lower, upper_bound=upper)


def annotated(scenes: Iterable[Scene]) -> Iterator[AnnotatedImage]:
    """Scenes as the collector of samples takes them."""
    return (AnnotatedImage(f"scene {scene.seed}", scene.image, scene.masks, scene.levels) for scene in scenes)


def photographs(pack: Path, count: int) -> Iterator[AnnotatedImage]:
    """Photographs of the pack, drawn evenly from its list, with the masks of their triples and pairs."""
    manifest = json.loads((pack / "manifest.json").read_text(encoding="utf-8"))
    masks = {mask["id"]: mask for mask in manifest["masks"]}
    chains: dict[Any, dict[Any, int]] = {}
    for chain in manifest["triples"]:
        roles = {mask_id: LEVEL_NAMES.index(level) for level, mask_id in chain["masks"].items() if mask_id is not None}
        chains.setdefault(chain["image_id"], {}).update(roles)
    images = [image for image in manifest["images"] if image["id"] in chains]
    for place in np.linspace(0, len(images) - 1, count).round().astype(int):
        image = images[place]
        levels = chains[image["id"]]
        truth = torch.stack([decode_rle(masks[mask_id]["segmentation"]) for mask_id in levels])
        pixels = aa.load_image(pack / image["file"])
        yield AnnotatedImage(str(image["id"]), pixels, truth.numpy(), np.array(list(levels.values())))


def rounded(figures: dict[str, float]) -> dict[str, float]:
    """Four digits."""
    return {name: round(value, 4) for name, value in figures.items()}


def main() -> None:
    """Runs what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("calibrate", "evaluate", "all"))
    what = parser.parse_args().what
    if what in ("calibrate", "all"):
        calibrate()
    if what in ("evaluate", "all"):
        evaluate()


if __name__ == "__main__":
    main()
