"""Surfaces of rich scenes: procedural patterns and real photographs, in colours of the RGB cube and of photographs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from arrcoc_sam.scenes.photographs import crop_photograph, natural_color
from arrcoc_sam.scenes.textures import Color, sample_color, sample_texture

__all__ = ["Surface", "sample_look", "sample_surface"]

Surface = NDArray[np.float32]

_GREY = np.array([0.299, 0.587, 0.114], np.float32)


def sample_look(rng: np.random.Generator, away_from: list[Color], *, distance: float) -> Color:
    """A colour at least so far from some others; two in three are colours of photographs."""
    if rng.random() < 0.33:
        return sample_color(rng, away_from, distance=distance)
    best, best_distance = np.zeros(3), -1.0
    for _ in range(12):
        color = natural_color(rng)
        if color.mean() < 0.15 and rng.random() < 0.8:  # photographs are full of black
            continue
        nearest = min((float(np.sqrt(((color - other) ** 2).sum())) for other in away_from), default=np.inf)
        if nearest > best_distance:
            best, best_distance = color, nearest
        if nearest >= distance:
            break
    return best


def sample_surface(
    rng: np.random.Generator,
    shape_hw: tuple[int, int],
    color: Color,
    *,
    photograph: float = 0.4,
    contrast: tuple[float, float] = (0.02, 0.14),
) -> Surface:
    """A painted window.

    Args:
        rng: Source of randomness.
        shape_hw: Height and width in pixels.
        color: Its mean colour, about.
        photograph: Share of the surfaces that are crops of photographs.
        contrast: Smallest and largest standard deviation of such a crop.

    Returns:
        (H, W, 3) RGB, about in [0, 1], not clipped.
    """
    if rng.random() >= photograph:
        return sample_texture(rng, shape_hw, color).astype(np.float32)
    crop = crop_photograph(rng, shape_hw)
    if rng.random() < 0.5:  # its light and dark only
        crop = np.broadcast_to((crop @ _GREY)[..., None], crop.shape)
    mean = crop.mean(axis=(0, 1), dtype=np.float64)
    spread = float(np.sqrt(((crop - mean.astype(np.float32)) ** 2).mean(dtype=np.float64)))
    gain = min(rng.uniform(*contrast) / max(spread, 1e-3), 2.5)
    return np.asarray((crop - mean.astype(np.float32)) * np.float32(gain) + color.astype(np.float32))
