"""What the demo looks at: photographs that scikit-image brings along, and one scene whose levels are known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

__all__ = ["DEMO_PHOTOS", "DEMO_SCENE_SEED", "DemoPhoto", "DemoScene", "load_photo", "load_scene"]


@dataclass(frozen=True)
class DemoPhoto:
    """A photograph of ``skimage.data`` and where to click in it.

    Attributes:
        name: The function of ``skimage.data``; only such whose file ships in scikit-image's wheel.
        clicks: What is clicked, and where, (x, y) in pixels.
        note: What to expect, for the report.
        fails: Whether the embedded model's masks are wrong here; said in the report.
    """

    name: str
    clicks: tuple[tuple[str, tuple[int, int]], ...]
    note: str
    fails: bool = False


DEMO_PHOTOS: tuple[DemoPhoto, ...] = (
    DemoPhoto("astronaut", (("face", (222, 120)), ("suit", (192, 320))), "Eileen Collins; NASA, public domain."),
    DemoPhoto("chelsea", (("eye", (178, 108)),), "A cat's face; Stefan van der Walt, CC0."),
    DemoPhoto("coffee", (("coffee", (274, 150)),), "Coffee in a cup on a saucer; Rachel Michetti, CC0."),
    DemoPhoto("camera", (("coat", (64, 277)),), "A man with a camera; Lav Varshney, CC0."),
    DemoPhoto("coins", (("coin", (295, 45)),), "Greek coins from Pompeii; Brooklyn Museum.", fails=True),
)
"""Photographs and clicks; one of them shows where the embedded model fails."""

DEMO_SCENE_SEED = 9_100_019
"""A scene of :mod:`arrcoc_sam.scenes`, outside the seeds of training, validation and test."""


@dataclass(frozen=True)
class DemoScene:
    """A generated image with one click and the levels that are true there.

    Attributes:
        image: RGB.
        point_xy: The click, inside the subpart.
        levels: Its whole, part and subpart, (3, H, W).
        nodes: Every annotated object, part and subpart, (n, H, W).
    """

    image: UInt8[np.ndarray, "H W 3"]
    point_xy: tuple[float, float]
    levels: Bool[Tensor, "3 H W"]
    nodes: Bool[Tensor, "n H W"]


def load_photo(name: str) -> UInt8[np.ndarray, "H W 3"]:
    """A photograph that scikit-image brings along, as RGB; nothing is downloaded."""
    from skimage import data

    from arrcoc_sam.images import load_image

    return load_image(getattr(data, name)())


def load_scene(seed: int = DEMO_SCENE_SEED) -> DemoScene:
    """The scene, clicked in the innermost pixel of its largest subpart."""
    from arrcoc_sam.masks import largest_interior_point
    from arrcoc_sam.scenes import generate_scene

    scene = generate_scene(seed)
    triples = torch.from_numpy(scene.triple_masks())
    levels = triples[int(triples[:, 2].flatten(1).sum(1).argmax())]
    x, y = largest_interior_point(levels[2]).tolist()
    return DemoScene(scene.image, (x, y), levels, torch.from_numpy(scene.masks))
