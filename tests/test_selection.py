"""Strategies and ensembles against a search by hand over each prompt's candidates."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arrcoc_sam.errors import HierarchyError, InputError, ShapeError, UnknownNameError
from arrcoc_sam.selection import ENSEMBLE_METHODS, STRATEGIES, ensemble_masks, select_masks

NAN = float("nan")


def candidates(seed: int, num_prompts: int = 5, num_masks: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    density = torch.rand(num_prompts, num_masks, 1, 1, generator=generator)
    masks = torch.rand(num_prompts, num_masks, 7, 9, generator=generator) < density
    return masks, torch.rand(num_prompts, num_masks, generator=generator) * 1.4 - 0.2


def sets(masks: torch.Tensor) -> list[list[set[int]]]:
    return [[set(np.flatnonzero(mask.numpy()).tolist()) for mask in prompt] for prompt in masks]


def iou(a: set[int], b: set[int]) -> float:
    return len(a & b) / len(a | b) if a | b else NAN


def first_best(values: list[float]) -> int:
    """Index of the first largest number that is one."""
    return max(
        range(len(values)), key=lambda i: (values[i] == values[i], values[i] if values[i] == values[i] else 0, -i)
    )


seeds = st.integers(0, 10_000)
many = settings(deadline=None, max_examples=25)


@many
@given(seeds)
def test_every_strategy_finds_what_a_search_finds(seed):
    masks, scores = candidates(seed)
    target = candidates(seed + 1)[0][:, 0]
    stability = torch.rand(5, 3, generator=torch.Generator().manual_seed(seed))
    ratio = torch.rand(5, generator=torch.Generator().manual_seed(seed + 2))
    areas = [[len(s) for s in prompt] for prompt in sets(masks)]
    by_area = [sorted(range(3), key=lambda i: -prompt[i]) for prompt in areas]
    filled = [[a if a else NAN for a in prompt] for prompt in areas]
    truth = [[iou(s, t[0]) for s in prompt] for prompt, t in zip(sets(masks), sets(target[:, None]), strict=True)]
    expected = {
        "automatic": [first_best(row) for row in scores.tolist()],
        "oracle": [first_best(row) for row in truth],
        "largest": [first_best(row) for row in filled],
        "smallest": [first_best([-a for a in row]) for row in filled],
        "area_ratio": [
            first_best([-abs(a / 63 - r) for a in row]) for row, r in zip(filled, ratio.tolist(), strict=True)
        ],
        "whole": [order[0] for order in by_area],
        "part": [order[1] for order in by_area],
        "subpart": [order[2] for order in by_area],
        "stability": [first_best(row) for row in stability.tolist()],
    }
    arguments = {"oracle": {"target": target}, "stability": {"stability": stability}, "area_ratio": {"ratio": ratio}}
    assert set(expected) == set(STRATEGIES) - {"box"}
    for strategy, index in expected.items():
        chosen = select_masks(masks, scores, strategy, **arguments.get(strategy, {}))
        assert chosen.index.tolist() == index, strategy
        rows = torch.arange(5)
        assert torch.equal(chosen.masks, masks[rows, chosen.index])
        wanted = torch.tensor(truth)[rows, index] if strategy == "oracle" else scores[rows, index]
        torch.testing.assert_close(chosen.score, wanted, equal_nan=True, msg=strategy)


def test_box_takes_the_mask_whose_box_agrees():
    masks = torch.zeros(1, 4, 10, 10, dtype=torch.bool)
    masks[0, 0, 0:9, 0:9] = True
    masks[0, 1, 2:6, 3:7] = True
    masks[0, 2, 5, 5] = True
    scores = torch.tensor([[0.9, 0.1, 0.8, 0.7]])  # the fourth mask is empty: it has no box
    # boxes are of pixel centres: the box of one pixel has x0 = x1
    for box, index in (([3.0, 2.0, 6.0, 5.0], 1), ([5.0, 5.0, 5.0, 5.0], 2), ([0.0, 0.0, 9.0, 9.0], 0)):
        chosen = select_masks(masks, scores, "box", box_xyxy=torch.tensor(box))
        assert chosen.index.tolist() == [index]
        assert chosen.score.tolist() == pytest.approx([scores[0, index].item()])


def test_one_argument_for_all_or_one_a_prompt():
    masks, scores = candidates(3)
    target = masks[0, 2]
    for given_once, a_prompt in (
        ({"target": target}, {"target": target.expand(5, -1, -1)}),
        ({"ratio": 0.3}, {"ratio": torch.full((5,), 0.3)}),
        ({"box_xyxy": torch.tensor([1.0, 1, 5, 5])}, {"box_xyxy": torch.tensor([[1.0, 1, 5, 5]] * 5)}),
    ):
        strategy = {"target": "oracle", "ratio": "area_ratio", "box_xyxy": "box"}[next(iter(given_once))]
        once, each = (
            select_masks(masks, scores, strategy, **given_once),
            select_masks(masks, scores, strategy, **a_prompt),
        )
        assert torch.equal(once.index, each.index)


def test_ties_go_to_the_first_and_nan_is_never_taken():
    masks = torch.ones(3, 3, 2, 2, dtype=torch.bool)
    scores = torch.tensor([[0.5, 0.7, 0.7], [NAN, -0.5, NAN], [NAN, NAN, NAN]])
    chosen = select_masks(masks, scores, "automatic")
    assert chosen.index.tolist() == [1, 1, 0]
    assert chosen.score.tolist() == pytest.approx([0.7, -0.5, NAN], nan_ok=True)
    for strategy in ("largest", "smallest", "whole"):
        assert select_masks(masks, scores, strategy).index.tolist() == [0, 0, 0]


def test_empty_masks_are_not_taken_by_area():
    masks = torch.zeros(2, 3, 4, 4, dtype=torch.bool)
    masks[0, 1, 0] = True
    masks[0, 2, :2] = True
    scores = torch.zeros(2, 3)
    assert select_masks(masks, scores, "smallest").index.tolist() == [1, 0]  # nothing but empty ones: the first
    assert select_masks(masks, scores, "area_ratio", ratio=0.0).index.tolist() == [1, 0]
    assert select_masks(masks, scores, "subpart").index.tolist() == [0, 2]  # a level may be empty


def test_oracle_of_empty_target_and_masks_is_nan():
    masks = torch.zeros(1, 2, 3, 3, dtype=torch.bool)
    chosen = select_masks(masks, torch.tensor([[0.2, 0.8]]), "oracle", target=torch.zeros(3, 3, dtype=torch.bool))
    assert chosen.index.tolist() == [0]
    assert chosen.score.isnan().all()


@many
@given(seeds, st.integers(1, 4))
def test_ensembles_pixel_by_pixel(seed, num_masks):
    masks, scores = candidates(seed, num_masks=num_masks)
    weights = np.exp(scores.numpy().astype(np.float64))
    weights /= weights.sum(1, keepdims=True)
    votes = masks.sum(1).numpy()
    weight = (masks.numpy() * weights[:, :, None, None]).sum(1)
    expected = {
        "union": votes >= 1,
        "intersection": votes == num_masks,
        "voting": votes / num_masks > 0.5,
        "weighted": weight > 0.5,
    }
    assert set(expected) == set(ENSEMBLE_METHODS)
    clear = np.abs(weight - 0.5) > 1e-6  # float32 may fall on either side of a tie
    for method, mask in expected.items():
        came = ensemble_masks(masks, scores, method).numpy()
        where = clear if method == "weighted" else np.ones_like(clear)
        assert np.array_equal(came[where], mask[where]), method


def test_half_the_votes_are_no_majority():
    masks = torch.tensor([True, True, False, False]).reshape(1, 4, 1, 1)
    assert not ensemble_masks(masks, torch.zeros(1, 4), "voting").any()


def test_weighted_leaves_nan_out():
    masks = torch.tensor([[True, False, False], [True, False, False]])[:, :, None, None]
    scores = torch.tensor([[0.0, -1.0, NAN], [NAN, NAN, NAN]])
    # e^0 of e^0 + e^-1 is more than half; of three alike, one is not
    assert ensemble_masks(masks, scores, "weighted").flatten().tolist() == [True, False]


def test_no_prompts():
    masks, scores = torch.zeros(0, 3, 4, 5, dtype=torch.bool), torch.zeros(0, 3)
    for strategy in ("automatic", "largest", "smallest", "whole", "part", "subpart"):
        chosen = select_masks(masks, scores, strategy)
        assert len(chosen) == 0
        assert chosen.masks.shape == (0, 4, 5)
    for method in ENSEMBLE_METHODS:
        assert ensemble_masks(masks, scores, method).shape == (0, 4, 5)


def test_unknown_names_list_the_known_ones():
    masks, scores = candidates(0)
    with pytest.raises(UnknownNameError, match=r"'best'; expected one of automatic, oracle, .*stability"):
        select_masks(masks, scores, "best")
    with pytest.raises(UnknownNameError, match=r"'mean'; expected one of union, intersection, weighted, voting"):
        ensemble_masks(masks, scores, "mean")


@pytest.mark.usefixtures("as_at_run_time")
def test_arguments_are_checked():
    masks, scores = candidates(0)
    for strategy, name in (
        ("oracle", "target"),
        ("box", "box_xyxy"),
        ("area_ratio", "ratio"),
        ("stability", "stability"),
    ):
        with pytest.raises(InputError, match=f"{strategy!r} without {name}.*pass {name}="):
            select_masks(masks, scores, strategy)
    with pytest.raises(InputError, match=r"'largest' with ratio; expected no ratio"):
        select_masks(masks, scores, "largest", ratio=0.5)
    with pytest.raises(InputError, match="expected bool masks"):
        select_masks(masks, scores, "oracle", target=torch.zeros(7, 9))
    with pytest.raises(ShapeError, match=r"target is .*expected shape \(7, 9\) or \(5, 7, 9\)"):
        select_masks(masks, scores, "oracle", target=torch.zeros(7, 8, dtype=torch.bool))
    with pytest.raises(ShapeError, match=r"\(4,\) or \(5, 4\)"):
        select_masks(masks, scores, "box", box_xyxy=torch.zeros(3, 4))
    for ratio in (30.0, -0.1, NAN):
        with pytest.raises(InputError, match="a share of the image"):
            select_masks(masks, scores, "area_ratio", ratio=ratio)


@pytest.mark.usefixtures("as_at_run_time")
def test_shapes_are_checked():
    masks, scores = candidates(0)
    with pytest.raises(ShapeError, match=r"expected \(K, M\) = \(5, 3\)"):
        select_masks(masks, scores[:, :2], "automatic")
    with pytest.raises(ShapeError, match="bool masks of shape"):
        select_masks(masks.float(), scores, "automatic")
    with pytest.raises(ShapeError, match="bool masks of shape"):
        ensemble_masks(masks[0], scores, "union")
    with pytest.raises(ShapeError, match="M = 0"):
        ensemble_masks(masks[:, :0], scores[:, :0], "union")
    with pytest.raises(HierarchyError, match="2 candidates a prompt; expected at least 3 for 'part'"):
        select_masks(masks[:, :2], scores[:, :2], "part")


def test_boxes_that_are_none_are_refused(as_at_run_time):
    masks = torch.zeros(2, 3, 5, 6, dtype=torch.bool)
    masks[:, 1, 1:3, 2:4] = True
    iou = torch.zeros(2, 3)
    with pytest.raises(InputError, match=r"box_xyxy .* end before they begin.*turn \(x, y, width, height\)"):
        select_masks(masks, iou, "box", box_xyxy=[4, 4, 1, 1])
    with pytest.raises(InputError, match="a box for every prompt"):
        select_masks(masks, iou, "box", box_xyxy=[[1, 1, 2, 2], [float("nan")] * 4])
    with pytest.raises(InputError, match="box_xyxy is"):
        select_masks(masks, iou, "box", box_xyxy="abcd")
    with pytest.raises(InputError, match="ratio is"):
        select_masks(masks, iou, "area_ratio", ratio="x")


def test_targets_as_arrays_come_in_any_layout(as_at_run_time):
    masks = torch.zeros(1, 3, 5, 6, dtype=torch.bool)
    masks[0, 2, :, :3] = True
    target = np.zeros((5, 6), dtype=bool)
    target[:, 3:] = True
    assert select_masks(masks, torch.zeros(1, 3), "oracle", target=target[:, ::-1]).index.tolist() == [2]
    target.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        select_masks(masks, torch.zeros(1, 3), "oracle", target=target)
    with pytest.raises(InputError, match="target is"):
        select_masks(masks, torch.zeros(1, 3), "oracle", target=[masks[0, 0]])
    with pytest.raises(UnknownNameError, match="no strategy is called"):
        select_masks(masks, torch.zeros(1, 3), ["automatic"])  # type: ignore[arg-type]
