"""Small holes filled and small islands taken away: the last step of the automatic mode."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int
from scipy import ndimage

__all__ = ["without_small_regions"]

_EIGHT = np.ones((3, 3), dtype=bool)


def without_small_regions(mask: Bool[np.ndarray, "H W"], min_area: int) -> tuple[Bool[np.ndarray, "H W"], bool]:
    """Fill holes and drop islands of less than so many pixels; of islands that are all small the largest stays.

    Pieces touch at sides or corners, of the mask and of what is not the mask.

    Args:
        mask: One mask.
        min_area: Pixels.

    Returns:
        The mask, a copy where something changed, and whether something did.

    Reference:
        ``remove_small_regions`` of segment-anything, which needs OpenCV.

    Example:
        >>> mask = np.ones((5, 5), dtype=bool)
        >>> mask[2, 2] = False
        >>> cleaned, changed = without_small_regions(mask, 2)
        >>> bool(cleaned.all()), changed
        (True, True)
    """
    if not mask.any():
        return mask, False
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    # Background that goes on beyond a margin of so many pixels has as many itself.
    margin = max(1, min_area)
    origin = max(0, int(rows[0]) - margin), max(0, int(columns[0]) - margin)
    around = np.s_[origin[0] : rows[-1] + 1 + margin, origin[1] : columns[-1] + 1 + margin]
    holes = _small(~mask[around], min_area, spare_largest=False)
    if holes is not None:
        mask = mask.copy()
        mask[around] |= holes
    islands = _small(mask[around], min_area, spare_largest=True, origin=origin)
    if islands is not None:
        mask = mask if holes is not None else mask.copy()
        mask[around] &= ~islands
    return mask, holes is not None or islands is not None


def _small(
    regions: Bool[np.ndarray, "h w"], min_area: int, *, spare_largest: bool, origin: tuple[int, int] = (0, 0)
) -> Bool[np.ndarray, "h w"] | None:
    """Pixels of the connected pieces below an area, or None; ``origin`` is where the first pixel lies in the image."""
    labels, count = ndimage.label(regions, structure=_EIGHT)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    small = sizes < min_area
    small[0] = False
    if not small.any():
        return None
    if spare_largest and small[1:].all():
        small[_first(labels, 1 + np.flatnonzero(sizes[1:] == sizes[1:].max()), origin)] = False
    return small[labels]


def _first(labels: Int[np.ndarray, "h w"], some: Int[np.ndarray, " n"], origin: tuple[int, int]) -> int:
    """Which of some pieces OpenCV meets first: it goes through an image by blocks of 2 x 2 pixels, row by row."""
    if len(some) == 1:
        return int(some[0])
    rows, columns = np.nonzero(np.isin(labels, some))
    order = np.lexsort(((columns + origin[1]) // 2, (rows + origin[0]) // 2))
    return int(labels[rows[order[0]], columns[order[0]]])
