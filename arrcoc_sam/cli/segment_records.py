"""Masks as ``segment`` writes and prints them: the fields of one mask, plain values for JSON."""

from __future__ import annotations

import math
from typing import Any

from jaxtyping import Float
from torch import Tensor

from arrcoc_sam.cli.granularity_run import LevelScores
from arrcoc_sam.hierarchy.levels import LEVELS
from arrcoc_sam.masks import mask_boxes
from arrcoc_sam.masks.rle import encode_rle

__all__ = ["box_or_none", "level_records", "number_or_none"]


def level_records(found: LevelScores) -> list[dict[str, Any]]:
    """The masks of one prompt for a record, whole first."""
    hierarchy = found.hierarchy
    boxes, runs = mask_boxes(hierarchy.masks[0]), encode_rle(hierarchy.masks[0])
    return [
        {
            "level": level,
            "distinct": bool(hierarchy.distinct[0, i]),
            "token_index": int(hierarchy.token_index[0, i]),
            "predicted_iou": float(hierarchy.scores[0, i]),
            "stability": number_or_none(float(found.stability[0, i])),
            "area": int(hierarchy.areas[0, i]),
            "box_xyxy": box_or_none(boxes[i]),
            "segmentation": runs[i],
        }
        for i, level in enumerate(LEVELS)
    ]


def box_or_none(box: Float[Tensor, " 4"]) -> list[float] | None:
    """A mask without a pixel has no box."""
    return None if box.isnan().any() else box.tolist()


def number_or_none(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value
