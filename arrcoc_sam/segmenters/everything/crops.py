"""Crops of the automatic mode: an image's layers of overlapping crops, and masks that a crop has cut off."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from arrcoc_sam.errors import InputError, explain
from arrcoc_sam.inputs import as_size

__all__ = ["Crop", "crop_layers", "is_cut_off"]

_EDGE_PIXELS = 20.0


class Crop(NamedTuple):
    """A part of an image that is segmented by itself.

    Attributes:
        box_xyxy: The slice (x0, y0, x1, y1) in whole pixels; x1 and y1 are not part of it.
        layer: 0 for the whole image; layer i has (2^i)² crops.
    """

    box_xyxy: tuple[int, int, int, int]
    layer: int

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width."""
        x0, y0, x1, y1 = self.box_xyxy
        return y1 - y0, x1 - x0


def crop_layers(size_hw: tuple[int, int], num_layers: int, overlap: float) -> list[Crop]:
    """The whole image, and then the crops of each layer, column by column.

    Args:
        size_hw: Height and width of the image.
        num_layers: Layers below the whole image; 0 for none.
        overlap: By how much of the image's shorter side crops of the first layer overlap; halved with each layer.

    Returns:
        The crops.

    Raises:
        InputError: A negative number of layers, or an overlap outside [0, 1).

    Reference:
        ``generate_crop_boxes`` of segment-anything.

    Example:
        >>> [crop.box_xyxy for crop in crop_layers((40, 60), 1, 0.25)]
        [(0, 0, 60, 40), (0, 0, 35, 25), (0, 15, 35, 40), (25, 0, 60, 25), (25, 15, 60, 40)]
    """
    height, width = as_size(size_hw, "size_hw")
    if num_layers < 0:
        raise InputError(explain(f"num_layers={num_layers}", "0 or more layers of crops"))
    if not 0 <= overlap < 1:
        raise InputError(explain(f"overlap={overlap}", "a share in [0, 1) of the shorter side"))
    crops = [Crop((0, 0, width, height), 0)]
    for layer in range(1, num_layers + 1):
        per_side = 2**layer
        shared = int(overlap * min(height, width) * (2 / per_side))
        crop_h, crop_w = (math.ceil((shared * (per_side - 1) + side) / per_side) for side in (height, width))
        for column in range(per_side):
            for row in range(per_side):
                x0, y0 = (crop_w - shared) * column, (crop_h - shared) * row
                crops.append(Crop((x0, y0, min(x0 + crop_w, width), min(y0 + crop_h, height)), layer))
    return crops


def is_cut_off(box_xyxy: Float[np.ndarray, " 4"], crop: Crop, size_hw: tuple[int, int]) -> bool:
    """Whether a mask ends within 20 pixels of its crop's edge, where that is not the image's edge too.

    Args:
        box_xyxy: The mask's box in the image.
        crop: The crop that it was found in.
        size_hw: Height and width of the image.

    Reference:
        ``is_box_near_crop_edge`` of segment-anything.
    """
    near_crop = np.abs(box_xyxy - np.array(crop.box_xyxy)) <= _EDGE_PIXELS
    near_image = np.abs(box_xyxy - np.array((0, 0, size_hw[1], size_hw[0]))) <= _EDGE_PIXELS
    return bool((near_crop & ~near_image).any())
