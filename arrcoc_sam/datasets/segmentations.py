"""COCO's three ways to write a mask (polygons, run lengths, compressed run lengths) as the last of them, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from arrcoc_sam.errors import DataError, describe, explain
from arrcoc_sam.masks.rle import RLE, rle_areas

__all__ = ["segmentation_to_rle"]

_EXPECTED = "polygons [[x0, y0, x1, y1, x2, y2, …], …], or a dictionary with 'size' and 'counts'"


def segmentation_to_rle(segmentation: Any, size_hw: tuple[int, int], *, allow_empty: bool = False) -> tuple[RLE, int]:
    """A COCO segmentation as compressed run lengths, with the number of its pixels.

    Everything is checked before pycocotools sees it, whose decoder trusts its input: it takes a polygon of four numbers
    for a box, and writes past the end of the mask where counts do not add up.

    Args:
        segmentation: Polygons (flat x, y lists, of which the union is meant; those of less than three points enclose
            nothing, and are passed over beside others), or run lengths, compressed or not.
        size_hw: Height and width of the image.
        allow_empty: Take a mask without a pixel for a mask.

    Returns:
        ``{"size": [H, W], "counts": str}`` and the area in pixels, at least 1 unless empty masks are allowed.

    Raises:
        DataError: Something else; a size that is not the image's; counts that do not add up; no polygon of three
            points or one far outside the image; a mask without a pixel, unless allowed.

    Example:
        >>> segmentation_to_rle([[0, 0, 2, 0, 2, 1, 0, 1]], (3, 4))
        ({'size': [3, 4], 'counts': '01206'}, 2)
        >>> segmentation_to_rle({"size": [2, 2], "counts": [2, 2]}, (2, 2))
        ({'size': [2, 2], 'counts': '22'}, 2)
    """
    if isinstance(segmentation, Mapping):
        rle, area = _from_runs(segmentation, size_hw)
    elif isinstance(segmentation, (list, tuple)):
        rle, area = _from_polygons(segmentation, size_hw)
    else:
        raise DataError(explain(f"the segmentation is {describe(segmentation)}", _EXPECTED))
    if area == 0 and not allow_empty:
        raise DataError(explain("the mask has no pixel", "an area of at least 1", "remove the annotation"))
    return rle, area


def _from_runs(segmentation: Mapping[str, Any], size_hw: tuple[int, int]) -> tuple[RLE, int]:
    counts = segmentation.get("counts")
    if isinstance(counts, (list, tuple, np.ndarray)):
        numbers = np.asarray(counts)
        if numbers.ndim != 1 or numbers.dtype.kind not in "iu":  # fractions would be cut off in silence
            raise DataError(explain(f"the counts are {describe(numbers)}", "whole numbers of pixels, or a string"))
    area = int(rle_areas([segmentation])[0])  # checks size and counts
    size = [int(side) for side in segmentation["size"]]
    if size != list(size_hw):
        came, mend = f"the mask has size {size}", "bring the mask to the image's size"
        if size[::-1] == list(size_hw):
            came += ", the other way round"
            mend = "size is [height, width]: swap the two numbers, or turn the mask if it lies on its side"
        raise DataError(explain(came, f"the image's [height, width] = {list(size_hw)}", mend))
    if isinstance(counts, bytes):
        counts = counts.decode("ascii")
    elif not isinstance(counts, str):
        counts = _compress(coco_mask.frPyObjects({"size": size, "counts": np.asarray(counts).tolist()}, *size))
    return {"size": size, "counts": counts}, area


def _from_polygons(segmentation: Sequence[Any], size_hw: tuple[int, int]) -> tuple[RLE, int]:
    if len(segmentation) == 0:
        mend = "remove the annotation, or give it a mask"
        raise DataError(explain("the segmentation is an empty list", "at least one polygon", mend))
    whole = [ring for ring in segmentation if not _encloses_nothing(ring)]
    rings = [_ring(ring, size_hw).tolist() for ring in whole or segmentation]
    drawn = coco_mask.frPyObjects(rings, *size_hw)
    merged = coco_mask.merge(drawn) if len(drawn) > 1 else drawn[0]
    area = int(coco_mask.area(merged))  # type: ignore[no-untyped-call]
    return {"size": list(size_hw), "counts": _compress(merged)}, area


def _encloses_nothing(ring: Any) -> bool:
    """Whether a polygon is numbers of no, one or two points."""
    if not isinstance(ring, (list, tuple, np.ndarray)) or len(ring) not in (0, 2, 4):
        return False
    return all(isinstance(number, (int, float, np.number)) for number in ring)


def _ring(ring: Any, size_hw: tuple[int, int]) -> np.ndarray:
    try:
        numbers = np.asarray(ring, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(explain(f"a polygon is {describe(ring)}", _EXPECTED)) from error
    if numbers.ndim != 1:
        mend = "nest it one level more" if numbers.ndim == 0 else "flatten each polygon to x0, y0, x1, y1, …"
        raise DataError(explain(f"a polygon is {describe(numbers)}", _EXPECTED, mend))
    if len(numbers) < 6 or len(numbers) % 2:
        raise DataError(explain(f"a polygon of {len(numbers)} numbers", "x and y of at least 3 points"))
    if not np.isfinite(numbers).all():
        raise DataError(explain("a polygon holds NaN or infinite numbers", "finite x and y", "take those points out"))
    # Also keeps pycocotools from walking along an edge of billions of pixels.
    height, width = size_hw
    x, y = numbers[0::2], numbers[1::2]
    if not ((np.abs(x - width / 2) <= 1.5 * width).all() and (np.abs(y - height / 2) <= 1.5 * height).all()):
        came = f"a polygon reaches x {x.min():g} to {x.max():g}, y {y.min():g} to {y.max():g}"
        raise DataError(
            explain(came, f"pixels of an image of {width} x {height}", "check the image's width and height")
        )
    return numbers


def _compress(rle: Mapping[str, Any]) -> str:
    text: str = rle["counts"].decode("ascii")
    return text
