"""Rank metrics over the image's pixels: maps are upsampled and sorted, once each, and judged against all levels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from arrcoc_sam.granularity.arguments import Attention, Distinct, Masks, Values
from arrcoc_sam.granularity.ranks import Levels, LevelSets, Ranking, RankKernel, tied
from arrcoc_sam.granularity.regions import accumulator, checked_masks
from arrcoc_sam.hierarchy.levels import clip_levels

__all__ = ["image_ranked"]

# Pixels that are ranked at a time: float64 arrays of up to 24 MB, which the C library's allocator reuses. Larger ones
# are mapped anew each time, and the page faults take longer than the work.
_RANKED = 3 << 20


def image_ranked(kernel: RankKernel, attention: Attention, masks: Masks, distinct: Distinct) -> Values:
    """A rank metric over pixels. Ranks are not linear, so here the maps are upsampled, a few at a time.

    Args:
        kernel: The metric.
        attention: Mass per cell, of N maps, or of N maps for each prompt.
        masks: Whole, part, subpart of K prompts at the image's size.
        distinct: Which levels count.

    Returns:
        (N, K, 3), NaN where a level is empty or not distinct or a map has no mass.
    """
    levels = clip_levels(checked_masks(masks))
    if attention.ndim == 3:
        values = _against_levels(kernel, attention, levels.flatten(0, 1), levels.shape[-2:])
        values = values.reshape(len(values), len(levels), 3)
    else:
        by_prompt = [
            _against_levels(kernel, attention[:, k], levels[k], levels.shape[-2:]) for k in range(attention.shape[1])
        ]
        values = torch.stack(by_prompt, dim=1)
    unknown = ~levels.flatten(-2).any(-1)
    if distinct is not None:
        unknown |= ~distinct.to(unknown.device)
    return values.masked_fill(unknown.to(values.device), torch.nan)


def _against_levels(
    kernel: RankKernel,
    attention: Float[Tensor, "N h w"],
    levels: Bool[Tensor, "M H W"] | Float[Tensor, "M H W"],
    size_hw: torch.Size,
) -> Float[Tensor, "N M"]:
    """The metric of every map against every level."""
    dtype = accumulator(attention.device)
    num_pixels = size_hw.numel()
    weights = torch.ones(num_pixels, dtype=dtype, device=attention.device)
    maps_at_once = max(1, _RANKED // num_pixels)
    flat = levels.flatten(1)
    given: Levels = LevelSets(flat) if flat.dtype == torch.bool else flat.to(dtype)
    found = []
    for start in range(0, len(attention), maps_at_once):
        maps = attention[start : start + maps_at_once, None].to(dtype)
        pixels = F.interpolate(maps, size=size_hw, mode="bilinear", align_corners=False).flatten(1)
        ranking = Ranking.of(tied(pixels, weights), weights)
        found.append(kernel(ranking, given).masked_fill(ranking.undefined[:, None], torch.nan))
    return torch.cat(found)
