from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from segment_anything.utils.amg import build_point_grid

from arrcoc_sam.errors import InputError, ShapeError, UnknownNameError
from arrcoc_sam.prompts.clicks import grid_points_xy, point_grid, sample_error_clicks


@pytest.mark.parametrize("n", [1, 2, 5, 32])
def test_point_grid_is_segment_anythings(n):
    np.testing.assert_allclose(point_grid(n).numpy(), build_point_grid(n), atol=1e-15)


def test_grid_points_lie_where_the_automatic_mode_puts_them():
    expected = build_point_grid(4) * np.array((640, 480))[None]
    np.testing.assert_allclose(grid_points_xy(4, (480, 640)).numpy(), expected)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 12), st.tuples(st.integers(1, 20), st.integers(1, 20)))
def test_grid_points_lie_inside_the_image(n, size):
    points = grid_points_xy(n, size)
    assert points.shape == (n * n, 2)
    assert (points >= 0).all()
    assert (points <= torch.tensor([size[1] - 1, size[0] - 1])).all()


@settings(deadline=None, max_examples=80)
@given(
    st.tuples(st.integers(1, 6), st.integers(1, 25), st.integers(1, 25)),
    st.integers(0, 10**6),
    st.sampled_from([0.0, 0.02, 0.5]),
    st.sampled_from(["uniform", "center"]),
)
def test_a_click_lies_on_an_error_and_says_which(shape, seed, share, strategy):
    rng = np.random.default_rng(seed)
    target = torch.from_numpy(rng.random(shape) < 0.5)
    predicted = target ^ torch.from_numpy(rng.random(shape) < share)
    generator = torch.Generator().manual_seed(seed)
    points, labels = sample_error_clicks(predicted, target, generator=generator, strategy=strategy)
    assert points.dtype == torch.float64
    assert labels.dtype == torch.int64
    for index in range(shape[0]):
        if torch.equal(predicted[index], target[index]):
            assert labels[index] == -1
            assert points[index].isnan().all()
        else:
            x, y = points[index].int().tolist()
            assert predicted[index, y, x] != target[index, y, x]
            assert labels[index] == target[index, y, x].long()


def test_no_error_is_no_click_and_never_one_at_the_corner():
    target = torch.zeros(2, 5, 5, dtype=torch.bool)
    target[:, 2:] = True
    for strategy in ("uniform", "center"):
        points, labels = sample_error_clicks(target, target, strategy=strategy)
        assert labels.tolist() == [-1, -1]
        assert points.isnan().all()


def test_uniform_takes_every_wrong_pixel_equally_often():
    target = torch.zeros(1, 6, 7, dtype=torch.bool)
    predicted = target.clone()
    wrong = [(0, 0), (0, 6), (2, 3), (2, 4), (5, 0), (5, 6)]  # corners, neighbours in a row, empty rows between
    for y, x in wrong:
        predicted[0, y, x] = True
    draws = 12_000
    generator = torch.Generator().manual_seed(3)
    points, labels = sample_error_clicks(
        predicted.expand(draws, 6, 7), target.expand(draws, 6, 7), generator=generator, strategy="uniform"
    )
    counts = np.array([int(((points[:, 0] == x) & (points[:, 1] == y)).sum()) for y, x in wrong])
    assert counts.sum() == draws
    assert labels.unique().tolist() == [0]
    chi2 = ((counts - draws / 6) ** 2 / (draws / 6)).sum()
    assert chi2 < 20.5  # the 99.9 % point of chi-squared with 5 degrees of freedom


def test_the_same_generator_gives_the_same_clicks():
    rng = np.random.default_rng(0)
    masks = torch.from_numpy(rng.random((2, 8, 30, 30)) < 0.5)
    first = sample_error_clicks(masks[0], masks[1], generator=torch.Generator().manual_seed(1))[0]
    assert torch.equal(first, sample_error_clicks(masks[0], masks[1], generator=torch.Generator().manual_seed(1))[0])
    assert not torch.equal(
        first, sample_error_clicks(masks[0], masks[1], generator=torch.Generator().manual_seed(2))[0]
    )


def test_center_clicks_the_middle_of_the_larger_error():
    target = torch.zeros(1, 20, 20, dtype=torch.bool)
    target[0, 2:9, 2:9] = True  # 7 x 7, missed: its middle is (5, 5)
    predicted = torch.zeros_like(target)
    predicted[0, 15:18, 15:18] = True  # 3 x 3, too much
    points, labels = sample_error_clicks(predicted, target, strategy="center")
    assert (points.tolist(), labels.tolist()) == ([[5.0, 5.0]], [1])
    points, labels = sample_error_clicks(target, predicted, strategy="center")
    assert (points.tolist(), labels.tolist()) == ([[5.0, 5.0]], [0])


MASKS = torch.zeros(2, 4, 5, dtype=torch.bool)


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: point_grid(0), InputError, "n_per_side=0"),
        (lambda: point_grid(2.5), InputError, "n_per_side=2.5"),
        (lambda: grid_points_xy(2, (0, 4)), InputError, "size_hw"),
        (lambda: sample_error_clicks(MASKS, MASKS[:1]), ShapeError, "(1, 4, 5)"),
        (lambda: sample_error_clicks(MASKS[0], MASKS[0]), ShapeError, "at least 3 axes"),
        (lambda: sample_error_clicks(MASKS[None], MASKS[None]), ShapeError, "(K, H, W)"),
        (lambda: sample_error_clicks(MASKS.float(), MASKS), InputError, "predicted > 0"),
        (lambda: sample_error_clicks(MASKS, MASKS, strategy="edge"), UnknownNameError, "strategy='edge'"),
    ],
)
def test_errors_say_what_came(call, kind, words, as_at_run_time):
    with pytest.raises(kind) as caught:
        call()
    assert words in str(caught.value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("strategy", ["uniform", "center"])
def test_the_same_on_the_gpu(strategy):
    masks = torch.rand(2, 6, 40, 50) < 0.5
    masks[1, 0] = masks[0, 0]
    # a generator on the CPU gives the same clicks on every device
    here = sample_error_clicks(*masks, strategy=strategy, generator=torch.Generator().manual_seed(0))
    there = sample_error_clicks(*masks.cuda(), strategy=strategy, generator=torch.Generator().manual_seed(0))
    for x, y in zip(there, here, strict=True):
        assert x.is_cuda
        torch.testing.assert_close(x.cpu(), y, equal_nan=True)
