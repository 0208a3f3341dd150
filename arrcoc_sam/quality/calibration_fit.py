"""Fitting a calibration and judging it: three sets of images, none of which sees the others' masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from arrcoc_sam.errors import DataError, InputError, UnknownNameError, describe, explain
from arrcoc_sam.quality.calibration import SCORE_NAMES, ConformalIntervals, FittedCalibration, scores_of
from arrcoc_sam.quality.calibration_curves import CURVES, Curve
from arrcoc_sam.quality.estimator import MaskQualityEstimator
from arrcoc_sam.quality.head_metrics import drawn_images, drawn_sums
from arrcoc_sam.quality.iou_head import IoUHeadReport, evaluate_iou_head
from arrcoc_sam.report.provenance import installed_versions

__all__ = [
    "MIN_IMAGES",
    "MIN_MASKS",
    "CalibrationFit",
    "Method",
    "bound_figures",
    "check_sets",
    "coverage_figures",
    "fit_calibration",
    "judge",
    "split_by_image",
]

Method = Literal["isotonic", "monotone"]

MIN_MASKS = 1_000
"""The least number of masks of each of the three sets."""

MIN_IMAGES = 1
"""The least number of images of each of the three sets.

Masks of one image err together, so that intervals of few images are wide, however many masks they hold.
"""

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
    min_images: int = MIN_IMAGES,
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
        min_images: The least number of images of each set. Intervals of a confidence c are [0, 1] with fewer than
            c / (1 - c) images in the second: 9 for 0.9.
        seed: Of the split.
        data: What the samples were made of, for the record.

    Raises:
        UnknownNameError: No such method.
        InputError: A confidence outside (0, 1), or no table.
        DataError: Too few masks or images, a column that is missing, scores that are NaN, or actual IoUs outside
            [0, 1].
    """
    if method not in CURVES:
        raise UnknownNameError(explain(f"method={method!r}", f"one of {', '.join(CURVES)}"))
    if not 0 < confidence < 1:
        raise InputError(explain(f"confidence={confidence}", "a share in (0, 1)"))
    given: object = samples
    if not isinstance(given, pd.DataFrame):
        came = f"samples is {describe(given)}"
        raise InputError(explain(came, "a data frame", "make it with calibration_samples"))
    missing = [name for name in (*SCORE_NAMES, "upper_bound", "actual_iou", "image", "kind") if name not in samples]
    if missing:
        came, mend = f"samples has no column {missing[0]!r}", "make it with calibration_samples of this version"
        raise DataError(explain(came, "scores, actual IoUs, images and kinds of masks", mend))
    samples = samples[samples["area_share"] > 0]
    if not samples["actual_iou"].between(0, 1).all():  # NaN is not
        raise DataError(explain("actual_iou of samples holds NaN or values outside [0, 1]", "IoUs of masks and truth"))
    sets = split_by_image(samples, seed=seed)
    check_sets(sets, min_masks=min_masks, min_images=min_images)
    scores = {name: scores_of(part) for name, part in sets.items()}
    lost = sum(int(np.isnan(np.stack(list(part.values()))).any(axis=0).sum()) for part in scores.values())
    if lost:
        came = f"{lost} of {sum(map(len, sets.values()))} samples have scores that are NaN"
        raise DataError(explain(came, "a head that answers numbers", "check its weights, or leave those samples out"))
    actual = {name: part["actual_iou"].to_numpy(np.float64) for name, part in sets.items()}
    curves: dict[str, Curve] = {name: curve.fit(scores["fit"], actual["fit"]) for name, curve in CURVES.items()}
    curve = curves[method]
    estimates = {name: curve.predict(values) for name, values in scores.items()}
    intervals = ConformalIntervals.fit(
        (estimates["fit"], actual["fit"]),
        (estimates["conformal"], actual["conformal"]),
        confidence,
        images=sets["conformal"]["image"].tolist(),
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
        report=_figures(test, reports, method, seed),
    )
    return CalibrationFit(calibration, test, reports)


