"""MaskHierarchy: the three levels of every prompt.

What a level is, is defined in :mod:`arrcoc_sam.hierarchy.levels`; all nested masks of an image are a
:class:`arrcoc_sam.hierarchy.mask_forest.MaskForest`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from arrcoc_sam.errors import ShapeError, describe, explain
from arrcoc_sam.geometry import ImageTransform
from arrcoc_sam.hierarchy.levels import (
    DISTINCT_IOU,
    LEVELS,
    MIN_CELLS,
    NESTED_SHARE,
    choose_levels,
    clip_levels,
    measurable_shells,
    relate_levels,
    shell_masks,
)
from arrcoc_sam.inputs import Rows, as_masks, as_numbers, kept_rows
from arrcoc_sam.masks import area_average, pairwise_intersection

__all__ = ["MaskHierarchy"]


@dataclass(frozen=True, eq=False)
class MaskHierarchy:
    """Whole, part and subpart of K prompts; the axis of three is in the order of ``LEVELS``.

    Attributes:
        LEVELS: ("whole", "part", "subpart").
        masks: (K, 3, H, W) bool, as they came: neither clipped nor made distinct.
        scores: (K, 3) raw predicted IoU, or 1 for masks that came without.
        token_index: (K, 3) int64, the decoder's token, or the position among the masks given.
        areas: (K, 3) int64, pixels.
        nesting: (K, 2), the share of the part inside the whole, and of the subpart inside the part. NaN where the
            inner mask is empty.
        distinct: (K, 3), False where a level is empty or repeats the one above it.
        counted: (K, 3), whether a level is distinct and nested; the whole, unless it is empty, always is. A third mask
            beside the part is distinct and not counted: it is nobody's subpart, and teaches nothing.
        valid: (K,), whether at least two levels are counted. What is not valid is reported as "abstain".
    """

    LEVELS: ClassVar[tuple[str, str, str]] = LEVELS

    masks: Bool[Tensor, "K 3 H W"]
    scores: Float[Tensor, "K 3"]
    token_index: Int[Tensor, "K 3"]
    areas: Int[Tensor, "K 3"]
    nesting: Float[Tensor, "K 2"]
    distinct: Bool[Tensor, "K 3"]
    counted: Bool[Tensor, "K 3"]
    valid: Bool[Tensor, " K"]

    @classmethod
    def from_masks(
        cls,
        masks: Bool[Tensor, "K M H W"] | np.ndarray,
        scores: Float[Tensor, "K M"] | np.ndarray | Sequence[Sequence[float]] | None = None,
        token_index: Int[Tensor, "K M"] | Int[Tensor, " M"] | np.ndarray | Sequence[Any] | None = None,
        *,
        distinct_iou: float = DISTINCT_IOU,
        nested_share: float = NESTED_SHARE,
    ) -> MaskHierarchy:
        """Read M >= 3 masks a prompt as whole, part and subpart, whatever order they come in.

        Three masks are sorted by area. Of more, the largest is the whole, and the part and the subpart are those that
        make the most levels distinct and nested (:func:`arrcoc_sam.hierarchy.levels.choose_levels`). A pair of masks is
        given with the inner one repeated: its subpart is then not distinct.

        Args:
            masks: Candidates of a decoder, or human masks.
            scores: Their predicted IoU, raw; 1 by default, as of masks that are known to be right.
            token_index: What to remember each by; its position by default.
            distinct_iou: The largest IoU with the level above at which a level counts as distinct.
            nested_share: The least share inside the level above at which a level counts as nested.

        Returns:
            The hierarchy.

        Raises:
            HierarchyError: Fewer than three masks.
            ShapeError: Shapes that do not go together.
            InputError: Masks that are not bool, or a threshold outside [0, 1].

        Example:
            >>> masks = torch.tensor([[[1, 0, 0, 0]], [[1, 1, 1, 1]], [[1, 1, 0, 0]]]).bool()
            >>> hierarchy = MaskHierarchy.from_masks(masks[None])
            >>> hierarchy.areas, hierarchy.token_index, hierarchy.valid
            (tensor([[4, 2, 1]]), tensor([[1, 2, 0]]), tensor([True]))
        """
        masks = as_masks(masks, min_rank=4)
        if masks.ndim != 4:
            raise ShapeError(explain(f"masks is {describe(masks)}", "(K, M, H, W)"))
        num_prompts, num_masks = masks.shape[:2]
        scores = masks.new_ones((num_prompts, num_masks), dtype=torch.float32) if scores is None else scores
        scores, exact = as_numbers(scores, "scores", "(K, M)", masks.device), isinstance(scores, (Tensor, np.ndarray))
        scores = scores if exact and scores.is_floating_point() else scores.float()
        positions = range(num_masks) if token_index is None else token_index
        tokens = as_numbers(positions, "token_index", "(K, M) or (M,)", masks.device)
        tokens = tokens.expand(num_prompts, num_masks) if tokens.shape == (num_masks,) else tokens
        for name, value in (("scores", scores), ("token_index", tokens)):
            if value.shape != masks.shape[:2]:
                raise ShapeError(explain(f"{name} is {describe(value)}", f"(K, M) = {(num_prompts, num_masks)}"))
        common = pairwise_intersection(masks, masks)
        index = choose_levels(common, distinct_iou=distinct_iou, nested_share=nested_share)
        prompts = torch.arange(num_prompts, device=masks.device)[:, None]
        common = common[prompts[:, :, None], index[:, :, None], index[:, None, :]]
        relations = relate_levels(common, distinct_iou=distinct_iou, nested_share=nested_share)
        return cls(
            masks=masks[prompts, index],
            scores=scores.gather(1, index),
            token_index=tokens.gather(1, index),
            areas=common.diagonal(dim1=-2, dim2=-1),
            nesting=relations.nesting,
            distinct=relations.distinct,
            counted=relations.counted,
            valid=relations.valid,
        )

    def __len__(self) -> int:
        return len(self.masks)

    def __repr__(self) -> str:
        """Sizes, and how many prompts have levels, instead of all the numbers."""
        height, width = self.masks.shape[-2:]
        return (
            f"MaskHierarchy({len(self)} prompts, {int(self.valid.sum())} valid; "
            f"{height} x {width} pixels, on {self.masks.device})"
        )

    def __getitem__(self, index: Rows) -> MaskHierarchy:
        """The hierarchy of some prompts; an integer keeps the axis K, of length 1."""
        rows = kept_rows(index, len(self), "prompt")
        return MaskHierarchy(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def clipped(self) -> Bool[Tensor, "K 3 H W"]:
        """The levels as true sets, whole ⊇ part ⊇ subpart: P := P∩W, S := S∩P."""
        return clip_levels(self.masks)

    def shells(self) -> Bool[Tensor, "K 3 H W"]:
        """What each clipped level has and the next distinct level within does not; of the innermost one, all of it.

        Shells are disjoint and make up the whole; that of a level that is not distinct is empty.
        """
        return shell_masks(self.clipped(), self.distinct)

    def measurable(
        self, grid_hw: tuple[int, int], *, transform: ImageTransform | None = None, min_cells: float = MIN_CELLS
    ) -> Bool[Tensor, " K"]:
        """Which triples a grid can tell apart: valid, the innermost distinct level large enough, no shell empty.

        Args:
            grid_hw: Rows and columns of the grid.
            transform: From the image to the frame that the grid lies on; by default the grid covers the image.
            min_cells: The least area of the innermost distinct level, in cells.

        Returns:
            True where the triple is measurable; what is not is reported as "abstain".
        """
        shells = self.shells()
        grid = area_average(shells, grid_hw) if transform is None else transform.masks_to_grid(shells, grid_hw)
        weights = None if transform is None else transform.grid_valid(grid_hw)
        return measurable_shells(grid, self.distinct, self.valid, cell_weights=weights, min_cells=min_cells)
