"""Area, boxes, overlap, containment and stability of masks.

Counts are exact whatever the size: pixels are added as bytes, in rows of at most 255, which is also ten times as fast
as torch's own sum of bools.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor

from arrcoc_sam.errors import InputError, ShapeError, describe, explain
from arrcoc_sam.inputs import as_masks
from arrcoc_sam.masks.precision import full_precision

__all__ = [
    "areas",
    "containment",
    "iou_of_comparisons",
    "mask_boxes",
    "mask_iou",
    "pairwise_containment",
    "pairwise_intersection",
    "pairwise_iou",
    "stability_score",
]

# Pixels of all masks of a pair of stacks that are turned into floats at a time, on the CPU and elsewhere.
_CHUNK_CPU = 1 << 21
_CHUNK_GPU = 1 << 27


def areas(masks: Bool[Tensor, "*N H W"] | np.ndarray) -> Int64[Tensor, "*N"]:
    """The number of pixels of each mask.

    Args:
        masks: (…, H, W) bool.

    Returns:
        (…) int64, on the masks' device.

    Example:
        >>> areas(torch.ones(2, 3, 4, dtype=torch.bool))
        tensor([12, 12])
    """
    return _count(as_masks(masks))


def _count(masks: Bool[Tensor, "*N H W"]) -> Int64[Tensor, "*N"]:
    """The number of pixels of masks whose bytes are 0 and 1."""
    given = masks.view(torch.uint8)
    height = given.shape[-2]
    counts = [given[..., top : top + 255, :].sum(-2, dtype=torch.uint8).sum(-1) for top in range(0, height, 255)]
    return torch.stack(counts).sum(0)


def mask_boxes(masks: Bool[Tensor, "*N H W"] | np.ndarray) -> Float64[Tensor, "*N 4"]:
    """The tight box of each mask: the centres of its outermost pixels.

    Args:
        masks: (…, H, W) bool.

    Returns:
        (…, 4) XYXY in pixel indices (a mask of one pixel has x0 = x1), float64; NaN for an empty mask.

    Example:
        >>> mask = torch.zeros(5, 5, dtype=torch.bool)
        >>> mask[1:3, 2] = True
        >>> mask_boxes(mask).tolist()
        [2.0, 1.0, 2.0, 2.0]
    """
    given = as_masks(masks).view(torch.uint8)  # the maximum of bytes is vectorised, any() of bools is not
    edges = []
    for axis in (-2, -1):
        hit = given.amax(axis)
        edges.append((hit.argmax(-1), hit.shape[-1] - 1 - hit.flip(-1).argmax(-1), hit.amax(-1)))
    (left, right, some), (top, bottom, _) = edges
    boxes = torch.stack((left, top, right, bottom), dim=-1).to(torch.float64)
    return boxes.masked_fill(some[..., None] == 0, torch.nan)


def mask_iou(
    a: Bool[Tensor, "*#N H W"] | np.ndarray, b: Bool[Tensor, "*#N H W"] | np.ndarray
) -> Float32[Tensor, "*broadcast"]:
    """Intersection over union of masks, one by one.

    Args:
        a: (…, H, W) bool.
        b: (…, H, W) bool; the leading axes broadcast.

    Returns:
        (…) float32 in [0, 1]; NaN where both masks are empty.

    Raises:
        ShapeError: H or W differ, or the leading axes do not broadcast.
    """
    return iou_of_comparisons(*_same_frame(a, b, ("a", "b")))


def iou_of_comparisons(a: Bool[Tensor, "*#N H W"], b: Bool[Tensor, "*#N H W"]) -> Float32[Tensor, "*broadcast"]:
    """:func:`mask_iou` of masks that comparisons made (logits > 0): nothing is looked at, which ``vmap`` can't do."""
    overlap = _count(a & b).double()
    return (overlap / (_count(a) + _count(b) - overlap)).float()


def containment(
    inner: Bool[Tensor, "*#N H W"] | np.ndarray, outer: Bool[Tensor, "*#N H W"] | np.ndarray
) -> Float32[Tensor, "*broadcast"]:
    """The share of each inner mask that lies inside the outer one, one by one.

    Args:
        inner: (…, H, W) bool.
        outer: (…, H, W) bool; the leading axes broadcast.

    Returns:
        (…) float32 in [0, 1]; NaN where the inner mask is empty.

    Raises:
        ShapeError: H or W differ, or the leading axes do not broadcast.
    """
    within, around = _same_frame(inner, outer, ("inner", "outer"))
    return (_count(within & around).double() / _count(within)).float()


