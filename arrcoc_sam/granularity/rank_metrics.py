"""Metrics of the order of cells alone: whatever stretches or squeezes attention monotonically leaves them as they are.

See :mod:`arrcoc_sam.granularity.metrics` for what the arguments mean and what is NaN. At ``resolution="image"`` these
have to upsample the maps, one at a time: ranks are not linear.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from arrcoc_sam.averaging import area_average
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
from arrcoc_sam.granularity.moments import CONSTANT_VARIANCE
from arrcoc_sam.granularity.ranks import Ranking, RankKernel, before, grid_ranked, image_ranked, midranks
from arrcoc_sam.granularity.regions import EMPTY_SHARE, Regions, accumulator, checked_masks
from arrcoc_sam.levels import clip_levels

__all__ = [
    "OF_RANKS",
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
    return _ranked(_spearman, attention, masks, resolution, valid, distinct)


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
    return _ranked(_normalized_ap, attention, masks, resolution, valid, distinct)


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
        At most 1, 0 for uniform attention; NaN where the level rounds to no cell, or is everything.

    Raises:
        ShapeError: Shapes that do not agree.
        InputError: Negative or non-finite attention, masks of another dtype.

    Reference:
        Arras, Osman, Samek: CLEVR-XAI, Information Fusion 2022; ``RelevanceRankAccuracy`` in Quantus is r.
    """
    return _ranked(_rank_accuracy, attention, masks, resolution, valid, distinct)


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
    return _ranked(_pointing_game, attention, masks, resolution, valid, distinct)


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
    return _ranked(_auc, attention, masks, resolution, valid, distinct)


