"""Monotone regressions from scores to IoU: one curve over the bound, and a small model of several scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
from jaxtyping import Float64
from numpy import ndarray
from scipy.optimize import isotonic_regression, lsq_linear

from arrcoc_sam.errors import DataError, explain

__all__ = ["CURVES", "BoundCurve", "Curve", "MonotoneModel", "Scores"]

Scores: TypeAlias = Mapping[str, Float64[ndarray, " n"]]
"""Values by the names of fields of MaskQuality: lower_bound, predicted_iou, alignment_iou, stability, soft_iou and
area_share, above 0. NaN, where a head answered it, gives NaN; curves are fitted on numbers alone."""

_DIGITS = 7
_KNOT_GAP = 1e-3
_RIDGE = 1e-4
_FREE = "log_area"


@dataclass(frozen=True)
class BoundCurve:
    """Isotonic regression on the lower bound, linear between its steps.

    Attributes:
        bounds: (n,) ascending.
        ious: (n,) not descending.

    Reference:
        Zadrozny & Elkan 2002, Transforming classifier scores into accurate multiclass probability estimates.
    """

    bounds: tuple[float, ...]
    ious: tuple[float, ...]
    name: ClassVar[str] = "isotonic"

    @classmethod
    def fit(cls, scores: Scores, actual: Float64[ndarray, " n"]) -> BoundCurve:
        """Least squares under order; equal bounds are taken together."""
        at, place, counts = np.unique(scores["lower_bound"], return_inverse=True, return_counts=True)
        fitted = isotonic_regression(np.bincount(place, actual) / counts, weights=counts).x
        step = np.diff(fitted) > 0
        ends = np.append(True, step) | np.append(step, True)  # first and last of every level
        return cls(_numbers(at[ends]), _numbers(np.clip(fitted[ends], 0, 1)))

    def predict(self, scores: Scores) -> Float64[ndarray, " n"]:
        """Estimates of IoU in [0, 1]."""
        return np.interp(scores["lower_bound"], self.bounds, self.ious)

    def as_json(self) -> dict[str, Any]:
        """Its parameters."""
        return {"bounds": list(self.bounds), "ious": list(self.ious)}

    @classmethod
    def of_json(cls, record: Mapping[str, Any]) -> BoundCurve:
        """The curve of :meth:`as_json`."""
        bounds, ious = _numbers(record["bounds"]), _numbers(record["ious"])
        if not bounds or len(bounds) != len(ious) or min(np.diff((bounds, ious)).min(initial=0), *ious) < 0:
            raise DataError(explain("a calibration curve that is not ascending", "bounds and IoUs in order"))
        return cls(bounds, ious)


@dataclass(frozen=True)
class MonotoneModel:
    """Least squares on ramps between knots, with weights of at least 0 wherever more must not mean worse.

    An estimate is the sum of a constant; ramps of each of :attr:`RISING`; products of the ramps of each of
    :attr:`PRODUCTS`; and ramps of log-area, whose weights may have any sign. A ramp rises from 0 to 1 between two
    knots, which lie at the quantiles of the scores that the model was fitted on.

    Attributes:
        knots: For each of :attr:`RISING` and ``log_area``, ascending.
        weights: In the order above.
    """

    knots: Mapping[str, tuple[float, ...]]
    weights: tuple[float, ...]
    name: ClassVar[str] = "monotone"
    RISING: ClassVar[tuple[str, ...]] = ("predicted_iou", "alignment_iou", "stability", "soft_iou")
    PRODUCTS: ClassVar[tuple[tuple[str, str], ...]] = (("predicted_iou", "alignment_iou"),)

    @classmethod
    def fit(cls, scores: Scores, actual: Float64[ndarray, " n"], *, num_ramps: int = 5) -> MonotoneModel:
        """Fit the weights; a little ridge keeps them where the scores say nothing."""
        features = cls._features(scores)
        knots = {name: _knots(values, num_ramps) for name, values in features.items()}
        design = cls._design(features, knots)
        count = design.shape[1]
        ridge = np.sqrt(_RIDGE * len(actual)) * np.eye(count)[1:]  # not the constant
        # the triangle holds all that least squares asks about the samples
        stacked = np.column_stack([np.vstack([design, ridge]), np.append(actual, np.zeros(count - 1))])
        triangle = np.asarray(np.linalg.qr(stacked, mode="r"))
        free = np.zeros(count, dtype=bool)
        free[[0, *range(count - _num_ramps(knots[_FREE]), count)]] = True
        least = np.where(free, -np.inf, 0.0)
        solution = lsq_linear(triangle[:, :-1], triangle[:, -1], bounds=(least, np.inf), method="bvls")
        return cls(knots, _numbers(np.maximum(solution.x, least)))

    def predict(self, scores: Scores) -> Float64[ndarray, " n"]:
        """Estimates of IoU in [0, 1]."""
        design = self._design(self._features(scores), self.knots)
        return np.asarray(np.clip(design @ np.array(self.weights), 0.0, 1.0))

    def as_json(self) -> dict[str, Any]:
        """Its parameters."""
        return {"knots": {name: list(at) for name, at in self.knots.items()}, "weights": list(self.weights)}

    @classmethod
    def of_json(cls, record: Mapping[str, Any]) -> MonotoneModel:
        """The model of :meth:`as_json`."""
        knots = {name: _numbers(record["knots"][name]) for name in (*cls.RISING, _FREE)}
        weights = _numbers(record["weights"])
        ramps = {name: _num_ramps(at) for name, at in knots.items()}
        count = 1 + sum(ramps.values()) + sum(ramps[one] * ramps[other] for one, other in cls.PRODUCTS)
        if len(weights) != count or min(weights[1 : count - ramps[_FREE]], default=0.0) < 0:
            raise DataError(explain("a calibration whose weights do not fit its knots", f"{count} monotone weights"))
        return cls(knots, weights)

    @classmethod
    def _features(cls, scores: Scores) -> dict[str, ndarray]:
        return {name: scores[name] for name in cls.RISING} | {_FREE: np.log(scores["area_share"])}

    @classmethod
    def _design(cls, features: Mapping[str, ndarray], knots: Mapping[str, tuple[float, ...]]) -> ndarray:
        ramps = {name: _ramps(values, knots[name]) for name, values in features.items()}
        count = len(features[_FREE])
        products = [(ramps[one][:, :, None] * ramps[other][:, None]).reshape(count, -1) for one, other in cls.PRODUCTS]
        return np.column_stack([np.ones(count), *(ramps[name] for name in cls.RISING), *products, ramps[_FREE]])


Curve: TypeAlias = BoundCurve | MonotoneModel
"""A regression that can be written down."""

CURVES: dict[str, type[Curve]] = {"isotonic": BoundCurve, "monotone": MonotoneModel}
"""The regressions by name."""


def _knots(values: ndarray, num_ramps: int) -> tuple[float, ...]:
    """Quantiles, those that nearly repeat left out."""
    knots: list[float] = []
    for at in np.quantile(values, np.linspace(0, 1, num_ramps + 1)):
        if not knots or at >= knots[-1] + _KNOT_GAP:
            knots.append(at)
    return _numbers(knots)


def _num_ramps(knots: tuple[float, ...]) -> int:
    return len(knots) - 1


def _ramps(values: ndarray, knots: tuple[float, ...]) -> ndarray:
    """(n, ramps): how far each value has come between two knots."""
    starts, widths = np.array(knots[:-1]), np.diff(knots)
    return np.asarray(np.clip((values[:, None] - starts) / widths, 0.0, 1.0))


def _numbers(values: Any) -> tuple[float, ...]:
    numbers = tuple(round(float(value), _DIGITS) for value in values)
    if not np.isfinite(numbers).all():
        raise DataError(explain("a calibration with numbers that are not finite", "finite numbers"))
    return numbers
