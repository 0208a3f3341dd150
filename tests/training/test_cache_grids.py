"""Averages from run lengths are those of the masks that the run lengths stand for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arrcoc_sam.errors import DataError, InputError, MixedSizesError
from arrcoc_sam.masks import area_average, encode_rle
from arrcoc_sam.training.cache.grids import rle_to_grid


@settings(deadline=None, max_examples=60)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    grid=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    density=st.sampled_from((0.0, 0.05, 0.5, 0.95, 1.0)),
    seed=st.integers(0, 2**31),
)
def test_averages_equal_those_of_bitmaps(
    height: int, width: int, grid: tuple[int, int], density: float, seed: int
) -> None:
    masks = torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed)) < density
    ours = torch.from_numpy(rle_to_grid(encode_rle(masks), grid))
    torch.testing.assert_close(ours, area_average(masks, grid), rtol=0.0, atol=2e-6)


@settings(deadline=None, max_examples=60)
@given(
    offset=st.tuples(st.integers(-9, 9), st.integers(-9, 9)),
    seed=st.integers(0, 2**31),
)
def test_a_window_crops_and_pads(offset: tuple[int, int], seed: int) -> None:
    masks = torch.rand(2, 11, 13, generator=torch.Generator().manual_seed(seed)) < 0.6
    (left, top), (right, bottom) = offset, (offset[0] + 15, offset[1] + 12)
    padded = torch.zeros(2, 40, 40, dtype=torch.bool)
    padded[:, 10:21, 10:23] = masks
    expected = area_average(padded[:, top + 10 : bottom + 10, left + 10 : right + 10], (7, 5))
    ours = rle_to_grid(encode_rle(masks), (7, 5), window=(float(left), float(top), float(right), float(bottom)))
    torch.testing.assert_close(torch.from_numpy(ours), expected, rtol=0.0, atol=2e-6)


def test_a_window_between_pixels() -> None:
    mask = torch.tensor([[True, False, False, True]])
    ours = rle_to_grid([encode_rle(mask)], (1, 2), window=(0.5, 0.25, 3.5, 0.75))
    np.testing.assert_allclose(ours, [[[1 / 3, 1 / 3]]], atol=1e-6)


def test_uncompressed_counts_and_no_masks() -> None:
    np.testing.assert_array_equal(rle_to_grid([{"size": [1, 2], "counts": [0, 2]}], (1, 1)), [[[1.0]]])
    assert rle_to_grid([], (4, 5)).shape == (0, 4, 5)


def test_bad_input() -> None:
    with pytest.raises(DataError, match="add up to"):
        rle_to_grid([{"size": [2, 2], "counts": [1, 2]}], (1, 1))
    with pytest.raises(MixedSizesError, match="one size"):
        rle_to_grid([{"size": [1, 2], "counts": [2]}, {"size": [2, 1], "counts": [2]}], (1, 1))
    with pytest.raises(InputError, match="window"):
        rle_to_grid([{"size": [1, 2], "counts": [2]}], (1, 1), window=(1.0, 0.0, 1.0, 1.0))
