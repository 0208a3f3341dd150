"""Blueprints of what is made: houses, cars, furniture, vessels, wheels, shelves, panels, fences."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from arrcoc_sam.scenes.blueprint import Blueprint
from arrcoc_sam.scenes.contours import sample_contour
from arrcoc_sam.scenes.shapes import Band, Contour, Polygon, Shape, Stroke, Without, rectangle

__all__ = ["building", "fence", "furniture", "panel", "shelf", "vehicle", "vessel", "wheel"]

Rng = np.random.Generator
Point = tuple[float, float]

_DISC = np.ones(360)


def disc(center: Point, radius: float, flatten: float = 1.0) -> Contour:
    """A disc, or an upright ellipse."""
    return Contour(_DISC, center, (radius, radius * flatten))


def building(rng: Rng) -> Blueprint:
    """Walls with rows of windows, a roof, a door."""
    plan = Blueprint()
    whole = plan.add(None)
    wide, eaves = rng.uniform(0.45, 0.85), rng.uniform(-0.7, -0.25)
    if rng.random() < 0.65:
        over, ridge = rng.uniform(0.0, 0.12), rng.uniform(0.0, 0.8) * wide
        if rng.random() < 0.4:
            x = rng.uniform(-0.5, 0.5) * wide
            plan.add(rectangle(x - 0.08, -1.0, x + 0.08, eaves), whole, "chimney")
        roof = Polygon([(-wide - over, eaves), (-ridge, -0.95), (ridge, -0.95), (wide + over, eaves)])
        plan.add(roof, whole, "roof")
    wall = plan.add(rectangle(-wide, eaves, wide, 1.0), whole, "wall")
    rows, columns = int(rng.integers(1, 4)), int(rng.integers(2, 5))
    door = rng.random() < 0.7
    bottom = 0.45 if door else 0.9
    _windows(rng, plan, wall, (-wide, eaves + 0.08, wide, bottom), (rows, columns))
    if door:
        x, half = rng.uniform(-0.6, 0.6) * wide, rng.uniform(0.12, 0.2)
        plan.add(rectangle(x - half, 0.55, x + half, 1.0), wall, "door")
    return plan


def _windows(
    rng: Rng, plan: Blueprint, wall: int, box: tuple[float, float, float, float], rows_columns: tuple[int, int]
) -> None:
    """A grid of like windows, of which some stand open or differ."""
    left, top, right, bottom = box
    rows, columns = rows_columns
    step_x, step_y = (right - left) / columns, (bottom - top) / rows
    half_x, half_y = step_x * rng.uniform(0.25, 0.4), step_y * rng.uniform(0.25, 0.42)
    round_top = rng.random() < 0.25
    for row in range(rows):
        for column in range(columns):
            x, y = left + (column + 0.5) * step_x, top + (row + 0.5) * step_y
            if round_top:
                plan.add(Contour(sample_contour(rng, "superellipse"), (x, y), (half_x, half_y)), wall, "window")
            else:
                plan.add(rectangle(x - half_x, y - half_y, x + half_x, y + half_y), wall, "window")


def vehicle(rng: Rng) -> Blueprint:
    """A body on wheels with hubs, a cabin with windows, lights."""
    plan = Blueprint()
    whole = plan.add(None)
    left, right, roof = rng.uniform(-0.7, -0.3), rng.uniform(0.3, 0.7), rng.uniform(-0.6, -0.35)
    cabin = plan.add(Polygon([(left - 0.15, 0.02), (left, roof), (right, roof), (right + 0.2, 0.02)]), whole, "cabin")
    edges = np.linspace(left, right, int(rng.integers(2, 5)))
    for x0, x1 in pairwise(edges):
        plan.add(rectangle(float(x0) + 0.04, roof + 0.07, float(x1) - 0.04, -0.05), cabin, "glass")
    body = plan.add(Contour(sample_contour(rng, "superellipse"), (0.0, 0.18), (1.0, 0.27)), whole, "body")
    plan.add(Band((0.0, rng.uniform(0.1, 0.3)), 0.05, 0.0), body, "trim")
    for side in (-0.88, 0.88):
        plan.add(disc((side, 0.12), 0.08), body, "light")
    radius = rng.uniform(0.17, 0.26)
    for x in np.linspace(-0.62, 0.62, int(rng.choice([2, 2, 3, 4]))):
        tyre = plan.add(disc((float(x), 0.45), radius), whole, "tyre")
        plan.add(disc((float(x), 0.45), radius * rng.uniform(0.45, 0.65)), tyre, "hub")
    return plan


def furniture(rng: Rng) -> Blueprint:
    """A table, a chair or a lamp, on thin legs."""
    return (_table, _chair, _lamp)[int(rng.integers(3))](rng)


def _table(rng: Rng) -> Blueprint:
    plan = Blueprint()
    whole = plan.add(None)
    legs = plan.add(None, whole)
    splay = rng.uniform(0.0, 0.2)
    for x in (-0.7, -0.45, 0.45, 0.7)[:: int(rng.choice([1, 3]))]:
        plan.add(Stroke([(x, 0.0), (x * (1 + splay), 0.95)], [0.06, rng.uniform(0.03, 0.06)]), legs, "legs")
    slant = rng.uniform(0.0, 0.3)
    top = Polygon([(-0.9 + slant, -0.25), (0.9 - slant, -0.25), (0.95, 0.08), (-0.95, 0.08)])
    plate = plan.add(top, whole, "top")
    for x in rng.uniform(-0.6, 0.6, int(rng.integers(0, 3))):
        plan.add(disc((float(x), -0.08), 0.16, 0.5), plate, "plate")
    if rng.random() < 0.5:
        plan.add(rectangle(-0.3, 0.1, 0.3, 0.3), whole, "drawer")
    return plan


def _chair(rng: Rng) -> Blueprint:
    plan = Blueprint()
    whole = plan.add(None)
    legs = plan.add(None, whole)
    for x0, x1 in ((-0.4, -0.5), (0.4, 0.5), (-0.25, -0.3), (0.3, 0.25)):
        plan.add(Stroke([(x0, 0.15), (x1, 0.95)], [0.05, 0.04]), legs, "legs")
    back = plan.add(None, whole)
    for x in (-0.42, 0.42):
        plan.add(Stroke([(x, 0.1), (x * 1.1, -0.95)], [0.05, 0.05]), back, "legs")
    if rng.random() < 0.5:
        for y in np.linspace(-0.85, -0.2, int(rng.integers(2, 5))):
            plan.add(rectangle(-0.45, float(y) - 0.06, 0.45, float(y) + 0.06), back, "slats")
    else:
        plan.add(Contour(sample_contour(rng, "superellipse"), (0.0, -0.5), (0.45, 0.42)), back, "slats")
    plan.add(Polygon([(-0.45, 0.05), (0.45, 0.05), (0.58, 0.28), (-0.58, 0.28)]), whole, "seat")
    return plan


def _lamp(rng: Rng) -> Blueprint:
    plan = Blueprint()
    whole = plan.add(None)
    bend = rng.uniform(-0.3, 0.3)
    plan.add(Stroke([(0.0, 0.9), (bend, 0.1), (0.0, -0.5)], [0.05, 0.035, 0.035]), whole, "pole")
    plan.add(disc((0.0, 0.9), rng.uniform(0.25, 0.4), 0.35), whole, "foot")
    narrow, wide = rng.uniform(0.12, 0.3), rng.uniform(0.35, 0.55)
    shade = plan.add(Polygon([(-narrow, -0.95), (narrow, -0.95), (wide, -0.35), (-wide, -0.35)]), whole, "shade")
    for y in rng.uniform(-0.9, -0.4, int(rng.integers(1, 3))):
        plan.add(Band((0.0, float(y)), 0.05, 0.0), shade, "trim")
    return plan


def vessel(rng: Rng) -> Blueprint:
    """A bottle with a cap and a label, or a cup with a handle."""
    plan = Blueprint()
    whole = plan.add(None)
    if rng.random() < 0.5:
        wide, shoulder = rng.uniform(0.25, 0.45), rng.uniform(-0.4, 0.0)
        plan.add(rectangle(-0.12, -0.8, 0.12, shoulder + 0.1), whole, "neck")
        plan.add(rectangle(-0.14, -1.0, 0.14, rng.uniform(-0.85, -0.7)), whole, "cap")
        shape: Shape = Contour(
            sample_contour(rng, "superellipse"), (0.0, (shoulder + 1.0) / 2), (wide, (1.0 - shoulder) / 2)
        )
    else:
        wide = rng.uniform(0.45, 0.65)
        ring = Without(disc((wide, 0.15), 0.36), disc((wide, 0.15), rng.uniform(0.2, 0.28)))
        plan.add(ring, whole, "handle")
        narrow = wide * rng.uniform(0.6, 1.0)
        shape = Polygon([(-wide, -0.5), (wide, -0.5), (narrow, 0.75), (-narrow, 0.75)])
    body = plan.add(shape, whole, "body")
    if rng.random() < 0.5:
        plan.add(rectangle(-wide * 0.6, 0.0, wide * 0.6, 0.5), body, "label")
        plan.add(Contour(sample_contour(rng), (0.0, 0.25), (wide * 0.3, 0.16)), body, "logo")
    else:
        plan.add(Band((0.0, rng.uniform(-0.2, 0.6)), rng.uniform(0.06, 0.2), rng.uniform(-0.2, 0.2)), body, "label")
    if rng.random() < 0.6:
        plan.add(Band((0.0, -0.5), rng.uniform(0.05, 0.15), 0.0), body, "rim")
    return plan


def wheel(rng: Rng) -> Blueprint:
    """A wheel with spokes, a target, or a clock with hands."""
    plan = Blueprint(upright=False)
    whole = plan.add(disc((0.0, 0.0), 1.0), look="rim")
    inner = rng.uniform(0.6, 0.88)
    if rng.random() < 0.5:
        face_ = plan.add(disc((0.0, 0.0), inner), whole, "face")
        count = int(rng.integers(4, 11))
        long = 1.0 if rng.random() < 0.5 else rng.uniform(0.5, 0.8)
        for angle in np.arange(count) * (2 * np.pi / count):
            tip = (float(np.cos(angle) * inner * long), float(np.sin(angle) * inner * long))
            plan.add(Stroke([(0.0, 0.0), tip], [rng.uniform(0.03, 0.08), 0.04]), face_, "spoke")
        plan.add(disc((0.0, 0.0), rng.uniform(0.12, 0.3)), face_, "hub")
        return plan
    middle = plan.add(disc((0.0, 0.0), inner), whole, "face")
    plan.add(disc((rng.uniform(-0.15, 0.15), rng.uniform(-0.15, 0.15)), inner * rng.uniform(0.3, 0.6)), middle, "hub")
    return plan


def shelf(rng: Rng) -> Blueprint:
    """Boards with a row of things on each, each of its own colour."""
    plan = Blueprint()
    wide = rng.uniform(0.6, 1.0)
    whole = plan.add(rectangle(-wide, -1.0, wide, 1.0), look="frame")
    rows = int(rng.integers(2, 4))
    for row in range(rows):
        top, bottom = -0.94 + row * 1.92 / rows, -0.94 + (row + 1) * 1.92 / rows - 0.08
        space = plan.add(rectangle(-wide + 0.07, top, wide - 0.07, bottom), whole, "space")
        x = -wide + 0.1
        while x < wide - 0.25 and len(plan.pieces) < 16:
            width = rng.uniform(0.14, 0.4)
            high = bottom - (bottom - top) * rng.uniform(0.5, 0.95)
            right = min(x + width, wide - 0.08)
            thing: Shape = rectangle(x, high, right, bottom)
            if rng.random() < 0.25:
                half = ((right - x) / 2, (bottom - high) / 2)
                thing = Contour(sample_contour(rng, "superellipse"), (x + half[0], high + half[1]), half)
            plan.add(thing, space, f"thing{int(rng.integers(4))}")
            x += width + rng.uniform(0.0, 0.12)
    return plan


def panel(rng: Rng) -> Blueprint:
    """A box with a screen, and buttons in a grid."""
    plan = Blueprint(upright=rng.random() < 0.5)
    wide = rng.uniform(0.55, 0.95)
    whole = plan.add(Contour(sample_contour(rng, "superellipse"), (0.0, 0.0), (wide, 1.0)), look="case")
    screen = plan.add(rectangle(-wide * 0.7, -0.75, wide * 0.7, -0.15), whole, "screen")
    plan.add(Contour(sample_contour(rng), (rng.uniform(-0.2, 0.2), -0.45), (0.25, 0.2)), screen, "picture")
    keys = plan.add(rectangle(-wide * 0.75, 0.0, wide * 0.75, 0.8), whole, "field")
    rows, columns = int(rng.integers(2, 4)), int(rng.integers(2, 5))
    step_x, step_y = 1.5 * wide / columns, 0.8 / rows
    radius = 0.38 * min(step_x, step_y)
    kind = str(rng.choice(["superellipse", "regular_polygon", "petals"]))
    radii = sample_contour(rng, kind)
    for row in range(rows):
        for column in range(columns):
            place = (-0.75 * wide + (column + 0.5) * step_x, (row + 0.5) * step_y)
            plan.add(Contour(radii, place, (radius, radius)), keys, "key")
    return plan


def fence(rng: Rng) -> Blueprint:
    """Thin bars side by side, held by rails."""
    plan = Blueprint(upright=rng.random() < 0.7)
    whole = plan.add(None)
    rails = plan.add(None, whole)
    thin = rng.uniform(0.025, 0.05)
    for y in (-0.4, 0.4)[: int(rng.integers(1, 3))]:
        plan.add(Stroke([(-1.0, y), (1.0, y)], [thin, thin]), rails, "rail")
    count = int(rng.integers(3, 7))
    half = rng.uniform(0.15, 0.35) / count * 2
    for x in np.linspace(-0.85, 0.85, count):
        if rng.random() < 0.5:
            plan.add(rectangle(float(x) - half / 2, -0.8, float(x) + half / 2, 0.8), whole, "bar")
        else:
            plan.add(Stroke([(float(x), -0.8), (float(x), 0.8)], [half / 2, half / 2]), whole, "bar")
    return plan
