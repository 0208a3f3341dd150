"""The calibration that ships belongs to the weights that ship, and does what its record says."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from arrcoc_sam.quality import (
    FittedCalibration,
    MaskQualityEstimator,
    embedded_calibration_path,
    load_calibration,
)
from arrcoc_sam.quality.scoring.spec import EstimatorSpec
from arrcoc_sam.scenes import VALIDATION_SEEDS, generate_scene
from arrcoc_sam.segmenters import load_segmenter

COMMAND = "run: python experiments/mask_quality/run.py calibrate"


def test_of_the_shipped_weights() -> None:
    assert Path(embedded_calibration_path()).is_file(), f"the embedded weights have no calibration; {COMMAND}"
    segmenter = load_segmenter("tiny", device="cpu")
    calibration = load_calibration(embedded_calibration_path())
    assert calibration.checkpoint_hash == segmenter.checkpoint_hash, (
        f"arrcoc_sam/weights/tiny.safetensors has changed since its calibration was made; {COMMAND}"
    )
    scene = generate_scene(VALIDATION_SEEDS[-1], 256)
    scores = MaskQualityEstimator(segmenter, calibration=calibration).estimate(scene.image, scene.masks[:2])
    assert scores.quality_kind == "calibrated"
    assert (scores.interval_low <= scores.interval_high).all()


def test_it_is_asked_for_by_name() -> None:
    estimator = EstimatorSpec("tiny", device="cpu", calibration="embedded").build()
    assert isinstance(estimator.calibration, FittedCalibration)
    assert estimator.calibration.checkpoint_hash == estimator.segmenter.checkpoint_hash


def test_its_record_is_complete_and_keeps_its_promises() -> None:
    calibration = load_calibration(embedded_calibration_path())
    assert all(part["masks"] >= 1000 for part in calibration.provenance["sets"].values())
    first, last = calibration.provenance["data"]["seeds"]
    assert VALIDATION_SEEDS.start <= first < last <= VALIDATION_SEEDS.stop
    assert abs(calibration.report["coverage"] - 0.9) <= 0.03
    assert calibration.report["monotone"]["ece"] < calibration.report["bound"]["ece"]
    assert np.isfinite(calibration.report["monotone"]["spearman"])
