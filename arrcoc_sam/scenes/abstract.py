"""Blueprints of nothing in particular: contours with contours, cuts, stripes, spots and holes in them."""

from __future__ import annotations

import numpy as np

from arrcoc_sam.scenes.blueprint import Blueprint
from arrcoc_sam.scenes.contours import Radii, sample_contour
from arrcoc_sam.scenes.shapes import Band, Contour, Shape, Without

__all__ = ["nested"]

Rng = np.random.Generator


def nested(rng: Rng) -> Blueprint:
    """A contour with random parts, these with random subparts."""
    plan = Blueprint(upright=False)
    outline = Contour(sample_contour(rng), (0.0, 0.0), (1.0, 1.0))
    whole = plan.add(outline)
    _fill(rng, plan, whole, outline, level=0)
    return plan


def _fill(rng: Rng, plan: Blueprint, piece: int, outline: Contour, level: int) -> None:
    """Children of a piece: single ones, or a row of like ones."""
    if rng.random() < 0.25:
        _repeat(rng, plan, piece, outline)
        return
    for _ in range(int(rng.integers(1, 4))):
        child = _child(rng, outline)
        shape: Shape = child
        if rng.random() < 0.2:
            shape = _cut(rng, outline)
        elif rng.random() < 0.15:
            hole = _inside(rng, child.center, (child.half_axes[0] * 0.6, child.half_axes[1] * 0.6), sample_contour(rng))
            shape = Without(child, hole)
        number = plan.add(shape, piece, f"look{len(plan.pieces)}")
        if level == 0 and shape is child and rng.random() < 0.8:
            _fill(rng, plan, number, child, level=1)


def _child(rng: Rng, outline: Contour) -> Contour:
    """A contour somewhere inside of another one."""
    far = np.sqrt(rng.random()) * 0.75
    place = int(rng.integers(360))
    reach = far * float(outline.radii[place])
    angle = place * np.pi / 180
    half = _turned(outline, reach * np.cos(angle), reach * np.sin(angle))
    size, aspect = rng.uniform(0.3, 0.75), float(np.exp(rng.uniform(-0.6, 0.6)))
    mean = float(np.sqrt(outline.half_axes[0] * outline.half_axes[1])) * size
    return Contour(
        sample_contour(rng), half, (mean * np.sqrt(aspect), mean / np.sqrt(aspect)), float(rng.uniform(0.0, 2 * np.pi))
    )


def _turned(outline: Contour, u: float, v: float) -> tuple[float, float]:
    """A place given along a contour's axes, in the object's coordinates."""
    cos, sin = np.cos(outline.angle), np.sin(outline.angle)
    a, b = u * outline.half_axes[0], v * outline.half_axes[1]
    return float(outline.center[0] + a * cos - b * sin), float(outline.center[1] + a * sin + b * cos)


def _inside(rng: Rng, center: tuple[float, float], half_axes: tuple[float, float], radii: Radii) -> Contour:
    return Contour(radii, center, half_axes, float(rng.uniform(0.0, 2 * np.pi)))


def _cut(rng: Rng, outline: Contour) -> Band:
    """One side of a contour, or a band across it."""
    angle, mean = float(rng.uniform(0.0, 2 * np.pi)), float(np.sqrt(outline.half_axes[0] * outline.half_axes[1]))
    half = rng.uniform(0.15, 0.3) * mean if rng.random() < 0.4 else mean
    away = rng.uniform(-0.3, 0.3) * mean if half < mean else rng.uniform(0.7, 1.3) * mean
    center = (float(outline.center[0] - away * np.sin(angle)), float(outline.center[1] + away * np.cos(angle)))
    return Band(center, half, angle, rng.uniform(0.0, 0.1) * mean, rng.uniform(0.6, 2.0) * mean)


def _repeat(rng: Rng, plan: Blueprint, piece: int, outline: Contour) -> None:
    """Stripes, or spots of one kind in a grid."""
    mean = float(np.sqrt(outline.half_axes[0] * outline.half_axes[1]))
    angle, count = float(rng.uniform(0.0, np.pi)), int(rng.integers(2, 5))
    look = f"look{len(plan.pieces)}"
    if rng.random() < 0.4:
        for place in np.linspace(-0.65, 0.65, count) * mean:
            center = (outline.center[0] - place * np.sin(angle), outline.center[1] + place * np.cos(angle))
            plan.add(Band((float(center[0]), float(center[1])), 0.28 * mean / count, angle), piece, look)
        return
    radii, size = sample_contour(rng), rng.uniform(0.3, 0.42) * 1.3 / count
    for v in (np.arange(count) - (count - 1) / 2) * 1.3 / count:
        for u in (np.arange(count) - (count - 1) / 2) * 1.3 / count:
            spot = Contour(radii, _turned(outline, float(u), float(v)), (size * mean, size * mean), outline.angle)
            plan.add(spot, piece, look)
