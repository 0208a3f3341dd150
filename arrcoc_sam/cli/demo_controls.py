"""Attention whose level is known, planted in a scene: what the analysis has to find, and what it has to leave alone."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from arrcoc_sam.attention import AttentionMaps
from arrcoc_sam.hierarchy.levels import LEVELS

__all__ = ["planted_maps"]

PLANTED_DENSITY = 6.0
"""Density of planted attention inside its level, with 1 outside."""


def planted_maps(levels: Bool[Tensor, "3 H W"], like: AttentionMaps) -> AttentionMaps:
    """A map for each level that attends to all of that level alike, and uniform attention.

    Args:
        levels: Whole, part and subpart at the image's size.
        like: Maps whose grid, frame and padding the planted ones get.

    Returns:
        "planted: whole", "planted: part", "planted: subpart" and "control: uniform".
    """
    inside = like.transform.masks_to_grid(levels, like.grid_hw).to(torch.float32)
    density = torch.cat([1 + (PLANTED_DENSITY - 1) * inside, torch.ones_like(inside[:1])])
    return AttentionMaps.from_values(
        density * like.valid.cpu(),
        names=[*(f"planted: {level}" for level in LEVELS), "control: uniform"],
        transform=like.transform,
        valid=like.valid.cpu(),
    )
