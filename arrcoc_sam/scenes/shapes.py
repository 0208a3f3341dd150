"""Shapes that objects are built of, in an object's own coordinates, and how they are drawn into pixels.

An object's coordinates are (x, y), y downwards, about in [-1, 1]; a :class:`Frame` carries them into an image by any
affine map. Each shape knows its signed distance there to first order, which gives an antialiased coverage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from arrcoc_sam.scenes.canvas import Patch, Window, cropped
from arrcoc_sam.scenes.contours import NUM_ANGLES, Radii

__all__ = [
    "Band",
    "Contour",
    "Frame",
    "Polygon",
    "Shape",
    "Stroke",
    "Without",
    "joined",
    "rectangle",
]

Point = tuple[float, float]


@dataclass(frozen=True)
class Frame:
    """Where an object lies.

    Attributes:
        matrix: (2, 2), its axes in pixels.
        origin: (2,) its origin in pixels.
        size: Side of the image in pixels.
    """

    matrix: NDArray[np.float64]
    origin: NDArray[np.float64]
    size: int

    @property
    def scale(self) -> float:
        """Pixels of one unit, the geometric mean of both axes."""
        m = self.matrix
        return float(np.sqrt(abs(m[0, 0] * m[1, 1] - m[0, 1] * m[1, 0])))

    def to_pixels(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n, 2) points of the object, in pixels."""
        x, y = points[:, 0:1], points[:, 1:2]  # spelled out: matrix products differ in the last bit between machines
        return np.asarray(x * self.matrix[:, 0] + y * self.matrix[:, 1] + self.origin)

    def window(self, low: NDArray[np.float64], high: NDArray[np.float64]) -> Window:
        """Rows and columns between two corners in pixels and one pixel around, cut off at the image's border."""
        x0, y0 = (min(max(int(value), 0), self.size) for value in low - 1.0)
        x1, y1 = (min(max(int(value), 0), self.size) for value in high + 2.0)
        return slice(y0, max(y0, y1)), slice(x0, max(x0, x1))


@runtime_checkable
class Shape(Protocol):
    """Something with an inside."""

    def draw(self, frame: Frame) -> Patch:
        """Its coverage in a frame."""
        ...


