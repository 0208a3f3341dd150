"""Draws scenes of nested, textured, occluding objects from a seed, in one of several styles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arrcoc_sam.errors import InputError, UnknownNameError, explain
from arrcoc_sam.scenes.camera import photograph_rich
from arrcoc_sam.scenes.canvas import MAX_NODES, Canvas, annotate
from arrcoc_sam.scenes.mixtures import LIFELIKE, NATURAL, RICH
from arrcoc_sam.scenes.plain import paint_plain, photograph_plain
from arrcoc_sam.scenes.rich import paint_rich
from arrcoc_sam.scenes.scene import Scene

__all__ = ["GENERATOR_VERSION", "MAX_NODES", "STYLES", "check_scene", "generate_scene", "style_of_version"]


@dataclass(frozen=True)
class _Recipe:
    """How one version draws."""

    version: int
    paint: Callable[[np.random.Generator, int], Canvas]
    photograph: Callable[[np.random.Generator, Any], NDArray[np.uint8]]
    min_area: float
    max_share: float
    promote: bool


_RECIPES: dict[str, _Recipe] = {
    "plain": _Recipe(1, paint_plain, photograph_plain, min_area=0.005, max_share=0.75, promote=False),
    "rich": _Recipe(2, partial(paint_rich, mixture=RICH), photograph_rich, min_area=0.003, max_share=0.8, promote=True),
    "lifelike": _Recipe(
        3, partial(paint_rich, mixture=LIFELIKE), photograph_rich, min_area=0.003, max_share=0.8, promote=True
    ),
    "natural": _Recipe(
        4, partial(paint_rich, mixture=NATURAL), photograph_rich, min_area=0.003, max_share=0.8, promote=True
    ),
}

STYLES: dict[str, int] = {style: recipe.version for style, recipe in _RECIPES.items()}
"""The generator's version of each style. A new one is added whenever a seed is to give another image or other masks."""

GENERATOR_VERSION = STYLES["plain"]
"""The version of plain scenes, the default."""

_MIN_SIZE = 32


def check_scene(seed: int, size: int, style: str = "plain") -> None:
    """Refuse what :func:`generate_scene` refuses, before anything is drawn.

    Raises:
        InputError: A size under 32, a negative seed.
        UnknownNameError: No such style.
    """
    if size < _MIN_SIZE:
        raise InputError(explain(f"size = {size}", f"at least {_MIN_SIZE} pixels"))
    if seed < 0:
        raise InputError(explain(f"seed = {seed}", "a non-negative integer"))
    if style not in _RECIPES:
        raise UnknownNameError(explain(f"style = {style!r}", f"one of {', '.join(STYLES)}"))


def generate_scene(seed: int, size: int = 256, *, style: str = "plain") -> Scene:
    """A scene with exact masks, the same for the same seed, size and style.

    Args:
        seed: Any non-negative integer.
        size: Side of the square image in pixels, at least 32.
        style: "plain", contours in contours with procedural surfaces; or "rich", people, animals, houses and much else,
            with real textures, shadows, thin and repeated parts, and a camera's noise and JPEG; or "lifelike", rich
            with more people and animals, larger ones, before photographs; or "natural", some of them on land, with
            boulders, heaps and abstract objects too, harder to tell from what lies behind them.

    Returns:
        The scene; at least one node of level 0 with a part is annotated.

    Raises:
        InputError: ``size`` or ``seed`` out of range.
        UnknownNameError: No such style.
        DataError: Scenes that are not plain, and scikit-image's photographs are not there.

    Example:
        >>> scene = generate_scene(7, size=64)
        >>> child = int((scene.parents >= 0).argmax())  # the first node that lies in another
        >>> bool((scene.masks[child] <= scene.masks[scene.parents[child]]).all())
        True
    """
    check_scene(seed, size, style)
    recipe = _RECIPES[style]
    for attempt in range(100):
        rng = np.random.default_rng(np.random.SeedSequence([recipe.version, seed, attempt]))
        canvas = recipe.paint(rng, size)
        labels, parents, levels = annotate(
            canvas, min_area=recipe.min_area, max_share=recipe.max_share, promote=recipe.promote
        )
        if (levels == 1).any():
            break
    image = recipe.photograph(rng, canvas.image)
    return Scene(image, labels, parents, levels, seed=seed, version=recipe.version)


def style_of_version(version: int) -> str | None:
    """The style whose scenes have this version; None where the installed generator has none."""
    return next((style for style, drawn in STYLES.items() if drawn == version), None)