def pairwise_intersection(
    a: Bool[Tensor, "*B M H W"] | np.ndarray, b: Bool[Tensor, "*B N H W"] | np.ndarray
) -> Int64[Tensor, "*B M N"]:
    """The number of pixels that each mask of one stack shares with each of another.

    A matrix product over the pixels, in chunks: float32 counts of under 2^24 pixels are exact, and the chunks are
    added as integers.

    Args:
        a: (…, M, H, W) bool.
        b: (…, N, H, W) bool, with the same leading axes.

    Returns:
        (…, M, N) int64.

    Raises:
        ShapeError: H, W or the leading axes differ.
    """
    first, second = as_masks(a, name="a", min_rank=3), as_masks(b, name="b", min_rank=3)
    if first.shape[-2:] != second.shape[-2:] or first.shape[:-3] != second.shape[:-3]:
        came = f"a is {describe(first)}, b is {describe(second)}"
        raise ShapeError(explain(came, "(…, M, H, W) and (…, N, H, W) of one size", "bring them to one size first"))
    *batch, height, width = first.shape[:-3] + first.shape[-2:]
    pixels = height * width
    stacks = math.prod(batch)  # not -1, which torch refuses to work out when a stack is empty
    left = first.reshape(stacks, first.shape[-3], pixels).view(torch.uint8)
    right = second.reshape(stacks, second.shape[-3], pixels).view(torch.uint8)
    counts = torch.zeros(len(left), left.shape[1], right.shape[1], dtype=torch.int64, device=left.device)
    budget = _CHUNK_CPU if left.device.type == "cpu" else _CHUNK_GPU
    step = max(1, min(pixels, 1 << 24, budget // max(1, left.shape[1] + right.shape[1])))
    group = max(1, budget // max(1, step * (left.shape[1] + right.shape[1])))
    for begin in range(0, len(left), group):
        some, others = left[begin : begin + group], right[begin : begin + group]
        for start in range(0, pixels, step):
            chunk, against = some[..., start : start + step].float(), others[..., start : start + step].float()
            with full_precision(left.device):
                counts[begin : begin + group] += (chunk @ against.mT).round().long()
    return counts.reshape(*batch, left.shape[1], right.shape[1])


def pairwise_iou(
    a: Bool[Tensor, "*B M H W"] | np.ndarray, b: Bool[Tensor, "*B N H W"] | np.ndarray
) -> Float32[Tensor, "*B M N"]:
    """Intersection over union of each mask of one stack with each of another.

    Args:
        a: (…, M, H, W) bool.
        b: (…, N, H, W) bool, with the same leading axes.

    Returns:
        (…, M, N) float32 in [0, 1]; NaN where both masks are empty.

    Raises:
        ShapeError: H, W or the leading axes differ.

    Example:
        >>> masks = torch.tensor([[[True, True]], [[False, True]]])
        >>> pairwise_iou(masks, masks)
        tensor([[1.0000, 0.5000],
                [0.5000, 1.0000]])
    """
    overlap = pairwise_intersection(a, b).double()
    return (overlap / (areas(a)[..., :, None] + areas(b)[..., None, :] - overlap)).float()


def pairwise_containment(
    inner: Bool[Tensor, "*B M H W"] | np.ndarray, outer: Bool[Tensor, "*B N H W"] | np.ndarray
) -> Float32[Tensor, "*B M N"]:
    """The share of each inner mask that lies inside each outer one.

    Args:
        inner: (…, M, H, W) bool.
        outer: (…, N, H, W) bool, with the same leading axes.

    Returns:
        (…, M, N) float32 in [0, 1]; NaN where the inner mask is empty.

    Raises:
        ShapeError: H, W or the leading axes differ.
    """
    return (pairwise_intersection(inner, outer).double() / areas(inner)[..., :, None]).float()


def stability_score(
    logits: Float[Tensor, "*N h w"], *, threshold: float = 0.0, offset: float = 1.0
) -> Float32[Tensor, "*N"]:
    """How little a mask changes with its threshold: area(logits > t + δ) / area(logits > t − δ), a mask at a time.

    Args:
        logits: (…, h, w) unthresholded logits.
        threshold: t, where the mask is cut.
        offset: δ, at least 0.

    Returns:
        (…) float32 in [0, 1]; NaN where even the larger of the two masks is empty.

    Raises:
        InputError: Not floats, or a negative offset.

    Reference:
        Kirillov et al. 2023, Segment Anything, section 5 and appendix B (``calculate_stability_score`` of
        segment-anything); there 0/0 is NaN too.
    """
    if not isinstance(logits, Tensor) or not logits.is_floating_point() or logits.ndim < 2:
        raise InputError(explain(f"logits is {describe(logits)}", "a float tensor (…, h, w) of logits"))
    if not offset >= 0:
        raise InputError(explain(f"offset={offset}", "at least 0"))
    return (_count(logits > threshold + offset).double() / _count(logits > threshold - offset)).float()


def _same_frame(
    a: Tensor | np.ndarray, b: Tensor | np.ndarray, names: tuple[str, str]
) -> tuple[Bool[Tensor, "*N H W"], Bool[Tensor, "*M H W"]]:
    """Two stacks of masks of one size that broadcast, or the error."""
    first, second = as_masks(a, name=names[0]), as_masks(b, name=names[1])
    leading = zip(reversed(first.shape[:-2]), reversed(second.shape[:-2]), strict=False)
    if first.shape[-2:] != second.shape[-2:] or any(m != n and 1 not in (m, n) for m, n in leading):
        came = f"{names[0]} is {describe(first)}, {names[1]} is {describe(second)}"
        raise ShapeError(explain(came, "one size (H, W) and leading axes that broadcast"))
    return first, second
