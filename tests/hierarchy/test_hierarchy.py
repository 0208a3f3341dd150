"""Levels and hierarchies against set arithmetic in exact fractions, and the degenerate cases by hand."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations, permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arrcoc_sam.errors import HierarchyError, InputError, ShapeError
from arrcoc_sam.geometry import ImageTransform
from arrcoc_sam.hierarchy import LEVELS, MaskHierarchy
from arrcoc_sam.hierarchy.levels import relate_levels, shell_masks

SIDE = 5


def strip(*ranges: tuple[int, int], length: int = 100) -> torch.Tensor:
    """A mask of one row that is on from a to b (b not included), for each range."""
    mask = torch.zeros(1, length, dtype=torch.bool)
    for a, b in ranges:
        mask[:, a:b] = True
    return mask


def triple(*masks: torch.Tensor) -> MaskHierarchy:
    return MaskHierarchy.from_masks(torch.stack(masks)[None])


# --- against exact set arithmetic -----------------------------------------------------------------------------------


def counted_levels(sets: list[set[int]]) -> list[bool]:
    """Which of three sets count: the definition of SCIENCE.md section 2, in fractions."""
    whole, part, subpart = sets
    counted = [bool(whole)]
    for level, above in ((part, whole), (subpart, part)):
        inside = level and Fraction(len(level & above), len(level)) >= Fraction(9, 10)
        inside_whole = level and Fraction(len(level & whole), len(level)) >= Fraction(9, 10)
        distinct = level and Fraction(len(level & above), len(level | above)) <= Fraction(7, 10)
        counted.append(bool(inside and inside_whole and distinct))
    return counted


# Boxes rather than random pixels: random pixels are hardly ever nested.
boxes = st.tuples(*[st.integers(0, SIDE)] * 4).map(lambda c: (min(c[0], c[1]), max(c[0], c[1]), min(c[2:]), max(c[2:])))


def draw(box: tuple[int, int, int, int]) -> torch.Tensor:
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    mask[box[0] : box[1], box[2] : box[3]] = True
    return mask


def pixels(mask: torch.Tensor) -> set[int]:
    return set(mask.flatten().nonzero()[:, 0].tolist())


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(boxes, boxes, boxes), min_size=1, max_size=4))
def test_three_masks_follow_the_definition(prompts):
    masks = torch.stack([torch.stack([draw(box) for box in prompt]) for prompt in prompts])
    hierarchy = MaskHierarchy.from_masks(masks)
    for k, prompt in enumerate(masks):
        sets = [pixels(mask) for mask in prompt]
        order = sorted(range(3), key=lambda i: -len(sets[i]))  # stable, as promised
        assert hierarchy.token_index[k].tolist() == order
        whole, part, subpart = ordered = [sets[i] for i in order]
        assert [pixels(mask) for mask in hierarchy.masks[k]] == ordered
        assert hierarchy.areas[k].tolist() == [len(s) for s in ordered]
        assert hierarchy.counted[k].tolist() == counted_levels(ordered)
        assert bool(hierarchy.valid[k]) == (sum(counted_levels(ordered)) >= 2)
        for level, (inner, above) in enumerate(((part, whole), (subpart, part))):
            share = len(inner & above) / len(inner) if inner else float("nan")
            assert hierarchy.nesting[k, level].item() == pytest.approx(share, nan_ok=True)
            union = len(inner | above)
            expected = bool(inner) and Fraction(len(inner & above), union) <= Fraction(7, 10)
            assert bool(hierarchy.distinct[k, level + 1]) == expected
        assert bool(hierarchy.distinct[k, 0]) == bool(whole)
        clipped = [whole, part & whole, subpart & part & whole]
        assert [pixels(mask) for mask in hierarchy.clipped()[k]] == clipped


@settings(deadline=None, max_examples=60)
@given(st.lists(boxes, min_size=4, max_size=6))
def test_more_masks_give_the_triple_with_most_levels(drawn):
    masks = torch.stack([draw(box) for box in drawn])
    hierarchy = MaskHierarchy.from_masks(masks[None])
    sets = [pixels(mask) for mask in masks]
    order = sorted(range(len(sets)), key=lambda i: -len(sets[i]))
    triples = [(0, i, j) for i, j in combinations(range(1, len(order)), 2)]
    found = [sum(counted_levels([sets[order[i]] for i in ranks])) for ranks in triples]
    best = triples[found.index(max(found))]
    assert hierarchy.token_index[0].tolist() == [order[i] for i in best]


def test_order_of_the_tokens_is_irrelevant():
    masks = torch.stack([strip((0, 80)), strip((10, 50)), strip((20, 30))])
    scores = torch.tensor([0.9, 0.8, 0.7])
    for order in permutations(range(3)):
        index = list(order)
        hierarchy = MaskHierarchy.from_masks(masks[index][None], scores[index][None], torch.tensor(index) + 1)
        assert torch.equal(hierarchy.masks[0], masks)
        assert hierarchy.scores[0].tolist() == pytest.approx([0.9, 0.8, 0.7])
        assert hierarchy.token_index[0].tolist() == [1, 2, 3]
        assert hierarchy.valid.tolist() == [True]


# --- thresholds -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "distinct"), [(70, True), (71, False)])
def test_iou_of_exactly_the_threshold_is_distinct(length, distinct):
    hierarchy = triple(strip((0, 100)), strip((0, length)), strip((0, 10)))
    assert hierarchy.distinct[0].tolist() == [True, distinct, True]


@pytest.mark.parametrize(("outside", "valid"), [(1, True), (2, False)])
def test_share_of_exactly_the_threshold_is_nested(outside, valid):
    part = strip((50 - 10 + outside, 50 + outside))  # ten pixels, some beyond the whole
    hierarchy = triple(strip((0, 50)), part, strip(length=100))
    assert hierarchy.nesting[0, 0].item() == pytest.approx(1 - outside / 10)
    assert hierarchy.valid.tolist() == [valid]


def test_thresholds_are_parameters():
    masks = torch.stack([strip((0, 100)), strip((0, 80)), strip((0, 75))])[None]
    assert MaskHierarchy.from_masks(masks).valid.tolist() == [False]
    loose = MaskHierarchy.from_masks(masks, distinct_iou=0.8)
    assert loose.distinct[0].tolist() == [True, True, False]
    assert loose.valid.tolist() == [True]
    shifted = torch.stack([strip((0, 50)), strip((35, 55)), strip()])[None]
    assert MaskHierarchy.from_masks(shifted).valid.tolist() == [False]
    assert MaskHierarchy.from_masks(shifted, nested_share=0.75).valid.tolist() == [True]


def test_two_distinct_levels_are_enough_whichever_they_are():
    repeats_whole = triple(strip((0, 100)), strip((0, 95)), strip((0, 20)))
    assert repeats_whole.distinct[0].tolist() == [True, False, True]
    repeats_part = triple(strip((0, 100)), strip((0, 50)), strip((0, 49)))
    assert repeats_part.distinct[0].tolist() == [True, True, False]
    assert repeats_whole.valid.tolist() == repeats_part.valid.tolist() == [True]


def test_subpart_beside_the_whole_does_not_make_a_triple_valid():
    # 0.9 of the part lies in the whole, and the subpart in the 0.1 that does not
    hierarchy = triple(strip((0, 80)), strip((8, 88)), strip((80, 88)))
    assert hierarchy.distinct[0].tolist() == [True, False, True]
    assert hierarchy.nesting[0].tolist() == pytest.approx([0.9, 1.0])
    assert hierarchy.valid.tolist() == [False]
    assert hierarchy.counted[0].tolist() == [True, False, False]
    assert not hierarchy.clipped()[0, 2].any()


def test_a_mask_beside_the_part_is_distinct_and_not_counted():
    hierarchy = triple(strip((0, 90)), strip((0, 40)), strip((50, 80)))
    assert hierarchy.distinct[0].tolist() == [True, True, True]
    assert hierarchy.counted[0].tolist() == [True, True, False]
    assert hierarchy.valid.tolist() == [True]
    assert hierarchy[0].counted.tolist() == [[True, True, False]]


# --- degenerate -----------------------------------------------------------------------------------------------------


def test_empty_masks():
    hierarchy = triple(strip(), strip(), strip())
    assert hierarchy.distinct[0].tolist() == [False, False, False]
    assert hierarchy.nesting[0].isnan().all()
    assert hierarchy.valid.tolist() == [False]
    assert hierarchy.measurable((1, 10)).tolist() == [False]
    one = triple(strip(), strip((0, 10)), strip())
    assert one.token_index[0].tolist() == [1, 0, 2]
    assert one.distinct[0].tolist() == [True, False, False]
    assert one.valid.tolist() == [False]


def test_identical_masks():
    hierarchy = triple(strip((0, 30)), strip((0, 30)), strip((0, 30)))
    assert hierarchy.token_index[0].tolist() == [0, 1, 2]
    assert hierarchy.distinct[0].tolist() == [True, False, False]
    assert hierarchy.nesting[0].tolist() == [1.0, 1.0]
    assert hierarchy.valid.tolist() == [False]
    assert torch.equal(hierarchy.shells()[0, 0], strip((0, 30)))
    assert not hierarchy.shells()[0, 1:].any()


def test_no_prompts():
    hierarchy = MaskHierarchy.from_masks(torch.zeros(0, 4, 6, 7, dtype=torch.bool))
    assert len(hierarchy) == 0
    assert hierarchy.masks.shape == hierarchy.clipped().shape == hierarchy.shells().shape == (0, 3, 6, 7)
    assert hierarchy.scores.shape == hierarchy.areas.shape == hierarchy.distinct.shape == (0, 3)
    assert hierarchy.measurable((2, 2)).shape == hierarchy.valid.shape == (0,)


def test_human_masks_come_with_full_score_and_from_numpy():
    masks = torch.stack([strip((0, 80)), strip((10, 50)), strip((20, 30))])[None].numpy()
    hierarchy = MaskHierarchy.from_masks(masks)
    assert hierarchy.scores.tolist() == [[1.0, 1.0, 1.0]]
    assert isinstance(masks, np.ndarray)
    assert np.array_equal(hierarchy.masks.numpy(), masks)


def test_scores_and_tokens_come_as_arrays_and_lists_too():
    masks = torch.stack([strip((0, 10)), strip((0, 100)), strip((0, 50))])[None].numpy()
    for scores, tokens in (([[0.1, 0.2, 0.3]], [[7, 8, 9]]), (np.array([[0.1, 0.2, 0.3]]), np.array([7, 8, 9]))):
        found = MaskHierarchy.from_masks(masks, scores, tokens)
        torch.testing.assert_close(found.scores, torch.tensor([[0.2, 0.3, 0.1]]), check_dtype=False)
        assert found.token_index.tolist() == [[8, 9, 7]]


def test_scores_are_floats_whatever_they_come_as(as_at_run_time):
    masks = torch.stack([strip((0, 10)), strip((0, 100)), strip((0, 50))])[None]
    for scores in ([[1, 1, 1]], [[0.5, 1, 1]], torch.ones(1, 3, dtype=torch.int64)):
        assert MaskHierarchy.from_masks(masks, scores).scores.dtype == torch.float32
    assert MaskHierarchy.from_masks(masks, torch.ones(1, 3).double()).scores.dtype == torch.float64
    with pytest.raises(ShapeError, match=r"token_index is .*expected \(K, M\) = \(1, 3\)"):
        MaskHierarchy.from_masks(masks, None, [5, 6])


def test_scores_stay_raw():
    masks = torch.stack([strip((0, 80)), strip((10, 50)), strip((20, 30))])[None]
    hierarchy = MaskHierarchy.from_masks(masks, torch.tensor([[1.2, -0.1, float("nan")]]))
    assert hierarchy.scores[0].tolist() == pytest.approx([1.2, -0.1, float("nan")], nan_ok=True)


# --- shells and grids -----------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.tuples(boxes, boxes, boxes))
def test_shells_are_disjoint_and_make_up_the_whole(prompt):
    hierarchy = triple(*[draw(box) for box in prompt])
    shells = hierarchy.shells()[0].int()
    assert int(shells.sum(0).max()) <= 1
    assert torch.equal(shells.sum(0).bool(), hierarchy.masks[0, 0])
    assert not shells[~hierarchy.distinct[0]].any()


def test_shells_skip_a_level_that_is_not_distinct():
    hierarchy = triple(strip((0, 100)), strip((0, 95)), strip((0, 20)))
    assert pixels(hierarchy.shells()[0, 0]) == set(range(20, 100))
    assert pixels(hierarchy.shells()[0, 1]) == set()
    assert pixels(hierarchy.shells()[0, 2]) == set(range(20))


def test_soft_shells_are_differences():
    levels = torch.tensor([[1.0, 0.5], [0.6, 0.5], [0.1, 0.0]])[:, None]
    shells = shell_masks(levels, torch.tensor([True, True, True]))
    torch.testing.assert_close(shells[:, 0], torch.tensor([[0.4, 0.0], [0.5, 0.5], [0.1, 0.0]]))


def test_measurable_wants_four_cells_of_the_innermost_level():
    # a grid of 1 × 10: cells of ten pixels
    exactly_four = triple(strip((0, 90)), strip((0, 60)), strip((0, 40)))
    less = triple(strip((0, 90)), strip((0, 60)), strip((0, 39)))
    assert exactly_four.measurable((1, 10)).tolist() == [True]
    assert less.measurable((1, 10)).tolist() == [False]
    assert less.measurable((1, 20)).tolist() == [True]
    assert less.measurable((1, 10), min_cells=3.9).tolist() == [True]
    # of a triple whose subpart repeats the part, the part is the innermost
    assert triple(strip((0, 90)), strip((0, 40)), strip((0, 39))).measurable((1, 10)).tolist() == [True]


def test_measurable_wants_a_background():
    assert triple(strip((0, 100)), strip((0, 60)), strip((0, 40))).measurable((1, 10)).tolist() == [False]
    assert triple(strip((0, 99)), strip((0, 60)), strip((0, 40))).measurable((1, 10)).tolist() == [True]


def test_measurable_on_a_letterboxed_grid_counts_cells_of_the_frame():
    # 40 × 80 pixels in a frame of 16 × 16, a grid of 8 × 8: the image takes 4 × 8 cells of 10 × 10 pixels
    def box(height: int, width: int) -> torch.Tensor:
        mask = torch.zeros(40, 80, dtype=torch.bool)
        mask[:height, :width] = True
        return mask

    transform = ImageTransform.letterbox((40, 80), 16)
    enough = triple(box(40, 70), box(40, 40), box(20, 20))
    short = triple(box(40, 70), box(40, 40), box(20, 19))
    assert enough.measurable((8, 8), transform=transform).tolist() == [True]
    assert short.measurable((8, 8), transform=transform).tolist() == [False]
    # the padding is no background
    full = triple(box(40, 80), box(40, 40), box(20, 20))
    assert full.measurable((8, 8), transform=transform).tolist() == [False]


def test_shell_cropped_away_is_not_measurable():
    part, subpart = strip((0, 60)), strip((0, 40))
    hierarchy = triple(strip((0, 90)), part, subpart)
    crop = ImageTransform.crop((1, 100), (0, 0, 55, 1))  # nothing of whole∖part is shown
    assert hierarchy.measurable((1, 11), transform=crop).tolist() == [False]
    whole_image = ImageTransform.identity((1, 100))
    assert hierarchy.measurable((1, 11), transform=whole_image).tolist() == [True]


# --- rows and errors ------------------------------------------------------------------------------------------------


def test_rows_can_be_taken():
    masks = torch.stack([torch.stack([strip((0, 90)), strip((0, n)), strip((0, 5))]) for n in (20, 30, 40)])
    hierarchy = MaskHierarchy.from_masks(masks)
    assert hierarchy[1].areas.tolist() == [[90, 30, 5]]
    assert hierarchy[-1].areas.tolist() == [[90, 40, 5]]
    assert hierarchy[1:].areas[:, 1].tolist() == [30, 40]
    assert hierarchy[torch.tensor([True, False, True])].areas[:, 1].tolist() == [20, 40]
    assert len(list(hierarchy)) == 3
    with pytest.raises(IndexError, match="prompt 3 of 3"):
        hierarchy[3]


def test_levels_have_names():
    assert LEVELS == ("whole", "part", "subpart")


@pytest.mark.usefixtures("as_at_run_time")
def test_errors():
    good = torch.zeros(2, 3, 4, 4, dtype=torch.bool)
    with pytest.raises(HierarchyError, match="2 masks a prompt; expected at least 3"):
        MaskHierarchy.from_masks(good[:, :2])
    with pytest.raises(ShapeError, match=r"masks is .*Mend: masks\[None\]"):
        MaskHierarchy.from_masks(good[0])
    with pytest.raises(InputError, match="threshold it"):
        MaskHierarchy.from_masks(good.float())
    with pytest.raises(ShapeError, match=r"scores is .*expected \(K, M\) = \(2, 3\)"):
        MaskHierarchy.from_masks(good, torch.zeros(2, 4))
    with pytest.raises(ShapeError, match="token_index is"):
        MaskHierarchy.from_masks(good, None, torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(InputError, match=r"distinct_iou=1.5; expected a share"):
        MaskHierarchy.from_masks(good, distinct_iou=1.5)
    with pytest.raises(InputError, match="nested_share=-1"):
        MaskHierarchy.from_masks(good, nested_share=-1)
    with pytest.raises(ShapeError, match=r"\(K, 3, 3\)"):
        relate_levels(torch.zeros(1, 4, 4, dtype=torch.int64))
