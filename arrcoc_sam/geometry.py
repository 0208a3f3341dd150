"""Where an image goes in a model's frame: an axis-aligned map that carries points, boxes, masks and grids both ways.

Two kinds of coordinates occur. *Pixel indices* are what callers use: x = 0 is the centre of the first pixel.
*Edge coordinates* u = x + 0.5 are what the map is written in: the image covers [0, W], and resizing multiplies u,
not x. All of it is float64, so that a point goes there and back within 1e-9 px.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor

from arrcoc_sam.errors import InputError, ShapeError, describe, explain
from arrcoc_sam.inputs import Coordinates, as_coordinates, as_masks, as_size
from arrcoc_sam.masks.averaging import sampling_matrix
from arrcoc_sam.masks.cell_windows import CellWindows, average_over_windows

__all__ = ["ImageTransform"]


@dataclass(frozen=True)
class ImageTransform:
    """An axis-aligned map from an original image to a model's frame: u_frame = u_original · scale + offset.

    Make one with a constructor that is named for what the preprocessing does (:meth:`identity`, :meth:`letterbox`,
    :meth:`squash`, :meth:`resize_center_crop`, :meth:`crop`, :meth:`patch_multiple`) and chain steps with :meth:`then`.

    Attributes:
        original_hw: Height and width of the original image, pixels.
        frame_hw: Height and width of the model's frame, pixels.
        scale_xy: Frame pixels per original pixel, along x and y.
        offset_xy: Where the original's top left *corner* falls in the frame, edge coordinates.
        content_xyxy: The part of the frame that shows the image, edge coordinates; the rest is padding. By default
            all of the image that falls into the frame; chained steps (a crop, then padding) show less than that.

    Example:
        >>> to_frame = ImageTransform.letterbox((480, 640), 1024)
        >>> to_frame.resized_hw, to_frame.scale_xy
        ((768, 1024), (1.6, 1.6))
        >>> to_frame.points_to_frame([[0.0, 0.0]])  # the centre of the first pixel stays in the first 1.6 pixels
        tensor([[0.3000, 0.3000]], dtype=torch.float64)
    """

    original_hw: tuple[int, int]
    frame_hw: tuple[int, int]
    scale_xy: tuple[float, float]
    offset_xy: tuple[float, float]
    content_xyxy: tuple[float, float, float, float] = (-math.inf, -math.inf, math.inf, math.inf)

    def __post_init__(self) -> None:
        object.__setattr__(self, "original_hw", as_size(self.original_hw, "original_hw"))
        object.__setattr__(self, "frame_hw", as_size(self.frame_hw, "frame_hw"))
        scale, offset = tuple(map(float, self.scale_xy)), tuple(map(float, self.offset_xy))
        if len(scale) != 2 or len(offset) != 2 or not all(map(math.isfinite, scale + offset)) or min(scale) <= 0:
            raise InputError(
                explain(f"scale_xy={self.scale_xy}, offset_xy={self.offset_xy}", "two finite numbers each, scales > 0")
            )
        object.__setattr__(self, "scale_xy", scale)
        object.__setattr__(self, "offset_xy", offset)
        (height, width), (frame_h, frame_w) = self.original_hw, self.frame_hw
        left, top, right, bottom = map(float, self.content_xyxy)
        content = (
            max(left, offset[0], 0.0),
            max(top, offset[1], 0.0),
            min(right, offset[0] + scale[0] * width, float(frame_w)),
            min(bottom, offset[1] + scale[1] * height, float(frame_h)),
        )
        if not (content[0] < content[2] and content[1] < content[3]):
            raise InputError(explain(f"a frame that shows nothing of an image of {self.original_hw}", "some of it"))
        object.__setattr__(self, "content_xyxy", content)

    # --- constructors -------------------------------------------------------------------------------------------

    @classmethod
    def identity(cls, hw: tuple[int, int]) -> ImageTransform:
        """The frame is the image."""
        return cls(hw, hw, (1.0, 1.0), (0.0, 0.0))

    @classmethod
    def letterbox(cls, original_hw: tuple[int, int], size: int) -> ImageTransform:
        """Resize so that the longest side is ``size``, then pad at the bottom or right to a square.

        Sides are rounded as SAM does, int(side · size / longest + 0.5), but never to 0, so the two scales may differ
        a little.

        Args:
            original_hw: Height and width of the image.
            size: Side of the square frame.

        Returns:
            The transform.

        Reference:
            Kirillov et al. 2023, Segment Anything; ``ResizeLongestSide`` of segment-anything. Deviation: a side that
            rounds to 0 is 1 px here, where segment-anything fails.
        """
        height, width = as_size(original_hw, "original_hw")
        (side, _) = as_size((size, size), "size")
        scale = side / max(height, width)
        new_h, new_w = max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))
        return cls((height, width), (side, side), (new_w / width, new_h / height), (0.0, 0.0))

    @classmethod
    def squash(cls, original_hw: tuple[int, int], frame_hw: tuple[int, int]) -> ImageTransform:
        """Resize both sides to those of the frame, whatever the aspect ratio."""
        (height, width), (new_h, new_w) = as_size(original_hw, "original_hw"), as_size(frame_hw, "frame_hw")
        return cls((height, width), (new_h, new_w), (new_w / width, new_h / height), (0.0, 0.0))

    @classmethod
    def resize_center_crop(
        cls,
        original_hw: tuple[int, int],
        resize: int | tuple[int, int],
        crop: int | tuple[int, int],
        *,
        rounding: Literal["round", "floor"] = "round",
    ) -> ImageTransform:
        """Resize, then cut the centre: the usual preprocessing of classifiers. Padded where the crop is larger.

        Args:
            original_hw: Height and width of the image.
            resize: The length of the shortest side (the other keeps the aspect ratio, truncated to whole pixels), or
                both sides (height, width) exactly.
            crop: The side of the square cut out, or (height, width).
            rounding: How an odd margin is halved: "round" as torchvision and timm do (half to even), "floor" as
                transformers' image processors do.

        Returns:
            The transform.

        Reference:
            ``torchvision.transforms.functional.center_crop``; ``transformers.image_transforms.center_crop``.
        """
        if rounding not in ("round", "floor"):
            raise InputError(explain(f"rounding={rounding!r}", "'round' or 'floor'"))
        height, width = as_size(original_hw, "original_hw")
        if isinstance(resize, int):
            (short, _) = as_size((resize, resize), "resize")
            longest = int(short * max(height, width) / min(height, width))
            new_h, new_w = (short, longest) if height <= width else (longest, short)
        else:
            new_h, new_w = as_size(resize, "resize")
        crop_h, crop_w = as_size((crop, crop) if isinstance(crop, int) else crop, "crop")
        offset = (-_centre(new_w, crop_w, rounding), -_centre(new_h, crop_h, rounding))
        return cls((height, width), (crop_h, crop_w), (new_w / width, new_h / height), offset)

    @classmethod
    def crop(cls, original_hw: tuple[int, int], box_xyxy: tuple[int, int, int, int]) -> ImageTransform:
        """Cut out ``image[y0:y1, x0:x1]``.

        Args:
            original_hw: Height and width of the image.
            box_xyxy: The slice (x0, y0, x1, y1) in whole pixels; x1 and y1 are not part of it.

        Returns:
            The transform.

        Raises:
            InputError: The box is empty, reaches outside the image, or is not made of whole numbers.
        """
        height, width = as_size(original_hw, "original_hw")
        x0, y0, x1, y1 = box_xyxy
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height) or any(v != int(v) for v in box_xyxy):
            raise InputError(
                explain(
                    f"box_xyxy={tuple(box_xyxy)} for an image of height {height} and width {width}",
                    "whole numbers with 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height",
                )
            )
        return cls((height, width), (int(y1 - y0), int(x1 - x0)), (1.0, 1.0), (-float(x0), -float(y0)))

    @classmethod
    def patch_multiple(
        cls, original_hw: tuple[int, int], patch: int | tuple[int, int], *, how: Literal["pad", "round"] = "pad"
    ) -> ImageTransform:
        """Bring both sides to a multiple of the patch size.

        Args:
            original_hw: Height and width of the image.
            patch: Side of a patch, or (height, width).
            how: "pad" fills up at the bottom and right; "round" resizes each side to the nearest multiple, at least
                one patch.

        Returns:
            The transform.
        """
        height, width = as_size(original_hw, "original_hw")
        patch_h, patch_w = as_size((patch, patch) if isinstance(patch, int) else patch, "patch")
        if how == "pad":
            frame = (math.ceil(height / patch_h) * patch_h, math.ceil(width / patch_w) * patch_w)
            return cls((height, width), frame, (1.0, 1.0), (0.0, 0.0))
        if how == "round":
            rounded_h = max(1, int(height / patch_h + 0.5)) * patch_h
            rounded_w = max(1, int(width / patch_w + 0.5)) * patch_w
            return cls.squash((height, width), (rounded_h, rounded_w))
        raise InputError(explain(f"how={how!r}", "'pad' or 'round'"))

    def then(self, other: ImageTransform) -> ImageTransform:
        """This step, followed by one that starts from this one's frame.

        Args:
            other: The next step; its ``original_hw`` is this one's ``frame_hw``.

        Returns:
            The transform from this one's original to the other's frame.

        Raises:
            ShapeError: The sizes do not meet.
        """
        if other.original_hw != self.frame_hw:
            raise ShapeError(
                explain(
                    f"the next step starts from {other.original_hw}",
                    f"this frame's size, {self.frame_hw}",
                    "build the next step with original_hw=this.frame_hw",
                )
            )
        (scale_x, scale_y), (offset_x, offset_y) = other.scale_xy, other.offset_xy
        x0, y0, x1, y1 = self.content_xyxy
        shown = (x0 * scale_x + offset_x, y0 * scale_y + offset_y, x1 * scale_x + offset_x, y1 * scale_y + offset_y)
        theirs = other.content_xyxy
        return ImageTransform(
            self.original_hw,
            other.frame_hw,
            (self.scale_xy[0] * scale_x, self.scale_xy[1] * scale_y),
            (self.offset_xy[0] * scale_x + offset_x, self.offset_xy[1] * scale_y + offset_y),
            (max(shown[0], theirs[0]), max(shown[1], theirs[1]), min(shown[2], theirs[2]), min(shown[3], theirs[3])),
        )

    # --- sizes --------------------------------------------------------------------------------------------------

    @property
    def resized_hw(self) -> tuple[int, int]:
        """Height and width of the whole image at the frame's scale, before any crop or padding."""
        return max(1, round(self.original_hw[0] * self.scale_xy[1])), max(
            1, round(self.original_hw[1] * self.scale_xy[0])
        )

    # --- points and boxes ---------------------------------------------------------------------------------------

    def points_to_frame(self, points_xy: Coordinates) -> Float64[Tensor, "*N 2"]:
        """Carry points from the original image to the frame.

        Args:
            points_xy: (…, 2) pixel indices of the original; fractions and points outside are fine, NaN stays NaN.

        Returns:
            (…, 2) pixel indices of the frame, float64. Not what SAM's reference code feeds its prompt encoder (that is
            x · scale + 0.5, without the half pixel before scaling): segmenters do that from ``scale_xy``.

        Raises:
            ShapeError: The last axis is not 2 long.
        """
        points = as_coordinates(points_xy, 2, "points_xy")
        return (points + 0.5) * points.new_tensor(self.scale_xy) + points.new_tensor(self.offset_xy) - 0.5

    def points_to_original(self, points_xy: Coordinates) -> Float64[Tensor, "*N 2"]:
        """Carry points from the frame back to the original image; the inverse of :meth:`points_to_frame`."""
        points = as_coordinates(points_xy, 2, "points_xy")
        return (points + 0.5 - points.new_tensor(self.offset_xy)) / points.new_tensor(self.scale_xy) - 0.5

    def boxes_to_frame(self, boxes_xyxy: Coordinates) -> Float64[Tensor, "*N 4"]:
        """Carry boxes (…, 4), XYXY in pixel indices, from the original to the frame, corner by corner, unclipped."""
        boxes = as_coordinates(boxes_xyxy, 4, "boxes_xyxy")
        return self.points_to_frame(boxes.reshape(*boxes.shape[:-1], 2, 2)).reshape(boxes.shape)

    def boxes_to_original(self, boxes_xyxy: Coordinates) -> Float64[Tensor, "*N 4"]:
        """Carry boxes (…, 4), XYXY in pixel indices, from the frame back to the original, unclipped."""
        boxes = as_coordinates(boxes_xyxy, 4, "boxes_xyxy")
        return self.points_to_original(boxes.reshape(*boxes.shape[:-1], 2, 2)).reshape(boxes.shape)

    # --- masks and grids ----------------------------------------------------------------------------------------

    def masks_to_grid(
        self, masks: Bool[Tensor, "*N H W"] | Float[Tensor, "*N H W"] | np.ndarray, grid_hw: tuple[int, int]
    ) -> Float[Tensor, "*N h w"]:
        """Average masks of the original image over the cells of a grid laid on the frame, by exact overlap.

        A cell that reaches over the image's edge is averaged over the share of it that shows the image
        (:meth:`grid_valid`); a cell on padding is 0. So Σ grid · valid, in cells, is the area of the mask in the frame.

        Args:
            masks: (…, H, W) at the original size, bool or soft.
            grid_hw: Rows and columns of the grid.

        Returns:
            (…, h, w) in [0, 1], float32 (float64 for float64 masks), on the masks' device.

        Raises:
            ShapeError: The masks are not of the original size.
            InputError: Masks of another dtype, or an empty grid.
        """
        given = as_masks(masks, soft=True)
        if tuple(given.shape[-2:]) != self.original_hw:
            expected = f"(…, {self.original_hw[0]}, {self.original_hw[1]}), the image's size"
            raise ShapeError(explain(f"masks is {describe(given)}", expected))
        rows, columns = self._windows(grid_hw)
        return average_over_windows(given, rows.normalised(), columns.normalised())

    def grid_valid(self, grid_hw: tuple[int, int]) -> Float32[Tensor, "h w"]:
        """The share of each cell of the grid that shows the image: 1 within, 0 on padding, fractions at the edge."""
        rows, columns = self._windows(grid_hw)
        return torch.outer(rows.share, columns.share).float()

    def grid_to_image(
        self, values: Float[Tensor, "*N h w"], *, mode: Literal["nearest", "bilinear"] = "nearest", fill: float = 0.0
    ) -> Float[Tensor, "*N H W"]:
        """Draw values on the frame's grid at the size of the original image, for plots.

        Args:
            values: (…, h, w), one value a cell.
            mode: "nearest" shows the cell under each pixel's centre; "bilinear" interpolates between the centres of
                the cells (as ``align_corners=False``), and never with cells that lie on padding.
            fill: The value of pixels that the frame does not show (cropped away). NaN draws them transparent.

        Returns:
            (…, H, W), of the values' dtype and device.

        Raises:
            ShapeError: Fewer than two axes.
        """
        if values.ndim < 2 or 0 in values.shape[-2:]:
            raise ShapeError(explain(f"values is {describe(values)}", "(…, h, w) with h, w >= 1"))
        if mode not in ("nearest", "bilinear"):
            raise InputError(explain(f"mode={mode!r}", "'nearest' or 'bilinear'"))
        num_rows, num_columns = values.shape[-2:]
        rows, rows_shown = self._sampling(1, num_rows, mode)
        columns, columns_shown = self._sampling(0, num_columns, mode)
        drawn = rows.to(values) @ values @ columns.to(values).T
        shown = (rows_shown[:, None] & columns_shown).to(values.device)
        return torch.where(shown, drawn, drawn.new_tensor(fill))

    def cells_at(self, points_xy: Coordinates, grid_hw: tuple[int, int]) -> Int64[Tensor, "*N 2"]:
        """The cell of the grid under each point of the original image.

        Args:
            points_xy: (…, 2) pixel indices of the original image.
            grid_hw: Rows and columns of the grid.

        Returns:
            (…, 2) int64, (row, column).

        Raises:
            InputError: A point lies outside the image or in a part of it that the frame does not show.
        """
        grid_h, grid_w = as_size(grid_hw, "grid_hw")
        points = as_coordinates(points_xy, 2, "points_xy")
        edge = self.points_to_frame(points) + 0.5
        x0, y0, x1, y1 = self.content_xyxy
        slack = 1e-9 * max(self.frame_hw)
        inside = (edge >= edge.new_tensor((x0 - slack, y0 - slack))) & (
            edge <= edge.new_tensor((x1 + slack, y1 + slack))
        )
        if not bool(inside.all()):
            first = points[~inside.all(-1)][0].tolist()
            raise InputError(
                explain(
                    f"the point (x, y) = {tuple(first)} of an image of height {self.original_hw[0]} and width "
                    f"{self.original_hw[1]}",
                    "a point of the image that the model's frame shows",
                    "choose a point inside the image that the preprocessing does not crop away",
                )
            )
        cells = (edge * edge.new_tensor((grid_w / self.frame_hw[1], grid_h / self.frame_hw[0]))).floor().long()
        (first_x, last_x), (first_y, last_y) = self._shown_cells(0, grid_w), self._shown_cells(1, grid_h)
        column, row = cells[..., 0].clamp(first_x, last_x), cells[..., 1].clamp(first_y, last_y)
        return torch.stack((row, column), dim=-1)

    def _shown_cells(self, axis: int, num_cells: int) -> tuple[int, int]:
        """First and last of the cells along x (0) or y (1) that show some of the image."""
        per_pixel = num_cells / self.frame_hw[1 - axis]
        first = int(self.content_xyxy[axis] * per_pixel + 1e-9)
        return first, max(first, math.ceil(self.content_xyxy[axis + 2] * per_pixel - 1e-9) - 1)

    def _windows(self, grid_hw: tuple[int, int]) -> tuple[CellWindows, CellWindows]:
        """The cells' rows and columns on the original's, with what the frame does not show left out."""
        grid_h, grid_w = as_size(grid_hw, "grid_hw")
        windows = []
        for axis, cells in ((1, grid_h), (0, grid_w)):
            scale, offset = self.scale_xy[axis], self.offset_xy[axis]
            low, high = self.content_xyxy[axis], self.content_xyxy[axis + 2]
            windows.append(
                CellWindows.of(
                    self.original_hw[1 - axis],
                    cells,
                    start=-offset / scale,
                    stop=(self.frame_hw[1 - axis] - offset) / scale,
                    valid=((low - offset) / scale, (high - offset) / scale),
                )
            )
        return windows[0], windows[1]

    def _sampling(
        self, axis: int, num_cells: int, mode: Literal["nearest", "bilinear"]
    ) -> tuple[Float64[Tensor, "pixels cells"], Bool[Tensor, " pixels"]]:
        """Weights of the cells at the original's pixel centres along x (0) or y (1), and which of these are shown."""
        frame, pixels = self.frame_hw[1 - axis], self.original_hw[1 - axis]
        centres = (torch.arange(pixels, dtype=torch.float64) + 0.5) * self.scale_xy[axis] + self.offset_xy[axis]
        shown = (centres >= self.content_xyxy[axis]) & (centres <= self.content_xyxy[axis + 2])
        within = self._shown_cells(axis, num_cells)
        return sampling_matrix(centres * (num_cells / frame), num_cells, mode=mode, within=within), shown


def _centre(side: int, crop: int, rounding: str) -> float:
    """Where a centred crop begins along one side; negative where it has to be padded."""
    if rounding == "floor":
        return float((side - crop) // 2)
    return float(round((side - crop) / 2)) if side >= crop else -float((crop - side) // 2)