def _axes(window: Window, origin: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distances in x (one row) and y (one column) of a window's pixels from a place."""
    x = np.arange(window[1].start, window[1].stop) - origin[0]
    y = np.arange(window[0].start, window[0].stop) - origin[1]
    return x[None, :], y[:, None]


def _covered(window: Window, depth: NDArray[np.float64]) -> Patch:
    """Coverage from how deep inside a shape each pixel is, in pixels."""
    return Patch(window, np.clip(depth + 0.5, 0.0, 1.0))


@dataclass(frozen=True)
class Contour:
    """A star-shaped outline (:mod:`arrcoc_sam.scenes.contours`).

    Attributes:
        radii: Radius table.
        center: Its middle.
        half_axes: What the radii are multiplied with.
        angle: Of the first axis, in radians.
    """

    radii: Radii
    center: Point
    half_axes: Point
    angle: float = 0.0

    def draw(self, frame: Frame) -> Patch:
        """Its coverage in a frame."""
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        first = (frame.matrix[:, 0] * cos + frame.matrix[:, 1] * sin) * self.half_axes[0]
        second = (frame.matrix[:, 1] * cos - frame.matrix[:, 0] * sin) * self.half_axes[1]
        center = frame.to_pixels(np.array([self.center]))[0]
        reach = np.sqrt(first**2 + second**2)
        window = frame.window(center - reach, center + reach)
        x, y = _axes(window, center)
        determinant = first[0] * second[1] - first[1] * second[0]
        (a, b), (c, d) = (second[1], -second[0]), (-first[1], first[0])
        u, v = (a * x + b * y) / determinant, (c * x + d * y) / determinant
        rho = np.sqrt(u * u + v * v)
        position = np.mod(np.arctan2(v, u), 2 * np.pi) * (NUM_ANGLES / (2 * np.pi))
        below = position.astype(np.int64)
        table = np.append(self.radii, self.radii[:2])
        boundary = table[below] + (table[below + 1] - table[below]) * (position - below)
        slope = np.sqrt((a * u + c * v) ** 2 + (b * u + d * v) ** 2) / abs(determinant) / np.maximum(rho, 1e-9)
        return _covered(window, (boundary - rho) / np.maximum(slope, 1e-9))


@dataclass(frozen=True)
class Stroke:
    """A line of changing width through points: a leg, a tail, a stem, a wire.

    Attributes:
        points: (n, 2), two or more.
        widths: (n,) half widths there.
    """

    points: Sequence[Point]
    widths: Sequence[float]

    def draw(self, frame: Frame) -> Patch:
        """Its coverage in a frame."""
        places, radii = frame.to_pixels(np.array(self.points)), np.array(self.widths) * frame.scale
        reach = radii.max()
        window = frame.window(places.min(axis=0) - reach, places.max(axis=0) + reach)
        depth = np.full((window[0].stop - window[0].start, window[1].stop - window[1].start), -np.inf)
        for start, end, r0, r1 in zip(places[:-1], places[1:], radii[:-1], radii[1:], strict=True):
            x, y = _axes(window, start)
            (dx, dy) = end - start
            along = np.clip((x * dx + y * dy) / max(dx * dx + dy * dy, 1e-9), 0.0, 1.0)
            distance = np.sqrt((x - along * dx) ** 2 + (y - along * dy) ** 2)
            depth = np.maximum(depth, r0 + (r1 - r0) * along - distance)
        return _covered(window, depth)


@dataclass(frozen=True)
class Polygon:
    """A convex polygon.

    Attributes:
        points: (n, 2), three or more, in order.
    """

    points: Sequence[Point]

    def draw(self, frame: Frame) -> Patch:
        """Its coverage in a frame."""
        places = frame.to_pixels(np.array(self.points))
        window = frame.window(places.min(axis=0), places.max(axis=0))
        following = np.roll(places, -1, axis=0)
        turn = np.sign((places[:, 0] * following[:, 1] - following[:, 0] * places[:, 1]).sum())
        depth = np.full((window[0].stop - window[0].start, window[1].stop - window[1].start), np.inf)
        for start, end in zip(places, following, strict=True):
            x, y = _axes(window, start)
            (dx, dy) = (end - start) * (turn / max(float(np.sqrt(((end - start) ** 2).sum())), 1e-9))
            depth = np.minimum(depth, dx * y - dy * x)
        return _covered(window, depth)


@dataclass(frozen=True)
class Band:
    """What lies between two wavy parallel lines, wherever it is clipped: a hem, a lid, a stripe.

    Attributes:
        center: A place on the middle line.
        half_width: Of the band.
        angle: Of the lines, in radians.
        wave: Amplitude of the lines.
        period: Of the wave.
    """

    center: Point
    half_width: float
    angle: float
    wave: float = 0.0
    period: float = 1.0

    def draw(self, frame: Frame) -> Patch:
        """Its coverage in a frame, within two units of its centre."""
        corners = np.array([(-2.0, -2.0), (-2.0, 2.0), (2.0, -2.0), (2.0, 2.0)]) + np.array(self.center)
        places = frame.to_pixels(corners)
        window = frame.window(places.min(axis=0), places.max(axis=0))
        middle = frame.to_pixels(np.array([self.center]))[0]
        x, y = _axes(window, middle)
        (dx, dy) = frame.matrix[:, 0] * np.cos(self.angle) + frame.matrix[:, 1] * np.sin(self.angle)
        length = float(np.sqrt(dx * dx + dy * dy))
        along, across = (x * dx + y * dy) / length, (y * dx - x * dy) / length
        if self.wave > 0.0:
            across = across + self.wave * length * np.sin(along * (2 * np.pi / (self.period * length)))
        return _covered(window, self.half_width * length - np.abs(across))


@dataclass(frozen=True)
class Without:
    """A shape with another one taken out: a ring, a crescent, a frame.

    Attributes:
        outer: What is left of.
        hole: What is taken out.
    """

    outer: Shape
    hole: Shape

    def draw(self, frame: Frame) -> Patch:
        """Its coverage in a frame."""
        outer = self.outer.draw(frame)
        return Patch(outer.window, outer.coverage * (1.0 - cropped(self.hole.draw(frame), outer.window)))


def joined(patches: Sequence[Patch]) -> Patch:
    """The union of some patches, at least one."""
    patches = [patch for patch in patches if patch.coverage.size] or patches[:1]
    rows = slice(min(p.window[0].start for p in patches), max(p.window[0].stop for p in patches))
    columns = slice(min(p.window[1].start for p in patches), max(p.window[1].stop for p in patches))
    coverage = np.zeros((rows.stop - rows.start, columns.stop - columns.start))
    for patch in patches:
        inside = (
            slice(patch.window[0].start - rows.start, patch.window[0].stop - rows.start),
            slice(patch.window[1].start - columns.start, patch.window[1].stop - columns.start),
        )
        coverage[inside] = np.maximum(coverage[inside], patch.coverage)
    return Patch((rows, columns), coverage)


def rectangle(left: float, top: float, right: float, bottom: float) -> Polygon:
    """An upright rectangle."""
    return Polygon([(left, top), (right, top), (right, bottom), (left, bottom)])
