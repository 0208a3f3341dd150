"""Real textures: crops of the photographs that come inside scikit-image's wheel. Nothing is downloaded.

Left out are pictures of separate objects on a plain ground (coins, a horse, a logo), which would teach that objects are
texture.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from arrcoc_sam.errors import DataError, explain

__all__ = ["PHOTOGRAPHS", "crop_photograph", "natural_color"]

_TEXTURE, _THINGS = (0.4, 1.5), (0.12, 0.6)  # of things only pieces are shown, or they would have to have masks

PHOTOGRAPHS: dict[str, tuple[float, tuple[float, float]]] = {
    "astronaut.png": (1.0, _THINGS),
    "brick.png": (1.5, _TEXTURE),
    "camera.png": (1.0, _THINGS),
    "cell.png": (0.5, _TEXTURE),
    "chelsea.png": (1.5, _THINGS),
    "clock_motion.png": (0.5, _THINGS),
    "coffee.png": (1.5, _THINGS),
    "grass.png": (1.5, _TEXTURE),
    "gravel.png": (1.5, _TEXTURE),
    "hubble_deep_field.jpg": (0.5, _TEXTURE),
    "ihc.png": (1.0, _TEXTURE),
    "moon.png": (0.7, _TEXTURE),
    "motorcycle_left.png": (2.0, _THINGS),
    "page.png": (0.4, _TEXTURE),
    "retina.jpg": (0.5, _TEXTURE),
    "rocket.jpg": (1.0, _TEXTURE),
    "text.png": (0.4, _TEXTURE),
}
"""File names in ``skimage.data``: how often each is drawn beside the others, and how many of its pixels fall on one
that comes out."""

_COLORED = ("astronaut.png", "chelsea.png", "coffee.png", "ihc.png", "motorcycle_left.png", "rocket.jpg")
_SHARES = np.array([share for share, _ in PHOTOGRAPHS.values()]) / sum(share for share, _ in PHOTOGRAPHS.values())


@cache
def _photograph(name: str) -> Image.Image:
    path = files("skimage.data").joinpath(name)
    try:
        with path.open("rb") as file:
            return Image.open(file).convert("RGB")
    except OSError as error:
        came = f"{name} of scikit-image's photographs can't be read ({error})"
        raise DataError(explain(came, "a scikit-image wheel of 0.24 or later", "install it again")) from error


def crop_photograph(rng: np.random.Generator, shape_hw: tuple[int, int]) -> NDArray[np.float32]:
    """A random crop of a random photograph, mirrored and resized.

    Args:
        rng: Source of randomness.
        shape_hw: Height and width that come out, in pixels.

    Returns:
        (H, W, 3) RGB in [0, 1].
    """
    name = str(rng.choice(list(PHOTOGRAPHS), p=_SHARES))
    photograph = _photograph(name)
    height, width = shape_hw
    width_0, height_0 = photograph.size
    scale = min(float(rng.uniform(*PHOTOGRAPHS[name][1])), width_0 / width, height_0 / height)
    box_w, box_h = max(int(width * scale), 1), max(int(height * scale), 1)
    left, top = int(rng.integers(width_0 - box_w + 1)), int(rng.integers(height_0 - box_h + 1))
    box = (left, top, left + box_w, top + box_h)
    crop = np.asarray(photograph.resize((width, height), Image.Resampling.BILINEAR, box=box))
    crop = crop[:: int(rng.choice([-1, 1])), :: int(rng.choice([-1, 1]))]
    return crop.astype(np.float32) / np.float32(255.0)


def natural_color(rng: np.random.Generator) -> NDArray[np.float64]:
    """The colour of a random place of a colour photograph, RGB in [0, 1]."""
    photograph = _photograph(_COLORED[int(rng.integers(len(_COLORED)))])
    width, height = photograph.size
    place = int(rng.integers(width)), int(rng.integers(height))
    return np.array(photograph.getpixel(place), dtype=np.float64) / 255.0
