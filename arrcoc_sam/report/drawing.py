"""Pixels and lines that both figures and pages are made of: reduced images, outlines of masks, maps as densities."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Float64, UInt8
from PIL import Image
from torch import Tensor

from arrcoc_sam.attention.maps import AttentionMaps
from arrcoc_sam.errors import ShapeError, describe, explain
from arrcoc_sam.geometry import ImageTransform
from arrcoc_sam.hierarchy.levels import LEVELS

__all__ = [
    "LevelOutlines",
    "display_peak",
    "grid_extent",
    "level_array",
    "level_outlines",
    "level_shares",
    "mask_outlines",
    "relative_density",
    "thumbnail",
]

LevelOutlines: TypeAlias = dict[str, list[Float64[np.ndarray, "_ 2"]]]
"""Closed lines of each level."""

_LONG_LINE = 64


def thumbnail(image: UInt8[np.ndarray, "H W 3"], max_side: int) -> UInt8[np.ndarray, "h w 3"]:
    """The image, reduced to ``max_side`` pixels on its longer side if it is larger.

    Example:
        >>> thumbnail(np.zeros((300, 600, 3), np.uint8), 100).shape
        (50, 100, 3)
    """
    height, width = image.shape[:2]
    if max(height, width) <= max_side:
        return image
    scale = max_side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def mask_outlines(mask: Bool[np.ndarray, "H W"], *, max_side: int = 640) -> list[Float64[np.ndarray, "_ 2"]]:
    """Closed outlines of a mask, in edge coordinates of the image: (0, 0) is the corner of the first pixel.

    Args:
        mask: The mask; one larger than ``max_side`` is reduced to that first, which is fine enough to look at.
        max_side: Longer side in pixels of what is traced. Outlines are true to half a traced pixel.

    Returns:
        One (n, 2) array of (x, y) an outline, first and last point equal; none for an empty mask.

    Example:
        >>> mask = np.zeros((4, 6), dtype=bool)
        >>> mask[1:3, 2:5] = True
        >>> [outline] = mask_outlines(mask)
        >>> outline.min(0), outline.max(0)
        (array([2., 1.]), array([5., 3.]))
    """
    from skimage.measure import find_contours

    height, width = mask.shape
    step = max(1, -(-max(height, width) // max_side))
    reduced = np.asarray(mask[step // 2 :: step, step // 2 :: step], dtype=np.uint8)
    # A rim of zeros closes outlines at the image's border.
    contours = find_contours(np.pad(reduced, 1), 0.5)  # type: ignore[no-untyped-call]
    # From row and column of the padded array's pixel centres to (x, y) of the edges between pixels.
    return [np.clip((_thinned(line)[:, ::-1] - 0.5) * step, 0, (width, height)) for line in contours]


def level_outlines(masks: Bool[np.ndarray, "3 H W"]) -> LevelOutlines:
    """:func:`mask_outlines` of whole, part and subpart.

    Raises:
        ShapeError: Not three masks.
    """
    if masks.ndim != 3 or len(masks) != len(LEVELS):
        raise ShapeError(explain(f"masks is {describe(masks)}", "(3, H, W): whole, part, subpart"))
    return {level: mask_outlines(mask) for level, mask in zip(LEVELS, masks, strict=True)}


def _thinned(line: Float64[np.ndarray, "_ 2"]) -> Float64[np.ndarray, "_ 2"]:
    """A closed line without the points that lie on a straight run, and every other point of a long curve."""
    steps = np.diff(line, axis=0)
    before = np.roll(steps, 1, axis=0)
    bends = np.abs(before[:, 0] * steps[:, 1] - before[:, 1] * steps[:, 0]) > 1e-9
    corners = line[:-1][bends]
    if len(corners) > _LONG_LINE:
        corners = corners[::2]
    return np.concatenate([corners, corners[:1]])


def relative_density(maps: AttentionMaps, index: int, prompt: int) -> Float[np.ndarray, "h w"]:
    """Density of a map relative to uniform attention over the image: 1 where it attends as to any other place.

    Args:
        maps: The maps.
        index: Which of the N maps.
        prompt: Which of the K prompts, for maps that depend on it.

    Returns:
        (h, w), >= 0; NaN on padding.
    """
    values = maps.values[index] if maps.values.ndim == 3 else maps.values[index, prompt]
    mass = values.detach().cpu().double().numpy()
    valid = maps.valid.detach().cpu().double().numpy()
    # A sliver of a cell at the border would show what rounding left there.
    covered = np.where(valid > 1e-3, valid, np.nan)
    return np.asarray(mass / covered * valid.sum() / mass.sum())


def level_shares(maps: AttentionMaps, masks: Bool[Tensor, "K 3 H W"], prompt: int) -> Float64[np.ndarray, " 3"]:
    """Share a of each level in what the maps see of the image: what the share p of the attention compares with.

    Maps of a model that crops the image see less than the image, and a is not the level's share of that.
    """
    covered = maps.transform.masks_to_grid(masks[prompt], maps.grid_hw).cpu().double().numpy()
    valid = maps.valid.detach().cpu().double().numpy()
    return np.asarray((covered * valid).sum((1, 2)) / valid.sum())


def display_peak(density: Float[np.ndarray, "h w"]) -> float:
    """The top of a map's colour scale: its peak but for the highest half per cent of cells, and at least 2.

    So one sink does not darken all the rest, and a map that is nearly uniform looks so.
    """
    return max(2.0, float(np.nanquantile(density, 0.995)))


def grid_extent(transform: ImageTransform) -> tuple[float, float, float, float]:
    """Where the frame that a grid divides lies on the original image: left, top, right, bottom in edge coordinates.

    Example:
        >>> grid_extent(ImageTransform.letterbox((50, 100), 32))
        (0.0, 0.0, 100.0, 100.0)
    """
    (frame_h, frame_w), (scale_x, scale_y), (offset_x, offset_y) = (
        transform.frame_hw,
        transform.scale_xy,
        transform.offset_xy,
    )
    left, top = -offset_x / scale_x, -offset_y / scale_y
    return left + 0.0, top + 0.0, left + frame_w / scale_x, top + frame_h / scale_y


def level_array(masks: Bool[Tensor, "K 3 H W"], prompt: int) -> Bool[np.ndarray, "3 H W"]:
    """The three masks of one prompt as an array."""
    return np.asarray(masks[prompt].detach().cpu().numpy(), dtype=bool)
