"""Plain scenes, generator version 1: contours in contours, with procedural surfaces.

A scene is a background, one to five *wholes* painted one over another, each with parts, these with subparts. A child is
a contour placed inside its parent and clipped to it, or a cut that takes one side of it (a hem, a lid). Every surface
has a colour away from its parent's, a texture, shading; the image is lit unevenly, blurred and given noise. The
arithmetic is float64, so that a seed gives the same bytes on any machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from arrcoc_sam.scenes.canvas import MAX_NODES, Canvas, Patch, Window, cropped
from arrcoc_sam.scenes.contours import Placement, rasterize, sample_contour
from arrcoc_sam.scenes.textures import Color, sample_color, sample_texture, value_noise

__all__ = ["paint_plain", "photograph_plain"]


@dataclass(frozen=True)
class _Region:
    """A painted node: its own coverage before anything was painted over it."""

    node: int
    level: int
    patch: Patch
    color: Color


def paint_plain(rng: np.random.Generator, size: int) -> Canvas:
    """Background and objects, from the farthest to the nearest."""
    background = sample_color(rng, [], distance=0.0)
    canvas = Canvas(sample_texture(rng, (size, size), background), np.zeros((size, size), np.uint8))
    for _ in range(int(rng.integers(1, 5))):
        radius = size * rng.uniform(0.17, 0.45)
        aspect = float(np.exp(rng.uniform(-0.5, 0.5)))
        placement = Placement(
            (float(rng.uniform(0.12, 0.88) * size), float(rng.uniform(0.12, 0.88) * size)),
            (float(radius * np.sqrt(aspect)), float(radius / np.sqrt(aspect))),
            float(rng.uniform(0.0, 2 * np.pi)),
        )
        whole = _paint_contour(rng, canvas, placement, parent=None, away_from=[background])
        if whole is not None:
            _paint_children(rng, canvas, whole, away_from=[background])
    return canvas


def _paint_children(rng: np.random.Generator, canvas: Canvas, parent: _Region, away_from: list[Color]) -> None:
    """Parts of a whole, or subparts of a part."""
    most = 4 if parent.level == 0 else 3
    for _ in range(int(rng.integers(1, most))):
        if len(canvas.parents) >= MAX_NODES:
            return
        if rng.random() < 0.25:
            child = _paint_cut(rng, canvas, parent, away_from)
        else:
            child = _paint_inside(rng, canvas, parent, away_from)
        if child is not None and child.level < 2 and rng.random() < 0.85:
            _paint_children(rng, canvas, child, away_from=[parent.color])


def _paint_inside(rng: np.random.Generator, canvas: Canvas, parent: _Region, away_from: list[Color]) -> _Region | None:
    """A child whose contour is centred on a random pixel of its parent."""
    rows, columns = np.nonzero(parent.patch.coverage > 0.5)
    if len(rows) < 16:
        return None
    pick = int(rng.integers(len(rows)))
    # towards the middle of the parent, more or less: few children sit right on the border
    pull = rng.uniform(0.0, 0.8)
    center_y = (1 - pull) * rows[pick] + pull * rows.mean() + parent.patch.window[0].start
    center_x = (1 - pull) * columns[pick] + pull * columns.mean() + parent.patch.window[1].start
    radius = float(np.sqrt(len(rows) / np.pi) * rng.uniform(0.35, 0.8))
    aspect = float(np.exp(rng.uniform(-0.6, 0.6)))
    placement = Placement(
        (float(center_x), float(center_y)),
        (float(radius * np.sqrt(aspect)), float(radius / np.sqrt(aspect))),
        float(rng.uniform(0.0, 2 * np.pi)),
    )
    return _paint_contour(rng, canvas, placement, parent, away_from)


def _paint_contour(
    rng: np.random.Generator, canvas: Canvas, placement: Placement, parent: _Region | None, away_from: list[Color]
) -> _Region | None:
    window, coverage, relative_radius = rasterize(sample_contour(rng), placement, canvas.size)
    if parent is not None:
        coverage = coverage * cropped(parent.patch, window)
    rim = 1.0 - rng.uniform(0.0, 0.35) * np.clip(relative_radius, 0.0, 1.0) ** 2  # rounder to the eye
    return _paint_region(rng, canvas, window, coverage, parent, away_from, shading=rim)


def _paint_cut(rng: np.random.Generator, canvas: Canvas, parent: _Region, away_from: list[Color]) -> _Region | None:
    """A child that is one side of a wavy line across its parent."""
    rows, columns = np.nonzero(parent.patch.coverage > 0.5)
    if len(rows) < 16:
        return None
    angle = rng.uniform(0.0, 2 * np.pi)
    height, width = parent.patch.coverage.shape
    y = np.arange(height)[:, None] - rows.mean()
    x = np.arange(width)[None, :] - columns.mean()
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    radius = np.sqrt(len(rows) / np.pi)
    wave = rng.uniform(0.0, 0.15) * radius * np.sin(across * (2 * np.pi / (radius * rng.uniform(0.6, 2.0))))
    side = np.clip(along + wave - rng.uniform(-0.2, 0.55) * radius + 0.5, 0.0, 1.0)
    return _paint_region(
        rng, canvas, parent.patch.window, parent.patch.coverage * side, parent, away_from, shading=None
    )


def _paint_region(
    rng: np.random.Generator,
    canvas: Canvas,
    window: Window,
    coverage: NDArray[np.float64],
    parent: _Region | None,
    away_from: list[Color],
    shading: NDArray[np.float64] | None,
) -> _Region | None:
    """Blends a surface into the window and notes the node."""
    if not (coverage > 0.5).any():
        return None
    inherited = [parent.color] if parent is not None else []
    color = sample_color(rng, [*inherited, *away_from], distance=rng.uniform(0.12, 0.4))
    shape_hw = (coverage.shape[0], coverage.shape[1])
    surface = sample_texture(rng, shape_hw, color)
    if shading is not None:
        surface = surface * shading[..., None]
    blend = coverage[..., None]
    canvas.image[window] = canvas.image[window] * (1.0 - blend) + surface * blend
    level = 0 if parent is None else parent.level + 1
    patch = Patch(window, coverage)
    return _Region(canvas.add_node(-1 if parent is None else parent.node, level, patch), level, patch, color)


def photograph_plain(rng: np.random.Generator, image: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Uneven light, blur, noise, and eight bits."""
    size = image.shape[0]
    light = 1.0 + rng.uniform(0.0, 0.35) * value_noise(rng, (size, size), 1, octaves=2)
    image = image * light[..., None]
    sigma = rng.uniform(0.0, 1.0) * size / 256
    if sigma > 0.15:
        image = gaussian_filter(image, (sigma, sigma, 0.0))
    image = image + rng.uniform(0.0, 0.04) * rng.uniform(-1.7, 1.7, image.shape)
    contrast, brightness = rng.uniform(0.75, 1.2), rng.uniform(-0.08, 0.08)
    image = (image - 0.5) * contrast + 0.5 + brightness
    return np.asarray(np.clip(np.rint(image * 255.0), 0, 255), dtype=np.uint8)
