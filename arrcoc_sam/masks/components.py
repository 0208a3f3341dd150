"""The pieces of a mask and its innermost point: what needs a walk over the pixels, on the CPU, by scipy."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int32, Int64
from scipy import ndimage
from torch import Tensor

from arrcoc_sam.errors import InputError, explain
from arrcoc_sam.inputs import as_masks

__all__ = ["connected_components", "inscribed_circle", "largest_interior_point"]

# From this length on a mask's innermost point is searched by blocks, unless that takes more than this many distances a
# pixel, which is when the transform of all of it is faster.
_LARGE = 200
_PAIRS_PER_PIXEL = 5


def connected_components(
    masks: Bool[Tensor, "*N H W"] | np.ndarray, *, connectivity: int = 8
) -> tuple[Int32[Tensor, "*N H W"], Int64[Tensor, "*N"]]:
    """Label the connected pieces of each mask, the largest first.

    Args:
        masks: (…, H, W) bool.
        connectivity: 8 joins pixels that touch at a corner, 4 only those that share a side.

    Returns:
        Labels (…, H, W) int32: 0 off the mask, 1 on its largest piece, 2 on the next (of equal ones the upper left
        first), and the number of pieces (…) int64. Computed on the CPU, returned on the masks' device.

    Raises:
        InputError: Another connectivity.
    """
    if connectivity not in (4, 8):
        raise InputError(explain(f"connectivity={connectivity}", "4 or 8"))
    given = as_masks(masks)
    structure = ndimage.generate_binary_structure(2, 2 if connectivity == 8 else 1)
    flat = given.reshape(-1, *given.shape[-2:]).cpu().numpy()
    labels = np.zeros(flat.shape, dtype=np.int32)
    counts = np.zeros(len(flat), dtype=np.int64)
    for index, mask in enumerate(flat):
        found, counts[index] = ndimage.label(mask, structure=structure)
        if counts[index] < 2:
            labels[index] = found
            continue
        order = np.argsort(-np.bincount(found.ravel(), minlength=counts[index] + 1)[1:], kind="stable")
        rank = np.zeros(counts[index] + 1, dtype=np.int32)
        rank[order + 1] = np.arange(1, counts[index] + 1)
        labels[index] = rank[found]
    shape = given.shape
    return (
        torch.from_numpy(labels).reshape(shape).to(given.device),
        torch.from_numpy(counts).reshape(shape[:-2]).to(given.device),
    )


def inscribed_circle(
    masks: Bool[Tensor, "*N H W"] | np.ndarray,
) -> tuple[Float64[Tensor, "*N 2"], Float64[Tensor, "*N"]]:
    """The pixel of each mask that is farthest from everything that is not the mask, and how far that is.

    The maximum of the Euclidean distance transform. What lies beyond the image counts as background, so that a mask
    cut by the image's border does not draw the point to the border.

    Args:
        masks: (…, H, W) bool.

    Returns:
        The points (…, 2), (x, y) pixel indices, float64, NaN for an empty mask (of equally good ones the upper left);
        and the distance (…) to the nearest pixel outside, float64, 0 for an empty mask. Computed on the CPU, returned
        on the masks' device.
    """
    given = as_masks(masks)
    flat = given.reshape(-1, *given.shape[-2:]).cpu().numpy()
    points = np.full((len(flat), 2), np.nan)
    radii = np.zeros(len(flat))
    for index, mask in enumerate(flat):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if len(rows) == 0:
            continue
        # nothing outside the tight box can be nearer than the ring of background around it
        padded = np.pad(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], 1)
        row, column, radii[index] = _innermost(padded)
        points[index] = columns[0] + column - 1, rows[0] + row - 1
    shape = given.shape[:-2]
    return (
        torch.from_numpy(points).reshape(*shape, 2).to(given.device),
        torch.from_numpy(radii).reshape(shape).to(given.device),
    )


def _innermost(mask: np.ndarray) -> tuple[int, int, float]:
    """Row, column and value of the first maximum of the Euclidean distance transform; the mask has a background rim.

    A large mask is searched by blocks instead, with the same result: distance changes by at most the step one takes,
    so the distance at a block's middle bounds that of all its pixels, and blocks that cannot beat the best pixel known
    are dropped, the others quartered.
    """
    found = _search(mask) if max(mask.shape) >= _LARGE else None
    if found is not None:
        return found
    distance = ndimage.distance_transform_edt(mask)
    row, column = divmod(int(distance.argmax()), mask.shape[1])
    return row, column, float(distance[row, column])


def _search(mask: np.ndarray) -> tuple[int, int, float] | None:
    """:func:`_innermost` by blocks; None where too many of them stay in the running."""
    # the nearest background pixel shares a side with the mask: from any other, a step towards the mask comes nearer
    outline = np.zeros_like(mask)
    for ahead, behind in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        outline[ahead] |= mask[behind]
        outline[behind] |= mask[ahead]
    border = np.argwhere(outline & ~mask).astype(np.float64)
    side = 1 << (max(mask.shape).bit_length() - 6)  # 32 to 63 blocks along the longer side
    corners = np.argwhere(_blocks_in_the_running(mask, side)) * side
    while True:
        if len(corners) * len(border) > _PAIRS_PER_PIXEL * mask.size:
            return None
        middles = np.minimum(corners + side // 2, np.array(mask.shape) - 1)
        squared = _squared_distance_to_nearest(middles, border)
        on_mask = mask[middles[:, 0], middles[:, 1]]
        if side == 1:
            squared, middles = squared[on_mask], middles[on_mask]
            row, column = min(middles[squared == squared.max()].tolist())
            return row, column, float(np.sqrt(squared.max()))
        distance = np.sqrt(squared)
        best = distance[on_mask].max(initial=0.0)
        corners = corners[distance + np.sqrt(2) * (side // 2) >= best - 1e-9]
        side //= 2
        corners = (corners[:, None] + np.array([(0, 0), (0, side), (side, 0), (side, side)])).reshape(-1, 2)
        corners = corners[(corners < mask.shape).all(1)]


def _blocks_in_the_running(mask: np.ndarray, side: int) -> np.ndarray:
    """The blocks that can hold the maximum, by the distance of each to the nearest block that is not all mask.

    That differs from the distance between their pixels by at most √2 · (side - 1) either way.
    """
    height, width = mask.shape
    padded = np.pad(mask, ((0, -height % side), (0, -width % side)))
    blocks = padded.reshape(padded.shape[0] // side, side, padded.shape[1] // side, side)
    distance = ndimage.distance_transform_edt(np.pad(blocks.all((1, 3)), 1))[1:-1, 1:-1] * side
    chosen: np.ndarray = blocks.any((1, 3)) & (distance >= distance.max() - 2 * np.sqrt(2) * (side - 1) - 1e-9)
    return chosen


def _squared_distance_to_nearest(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Whole numbers, as float64: (p - q)² by a matrix product, a few points at a time."""
    lifted = np.concatenate((-2 * others, (others**2).sum(1, keepdims=True)), axis=1)
    step = max(1, (1 << 18) // len(others))
    parts = [points[start : start + step].astype(np.float64) for start in range(0, len(points), step)]
    nearest = [(np.pad(part, ((0, 0), (0, 1)), constant_values=1) @ lifted.T).min(1) for part in parts]
    squared: np.ndarray = np.concatenate(nearest) + (points.astype(np.float64) ** 2).sum(1)
    return squared


def largest_interior_point(masks: Bool[Tensor, "*N H W"] | np.ndarray) -> Float64[Tensor, "*N 2"]:
    """The pixel of each mask that is farthest from everything that is not the mask; see :func:`inscribed_circle`.

    Args:
        masks: (…, H, W) bool.

    Returns:
        (…, 2), (x, y) pixel indices, float64; NaN for an empty mask.

    Example:
        >>> largest_interior_point(torch.ones(5, 7, dtype=torch.bool)).tolist()
        [2.0, 2.0]
    """
    return inscribed_circle(masks)[0]
