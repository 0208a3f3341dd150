"""What two IoUs say about a third: bounds on an external mask's IoU with the object that a segmenter meant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias, overload

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from arrcoc_sam.errors import InputError, ShapeError, describe, explain

__all__ = ["jaccard_bounds"]

Number: TypeAlias = float | int | np.floating | np.integer
Array: TypeAlias = np.ndarray | Sequence[float]


@overload
def jaccard_bounds(alignment_iou: Number, predicted_iou: Number) -> tuple[float, float]: ...
@overload
def jaccard_bounds(
    alignment_iou: Float[Tensor, "*#K"], predicted_iou: Float[Tensor, "*#K"] | Array | Number
) -> tuple[Float[Tensor, "*_"], Float[Tensor, "*_"]]: ...
@overload
def jaccard_bounds(
    alignment_iou: Array | Number, predicted_iou: Float[Tensor, "*#K"]
) -> tuple[Float[Tensor, "*_"], Float[Tensor, "*_"]]: ...
@overload
def jaccard_bounds(
    alignment_iou: Array, predicted_iou: Array | Number
) -> tuple[Float[np.ndarray, "*_"], Float[np.ndarray, "*_"]]: ...
@overload
def jaccard_bounds(
    alignment_iou: Number, predicted_iou: Array
) -> tuple[Float[np.ndarray, "*_"], Float[np.ndarray, "*_"]]: ...
def jaccard_bounds(
    alignment_iou: Tensor | Array | Number, predicted_iou: Tensor | Array | Number
) -> tuple[Tensor | np.ndarray | float, Tensor | np.ndarray | float]:
    """Bounds on IoU(external mask, object) from how a segmenter's own mask fits both.

    Jaccard distance, 1 - IoU, is a metric. Its triangle inequality over external mask, segmenter's mask and object says

        max(0, alignment + predicted - 1) <= IoU(external, object) <= 1 - |alignment - predicted|

    exactly so where ``predicted_iou`` is the IoU of the segmenter's mask with the object. A head that predicts it errs,
    and the bounds err with it; and the object is one that the segmenter could mean.

    Args:
        alignment_iou: IoU of the external mask with the segmenter's, in [0, 1]; any shape.
        predicted_iou: IoU of the segmenter's mask with the object; a raw prediction is clamped to [0, 1]. The two
            broadcast.

    Returns:
        Lower and upper bound in [0, 1], lower <= upper in floating point too; tensors if either argument is one, arrays
        if either is an array or a list, else floats. NaN where either IoU is NaN.

    Raises:
        InputError: ``alignment_iou`` outside [0, 1], or not real numbers.
        ShapeError: The shapes do not broadcast.

    Reference:
        Kosub 2019, A note on the triangle inequality for the Jaccard distance.

    Example:
        >>> jaccard_bounds(0.75, 0.875)
        (0.625, 0.875)
        >>> jaccard_bounds(torch.tensor([1.0, 0.25]), torch.tensor([0.5, 1.25]))
        (tensor([0.5000, 0.2500]), tensor([0.5000, 0.2500]))
    """
    given = [value for value in (alignment_iou, predicted_iou) if isinstance(value, Tensor)]
    device = given[0].device if given else torch.device("cpu")
    alignment = _as_tensor(alignment_iou, "alignment_iou", device)
    predicted = _as_tensor(predicted_iou, "predicted_iou", device)
    outside = (alignment < 0) | (alignment > 1)
    if bool(outside.any()):
        came = f"alignment_iou holds {alignment[outside].flatten()[0].item():.9g}"
        raise InputError(explain(came, "intersections over unions in [0, 1]"))
    predicted = predicted.clamp(0, 1)
    try:
        low, slack = torch.minimum(alignment, predicted), 1 - torch.maximum(alignment, predicted)
    except RuntimeError as error:
        came = f"alignment_iou is {describe(alignment)}, predicted_iou is {describe(predicted)}"
        raise ShapeError(explain(came, "shapes that broadcast")) from error
    # as low ± (1 - high), so that rounding can't put the lower bound above the upper one
    lower, upper = (low - slack).clamp(min=0), low + slack
    if given:
        return lower, upper
    if lower.ndim or isinstance(alignment_iou, np.ndarray) or isinstance(predicted_iou, np.ndarray):
        return lower.numpy(), upper.numpy()
    return lower.item(), upper.item()


def _as_tensor(value: Tensor | Array | Number, name: str, device: torch.device) -> Tensor:
    try:
        # of a plain number the dtype must not decide: 0-d tensors take part in arithmetic at the others' dtype
        tensor = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value, order="C"))
    except (TypeError, ValueError) as error:  # words, or ragged
        raise InputError(explain(f"{name} is {describe(value)}", "a number, an array or a tensor")) from error
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise InputError(explain(f"{name} is {describe(value)}", "real numbers"))
    return tensor.to(device) if tensor.is_floating_point() else tensor.to(device, torch.float64)
