import pytest
import torch

from arrcoc_sam.errors import InputError, ShapeError
from arrcoc_sam.granularity.regions import Regions, shells_of


def random_masks(generator: torch.Generator, num: int = 4, size: tuple[int, int] = (12, 10)) -> torch.Tensor:
    return torch.rand(num, 3, *size, generator=generator) > 0.4


def test_shells_are_disjoint_and_sum_to_the_whole():
    masks = random_masks(torch.Generator().manual_seed(0))
    shells = shells_of(masks)
    assert shells.sum(1).max() == 1
    assert torch.equal(shells.any(1), masks[:, 0])
    assert torch.equal(shells[:, 2], masks.all(1))


def test_shells_leave_the_masks_alone():
    masks = random_masks(torch.Generator().manual_seed(0))
    soft, before = masks.float(), masks.clone()
    shells_of(masks)
    shells_of(soft)
    assert torch.equal(masks, before)
    assert torch.equal(soft, before.float())


def test_soft_masks_of_zeros_and_ones_make_the_same_shells_as_bool_ones():
    masks = random_masks(torch.Generator().manual_seed(1))
    assert torch.equal(shells_of(masks.double()), shells_of(masks).double())


def test_levels_are_the_area_averages_of_the_clipped_masks():
    masks = random_masks(torch.Generator().manual_seed(2), size=(12, 8))
    regions = Regions.from_masks(masks, (3, 4))
    part = (masks[:, 0] & masks[:, 1]).float()
    expected = torch.nn.functional.avg_pool2d(part, (4, 2))
    torch.testing.assert_close(regions.levels[:, 1], expected)
    assert regions.cell_hw == (4.0, 2.0)


def test_shells_run_between_consecutive_distinct_levels():
    masks = triple(6, 4, 2)
    whole, part, subpart = masks[0]
    shells = shells_of(masks, torch.tensor([[True, False, True]]))[0]
    assert torch.equal(shells[0], whole & ~subpart)
    assert not shells[1].any()
    assert torch.equal(shells[2], subpart)
    shells = shells_of(masks, torch.tensor([[True, True, False]]))[0]
    assert torch.equal(shells[0], whole & ~part)
    assert torch.equal(shells[1], part)


def square(side: int, size: int = 8) -> torch.Tensor:
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[:side, :side] = True
    return mask


def triple(*sides: int) -> torch.Tensor:
    return torch.stack([square(side) for side in sides])[None]


@pytest.mark.parametrize(
    ("sides", "distinct", "expected"),
    [
        ((6, 4, 2), (True, True, True), True),
        ((6, 4, 1), (True, True, True), False),  # the subpart covers one cell
        ((6, 4, 1), (True, True, False), True),  # the part is innermost then
        ((6, 4, 4), (True, True, True), False),  # nothing of the part is outside the subpart
        ((6, 6, 2), (True, False, True), True),
        ((6, 6, 2), (True, True, True), False),
        ((8, 4, 2), (True, True, True), False),  # no background
        ((6, 4, 0), (True, True, True), False),
        ((6, 4, 2), (False, False, False), False),
    ],
)
def test_measurable(sides, distinct, expected):
    regions = Regions.from_masks(triple(*sides), (8, 8), distinct=torch.tensor([distinct]))
    assert regions.measurable().tolist() == [expected]


def test_measurable_counts_cells_of_the_grid_and_not_pixels():
    assert Regions.from_masks(triple(6, 4, 2), (8, 8)).measurable().all()
    assert not Regions.from_masks(triple(6, 4, 2), (4, 4)).measurable().any()
    assert Regions.from_masks(triple(6, 4, 2), (4, 4)).measurable(min_cells=1.0).all()


def test_padding_is_neither_area_nor_background():
    valid = torch.zeros(8, 8)
    valid[:6, :6] = 1
    assert not Regions.from_masks(triple(6, 4, 2), (8, 8), valid=valid).measurable().any()


def test_some_prompts_and_several_together():
    sides = ((6, 4, 2), (5, 3, 2), (7, 6, 3))
    masks = torch.cat([triple(*own) for own in sides])
    distinct = torch.tensor([[True] * 3, [True, False, True], [True] * 3])
    valid = torch.ones(8, 8)
    valid[:, 7] = 0
    regions = Regions.from_masks(masks, (8, 8), distinct=distinct, valid=valid)
    some = regions[torch.tensor([2, 0])]
    assert torch.equal(some.shells, regions.shells[[2, 0]])
    assert torch.equal(some.distinct, distinct[[2, 0]])
    again = Regions.cat([regions[torch.tensor([0])], regions[torch.tensor([1, 2])]])
    assert torch.equal(again.shells, regions.shells)
    assert torch.equal(again.distinct, distinct)
    assert torch.equal(again.valid, valid)
    torch.testing.assert_close(regions.areas[0], torch.tensor([36, 16, 4]) / 56)
    assert regions.areas[1].isnan().tolist() == [False, True, False]


@pytest.mark.usefixtures("as_at_run_time")
def test_errors_name_what_came():
    with pytest.raises(ShapeError, match=r"masks\[None\]"):
        Regions.from_masks(triple(6, 4, 2)[0], (8, 8))
    with pytest.raises(InputError, match="bool"):
        Regions.from_masks(triple(6, 4, 2).int(), (8, 8))
    with pytest.raises(InputError, match="negative"):
        Regions.from_masks(triple(6, 4, 2), (8, 8), valid=torch.zeros(8, 8))
    with pytest.raises(ShapeError, match="valid"):
        Regions.from_masks(triple(6, 4, 2), (8, 8), valid=torch.ones(4, 4))
    with pytest.raises(ShapeError, match="distinct"):
        Regions.from_masks(triple(6, 4, 2), (8, 8), distinct=torch.ones(3, dtype=torch.bool))
