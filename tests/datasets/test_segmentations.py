from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco
from pycocotools.coco import COCO

from arrcoc_sam.datasets.segmentations import segmentation_to_rle
from arrcoc_sam.errors import DataError

masks = st.integers(0, 10**6).map(np.random.default_rng).map(lambda rng: rng.random(rng.integers(1, 30, 2)) < 0.5)


def runs(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed counts, counted one pixel at a time, column by column, background first."""
    counts, value = [0], False
    for pixel in mask.T.ravel():
        if pixel != value:
            counts.append(0)
            value = not value
        counts[-1] += 1
    return counts


@settings(deadline=None, max_examples=60)
@given(masks)
def test_run_lengths_of_both_kinds_are_the_mask(mask):
    if not mask.any():
        mask[0, 0] = True
    size = list(mask.shape)
    compressed = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    for counts in (runs(mask), np.array(runs(mask)), compressed["counts"], compressed["counts"].decode()):
        rle, area = segmentation_to_rle({"size": size, "counts": counts}, mask.shape)
        assert rle == {"size": size, "counts": compressed["counts"].decode()}
        assert area == mask.sum()


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6))
def test_polygons_are_drawn_as_pycocotools_draws_them(seed):
    """The whole way through its COCO class; several polygons are one mask, overlapping or not."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(20, 60, 2).tolist()
    size = np.array([width, height])
    polygons = [(rng.random((rng.integers(3, 8), 2)) * size * 1.1).ravel().tolist() for _ in range(rng.integers(1, 4))]
    theirs = COCO()
    theirs.imgs = {1: {"height": height, "width": width}}
    expected = theirs.annToRLE({"image_id": 1, "segmentation": polygons})
    area = int(coco.area(expected))
    if area == 0:
        return
    for written in (polygons, [np.array(polygon) for polygon in polygons]):
        rle = {"size": [height, width], "counts": expected["counts"].decode()}
        assert segmentation_to_rle(written, (height, width)) == (rle, area)


BAD = {
    "null": (None, "polygons .* or a dictionary"),
    "no polygon": ([], "empty list"),
    "a flat list": ([0, 0, 4, 0, 4, 4], "nest it one level more"),
    "points in pairs": ([[[0, 0], [4, 0], [4, 4]]], "flatten each polygon"),
    "a box": ([[0, 0, 4, 4]], "at least 3 points"),
    "an odd number": ([[0, 0, 4, 0, 4, 4, 1]], "at least 3 points"),
    "words": ([["a", "b", "c", "d", "e", "f"]], "a polygon is"),
    "NaN": ([[0, 0, 4, 0, float("nan"), 4]], "a polygon holds NaN"),
    "far outside": ([[0, 0, 1e9, 0, 4, 4]], "check the image's width and height"),
    "of no area": ([[1, 1, 1, 1, 1, 1]], "no pixel"),
    "no counts": ({"size": [6, 8]}, "'size' and 'counts'"),
    "too few pixels": ({"size": [6, 8], "counts": [10, 5]}, "add up to 15; expected 6 x 8 = 48"),
    "negative": ({"size": [6, 8], "counts": [50, -2]}, "negative"),
    "fractions": ({"size": [6, 8], "counts": [40.5, 7.5]}, "whole numbers"),
    "lists of lists": ({"size": [6, 8], "counts": [[40], [8]]}, "whole numbers"),
    "cut off": ({"size": [6, 8], "counts": "0"}, "add up to 0"),
    "no COCO string": ({"size": [6, 8], "counts": "!!"}, "no COCO string"),
    "turned": (
        {"size": [8, 6], "counts": [40, 8]},
        r"the other way round; expected .* Mend: size is .height, width.: swap the two numbers",
    ),
    "another size": ({"size": [4, 4], "counts": [8, 8]}, r"the image's \[height, width\] = \[6, 8\]\. Mend: bring"),
    "empty": ({"size": [6, 8], "counts": [48]}, "no pixel"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_said(name):
    segmentation, message = BAD[name]
    with pytest.raises(DataError, match=message):
        segmentation_to_rle(segmentation, (6, 8))
