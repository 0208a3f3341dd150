"""Three nested levels on a token grid, as disjoint shells.

Every metric asks where attention lies relative to whole ⊇ part ⊇ subpart. Disjoint shells (what a level has and the
next one within has not) answer that without cancellation: a level is the sum of the shells from it inwards, and a
shell is empty exactly when its sum is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from arrcoc_sam.errors import InputError, ShapeError, describe, explain
from arrcoc_sam.hierarchy.levels import MIN_CELLS, clip_levels, measurable_shells, shell_masks
from arrcoc_sam.inputs import as_masks
from arrcoc_sam.masks import area_average

__all__ = [
    "EMPTY_SHARE",
    "Masks",
    "Regions",
    "accumulator",
    "check_valid",
    "checked_masks",
    "levels_from_shells",
    "shells_of",
]

EMPTY_SHARE = 1e-6
"""A background below this share of the frame is empty: float32 leaves that much of 1 − Σ shells for a whole of 1."""

Masks: TypeAlias = (
    Bool[Tensor, "K 3 H W"] | Float[Tensor, "K 3 H W"] | Bool[np.ndarray, "K 3 H W"] | Float[np.ndarray, "K 3 H W"]
)
"""Whole, part, subpart of K prompts as callers pass them."""

# How far beside [0, 1] resizing leaves soft masks.
_MARGIN = 1e-3


def accumulator(device: torch.device) -> torch.dtype:
    """The dtype that sums are accumulated in: float64, or float32 on Apple's GPUs, which have nothing wider."""
    return torch.float32 if device.type == "mps" else torch.float64


def checked_masks(
    masks: Shaped[Tensor, "K 3 H W"] | Shaped[np.ndarray, "K 3 H W"], name: str = "masks"
) -> Bool[Tensor, "K 3 H W"] | Float[Tensor, "K 3 H W"]:
    """The masks as a tensor, or the error that says what is wrong with them.

    Raises:
        ShapeError: Not (K, 3, H, W).
        InputError: Neither bool nor floats in [0, 1].
    """
    masks = as_masks(masks, name=name, soft=True)
    if masks.ndim != 4 or masks.shape[1] != 3 or 0 in masks.shape:
        raise ShapeError(
            explain(
                f"{name} is {describe(masks)}",
                "(K, 3, H, W): whole, part, subpart of K prompts",
                f"add the axis of the prompts: {name}[None]" if masks.ndim == 3 else None,
            )
        )
    if masks.dtype != torch.bool and not _holds(((masks >= -_MARGIN) & (masks <= 1 + _MARGIN)).all()):
        mend = f"pass bool ({name} > 0), or divide what reaches to 255 by 255"
        raise InputError(explain(f"{name} holds values beside [0, 1] or NaN", "bool, or floats in [0, 1]", mend))
    return masks


def check_valid(valid: Float[Tensor, "h w"], grid_hw: tuple[int, int]) -> None:
    """Refuse cell weights that are none.

    Raises:
        ShapeError: Not of the grid's size.
        InputError: No tensor; negative or not finite; or 0 everywhere.
    """
    if not isinstance(valid, Tensor):
        raise InputError(explain(f"valid is {describe(valid)}", "a tensor (h, w)", "torch.as_tensor(valid)"))
    if valid.shape != grid_hw:
        raise ShapeError(explain(f"valid has shape {tuple(valid.shape)}", f"the grid's {grid_hw}"))
    if not _holds((valid >= 0).all() & valid.isfinite().all() & (valid > 0).any()):
        came = "valid holds negative or non-finite values, or nothing above 0"
        raise InputError(explain(came, "the share of each cell that the image covers"))


def _holds(condition: Bool[Tensor, ""]) -> bool:
    """Whether a condition is met; True where there is no value to see, compiled or inside vmap."""
    if torch.compiler.is_compiling():
        return True
    try:
        return bool(condition)
    except RuntimeError:
        return True


def shells_of(
    masks: Bool[Tensor, "K 3 H W"] | Float[Tensor, "K 3 H W"], distinct: Bool[Tensor, "K 3"] | None = None
) -> Bool[Tensor, "K 3 H W"] | Float[Tensor, "K 3 H W"]:
    """Disjoint shells of levels that are first clipped to be true sets, P := P∩W, S := S∩P.

    Args:
        masks: Whole, part, subpart, bool, or soft in [0, 1] (they intersect by their minimum).
        distinct: Which levels count, all by default; shells run between consecutive ones, the others' are empty.

    Returns:
        Shells of the same dtype; they sum to the whole.

    Example:
        >>> whole, part, subpart = torch.tensor([[[1, 1, 1, 0]], [[0, 1, 1, 1]], [[0, 0, 1, 0]]], dtype=torch.bool)
        >>> shells_of(torch.stack([whole, part, subpart])[None]).int().flatten(2)
        tensor([[[1, 0, 0, 0],
                 [0, 1, 0, 0],
                 [0, 0, 1, 0]]], dtype=torch.int32)
    """
    if distinct is None:
        distinct = torch.ones(masks.shape[:2], dtype=torch.bool, device=masks.device)
    elif distinct.shape != masks.shape[:2] or distinct.dtype != torch.bool:
        raise ShapeError(explain(f"distinct is {describe(distinct)}", f"a bool tensor {tuple(masks.shape[:2])}"))
    return shell_masks(clip_levels(masks), distinct.to(masks.device))


