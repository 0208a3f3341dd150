"""What scores depend on: a run goes on, and a table is taken for done, only where all of it is the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from arrcoc_sam._version import __version__
from arrcoc_sam.datasets.mask_sets import MaskSet
from arrcoc_sam.errors import OutputError, explain
from arrcoc_sam.quality.estimator import MaskQualityEstimator
from arrcoc_sam.quality.scoring.scorer import SCORE_FIELDS

__all__ = ["PLAN_KEY", "require_same_plan", "scoring_plan"]

PLAN_KEY = b"arrcoc_sam"
"""The plan's key in the metadata of a table of scores."""


def scoring_plan(dataset: MaskSet, estimator: MaskQualityEstimator, *, part_masks: int) -> dict[str, Any]:
    """All that scores depend on, ready for JSON: a run goes on only where this is the same."""
    calibration = estimator.calibration
    return {
        "version": __version__,
        "dataset": str(dataset.path.absolute()),
        "format": dataset.format,
        "images": str(dataset.images.absolute()),
        "dataset_digest": dataset.digest(),
        "segmenter": estimator.segmenter.name,
        "checkpoint_hash": estimator.segmenter.checkpoint_hash,
        "dtype": str(estimator.segmenter.dtype).removeprefix("torch."),
        "protocol": estimator.protocol,
        "multimask": estimator.multimask,
        "components": estimator.components,
        "calibration": None if calibration is None else str(getattr(calibration, "digest", type(calibration).__name__)),
        "quality_kind": "bound" if calibration is None else "calibrated",
        "part_masks": part_masks,
        "columns": SCORE_FIELDS.names,
    } | ({} if estimator.segmenter.scorer is estimator.segmenter else {"masks": "of the segmenter's scorer"})


def require_same_plan(found: Mapping[str, Any], wanted: Mapping[str, Any], words: str) -> None:
    """See that what is there is of the plan that is wanted.

    Args:
        found: The plan of what is there.
        wanted: The plan of now.
        words: What is there, as the begin of the sentence "… of other protocol".

    Raises:
        OutputError: They differ.
    """
    differing = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
    if differing:
        mend = "name another file as out (--out), or remove this one"
        raise OutputError(explain(f"{words} of other {', '.join(differing)}", "the same run, to go on with", mend))
