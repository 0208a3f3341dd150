"""Metrics of the order of cells alone: whatever stretches or squeezes attention monotonically leaves them as they are.

See :mod:`arrcoc_sam.granularity.metrics` for what the arguments mean and what is NaN. At ``resolution="image"`` these
have to upsample the maps, a few at a time: ranks are not linear.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from arrcoc_sam.errors import ShapeError, describe, explain
from arrcoc_sam.granularity.arguments import (
    Attention,
    Distinct,
    Masks,
    Resolution,
    Valid,
    Values,
    check_arguments,
    like,
)
from arrcoc_sam.granularity.image_ranks import image_ranked
from arrcoc_sam.granularity.rank_kernels import OF_RANKS, area_under_curve_against, soft
from arrcoc_sam.granularity.ranks import Levels, Ranking, RankKernel, grid_ranked
from arrcoc_sam.granularity.regions import Regions, accumulator, checked_masks
from arrcoc_sam.hierarchy.levels import clip_levels
from arrcoc_sam.masks.averaging import area_average

__all__ = [
    "auc",
    "normalized_ap",
    "pointing_game",
    "rank_accuracy",
    "shuffled_auc",
    "spearman",
]


def spearman(
    attention: Attention,
    masks: Masks,
    *,
    resolution: Resolution = "grid",
    valid: Valid = None,
    distinct: Distinct = None,
) -> Values:
    """Spearman's rank correlation of attention and level, ties sharing the middle rank.

    Args:
        attention: Attention, >= 0.
        masks: Whole, part, subpart.
        resolution: "grid" or "image".
        valid: Cell weights.
        distinct: Which levels count.

    Returns:
        In [-1, 1]; NaN where the map or the level is constant.

    Raises:
        ShapeError: Shapes that do not agree.
        InputError: Negative or non-finite attention, masks of another dtype.
    """
    return _ranked(OF_RANKS["spearman"], attention, masks, resolution, valid, distinct)


def normalized_ap(
    attention: Attention,
    masks: Masks,
    *,
    resolution: Resolution = "grid",
    valid: Valid = None,
    distinct: Distinct = None,
) -> Values:
    """Average precision of attention as a detector of the level's cells, corrected for area: (AP − a) / (1 − a).

    Args:
        attention: Attention, >= 0.
        masks: Whole, part, subpart.
        resolution: "grid" or "image".
        valid: Cell weights.
        distinct: Which levels count.

    Returns:
        At most 1 (the level's cells are the largest), 0 for uniform attention; NaN where the level is empty or
        everything.

    Raises:
        ShapeError: Shapes that do not agree.
        InputError: Negative or non-finite attention, masks of another dtype.
    """
    return _ranked(OF_RANKS["normalized_ap"], attention, masks, resolution, valid, distinct)


def rank_accuracy(
    attention: Attention,
    masks: Masks,
    *,
    resolution: Resolution = "grid",
    valid: Valid = None,
    distinct: Distinct = None,
) -> Values:
    """Share r of the level that lies in the round(ΣM) cells of most attention, corrected for area: (r − a) / (1 − a).

    Cells that tie at the boundary are shared: each counts by the same fraction.

    Args:
        attention: Attention, >= 0.
        masks: Whole, part, subpart.
        resolution: "grid" or "image".
        valid: Cell weights.
        distinct: Which levels count.

    Returns:
        At most 1; NaN where the level rounds to no cell, or is everything. Of uniform attention r is round(ΣM)/n over n
        cells, so the value is 0 for levels of whole cells, and (round(ΣM) − ΣM) / (n − ΣM) in general.

    Raises:
        ShapeError: Shapes that do not agree.
        InputError: Negative or non-finite attention, masks of another dtype.

    Reference:
        Arras, Osman, Samek: CLEVR-XAI, Information Fusion 2022; ``RelevanceRankAccuracy`` in Quantus is r.
    """
    return _ranked(OF_RANKS["rank_accuracy"], attention, masks, resolution, valid, distinct)


def pointing_game(
    attention: Attention,
    masks: Masks,
    *,
    resolution: Resolution = "grid",
    valid: Valid = None,
    distinct: Distinct = None,
) -> Values:
    """Whether the cell of most attention belongs to the level, M ≥ ½ there.

    Args:
        attention: Attention, >= 0.
        masks: Whole, part, subpart.
        resolution: "grid" or "image".
        valid: Cell weights.
        distinct: Which levels count.

    Returns:
        1 or 0; the share of hits where several cells tie for the most; NaN where the level is empty, never a hit.

    Raises:
        ShapeError: Shapes that do not agree.
        InputError: Negative or non-finite attention, masks of another dtype.

    Reference:
        J. Zhang et al.: Top-Down Neural Attention by Excitation Backprop, IJCV 2018 (without its tolerance).
    """
    return _ranked(OF_RANKS["pointing_game"], attention, masks, resolution, valid, distinct)


def auc(
    attention: Attention,
    masks: Masks,
    *,
    resolution: Resolution = "grid",
    valid: Valid = None,
    distinct: Distinct = None,
) -> Values:
    """Area under the ROC curve of attention as a detector of the level's cells.

    Args:
        attention: Attention, >= 0.
        masks: Whole, part, subpart.
        resolution: "grid" or "image".
        valid: Cell weights.
        distinct: Which levels count.

    Returns:
        In [0, 1], ½ for uniform attention; NaN where the level is empty or everything.

    Raises:
        ShapeError: Shapes that do not agree.
        InputError: Negative or non-finite attention, masks of another dtype.
    """
    return _ranked(OF_RANKS["auc"], attention, masks, resolution, valid, distinct)


def shuffled_auc(
    attention: Attention,
    masks: Masks,
    *,
    negatives: Bool[Tensor, "Q 3 H W"]
    | Float[Tensor, "Q 3 H W"]
    | Bool[np.ndarray, "Q 3 H W"]
    | Float[np.ndarray, "Q 3 H W"],
    resolution: Resolution = "grid",
    valid: Valid = None,
    distinct: Distinct = None,
) -> Values:
    """AUC against the places where other images have this level: a centre prior alone gains nothing.

    Negatives are the cells outside the level, weighted by how many of the other images' masks of the same level cover
    them. With masks of everything as negatives this is :func:`auc`.

    Args:
        attention: Attention, >= 0.
        masks: Whole, part, subpart.
        negatives: Whole, part, subpart of Q other images, over the same frame.
        resolution: "grid" or "image".
        valid: Cell weights.
        distinct: Which levels count.

    Returns:
        In [0, 1]; NaN where the level is empty, or no negative lies outside it.

    Raises:
        ShapeError: Shapes that do not agree.
        InputError: Negative or non-finite attention, masks of another dtype.

    Reference:
        B. Tatler, R. Baddeley, I. Gilchrist: Visual correlates of fixation selection, Vision Research 2005.
    """
    check_arguments(attention, masks, resolution, valid)
    others = clip_levels(checked_masks(negatives, "negatives"))
    if others.shape[-2:] != masks.shape[-2:]:
        raise ShapeError(explain(f"negatives is {describe(negatives)}", f"masks of size {tuple(masks.shape[-2:])}"))
    size_hw = attention.shape[-2:] if resolution == "grid" else masks.shape[-2:]
    same = others.shape[-2:] == size_hw
    averaged = others.float() if same else area_average(others, (int(size_hw[0]), int(size_hw[1])))
    often = averaged.to(accumulator(attention.device)).mean(0).flatten(1)
    if valid is not None:
        often = often[:, valid.flatten() > 0]

    def kernel(ranking: Ranking, levels: Levels) -> Float[Tensor, "N M"]:
        found = [
            area_under_curve_against(ranking, part, (1 - part) * often.repeat(len(part) // 3, 1))
            for part in soft(levels, ranking)
        ]
        return torch.cat(found, dim=1)

    return _ranked(kernel, attention, masks, resolution, valid, distinct)


def _ranked(
    kernel: RankKernel, attention: Attention, masks: Masks, resolution: Resolution, valid: Valid, distinct: Distinct
) -> Values:
    check_arguments(attention, masks, resolution, valid)
    if resolution == "image":
        return like(attention, image_ranked(kernel, attention, masks, distinct))
    grid_hw = (int(attention.shape[-2]), int(attention.shape[-1]))
    regions = Regions.from_masks(masks, grid_hw, valid=valid, distinct=distinct)
    return like(attention, grid_ranked([kernel], attention, regions)[0])
