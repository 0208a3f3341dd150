from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arrcoc_sam.errors import InputError, ShapeError
from arrcoc_sam.quality import jaccard_bounds

UNIT = st.floats(0, 1, width=32)


@pytest.mark.parametrize(
    ("alignment", "predicted", "lower", "upper"),
    [
        (1.0, 1.0, 1.0, 1.0),
        (1.0, 0.25, 0.25, 0.25),  # the same mask: worth exactly what the head says
        (0.75, 0.875, 0.625, 0.875),
        (0.5, 0.25, 0.0, 0.75),
        (0.0, 1.0, 0.0, 0.0),
        (0.0, 0.0, 0.0, 1.0),  # nothing is known
        (0.75, 1.5, 0.75, 0.75),  # SAM 1's head runs above 1 and below 0
        (0.75, -0.5, 0.0, 0.25),
    ],
)
def test_values_by_hand(alignment: float, predicted: float, lower: float, upper: float) -> None:
    assert jaccard_bounds(alignment, predicted) == (lower, upper)
    for kind in (torch.tensor, np.array):
        low, high = jaccard_bounds(kind([alignment]), kind([predicted]))
        assert (low[0].item(), high[0].item()) == (lower, upper)


@settings(deadline=None, max_examples=200)
@given(UNIT, UNIT)
def test_is_the_formula_and_in_order(alignment: float, predicted: float) -> None:
    for dtype in (torch.float32, torch.float64):
        lower, upper = jaccard_bounds(torch.tensor(alignment, dtype=dtype), torch.tensor(predicted, dtype=dtype))
        assert lower.dtype == upper.dtype == dtype
        assert 0 <= lower <= upper <= 1
        assert lower.item() == pytest.approx(max(0.0, alignment + predicted - 1), abs=2e-7)
        assert upper.item() == pytest.approx(1 - abs(alignment - predicted), abs=2e-7)


@settings(deadline=None, max_examples=200)
@given(st.sets(st.integers(0, 11)), st.sets(st.integers(0, 11)), st.sets(st.integers(0, 11), min_size=1))
def test_any_three_sets_obey(external: set[int], own: set[int], meant: set[int]) -> None:
    if not external and not own:
        return

    def iou(a: set[int], b: set[int]) -> float:
        return len(a & b) / len(a | b)

    lower, upper = jaccard_bounds(iou(external, own), iou(own, meant))
    assert lower - 1e-12 <= iou(external, meant) <= upper + 1e-12


def test_kinds_follow_the_input_and_broadcast() -> None:
    lower, upper = jaccard_bounds(0.5, np.array([0.5, 1.0]))
    assert isinstance(lower, np.ndarray)
    np.testing.assert_array_equal(lower, [0.0, 0.5])
    np.testing.assert_array_equal(upper, [1.0, 0.5])
    low, _ = jaccard_bounds(torch.tensor([[0.5], [1.0]]), torch.tensor([0.5, 1.0, 0.75]))
    assert low.shape == (2, 3)
    assert low.dtype == torch.float32
    assert jaccard_bounds(1, 1) == (1.0, 1.0)
    np.testing.assert_array_equal(jaccard_bounds([0.5, 1.0], [0.5, 0.75]), [[0.0, 0.75], [1.0, 0.75]])
    assert all(math.isnan(bound) for bound in jaccard_bounds(math.nan, 0.5))
    assert all(math.isnan(bound) for bound in jaccard_bounds(0.5, math.nan))


@pytest.mark.usefixtures("as_at_run_time")
def test_bad_input() -> None:
    with pytest.raises(InputError, match=r"alignment_iou holds 1\.5"):
        jaccard_bounds(1.5, 0.5)
    with pytest.raises(ShapeError, match="broadcast"):
        jaccard_bounds(torch.ones(2), torch.ones(3))
    with pytest.raises(InputError, match="real numbers"):
        jaccard_bounds(torch.ones(2, dtype=torch.bool), torch.ones(2))
    with pytest.raises(InputError, match=r"alignment_iou holds 1\.00000012; expected"):
        jaccard_bounds(np.float32(1.0000001), 1)
    with pytest.raises(InputError, match="predicted_iou is a list of 2"):
        jaccard_bounds(0.5, [[0.1], [0.2, 0.3]])  # type: ignore[list-item]
    with pytest.raises(InputError, match="'good'"):
        jaccard_bounds("good", 0.5)  # type: ignore[call-overload]
