"""The metrics of an IoU head for many weightings of the images at once: what a bootstrap by image asks for.

A draw of images with replacement is a count for each image. Every metric is worked out from counts, exactly as if each
candidate had been written down so many times; ranks and bins are those of the drawn sample.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int64, Integer, UInt16

__all__ = [
    "ECE_BINS",
    "METRICS",
    "TARGET_TOLERANCE",
    "bin_of",
    "drawn_images",
    "drawn_sums",
    "head_metrics",
    "mirrored_errors",
]

METRICS = (
    "pearson",
    "spearman",
    "mae",
    "rmse",
    "selection_accuracy",
    "automatic_iou",
    "oracle_iou",
    "oracle_gap",
    "ece",
)
"""Names, in the order of reports."""

TARGET_TOLERANCE = 0.01
"""How far below the best candidate's IoU with the target the chosen one's may be and still count as right.

The click protocol has a ``selection_accuracy`` of its own, by another rule:
:data:`~arrcoc_sam.quality.click_protocol.ANY_NODE_TOLERANCE`.
"""

ECE_BINS = 15
"""Bins of equal mass of the expected calibration error."""

# Variance of what is constant, as rounding of IoUs leaves it.
_CONSTANT = 1e-14

# Weights of candidates that are held at a time.
_CHUNK = 1 << 22

# Counts that are drawn at a time, before they are shortened.
_DRAWN = 1 << 24


def head_metrics(
    predicted: Float64[np.ndarray, "K M"],
    actual: Float64[np.ndarray, "K M"],
    images: Int64[np.ndarray, " K"],
    counts: Integer[np.ndarray, "B I"],
) -> dict[str, Float64[np.ndarray, " B"]]:
    """All metrics, for each draw of images.

    Args:
        predicted: Of M candidates of each of K prompts.
        actual: Likewise, finite.
        images: The image of each prompt, 0 to I - 1.
        counts: How often each draw holds each image; every draw holds some.

    Returns:
        By the names of :data:`METRICS`, one value a draw.
    """
    values = _moments(predicted, actual, images, counts)
    guess, truth, image = predicted.ravel(), actual.ravel(), np.repeat(images, predicted.shape[1])
    by_guess, by_truth = _Ordered.of(guess), _Ordered.of(truth)
    step = max(1, _CHUNK // len(guess))
    spearman, ece = [], []
    for start in range(0, len(counts), step):
        weights = counts[start : start + step, image].astype(np.float64)
        spearman.append(_pearson(by_guess.midranks(weights), by_truth.midranks(weights), weights))
        ece.append(_calibration_error(guess, truth, by_guess, weights))
    values["spearman"] = np.concatenate([*spearman, np.zeros(0)])
    values["ece"] = np.concatenate([*ece, np.zeros(0)])
    return {name: values[name] for name in METRICS}


def drawn_images(rng: np.random.Generator, count: int, num_draws: int) -> UInt16[np.ndarray, "B I"]:
    """How often each draw, of as many images as there are, holds each; in 2 bytes, not 8, of which there may be many.

    Args:
        rng: What chance is taken from, as ``multinomial`` for all draws at once would.
        count: I, the number of images.
        num_draws: B.
    """
    draws, share = np.empty((num_draws, count), dtype=np.uint16), np.full(count, 1 / count)
    step = max(1, _DRAWN // count)
    for start in range(0, num_draws, step):
        some = draws[start : start + step]
        some[:] = rng.multinomial(count, share, size=len(some))
    return draws


def drawn_sums(counts: Integer[np.ndarray, "B I"], table: Float64[np.ndarray, "I C"]) -> Float64[np.ndarray, "B C"]:
    """``counts @ table`` for whole numbers of any width, of which few at a time become floats."""
    step = max(1, _CHUNK // len(table))
    parts = [counts[start : start + step].astype(np.float64) @ table for start in range(0, len(counts), step)]
    return np.concatenate([*parts, np.zeros((0, table.shape[1]))])


def mirrored_errors(value: float, draws: Float64[np.ndarray, " B"]) -> Float64[np.ndarray, " B"]:
    """Draws of a calibration error, their squares mirrored at the value's: their percentiles are its basic interval.

    Noise makes the error of every bin larger, and that of a draw larger once more, by as much in squares whatever the
    true error is.

    Args:
        value: The calibration error.
        draws: Those of bootstrap draws.

    Returns:
        (B,), at least 0.

    Example:
        >>> mirrored_errors(5.0, np.array([1.0, 5.0, 8.0]))
        array([7., 5., 0.])
    """
    return np.asarray(np.sqrt(np.maximum(2 * value**2 - draws**2, 0.0)))


def bin_of(values: Float64[np.ndarray, " n"], num_bins: int) -> Int64[np.ndarray, " n"]:
    """The bin of each value, 0 to ``num_bins`` - 1, of bins that hold equally many; equal values share one.

    Example:
        >>> bin_of(np.array([0.3, 0.1, 0.2, 0.2]), 2)
        array([1, 0, 0, 0])
    """
    ordered = _Ordered.of(values)
    bins: np.ndarray = ordered.bins(np.ones((1, len(values))), num_bins)[0]
    return bins


class _Ordered:
    """Values in order, with their ties, for weights that vary."""

    def __init__(self, group: np.ndarray, order: np.ndarray, starts: np.ndarray) -> None:
        self.group, self.order, self.starts = group, order, starts

    @classmethod
    def of(cls, values: np.ndarray) -> _Ordered:
        order = np.argsort(values, kind="stable")
        fresh = np.diff(values[order], prepend=-np.inf) > 0
        group = np.empty(len(values), dtype=np.int64)
        group[order] = np.cumsum(fresh) - 1
        return cls(group, order, np.flatnonzero(fresh))

    def _before(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weight of each group of ties, and of all that come before it, (B, G)."""
        own = np.add.reduceat(weights[:, self.order], self.starts, axis=1)
        return own, np.cumsum(own, axis=1) - own

    def midranks(self, weights: np.ndarray) -> np.ndarray:
        """(B, n): the mean rank, from 1, of each value among all of a draw."""
        own, before = self._before(weights)
        ranks: np.ndarray = (before + (own + 1) / 2)[:, self.group]
        return ranks

    def bins(self, weights: np.ndarray, num_bins: int) -> np.ndarray:
        """(B, n): by the share of a draw that is smaller."""
        _, before = self._before(weights)
        total = weights.sum(axis=1, keepdims=True)
        # whole numbers, exact in float64; the least rank of a group is below the total, unless the draw lacks the group
        bins: np.ndarray = np.minimum(before * num_bins // total, num_bins - 1).astype(np.int64)[:, self.group]
        return bins


def _moments(
    predicted: np.ndarray, actual: np.ndarray, images: np.ndarray, counts: np.ndarray
) -> dict[str, np.ndarray]:
    """What sums over the prompts of each image suffice for."""
    rows = np.arange(len(predicted))
    chosen, best = actual[rows, predicted.argmax(axis=1)], actual.max(axis=1)
    # centred, so that differences of large sums do not lose digits
    x, y = predicted - predicted.mean(), actual - actual.mean()
    error = predicted - actual
    per_prompt = {
        "prompts": np.ones(len(predicted)),
        "x": x.sum(1),
        "y": y.sum(1),
        "xx": (x * x).sum(1),
        "yy": (y * y).sum(1),
        "xy": (x * y).sum(1),
        "mae": np.abs(error).sum(1),
        "mse": (error**2).sum(1),
        "selection_accuracy": (chosen >= best - TARGET_TOLERANCE).astype(np.float64),
        "automatic_iou": chosen,
        "oracle_iou": best,
    }
    table = np.stack([np.bincount(images, column, counts.shape[1]) for column in per_prompt.values()], axis=1)
    sums = dict(zip(per_prompt, drawn_sums(counts, table).T, strict=True))
    prompts = sums["prompts"]
    candidates = prompts * predicted.shape[1]
    values = {name: sums[name] / prompts for name in ("selection_accuracy", "automatic_iou", "oracle_iou")}
    values["oracle_gap"] = values["oracle_iou"] - values["automatic_iou"]
    values["mae"] = sums["mae"] / candidates
    values["rmse"] = np.sqrt(sums["mse"] / candidates)
    spread = [sums[a + b] / candidates - sums[a] * sums[b] / candidates**2 for a, b in ("xx", "yy", "xy")]
    values["pearson"] = _correlation(*spread)
    return values


def _pearson(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted correlation along the last axis, (B,)."""
    total = weights.sum(axis=1, keepdims=True)
    x, y = (values - (weights * values).sum(axis=1, keepdims=True) / total for values in (x, y))
    spread = [np.einsum("bn,bn,bn->b", weights, a, b) / total[:, 0] for a, b in ((x, x), (y, y), (x, y))]
    return _correlation(*spread)


def _correlation(xx: np.ndarray, yy: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """From variances and covariance; NaN where either is constant, up to rounding."""
    constant = (xx <= _CONSTANT) | (yy <= _CONSTANT)
    scale = np.sqrt(np.where(constant, 1.0, xx) * np.where(constant, 1.0, yy))
    result: np.ndarray = np.where(constant, np.nan, np.clip(xy / scale, -1, 1))
    return result


def _calibration_error(guess: np.ndarray, truth: np.ndarray, by_guess: _Ordered, weights: np.ndarray) -> np.ndarray:
    """Σ over bins of |Σ weight · (predicted - actual)| / total, which is the mean weighted by count."""
    draws = len(weights)
    cells = by_guess.bins(weights, ECE_BINS) + ECE_BINS * np.arange(draws)[:, None]
    sums = np.bincount(cells.ravel(), (weights * (guess - truth)).ravel(), ECE_BINS * draws)
    error: np.ndarray = np.abs(sums.reshape(draws, ECE_BINS)).sum(axis=1) / weights.sum(axis=1)
    return error
