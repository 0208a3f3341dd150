"""Draws scenes of nested, textured, occluding objects from a seed.

A scene is a background, one to five *wholes* painted one over another, each with parts, these with subparts. A child is
a contour placed inside its parent and clipped to it, or a cut that takes one side of it (a hem, a lid). Every surface
has a colour away from its parent's, a texture, shading; the image is lit unevenly, blurred and given noise. The
arithmetic is float64, so that a seed gives the same bytes on any machine.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from arrcoc_sam.errors import InputError, explain
from arrcoc_sam.scenes.contours import Placement, rasterize, sample_contour
from arrcoc_sam.scenes.scene import Scene, node_masks
from arrcoc_sam.scenes.textures import Color, sample_color, sample_texture, value_noise

__all__ = ["GENERATOR_VERSION", "MAX_NODES", "generate_scene"]

GENERATOR_VERSION = 1
"""Raised whenever a seed gives another image or other masks than before."""

MAX_NODES = 60
"""A scene has no more nodes than this (their indices fit a byte, with room)."""

_MIN_AREA = 0.005  # of the image: smaller nodes are painted but not annotated
_MAX_SHARE = 0.75  # of its parent: a child that shows more of it is no level of its own
_MIN_SIZE = 32


@dataclass
class _Canvas:
    """What is painted so far."""

    image: NDArray[np.float64]
    labels: NDArray[np.uint8]
    parents: list[int] = field(default_factory=list)
    levels: list[int] = field(default_factory=list)

    @property
    def size(self) -> int:
        return int(self.labels.shape[0])


@dataclass(frozen=True)
class _Region:
    """A painted node: its own coverage before anything was painted over it."""

    node: int
    level: int
    window: tuple[slice, slice]
    coverage: NDArray[np.float64]
    color: Color


def generate_scene(seed: int, size: int = 256) -> Scene:
    """A scene with exact masks, the same for the same seed and size.

    Args:
        seed: Any non-negative integer.
        size: Side of the square image in pixels, at least 32.

    Returns:
        The scene; at least one node of level 0 with a part is annotated.

    Raises:
        InputError: ``size`` or ``seed`` out of range.

    Example:
        >>> scene = generate_scene(7, size=64)
        >>> child = int((scene.parents >= 0).argmax())  # the first node that lies in another
        >>> bool((scene.masks[child] <= scene.masks[scene.parents[child]]).all())
        True
    """
    if size < _MIN_SIZE:
        raise InputError(explain(f"size = {size}", f"at least {_MIN_SIZE} pixels"))
    if seed < 0:
        raise InputError(explain(f"seed = {seed}", "a non-negative integer"))
    for attempt in range(100):
        rng = np.random.default_rng(np.random.SeedSequence([GENERATOR_VERSION, seed, attempt]))
        canvas = _paint(rng, size)
        labels, parents, levels = _annotate(canvas)
        if (levels == 1).any():
            break
    image = _photograph(rng, canvas.image)
    return Scene(image, labels, parents, levels, seed=seed, version=GENERATOR_VERSION)


def _paint(rng: np.random.Generator, size: int) -> _Canvas:
    """Background and objects, from the farthest to the nearest."""
    background = sample_color(rng, [], distance=0.0)
    canvas = _Canvas(sample_texture(rng, (size, size), background), np.zeros((size, size), np.uint8))
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


def _paint_children(rng: np.random.Generator, canvas: _Canvas, parent: _Region, away_from: list[Color]) -> None:
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


def _paint_inside(rng: np.random.Generator, canvas: _Canvas, parent: _Region, away_from: list[Color]) -> _Region | None:
    """A child whose contour is centred on a random pixel of its parent."""
    rows, columns = np.nonzero(parent.coverage > 0.5)
    if len(rows) < 16:
        return None
    pick = int(rng.integers(len(rows)))
    # towards the middle of the parent, more or less: few children sit right on the border
    pull = rng.uniform(0.0, 0.8)
    center_y = (1 - pull) * rows[pick] + pull * rows.mean() + parent.window[0].start
    center_x = (1 - pull) * columns[pick] + pull * columns.mean() + parent.window[1].start
    radius = float(np.sqrt(len(rows) / np.pi) * rng.uniform(0.35, 0.8))
    aspect = float(np.exp(rng.uniform(-0.6, 0.6)))
    placement = Placement(
        (float(center_x), float(center_y)),
        (float(radius * np.sqrt(aspect)), float(radius / np.sqrt(aspect))),
        float(rng.uniform(0.0, 2 * np.pi)),
    )
    return _paint_contour(rng, canvas, placement, parent, away_from)


def _paint_contour(
    rng: np.random.Generator, canvas: _Canvas, placement: Placement, parent: _Region | None, away_from: list[Color]
) -> _Region | None:
    window, coverage, relative_radius = rasterize(sample_contour(rng), placement, canvas.size)
    if parent is not None:
        coverage = coverage * _within(parent, window)
    rim = 1.0 - rng.uniform(0.0, 0.35) * np.clip(relative_radius, 0.0, 1.0) ** 2  # rounder to the eye
    return _paint_region(rng, canvas, window, coverage, parent, away_from, shading=rim)


def _paint_cut(rng: np.random.Generator, canvas: _Canvas, parent: _Region, away_from: list[Color]) -> _Region | None:
    """A child that is one side of a wavy line across its parent."""
    rows, columns = np.nonzero(parent.coverage > 0.5)
    if len(rows) < 16:
        return None
    angle = rng.uniform(0.0, 2 * np.pi)
    height, width = parent.coverage.shape
    y = np.arange(height)[:, None] - rows.mean()
    x = np.arange(width)[None, :] - columns.mean()
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    radius = np.sqrt(len(rows) / np.pi)
    wave = rng.uniform(0.0, 0.15) * radius * np.sin(across * (2 * np.pi / (radius * rng.uniform(0.6, 2.0))))
    side = np.clip(along + wave - rng.uniform(-0.2, 0.55) * radius + 0.5, 0.0, 1.0)
    return _paint_region(rng, canvas, parent.window, parent.coverage * side, parent, away_from, shading=None)


def _paint_region(
    rng: np.random.Generator,
    canvas: _Canvas,
    window: tuple[slice, slice],
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
    node = len(canvas.parents)
    level = 0 if parent is None else parent.level + 1
    canvas.parents.append(-1 if parent is None else parent.node)
    canvas.levels.append(level)
    canvas.labels[window][coverage > 0.5] = node + 1
    return _Region(node, level, window, coverage, color)


def _within(parent: _Region, window: tuple[slice, slice]) -> NDArray[np.float64]:
    """The parent's coverage, cropped or padded with zeros to another window."""
    result = np.zeros((window[0].stop - window[0].start, window[1].stop - window[1].start))
    rows = slice(max(window[0].start, parent.window[0].start), min(window[0].stop, parent.window[0].stop))
    columns = slice(max(window[1].start, parent.window[1].start), min(window[1].stop, parent.window[1].stop))
    if rows.start < rows.stop and columns.start < columns.stop:
        top, left = parent.window[0].start, parent.window[1].start
        source = parent.coverage[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        result[
            rows.start - window[0].start : rows.stop - window[0].start,
            columns.start - window[1].start : columns.stop - window[1].start,
        ] = source
    return result


def _annotate(canvas: _Canvas) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """Drops nodes that are too small, or hardly less than their parent; their pixels fall to the parent."""
    labels, parents, levels = canvas.labels, np.array(canvas.parents, np.int64), np.array(canvas.levels, np.int64)
    least = _MIN_AREA * labels.size
    while len(parents):
        areas = node_masks(labels, parents).sum(axis=(1, 2))
        parent_areas = np.where(parents >= 0, areas[parents], np.iinfo(np.int64).max)
        dropped = (areas < least) | (areas > _MAX_SHARE * parent_areas)
        if not dropped.any():
            break
        # one at a time, the deepest first: dropping a child changes no area of its ancestors
        node = int(np.flatnonzero(dropped)[np.argmax(levels[dropped])])
        labels, parents, levels = _without(node, labels, parents, levels)
    return labels, parents, levels


def _without(
    node: int, labels: NDArray[np.uint8], parents: NDArray[np.int64], levels: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """The annotation without a node and its descendants."""
    gone = np.zeros(len(parents), bool)
    for index in range(len(parents)):  # parents come first
        gone[index] = index == node or (parents[index] >= 0 and gone[parents[index]])
    index_after = np.cumsum(~gone)
    heir = parents[node]
    lookup = np.zeros(len(parents) + 1, np.uint8)
    lookup[1:] = np.where(gone, 0 if heir < 0 else index_after[heir], index_after)
    kept_parents = parents[~gone]
    kept_parents = np.where(kept_parents >= 0, index_after[kept_parents] - 1, -1)
    return lookup[labels], kept_parents, levels[~gone]


def _photograph(rng: np.random.Generator, image: NDArray[np.float64]) -> NDArray[np.uint8]:
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
