"""What the linear metrics need to know of attention and levels: shares, areas and two variances.

All of them are sums of products, so that N maps against K prompts are one matrix product, on the grid or, by way of
the adjoint of the upsampling (:mod:`arrcoc_sam.granularity.adjoint`), at the image's resolution.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from arrcoc_sam.granularity.regions import EMPTY_SHARE, Regions, accumulator, levels_from_shells

__all__ = ["CONSTANT_VARIANCE", "Moments", "grid_moments", "moments_of_shares", "with_background"]

CONSTANT_VARIANCE = 1e-12
"""A map whose deviation is below a millionth of its mean is constant: float32 leaves that of uniform attention."""


@dataclass(frozen=True)
class Moments:
    """Moments of N maps and of the levels of K prompts, over cells or pixels weighted by validity.

    Attributes:
        share: Share of the attention in the shell of whole, part, subpart, and in the background, (N, K, 4), sum 1.
        area: Share of the area in the same four, (K, 4), sum 1.
        attention_variance: Variance of density / mean density, (N, 1), or (N, K) for maps that depend on the prompt.
        level_variance: Variance of whole, part, subpart as functions in [0, 1], (K, 3).
        distinct: Which levels count, (K, 3).
    """

    share: Float[Tensor, "N K 4"]
    area: Float[Tensor, "K 4"]
    attention_variance: Float[Tensor, "N k"]
    level_variance: Float[Tensor, "K 3"]
    distinct: Bool[Tensor, "K 3"]

    @property
    def level_share(self) -> Float[Tensor, "N K 3"]:
        """p: the share of the attention inside whole, part, subpart."""
        return levels_from_shells(self.share[..., :3]).clamp(max=1.0)

    @property
    def level_area(self) -> Float[Tensor, "K 3"]:
        """a: the share of the area of whole, part, subpart."""
        return levels_from_shells(self.area[..., :3]).clamp(max=1.0)

    def only_defined(self, values: Float[Tensor, "N K 3"]) -> Float[Tensor, "N K 3"]:
        """The values, NaN where a level is empty or not distinct."""
        return values.masked_fill(~(self.distinct & (self.level_area > 0)), torch.nan)

    def shell_densities(self) -> tuple[Float[Tensor, "N K 3"], Float[Tensor, "N K 3"]]:
        """Density in each level's shell and in the shell around it, over the mean density; NaN in an empty shell."""
        area = torch.cat([self.area[:, :3], torch.where(self.area[:, 3:] > EMPTY_SHARE, self.area[:, 3:], 0.0)], dim=1)
        density = torch.where(area > 0, self.share / area, torch.nan)
        # Around level l lies the shell of the last distinct level above it, or the background, number -1 → 3.
        numbers = torch.arange(3, device=area.device).expand_as(self.distinct)
        above = torch.where(self.distinct, numbers, -1).cummax(1).values
        around = torch.cat([torch.full_like(above[:, :1], -1), above[:, :2]], dim=1) % 4
        return density[..., :3], density.gather(2, around.expand(len(density), -1, -1))


def grid_moments(attention: Float[Tensor, "N h w"] | Float[Tensor, "N K h w"], regions: Regions) -> Moments:
    """Moments over the cells of a grid.

    Args:
        attention: Mass per cell, >= 0, of N maps, or of N maps for each of the K prompts; any scale.
        regions: Levels on the same grid.

    Returns:
        Moments in float64.
    """
    dtype = accumulator(attention.device)
    weights = _weights(regions)
    covered = weights > 0
    mass = attention.to(dtype).flatten(-2) * covered
    mass = mass / mass.sum(-1, keepdim=True)
    density = torch.where(covered, mass / weights, 1.0)
    product = "ng,ksg->nks" if attention.ndim == 3 else "nkg,ksg->nks"
    shares = torch.einsum(product, mass, regions.shells.to(dtype).flatten(-2))
    variance = ((density - 1) ** 2 * weights).sum(-1)
    return moments_of_shares(shares, regions, variance[:, None] if attention.ndim == 3 else variance)


def moments_of_shares(
    shares: Float[Tensor, "N K 3"], regions: Regions, attention_variance: Float[Tensor, "N k"] | None = None
) -> Moments:
    """Moments of maps of which the share in each shell is known already.

    Args:
        shares: Share of the attention in the shells of whole, part, subpart.
        regions: The levels.
        attention_variance: Variance of density / mean density; NaN when not given.
    """
    weights = _weights(regions)
    shells = regions.shells.to(weights).flatten(-2)
    area = torch.einsum("ksg,g->ks", shells, weights)
    centred = shells.flip(1).cumsum(1).flip(1) - levels_from_shells(area)[..., None]
    if attention_variance is None:
        attention_variance = shares.new_full((len(shares), 1), torch.nan)
    return Moments(
        share=with_background(shares.to(weights)),
        area=with_background(area),
        attention_variance=attention_variance,
        level_variance=(centred**2 * weights).sum(-1),
        distinct=regions.distinct,
    )


def _weights(regions: Regions) -> Float[Tensor, " G"]:
    """Weight of every cell, sum 1."""
    weights = regions.valid.to(accumulator(regions.shells.device)).flatten()
    return weights / weights.sum()


def with_background(shells: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 4"]:
    """Shares of the three shells, and the rest, 1 − their sum, as a fourth."""
    return torch.cat([shells, (1 - shells.sum(-1, keepdim=True)).clamp(min=0.0)], dim=-1)
