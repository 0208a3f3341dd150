"""The attended area grows with granularity, whatever the logits are."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arrcoc_sam.errors import InputError, ShapeError, UnknownNameError
from arrcoc_sam.training.granularity_control import blend_levels

STEPS = torch.linspace(0, 1, 21)


def random_levels(seed: int, sides: tuple[int, ...] = (3, 5, 8)) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [3 * torch.randn(2, side, side, generator=generator) for side in sides]


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31))
def test_every_cell_and_so_the_area_grows(seed: int) -> None:
    maps = torch.stack([blend_levels(random_levels(seed), float(step)) for step in STEPS])
    assert bool((maps.diff(dim=0) >= 0).all())
    areas = (maps > 0).float().mean((-2, -1))
    assert bool((areas.diff(dim=0) >= 0).all())
    assert bool((areas[-1] > areas[0]).all())  # random levels differ


def test_without_nesting_it_need_not_grow() -> None:
    levels = [torch.full((1, 2, 2), -1.0), torch.full((1, 2, 2), 1.0)]
    free = torch.stack([blend_levels(levels, float(step), nested=False) for step in STEPS])
    assert bool((free.diff(dim=0) < 0).all())
    nested = torch.stack([blend_levels(levels, float(step)) for step in STEPS])
    assert bool((nested == 1).all())


def test_names_stand_for_levels() -> None:
    levels = [torch.full((1, 4, 4), value) for value in (3.0, 2.0, 1.0)]
    for name, value in (("whole", 3.0), ("part", 2.0), ("subpart", 1.0)):
        assert torch.equal(blend_levels(levels, name), torch.full((1, 4, 4), value))


def test_one_number_a_query_and_one_level() -> None:
    levels = random_levels(0)
    both = blend_levels(levels, torch.tensor([0.25, 1.0]))
    torch.testing.assert_close(both[0], blend_levels(levels, 0.25)[0])
    torch.testing.assert_close(both[1], blend_levels(levels, "whole")[1])
    assert torch.equal(blend_levels(levels[-1:], 0.4), levels[-1])


@pytest.mark.usefixtures("as_at_run_time")
def test_bad_input() -> None:
    levels = random_levels(0)
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        blend_levels(levels, 1.5)
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        blend_levels(levels, float("nan"))
    with pytest.raises(UnknownNameError, match="'detail'"):
        blend_levels(levels, "detail")
    with pytest.raises(ShapeError, match=r"granularity is a .* of shape \(3,\); expected one number, or \(2,\)"):
        blend_levels([torch.zeros(2, 4, 4)] * 3, torch.tensor([0.1, 0.2, 0.3]))
    with pytest.raises(ShapeError, match="L levels"):
        blend_levels([], 0.5)
