"""FittedCalibration: estimates of IoU, with intervals, for the scores of one checkpoint under one protocol."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64
from numpy import ndarray
from torch import Tensor

from arrcoc_sam.errors import DataError, explain
from arrcoc_sam.prompts import PROMPT_KINDS
from arrcoc_sam.quality.calibration_curves import CURVES, Curve, Scores
from arrcoc_sam.quality.mask_quality import CalibratedQuality, MaskQuality
from arrcoc_sam.report.writing import write_text
from arrcoc_sam.segmenters.base import Segmenter

__all__ = [
    "EMBEDDED",
    "SCORE_NAMES",
    "ConformalIntervals",
    "FittedCalibration",
    "embedded_calibration_path",
    "fitting_calibration",
    "load_calibration",
    "scores_of",
]

FORMAT = "arrcoc-sam calibration"

EMBEDDED = "embedded"
"""In the place of a file: :func:`embedded_calibration_path`."""
VERSION = 2

SCORE_NAMES = ("lower_bound", "predicted_iou", "alignment_iou", "stability", "soft_iou", "area_share")
"""What curves look at."""

# Estimates are grouped in so many bins of equal mass for the size of their errors, which is never taken for less.
_SPREAD_BINS = 10
_LEAST_SPREAD = 0.01


@dataclass(frozen=True)
class ConformalIntervals:
    """Split-conformal intervals whose width follows the size of the errors at an estimate.

    For an image drawn like those of the conformal set, and a mask drawn from it, the true IoU lies inside with a chance
    of at least ``confidence``: over such sets, images and masks together, not for each kind of mask. Masks of one image
    err together, so images, not masks, are what is exchangeable: each counts as one, shared by its masks.

    Attributes:
        confidence: In (0, 1).
        estimates: (n,) ascending knots.
        errors: (n,) mean absolute error there on the set that the curve was fitted on.
        quantile: Of |error| / ``errors`` on the conformal set.
        num_masks: Of the conformal set.
        num_images: Of the conformal set; None in files of before, whose quantile took each mask for an image.

    Reference:
        Lei et al. 2018, Distribution-free predictive inference for regression, section 5.2 (locally weighted); Lee,
        Barber & Willett 2023, Distribution-free inference with hierarchical data (images as groups).
    """

    confidence: float
    estimates: tuple[float, ...]
    errors: tuple[float, ...]
    quantile: float
    num_masks: int
    num_images: int | None = None

    @classmethod
    def fit(
        cls,
        fitted: tuple[Float64[ndarray, " n"], Float64[ndarray, " n"]],
        held_out: tuple[Float64[ndarray, " m"], Float64[ndarray, " m"]],
        confidence: float,
        *,
        images: Sequence[Hashable],
    ) -> ConformalIntervals:
        """From estimates and actual IoUs on the set of the curve, and on a set that it has not seen.

        Args:
            fitted: Estimates and actual IoUs of the set of the curve.
            held_out: Those of the other set.
            confidence: In (0, 1).
            images: (m,) the image of each mask of the other set.
        """
        order = np.argsort(fitted[0], kind="stable")
        bins = np.array_split(order, min(_SPREAD_BINS, len(order)))
        estimates = np.round([fitted[0][rows].mean() for rows in bins], 7)
        errors = np.array([np.abs(fitted[0][rows] - fitted[1][rows]).mean() for rows in bins])
        estimates, place, counts = np.unique(estimates, return_inverse=True, return_counts=True)
        errors = np.round(np.maximum(np.bincount(place, errors) / counts, _LEAST_SPREAD), 7)
        ratios = np.abs(held_out[0] - held_out[1]) / np.interp(held_out[0], estimates, errors)
        image = pd.factorize(pd.Series(list(images), dtype=object))[0]
        counts = np.bincount(image)
        order = np.argsort(ratios, kind="stable")
        weights = np.cumsum(1 / counts[image][order])  # the new image weighs 1 too, and may lie above all others
        rank = int(np.searchsorted(weights, confidence * (len(counts) + 1) - 1e-9))
        # with too few images for the confidence nothing may be left out
        quantile = float(ratios[order][rank]) if rank < len(ratios) else float(1 / errors.min())
        return cls(confidence, tuple(estimates.tolist()), tuple(errors.tolist()), quantile, len(ratios), len(counts))

    def around(self, estimates: Float64[ndarray, " n"]) -> tuple[Float64[ndarray, " n"], Float64[ndarray, " n"]]:
        """Lower and upper ends, in [0, 1]."""
        half = self.quantile * np.interp(estimates, self.estimates, self.errors)
        return np.clip(estimates - half, 0, 1), np.clip(estimates + half, 0, 1)


@dataclass(frozen=True, eq=False)
class FittedCalibration:
    """Turns bounds into estimates of a mask's IoU with the object, for :class:`MaskQualityEstimator`.

    It holds for the weights and options that it was fitted on, which the estimator checks, and for masks that are wrong
    in the ways and shares of those that it was fitted on, which nobody can check.

    Attributes:
        checkpoint_hash: Of the segmenter.
        protocol: How masks were asked for.
        multimask: Which tokens were decoded.
        components: Whether components were scored apart.
        curve: From scores to estimates.
        intervals: Around estimates.
        provenance: Where it comes from: segmenter, data, seed, versions, numbers of masks and images of each set.
        report: What it came to on the test set.
    """

    checkpoint_hash: str
    protocol: str
    multimask: bool | Literal["all"]
    components: bool
    curve: Curve
    intervals: ConformalIntervals
    provenance: Mapping[str, Any] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)

    def apply(self, bounds: MaskQuality) -> CalibratedQuality:
        """Estimates for scores of the kind "bound"; an empty mask keeps its 0, without doubt; a NaN score gives NaN."""
        device, some = bounds.lower_bound.device, (bounds.area_share > 0).cpu().numpy()
        quality, low, high = (np.zeros(len(bounds)) for _ in range(3))
        if some.any():
            scores = {name: _array(getattr(bounds, name))[some] for name in SCORE_NAMES}
            quality[some], low[some], high[some] = self.estimate(scores)
        return CalibratedQuality(*(torch.from_numpy(values).float().to(device) for values in (quality, low, high)))

    def estimate(
        self, scores: Mapping[str, Any] | pd.DataFrame
    ) -> tuple[Float64[ndarray, " n"], Float64[ndarray, " n"], Float64[ndarray, " n"]]:
        """Estimates and the ends of their intervals for columns of scores, of masks that are not empty.

        All three are NaN where a head answered NaN.
        """
        quality = self.curve.predict(scores_of(scores))
        return quality, *self.intervals.around(quality)

    @property
    def digest(self) -> str:
        """SHA-256 over all that decides estimates; provenance and report do not."""
        decisive = {key: value for key, value in self.as_json().items() if key not in ("provenance", "report")}
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()

    def as_json(self) -> dict[str, Any]:
        """Everything, for :func:`load_calibration`."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "checkpoint_hash": self.checkpoint_hash,
            "protocol": self.protocol,
            "multimask": self.multimask,
            "components": self.components,
            "method": self.curve.name,
            "curve": self.curve.as_json(),
            "intervals": {
                "confidence": self.intervals.confidence,
                "estimates": list(self.intervals.estimates),
                "errors": list(self.intervals.errors),
                "quantile": self.intervals.quantile,
                "num_masks": self.intervals.num_masks,
            }
            | ({} if self.intervals.num_images is None else {"num_images": self.intervals.num_images}),
            "provenance": dict(self.provenance),
            "report": dict(self.report),
        }

    def save(self, path: str | Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            OutputError: It can't be written.
        """
        write_text(path, json.dumps(self.as_json(), indent=1, allow_nan=False) + "\n")


def load_calibration(path: str | os.PathLike[str]) -> FittedCalibration:
    """A calibration from its file, or :data:`EMBEDDED`, the one that ships for the embedded model.

    Raises:
        DataError: No such file, not a calibration, of another format version, or damaged.
    """
    file = Path(embedded_calibration_path() if str(path) == EMBEDDED else path)
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else "not JSON"
        raise DataError(explain(f"{path} can't be read ({reason})", "a file of arrcoc-sam calibrate")) from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise DataError(explain(f"{path} is no calibration", "a file of arrcoc-sam calibrate"))
    if record.get("version") != VERSION:
        mend = "calibrate anew, or use the package version that wrote it"
        raise DataError(explain(f"{path} is of format version {record.get('version')!r}", f"version {VERSION}", mend))
    try:
        return _of_json(record)
    except (KeyError, TypeError, ValueError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error).rstrip(".")
        raise DataError(explain(f"{path} is damaged ({reason})", "a file of arrcoc-sam calibrate")) from error


def fitting_calibration(segmenter: Segmenter) -> FittedCalibration | None:
    """The embedded calibration for a segmenter of the weights that it was made for; None for others.

    Args:
        segmenter: Whose masks are to be scored, by the default protocol.
    """
    embedded = load_calibration(embedded_calibration_path())
    return embedded if embedded.checkpoint_hash == segmenter.checkpoint_hash else None


def embedded_calibration_path() -> str:
    """Where the calibration of the embedded model lies, made on procedural scenes."""
    return str(files("arrcoc_sam").joinpath("weights", "tiny_calibration.json"))


def scores_of(table: Mapping[str, Any] | pd.DataFrame) -> Scores:
    """Columns of scores as curves take them. A candidate without pixels has no stability, which counts as 0."""
    scores = {name: np.asarray(table[name], dtype=np.float64) for name in SCORE_NAMES}
    return scores | {"stability": np.nan_to_num(scores["stability"])}


def _of_json(record: Mapping[str, Any]) -> FittedCalibration:
    protocol, multimask, method = record["protocol"], record["multimask"], record["method"]
    if protocol not in PROMPT_KINDS or not (isinstance(multimask, bool) or multimask == "all") or method not in CURVES:
        raise ValueError(f"protocol={protocol!r}, multimask={multimask!r}, method={method!r}")
    given = record["intervals"]
    estimates, errors = (np.array(given[name], dtype=np.float64) for name in ("estimates", "errors"))
    finite = bool(np.isfinite(estimates).all() and np.isfinite(errors).all())
    rising = bool((np.diff(estimates) > 0).all() and (errors > 0).all())
    if not len(estimates) or estimates.shape != errors.shape or not finite or not rising:
        raise ValueError("intervals out of order")
    confidence, quantile = float(given["confidence"]), float(given["quantile"])
    if not 0 < confidence < 1 or not 0 <= quantile < np.inf:
        raise ValueError(f"confidence={confidence}, quantile={quantile}")
    for name in ("provenance", "report"):
        if not isinstance(record[name], Mapping):
            raise ValueError(f"{name}={record[name]!r}")
    intervals = ConformalIntervals(
        confidence,
        tuple(estimates.tolist()),
        tuple(errors.tolist()),
        quantile,
        int(given["num_masks"]),
        int(given["num_images"]) if "num_images" in given else None,
    )
    return FittedCalibration(
        str(record["checkpoint_hash"]),
        protocol,
        multimask,
        bool(record["components"]),
        CURVES[method].of_json(record["curve"]),
        intervals,
        record["provenance"],
        record["report"],
    )


def _array(values: Tensor) -> Float64[ndarray, " n"]:
    return values.double().cpu().numpy()