def levels_from_shells(shells: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
    """Sums over whole, part, subpart from sums over their disjoint shells (the last axis)."""
    return shells.flip(-1).cumsum(-1).flip(-1)


@dataclass(frozen=True)
class Regions:
    """Three nested levels of K prompts on a grid, as disjoint shells averaged by area.

    Attributes:
        shells: Share of each cell in the shell of whole, part, subpart, (K, 3, h, w), in [0, 1].
        valid: Share of each cell that the image covers, (h, w): the weight of the cell in every mean.
        distinct: Levels that are more than a repetition of the one above, (K, 3). The others have an empty shell and
            are NaN in every metric.
        cell_hw: Height and width of a cell; only their ratio matters, and only to distances.
    """

    shells: Float[Tensor, "K 3 h w"]
    valid: Float[Tensor, "h w"]
    distinct: Bool[Tensor, "K 3"]
    cell_hw: tuple[float, float] = (1.0, 1.0)

    @classmethod
    def from_masks(
        cls,
        masks: Masks,
        grid_hw: tuple[int, int],
        *,
        valid: Float[Tensor, "h w"] | None = None,
        distinct: Bool[Tensor, "K 3"] | None = None,
    ) -> Regions:
        """Masks that cover the same frame as the grid, clipped to true sets and then averaged by area.

        Args:
            masks: Whole, part, subpart at any resolution.
            grid_hw: Rows and columns of the grid.
            valid: Cell weights; 1 everywhere when not given.
            distinct: Which levels count; all when not given.

        Raises:
            ShapeError: Shapes that do not agree.
            InputError: Masks that are neither bool nor floats in [0, 1]; weights that are negative, or all 0.
        """
        masks = checked_masks(masks)
        if valid is not None:
            check_valid(valid, grid_hw)
        flags = torch.ones(masks.shape[:2], dtype=torch.bool) if distinct is None else distinct
        same, dtype = tuple(masks.shape[-2:]) == grid_hw, torch.promote_types(masks.dtype, torch.float32)
        averaged = []
        for k in range(len(masks)):  # one triple at a time stays in the caches
            shells = shells_of(masks[k : k + 1], flags[k : k + 1])
            averaged.append(shells.to(dtype) if same else area_average(shells, grid_hw))
        joined = torch.cat(averaged)
        return cls(
            shells=joined,
            valid=joined.new_ones(grid_hw) if valid is None else valid.to(joined),
            distinct=flags.to(masks.device),
            cell_hw=(masks.shape[-2] / grid_hw[0], masks.shape[-1] / grid_hw[1]),
        )

    @classmethod
    def cat(cls, regions: Sequence[Regions]) -> Regions:
        """The prompts of several regions on the same grid, one after the other."""
        shells, distinct = (torch.cat([getattr(some, name) for some in regions]) for name in ("shells", "distinct"))
        return replace(regions[0], shells=shells, distinct=distinct)

    def __len__(self) -> int:
        """K."""
        return len(self.shells)

    def __getitem__(self, index: Int64[Tensor, " some"]) -> Regions:
        """Some of the prompts."""
        return replace(self, shells=self.shells[index], distinct=self.distinct[index])

    @property
    def grid_hw(self) -> tuple[int, int]:
        """Rows and columns of the grid."""
        return int(self.shells.shape[-2]), int(self.shells.shape[-1])

    @property
    def levels(self) -> Float[Tensor, "K 3 h w"]:
        """Share of each cell in whole, part, subpart; a level that is not distinct is a copy of the next one within."""
        return self.shells.flip(1).cumsum(1).flip(1).clamp(max=1.0)

    @property
    def areas(self) -> Float[Tensor, "K 3"]:
        """Share of the frame that whole, part, subpart cover, the a of the metrics; NaN where not distinct."""
        weights = self.valid.to(accumulator(self.valid.device))
        share = (self.levels * weights).sum((-2, -1)) / weights.sum()
        return share.to(self.shells).masked_fill(~self.distinct, torch.nan)

    def measurable(
        self, valid: Bool[Tensor, " K"] | None = None, *, min_cells: float = MIN_CELLS
    ) -> Bool[Tensor, " K"]:
        """Whether levels can be told apart on this grid, (K,): :func:`arrcoc_sam.hierarchy.levels.measurable_shells`.

        Args:
            valid: Which triples are valid at image resolution; all by default.
            min_cells: The least area of the innermost distinct level, in cells.
        """
        valid = torch.ones_like(self.distinct[:, 0]) if valid is None else valid.to(self.shells.device)
        return measurable_shells(self.shells, self.distinct, valid, cell_weights=self.valid, min_cells=min_cells)
