"""Rank metrics of N maps against M levels: functions of a ranking, cumulative sums and matrix products.

They do not mind levels that are empty or not distinct: whoever calls them sets those NaN.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from arrcoc_sam.granularity.moments import CONSTANT_VARIANCE
from arrcoc_sam.granularity.ranks import Ranking, RankKernel, before, midranks
from arrcoc_sam.granularity.regions import EMPTY_SHARE

__all__ = ["OF_RANKS", "area_under_curve", "area_under_curve_against"]


Levels: TypeAlias = Float[Tensor, "M G"] | Bool[Tensor, "M G"]


def _spearman(ranking: Ranking, levels: Levels) -> Float[Tensor, "N M"]:
    weights = ranking.weights / ranking.weights.sum()

    def standard(ranks: Float[Tensor, "M G"]) -> Float[Tensor, "M G"]:
        centred = ranks - (ranks * weights).sum(1, keepdim=True)
        variance = (centred**2 * weights).sum(1, keepdim=True)
        return torch.where(variance < CONSTANT_VARIANCE, torch.nan, centred / variance.sqrt())

    attention = standard(ranking.midranks)
    level = standard(midranks(levels.to(ranking.weights), ranking.weights))
    return ((attention * weights) @ level.T).clamp(-1, 1)


def _normalized_ap(ranking: Ranking, levels: Levels) -> Float[Tensor, "N M"]:
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


def _rank_accuracy(ranking: Ranking, levels: Levels) -> Float[Tensor, "N M"]:
    if levels.dtype == torch.bool and ranking.unweighted:
        return _rank_accuracy_of_sets(ranking, levels)
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


def _rank_accuracy_of_sets(ranking: Ranking, levels: Bool[Tensor, "M G"]) -> Float[Tensor, "N M"]:
    """The same for sets of cells of weight 1: only the cells inside are looked at, and nothing is summed."""
    found = ranking.reached.new_full((len(ranking), len(levels)), torch.nan)
    group = ranking.group.to(torch.int32)
    for number, level in enumerate(levels):
        inside = level.nonzero()[:, 0]
        wanted = len(inside)
        if wanted == 0:
            continue
        first, last = ranking.first[:, wanted - 1], ranking.last[:, wanted - 1]  # the ties at the boundary
        cells = group[:, inside]
        above = torch.count_nonzero(cells < first[:, None], dim=1)
        tied = torch.count_nonzero(cells == first[:, None], dim=1)
        found[:, number] = (above + tied * ((wanted - first) / (last - first + 1))) / wanted
    return _corrected(found, _areas(ranking, levels))


def _pointing_game(ranking: Ranking, levels: Levels) -> Float[Tensor, "N M"]:
    largest = torch.zeros_like(ranking.reached).scatter_(1, ranking.order, (ranking.first == 0).to(ranking.reached))
    return (largest / largest.sum(1, keepdim=True)) @ (levels >= 0.5).to(largest).T


def area_under_curve(ranking: Ranking, levels: Levels) -> Float[Tensor, "N M"]:
    """Area under the ROC curve: the share of (positive, negative) pairs in order, ties by half."""
    positive = levels * ranking.weights
    inside = positive.sum(1)
    outside = ranking.weights.sum() - inside
    # Pairs among the positives themselves split evenly, n₁² / 2; what is left are positives above negatives.
    value = (ranking.midranks @ positive.T - inside**2 / 2) / (inside * outside)
    return value.clamp(0, 1).masked_fill(1 - _areas(ranking, levels) < EMPTY_SHARE, torch.nan)


def area_under_curve_against(ranking: Ranking, levels: Levels, negatives: Float[Tensor, "M G"]) -> Float[Tensor, "N M"]:
    """Area under the ROC curve against negatives of their own, one weight a cell and level."""
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
    "auc": area_under_curve,
}
"""Rank metrics that need nothing but attention and masks, by name."""


def _areas(ranking: Ranking, levels: Levels) -> Float[Tensor, " M"]:
    return (levels.to(ranking.weights) @ ranking.weights) / ranking.weights.sum()


def _corrected(value: Float[Tensor, "N M"], area: Float[Tensor, " M"]) -> Float[Tensor, "N M"]:
    return ((value - area) / (1 - area)).masked_fill(1 - area < EMPTY_SHARE, torch.nan)
