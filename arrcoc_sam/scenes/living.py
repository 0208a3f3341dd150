"""Blueprints of what lives: people, faces, animals, plants."""

from __future__ import annotations

import numpy as np

from arrcoc_sam.scenes.blueprint import Blueprint
from arrcoc_sam.scenes.contours import sample_contour
from arrcoc_sam.scenes.shapes import Band, Contour, Polygon, Stroke

__all__ = ["animal", "bird", "face", "flower", "insect", "person", "tree"]

Rng = np.random.Generator
Point = tuple[float, float]


def oval(rng: Rng, center: Point, half_axes: Point, angle: float = 0.0) -> Contour:
    """An ellipse, a little uneven."""
    theta = np.arange(360) * (np.pi / 180)
    uneven = 1.0 + rng.uniform(0.0, 0.05) * np.cos(rng.integers(2, 5) * theta + rng.uniform(0.0, 6.3))
    return Contour(np.asarray(uneven / uneven.max()), center, half_axes, angle)


def person(rng: Rng) -> Blueprint:
    """Head, clothes, legs, shoes; a skirt, a hat, a bag as it comes."""
    plan = Blueprint()
    whole = plan.add(None)
    hip, foot = rng.uniform(0.0, 0.12), rng.uniform(0.84, 0.9)
    spread = rng.uniform(0.06, 0.22)
    _legs(rng, plan, whole, hip, foot, spread)
    _clothes(rng, plan, whole, hip)
    _head(rng, plan, whole, (float(rng.uniform(-0.04, 0.04)), -0.78), rng.uniform(0.1, 0.15))
    if rng.random() < 0.3:
        x = float(rng.choice([-1, 1])) * rng.uniform(0.28, 0.36)
        bag = plan.add(Contour(sample_contour(rng, "superellipse"), (x, 0.18), (0.13, 0.12)), whole, "bag")
        plan.add(Band((x, 0.1), 0.03, 0.0), bag, "strap")
    return plan


def _legs(rng: Rng, plan: Blueprint, whole: int, hip: float, foot: float, spread: float) -> None:
    lower = plan.add(None, whole)
    thick = rng.uniform(0.06, 0.1)
    feet = [(-spread, foot), (spread + rng.uniform(-0.1, 0.1), foot - rng.uniform(0.0, 0.06))]
    for side, (x, y) in zip((-1, 1), feet, strict=True):
        knee = (x * 0.8 + side * rng.uniform(0.0, 0.05), (hip + y) / 2)
        leg = Stroke([(side * 0.08, hip), knee, (x, y)], [thick * 1.2, thick * 0.9, thick * 0.6])
        plan.add(leg, lower, "legs")
    if rng.random() < 0.45:
        hem, width = rng.uniform(0.25, 0.7), rng.uniform(0.18, 0.38)
        plan.add(Polygon([(-0.15, hip - 0.1), (0.15, hip - 0.1), (width, hem), (-width, hem)]), lower, "skirt")
    shoes = plan.add(None, whole)
    for side, (x, y) in zip((-1, 1), feet, strict=True):
        plan.add(oval(rng, (x + side * 0.03, y + 0.05), (rng.uniform(0.08, 0.12), 0.05)), shoes, "shoes")


def _clothes(rng: Rng, plan: Blueprint, whole: int, hip: float) -> None:
    upper = plan.add(None, whole)
    wide, bottom = rng.uniform(0.17, 0.26), hip + rng.uniform(0.0, 0.3)
    arm_look = "top" if rng.random() < 0.6 else "skin"
    for side in (-1, 1):
        elbow = (side * (wide + rng.uniform(0.03, 0.22)), rng.uniform(-0.28, -0.12))
        hand = (side * rng.uniform(0.1, 0.4), rng.uniform(-0.2, 0.16))
        arm = Stroke([(side * wide * 0.85, -0.55), elbow, hand], [0.08, 0.065, 0.05])
        plan.add(arm, upper, arm_look)
    torso = Polygon(
        [(-wide, -0.6), (-0.06, -0.66), (0.06, -0.66), (wide, -0.6), (wide * 0.85, bottom), (-wide * 0.85, bottom)]
    )
    plan.add(torso, upper, "top")
    if rng.random() < 0.4:
        plan.add(Polygon([(-0.06, -0.66), (0.06, -0.66), (0.03, bottom), (-0.03, bottom)]), upper, "shirt")


