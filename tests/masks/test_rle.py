from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from arrcoc_sam.errors import ArrcocSamError, DataError, InputError, MixedSizesError, ShapeError
from arrcoc_sam.masks import pairwise_intersection
from arrcoc_sam.masks.rle import decode_rle, encode_rle, rle_areas, rle_intersections

shapes = st.tuples(st.integers(1, 60), st.integers(1, 60))


@st.composite
def any_mask(draw) -> np.ndarray:
    """Noise, blocks (long runs and negative differences), empty, full, one pixel."""
    height, width = draw(shapes)
    kind = draw(st.sampled_from(["noise", "blocks", "empty", "full", "pixel"]))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    mask = np.zeros((height, width), dtype=bool)
    if kind == "noise":
        mask = rng.random((height, width)) < rng.random()
    elif kind == "blocks":
        for _ in range(3):
            y, x = rng.integers(0, height), rng.integers(0, width)
            mask[y : y + rng.integers(1, 40), x : x + rng.integers(1, 40)] ^= True
    elif kind == "full":
        mask[:] = True
    elif kind == "pixel":
        mask[rng.integers(0, height), rng.integers(0, width)] = True
    return mask


@settings(deadline=None, max_examples=200)
@given(any_mask())
def test_bytes_are_pycocotools_and_come_back(mask):
    rle = encode_rle(mask)
    expected = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert rle == {"size": list(mask.shape), "counts": expected["counts"].decode()}
    assert json.loads(json.dumps(rle)) == rle
    np.testing.assert_array_equal(decode_rle(rle).numpy(), mask)
    assert rle_areas([rle]).tolist() == [int(coco.area(expected))]


@settings(deadline=None, max_examples=100)
@given(any_mask(), st.integers(0, 10**6))
def test_intersections_of_run_lengths_are_those_of_masks(mask, seed):
    rng = np.random.default_rng(seed)
    others = [rng.random(mask.shape) < share for share in (0.0, 0.5, 1.0)]
    masks = torch.from_numpy(np.stack([mask, *others]))
    assert torch.equal(rle_intersections(encode_rle(masks)), pairwise_intersection(masks, masks))
    with pytest.raises(MixedSizesError):
        rle_intersections([encode_rle(mask), encode_rle(np.zeros((70, 70), dtype=bool))])


def test_large_masks_have_long_numbers():
    mask = torch.zeros(3000, 2000, dtype=torch.bool)
    mask[:, 1000:] = True
    mask[10:20, 5:1900] ^= True
    assert torch.equal(decode_rle(encode_rle(mask)), mask)


def test_stacks_and_views():
    masks = torch.from_numpy(np.random.default_rng(0).random((5, 9, 7)) < 0.5)
    rles = encode_rle(masks)
    assert rles == [encode_rle(mask) for mask in masks]
    assert torch.equal(decode_rle(rles), masks)
    assert encode_rle(masks.mT) == [encode_rle(mask.T.contiguous()) for mask in masks]
    assert encode_rle(masks[:0]) == []
    assert rle_areas(rles).tolist() == masks.sum((1, 2)).tolist()


def test_bytes_and_plain_counts_are_read_too():
    mask = torch.tensor([[False, True, True], [True, True, False]])
    rle = encode_rle(mask)
    assert torch.equal(decode_rle({**rle, "counts": rle["counts"].encode()}), mask)
    assert torch.equal(decode_rle({"size": [2, 3], "counts": [1, 4, 1]}), mask)
    assert torch.equal(decode_rle({"size": (2, 3), "counts": np.array([1, 4, 1])}), mask)
    assert torch.equal(decode_rle({"size": [2, 2], "counts": [0, 4]}), torch.ones(2, 2, dtype=torch.bool))


def test_the_decoded_mask_is_an_ordinary_tensor():
    mask = decode_rle({"size": [2, 3], "counts": [1, 4, 1]})
    assert mask.is_contiguous()
    mask[0, 0] = True


GOOD = {"size": [4, 6], "counts": [3, 10, 11]}


@pytest.mark.parametrize(
    ("rle", "kind", "words"),
    [
        ({**GOOD, "counts": [3, 10, 10]}, DataError, "add up to 23; expected 4 x 6 = 24"),
        ({**GOOD, "size": [6, 5]}, DataError, "6 x 5 = 30"),
        ({**GOOD, "counts": [18, -6, 12]}, DataError, "negative"),
        ({**GOOD, "counts": [2**62, 2**62, 2**62, 2**62, 24]}, DataError, "larger ones than the mask"),
        ({**GOOD, "counts": "3"}, DataError, "add up to 3"),
        ({**GOOD, "counts": ""}, DataError, "no COCO string"),
        ({**GOOD, "counts": "3ß"}, DataError, "no COCO string"),
        ({**GOOD, "counts": "3!"}, DataError, "no COCO string"),
        ({**GOOD, "counts": "o"}, DataError, "no COCO string"),
        ({**GOOD, "counts": "o" * 40 + "0"}, DataError, "60 bits"),
        ({**GOOD, "counts": None}, DataError, "the counts are"),
        ({**GOOD, "counts": [[1], [2, 3]]}, DataError, "the counts are"),
        ({**GOOD, "counts": ["a"]}, DataError, "the counts are"),
        ({"size": [4, 6]}, DataError, "'size' and 'counts'"),
        ({"counts": "3"}, DataError, "'size' and 'counts'"),
        ({**GOOD, "size": [24]}, DataError, "[24]"),
        ({**GOOD, "size": [0, 6]}, DataError, "at least 1"),
        ({**GOOD, "size": "ab"}, DataError, "'ab'"),
        ([GOOD, {"size": [6, 4], "counts": [24]}], MixedSizesError, "[(4, 6), (6, 4)]"),
        ([], ShapeError, "empty list"),
        ([GOOD, 5], DataError, "a run-length mask is 5"),
    ],
)
def test_bad_run_lengths_are_refused_before_anything_is_drawn(rle, kind, words, as_at_run_time):
    with pytest.raises(kind) as caught:
        decode_rle(rle)
    assert words in str(caught.value)


@settings(deadline=None, max_examples=200)
@given(st.text(st.characters(min_codepoint=48, max_codepoint=111), min_size=1, max_size=30), shapes)
def test_no_string_draws_anything_but_its_size(text, size):
    try:
        mask = decode_rle({"size": list(size), "counts": text})
    except ArrcocSamError:
        return
    assert tuple(mask.shape) == size


@pytest.mark.parametrize(
    ("masks", "kind", "words"),
    [
        (torch.zeros(2, 3), InputError, "masks > 0"),
        (torch.zeros(3, dtype=torch.bool), ShapeError, "(3,)"),
        (torch.zeros(1, 2, 3, 4, dtype=torch.bool), ShapeError, "(K, H, W)"),
    ],
)
def test_bad_masks(masks, kind, words, as_at_run_time):
    with pytest.raises(kind) as caught:
        encode_rle(masks)
    assert words in str(caught.value)
