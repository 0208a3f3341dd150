"""How images are changed before training shows them: cropped, turned, mirrored, recoloured."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from arrcoc_sam.errors import InputError, explain

__all__ = ["Augmentation", "crop_window", "recolored", "turned"]


@dataclass(frozen=True)
class Augmentation:
    """How images are changed before they are shown. The default suits scenes, where up is nowhere.

    Attributes:
        crop_probability: Share of the images that are cropped.
        smallest_crop: Side of the smallest crop, as a share of the image's.
        rotate: By a random multiple of 90°.
        flip: Left and right exchanged, half of the time.
        recolor: Channels permuted; half of the time gain and offset a channel.
    """

    crop_probability: float = 0.5
    smallest_crop: float = 0.6
    rotate: bool = True
    flip: bool = True
    recolor: bool = True

    def __post_init__(self) -> None:
        """Check the shares.

        Raises:
            InputError: One is out of its range.
        """
        if not (0 <= self.crop_probability <= 1 and 0 < self.smallest_crop <= 1):
            came = f"crop_probability={self.crop_probability}, smallest_crop={self.smallest_crop}"
            raise InputError(explain(came, "shares, the second above 0"))


def crop_window(size_hw: tuple[int, ...], augmentation: Augmentation, rng: np.random.Generator) -> tuple[slice, slice]:
    """Rows and columns of a random crop of the image's shape, or all of them."""
    share = 1.0
    if rng.random() < augmentation.crop_probability:
        share = rng.uniform(augmentation.smallest_crop, 1.0)
    sides = [max(1, int(share * side)) for side in size_hw]
    corners = [int(rng.integers(side - kept + 1)) for side, kept in zip(size_hw, sides, strict=True)]
    rows, columns = (slice(corner, corner + side) for corner, side in zip(corners, sides, strict=True))
    return rows, columns


def turned(stack: ndarray, turns: int, mirrored: bool) -> ndarray:
    """One of the eight symmetries of the square, of the second and third axis."""
    rotated = np.rot90(stack, turns, axes=(1, 2))
    return np.ascontiguousarray(rotated[:, :, ::-1] if mirrored else rotated)


def recolored(pixels: Float[ndarray, "H W 3"], rng: np.random.Generator) -> Float[ndarray, "H W 3"]:
    """Channels permuted, and half of the time gain and offset a channel; pixels in [0, 255]."""
    permuted = pixels[:, :, rng.permutation(3)]
    if rng.random() < 0.5:
        gain, offset = rng.uniform(0.7, 1.3, 3), rng.uniform(-25.0, 25.0, 3)
        permuted = np.clip(permuted * gain + offset, 0.0, 255.0)
    return permuted.astype(np.float32)