def _head(rng: Rng, plan: Blueprint, whole: int, middle: Point, radius: float) -> None:
    x, y = middle
    head = plan.add(None, whole)
    long = rng.uniform(0.0, 1.6)
    plan.add(Stroke([(x, y), (x, y + 0.2)], [radius * 0.45, radius * 0.5]), head, "skin")
    hair = Contour(
        sample_contour(rng, "blob"), (x, y + radius * (0.3 * long - 0.2)), (radius * 1.2, radius * (1.1 + 0.4 * long))
    )
    plan.add(hair, head, "hair")
    plan.add(oval(rng, (x, y + radius * 0.12), (radius * 0.8, radius)), head, "skin")
    if rng.random() < 0.25:
        plan.add(oval(rng, (x, y - radius * 0.75), (radius * 1.5, radius * 0.3)), head, "hat")
        plan.add(oval(rng, (x, y - radius * 0.95), (radius * 0.95, radius * 0.6)), head, "hat")
    elif rng.random() < 0.25:
        for side in (-1, 1):
            plan.add(oval(rng, (x + side * radius * 0.4, y), (radius * 0.35, radius * 0.25)), head, "glasses")


def face(rng: Rng) -> Blueprint:
    """A face in large: hair, eyes, mouth, neck."""
    plan = Blueprint()
    whole = plan.add(None)
    plan.add(Stroke([(0.0, 0.3), (0.0, 1.0)], [0.28, rng.uniform(0.3, 0.6)]), whole, "shirt")
    plan.add(
        Contour(sample_contour(rng, "blob"), (0.0, rng.uniform(-0.25, 0.1)), (0.8, rng.uniform(0.7, 0.95))),
        whole,
        "hair",
    )
    skull = plan.add(oval(rng, (0.0, 0.0), (rng.uniform(0.5, 0.62), 0.72)), whole, "skin")
    eye_y, eye_r = rng.uniform(-0.2, 0.0), rng.uniform(0.09, 0.16)
    for side in (-1, 1):
        plan.add(oval(rng, (side * 0.24, eye_y), (eye_r * 1.4, eye_r)), skull, "eye")
    plan.add(Stroke([(0.0, eye_y), (rng.uniform(-0.05, 0.05), 0.2)], [0.04, 0.09]), skull, "nose")
    smile = rng.uniform(-0.08, 0.12)
    plan.add(Stroke([(-0.2, 0.42), (0.0, 0.42 + smile), (0.2, 0.42)], [0.03, 0.06, 0.03]), skull, "mouth")
    if rng.random() < 0.3:
        plan.add(Band((0.0, -0.6), 0.3, rng.uniform(-0.2, 0.2)), skull, "hair")
    return plan


def animal(rng: Rng) -> Blueprint:
    """Body on thin legs, head with ears, a tail; spots or stripes."""
    plan = Blueprint()
    whole = plan.add(None)
    length, height = rng.uniform(0.5, 0.68), rng.uniform(0.24, 0.38)
    ground, thin = rng.uniform(0.6, 0.95), rng.uniform(0.045, 0.09)
    legs = plan.add(None, whole)
    for x in np.linspace(-length * 0.75, length * 0.75, int(rng.choice([2, 4, 4, 6]))):
        foot = (float(x + rng.uniform(-0.12, 0.12)), ground + rng.uniform(-0.08, 0.0))
        plan.add(
            Stroke(
                [(float(x), 0.0), (float(x) + rng.uniform(-0.06, 0.06), ground / 2), foot], [thin * 1.5, thin, thin]
            ),
            legs,
            "legs",
        )
    swing = rng.uniform(-0.6, 0.3)
    tail = [(-length * 0.9, -0.05), (-length - 0.15, swing * 0.3), (-length - 0.3, swing)]
    plan.add(Stroke(tail, [0.08, 0.05, rng.uniform(0.02, 0.07)]), whole, "legs")
    body = plan.add(
        Contour(sample_contour(rng, "blob" if rng.random() < 0.5 else "superellipse"), (0.0, 0.0), (length, height)),
        whole,
        "coat",
    )
    _markings(rng, plan, body, (length, height))
    _muzzle(rng, plan, whole, (length, -height))
    return plan


