"""Attention as an order of cells, ties included: what the rank metrics stand on.

A map is sorted once; everything after is a cumulative sum or a matrix product over all levels. Cells are weighted by
the share that the image covers, and levels may be soft: a cell that belongs to a level by M counts as M of a positive
and 1 − M of a negative.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float, Int32, Int64
from torch import Tensor

from arrcoc_sam.granularity.arguments import Attention, Values
from arrcoc_sam.granularity.regions import Regions, accumulator

__all__ = ["LevelSets", "Levels", "RankKernel", "Ranking", "grid_ranked", "midranks", "tied"]

# What differs by less ties, as a share of a cell or of the mean density: float32 leaves that much of equal values.
_TIE = 1e-6

# Elements of (maps, levels, cells) that one gather may make.
_CHUNK = 1 << 24


@dataclass(frozen=True)
class Ranking:
    """N maps over G weighted cells, sorted in descending order, with their groups of ties.

    Attributes:
        order: The cells of each map from the largest density down, (N, G).
        first: At each place of the order, where its group of ties begins, (N, G).
        last: … and where it ends, inclusive, (N, G).
        weights: Weight of each cell, > 0, (G,).
        reached: Weight up to each place of the order, inclusive, (N, G).
        undefined: Maps without any mass, (N,).
    """

    order: Int64[Tensor, "N G"]
    first: Int64[Tensor, "N G"]
    last: Int64[Tensor, "N G"]
    weights: Float[Tensor, " G"]
    reached: Float[Tensor, "N G"]
    undefined: Bool[Tensor, " N"]

    @classmethod
    def of(cls, density: Float[Tensor, "N G"], weights: Float[Tensor, " G"]) -> Ranking:
        """Sort maps over cells of these weights."""
        ranked, order = density.sort(dim=1, descending=True, stable=True)
        places = torch.arange(order.shape[1], device=order.device).expand_as(order)
        begins = torch.ones_like(ranked, dtype=torch.bool)
        begins[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
        ends = begins.roll(-1, dims=1)  # the place before a beginning, and the last one, where the first wraps around
        return cls(
            order=order,
            first=torch.where(begins, places, 0).cummax(1).values,
            last=torch.where(ends, places, order.shape[1]).flip(1).cummin(1).values.flip(1),
            weights=weights,
            reached=weights[order].cumsum(1),
            undefined=(density == 0).all(1),
        )

    def __len__(self) -> int:
        """N."""
        return len(self.order)

    @property
    def up_to(self) -> Float[Tensor, "N G"]:
        """Weight of all cells at least as large as the one at each place, its ties included."""
        return self.reached.gather(1, self.last)

    @property
    def above(self) -> Float[Tensor, "N G"]:
        """Weight of all cells larger than the one at each place."""
        return before(self.reached, self.first)

    @cached_property
    def midranks(self) -> Float[Tensor, "N G"]:
        """Weight of smaller cells and half that of equal ones, cell by cell."""
        below = self.weights.sum() - self.up_to
        ranks = torch.zeros_like(self.reached)
        return ranks.scatter_(1, self.order, below + (self.up_to - self.above) / 2)

    @cached_property
    def group(self) -> Int64[Tensor, "N G"]:
        """Where the group of ties of each cell begins in the order: the same for equal cells, more for smaller ones."""
        return torch.zeros_like(self.first).scatter_(1, self.order, self.first)

    @cached_property
    def unweighted(self) -> bool:
        """Whether every cell weighs 1."""
        return bool((self.weights == 1).all())

    def select(self, index: slice) -> Ranking:
        """Some of the maps."""
        rows = {name: getattr(self, name)[index] for name in ("order", "first", "last", "reached", "undefined")}
        return Ranking(weights=self.weights, **rows)

    def in_chunks(self, num_levels: int) -> list[Ranking]:
        """Groups of maps small enough to gather ``num_levels`` levels in the order of each."""
        size = max(1, _CHUNK // (num_levels * self.order.shape[1]))
        return [self.select(slice(start, start + size)) for start in range(0, len(self), size)]

    def cumulated(self, mass: Float[Tensor, "M G"]) -> Float[Tensor, "N M G"]:
        """Sums of levels' mass along each map's order, inclusive."""
        return mass[:, self.order].movedim(1, 0).cumsum(-1)


def before(cumulated: Float[Tensor, "*batch G"], place: Int64[Tensor, "*batch P"]) -> Float[Tensor, "*batch P"]:
    """A cumulative sum up to but not including each place."""
    return torch.where(place > 0, cumulated.gather(-1, (place - 1).clamp(min=0)), 0.0)


def tied(density: Float[Tensor, "N G"], weights: Float[Tensor, " G"]) -> Float[Tensor, "N G"]:
    """Maps in whole millionths of their mean density, so that what differs by rounding alone ties.

    Uniform attention is not quite uniform after a division by the share of a cell that the image covers, nor after an
    interpolation: its order would be that of the padding, or of the grid.
    """
    mean = (density @ weights) / weights.sum()
    scale = 1 / (_TIE * mean.masked_fill(mean == 0, 1.0))
    return (density * scale[:, None]).round_()


def midranks(levels: Float[Tensor, "M G"], weights: Float[Tensor, " G"]) -> Float[Tensor, "M G"]:
    """Weighted ranks of each level's cells, ties sharing the middle. A set of whole cells ranks them as it is.

    Shares that differ by less than a millionth tie, as in :func:`tied`.
    """
    if bool(((levels == 0) | (levels == 1)).all()):
        return levels
    return Ranking.of((levels / _TIE).round(), weights).midranks


@dataclass(frozen=True)
class LevelSets:
    """Levels that are sets of cells, not shares of them.

    Attributes:
        masks: (M, G).
    """

    masks: Bool[Tensor, "M G"]

    def __len__(self) -> int:
        """M."""
        return len(self.masks)

    @cached_property
    def cells(self) -> list[Int32[Tensor, " _"]]:
        """The cells of each level."""
        return [mask.nonzero()[:, 0].int() for mask in self.masks]


Levels: TypeAlias = Float[Tensor, "M G"] | LevelSets
"""Levels over G cells, soft or sets."""

RankKernel: TypeAlias = Callable[[Ranking, Levels], Float[Tensor, "N M"]]
"""A rank metric of N maps against M levels; it need not mind levels that are empty or not distinct."""


def grid_ranked(kernels: Sequence[RankKernel], attention: Attention, regions: Regions) -> list[Values]:
    """Rank metrics over the cells of a grid.

    Args:
        kernels: The metrics.
        attention: Mass per cell, of N maps, or of N maps for each prompt.
        regions: Levels on the same grid.

    Returns:
        (N, K, 3) a kernel, float64, NaN where a level is empty or not distinct or a map has no mass.
    """
    dtype = accumulator(attention.device)
    weights = regions.valid.flatten().to(dtype)
    covered = weights > 0
    weights = weights[covered]
    density = attention.to(dtype).flatten(-2)[..., covered] / weights
    levels = regions.levels.to(dtype).flatten(-2)[..., covered]
    num_prompts = len(levels)
    if attention.ndim == 3:
        ranking = Ranking.of(tied(density, weights), weights)
        found = [kernel(ranking, levels.flatten(0, 1)).reshape(-1, num_prompts, 3) for kernel in kernels]
        undefined = ranking.undefined[:, None]
    else:
        rankings = [Ranking.of(tied(density[:, k], weights), weights) for k in range(num_prompts)]
        found = [
            torch.stack([kernel(ranking, levels[k]) for k, ranking in enumerate(rankings)], dim=1) for kernel in kernels
        ]
        undefined = torch.stack([ranking.undefined for ranking in rankings], dim=1)
    undefined = undefined[..., None] | ~regions.distinct | ~(levels > 0).any(-1)
    return [values.masked_fill(undefined, torch.nan) for values in found]
