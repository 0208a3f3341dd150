"""Whole, part, subpart: what the three levels are, and which triples can be judged. Pure functions on tensors.

The three masks that SAM answers a click with carry no order, so levels are named by area and nesting. Sorted by area,
the largest is the *whole*. A level is *distinct* when its IoU with the level above is at most 0.7, and *nested* when
at least 0.9 of it lies inside the level above.
"""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from arrcoc_sam.errors import HierarchyError, InputError, ShapeError, describe, explain

__all__ = ["LEVELS", "Relations", "choose_levels", "clip_levels", "measurable_shells", "relate_levels", "shell_masks"]

LEVELS = ("whole", "part", "subpart")
"""Names of the levels, from the outside in; axis L of every result is in this order."""

DISTINCT_IOU = 0.7
NESTED_SHARE = 0.9
MIN_CELLS = 4.0

# What float32 sums over a grid may leave of a background that is empty.
_ROUNDING = 1e-6


class Relations(NamedTuple):
    """How the levels of K triples lie to each other.

    Attributes:
        nesting: (K, 2), the share of the part inside the whole, and of the subpart inside the part. NaN where the
            inner mask is empty.
        distinct: (K, 3), False where a level is empty or repeats the one above it.
        counted: (K, 3), whether a level is distinct and nested.
        valid: (K,), whether at least two levels are.
    """

    nesting: Float[Tensor, "K 2"]
    distinct: Bool[Tensor, "K 3"]
    counted: Bool[Tensor, "K 3"]
    valid: Bool[Tensor, " K"]


def choose_levels(
    intersections: Int[Tensor, "K M M"], *, distinct_iou: float = DISTINCT_IOU, nested_share: float = NESTED_SHARE
) -> Int[Tensor, "K 3"]:
    """Which of M masks are whole, part and subpart.

    With three masks: their order by area, the first of equal ones first. With more: of all triples that hold the
    largest mask, in the order of area, one with the most distinct nested levels; among equals the one with the larger
    part, then the larger subpart.

    Args:
        intersections: Pixels in common of every two masks; areas on the diagonal.
        distinct_iou: The largest IoU with the level above at which a level counts as distinct.
        nested_share: The least share inside the level above at which a level counts as nested.

    Returns:
        Indices into M, one column a level.

    Raises:
        HierarchyError: Fewer than three masks.
        InputError: A threshold outside [0, 1].

    Example:
        >>> choose_levels(torch.tensor([[[5, 5, 5], [5, 90, 20], [5, 20, 20]]]))
        tensor([[1, 2, 0]])
    """
    num_masks = intersections.shape[-1]
    if num_masks < 3:
        raise HierarchyError(
            explain(
                f"{num_masks} masks a prompt",
                "at least 3, to read whole, part and subpart",
                "decode with multimask=True, or repeat the innermost mask of a pair",
            )
        )
    order = intersections.diagonal(dim1=-2, dim2=-1).argsort(dim=-1, descending=True, stable=True)
    if num_masks == 3:
        return order
    best = order[:, :3]
    most = torch.full_like(order[:, 0], -1)
    for inner in combinations(range(1, num_masks), 2):
        triple = order[:, [0, *inner]]
        found = _counted(_take(intersections, triple), distinct_iou=distinct_iou, nested_share=nested_share).sum(-1)
        best = torch.where((found > most)[:, None], triple, best)
        most = torch.maximum(most, found)
    return best


def relate_levels(
    intersections: Int[Tensor, "K 3 3"], *, distinct_iou: float = DISTINCT_IOU, nested_share: float = NESTED_SHARE
) -> Relations:
    """Nesting, distinctness and validity of triples that are in the order whole, part, subpart.

    The whole has nothing above it: it is distinct and nested unless it is empty. A subpart counts as nested
    only if it lies inside the whole too: 0.9 of 0.9 could lie outside. An empty level is neither.

    Args:
        intersections: Pixels in common of every two levels; areas on the diagonal.
        distinct_iou: The largest IoU with the level above at which a level counts as distinct.
        nested_share: The least share inside the level above at which a level counts as nested.

    Returns:
        The relations.

    Raises:
        ShapeError: Not three levels.
        InputError: A threshold outside [0, 1].

    Example:
        A part that repeats the whole, and a subpart inside both:

        >>> relate_levels(torch.tensor([[[100, 95, 20], [95, 95, 20], [20, 20, 20]]]))
        Relations(nesting=tensor([[1., 1.]]), distinct=tensor([[ True, False,  True]]),
                  counted=tensor([[ True, False,  True]]), valid=tensor([True]))
    """
    if intersections.ndim != 3 or intersections.shape[-2:] != (3, 3):
        raise ShapeError(explain(f"intersections is {describe(intersections)}", "(K, 3, 3)"))
    counted = _counted(intersections, distinct_iou=distinct_iou, nested_share=nested_share)
    areas = intersections.diagonal(dim1=-2, dim2=-1)
    return Relations(
        nesting=_adjacent(intersections) / areas[:, 1:],
        distinct=_distinct(intersections, distinct_iou),
        counted=counted,
        valid=counted.sum(-1) >= 2,
    )


def clip_levels(
    masks: Bool[Tensor, "*K 3 H W"] | Float[Tensor, "*K 3 H W"],
) -> Bool[Tensor, "*K 3 H W"] | Float[Tensor, "*K 3 H W"]:
    """Levels made true sets, whole ⊇ part ⊇ subpart: P := P∩W, S := S∩P. Soft masks intersect by their minimum.

    Args:
        masks: Whole, part, subpart.

    Returns:
        A new tensor of the same shape and dtype.
    """
    whole, part, subpart = masks.unbind(-3)
    part = torch.minimum(part, whole)
    return torch.stack([whole, part, torch.minimum(subpart, part)], dim=-3)


