"""Fitting a calibration and judging it: three sets of images, none of which sees the others' masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from arrcoc_sam.errors import DataError, InputError, UnknownNameError, explain
from arrcoc_sam.quality.calibration import ConformalIntervals, FittedCalibration, scores_of
from arrcoc_sam.quality.calibration_curves import CURVES, Curve
from arrcoc_sam.quality.estimator import MaskQualityEstimator
from arrcoc_sam.quality.iou_head import IoUHeadReport, evaluate_iou_head
from arrcoc_sam.report.provenance import installed_versions

__all__ = ["MIN_MASKS", "CalibrationFit", "Method", "bound_figures", "fit_calibration", "judge", "split_by_image"]

Method = Literal["isotonic", "monotone"]

MIN_MASKS = 1_000
"""The least number of masks of each of the three sets."""

_SHARES = {"fit": 0.5, "conformal": 0.25, "test": 0.25}


@dataclass(frozen=True, eq=False)
class CalibrationFit:
    """A calibration and how it does on images that neither curve nor intervals have seen.

    Attributes:
        calibration: What was fitted.
        test: The samples of the test set, with ``quality``, ``interval_low`` and ``interval_high`` of the calibration.
        reports: Judgements on the test set: "bound" (the lower bound as an estimate), "isotonic" and "monotone".
    """

    calibration: FittedCalibration
    test: pd.DataFrame
    reports: Mapping[str, IoUHeadReport]


def fit_calibration(
    samples: pd.DataFrame,
    estimator: MaskQualityEstimator,
    *,
    method: Method = "monotone",
    confidence: float = 0.9,
    min_masks: int = MIN_MASKS,
    seed: int = 0,
    data: Mapping[str, Any] | None = None,
) -> CalibrationFit:
    """Fit curve and intervals, and judge them.

    Half of the images fit the curve, a quarter the intervals, a quarter judges both.

    Args:
        samples: Of :func:`~arrcoc_sam.quality.calibration_samples.calibration_samples`; empty masks are left out.
        estimator: Whose scores they are.
        method: "isotonic" on the lower bound alone, or "monotone" in predicted IoU, alignment, stability and soft IoU
            with log-area free.
        confidence: Of the intervals.
        min_masks: The least number of masks of each set.
        seed: Of the split.
        data: What the samples were made of, for the record.

    Raises:
        UnknownNameError: No such method.
        InputError: A confidence outside (0, 1).
        DataError: Too few masks or images.
    """
    if method not in CURVES:
        raise UnknownNameError(explain(f"method={method!r}", f"one of {', '.join(CURVES)}"))
    if not 0 < confidence < 1:
        raise InputError(explain(f"confidence={confidence}", "a share in (0, 1)"))
    sets = split_by_image(samples[samples["area_share"] > 0], seed=seed)
    for name, part in sets.items():
        if len(part) < max(min_masks, 2):
            came = f"the {name} set has {len(part)} masks of {part['image'].nunique()} images"
            raise DataError(
                explain(came, f"at least {max(min_masks, 2)} masks", "give more images, or more samples a mask")
            )
    scores = {name: scores_of(part) for name, part in sets.items()}
    actual = {name: part["actual_iou"].to_numpy(np.float64) for name, part in sets.items()}
    curves: dict[str, Curve] = {name: curve.fit(scores["fit"], actual["fit"]) for name, curve in CURVES.items()}
    curve = curves[method]
    estimates = {name: curve.predict(values) for name, values in scores.items()}
    intervals = ConformalIntervals.fit(
        (estimates["fit"], actual["fit"]), (estimates["conformal"], actual["conformal"]), confidence
    )
    low, high = intervals.around(estimates["test"])
    test = sets["test"].assign(quality=estimates["test"], interval_low=low, interval_high=high)
    reports = {"bound": judge(test["lower_bound"], test, seed=seed)} | {
        name: judge(each.predict(scores["test"]), test, seed=seed) for name, each in curves.items()
    }
    calibration = FittedCalibration(
        checkpoint_hash=estimator.segmenter.checkpoint_hash,
        protocol=estimator.protocol,
        multimask=estimator.multimask,
        components=estimator.components,
        curve=curve,
        intervals=intervals,
        provenance={
            "segmenter": estimator.segmenter.name,
            "data": dict(data or {}),
            "seed": seed,
            "sets": {name: {"masks": len(part), "images": int(part["image"].nunique())} for name, part in sets.items()},
            "versions": installed_versions(),
        },
        report=_figures(test, reports, method),
    )
    return CalibrationFit(calibration, test, reports)


def split_by_image(samples: pd.DataFrame, *, seed: int = 0) -> dict[str, pd.DataFrame]:
    """The sets "fit", "conformal" and "test": half, a quarter and a quarter of the images."""
    images = np.array(sorted(samples["image"].unique()), dtype=object)
    order = np.random.default_rng(seed).permutation(len(images))
    ends = np.rint(np.cumsum(list(_SHARES.values()))[:-1] * len(images)).astype(int)
    chosen = np.split(images[order], ends)
    return {name: samples[samples["image"].isin(set(some))] for name, some in zip(_SHARES, chosen, strict=True)}


def judge(estimates: Any, samples: pd.DataFrame, *, seed: int = 0, num_bootstrap: int = 200) -> IoUHeadReport:
    """Estimates of the samples' IoU, judged as an IoU head is, with intervals by image."""
    return evaluate_iou_head(
        np.asarray(estimates, dtype=np.float64)[:, None],
        samples["actual_iou"].to_numpy(np.float64)[:, None],
        image_id=samples["image"].tolist(),
        num_bootstrap=num_bootstrap,
        seed=seed,
    )


def bound_figures(samples: pd.DataFrame, *, tolerance: float = 1e-6) -> dict[str, float]:
    """The share of actual IoUs inside the two bounds, of those below and above, and the mean width."""
    actual, lower, upper = (samples[name].to_numpy(np.float64) for name in ("actual_iou", "lower_bound", "upper_bound"))
    below, above = actual < lower - tolerance, actual > upper + tolerance
    return {
        "inside": float((~below & ~above).mean()),
        "below": float(below.mean()),
        "above": float(above.mean()),
        "width": float((upper - lower).mean()),
    }


def _figures(test: pd.DataFrame, reports: Mapping[str, IoUHeadReport], method: str) -> dict[str, Any]:
    """The judgement in numbers, for the file."""
    names = ("spearman", "pearson", "mae", "rmse", "ece")
    judged = {
        name: {metric: _rounded(getattr(report, metric)) for metric in names}
        | {"intervals": {metric: [_rounded(end) for end in report.intervals[metric]] for metric in names}}
        for name, report in reports.items()
    }
    covered = test["actual_iou"].between(test["interval_low"] - 1e-9, test["interval_high"] + 1e-9)
    return {
        **judged,
        "method": method,
        "coverage": _rounded(covered.mean()),
        "interval_width": _rounded((test["interval_high"] - test["interval_low"]).mean()),
        "coverage_by_kind": {
            str(kind): _rounded(share) for kind, share in covered.groupby(test["kind"]).mean().items()
        },
        "bounds": {name: _rounded(value) for name, value in bound_figures(test).items()},
    }


def _rounded(value: Any) -> float | None:
    number = float(value)
    return round(number, 5) if np.isfinite(number) else None
