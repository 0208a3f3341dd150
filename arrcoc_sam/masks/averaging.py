"""Exact area averages: how masks get onto a coarser grid without losing area.

A cell of the grid takes from every pixel in proportion to their overlap. In two dimensions that is two small
matrices, one for the rows and one for the columns (:func:`overlap_matrix`); :mod:`arrcoc_sam.masks.cell_windows`
does the same without ever multiplying with a 0.

Reference:
    Adaptive average pooling, the usual shortcut, changes areas by factors of 0.8 to 1.56 from 50 to 14 cells, for its
    windows overlap.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from arrcoc_sam.errors import InputError, explain
from arrcoc_sam.inputs import as_masks, as_size
from arrcoc_sam.masks.cell_windows import CellWindows, average_over_windows
from arrcoc_sam.masks.precision import full_precision

__all__ = ["area_average", "overlap_matrix", "sampling_matrix", "separable_average"]

# Elements worked on at a time: on the CPU 4 MB of float64s, so that they stay in the caches.
_CHUNK_CPU = 1 << 19
_CHUNK_GPU = 1 << 25


def overlap_matrix(
    num_in: int,
    num_out: int,
    *,
    start: float = 0.0,
    stop: float | None = None,
    valid: tuple[float, float] | None = None,
) -> Float64[Tensor, "cells pixels"]:
    """The share of every cell that every pixel covers, along one axis.

    The pixels are the intervals [i, i + 1]; the cells divide [start, stop] evenly. Rows sum to the share of the cell
    that lies on valid pixels: 1 for a cell within, 0 for one beside them. Shares under 1e-9 are rounding, and are 0.

    Args:
        num_in: Number of pixels.
        num_out: Number of cells.
        start: Where the first cell begins, in pixels; may be negative.
        stop: Where the last cell ends; ``num_in`` by default.
        valid: The interval of pixels that count; all of them by default.

    Returns:
        The matrix (num_out, num_in), float64, in [0, 1].

    Raises:
        InputError: No pixel, no cell, or an empty interval.

    Example:
        >>> overlap_matrix(3, 2) * 3
        tensor([[2., 1., 0.],
                [0., 1., 2.]], dtype=torch.float64)
    """
    end = float(num_in) if stop is None else float(stop)
    if num_in < 1 or num_out < 1 or not end > start:
        came = f"num_in={num_in}, num_out={num_out}, start={start}, stop={end}"
        raise InputError(explain(came, "at least one pixel and one cell, and start < stop"))
    low_valid, high_valid = (0.0, float(num_in)) if valid is None else valid
    # Edges by one multiplication each, not by adding up steps: the last edge is `end` exactly.
    edges = start + (end - start) * (torch.arange(num_out + 1, dtype=torch.float64) / num_out)
    edges = edges.clamp(max(low_valid, 0.0), min(high_valid, float(num_in)))
    pixels = torch.arange(num_in, dtype=torch.float64)
    low = torch.maximum(edges[:-1, None], pixels)
    high = torch.minimum(edges[1:, None], pixels + 1)
    shares = (high - low).clamp_min(0) * (num_out / (end - start))
    return torch.where(shares > 1e-9, shares, 0.0)


def sampling_matrix(
    positions: Float64[Tensor, " points"],
    num_cells: int,
    *,
    mode: Literal["nearest", "bilinear"],
    within: tuple[int, int] | None = None,
) -> Float64[Tensor, "points cells"]:
    """The weight of every cell in the value at each point, along one axis.

    Args:
        positions: Where to read, in cells: cell i is the interval [i, i + 1].
        num_cells: Number of cells.
        mode: "nearest" reads the cell that the point lies in; "bilinear" interpolates between the cells' centres.
        within: First and last cell that may be read; points beyond read the nearest of these. All by default.

    Returns:
        The matrix (points, num_cells), float64; rows sum to 1.

    Example:
        >>> sampling_matrix(torch.tensor([0.5, 1.25], dtype=torch.float64), 2, mode="bilinear")
        tensor([[1.0000, 0.0000],
                [0.2500, 0.7500]], dtype=torch.float64)
    """
    first, last = (0, num_cells - 1) if within is None else within
    position = positions.floor() if mode == "nearest" else positions - 0.5
    position = position.clamp(first, last)
    below = position.floor()
    share = (position - below)[:, None]
    cell = below.long()[:, None]
    weights = torch.zeros(len(positions), num_cells, dtype=torch.float64)
    return weights.scatter_add_(1, cell, 1 - share).scatter_add_(1, (cell + 1).clamp_max(last), share)


def separable_average(
    masks: Bool[Tensor, "*N H W"] | Float[Tensor, "*N H W"],
    rows: Float[Tensor, "h H"],
    columns: Float[Tensor, "w W"],
) -> Float[Tensor, "*N h w"]:
    """``rows @ masks @ columns.T`` in float64 for masks of any dtype, without a float copy of all of them.

    Works through the masks in chunks that stay in the processor's caches. Differentiable in soft masks. Products are
    exact to float64's rounding whatever autocast and TF32 are set to, so that a mask of ones has no variance.

    Args:
        masks: (…, H, W), bool or float.
        rows: Weights of the rows, (h, H).
        columns: Weights of the columns, (w, W).

    Returns:
        (…, h, w) float64; float32 on Apple's GPUs, which have nothing wider.
    """
    dtype = torch.float32 if masks.device.type == "mps" else torch.float64
    *batch, height, width = masks.shape
    flat = masks.reshape(-1, height, width)
    rows = rows.to(device=masks.device, dtype=dtype)
    columns = columns.to(device=masks.device, dtype=dtype).T.contiguous()
    budget = _CHUNK_CPU if masks.device.type == "cpu" else _CHUNK_GPU
    group = max(1, budget // (height * width))
    block = max(1, budget // width)  # rows at a time; only masks larger than the budget have more than one block
    averages = []
    with full_precision(masks.device):
        for start in range(0, max(1, len(flat)), group):
            some = flat[start : start + group]
            average = rows[:, :block] @ (some[:, :block].to(dtype) @ columns)
            for top in range(block, height, block):
                average = average + rows[:, top : top + block] @ (some[:, top : top + block].to(dtype) @ columns)
            averages.append(average)
    return torch.cat(averages).reshape(*batch, len(rows), columns.shape[1])


def area_average(
    masks: Bool[Tensor, "*N H W"] | Float[Tensor, "*N H W"] | np.ndarray, grid_hw: tuple[int, int]
) -> Float[Tensor, "*N h w"]:
    """Average masks over the cells of a grid by exact fractional overlap, so that their area is kept.

    Each cell is the mean of the mask over it, a pixel on the border of two cells counting for both in proportion.
    The mean over the cells equals the mean over the pixels for any sizes, which adaptive pooling does not give
    (its windows overlap). A grid finer than the mask is filled by the same rule.

    Args:
        masks: (…, H, W), bool or soft.
        grid_hw: Rows and columns of the grid.

    Returns:
        (…, h, w) in [0, 1], float32 (float64 for float64 masks), on the masks' device.

    Raises:
        InputError: Masks of another dtype, or an empty grid.
        ShapeError: Fewer than two axes.

    Example:
        >>> area_average(torch.tensor([[True, True, False]]), (1, 2))
        tensor([[1.0000, 0.3333]])
    """
    given = as_masks(masks, soft=True)
    (height, width), (grid_h, grid_w) = given.shape[-2:], as_size(grid_hw, "grid_hw")
    if torch.compiler.is_compiling():
        return _average_in_one_graph(given, grid_h, grid_w)
    return average_over_windows(given, CellWindows.of(height, grid_h), CellWindows.of(width, grid_w))


def _average_in_one_graph(
    masks: Bool[Tensor, "*N H W"] | Float[Tensor, "*N H W"], grid_h: int, grid_w: int
) -> Float[Tensor, "*N h w"]:
    """The same for ``torch.compile``: windows are lists of numbers, and chunks are loops, which would break its graph.

    Where cells are not whole pixels, by products with matrices that are mostly 0: a pixel that is NaN or infinite
    spoils all cells of its mask.
    """
    dtype = torch.float64 if masks.dtype == torch.float64 else torch.float32
    *batch, height, width = masks.shape
    if height % grid_h == 0 and width % grid_w == 0:
        return masks.reshape(*batch, grid_h, height // grid_h, grid_w, width // grid_w).to(dtype).mean((-3, -1))
    wide = torch.float32 if masks.device.type == "mps" else torch.float64
    rows, columns = (
        overlap_matrix(pixels, cells).to(device=masks.device, dtype=wide)
        for pixels, cells in ((height, grid_h), (width, grid_w))
    )
    with full_precision(masks.device):
        return (rows @ (masks.to(wide) @ columns.T)).to(dtype)
