"""Judging an IoU head: predicted against actual IoU of candidate masks, with intervals by image."""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Float, Int64, UInt16
from torch import Tensor

from arrcoc_sam.errors import InputError, ShapeError, describe, explain, first_line
from arrcoc_sam.inputs import as_count
from arrcoc_sam.quality.head_metrics import (
    ECE_BINS,
    METRICS,
    bin_of,
    drawn_images,
    drawn_sums,
    head_metrics,
    mirrored_errors,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["IoUHeadReport", "evaluate_iou_head"]
Labels: TypeAlias = Tensor | np.ndarray | Sequence[Hashable]
"""(K,) one label a prompt."""


@dataclass(frozen=True)
class IoUHeadReport:
    """How well a head predicts IoU. Raw predictions are judged; nothing is clamped.

    Attributes:
        pearson: Correlation of predicted and actual IoU over all K · M candidates; NaN where either is constant.
        spearman: Rank correlation, likewise.
        mae: Mean absolute error.
        rmse: Root of the mean squared error.
        selection_accuracy: Share of prompts whose candidate of the highest predicted IoU has an actual IoU within 0.01
            of the best one's. That of ``evaluate_clicks`` is another: within 0.05, by any node under the click.
        automatic_iou: Mean actual IoU of the candidate of the highest predicted IoU.
        oracle_iou: Mean actual IoU of the best candidate.
        oracle_gap: Their difference, at least 0.
        ece: Expected calibration error: the mean, weighted by count, of |mean predicted - mean actual| over bins of
            equally many candidates; equal predictions are kept in one bin.
        intervals: For each of these names, the two ends of the interval of the bootstrap that draws images with
            replacement; NaN with one image. Of percentiles, but for ``ece``, which is biased upwards, as noise makes
            every bin err, and more so in draws: there the basic (reverse percentile) interval of its square, widened to
            hold the value itself (:func:`~arrcoc_sam.quality.head_metrics.mirrored_errors`).
        reliability: One row a bin: ``predicted_low``, ``predicted_high`` (its range), ``count``, ``predicted``,
            ``actual`` (means), ``actual_low``, ``actual_high`` (interval of the latter, the bin held fixed).
        num_prompts: K.
        num_candidates: K · M.
        num_images: How many images the prompts are about.
        strata: For each stratification, a report of each of its labels.
    """

    pearson: float
    spearman: float
    mae: float
    rmse: float
    selection_accuracy: float
    automatic_iou: float
    oracle_iou: float
    oracle_gap: float
    ece: float
    intervals: Mapping[str, tuple[float, float]]
    reliability: pd.DataFrame
    num_prompts: int
    num_candidates: int
    num_images: int
    strata: Mapping[str, Mapping[Hashable, IoUHeadReport]] = field(default_factory=dict)

    def to_frame(self) -> pd.DataFrame:
        """One row a metric and stratum: ``stratum``, ``label``, ``metric``, ``value``, ``low``, ``high``, counts."""
        rows = self._rows("all", "all")
        for stratum, reports in self.strata.items():
            for label, report in reports.items():
                rows += report._rows(stratum, label)
        return pd.DataFrame(rows)

    def plot(self, *, title: str | None = None) -> Figure:
        """The reliability diagram."""
        from arrcoc_sam.report.reliability import plot_reliability

        return plot_reliability(self.reliability, ece=self.ece, title=title)

    def _rows(self, stratum: str, label: Hashable) -> list[dict[str, Any]]:
        counts = {"num_prompts": self.num_prompts, "num_images": self.num_images}
        return [
            {"stratum": stratum, "label": label, "metric": name, "value": getattr(self, name), "low": low, "high": high}
            | counts
            for name, (low, high) in self.intervals.items()
        ]


def evaluate_iou_head(
    predicted: Float[Tensor, "K M"] | np.ndarray,
    actual: Float[Tensor, "K M"] | np.ndarray,
    *,
    image_id: Labels | None = None,
    strata: Labels | Mapping[str, Labels] | None = None,
    num_bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> IoUHeadReport:
    """Judge predicted IoU.

    Args:
        predicted: (K, M) raw predictions for M candidates of each of K prompts.
        actual: (K, M) IoU of each candidate with the object meant, in [0, 1].
        image_id: (K,) which image each prompt is about: what the bootstrap draws. By default each prompt is taken for
            an image of its own, which makes intervals too narrow where prompts share images.
        strata: (K,) labels of prompts (area bucket, level, number of clicks), or several such by name; each label gets
            a report of its own.
        num_bootstrap: Draws; 0 leaves the intervals NaN.
        confidence: Of the intervals, in (0, 1).
        seed: Of the draws. A stratum's draws don't depend on which others there are.

    Returns:
        The report.

    Raises:
        ShapeError: Not (K, M) both, K or M is 0, or labels of another number.
        InputError: Values that are not finite, an actual IoU outside [0, 1], ``num_bootstrap`` negative or no
            whole number, a ``confidence`` outside (0, 1), labels that can't be told apart.

    Reference:
        Naeini et al. 2015, Obtaining well calibrated probabilities using Bayesian binning (ECE); here with bins of
        equal mass. Efron & Tibshirani 1993, An introduction to the bootstrap, chapter 13 (percentile intervals).
        Davison & Hinkley 1997, Bootstrap methods and their application, section 5.2 (basic intervals). Of 150 made-up
        heads with K = 300 and errors of sd .1 around true ECEs of .00, .01, .03, .10, intervals of 95 % hold the true
        one in 97, 99, 93 and 91 %; plain percentiles do in 0, 0, 67 and 93 %.

    Example:
        >>> import torch
        >>> report = evaluate_iou_head(torch.tensor([[0.9, 0.5], [0.6, 0.7]]), torch.tensor([[0.8, 0.4], [0.9, 0.6]]))
        >>> report.selection_accuracy, round(report.oracle_gap, 3), round(report.mae, 3)
        (0.5, 0.15, 0.15)
    """
    guess, truth = _scores(predicted, "predicted"), _scores(actual, "actual")
    if guess.shape != truth.shape or guess.ndim != 2 or 0 in guess.shape:
        came = f"predicted is {describe(predicted)}, actual is {describe(actual)}"
        mend = "of one candidate a prompt: predicted[:, None], actual[:, None]" if guess.ndim == 1 else None
        raise ShapeError(explain(came, "(K, M) both, with K and M at least 1", mend))
    if truth.min() < 0 or truth.max() > 1:
        came = f"actual runs from {truth.min():.9g} to {truth.max():.9g}"
        raise InputError(explain(came, "intersections over unions in [0, 1]", "check that the two are not swapped"))
    num_bootstrap = as_count(num_bootstrap, "num_bootstrap", least=0)
    if not 0 < confidence < 1:
        raise InputError(explain(f"confidence={confidence}", "a share in (0, 1)"))
    count = len(guess)
    images = np.arange(count) if image_id is None else _codes(image_id, count, "image_id")[0]
    groups: Mapping[str, Any] = {}
    if strata is not None:
        groups = strata if isinstance(strata, Mapping) else {"stratum": strata}
    coded = {name: _codes(labels, count, f"strata[{name!r}]") for name, labels in groups.items()}

    def report(rows: np.ndarray, name: str) -> IoUHeadReport:
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        return _report(guess[rows], truth[rows], images[rows], num_bootstrap, confidence, rng)

    whole = report(np.arange(count), "")
    by_label = {
        name: {label: report(np.flatnonzero(codes == code), f"{name}={label}") for code, label in enumerate(labels)}
        for name, (codes, labels) in coded.items()
    }
    return replace(whole, strata=by_label)


def _report(
    predicted: Float[np.ndarray, "K M"],
    actual: Float[np.ndarray, "K M"],
    images: Int64[np.ndarray, " K"],
    num_bootstrap: int,
    confidence: float,
    rng: np.random.Generator,
) -> IoUHeadReport:
    ids, images = np.unique(images, return_inverse=True)
    count = len(ids)
    draws = drawn_images(rng, count, num_bootstrap if count > 1 else 0)
    values = head_metrics(predicted, actual, images, np.ones((1, count), dtype=np.int64))
    spread = head_metrics(predicted, actual, images, draws)
    ends = ((1 - confidence) / 2, (1 + confidence) / 2)
    figures: dict[str, Any] = {name: float(values[name][0]) for name in METRICS}
    return IoUHeadReport(
        **figures,
        intervals={name: _interval(spread[name], ends) for name in METRICS}
        | {"ece": _interval(mirrored_errors(figures["ece"], spread["ece"]), ends, figures["ece"])},
        reliability=_reliability(predicted, actual, images, draws, ends),
        num_prompts=len(predicted),
        num_candidates=predicted.size,
        num_images=count,
    )


def _reliability(
    predicted: Float[np.ndarray, "K M"],
    actual: Float[np.ndarray, "K M"],
    images: Int64[np.ndarray, " K"],
    draws: UInt16[np.ndarray, "B I"],
    ends: tuple[float, float],
) -> pd.DataFrame:
    guess, truth = predicted.ravel(), actual.ravel()
    image = np.repeat(images, predicted.shape[1])
    bins = bin_of(guess, ECE_BINS)
    present = np.unique(bins)
    members = [bins == number for number in present]
    columns = [np.bincount(image[m], w, draws.shape[1]) for m in members for w in (truth[m], None)]
    drawn = drawn_sums(draws, np.stack(columns, axis=1).astype(np.float64)).reshape(len(draws), len(present), 2)
    rows = []
    for number, inside in enumerate(members):
        with np.errstate(invalid="ignore"):  # a draw may miss all images of a bin
            low, high = _interval(drawn[:, number, 0] / drawn[:, number, 1], ends)
        rows.append(
            {
                "predicted_low": guess[inside].min(),
                "predicted_high": guess[inside].max(),
                "count": int(inside.sum()),
                "predicted": guess[inside].mean(),
                "actual": truth[inside].mean(),
                "actual_low": low,
                "actual_high": high,
            }
        )
    return pd.DataFrame(rows)


def _interval(
    draws: Float[np.ndarray, " B"], ends: tuple[float, float], value: float = float("nan")
) -> tuple[float, float]:
    """Percentiles over the draws that are defined, widened to hold the value, if there is one."""
    defined = draws[~np.isnan(draws)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, ends)
    return float(np.fmin(low, value)), float(np.fmax(high, value))


def _scores(values: Tensor | np.ndarray, name: str) -> Float[np.ndarray, "*shape"]:
    try:
        array = np.asarray(values.detach().cpu().double() if isinstance(values, Tensor) else values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(explain(f"{name} is {describe(values)}", "numbers of shape (K, M)")) from error
    if not np.isfinite(array).all():
        raise InputError(explain(f"{name} holds NaN or infinite values", "finite numbers", "leave those prompts out"))
    return array


def _codes(labels: Labels, count: int, name: str) -> tuple[Int64[np.ndarray, " K"], list[Hashable]]:
    """Labels as numbers, and what the numbers stand for, sorted."""
    given = labels.tolist() if isinstance(labels, (Tensor, np.ndarray)) else list(labels)
    if len(given) != count or any(isinstance(label, list) for label in given):
        raise ShapeError(explain(f"{name} is {describe(labels)}", f"({count},), one label a prompt"))
    try:
        codes, names = pd.factorize(pd.Series(given, dtype=object), sort=True)
    except TypeError as error:  # a dictionary, say
        raise InputError(explain(f"{name} can't be told apart ({first_line(error)})", "strings or numbers")) from error
    if (codes < 0).any():
        raise InputError(explain(f"{name} holds missing labels", "one label a prompt"))
    return codes.astype(np.int64), list(names)
