from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arrcoc_sam.errors import InputError, ShapeError
from arrcoc_sam.masks import averaging, cell_windows
from arrcoc_sam.masks.averaging import area_average, overlap_matrix, sampling_matrix, separable_average


def mean_by_integral_image(mask: np.ndarray, grid_hw: tuple[int, int]) -> np.ndarray:
    """Another way to the same: the integral of a piecewise constant function is linear between the pixels' edges."""
    rows, columns = (np.linspace(0, n, g + 1) for n, g in zip(mask.shape, grid_hw, strict=True))
    down = np.vstack([np.zeros((1, mask.shape[1])), mask.cumsum(0)])
    at_rows = np.stack([np.interp(rows, np.arange(len(down)), column) for column in down.T], axis=1)
    along = np.hstack([np.zeros((len(rows), 1)), at_rows.cumsum(1)])
    integral = np.stack([np.interp(columns, np.arange(along.shape[1]), line) for line in along])
    cell = mask.size / (grid_hw[0] * grid_hw[1])
    return np.diff(np.diff(integral, axis=0), axis=1) / cell


sizes = st.tuples(st.integers(1, 70), st.integers(1, 40))
grids = st.tuples(st.integers(1, 24), st.integers(1, 24))


@settings(deadline=None, max_examples=80)
@given(sizes, grids, st.integers(0, 2**31))
def test_area_average_equals_the_integral_image(size, grid, seed):
    mask = np.random.default_rng(seed).random(size) < 0.4
    np.testing.assert_allclose(area_average(mask, grid).numpy(), mean_by_integral_image(mask, grid), atol=2e-6)


@settings(deadline=None, max_examples=60)
@given(sizes, grids, st.integers(0, 2**31))
def test_area_average_keeps_the_area(size, grid, seed):
    masks = torch.from_numpy(np.random.default_rng(seed).random((3, *size)))
    average = area_average(masks, grid)
    assert average.dtype == torch.float64
    torch.testing.assert_close(average.mean((-2, -1)), masks.mean((-2, -1)), rtol=1e-12, atol=1e-14)


def test_area_average_of_whole_cells_is_the_mean_over_blocks():
    masks = torch.rand(5, 2, 96, 64) < 0.5
    expected = masks.float().reshape(5, 2, 6, 16, 8, 8).mean((3, 5))
    torch.testing.assert_close(area_average(masks, (6, 8)), expected)


def test_adding_rows_as_bytes_changes_nothing():
    # 700 rows in 2 cells: runs of equal weights longer than a byte can count, and full ones
    masks = torch.ones(2, 700, 3, dtype=torch.bool)
    masks[1, 350:] = False
    assert area_average(masks, (2, 1)).flatten().tolist() == [1.0, 1.0, 1.0, 0.0]
    mask = torch.rand(701, 33) < 0.7
    torch.testing.assert_close(area_average(mask, (3, 5)), area_average(mask.double(), (3, 5)).float())


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
@pytest.mark.parametrize("chunk", [1, 50, 1000])
def test_chunks_change_nothing(monkeypatch, dtype, chunk):
    masks = (torch.rand(7, 40, 30) < 0.5).to(dtype)
    whole = area_average(masks, (5, 7))
    rows, columns = overlap_matrix(40, 5), overlap_matrix(30, 7)
    monkeypatch.setattr(averaging, "_CHUNK_CPU", chunk)
    monkeypatch.setattr(cell_windows, "_CHUNK_CPU", chunk)
    torch.testing.assert_close(area_average(masks, (5, 7)), whole)
    torch.testing.assert_close(separable_average(masks, rows, columns), whole.double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.bool, torch.float32),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_dtype_of_the_average(dtype, expected):
    assert area_average(torch.ones(4, 4).to(dtype), (2, 2)).dtype == expected


def test_average_of_no_mask_and_of_one_pixel():
    assert area_average(torch.zeros(0, 3, 8, 8, dtype=torch.bool), (2, 2)).shape == (0, 3, 2, 2)
    assert area_average(torch.ones(1, 1, dtype=torch.bool), (2, 3)).tolist() == [[1.0] * 3] * 2


def test_average_is_differentiable_in_soft_masks():
    masks = torch.rand(2, 5, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m: area_average(m, (3, 2)), masks)


def test_views_and_flips_are_averaged_as_they_look():
    masks = torch.rand(60, 50) < 0.5
    turned = masks.T.flip(0)
    torch.testing.assert_close(area_average(turned, (7, 5)), area_average(turned.contiguous(), (7, 5)))
    array = masks.numpy()[::-1, ::2]
    torch.testing.assert_close(area_average(array, (7, 5)), area_average(array.copy(), (7, 5)))
    array = masks.numpy().copy()
    array.flags.writeable = False
    torch.testing.assert_close(area_average(array, (7, 5)), area_average(masks, (7, 5)))


def test_overlap_matrix_by_hand():
    # cells of 1.5 pixels that begin half a pixel before the first: [-.5, 1], [1, 2.5], [2.5, 4]
    matrix = overlap_matrix(3, 3, start=-0.5, stop=4.0)
    expected = torch.tensor([[1.0, 0, 0], [0, 1, 0.5], [0, 0, 0.5]], dtype=torch.float64) / 1.5
    torch.testing.assert_close(matrix, expected)
    only = overlap_matrix(3, 3, start=-0.5, stop=4.0, valid=(0.5, 2.0))
    expected = torch.tensor([[0.5, 0, 0], [0, 1, 0], [0, 0, 0]], dtype=torch.float64) / 1.5
    torch.testing.assert_close(only, expected)


def test_separable_average_is_the_matrix_product():
    masks, rows, columns = torch.rand(3, 8, 9) < 0.5, torch.randn(4, 8).double(), torch.randn(5, 9).double()
    torch.testing.assert_close(separable_average(masks, rows, columns), rows @ masks.double() @ columns.T)


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize(("num_cells", "num_points"), [(1, 4), (5, 23), (7, 7), (9, 4)])
def test_sampling_matrix_is_what_interpolate_does(mode, num_cells, num_points):
    values = torch.randn(num_cells, dtype=torch.float64)
    positions = (torch.arange(num_points, dtype=torch.float64) + 0.5) * num_cells / num_points
    torch_mode = {"nearest": "nearest-exact", "bilinear": "linear"}[mode]
    options = {} if mode == "nearest" else {"align_corners": False}
    expected = torch.nn.functional.interpolate(values[None, None], num_points, mode=torch_mode, **options)[0, 0]
    torch.testing.assert_close(sampling_matrix(positions, num_cells, mode=mode) @ values, expected)


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: overlap_matrix(0, 3), InputError, "num_in=0"),
        (lambda: overlap_matrix(3, 3, start=2.0, stop=2.0), InputError, "start < stop"),
        (lambda: area_average(torch.ones(4, 4, dtype=torch.bool), (0, 3)), InputError, "grid_hw=(0, 3)"),
        (lambda: area_average(torch.ones(4, 4, dtype=torch.uint8), (2, 2)), InputError, "masks > 0"),
        (lambda: area_average(np.ones((4, 4), dtype=np.int64), (2, 2)), InputError, "masks > 0"),
        (lambda: area_average(np.ones(4, dtype=bool), (2, 2)), ShapeError, "shape (4,)"),
        (lambda: area_average(np.ones((3, 0, 4), dtype=bool), (2, 2)), ShapeError, "shape (3, 0, 4)"),
    ],
)
def test_errors_say_what_came(call, kind, words, as_at_run_time):
    with pytest.raises(kind) as caught:
        call()
    assert words in str(caught.value)