def shell_masks(
    levels: Bool[Tensor, "*K 3 H W"] | Float[Tensor, "*K 3 H W"], distinct: Bool[Tensor, "*K 3"]
) -> Bool[Tensor, "*K 3 H W"] | Float[Tensor, "*K 3 H W"]:
    """What each level has and the next distinct level within does not; of the innermost one, all of it.

    The shells of a triple are disjoint and make up its whole.

    Args:
        levels: Clipped levels, bool at image resolution or area-averaged in [0, 1] on a grid.
        distinct: Which of them are levels of their own.

    Returns:
        One shell a level, of the dtype of ``levels``; empty where a level is not distinct.

    Example:
        >>> levels = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0]]).bool()[:, None]
        >>> shell_masks(levels, torch.tensor([True, True, True])).int()[:, 0]
        tensor([[0, 0, 0, 1],
                [0, 1, 1, 0],
                [1, 0, 0, 0]], dtype=torch.int32)
        >>> shell_masks(levels, torch.tensor([True, False, True])).int()[:, 0]
        tensor([[0, 1, 1, 1],
                [0, 0, 0, 0],
                [1, 0, 0, 0]], dtype=torch.int32)
    """
    own = distinct[..., None, None]
    # As bytes a broadcast product is thirty times as fast as an operation on bools.
    kept = (levels.view(torch.uint8) * own).view(torch.bool) if levels.dtype == torch.bool else levels * own
    whole, part, subpart = kept.unbind(-3)
    return torch.stack([_without(whole, torch.maximum(part, subpart)), _without(part, subpart), subpart], dim=-3)


def measurable_shells(
    grid_shells: Float[Tensor, "K 3 h w"],
    distinct: Bool[Tensor, "K 3"],
    valid: Bool[Tensor, " K"],
    *,
    cell_weights: Float[Tensor, "h w"] | None = None,
    min_cells: float = MIN_CELLS,
) -> Bool[Tensor, " K"]:
    """Which triples a grid can tell apart: valid, the innermost distinct level large enough, no shell empty.

    The background, which the whole stands out from, must not be empty either.

    Args:
        grid_shells: Shells at image resolution averaged by area over the cells of the grid, in [0, 1]. (Averaged
            after the subtraction, an empty shell is exactly 0.)
        distinct: Which levels are levels of their own.
        valid: Which triples are valid at image resolution.
        cell_weights: The share of each cell that shows the image (``ImageTransform.grid_valid``); 1 by default.
        min_cells: The least area of the innermost distinct level, in cells.

    Returns:
        True where the triple is measurable; what is not is reported as "abstain".
    """
    weights = grid_shells.new_ones(grid_shells.shape[-2:]) if cell_weights is None else cell_weights.to(grid_shells)
    cells = (grid_shells * weights).sum((-2, -1))
    # Nothing distinct lies within the innermost distinct level: its shell is all of it.
    innermost = torch.where(distinct[:, 2], cells[:, 2], torch.where(distinct[:, 1], cells[:, 1], cells[:, 0]))
    filled = ((cells > 0) | ~distinct).all(-1)
    background = cells.sum(-1) < (1 - _ROUNDING) * weights.sum()
    return valid & filled & background & (innermost >= min_cells)


def _take(intersections: Int[Tensor, "K M M"], index: Int[Tensor, "K L"]) -> Int[Tensor, "K L L"]:
    """Rows and columns of the chosen masks."""
    prompts = torch.arange(len(index), device=index.device)[:, None, None]
    return intersections[prompts, index[:, :, None], index[:, None, :]]


def _adjacent(intersections: Int[Tensor, "K 3 3"]) -> Int[Tensor, "K 2"]:
    """|W∩P| and |P∩S|."""
    return intersections.diagonal(offset=1, dim1=-2, dim2=-1)


def _distinct(intersections: Int[Tensor, "K 3 3"], distinct_iou: float) -> Bool[Tensor, "K 3"]:
    _require_share("distinct_iou", distinct_iou)
    areas, common = intersections.diagonal(dim1=-2, dim2=-1), _adjacent(intersections)
    iou = common / (areas[:, 1:] + areas[:, :-1] - common)
    return torch.cat([areas[:, :1] > 0, (iou <= distinct_iou) & (areas[:, 1:] > 0)], dim=-1)


def _counted(intersections: Int[Tensor, "K 3 3"], *, distinct_iou: float, nested_share: float) -> Bool[Tensor, "K 3"]:
    """Which levels are distinct and nested, so that they count towards validity."""
    _require_share("nested_share", nested_share)
    areas = intersections.diagonal(dim1=-2, dim2=-1)
    inside_above = _adjacent(intersections) / areas[:, 1:] >= nested_share  # 0/0 is NaN, and False
    inside_whole = intersections[:, 0, 1:] / areas[:, 1:] >= nested_share
    distinct = _distinct(intersections, distinct_iou)
    return torch.cat([distinct[:, :1], distinct[:, 1:] & inside_above & inside_whole], dim=-1)


def _without(outer: Tensor, inner: Tensor) -> Tensor:
    """Set difference of bool masks; of soft ones the difference, never below 0 by rounding."""
    return outer & ~inner if outer.dtype == torch.bool else (outer - inner).clamp_min(0)


def _require_share(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise InputError(explain(f"{name}={value}", "a share in [0, 1]"))
