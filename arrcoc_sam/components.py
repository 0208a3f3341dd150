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
        distance = ndimage.distance_transform_edt(padded)
        row, column = divmod(int(distance.argmax()), padded.shape[1])
        points[index] = columns[0] + column - 1, rows[0] + row - 1
        radii[index] = distance[row, column]
    shape = given.shape[:-2]
    return (
        torch.from_numpy(points).reshape(*shape, 2).to(given.device),
        torch.from_numpy(radii).reshape(shape).to(given.device),
    )


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
