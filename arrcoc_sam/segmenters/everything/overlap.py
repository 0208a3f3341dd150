"""Overlap of boxes in the automatic mode, also of boxes that are known only to a cell of the logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32

__all__ = ["RoughBoxes", "box_iou"]


def box_iou(box_xyxy: Float[np.ndarray, " 4"], others_xyxy: Float[np.ndarray, "n 4"]) -> Float32[np.ndarray, " n"]:
    """IoU of a box with others, corner to corner, in float32 as ``torchvision.ops.nms`` has it; 0 / 0 is 0."""
    box, others = box_xyxy.astype(np.float32), others_xyxy.astype(np.float32)
    return _ratio(_intersection(box, others), _area(box[None]), _area(others))


class RoughBoxes(NamedTuple):
    """Boxes of masks that were not upscaled yet: between which bounds they will come to lie.

    Attributes:
        inner: (n, 4), what each box surely contains, pixel indices; NaN where nothing is sure.
        outer: (n, 4), what each box surely lies in.
    """

    inner: Float[np.ndarray, "n 4"]
    outer: Float[np.ndarray, "n 4"]

    @classmethod
    def of(
        cls,
        sure_xyxy: Float[np.ndarray, "n 4"],
        cells_xyxy: Float[np.ndarray, "n 4"],
        cell_xy: Sequence[float],
        size_hw: tuple[int, int],
    ) -> RoughBoxes:
        """From the cells of each mask at low resolution.

        The outline of an upscaled mask runs between the centre of its outermost cell and that of the next one.

        Args:
            sure_xyxy: Pixels of the image that are surely in each mask, the outermost known; NaN for none.
            cells_xyxy: Outermost cells of all, the first ones of the padding among them; NaN for none.
            cell_xy: Width and height of a cell in pixels of the image.
            size_hw: Height and width of the image.

        Returns:
            The bounds, the outer ones with half a pixel of the image and of a frame of four pixels a cell to spare.
        """
        cell = np.tile(np.asarray(cell_xy, dtype=np.float64), 2)
        centres = (cells_xyxy + 0.5) * cell - 0.5
        outwards, spare = np.array((-1.0, -1.0, 1.0, 1.0)), 0.5 + cell / 8
        last = np.tile(np.asarray(size_hw, dtype=np.float64)[::-1] - 1, 2)
        outer = centres + outwards * (cell + spare)
        return cls(sure_xyxy.astype(np.float64), outer.clip(0, last))

    @classmethod
    def cat(cls, parts: Sequence[RoughBoxes]) -> RoughBoxes:
        """All of several, in order."""
        return cls(np.concatenate([part.inner for part in parts]), np.concatenate([part.outer for part in parts]))

    def least_iou(self, index: int, others_xyxy: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, " n"]:
        """The least IoU that one of the boxes can have with others that are known exactly; 0 of an empty one."""
        outer = self.outer[index : index + 1]
        return _ratio(_intersection(self.inner[index], others_xyxy), _area(outer), _area(others_xyxy))


def _intersection(box: Float[np.ndarray, " 4"], others: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, " n"]:
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    shared: np.ndarray = np.nan_to_num(sides.clip(min=0)).prod(-1)
    return shared


def _area(boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, " n"]:
    area: np.ndarray = (boxes[..., 2:] - boxes[..., :2]).prod(-1)
    return area


def _ratio(
    shared: Float[np.ndarray, " n"], area: Float[np.ndarray, " 1"], areas: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    union = area + areas - shared
    ratio: np.ndarray = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return ratio