def split_by_image(samples: pd.DataFrame, *, seed: int = 0) -> dict[str, pd.DataFrame]:
    """The sets "fit", "conformal" and "test": half, a quarter and a quarter of the images."""
    images = np.array(sorted(samples["image"].unique()), dtype=object)
    order = np.random.default_rng(seed).permutation(len(images))
    ends = np.rint(np.cumsum(list(_SHARES.values()))[:-1] * len(images)).astype(int)
    chosen = np.split(images[order], ends)
    return {name: samples[samples["image"].isin(set(some))] for name, some in zip(_SHARES, chosen, strict=True)}


def check_sets(sets: Mapping[str, pd.DataFrame], *, min_masks: int, min_images: int) -> None:
    """See that each set has masks and images enough; no scores are needed for it, only the column ``image``.

    Raises:
        DataError: One has too few.
    """
    for name, part in sets.items():
        num_images = part["image"].nunique()
        if len(part) < max(min_masks, 2) or num_images < min_images:
            came = f"the {name} set has {len(part)} masks of {num_images} images"
            expected = f"at least {max(min_masks, 2)} masks of at least {min_images} images"
            few = num_images < min_images
            raise DataError(explain(came, expected, "give more images" + ("" if few else ", or more samples a mask")))


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


def coverage_figures(samples: pd.DataFrame, *, seed: int = 0, num_bootstrap: int = 1000) -> dict[str, Any]:
    """How many actual IoUs lie inside ``interval_low`` and ``interval_high``, with intervals of 95 % by image.

    Args:
        samples: With the columns named, ``actual_iou`` and ``image``.
        seed: Of the bootstrap, which draws images.
        num_bootstrap: Draws.

    Returns:
        ``coverage``, the share of masks, and ``coverage_interval``; ``image_coverage``, the mean over images of the
        share of their masks, which is what the confidence speaks of, and ``image_coverage_interval``. The ends are NaN
        with one image.
    """
    covered = _covered(samples)
    images = covered.groupby(samples["image"]).agg(["sum", "count", "mean"]).to_numpy(np.float64)
    draws = drawn_images(np.random.default_rng(seed), len(images), num_bootstrap if len(images) > 1 else 0)
    sums = drawn_sums(draws, images)
    spread = {"coverage": sums[:, 0] / sums[:, 1], "image_coverage": sums[:, 2] / len(images)}
    figures: dict[str, Any] = {}
    for name, value in (("coverage", covered.mean()), ("image_coverage", images[:, 2].mean())):
        ends = np.quantile(spread[name], (0.025, 0.975)) if len(draws) else (np.nan, np.nan)
        figures |= {name: float(value), f"{name}_interval": [float(end) for end in ends]}
    return figures


def _figures(test: pd.DataFrame, reports: Mapping[str, IoUHeadReport], method: str, seed: int) -> dict[str, Any]:
    """The judgement in numbers, for the file."""
    names = ("spearman", "pearson", "mae", "rmse", "ece")
    judged = {
        name: {metric: _rounded(getattr(report, metric)) for metric in names}
        | {"intervals": {metric: [_rounded(end) for end in report.intervals[metric]] for metric in names}}
        for name, report in reports.items()
    }
    return {
        **judged,
        "method": method,
        **{
            name: [_rounded(end) for end in value] if isinstance(value, list) else _rounded(value)
            for name, value in coverage_figures(test, seed=seed).items()
        },
        "interval_width": _rounded((test["interval_high"] - test["interval_low"]).mean()),
        "coverage_by_kind": {
            str(kind): _rounded(share) for kind, share in _covered(test).groupby(test["kind"]).mean().items()
        },
        "bounds": {name: _rounded(value) for name, value in bound_figures(test).items()},
    }


def _covered(samples: pd.DataFrame) -> pd.Series:
    return samples["actual_iou"].between(samples["interval_low"] - 1e-9, samples["interval_high"] + 1e-9)


def _rounded(value: Any) -> float | None:
    number = float(value)
    return round(number, 5) if np.isfinite(number) else None
