"""Blueprints of what nature heaps up: boulders, bushes, heaps of fruit; nothing in them is of one piece."""

from __future__ import annotations

import numpy as np

from arrcoc_sam.scenes.blueprint import Blueprint
from arrcoc_sam.scenes.contours import NUM_ANGLES, Radii, sample_contour
from arrcoc_sam.scenes.shapes import Band, Contour

__all__ = ["boulder", "bunch", "rough"]

Rng = np.random.Generator


def rough(rng: Rng, kind: str | None = None) -> Radii:
    """A contour whose outline is frayed."""
    angles = np.arange(NUM_ANGLES) * (2 * np.pi / NUM_ANGLES)
    waves = rng.integers(7, 40, 6)[:, None] * angles + rng.uniform(0.0, 2 * np.pi, 6)[:, None]
    radii = sample_contour(rng, kind) * (1.0 + rng.uniform(0.0, 0.015) * np.cos(waves).sum(axis=0))
    return np.asarray(radii / radii.max())


def boulder(rng: Rng) -> Blueprint:
    """One rough lump, of several where it comes so; faces, patches of another kind and cracks on it."""
    plan = Blueprint(upright=False)
    whole = plan.add(None)
    for _ in range(int(rng.choice([1, 1, 2, 3]))):
        place = rng.normal(0.0, 0.28, 2)
        wide = rng.uniform(0.55, 0.85)
        half_axes = (float(wide), float(wide * rng.uniform(0.55, 1.0)))
        center = (float(place[0]), float(place[1]))
        lump = plan.add(Contour(rough(rng, "blob"), center, half_axes), whole, f"rock{int(rng.integers(2))}")
        for number in range(int(rng.integers(1, 5))):
            inner = tuple(float(c + rng.uniform(-0.6, 0.6) * h) for c, h in zip(center, half_axes, strict=True))
            if rng.random() < 0.3:
                angle = float(rng.uniform(0.0, np.pi))
                shape = Band((inner[0], inner[1]), rng.uniform(0.02, 0.3), angle, 0.04, rng.uniform(0.3, 1.0))
                plan.add(shape, lump, f"moss{number}")
                continue
            size = rng.uniform(0.15, 0.5)
            patch = Contour(rough(rng), (inner[0], inner[1]), (size, size * rng.uniform(0.5, 1.0)))
            plan.add(patch, lump, f"moss{number}")
    return plan


def bunch(rng: Rng) -> Blueprint:
    """Many like things, one over another: fruit, flowers, leaves, stones; together they are one."""
    plan = Blueprint(upright=False)
    whole = plan.add(None)
    count, kind = int(rng.integers(5, 15)), str(rng.choice(["superellipse", "blob", "petals", "irregular_polygon"]))
    radii, looks = rough(rng, kind) if rng.random() < 0.5 else sample_contour(rng, kind), int(rng.integers(1, 4))
    size, aspect = rng.uniform(0.24, 0.42), rng.uniform(0.6, 1.0)
    marked = rng.random() < 0.6
    for place in rng.normal(0.0, 0.42, (count, 2)):
        center = (float(place[0]), float(place[1] * 0.7))
        half = size * rng.uniform(0.75, 1.25)
        angle = float(rng.uniform(0.0, 2 * np.pi))
        item = plan.add(Contour(radii, center, (half, half * aspect), angle), whole, f"item{int(rng.integers(looks))}")
        if marked:
            plan.add(Contour(radii, center, (half * 0.45, half * aspect * 0.45), angle), item, "middle")
    return plan
