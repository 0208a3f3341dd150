"""Land behind the objects of natural scenes: ridges, fields, water, one before another, each an object of its own.

What lies on them is of the weaker contrast of rich scenes: version 4 was drawn so.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from arrcoc_sam.scenes.canvas import Canvas, Patch
from arrcoc_sam.scenes.mixtures import Paint
from arrcoc_sam.scenes.natural import rough
from arrcoc_sam.scenes.shapes import Contour, Frame
from arrcoc_sam.scenes.surfaces import sample_look, sample_surface

__all__ = ["paint_land"]

Rng = np.random.Generator


def paint_land(rng: Rng, canvas: Canvas, paint: Paint) -> None:
    """Two to four layers over the background; what lies above the highest stays what it was, and is no object."""
    size, tops = canvas.size, np.sort(rng.uniform(0.15, 0.85, int(rng.integers(2, 5))))
    color = canvas.image.mean(axis=(0, 1), dtype=np.float64)
    for top in tops:
        color = sample_look(rng, [color], distance=rng.uniform(*paint.distance))
        surface = sample_surface(rng, (size, size), color, photograph=paint.photographs, contrast=paint.contrast)
        layer = _ridge(rng, size, float(top))
        _paint(canvas, layer, surface)
        node = canvas.add_node(-1, 0, layer)
        for _ in range(int(rng.integers(0, 3))):  # a bush, a path, a pond, a rock on it
            place, wide = (rng.uniform(0.0, size), rng.uniform(top, 1.0) * size), rng.uniform(0.06, 0.3) * size
            contour = Contour(rough(rng, "blob"), (0.0, 0.0), (1.0, float(rng.uniform(0.25, 0.8))))
            drawn = contour.draw(Frame(np.eye(2) * wide, np.array(place), size))
            patch = Patch(drawn.window, np.minimum(drawn.coverage, layer.coverage[drawn.window]))
            if not (patch.coverage > 0.5).any():
                continue
            look = sample_look(rng, [color], distance=rng.uniform(*paint.distance))
            shape_hw = (patch.coverage.shape[0], patch.coverage.shape[1])
            _paint(canvas, patch, sample_surface(rng, shape_hw, look, photograph=paint.photographs))
            canvas.add_node(node, 1, patch)


def _ridge(rng: Rng, size: int, top: float) -> Patch:
    """Everything below a line that rises and falls; or a hill that ends on both sides."""
    x = np.linspace(0.0, 1.0, size)
    waves = rng.integers(1, 30, 8)
    height = np.full(size, top) + rng.normal(0.0, 0.1) * (x - 0.5)
    if rng.random() < 0.7:  # else it is flat, as water is
        phases = rng.uniform(0.0, 2 * np.pi, 8)
        swing = rng.uniform(0.0, 0.1) / waves ** rng.uniform(0.6, 1.2)
        height = height + (swing[:, None] * np.cos(2 * np.pi * waves[:, None] * x + phases[:, None])).sum(axis=0)
    if rng.random() < 0.5:  # a hill
        middle, wide = rng.uniform(0.1, 0.9), rng.uniform(0.15, 0.5)
        height = height + np.clip(np.abs(x - middle) / wide, 0.0, 1.5) ** rng.uniform(1.0, 3.0) * (1.0 - top) * 1.1
    depth: NDArray[np.float64] = np.arange(size)[:, None] - height[None, :] * size
    return Patch((slice(0, size), slice(0, size)), np.clip(depth + 0.5, 0.0, 1.0))


def _paint(canvas: Canvas, patch: Patch, surface: NDArray[np.float32]) -> None:
    cover = patch.coverage.astype(np.float32)[..., None]
    canvas.image[patch.window] += (surface - canvas.image[patch.window]) * cover
