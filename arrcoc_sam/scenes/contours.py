"""Closed contours as radius tables: what the outlines of procedural objects are made of.

Every contour is star-shaped about its centre, so it is one function r(θ), tabulated at :data:`NUM_ANGLES` angles and
scaled to a largest radius of 1. That covers ellipses and superellipses, regular and irregular polygons, stars, petals
and smooth blobs, and makes rasterising any of them the same few array operations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["CONTOUR_KINDS", "NUM_ANGLES", "Placement", "Radii", "rasterize", "sample_contour"]

NUM_ANGLES = 360
"""Angles of a radius table, evenly spaced over [0, 2π)."""

Radii = NDArray[np.float64]

_ANGLES = np.arange(NUM_ANGLES) * (2 * np.pi / NUM_ANGLES)


def _superellipse(rng: np.random.Generator) -> Radii:
    exponent = rng.uniform(1.6, 6.0)
    return np.asarray((np.abs(np.cos(_ANGLES)) ** exponent + np.abs(np.sin(_ANGLES)) ** exponent) ** (-1.0 / exponent))


def _regular_polygon(rng: np.random.Generator) -> Radii:
    sector = 2 * np.pi / int(rng.integers(3, 9))
    return np.asarray(np.cos(sector / 2) / np.cos(np.mod(_ANGLES, sector) - sector / 2))


def _through_vertices(angles: Radii, radii: Radii) -> Radii:
    """Radius table of the polygon whose vertices lie at the given sorted angles and radii."""
    following = np.append(angles[1:], angles[0] + 2 * np.pi)
    next_radii = np.append(radii[1:], radii[0])
    theta = np.where(angles[0] > _ANGLES, _ANGLES + 2 * np.pi, _ANGLES)
    edge = np.clip(np.searchsorted(angles, theta, side="right") - 1, 0, len(angles) - 1)
    a0, a1, r0, r1 = angles[edge], following[edge], radii[edge], next_radii[edge]
    # the straight line through two polar points: r(θ) = r0 r1 sin(a1−a0) / (r0 sin(θ−a0) + r1 sin(a1−θ))
    return np.asarray(r0 * r1 * np.sin(a1 - a0) / (r0 * np.sin(theta - a0) + r1 * np.sin(a1 - theta)))


def _irregular_polygon(rng: np.random.Generator) -> Radii:
    num_vertices = int(rng.integers(5, 10))
    jitter = rng.uniform(-0.3, 0.3, num_vertices)
    angles: Radii = np.sort((np.arange(num_vertices) + 0.5 + jitter) * (2 * np.pi / num_vertices))
    return _through_vertices(angles, rng.uniform(0.6, 1.0, num_vertices))


def _star(rng: np.random.Generator) -> Radii:
    num_points = int(rng.integers(4, 8))
    angles = np.asarray((np.arange(2 * num_points) + 0.5) * (np.pi / num_points), dtype=np.float64)
    radii = np.asarray(np.where(np.arange(2 * num_points) % 2 == 0, 1.0, rng.uniform(0.45, 0.75)), dtype=np.float64)
    return _through_vertices(angles, radii)


def _petals(rng: np.random.Generator) -> Radii:
    return np.asarray(1.0 + rng.uniform(0.1, 0.3) * np.cos(int(rng.integers(3, 8)) * _ANGLES))


def _blob(rng: np.random.Generator) -> Radii:
    harmonics = np.arange(2, 7)
    amplitudes = rng.uniform(0.0, 0.32, len(harmonics)) / np.sqrt(harmonics)
    phases = rng.uniform(0.0, 2 * np.pi, len(harmonics))
    waves = amplitudes[:, None] * np.cos(harmonics[:, None] * _ANGLES + phases[:, None])
    return np.asarray(np.maximum(1.0 + waves.sum(axis=0), 0.25))


CONTOUR_KINDS: dict[str, Callable[[np.random.Generator], Radii]] = {
    "superellipse": _superellipse,
    "regular_polygon": _regular_polygon,
    "irregular_polygon": _irregular_polygon,
    "star": _star,
    "petals": _petals,
    "blob": _blob,
}
"""The kinds of contour, by name; each draws a radius table from a random generator."""


def sample_contour(rng: np.random.Generator, kind: str | None = None) -> Radii:
    """A random radius table, largest radius 1.

    Args:
        rng: Source of randomness.
        kind: One of :data:`CONTOUR_KINDS`; ``None`` draws it, blobs and superellipses more often than the others.

    Returns:
        Radii at :data:`NUM_ANGLES` evenly spaced angles, in (0, 1].
    """
    if kind is None:
        kind = str(rng.choice(list(CONTOUR_KINDS), p=[0.28, 0.12, 0.16, 0.08, 0.08, 0.28]))
    radii = CONTOUR_KINDS[kind](rng)
    return np.asarray(radii / radii.max())


@dataclass(frozen=True)
class Placement:
    """Where a contour lies in an image: centre and half axes in pixels, rotation in radians."""

    center_xy: tuple[float, float]
    half_axes: tuple[float, float]
    rotation: float


def rasterize(
    radii: Radii, placement: Placement, size: int
) -> tuple[tuple[slice, slice], NDArray[np.float64], NDArray[np.float64]]:
    """Coverage of a placed contour, computed in its bounding window only.

    Args:
        radii: Radius table of :func:`sample_contour`.
        placement: Where it lies.
        size: Side of the square image in pixels.

    Returns:
        The window as a pair of slices (rows, columns); the coverage in [0, 1] there, antialiased over one pixel (> 0.5
        is inside); and the relative radius ρ/r(θ) there (0 at the centre, 1 on the contour), which shading uses. The
        window is empty when the contour lies outside of the image.
    """
    (cx, cy), reach = placement.center_xy, max(placement.half_axes) + 1.0
    x0, x1 = max(int(cx - reach), 0), min(int(cx + reach) + 2, size)
    y0, y1 = max(int(cy - reach), 0), min(int(cy + reach) + 2, size)
    window = (slice(y0, max(y1, y0)), slice(x0, max(x1, x0)))
    dx = np.arange(x0, max(x1, x0)) - cx
    dy = (np.arange(y0, max(y1, y0)) - cy)[:, None]
    cos, sin = np.cos(placement.rotation), np.sin(placement.rotation)
    u = (dx * cos + dy * sin) / placement.half_axes[0]
    v = (dy * cos - dx * sin) / placement.half_axes[1]
    rho = np.sqrt(u * u + v * v)
    position = np.mod(np.arctan2(v, u), 2 * np.pi) * (NUM_ANGLES / (2 * np.pi))
    below = position.astype(np.int64)
    fraction = position - below
    boundary = radii[below % NUM_ANGLES] * (1 - fraction) + radii[(below + 1) % NUM_ANGLES] * fraction
    # distance to the contour in pixels, to first order: radial, by the mean scale of the two axes
    pixels = (boundary - rho) * float(np.sqrt(placement.half_axes[0] * placement.half_axes[1]))
    return window, np.clip(pixels + 0.5, 0.0, 1.0), rho / boundary
