"""Rank metrics of N maps against M levels: functions of a ranking, cumulative sums and matrix products.

They do not mind levels that are empty or not distinct: whoever calls them sets those NaN.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from arrcoc_sam.granularity.moments import CONSTANT_VARIANCE
from arrcoc_sam.granularity.ranks import Levels, LevelSets, Ranking, RankKernel, before, midranks
from arrcoc_sam.granularity.regions import EMPTY_SHARE

__all__ = ["OF_RANKS", "area_under_curve", "area_under_curve_against", "soft"]


# Elements of levels that are turned into floats at a time.
_PIECE = 1 << 20


def _spearman(ranking: Ranking, levels: Levels) -> Float[Tensor, "N M"]:
    weights = ranking.weights / ranking.weights.sum()

    def standard(ranks: Float[Tensor, "M G"]) -> Float[Tensor, "M G"]:
        centred = ranks - (ranks * weights).sum(1, keepdim=True)
        variance = (centred**2 * weights).sum(1, keepdim=True)
        return torch.where(variance < CONSTANT_VARIANCE, torch.nan, centred / variance.sqrt())

    attention = standard(ranking.midranks) * weights
    if isinstance(levels, LevelSets):  # a set ranks its cells as it is, and its mean falls out against a centred map
        area = _areas(ranking, levels)
        variance = area * (1 - area)
        deviation = torch.where(variance < CONSTANT_VARIANCE, torch.nan, variance.sqrt())
        return (sums_inside(attention, levels) / deviation).clamp(-1, 1)
    return (attention @ standard(midranks(levels, ranking.weights)).T).clamp(-1, 1)


def _normalized_ap(ranking: Ranking, levels: Levels) -> Float[Tensor, "N M"]:
    return torch.cat([_normalized_ap_of(ranking, part) for part in soft(levels, ranking)], dim=1)


def _normalized_ap_of(ranking: Ranking, levels: Float[Tensor, "M G"]) -> Float[Tensor, "N M"]:
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
    if isinstance(levels, LevelSets) and ranking.unweighted:
        return _rank_accuracy_of_sets(ranking, levels)
    return torch.cat([_rank_accuracy_of_shares(ranking, part) for part in soft(levels, ranking)], dim=1)


def _rank_accuracy_of_shares(ranking: Ranking, levels: Float[Tensor, "M G"]) -> Float[Tensor, "N M"]:
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


def _rank_accuracy_of_sets(ranking: Ranking, levels: LevelSets) -> Float[Tensor, "N M"]:
    """The same for sets of cells of weight 1: only the cells inside are looked at, and nothing is summed."""
    found = ranking.reached.new_full((len(ranking), len(levels)), torch.nan)
    group = ranking.group.to(torch.int32)
    for number, inside in enumerate(levels.cells):
        wanted = len(inside)
        if wanted == 0:
            continue
        # The ties at the boundary; a single cell that lies there ties with nothing, and is looked up.
        first, last = ranking.first[:, wanted - 1], ranking.last[:, wanted - 1]
        cells, begin = group.index_select(1, inside), first.to(torch.int32)[:, None]
        above = torch.count_nonzero(cells < begin, dim=1)
        if torch.equal(first, last):
            tied = levels.masks[number, ranking.order[:, wanted - 1]]
        else:
            tied = torch.count_nonzero(cells == begin, dim=1)
        shared = (wanted - first).to(found) / (last - first + 1)
        found[:, number] = (above + tied * shared) / wanted
    return _corrected(found, _areas(ranking, levels))


def _pointing_game(ranking: Ranking, levels: Levels) -> Float[Tensor, "N M"]:
    largest = torch.zeros_like(ranking.reached).scatter_(1, ranking.order, (ranking.first == 0).to(ranking.reached))
    most = largest / largest.sum(1, keepdim=True)
    return torch.cat([most @ (part >= 0.5).to(most).T for part in soft(levels, ranking)], dim=1)


def area_under_curve(ranking: Ranking, levels: Levels) -> Float[Tensor, "N M"]:
    """Area under the ROC curve: the share of (positive, negative) pairs in order, ties by half."""
    weights = ranking.weights
    # The sums of ranks inside a level and, in the last row, its area, in one product.
    *sums, inside = sums_inside(torch.cat([ranking.midranks * weights, weights[None]]), levels)
    outside = weights.sum() - inside
    # Pairs among the positives themselves split evenly, n₁² / 2; what is left are positives above negatives.
    value: Tensor = (torch.stack(sums) - inside**2 / 2) / (inside * outside)
    return value.clamp(0, 1).masked_fill(outside / weights.sum() < EMPTY_SHARE, torch.nan)


def area_under_curve_against(
    ranking: Ranking, levels: Float[Tensor, "M G"], negatives: Float[Tensor, "M G"]
) -> Float[Tensor, "N M"]:
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


def sums_inside(values: Float[Tensor, "N G"], levels: Levels) -> Float[Tensor, "N M"]:
    """Σ value · level over the cells: a matrix product, of sets in pieces that stay in the caches as floats."""
    if not isinstance(levels, LevelSets):
        return values @ levels.T
    total = values.new_zeros(len(values), len(levels))
    step = max(1, _PIECE // len(levels))
    for start in range(0, values.shape[1], step):
        piece = slice(start, start + step)
        total.addmm_(values[:, piece], levels.masks[:, piece].to(values.dtype).T)
    return total


def soft(levels: Levels, ranking: Ranking) -> list[Float[Tensor, "M G"]]:
    """Levels as shares of cells; sets a triple at a time."""
    if not isinstance(levels, LevelSets):
        return [levels]
    return [levels.masks[start : start + 3].to(ranking.weights) for start in range(0, len(levels), 3)]


def _areas(ranking: Ranking, levels: Levels) -> Float[Tensor, " M"]:
    return sums_inside(ranking.weights[None], levels)[0] / ranking.weights.sum()


def _corrected(value: Float[Tensor, "N M"], area: Float[Tensor, " M"]) -> Float[Tensor, "N M"]:
    return ((value - area) / (1 - area)).masked_fill(1 - area < EMPTY_SHARE, torch.nan)
