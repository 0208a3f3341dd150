"""Masks from the image's positions: SAM's upscaling as it is, and two ways to the same numbers in less time.

SAM upscales an embedding by two transposed convolutions whose windows don't overlap, normalises the channels of each
pixel between them, and multiplies each pixel by a vector a mask. The transformer leaves each position's channels side
by side in memory. segment-anything moves them apart first; here they stay together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn

__all__ = ["Upscaling", "banded_masks", "convolved_masks", "is_plain", "multiplied_masks"]

Upscaling: TypeAlias = Callable[[Any, Tensor, Tensor, tuple[int, int]], Tensor]
"""A way from positions to masks; see :func:`convolved_masks`."""

# Positions of all prompts in a band of rows: what they become in SAM, 2 KiB each, stays in a core's cache.
_BAND = 1024


def is_plain(upscaling: nn.Module) -> bool:
    """Whether these are segment-anything's own layers, of which the ways below are made."""
    kinds = [nn.ConvTranspose2d, LayerNorm2d, nn.GELU, nn.ConvTranspose2d, nn.GELU]
    if not isinstance(upscaling, nn.Sequential) or [type(layer) for layer in upscaling] != kinds:
        return False
    convolutions: list[Any] = [upscaling[0], upscaling[3]]
    return all(each.kernel_size == each.stride == (2, 2) and each.bias is not None for each in convolutions)


def convolved_masks(
    upscaling: Any, positions: Float[Tensor, "k n C"], weights: Float[Tensor, "k m c"], grid_hw: tuple[int, int]
) -> Float[Tensor, "k m H W"]:
    """``weights @ upscaling(positions)`` by the layers themselves, whichever they are.

    Args:
        upscaling: The decoder's layers.
        positions: The image side of the two-way transformer's answer, row by row.
        weights: A vector for each mask, from the hypernetworks.
        grid_hw: Rows and columns of positions.

    Returns:
        Logits, of SAM's layers at four times the grid's size.
    """
    count, _, channels = positions.shape
    upscaled: Tensor = upscaling(positions.transpose(1, 2).reshape(count, channels, *grid_hw))
    return (weights @ upscaled.flatten(2)).reshape(*weights.shape[:2], *upscaled.shape[-2:])


def banded_masks(
    upscaling: Any, positions: Float[Tensor, "k n C"], weights: Float[Tensor, "k m c"], grid_hw: tuple[int, int]
) -> Float[Tensor, "k m H W"]:
    """As :func:`convolved_masks` for layers that are plain, a band of rows at a time: for a CPU, without gradients."""
    columns = grid_hw[1]
    step = max(1, _BAND // max(1, len(positions) * columns)) * columns
    bands = [_band(upscaling, band, weights, columns) for band in torch.split(positions, step, dim=1)]
    return torch.cat(bands, dim=2)


def _band(
    upscaling: Any, positions: Float[Tensor, "k n C"], weights: Float[Tensor, "k m c"], columns: int
) -> Float[Tensor, "k m H W"]:
    first, norm, _, second, _ = upscaling
    count, size, channels = positions.shape
    grid = positions.reshape(count, size // columns, columns, channels)
    pixels: Tensor = first(grid.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    pixels = F.gelu(F.layer_norm(pixels, pixels.shape[-1:], norm.weight, norm.bias, norm.eps))
    pixels = F.gelu(second(pixels.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
    return (weights @ pixels.flatten(1, 2).transpose(1, 2)).reshape(*weights.shape[:2], *pixels.shape[1:3])


def multiplied_masks(
    upscaling: Any, positions: Float[Tensor, "k n C"], weights: Float[Tensor, "k m c"], grid_hw: tuple[int, int]
) -> Float[Tensor, "k m H W"]:
    """As :func:`convolved_masks` for layers that are plain, by matrix products, whose gradients are cheap.

    The 16 pixels of a position lie side by side until the end, where only the logits are put in their places.
    """
    first, norm, _, second, _ = upscaling
    pixels = _four_pixels(first, positions)
    pixels = F.gelu(F.layer_norm(pixels, pixels.shape[-1:], norm.weight, norm.bias, norm.eps))
    products = F.gelu(_four_pixels(second, pixels)) @ weights.transpose(1, 2)  # (k, 16 n, m)
    count, masks = weights.shape[:2]
    placed = products.reshape(count, *grid_hw, 2, 2, 2, 2, masks).permute(0, 7, 1, 3, 5, 2, 4, 6)
    return placed.reshape(count, masks, 4 * grid_hw[0], 4 * grid_hw[1])


def _four_pixels(convolution: Any, positions: Float[Tensor, "k n c"]) -> Float[Tensor, "k p o"]:
    """A transposed 2 × 2 convolution of stride 2: of each position two pixels down, two across."""
    weight = convolution.weight.permute(2, 3, 1, 0).flatten(0, 2)
    pixels = F.linear(positions, weight, convolution.bias.repeat(4))
    return pixels.reshape(len(positions), 4 * positions.shape[1], convolution.out_channels)