def shuffled_auc(
    attention: Attention,
    masks: Masks,
    *,
    negatives: Bool[Tensor, "Q 3 H W"] | Float[Tensor, "Q 3 H W"],
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
    others = clip_levels(checked_masks(negatives))
    if others.shape[-2:] != masks.shape[-2:]:
        raise ShapeError(explain(f"negatives is {describe(negatives)}", f"masks of size {tuple(masks.shape[-2:])}"))
    size_hw = attention.shape[-2:] if resolution == "grid" else masks.shape[-2:]
    same = others.shape[-2:] == size_hw
    averaged = others.float() if same else area_average(others, (int(size_hw[0]), int(size_hw[1])))
    often = averaged.to(accumulator(attention.device)).mean(0).flatten(1)
    if valid is not None:
        often = often[:, valid.flatten() > 0]

    def kernel(ranking: Ranking, levels: Float[Tensor, "M G"]) -> Float[Tensor, "N M"]:
        return _auc_against(ranking, levels, (1 - levels) * often.repeat(len(levels) // 3, 1))

    return _ranked(kernel, attention, masks, resolution, valid, distinct)


def _spearman(ranking: Ranking, levels: Float[Tensor, "M G"]) -> Float[Tensor, "N M"]:
    weights = ranking.weights / ranking.weights.sum()

    def standard(ranks: Float[Tensor, "M G"]) -> Float[Tensor, "M G"]:
        centred = ranks - (ranks * weights).sum(1, keepdim=True)
        variance = (centred**2 * weights).sum(1, keepdim=True)
        return torch.where(variance < CONSTANT_VARIANCE, torch.nan, centred / variance.sqrt())

    attention, level = standard(ranking.midranks()), standard(midranks(levels, ranking.weights))
    return ((attention * weights) @ level.T).clamp(-1, 1)


def _normalized_ap(ranking: Ranking, levels: Float[Tensor, "M G"]) -> Float[Tensor, "N M"]:
    mass = levels * ranking.weights
    total, area = mass.sum(1), _areas(ranking, levels)
    found = []
    for part in ranking.in_chunks(len(levels)):
        cumulated = part.cumulated(mass)
        # Precision at the end of each group of ties: equal cells are detected together.
        precision = cumulated.gather(2, part.last[:, None].expand_as(cumulated)) / part.up_to[:, None]
        gained = cumulated.diff(dim=2, prepend=torch.zeros_like(cumulated[..., :1]))
        found.append((precision * gained).sum(2))
    return _corrected(torch.cat(found) / total, area)


def _rank_accuracy(ranking: Ranking, levels: Float[Tensor, "M G"]) -> Float[Tensor, "N M"]:
    mass = levels * ranking.weights
    total, area = mass.sum(1), _areas(ranking, levels)
    wanted = total.round()
    found = []
    for part in ranking.in_chunks(len(levels)):
        cumulated = part.cumulated(mass)
        place = torch.searchsorted(part.reached, wanted.expand(len(part), -1).contiguous())
        place = place.clamp(max=part.order.shape[1] - 1)
        first, last = part.first.gather(1, place), part.last.gather(1, place)
        above, up_to = before(part.reached, first), part.reached.gather(1, last)
        inside_above = before(cumulated, first[..., None])[..., 0]
        inside_group = cumulated.gather(2, last[..., None])[..., 0] - inside_above
        found.append(inside_above + inside_group * ((wanted - above) / (up_to - above)).clamp(0, 1))
    return _corrected(torch.cat(found) / total, area).masked_fill(wanted == 0, torch.nan)


def _pointing_game(ranking: Ranking, levels: Float[Tensor, "M G"]) -> Float[Tensor, "N M"]:
    largest = torch.zeros_like(ranking.reached).scatter_(1, ranking.order, (ranking.first == 0).to(ranking.reached))
    return (largest / largest.sum(1, keepdim=True)) @ (levels >= 0.5).to(largest).T


def _auc(ranking: Ranking, levels: Float[Tensor, "M G"]) -> Float[Tensor, "N M"]:
    positive = levels * ranking.weights
    inside = positive.sum(1)
    outside = ranking.weights.sum() - inside
    # Pairs among the positives themselves split evenly, n₁² / 2; what is left are positives above negatives.
    value = (ranking.midranks() @ positive.T - inside**2 / 2) / (inside * outside)
    return value.clamp(0, 1).masked_fill(1 - _areas(ranking, levels) < EMPTY_SHARE, torch.nan)


def _auc_against(
    ranking: Ranking, levels: Float[Tensor, "M G"], negatives: Float[Tensor, "M G"]
) -> Float[Tensor, "N M"]:
    positive, negative = levels * ranking.weights, negatives * ranking.weights
    total = negative.sum(1)
    found = []
    for part in ranking.in_chunks(len(levels)):
        cumulated = part.cumulated(negative)
        up_to = cumulated.gather(2, part.last[:, None].expand_as(cumulated))
        above = before(cumulated, part.first[:, None].expand_as(cumulated))
        below = total[:, None] - up_to + (up_to - above) / 2
        found.append((positive[:, part.order].movedim(1, 0) * below).sum(2))
    value = (torch.cat(found) / (positive.sum(1) * total)).clamp(0, 1)
    return value.masked_fill(total / ranking.weights.sum() < EMPTY_SHARE, torch.nan)


OF_RANKS: dict[str, RankKernel] = {
    "spearman": _spearman,
    "normalized_ap": _normalized_ap,
    "rank_accuracy": _rank_accuracy,
    "pointing_game": _pointing_game,
    "auc": _auc,
}
"""The metrics of this module that need nothing but attention and masks, as functions of a ranking, by name."""


def _areas(ranking: Ranking, levels: Float[Tensor, "M G"]) -> Float[Tensor, " M"]:
    return (levels @ ranking.weights) / ranking.weights.sum()


def _corrected(value: Float[Tensor, "N M"], area: Float[Tensor, " M"]) -> Float[Tensor, "N M"]:
    return ((value - area) / (1 - area)).masked_fill(1 - area < EMPTY_SHARE, torch.nan)


def _ranked(
    kernel: RankKernel, attention: Attention, masks: Masks, resolution: Resolution, valid: Valid, distinct: Distinct
) -> Values:
    check_arguments(attention, masks, resolution, valid)
    if resolution == "image":
        return like(attention, image_ranked(kernel, attention, masks, distinct))
    grid_hw = (int(attention.shape[-2]), int(attention.shape[-1]))
    regions = Regions.from_masks(masks, grid_hw, valid=valid, distinct=distinct)
    return like(attention, grid_ranked([kernel], attention, regions)[0])
