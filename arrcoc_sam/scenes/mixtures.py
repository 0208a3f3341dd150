"""What rich scenes show: which objects, how many, how large, and before what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from arrcoc_sam.scenes import abstract, living, made
from arrcoc_sam.scenes.blueprint import Blueprint

__all__ = ["FAMILIES", "LIFELIKE", "RICH", "Mixture"]

Rng = np.random.Generator

FAMILIES: dict[str, tuple[Callable[[Rng], Blueprint], float]] = {
    "nested": (abstract.nested, 5.0),
    "person": (living.person, 2.0),
    "face": (living.face, 0.8),
    "animal": (living.animal, 1.5),
    "bird": (living.bird, 0.8),
    "insect": (living.insect, 0.5),
    "flower": (living.flower, 0.7),
    "tree": (living.tree, 0.7),
    "building": (made.building, 1.3),
    "vehicle": (made.vehicle, 1.0),
    "furniture": (made.furniture, 1.2),
    "vessel": (made.vessel, 1.0),
    "wheel": (made.wheel, 0.6),
    "shelf": (made.shelf, 0.5),
    "panel": (made.panel, 0.6),
    "fence": (made.fence, 0.4),
}
"""What objects there are, by name, and how often each is drawn beside the others."""


@dataclass(frozen=True)
class Mixture:
    """What the objects of a scene are, how many and how large, and what lies behind them.

    Attributes:
        shares: Of each of :data:`FAMILIES`, adding up to 1.
        counts: Chance of one, two, three and four kinds of object.
        radius: Smallest and largest half side of an object, as a share of the image's side.
        photographs: Chance that a photograph lies behind all.
        surfaces: Chance that one surface does; else a wall above a floor.
    """

    shares: tuple[float, ...]
    counts: tuple[float, float, float, float]
    radius: tuple[float, float]
    photographs: float
    surfaces: float


def _shares(**changed: float) -> tuple[float, ...]:
    """Of each family, some drawn more or less often than :data:`FAMILIES` says."""
    weights = {name: share for name, (_, share) in FAMILIES.items()} | changed
    return tuple(np.array([weights[name] for name in FAMILIES]) / sum(weights.values()))


RICH = Mixture(_shares(), (0.3, 0.3, 0.25, 0.15), (0.2, 0.55), photographs=0.3, surfaces=0.3)
"""All families, before anything."""

LIFELIKE = Mixture(
    _shares(nested=0.0, person=6.0, face=1.2, animal=4.0, bird=1.5),
    (0.4, 0.35, 0.25, 0.0),
    (0.25, 0.65),
    photographs=0.5,
    surfaces=0.2,
)
"""Nearer to what photographs show: more people and animals, larger, and nothing that is nothing in particular."""
