"""Low-resolution logits of one candidate, kept and upscaled only where its mask can be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from arrcoc_sam.errors import InputError, explain
from arrcoc_sam.geometry import ImageTransform
from arrcoc_sam.masks import areas, mask_boxes
from arrcoc_sam.upscaling import interpolate_twice

__all__ = ["LogitWindow", "MeasuredMask", "WindowUpscaler", "cut_windows"]

# Cells that an upscaled pixel near the mask can look at beyond the mask's own: two steps of interpolation.
_MARGIN = 2
# What two ways to add up a logit may differ by.
_ROUNDING = 1e-4
# Masks that segment-anything upscales together: those of one click.
_AT_ONCE = 3


class LogitWindow(NamedTuple):
    """A part of a candidate's logits, beyond which no logit reaches the lower threshold.

    Attributes:
        values: (a, b), a copy.
        top: Its first row in the model's frame.
        left: Its first column.
    """

    values: Float[Tensor, "a b"]
    top: int
    left: int


class MeasuredMask(NamedTuple):
    """A mask at the image's size, as far as it reaches.

    Attributes:
        pixels: (a, b), the part of the image around it.
        top: The part's first row.
        left: The part's first column.
        box_xyxy: The mask's outermost pixels.
        stability: area(logits > t + δ) / area(logits > t − δ).
    """

    pixels: Bool[Tensor, "a b"]
    top: int
    left: int
    box_xyxy: Float[np.ndarray, " 4"]
    stability: float

    def drawn(self, size_hw: tuple[int, int], offset_xy: tuple[int, int] = (0, 0)) -> Bool[np.ndarray, "H W"]:
        """The mask on an image of this size, moved to the right and down by an offset."""
        mask = np.zeros(size_hw, dtype=bool)
        top, left = self.top + offset_xy[1], self.left + offset_xy[0]
        height, width = self.pixels.shape
        mask[top : top + height, left : left + width] = self.pixels.cpu().numpy()
        return mask


def cut_windows(logits: Float[Tensor, "n h w"], lowest: float) -> list[LogitWindow]:
    """The window of each candidate that upscaling needs: the cells above ``lowest`` and a margin.

    Args:
        logits: Over the model's whole frame.
        lowest: The lower threshold.

    Returns:
        One window a candidate, empty where no cell is above.
    """
    height, width = logits.shape[-2:]
    windows = []
    for values, box in zip(logits, mask_boxes(logits > lowest).nan_to_num(nan=-1).int().tolist(), strict=True):
        if box[0] < 0:
            windows.append(LogitWindow(values[:0, :0].clone(), 0, 0))
            continue
        left, top = max(0, box[0] - _MARGIN), max(0, box[1] - _MARGIN)
        right, bottom = min(width, box[2] + 1 + _MARGIN), min(height, box[3] + 1 + _MARGIN)
        windows.append(LogitWindow(values[top:bottom, left:right].clone(), top, left))
    return windows


@dataclass(frozen=True, eq=False)
class WindowUpscaler:
    """Logits to masks at the image's size, window by window.

    Both steps of :func:`arrcoc_sam.upscaling.upscale` are linear and act on rows and columns apart, so that a window
    goes through two small matrix products; no tensor of the model's frame is made. The logits differ from those of
    ``upscale`` by rounding only.

    Attributes:
        rows: (H, h) weights of low-resolution rows in the image's.
        columns: (W, w) likewise.
        transform: The map from the image to the model's frame.
        threshold: t of the mask.
        offset: δ of the stability.
    """

    rows: Float[Tensor, "H h"]
    columns: Float[Tensor, "W w"]
    transform: ImageTransform
    threshold: float = 0.0
    offset: float = 1.0

    @classmethod
    def of(
        cls,
        transform: ImageTransform,
        size_hw: tuple[int, int],
        *,
        device: torch.device,
        threshold: float = 0.0,
        offset: float = 1.0,
    ) -> WindowUpscaler:
        """For logits of one size over one frame.

        Args:
            transform: The map from the image to the model's frame.
            size_hw: Rows and columns of the logits.
            device: Where the logits lie.
            threshold: Of the mask.
            offset: Of the stability.
        """
        weights = [
            _weights(cells, frame, shown, side)
            for cells, frame, shown, side in zip(
                size_hw, transform.frame_hw, transform.resized_hw, transform.original_hw, strict=True
            )
        ]
        return cls(weights[0].to(device), weights[1].to(device), transform, threshold, offset)

    def sure_boxes(self, logits: Float[Tensor, "n a b"]) -> Float[Tensor, "n 4"]:
        """The outermost pixels of the image that are surely in each mask; NaN where none is sure.

        A cell has a share in some pixel, the cells around it have the rest, and at worst all of that is the least of
        them: a cell that stands out alone may be gone in the image.

        Args:
            logits: Low-resolution logits from the frame's first row and column on.
        """
        rows, columns = (
            _shares(weights, count) for weights, count in zip((self.rows, self.columns), logits.shape[1:], strict=True)
        )
        lowest = _lowest_near(_lowest_near(logits, rows.reach, dim=1), columns.reach, dim=2)
        shares = rows.share[:, None] * columns.share
        sure = (lowest + shares * (logits - lowest) > self.threshold + _ROUNDING) & (shares > 0)
        boxes = mask_boxes(sure)
        found = boxes[:, 0].isfinite()
        places = boxes.nan_to_num().long()
        pixels = torch.stack([of.pixel[places[:, side]] for side, of in enumerate((columns, rows) * 2)], dim=1)
        return torch.where(found[:, None], pixels.to(boxes.dtype), torch.nan)

    def measure(self, window: LogitWindow) -> MeasuredMask | None:
        """Mask, box and stability of a window; None of a mask without a pixel."""
        return None if window.values.numel() == 0 else self._measured(*self._by_products(window))

    def measure_exactly(self, windows: Sequence[LogitWindow]) -> list[MeasuredMask | None]:
        """:meth:`measure` of up to three windows with the very operations of segment-anything, on the whole frame.

        segment-anything upscales three masks at once, which PyTorch may round otherwise than one.

        Raises:
            InputError: More than three windows.
        """
        if len(windows) > _AT_ONCE:
            raise InputError(explain(f"{len(windows)} windows", f"at most {_AT_ONCE}"))
        base = self.threshold - self.offset - 1.0
        frame = self.rows.new_full((1, _AT_ONCE, self.rows.shape[1], self.columns.shape[1]), base)
        for (values, top, left), plane in zip(windows, frame[0], strict=False):
            plane[top : top + values.shape[0], left : left + values.shape[1]] = values
        logits = interpolate_twice(frame, self.transform, self.transform.original_hw)[0]
        return [
            None if window.values.numel() == 0 else self._measured(plane, 0, 0)
            for window, plane in zip(windows, logits, strict=False)
        ]

    def _measured(self, logits: Float[Tensor, "a b"], top: int, left: int) -> MeasuredMask | None:
        mask = logits > self.threshold
        inner = areas(logits > self.threshold + self.offset)
        outer = areas(logits > self.threshold - self.offset)
        counts = torch.stack((inner, outer)).double()
        # one wait for the device, not five
        *box, num_inner, num_outer = torch.cat((mask_boxes(mask), counts)).tolist()
        if np.isnan(box[0]):
            return None
        place = np.array((left, top, left, top), dtype=np.float32)
        stability = float(np.float32(num_inner) / np.float32(num_outer))
        return MeasuredMask(mask, top, left, np.array(box, dtype=np.float32) + place, stability)

    def _by_products(self, window: LogitWindow) -> tuple[Tensor, int, int]:
        base = self.threshold - self.offset - 1.0  # of all that is not in the window: below every threshold
        height, width = window.values.shape
        rows, top = _reached(self.rows, window.top, height)
        columns, left = _reached(self.columns, window.left, width)
        return rows @ (window.values - base) @ columns.T + base, top, left


def _weights(cells: int, frame: int, shown: int, side: int) -> Float[Tensor, "side cells"]:
    """What each pixel along one side takes of each cell, by interpolating an identity."""
    step = F.interpolate(torch.eye(cells)[None], frame, mode="linear", align_corners=False)[..., :shown]
    return F.interpolate(step, side, mode="linear", align_corners=False)[0].T.contiguous()


class _Shares(NamedTuple):
    """Of each cell along a side: the pixel that it has the largest share in, the share, and how far others reach."""

    pixel: Int64[Tensor, " cells"]
    share: Float[Tensor, " cells"]
    reach: int


def _shares(weights: Float[Tensor, "side cells"], count: int) -> _Shares:
    """Of the first so many cells; others in the same pixels lie at most ``reach`` cells away."""
    share, pixel = weights[:, :count].max(dim=0)
    cells = torch.arange(weights.shape[1], device=weights.device)
    there = (weights[pixel] > 0) & (share[:, None] > 0)
    return _Shares(pixel, share, int((cells - cells[:count, None]).abs().masked_fill(~there, 0).max()))


def _lowest_near(values: Float[Tensor, "n a b"], reach: int, *, dim: int) -> Float[Tensor, "n a b"]:
    """The least value at most so many places away along an axis."""
    lowest = values
    for step in range(1, reach + 1):
        lowest = lowest.clone() if step == 1 else lowest
        length = values.shape[dim] - step
        if length <= 0:
            break
        for to, of in ((0, step), (step, 0)):
            target = lowest.narrow(dim, to, length)
            torch.minimum(target, values.narrow(dim, of, length), out=target)
    return lowest


def _reached(weights: Float[Tensor, "side cells"], start: int, count: int) -> tuple[Float[Tensor, "a count"], int]:
    """Weights of the pixels that see any of some cells, of these cells, and the first such pixel."""
    some = weights[:, start : start + count]
    seen = (some != 0).any(1).nonzero()[:, 0]
    first, last = (int(seen[0]), int(seen[-1])) if len(seen) else (0, -1)
    return some[first : last + 1], first
