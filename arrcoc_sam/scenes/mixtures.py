"""What scenes that are not plain show: which objects, how many, how large, and before what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from arrcoc_sam.scenes import abstract, living, made, natural
from arrcoc_sam.scenes.blueprint import Blueprint

__all__ = ["FAMILIES", "LIFELIKE", "NATURAL", "RICH", "Mixture", "Paint"]

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
    "boulder": (natural.boulder, 0.0),
    "bunch": (natural.bunch, 0.0),
}
"""What objects there are, by name, and how often each is drawn beside the others in rich scenes."""


@dataclass(frozen=True)
class Paint:
    """What the surfaces of objects are like.

    Attributes:
        photographs: Share of the surfaces that are crops of photographs.
        contrast: Smallest and largest standard deviation of such a crop, of RGB in [0, 1].
        distance: From what lies behind, in colour: smallest and largest of what is asked for.
    """

    photographs: float = 0.4
    contrast: tuple[float, float] = (0.02, 0.14)
    distance: tuple[float, float] = (0.1, 0.45)


@dataclass(frozen=True)
class Mixture:
    """What the objects of a scene are, how many and how large, and what lies behind them.

    Attributes:
        shares: Of each of :data:`FAMILIES`, adding up to 1.
        counts: Chance of one, two, three and four kinds of object.
        radius: Smallest and largest half side of an object, as a share of the image's side.
        photographs: Chance that a photograph lies behind all.
        surfaces: Chance that one surface does; else a wall above a floor.
        land: Chance that hills, fields or water lie before the background, each an object of its own.
        dappled: Chance that patches of shadow fall on everything.
        paint: Of the objects.
    """

    shares: tuple[float, ...]
    counts: tuple[float, float, float, float]
    radius: tuple[float, float]
    photographs: float
    surfaces: float
    land: float = 0.0
    dappled: float = 0.0
    paint: Paint = Paint()


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

NATURAL = Mixture(
    _shares(nested=2.0, person=5.0, face=2.0, animal=4.0, bird=1.5, tree=1.5, building=2.0, boulder=4.0, bunch=3.0),
    (0.4, 0.35, 0.25, 0.0),
    (0.25, 0.75),
    photographs=0.5,
    surfaces=0.2,
    land=0.4,
    dappled=0.4,
    paint=Paint(photographs=0.75, contrast=(0.04, 0.24), distance=(0.0, 0.35)),
)
"""Nearer still: some on land, with boulders and heaps, and abstract objects too; most surfaces are photographs, of
strong contrast, hardly unlike what lies behind them; shadows of leaves on some."""
