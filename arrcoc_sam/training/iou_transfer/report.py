"""What teaching an IoU head changed: its judgement of held-out masks before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float64
from numpy import ndarray
from torch import Tensor

from arrcoc_sam.quality.head_metrics import drawn_images, head_metrics, mirrored_errors
from arrcoc_sam.quality.iou_head import IoUHeadReport, evaluate_iou_head

__all__ = ["TransferReport", "compare_heads"]

_COMPARED = ("pearson", "spearman", "mae", "rmse", "ece")


@dataclass(frozen=True)
class TransferReport:
    """What the transfer did to the head's judgement of held-out masks.

    Attributes:
        before: The head as it came.
        after: The head as it was taught.
        gain: For each metric, after - before.
        gain_intervals: Percentile intervals of the gains, images drawn with replacement, the same for both; for "ece"
            of differences of :func:`~arrcoc_sam.quality.head_metrics.mirrored_errors`, widened to hold the gain.
        losses: Mean squared error of each epoch on the masks that it learned from.
    """

    before: IoUHeadReport
    after: IoUHeadReport
    gain: dict[str, float]
    gain_intervals: dict[str, tuple[float, float]]
    losses: tuple[float, ...]

    def as_json(self) -> dict[str, Any]:
        """All figures, with NaN as None."""

        def clean(value: float) -> float | None:
            return None if np.isnan(value) else float(value)

        def figures(report: IoUHeadReport) -> dict[str, Any]:
            return {
                name: {
                    "value": clean(getattr(report, name)),
                    "interval": [clean(end) for end in report.intervals[name]],
                }
                for name in _COMPARED
            }

        gains = {
            name: {"value": clean(self.gain[name]), "interval": [clean(end) for end in self.gain_intervals[name]]}
            for name in _COMPARED
        }
        return {
            "masks": self.before.num_prompts,
            "images": self.before.num_images,
            "before": figures(self.before),
            "after": figures(self.after),
            "gain": gains,
            "losses": list(self.losses),
        }


def compare_heads(
    before: Float64[ndarray, "K 1"],
    after: Float64[ndarray, "K 1"],
    true_iou: Float[Tensor, " K"],
    names: Sequence[str],
    losses: tuple[float, ...],
    num_bootstrap: int,
    seed: int,
) -> TransferReport:
    """A head's judgement of the same K masks before and after it was taught.

    Args:
        before: Predicted IoU of the head as it came.
        after: Of the taught one.
        true_iou: Of each mask with its object.
        names: Of the image of each mask, which is what the intervals draw.
        losses: Of the teaching, for the report.
        num_bootstrap: Draws.
        seed: Of the draws.
    """
    actual = true_iou.double().cpu().numpy()[:, None]
    reports = [
        evaluate_iou_head(predicted, actual, image_id=list(names), num_bootstrap=num_bootstrap, seed=seed)
        for predicted in (before, after)
    ]
    _, images = np.unique(np.array(names), return_inverse=True)
    count = int(images.max()) + 1
    rng = np.random.default_rng(seed)
    draws = drawn_images(rng, count, num_bootstrap if count > 1 else 0)
    old, new = (head_metrics(predicted, actual, images, draws) for predicted in (before, after))
    old["ece"], new["ece"] = (
        mirrored_errors(report.ece, drawn["ece"]) for report, drawn in zip(reports, (old, new), strict=True)
    )
    gain = {name: getattr(reports[1], name) - getattr(reports[0], name) for name in _COMPARED}
    intervals = {}
    for name in _COMPARED:
        gains = (new[name] - old[name])[~np.isnan(new[name] - old[name])]
        low, high = np.quantile(gains, (0.025, 0.975)) if len(gains) else (np.nan, np.nan)
        held = gain[name] if name == "ece" and len(gains) else float("nan")
        intervals[name] = (float(np.fmin(low, held)), float(np.fmax(high, held)))
    return TransferReport(reports[0], reports[1], gain, intervals, losses)
