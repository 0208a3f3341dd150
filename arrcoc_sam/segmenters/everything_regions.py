"""Small holes filled and small islands taken away: the last step of the automatic mode."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool
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
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if len(rows) == 0:
        return mask, False
    # Background that goes on beyond a margin of so many pixels has as many itself.
    margin = max(1, min_area)
    around = np.s_[
        max(0, rows[0] - margin) : rows[-1] + 1 + margin, max(0, columns[0] - margin) : columns[-1] + 1 + margin
    ]
    holes = _small(~mask[around], min_area, spare_largest=False)
    if holes is not None:
        mask = mask.copy()
        mask[around] |= holes
    islands = _small(mask[around], min_area, spare_largest=True)
    if islands is not None:
        mask = mask if holes is not None else mask.copy()
        mask[around] &= ~islands
    return mask, holes is not None or islands is not None


def _small(regions: Bool[np.ndarray, "h w"], min_area: int, *, spare_largest: bool) -> Bool[np.ndarray, "h w"] | None:
    """Pixels of the connected pieces below an area; None where there are none."""
    labels, count = ndimage.label(regions, structure=_EIGHT)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    small = sizes < min_area
    small[0] = False
    if not small.any():
        return None
    if spare_largest and small[1:].all():
        small[1 + int(sizes[1:].argmax())] = False
    return small[labels]
