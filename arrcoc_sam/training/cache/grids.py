"""From run lengths straight to area averages on a grid: no mask is ever drawn.

A mask in COCO's coding is a list of places in column-major order at which it turns on and off. The average over a cell
is linear in those places. What lies below and to the right of a corner adds to the cells a product of two ramps; a
turning point is three such corners; and a ramp over cells is the running sum of two numbers. So each turning point
scatters twelve numbers into a table, and two running sums along its axes make the averages, in float64 and exact
whatever the sizes are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64
from numpy import ndarray

from arrcoc_sam.errors import InputError, MixedSizesError, explain
from arrcoc_sam.inputs import as_size
from arrcoc_sam.masks.rle import run_lengths

__all__ = ["rle_to_grid"]


def rle_to_grid(
    rles: Sequence[Mapping[str, Any]],
    grid_hw: tuple[int, int],
    *,
    window: tuple[float, float, float, float] | None = None,
) -> Float32[ndarray, "M h w"]:
    """Masks averaged by area over the cells of a grid, as :func:`arrcoc_sam.masks.area_average` does it to bitmaps.

    Args:
        rles: M run-length masks of one size, compressed (str or bytes) or not.
        grid_hw: Rows and columns of the grid.
        window: (left, top, right, bottom) of the part of the image that the grid covers, in pixels, pixel i being
            the interval [i, i + 1]; the whole image by default. What lies outside the image is 0.

    Returns:
        (M, h, w) float32 in [0, 1].

    Raises:
        DataError: Counts that do not add up, or no COCO string.
        MixedSizesError: Masks of several sizes.
        InputError: An empty window or grid.

    Example:
        >>> rle_to_grid([{"size": [2, 4], "counts": [4, 3, 1]}], (1, 2))  # three of the right half's four pixels
        array([[[0.  , 0.75]]], dtype=float32)
    """
    rows, columns = as_size(grid_hw, "grid_hw")
    parsed = [run_lengths(rle) for rle in rles]
    if not parsed:
        return np.zeros((0, rows, columns), np.float32)
    if len({size for size, _ in parsed}) > 1:
        sizes = sorted({size for size, _ in parsed})
        raise MixedSizesError(explain(f"run lengths of sizes {sizes}", "one size", "average them one at a time"))
    (height, width), _ = parsed[0]
    left, top, right, bottom = (0.0, 0.0, float(width), float(height)) if window is None else window
    if not (right > left and bottom > top):
        raise InputError(explain(f"window={window}", "(left, top, right, bottom), left < right and top < bottom"))
    mask, place, sign = _turns([runs for _, runs in parsed])
    column, row = np.divmod(place, height)
    x, after = (np.clip((edge - left) * (columns / (right - left)), 0, columns) for edge in (column, column + 1))
    y = np.clip((row - top) * (rows / (bottom - top)), 0, rows)
    first, last = (float(np.clip((edge - top) * (rows / (bottom - top)), 0, rows)) for edge in (0, height))
    size = (len(parsed), rows + 2, columns + 2)
    # On from the turn down to the image's last row in its own column, and over all rows in the columns after it.
    table = _scatter(size, mask, y, x, sign) - _scatter(size, mask, y, after, sign)
    table += _scatter(size, mask, np.full_like(y, first), after, sign)
    if last < rows:
        table -= _scatter(size, mask, np.full_like(y, last), x, sign)
    sums = table.cumsum(1).cumsum(2)[:, :rows, :columns]
    return np.asarray(np.clip(sums, 0.0, 1.0), dtype=np.float32)


def _turns(
    runs: Sequence[Int64[ndarray, " _"]],
) -> tuple[Int64[ndarray, " T"], Int64[ndarray, " T"], Float64[ndarray, " T"]]:
    """Where masks turn on (+1) and off (-1): the mask's number, the place in column-major order, the sign."""
    numbers, places, signs = [], [], []
    for number, lengths in enumerate(runs):
        # Runs begin with background. A mask that is on at its last pixel turns off after it.
        ends = lengths.cumsum()[: len(lengths) - len(lengths) % 2]
        numbers.append(np.full(len(ends), number))
        places.append(ends)
        signs.append(np.tile((1.0, -1.0), len(ends) // 2))
    return np.concatenate(numbers), np.concatenate(places), np.concatenate(signs)


def _scatter(
    size: tuple[int, int, int],
    mask: Int64[ndarray, " T"],
    y: Float64[ndarray, " T"],
    x: Float64[ndarray, " T"],
    weight: Float64[ndarray, " T"],
) -> Float64[ndarray, "M h2 w2"]:
    """Differences, along both axes, of weighted sums of products of ramps that begin at (y, x) in units of cells."""
    row, column = y.astype(np.int64), x.astype(np.int64)
    in_row, in_column = y - row, x - column
    corner = (mask * size[1] + row) * size[2] + column
    index = np.concatenate((corner, corner + 1, corner + size[2], corner + size[2] + 1))
    above, below = weight * (1 - in_row), weight * in_row
    weights = np.concatenate((above * (1 - in_column), above * in_column, below * (1 - in_column), below * in_column))
    table = np.bincount(index, weights, minlength=size[0] * size[1] * size[2])
    return table.astype(np.float64, copy=False).reshape(size)  # of nothing, bincount counts in whole numbers
