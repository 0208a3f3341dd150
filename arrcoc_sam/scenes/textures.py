"""Procedural surfaces: what the objects and backgrounds of a scene are painted with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = ["TEXTURE_KINDS", "sample_color", "sample_texture", "value_noise"]

Color = NDArray[np.float64]
Pattern = NDArray[np.float64]


def sample_color(rng: np.random.Generator, away_from: list[Color], *, distance: float) -> Color:
    """A random RGB colour in [0, 1] at least ``distance`` (Euclidean) from the given ones.

    When twenty draws find none so far away, the farthest of them is returned: some scenes have faint borders, as
    photographs have.
    """
    best, best_distance = np.zeros(3), -1.0
    for _ in range(20):
        # half of the draws are muted: photographs are greyer than the RGB cube
        color = rng.random(3)
        if rng.random() < 0.5:
            color = color.mean() + (color - color.mean()) * rng.uniform(0.1, 0.5)
        nearest = min((float(np.sqrt(((color - other) ** 2).sum())) for other in away_from), default=np.inf)
        if nearest >= distance:
            return np.asarray(color)
        if nearest > best_distance:
            best, best_distance = color, nearest
    return best


def _interpolation(num_out: int, num_in: int) -> NDArray[np.float64]:
    """Matrix that interpolates ``num_in`` samples linearly at ``num_out`` evenly spaced places."""
    place = np.linspace(0.0, num_in - 1.001, num_out)
    below = np.minimum(place.astype(np.int64), num_in - 2)
    matrix = np.zeros((num_out, num_in))
    rows = np.arange(num_out)
    matrix[rows, below] = 1 - (place - below)
    matrix[rows, below + 1] = place - below
    return matrix


def value_noise(rng: np.random.Generator, shape_hw: tuple[int, int], cells: int, *, octaves: int = 3) -> Pattern:
    """Smooth noise in about [-1, 1]: random grids of ``cells``, 2·``cells``, … nodes, interpolated and summed."""
    height, width = shape_hw
    total = np.zeros(shape_hw)
    for octave in range(octaves):
        nodes = max(cells * 2**octave + 1, 2)
        rows, columns = _interpolation(height, nodes), _interpolation(width, nodes)
        total += (rows @ rng.uniform(-1.0, 1.0, (nodes, nodes)) @ columns.T) * 0.6**octave
    return total / 1.4


def _grid(shape_hw: tuple[int, int], angle: float) -> tuple[Pattern, Pattern]:
    """Two rotated coordinates in pixels over a window."""
    y = np.arange(shape_hw[0], dtype=np.float64)[:, None]
    x = np.arange(shape_hw[1], dtype=np.float64)[None, :]
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def _solid(_: np.random.Generator, shape_hw: tuple[int, int]) -> Pattern:
    return np.zeros(shape_hw)


def _gradient(rng: np.random.Generator, shape_hw: tuple[int, int]) -> Pattern:
    u, _ = _grid(shape_hw, rng.uniform(0.0, 2 * np.pi))
    span = max(float(u.max() - u.min()), 1.0)
    return np.asarray(2.0 * (u - u.min()) / span - 1.0)


def _stripes(rng: np.random.Generator, shape_hw: tuple[int, int]) -> Pattern:
    u, _ = _grid(shape_hw, rng.uniform(0.0, np.pi))
    wave = np.sin(u * (2 * np.pi / rng.uniform(5.0, 24.0)) + rng.uniform(0.0, 2 * np.pi))
    return np.asarray(np.clip(wave * rng.uniform(1.0, 5.0), -1.0, 1.0))


def _checks(rng: np.random.Generator, shape_hw: tuple[int, int]) -> Pattern:
    u, v = _grid(shape_hw, rng.uniform(0.0, np.pi))
    period = rng.uniform(6.0, 22.0)
    return np.asarray(np.sign(np.sin(u * (2 * np.pi / period)) * np.sin(v * (2 * np.pi / period))))


def _dots(rng: np.random.Generator, shape_hw: tuple[int, int]) -> Pattern:
    u, v = _grid(shape_hw, rng.uniform(0.0, np.pi))
    period = rng.uniform(7.0, 20.0)
    wave = np.cos(u * (2 * np.pi / period)) + np.cos(v * (2 * np.pi / period))
    return np.asarray(np.clip((wave - rng.uniform(0.2, 1.0)) * 3.0, -1.0, 1.0))


def _noise(rng: np.random.Generator, shape_hw: tuple[int, int]) -> Pattern:
    return value_noise(rng, shape_hw, int(rng.integers(2, 12)))


def _grain(rng: np.random.Generator, shape_hw: tuple[int, int]) -> Pattern:
    return np.asarray(rng.uniform(-1.0, 1.0, shape_hw))


TEXTURE_KINDS: dict[str, Callable[[np.random.Generator, tuple[int, int]], Pattern]] = {
    "solid": _solid,
    "gradient": _gradient,
    "stripes": _stripes,
    "checks": _checks,
    "dots": _dots,
    "noise": _noise,
    "grain": _grain,
}
"""The kinds of surface, by name; each draws a pattern in about [-1, 1] over a window."""


def sample_texture(
    rng: np.random.Generator, shape_hw: tuple[int, int], color: Color, kind: str | None = None
) -> NDArray[np.float64]:
    """A painted window: a base colour modulated by a random pattern.

    Args:
        rng: Source of randomness.
        shape_hw: Height and width of the window in pixels.
        color: Base RGB in [0, 1].
        kind: One of :data:`TEXTURE_KINDS`; ``None`` draws it.

    Returns:
        (H, W, 3) RGB, about in [0, 1], not clipped.
    """
    if kind is None:
        kind = str(rng.choice(list(TEXTURE_KINDS), p=[0.2, 0.2, 0.13, 0.06, 0.06, 0.27, 0.08]))
    pattern = TEXTURE_KINDS[kind](rng, shape_hw)
    # patterns move along one direction in colour, mostly brightness
    direction = np.full(3, 1.0) + rng.uniform(-0.6, 0.6, 3)
    return np.asarray(color + pattern[..., None] * (direction * rng.uniform(0.03, 0.14)))
