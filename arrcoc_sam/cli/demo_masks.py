"""Masks of the demo's scene, made wrong on purpose, and what the estimator says of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Bool

from arrcoc_sam.cli.demo_images import DemoScene
from arrcoc_sam.masks import mask_iou
from arrcoc_sam.quality import MaskQualityEstimator, degrade, fitting_calibration, mask_context
from arrcoc_sam.report.markup import Html
from arrcoc_sam.report.score_section import ScoredMask, score_section

if TYPE_CHECKING:
    from arrcoc_sam.quality.degradations import DegradationKind
    from arrcoc_sam.segmenters.base import Segmenter

__all__ = ["DEMO_DEGRADATIONS", "degraded_masks", "mask_section", "score_scene", "scores_frame"]

DEMO_DEGRADATIONS: tuple[tuple[str, DegradationKind | None, float], ...] = (
    ("as it should be", None, 0.0),
    ("dilated", "dilate", 0.35),
    ("eroded", "erode", 0.35),
    ("with a hole", "hole", 0.3),
    ("frayed", "boundary_noise", 0.4),
    ("shifted", "shift", 0.6),
    ("merged with a neighbour", "merge", 0.5),
    ("a part for the whole", "part", 0.5),
)
"""What is done to the whole object that was clicked, with the share of IoU that it costs."""

_SEED = 0


def degraded_masks(scene: DemoScene) -> dict[str, Bool[np.ndarray, "H W"]]:
    """The whole that was clicked, right and made wrong in every way that its surroundings allow."""
    nodes, whole = scene.nodes.numpy(), scene.levels[0].numpy()
    context = mask_context(nodes, int((nodes == whole).all((1, 2)).argmax()))
    possible = [(name, kind, severity) for name, kind, severity in DEMO_DEGRADATIONS if kind in (None, *context.kinds)]
    return {
        name: whole if kind is None else degrade(whole, kind, severity, context=context, seed=_SEED)
        for name, kind, severity in possible
    }


def score_scene(segmenter: Segmenter, scene: DemoScene) -> list[ScoredMask]:
    """The degraded masks with scores, calibrated where the weights are those of the embedded calibration."""
    estimator = MaskQualityEstimator(segmenter, calibration=fitting_calibration(segmenter), keep_masks=False)
    masks = degraded_masks(scene)
    rows = estimator.estimate(scene.image, list(masks.values())).to_frame().to_dict("records")
    return [
        ScoredMask(
            name=name,
            mask=mask,
            quality=row["quality"],
            interval=(row["interval_low"], row["interval_high"]),
            bounds=(row["lower_bound"], row["upper_bound"]),
            predicted_iou=row["predicted_iou"],
            alignment_iou=row["alignment_iou"],
            stability=row["stability"],
            soft_iou=row["soft_iou"],
            true_iou=float(mask_iou(mask, scene.levels[0])),
        )
        for (name, mask), row in zip(masks.items(), rows, strict=True)
    ]


def mask_section(scene: DemoScene, scored: list[ScoredMask]) -> Html:
    """The panel of the report."""
    calibrated = not np.isnan(scored[0].interval[0])
    kind = (
        "a calibrated estimate of the IoU, with its interval of 90 % as a line"
        if calibrated
        else "a lower bound on the IoU, as these weights have no calibration"
    )
    words = (
        "The object that was clicked in the scene, and the same mask made wrong on purpose, scored as the command "
        f"“score” scores a data set: quality is {kind}. The true IoU is known here and nowhere else.",
        "A part of the object is a good mask of that part: image and mask alone don't tell which of the two was meant.",
    )
    return score_section("Masks that the segmenter did not make", words, scene.image, scored, name="scored")


def scores_frame(scored: list[ScoredMask]) -> pd.DataFrame:
    """A row a mask, for the table beside the report."""
    return pd.DataFrame(
        {
            "mask": [each.name for each in scored],
            "true_iou": [each.true_iou for each in scored],
            "quality": [each.quality for each in scored],
            "interval_low": [each.interval[0] for each in scored],
            "interval_high": [each.interval[1] for each in scored],
            "lower_bound": [each.bounds[0] for each in scored],
            "upper_bound": [each.bounds[1] for each in scored],
            "alignment_iou": [each.alignment_iou for each in scored],
            "predicted_iou": [each.predicted_iou for each in scored],
            "stability": [each.stability for each in scored],
            "soft_iou": [each.soft_iou for each in scored],
        }
    )
