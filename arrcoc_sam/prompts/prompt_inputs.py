"""What callers pass to :class:`arrcoc_sam.prompts.Prompts`, as tensors, or the error that says what is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor

from arrcoc_sam.errors import InputError, ShapeError, describe, explain

__all__ = [
    "ArrayLike",
    "checked_boxes",
    "checked_image_index",
    "checked_logits",
    "checked_points",
    "first_few",
]

ArrayLike: TypeAlias = Tensor | np.ndarray | Sequence[Any]
"""Numbers as a caller has them: a tensor, an array or nested lists."""


def _numbers(values: Any, name: str, rank: int, axes: str, mend: str, device: torch.device) -> Tensor:
    """Values as a tensor of the given rank, or the error."""
    try:
        array = values if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
    except (TypeError, ValueError) as error:
        raise InputError(explain(f"{name} is {describe(values)}", f"numbers of shape {axes}")) from error
    if array.is_complex():
        raise InputError(explain(f"{name} is {describe(array)}", f"real numbers of shape {axes}"))
    if array.ndim != rank:
        raise ShapeError(explain(f"{name} is {describe(array)}", axes, mend))
    return array.to(device)


def checked_points(
    points_xy: Any, labels: Any, device: torch.device
) -> tuple[Float64[Tensor, "K P 2"] | None, Int64[Tensor, "K P"] | None]:
    """Points (K, P, 2) as float64 and their labels (K, P) as int64 (all foreground if None), or None for both."""
    if points_xy is None:
        if labels is not None:
            raise InputError(explain("labels without points_xy", "both", "give points_xy of shape (K, P, 2)"))
        return None, None
    mend = "for one point a prompt: points_xy[:, None]; for one prompt of several points: points_xy[None]"
    points = _numbers(points_xy, "points_xy", 3, "(K, P, 2)", mend, device).to(torch.float64)
    if points.shape[-1] != 2:
        raise ShapeError(explain(f"points_xy is {describe(points)}", "(K, P, 2)"))
    if labels is None:
        marks = torch.ones(points.shape[:2], dtype=torch.int64, device=device)
    else:
        marks = _numbers(labels, "labels", 2, "(K, P)", "labels go with points_xy, one a point", device)
        if marks.shape != points.shape[:2]:
            raise ShapeError(explain(f"labels is {describe(marks)}", f"{tuple(points.shape[:2])}, one a point"))
        known = (marks == 1) | (marks == 0) | (marks == -1)
        if not bool(known.all()):
            raise InputError(
                explain(f"labels hold {marks[~known][0].item()}", "1 (foreground), 0 (background) or -1 (absent)")
            )
        marks = marks.to(torch.int64)
    broken = (~points.isfinite().all(-1) & (marks >= 0)).any(-1)
    if bool(broken.any()):
        raise InputError(
            explain(
                f"points_xy of prompt {first_few(broken)} are not finite", "numbers", "mark absent points with label -1"
            )
        )
    return points, marks


def checked_boxes(boxes_xyxy: Any, device: torch.device, *, name: str = "boxes_xyxy") -> Float64[Tensor, "K 4"] | None:
    """Boxes (K, 4) as float64, each row finite and in order, or NaN throughout."""
    if boxes_xyxy is None:
        return None
    boxes = _numbers(boxes_xyxy, name, 2, "(K, 4)", f"one box a prompt; for one box: {name}[None]", device)
    boxes = boxes.to(torch.float64)
    if boxes.shape[-1] != 4:
        raise ShapeError(explain(f"{name} is {describe(boxes)}", "(K, 4)"))
    absent = boxes.isnan().all(-1)
    broken = ~absent & ~boxes.isfinite().all(-1)
    if bool(broken.any()):
        raise InputError(explain(f"{name} {first_few(broken)} are in part not finite", "four numbers, or four NaN"))
    turned = ~absent & ((boxes[:, 0] > boxes[:, 2]) | (boxes[:, 1] > boxes[:, 3]))
    if bool(turned.any()):
        raise InputError(
            explain(
                f"{name} {first_few(turned)} end before they begin",
                "x0 <= x1 and y0 <= y1",
                "turn (x, y, width, height) into (x, y, x + width, y + height)",
            )
        )
    return boxes


def checked_logits(mask_logits: Any, device: torch.device) -> Float32[Tensor, "K h w"] | None:
    """Mask prompts (K, h, w) as float32, each map finite, or NaN throughout."""
    if mask_logits is None:
        return None
    mend = "without the channel axis: mask_logits.squeeze(1)"
    logits = _numbers(mask_logits, "mask_logits", 3, "(K, h, w)", mend, device)
    if not logits.is_floating_point() or 0 in logits.shape[1:]:
        mend = "for masks: Prompts.from_masks(masks, segmenter)"
        raise InputError(explain(f"mask_logits is {describe(logits)}", "floats of shape (K, h, w)", mend))
    logits = logits.to(torch.float32)
    finite = logits.isfinite().flatten(1).all(-1)
    broken = ~finite & ~logits.isnan().flatten(1).all(-1)
    if bool(broken.any()):
        raise InputError(
            explain(f"mask_logits {first_few(broken)} are in part not finite", "finite maps, or maps of NaN")
        )
    return logits


def checked_image_index(image_index: Any, count: int, device: torch.device) -> Int64[Tensor, " K"]:
    """The image of each of ``count`` prompts, (K,) int64; one number stands for all, None for image 0."""
    if image_index is None:
        return torch.zeros(count, dtype=torch.int64, device=device)
    if isinstance(image_index, (int, np.integer)):
        image_index = [int(image_index)] * count
    index = _numbers(image_index, "image_index", 1, "(K,)", "one number a prompt", device)
    if len(index) != count:
        raise ShapeError(explain(f"image_index is {describe(index)}", f"({count},), one number a prompt"))
    if index.is_floating_point() or index.dtype == torch.bool or bool((index < 0).any()):
        raise InputError(explain(f"image_index is {describe(index)}", "whole numbers of at least 0"))
    return index.to(torch.int64)


def first_few(chosen: Bool[Tensor, " K"]) -> str:
    """The first few indices that are set, for a message."""
    indices = chosen.nonzero().flatten().tolist()
    return ", ".join(map(str, indices[:5])) + (f", … ({len(indices)} in all)" if len(indices) > 5 else "")
