"""Pure operations on masks, batched, in torch.

A mask is a bool tensor (…, H, W); where it makes sense, soft masks (floats in [0, 1]) are taken too. Numpy arrays are
accepted everywhere. Nothing here knows about images, models or levels.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from arrcoc_sam.errors import InputError, ShapeError, describe, explain

__all__ = [
    "area_average",
    "as_masks",
    "overlap_matrix",
    "separable_average",
]

# Float elements converted at a time on the CPU: 4 MB, so that the copy of the masks stays in the caches.
_CHUNK_CPU = 1 << 20
_CHUNK_GPU = 1 << 26


def as_masks(
    masks: Tensor | np.ndarray, *, name: str = "masks", soft: bool = False, min_rank: int = 2
) -> Bool[Tensor, "*N H W"] | Float[Tensor, "*N H W"]:
    """Masks as a tensor, without a copy where possible, or the error that says what is wrong with them.

    Args:
        masks: Bool masks (…, H, W); with ``soft`` also floats in [0, 1].
        name: The argument's name in the error message.
        soft: Whether float masks are accepted.
        min_rank: The least number of axes, H and W included.

    Returns:
        The masks as a tensor, bool or floating point.

    Raises:
        ShapeError: Fewer axes than ``min_rank``, or H or W is 0.
        InputError: Another dtype.

    Example:
        >>> as_masks(np.ones((2, 3), dtype=bool)).shape
        torch.Size([2, 3])
    """
    expected = "bool masks" + (" or soft masks of floats in [0, 1]" if soft else "") + " of shape (…, H, W)"
    if isinstance(masks, np.ndarray):
        if masks.dtype != np.bool_ and not (soft and masks.dtype in (np.float16, np.float32, np.float64)):
            raise InputError(explain(f"{name} is {describe(masks)}", expected, f"threshold it, for example {name} > 0"))
        # from_numpy takes neither negative strides nor, without a warning, read-only memory
        usable = masks if masks.flags.writeable and all(s >= 0 for s in masks.strides) else masks.copy()
        masks = torch.from_numpy(usable)
    if not isinstance(masks, Tensor):
        raise InputError(explain(f"{name} is {describe(masks)}", expected, "pass a tensor or a numpy array"))
    if masks.dtype != torch.bool and not (soft and masks.is_floating_point()):
        raise InputError(explain(f"{name} is {describe(masks)}", expected, f"threshold it, for example {name} > 0"))
    if masks.ndim < min_rank or 0 in masks.shape[-2:]:
        raise ShapeError(explain(f"{name} is {describe(masks)}", f"at least {min_rank} axes, the last two (H, W) >= 1"))
    return masks


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


def separable_average(
    masks: Bool[Tensor, "*N H W"] | Float[Tensor, "*N H W"],
    rows: Float[Tensor, "h H"],
    columns: Float[Tensor, "w W"],
) -> Float[Tensor, "*N h w"]:
    """``rows @ masks @ columns.T`` for masks of any dtype, without a float copy of all of them.

    Works through the masks in chunks that stay in the processor's caches. Differentiable in soft masks.

    Args:
        masks: (…, H, W), bool or float.
        rows: Weights of the rows, (h, H).
        columns: Weights of the columns, (w, W).

    Returns:
        (…, h, w) float32; float64 for float64 masks.
    """
    dtype = torch.float64 if masks.dtype == torch.float64 else torch.float32
    *batch, height, width = masks.shape
    flat = masks.reshape(-1, height, width)
    rows = rows.to(device=masks.device, dtype=dtype)
    columns = columns.to(device=masks.device, dtype=dtype).T.contiguous()
    budget = _CHUNK_CPU if masks.device.type == "cpu" else _CHUNK_GPU
    group = max(1, budget // (height * width))
    block = height if height * width <= budget else max(1, budget // width)
    averages = []
    for first in range(0, len(flat), group):
        some = flat[first : first + group]
        parts = [
            rows[:, top : top + block] @ (some[:, top : top + block].to(dtype) @ columns)
            for top in range(0, height, block)
        ]
        averages.append(torch.stack(parts).sum(0) if len(parts) > 1 else parts[0])
    result = torch.cat(averages) if averages else flat.new_zeros((0, len(rows), columns.shape[1]), dtype=dtype)
    return result.reshape(*batch, len(rows), columns.shape[1])


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
    height, width = given.shape[-2:]
    return separable_average(given, overlap_matrix(height, grid_hw[0]), overlap_matrix(width, grid_hw[1]))