def _markings(rng: Rng, plan: Blueprint, body: int, half_axes: Point) -> None:
    kind = rng.random()
    if kind < 0.35:
        for _ in range(int(rng.integers(2, 6))):
            angle, far = rng.uniform(0.0, 2 * np.pi), np.sqrt(rng.random()) * 0.7
            place = (float(half_axes[0] * far * np.cos(angle)), float(half_axes[1] * far * np.sin(angle)))
            size = rng.uniform(0.07, 0.15)
            plan.add(Contour(sample_contour(rng, "blob"), place, (size * 1.2, size)), body, "marks")
    elif kind < 0.6:
        lean, width = rng.uniform(1.2, 1.9), rng.uniform(0.03, 0.07)
        for x in np.linspace(-0.7, 0.7, int(rng.integers(3, 6))):
            plan.add(Band((float(x) * half_axes[0], 0.0), width, lean, 0.02, 0.5), body, "marks")
    elif kind < 0.8:
        plan.add(Band((0.0, half_axes[1]), half_axes[1] * 0.8, rng.uniform(-0.2, 0.2), 0.03, 0.6), body, "marks")


def _muzzle(rng: Rng, plan: Blueprint, whole: int, shoulder: Point) -> None:
    x, y = shoulder[0] + rng.uniform(0.0, 0.2), shoulder[1] - rng.uniform(0.0, 0.4)
    radius = rng.uniform(0.16, 0.26)
    plan.add(Stroke([(shoulder[0] * 0.8, shoulder[1] * 0.4), (x, y)], [radius * 0.9, radius * 0.6]), whole, "coat")
    head = plan.add(None, whole)
    for side in (-0.6, 0.5):
        tip = (x + radius * side * 1.4, y - radius * rng.uniform(1.2, 2.0))
        plan.add(
            Polygon(
                [(x + radius * (side - 0.35), y - radius * 0.5), tip, (x + radius * (side + 0.35), y - radius * 0.5)]
            ),
            head,
            "marks",
        )
    plan.add(oval(rng, (x, y), (radius, radius * 0.95)), head, "coat")
    plan.add(oval(rng, (x + radius * 0.75, y + radius * 0.35), (radius * 0.6, radius * 0.45)), head, "nose")
    plan.add(oval(rng, (x + radius * 0.2, y - radius * 0.25), (radius * 0.22, radius * 0.22)), head, "eye")


def bird(rng: Rng) -> Blueprint:
    """Body, wing, tail, beak, and legs like wires; without legs it may pass for a fish."""
    plan = Blueprint(upright=rng.random() < 0.5)
    whole = plan.add(None)
    for x in (-0.08, 0.12) if rng.random() < 0.6 else ():
        plan.add(Stroke([(x, 0.1), (x + rng.uniform(-0.1, 0.1), 0.85)], [0.05, 0.03]), whole, "legs")
    reach = rng.uniform(0.2, 0.45)
    plan.add(Polygon([(-0.35, 0.0), (-0.95, -reach), (-0.95, reach * rng.uniform(0.2, 1.0))]), whole, "wing")
    body = plan.add(oval(rng, (0.0, 0.0), (0.6, rng.uniform(0.28, 0.42)), rng.uniform(-0.3, 0.3)), whole, "coat")
    wing = Contour(
        sample_contour(rng, "superellipse"), (-0.15, rng.uniform(-0.1, 0.1)), (0.32, 0.16), rng.uniform(-0.4, 0.4)
    )
    plan.add(wing, body, "wing")
    if rng.random() < 0.5:
        plan.add(Band((0.1, 0.3), 0.22, rng.uniform(-0.3, 0.3)), body, "belly")
    head = plan.add(None, whole)
    x, y = rng.uniform(0.5, 0.65), rng.uniform(-0.4, -0.1)
    plan.add(Polygon([(x, y - 0.08), (x + rng.uniform(0.3, 0.45), y + 0.02), (x, y + 0.1)]), head, "beak")
    plan.add(oval(rng, (x, y), (0.2, 0.19)), head, "head")
    plan.add(oval(rng, (x + 0.06, y - 0.04), (0.06, 0.06)), head, "eye")
    return plan


