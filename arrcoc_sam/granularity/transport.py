"""How far attention would have to travel to lie evenly on a level: sliced Wasserstein distance."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from arrcoc_sam.errors import InputError, explain
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
from arrcoc_sam.granularity.regions import Regions, accumulator

__all__ = ["grid_transport", "sliced_wasserstein"]

NUM_DIRECTIONS = 32


def sliced_wasserstein(
    attention: Attention,
    masks: Masks,
    *,
    resolution: Resolution = "grid",
    valid: Valid = None,
    distinct: Distinct = None,
    num_directions: int = NUM_DIRECTIONS,
) -> Values:
    """Sliced Wasserstein-1 distance of attention from the even distribution on a level, over the image's diagonal.

    The mean over directions, evenly spaced over half a turn, of the distance between the two projections. Lower is
    better, unlike all other metrics, and small levels can only be near to attention that is concentrated.

    Args:
        attention: Attention, >= 0.
        masks: Whole, part, subpart.
        resolution: "grid"; at "image" the maps are upsampled (transport is not linear), which takes time and memory.
        valid: Cell weights.
        distinct: Which levels count.
        num_directions: Number of directions.

    Returns:
        In [0, 1]; NaN where the level is empty.

    Raises:
        ShapeError: Shapes that do not agree.
        InputError: Negative or non-finite attention, masks of another dtype, no direction.

    Reference:
        J. Rabin, G. Peyré, J. Delon, M. Bernot: Wasserstein Barycenter and its Application to Texture Mixing, 2011.
    """
    check_arguments(attention, masks, resolution, valid)
    if num_directions < 1:
        raise InputError(explain(f"num_directions is {num_directions}", "at least 1"))
    grid_hw = (int(attention.shape[-2]), int(attention.shape[-1]))
    if resolution == "grid":
        regions = Regions.from_masks(masks, grid_hw, valid=valid, distinct=distinct)
        return like(attention, grid_transport(attention, regions, num_directions=num_directions))
    size_hw = (int(masks.shape[-2]), int(masks.shape[-1]))
    rows = []
    for maps in attention.to(accumulator(attention.device)):
        stacked = maps[None] if maps.ndim == 2 else maps
        pixels = torch.nn.functional.interpolate(stacked[None], size=size_hw, mode="bilinear", align_corners=False)[0]
        row = []
        for k in range(len(masks)):
            flags = None if distinct is None else distinct[k : k + 1]
            regions = Regions.from_masks(masks[k : k + 1], size_hw, distinct=flags)
            row.append(grid_transport(pixels[k % len(pixels)][None], regions, num_directions=num_directions))
        rows.append(torch.cat(row, dim=1))
    return like(attention, torch.cat(rows))


def grid_transport(attention: Attention, regions: Regions, *, num_directions: int = NUM_DIRECTIONS) -> Values:
    """:func:`sliced_wasserstein` over the cells of a grid, (N, K, 3) in float64."""
    dtype, device = accumulator(attention.device), attention.device
    weights = regions.valid.flatten().to(dtype)
    covered = weights > 0
    height, width = regions.grid_hw
    y = (torch.arange(height, dtype=dtype, device=device) + 0.5) * regions.cell_hw[0]
    x = (torch.arange(width, dtype=dtype, device=device) + 0.5) * regions.cell_hw[1]
    places = torch.cartesian_prod(y, x)[covered]
    rows, columns = (regions.valid > 0).any(1), (regions.valid > 0).any(0)
    diagonal = math.hypot(int(rows.sum()) * regions.cell_hw[0], int(columns.sum()) * regions.cell_hw[1])

    mass = attention.to(dtype).flatten(-2)[..., covered]
    mass = mass / mass.sum(-1, keepdim=True)
    even = (regions.levels.to(dtype).flatten(-2) * weights)[..., covered]
    even = even / even.sum(-1, keepdim=True)
    defined = regions.distinct & even.isfinite().all(-1)
    even = even.nan_to_num(nan=0.0)
    present = mass.isfinite().all(-1, keepdim=True)

    total = torch.zeros((), dtype=dtype, device=device)
    for number in range(num_directions):
        angle = math.pi * number / num_directions
        projected = places @ torch.tensor([math.sin(angle), math.cos(angle)], dtype=dtype, device=device)
        place, order = projected.sort()
        gaps = place.diff()
        # W1 on a line is the area between the distribution functions; both are scaled by the gaps beforehand.
        there = mass.nan_to_num(nan=0.0)[..., order].cumsum(-1)[..., :-1] * gaps
        here = even[..., order].cumsum(-1)[..., :-1] * gaps
        total = total + _cityblock(there, here)
    values = total / (num_directions * diagonal)
    return values.masked_fill(~(defined & (present if mass.ndim == 3 else present[..., None])), torch.nan)


def _cityblock(maps: Float[Tensor, " N *K G"], levels: Float[Tensor, "K 3 G"]) -> Float[Tensor, "N K 3"]:
    if maps.ndim == 2:
        return torch.cdist(maps, levels.flatten(0, 1), p=1.0).reshape(len(maps), *levels.shape[:2])
    distances: Tensor = torch.cdist(maps.movedim(1, 0), levels, p=1.0).movedim(0, 1)
    return distances
