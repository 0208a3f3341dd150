from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arrcoc_sam.errors import InputError
from arrcoc_sam.masks.averaging import overlap_matrix
from arrcoc_sam.masks.cell_windows import CellWindows, average_over_windows

counts = st.integers(1, 60)


def as_matrix(windows: CellWindows, num_pixels: int) -> torch.Tensor:
    """The weight of every pixel in every cell: the sums over one-pixel pictures."""
    return windows.sums(torch.eye(num_pixels, dtype=torch.float64)[None])[0]


@settings(deadline=None, max_examples=150)
@given(counts, counts, st.floats(-30, 30), st.floats(0.5, 100), st.floats(0, 1), st.floats(0, 1))
def test_windows_are_the_overlap_matrix(num_pixels, num_cells, start, length, low, high):
    options = {"start": start, "stop": start + length, "valid": tuple(sorted((low * num_pixels, high * num_pixels)))}
    windows = CellWindows.of(num_pixels, num_cells, **options)
    expected = overlap_matrix(num_pixels, num_cells, **options)
    torch.testing.assert_close(as_matrix(windows, num_pixels), expected, rtol=0, atol=1e-8)
    torch.testing.assert_close(windows.share, expected.sum(1), rtol=0, atol=1e-8)
    means = as_matrix(windows.normalised(), num_pixels).sum(1)
    assert ((means - (windows.share > 0).double()).abs() < 1e-9).all()


@pytest.mark.parametrize("num_cells", [1, 2, 3, 7, 60, 299, 600, 1000])
def test_bytes_and_floats_give_the_same_sums(num_cells):
    # cells longer than a byte counts, many short ones, and cells finer than the pixels
    masks = torch.rand(3, 600, 5) < 0.8
    masks[0] = True
    windows = CellWindows.of(600, num_cells, start=-7.3, stop=611.2)
    torch.testing.assert_close(windows.sums(masks), windows.sums(masks.double()).float())


def test_windows_by_hand():
    # three cells of 1.5 pixels from -0.5 on: [-.5, 1], [1, 2.5], [2.5, 4] over pixels 0 to 3
    windows = CellWindows.of(3, 3, start=-0.5, stop=4.0)
    assert windows.start.tolist() == [0, 1, 3]
    assert windows.stop.tolist() == [1, 2, 3]
    assert (windows.first_weight * 1.5).tolist() == [0, 0, 0.5]
    assert (windows.last_weight * 1.5).tolist() == [0, 0.5, 0]
    assert (windows.share * 1.5).tolist() == [1, 1.5, 0.5]


def test_edges_that_miss_a_pixel_by_rounding_lie_on_it():
    # 0.1 · 3 is not 0.3: without snapping, cells begin 1e-16 of a pixel early and read one more
    windows = CellWindows.of(30, 10, start=0.0, stop=0.1 * 300)
    assert not windows.first_weight.any()
    assert not windows.last_weight.any()
    windows = CellWindows.of(7, 3, start=-1e-13, stop=7 + 1e-13, valid=(0.0, 7.0))
    torch.testing.assert_close(windows.share, torch.ones(3, dtype=torch.float64))


def test_average_is_rows_then_columns():
    masks = torch.rand(2, 3, 11, 13) < 0.5
    rows, columns = CellWindows.of(11, 4), CellWindows.of(13, 5)
    expected = overlap_matrix(11, 4).float() @ masks.float() @ overlap_matrix(13, 5).float().T
    torch.testing.assert_close(average_over_windows(masks, rows, columns), expected)
    assert average_over_windows(masks[:0], rows, columns).shape == (0, 3, 4, 5)


@pytest.mark.parametrize(("pixels", "cells", "start"), [(0, 1, 0.0), (1, 0, 0.0), (3, 1, 3.0), (3, 1, float("nan"))])
def test_errors_say_what_came(pixels, cells, start):
    with pytest.raises(InputError, match=f"{pixels} pixels, {cells} cells"):
        CellWindows.of(pixels, cells, start=start)