def insect(rng: Rng) -> Blueprint:
    """A body of segments, wings, six legs, feelers; seen from above."""
    plan = Blueprint(upright=False)
    whole = plan.add(None)
    legs = plan.add(None, whole)
    for y in (-0.25, 0.0, 0.25):
        bend = rng.uniform(0.5, 0.7)
        for side in (-1, 1):
            points = [(0.0, y), (side * bend * 0.7, y * 1.2 - 0.05), (side * bend * 1.2, y * 2.2 + 0.1)]
            plan.add(Stroke(points, [0.045, 0.035, 0.025]), legs, "legs")
    if rng.random() < 0.6:
        wings = plan.add(None, whole)
        for side in (-1, 1):
            angle = side * rng.uniform(0.3, 0.8)
            plan.add(oval(rng, (side * 0.42, 0.15), (0.42, rng.uniform(0.17, 0.28)), angle), wings, "wing")
    abdomen = plan.add(oval(rng, (0.0, 0.4), (rng.uniform(0.2, 0.32), 0.45)), whole, "coat")
    for y in np.linspace(0.2, 0.7, int(rng.integers(2, 5))):
        plan.add(Band((0.0, float(y)), 0.05, 0.0, 0.02, 0.4), abdomen, "marks")
    plan.add(oval(rng, (0.0, -0.1), (0.2, 0.2)), whole, "chest")
    head = plan.add(oval(rng, (0.0, -0.45), (0.2, 0.18)), whole, "head")
    for side in (-1, 1):
        plan.add(oval(rng, (side * 0.11, -0.5), (0.07, 0.09)), head, "eye")
    return plan


def flower(rng: Rng) -> Blueprint:
    """A stem, leaves, petals in a ring, a middle."""
    plan = Blueprint()
    whole = plan.add(None)
    lean, y = rng.uniform(-0.2, 0.2), -0.4
    plan.add(Stroke([(0.0, y), (lean, 0.3), (lean * 0.5, 1.0)], [0.035, 0.045, 0.06]), whole, "stem")
    for side in (-1, 1)[: int(rng.integers(1, 3))]:
        leaf = oval(
            rng,
            (lean + side * 0.25, rng.uniform(0.25, 0.6)),
            (0.28, rng.uniform(0.07, 0.13)),
            side * rng.uniform(-0.9, -0.2),
        )
        plan.add(leaf, whole, "leaf")
    head = plan.add(None, whole)
    count, long = int(rng.integers(5, 10)), rng.uniform(0.22, 0.32)
    for angle in np.arange(count) * (2 * np.pi / count) + rng.uniform(0.0, 1.0):
        place = (float(np.cos(angle) * long), float(y + np.sin(angle) * long))
        plan.add(oval(rng, place, (long * 0.85, long * 2.2 / count + 0.03), float(angle)), head, "petal")
    middle = rng.uniform(0.12, 0.2)
    plan.add(oval(rng, (0.0, y), (middle, middle)), head, "middle")
    return plan


def tree(rng: Rng) -> Blueprint:
    """A trunk with branches, a crown with fruit."""
    plan = Blueprint()
    whole = plan.add(None)
    trunk = plan.add(None, whole)
    lean = rng.uniform(-0.15, 0.15)
    plan.add(Stroke([(0.0, 1.0), (lean, 0.2), (lean, -0.3)], [rng.uniform(0.08, 0.16), 0.08, 0.05]), trunk, "trunk")
    bare = rng.random() < 0.35
    for side in (-1, 1, -1, 1) if bare else (-1, 1):
        start, tip = rng.uniform(-0.2, 0.4), (side * rng.uniform(0.4, 0.8), rng.uniform(-0.9, -0.3))
        plan.add(Stroke([(lean, start), (tip[0] * 0.5, tip[1] * 0.4), tip], [0.06, 0.045, 0.025]), trunk, "trunk")
    if bare:
        return plan
    crown = plan.add(None, whole)
    for x, y in rng.uniform((-0.4, -0.75), (0.4, -0.25), (int(rng.integers(1, 4)), 2)):
        plan.add(Contour(sample_contour(rng, "blob"), (float(x), float(y)), (0.45, 0.38)), crown, "leaf")
    for x, y in rng.uniform((-0.5, -0.85), (0.5, -0.1), (int(rng.integers(0, 5)), 2)):
        plan.add(oval(rng, (float(x), float(y)), (0.1, 0.1)), crown, "fruit")
    return plan
