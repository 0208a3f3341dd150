"""Rich scenes, generator versions 2 to 4: objects built of many shapes, real textures, shadows, occlusion.

A scene is a background (a photograph, a pattern, or a wall above a floor, and land before it in some) and a few wholes,
one over another: people, animals, plants, houses, cars, furniture and what is nothing in particular, with repeated and
thin parts. An object throws a shadow on what lies behind it and is shaded itself. What is drawn into masks is geometry
in float64; photographs and JPEG touch the pixels alone. What there is of all that is a
:class:`~arrcoc_sam.scenes.mixtures.Mixture`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from arrcoc_sam.scenes.blueprint import Blueprint
from arrcoc_sam.scenes.canvas import MAX_NODES, Canvas, Patch, Window, cropped
from arrcoc_sam.scenes.land import paint_land
from arrcoc_sam.scenes.mixtures import FAMILIES, Mixture, Paint
from arrcoc_sam.scenes.photographs import crop_photograph
from arrcoc_sam.scenes.shapes import Frame, joined
from arrcoc_sam.scenes.surfaces import Surface, sample_look, sample_surface
from arrcoc_sam.scenes.textures import Color, value_noise

__all__ = ["clipped_patches", "paint_rich"]

Rng = np.random.Generator


@dataclass(frozen=True)
class _Setting:
    """What all objects of a scene share: where the light comes from, what lies behind, what they are painted with."""

    light_xy: tuple[float, float]
    shadow: float
    background: Color
    paint: Paint


def paint_rich(rng: Rng, size: int, mixture: Mixture) -> Canvas:
    """Background and objects, from the farthest to the nearest."""
    image, background = _background(rng, size, mixture)
    canvas = Canvas(image, np.zeros((size, size), np.uint8))
    angle = rng.uniform(0.0, 2 * np.pi)
    light_xy = (float(np.cos(angle)), float(np.sin(angle)))
    setting = _Setting(light_xy, float(rng.uniform(0.0, 0.65)), background, mixture.paint)
    if mixture.land and rng.random() < mixture.land:
        paint_land(rng, canvas, mixture.paint)
    for _ in range(int(rng.choice([1, 2, 3, 4], p=mixture.counts))):
        family = FAMILIES[str(rng.choice(list(FAMILIES), p=mixture.shares))][0]
        plan = family(rng)
        frame = _placed(rng, size, plan, mixture.radius)
        looks: dict[str, Color] = {}
        copies = int(rng.integers(2, 5)) if rng.random() < 0.12 else 1
        for number in range(copies):  # a row of like objects
            _paint_object(rng, canvas, plan, _shifted(rng, frame, number, copies), setting, looks)
    if mixture.dappled and rng.random() < mixture.dappled:
        _dapple(rng, canvas)
    return canvas


def _placed(rng: Rng, size: int, plan: Blueprint, radii: tuple[float, float]) -> Frame:
    """A random frame: size, place, rotation, slant, mirrored or not."""
    radius = size * float(np.exp(rng.uniform(*np.log(radii))))
    stretch = float(np.exp(rng.uniform(-0.25, 0.25)))
    turn = rng.normal(0.0, 0.12) if plan.upright and rng.random() < 0.85 else rng.uniform(0.0, 2 * np.pi)
    slant = rng.uniform(-0.25, 0.25)
    mirror = float(rng.choice([-1.0, 1.0]))
    cos, sin = np.cos(turn), np.sin(turn)
    x_axis = np.array([cos, sin]) * radius * stretch * mirror
    y_axis = (np.array([-sin, cos]) + slant * np.array([cos, sin])) * radius / stretch
    margin = min(0.3, 0.7 * radius / size)
    return Frame(np.stack([x_axis, y_axis], axis=1), rng.uniform(margin, 1.0 - margin, 2) * size, size)


def _shifted(rng: Rng, frame: Frame, number: int, copies: int) -> Frame:
    """The frame of one of several like objects, side by side and smaller."""
    if copies == 1:
        return frame
    shrink = 1.4 / copies
    offset = frame.matrix[:, 0] * shrink * 1.9 * (number - (copies - 1) / 2) + rng.normal(0.0, 0.03, 2) * frame.size
    return Frame(frame.matrix * shrink, frame.origin + offset, frame.size)


def _background(rng: Rng, size: int, mixture: Mixture) -> tuple[NDArray[np.float32], Color]:
    """Pixels behind all objects, and their colour."""
    color = sample_look(rng, [], distance=0.0)
    kind = rng.random()
    if kind < mixture.photographs:
        crop = crop_photograph(rng, (size, size))
        return crop, crop.mean(axis=(0, 1), dtype=np.float64)
    if kind < mixture.photographs + mixture.surfaces:
        return sample_surface(rng, (size, size), color, photograph=0.5), color
    image = sample_surface(rng, (size, size), color)
    other = sample_look(rng, [color], distance=0.15)
    horizon = int(rng.uniform(0.3, 0.85) * size)
    floor = sample_surface(rng, (size - horizon, size), other, photograph=0.6)
    slope = np.linspace(rng.uniform(0.7, 1.0), 1.0, size - horizon, dtype=np.float32)
    image[horizon:] = floor * slope[:, None, None]
    return image, (color + other) / 2


def _paint_object(
    rng: Rng,
    canvas: Canvas,
    plan: Blueprint,
    frame: Frame,
    setting: _Setting,
    looks: dict[str, Color],
) -> None:
    """All pieces of an object, and the shadow that it throws."""
    patches = clipped_patches(plan, frame)
    if len(canvas.parents) + len(patches) > MAX_NODES or not (patches[0].coverage > 0.5).any():
        return
    if rng.random() < 0.7:
        _throw_shadow(rng, canvas, patches[0], setting)
    surfaces = _surfaces(rng, plan, patches, setting, looks)
    nodes: dict[int, int] = {-1: -1}
    shade = _shading(rng, patches[0], setting.light_xy)
    for number, (piece, patch) in enumerate(zip(plan.pieces, patches, strict=True)):
        level = 0 if piece.parent < 0 else canvas.levels[nodes[piece.parent]] + 1
        nodes[number] = canvas.add_node(nodes[piece.parent], level, patch)
        if piece.shape is not None and patch.coverage.size:
            window, surface = surfaces[piece.look]
            _blend(
                rng, canvas, patch, _part(surface, window, patch.window) * _part(shade, patches[0].window, patch.window)
            )


def clipped_patches(plan: Blueprint, frame: Frame) -> list[Patch]:
    """Coverage of every piece, inside of its parent."""
    drawn = [None if piece.shape is None else piece.shape.draw(frame) for piece in plan.pieces]
    for number in reversed(range(len(drawn))):  # children come after their parents
        if drawn[number] is None:
            children = [
                d for piece, d in zip(plan.pieces, drawn, strict=True) if piece.parent == number and d is not None
            ]
            drawn[number] = joined(children)
    patches = [patch for patch in drawn if patch is not None]
    for number, piece in enumerate(plan.pieces):
        if piece.parent >= 0:
            patches[number] = _inside(patches[number], patches[piece.parent])
    return patches


def _inside(patch: Patch, parent: Patch) -> Patch:
    """A patch clipped to another one, its window too."""
    rows, columns = (
        slice(max(a.start, b.start), max(min(a.stop, b.stop), a.start, b.start))
        for a, b in zip(patch.window, parent.window, strict=True)
    )
    window = (rows, columns)
    return Patch(window, np.minimum(cropped(patch, window), cropped(parent, window)))


def _surfaces(
    rng: Rng,
    plan: Blueprint,
    patches: list[Patch],
    setting: _Setting,
    looks: dict[str, Color],
) -> dict[str, tuple[Window, Surface]]:
    """One surface a look, over all pieces that have it; its colour differs from what it lies on."""
    surfaces: dict[str, tuple[Window, Surface]] = {}
    paint = setting.paint
    for piece in plan.pieces:
        if piece.shape is None or piece.look in surfaces:
            continue
        alike = [p for other, p in zip(plan.pieces, patches, strict=True) if other.look == piece.look and other.shape]
        window = joined(alike).window
        if piece.look not in looks:
            parent = plan.pieces[piece.parent] if piece.parent >= 0 else None
            behind = looks[parent.look] if parent is not None and parent.look in looks else setting.background
            looks[piece.look] = sample_look(rng, [behind], distance=rng.uniform(*paint.distance))
        shape_hw = (window[0].stop - window[0].start, window[1].stop - window[1].start)
        if min(shape_hw) > 0:  # else it lies outside of the image
            surface = sample_surface(
                rng, shape_hw, looks[piece.look], photograph=paint.photographs, contrast=paint.contrast
            )
            surfaces[piece.look] = (window, surface)
    return surfaces


def _part(values: NDArray[np.float32], window: Window, inner: Window) -> NDArray[np.float32]:
    """What a window inside of another one shows."""
    rows = slice(inner[0].start - window[0].start, inner[0].stop - window[0].start)
    columns = slice(inner[1].start - window[1].start, inner[1].stop - window[1].start)
    return values[rows, columns]


def _shading(rng: Rng, whole: Patch, light_xy: tuple[float, float]) -> NDArray[np.float32]:
    """Light from one side, over the window of an object."""
    height, width = whole.coverage.shape
    y, x = np.linspace(-1.0, 1.0, height)[:, None], np.linspace(-1.0, 1.0, width)[None, :]
    slope = x * light_xy[0] + y * light_xy[1]
    return (1.0 + rng.uniform(0.0, 0.25) * slope)[..., None].astype(np.float32)


def _blend(rng: Rng, canvas: Canvas, patch: Patch, surface: NDArray[np.float32]) -> None:
    """Paint one piece, of a tone of its own, darker towards its border."""
    cover = patch.coverage.astype(np.float32)
    tone = np.float32(rng.uniform(0.88, 1.1))
    depth = rng.uniform(0.0, 0.45)
    if depth > 0.1 and cover.size > 64:
        reach = max(3, int(0.35 * np.sqrt(cover.size)) | 1)
        round_ = uniform_filter(cover, reach, mode="constant")
        surface = surface * (np.float32(1.0 - depth) + np.float32(depth) * round_)[..., None]
    blend = cover[..., None]
    canvas.image[patch.window] += (surface * tone - canvas.image[patch.window]) * blend


def _throw_shadow(rng: Rng, canvas: Canvas, whole: Patch, setting: _Setting) -> None:
    """Darken what lies behind an object, on the side away from the light."""
    height, width = whole.coverage.shape
    far = rng.uniform(0.02, 0.16) * np.sqrt(height * width)
    dx, dy = (-round(far * d) for d in setting.light_xy)
    soft = max(1, round(far * rng.uniform(0.2, 1.0)))
    (rows, columns), size = whole.window, canvas.size
    y0, x0 = max(rows.start + min(dy, 0) - soft, 0), max(columns.start + min(dx, 0) - soft, 0)
    y1, x1 = min(rows.stop + max(dy, 0) + soft, size), min(columns.stop + max(dx, 0) + soft, size)
    window = (slice(y0, max(y0, y1)), slice(x0, max(x0, x1)))
    moved = Patch(
        (slice(rows.start + dy, rows.stop + dy), slice(columns.start + dx, columns.stop + dx)), whole.coverage
    )
    dark = uniform_filter(cropped(moved, window).astype(np.float32), 2 * soft + 1, mode="nearest")
    canvas.image[window] *= np.float32(1.0) - np.float32(setting.shadow) * dark[..., None]


def _dapple(rng: Rng, canvas: Canvas) -> None:
    """Shadows as of leaves, on whatever is there."""
    noise = value_noise(rng, (canvas.size, canvas.size), int(rng.integers(2, 9)))
    dark = np.clip((noise - rng.uniform(-0.3, 0.4)) / rng.uniform(0.05, 0.5) + 0.5, 0.0, 1.0)
    canvas.image *= (1.0 - rng.uniform(0.15, 0.6) * dark).astype(np.float32)[..., None]
