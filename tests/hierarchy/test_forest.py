"""Forests against brute force over sets, and one drawn by hand."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arrcoc_sam.errors import DataError, HierarchyError, InputError, ShapeError
from arrcoc_sam.hierarchy.mask_forest import MaskForest
from arrcoc_sam.masks.rle import decode_rle

SIDE = 8


def box(top: int, bottom: int, left: int, right: int, side: int = 20) -> torch.Tensor:
    mask = torch.zeros(side, side, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


@pytest.fixture
def forest() -> MaskForest:
    """A car (0) with two wheels (1, 2), the left one with a hub (3) and a bolt in it (4), and a tree (5) beside it."""
    car, left, right = box(0, 10, 0, 20), box(5, 10, 0, 6), box(5, 10, 14, 20)
    hub, bolt, tree = box(6, 9, 1, 5), box(7, 8, 2, 4), box(12, 20, 3, 8)
    given = [bolt, tree, right, left, car, hub]  # as they come
    return MaskForest.from_masks(torch.stack(given), torch.tensor([0.5, 0.6, 0.7, 0.8, 0.9, 1.0]))


def test_tree_of_parts(forest):
    assert forest.areas.tolist() == [200, 40, 30, 30, 12, 2]
    assert forest.index.tolist() == [4, 1, 2, 3, 5, 0]
    assert forest.scores.tolist() == pytest.approx([0.9, 0.6, 0.7, 0.8, 1.0, 0.5])
    car, tree, right, left, hub, bolt = range(6)
    assert forest.parent.tolist() == [-1, -1, car, car, left, hub]
    assert forest.depth.tolist() == [0, 0, 1, 1, 2, 3]
    assert forest.roots.tolist() == [car, tree]
    assert forest.children(car).tolist() == [right, left]
    assert forest.children(bolt).tolist() == []
    assert forest.siblings(left).tolist() == [right]
    assert forest.siblings(car).tolist() == [tree]
    assert forest.path(bolt).tolist() == [car, left, hub, bolt]


def test_hierarchy_at_a_point(forest):
    # the pixel (2, 7) lies on car, left wheel, hub and bolt; the outermost distinct three are taken
    hierarchy = forest.hierarchy_at((2, 7))
    assert forest.nodes_at((2, 7)).tolist() == [0, 3, 4, 5]
    assert hierarchy.token_index.tolist() == [[0, 3, 4]]
    assert hierarchy.areas.tolist() == [[200, 30, 12]]
    assert hierarchy.scores[0].tolist() == pytest.approx([0.9, 0.8, 1.0])
    assert hierarchy.valid.tolist() == [True]
    # two masks make a valid hierarchy whose subpart repeats the part
    pair = forest.hierarchy_at((15, 6))
    assert pair.token_index.tolist() == [[0, 2, 2]]
    assert pair.distinct.tolist() == [[True, True, False]]
    assert pair.valid.tolist() == [True]
    # one mask makes a hierarchy that is not valid
    assert forest.hierarchy_at((4, 15)).valid.tolist() == [False]


def test_points_off_masks_and_off_the_image(forest):
    with pytest.raises(HierarchyError, match=r"no mask of the forest holds the point \(x, y\) = \(19, 19\)"):
        forest.hierarchy_at((19, 19))
    for point in ((-0.6, 0), (0, 19.6), (float("nan"), 0)):
        with pytest.raises(InputError, match="20 × 20 pixels"):
            forest.nodes_at(point)
    # the image reaches half a pixel beyond the outermost centres
    assert forest.nodes_at((-0.5, -0.5)).tolist() == [0]
    assert forest.nodes_at(torch.tensor([19.5, 9.4])).tolist() == [0, 2]


@settings(deadline=None, max_examples=80)
@given(st.lists(st.tuples(*[st.integers(0, SIDE)] * 4), max_size=7), st.sampled_from([0.5, 0.9, 1.0]))
def test_parent_is_the_smallest_mask_that_contains_enough(corners, nested_share):
    masks = [box(min(t, b), max(t, b), min(left, r), max(left, r), SIDE) for t, b, left, r in corners]
    stack = torch.stack(masks) if masks else torch.zeros(0, SIDE, SIDE, dtype=torch.bool)
    forest = MaskForest.from_masks(stack, duplicate_iou=None, nested_share=nested_share)
    sets = [set(mask.flatten().nonzero()[:, 0].tolist()) for mask in masks]
    assert sorted(forest.index.tolist()) == [i for i, s in enumerate(sets) if s]
    nodes = [sets[i] for i in forest.index.tolist()]
    for node, parent in enumerate(forest.parent.tolist()):
        containing = [
            other for other in range(node) if len(nodes[other] & nodes[node]) >= nested_share * len(nodes[node]) - 1e-9
        ]
        assert parent == max(containing, key=lambda other: (-len(nodes[other]), other), default=-1)
        assert forest.depth[node].item() == len(forest.path(node)) - 1


def test_duplicates_leave_the_best_scored():
    masks = torch.stack([box(0, 10, 0, 10), box(0, 10, 0, 10), box(0, 10, 0, 9), box(0, 10, 0, 5)])
    scores = torch.tensor([0.5, 0.7, 0.9, float("nan")])
    # IoU .9 is not above .9, so the third stays beside the first two
    assert MaskForest.from_masks(masks, scores).index.tolist() == [1, 2, 3]
    assert MaskForest.from_masks(masks, scores, duplicate_iou=0.8).index.tolist() == [2, 3]
    # IoU 50 / 90 of the third and the fourth
    assert MaskForest.from_masks(masks, scores, duplicate_iou=0.5).index.tolist() == [2]
    assert MaskForest.from_masks(masks, scores, duplicate_iou=None).index.tolist() == [0, 1, 2, 3]
    assert MaskForest.from_masks(masks).index.tolist() == [0, 2, 3]


def test_equal_masks_form_a_chain_and_no_cycle():
    masks = torch.stack([box(0, 5, 0, 5)] * 3)
    forest = MaskForest.from_masks(masks, duplicate_iou=None)
    assert forest.parent.tolist() == [-1, 0, 1]
    assert forest.depth.tolist() == [0, 1, 2]


def test_empty_masks_and_no_masks():
    forest = MaskForest.from_masks(torch.zeros(2, 4, 5, dtype=torch.bool))
    assert len(forest) == 0
    assert forest.to_dict() == {"size": [4, 5], "nodes": []}
    assert len(MaskForest.from_masks(torch.zeros(0, 4, 5, dtype=torch.bool))) == 0
    assert forest.nodes_at((0, 0)).tolist() == []


def test_json_holds_everything(forest):
    record = json.loads(forest.to_json())
    assert record["size"] == [20, 20]
    assert [node["parent"] for node in record["nodes"]] == [None, None, 0, 0, 3, 4]
    assert [node["id"] for node in record["nodes"]] == list(range(6))
    assert [node["index"] for node in record["nodes"]] == forest.index.tolist()
    assert record["nodes"][1]["box_xyxy"] == [3, 12, 7, 19]
    assert record["nodes"][1]["area"] == 40
    assert [node["children"] for node in record["nodes"]] == [[2, 3], [], [], [4], [5], []]
    assert [node["siblings"] for node in record["nodes"]] == [[1], [0], [3], [2], [], []]
    assert [node["contained"] for node in record["nodes"]] == [None, None, 1, 1, 1, 1]
    masks = decode_rle([node["segmentation"] for node in record["nodes"]])
    assert torch.equal(masks, forest.masks)


def test_json_comes_back(forest):
    again = MaskForest.from_json(forest.to_json(indent=1))
    for field in ("masks", "scores", "index", "areas", "parent", "depth"):
        assert torch.equal(getattr(again, field), getattr(forest, field)), field
        assert getattr(again, field).dtype == getattr(forest, field).dtype, field
    assert again.to_dict() == forest.to_dict()
    unscored = MaskForest.from_masks(np.ones((1, 3, 3), dtype=bool), torch.tensor([float("nan")]))
    assert MaskForest.from_json(unscored.to_json()).scores.isnan().all()
    empty = MaskForest.from_masks(torch.zeros(0, 4, 5, dtype=torch.bool))
    assert MaskForest.from_json(empty.to_json()).to_dict() == empty.to_dict()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda record: record.pop("size"), "'size' and 'nodes'"),
        (lambda record: record.update(size=[20]), "(height, width)"),
        (lambda record: record.update(size=[20, 21]), "node 0 of a forest has 20 x 20 pixels in a forest of 20 x 21"),
        (lambda record: record.update(nodes={}), "a list of records"),
        (lambda record: record["nodes"].append(3), "number 6 of the nodes of a forest is 3"),
        (lambda record: record["nodes"][1].pop("score"), "number 1 of the nodes of a forest lacks score"),
        (lambda record: record["nodes"][1].update(score="high"), "score of number 1"),
        (lambda record: record["nodes"][1].update(score=math.inf), "a finite number or null"),
        (lambda record: record["nodes"][1].update(index=True), "index of number 1"),
        (lambda record: record["nodes"][1].update(index=-1), "has the index -1"),
        (lambda record: record["nodes"][2].update(parent=0.5), "a whole number or null"),
        (lambda record: record["nodes"][2].update(parent=2), "has the index 2 and the parent 2"),
        (lambda record: record["nodes"][2].update(parent=1), "lies beside its parent 1"),
        (lambda record: record["nodes"][2].update(segmentation=None), "a run-length mask is None"),
        (lambda record: record["nodes"][0].update(segmentation={"size": [20, 20], "counts": [400]}), "has 0 pixels"),
        (lambda record: record["nodes"].reverse(), "and the parent 4"),
    ],
)
@pytest.mark.usefixtures("as_at_run_time")
def test_records_that_are_no_forest(forest, change, words):
    record = forest.to_dict()
    change(record)
    with pytest.raises(DataError, match=re.escape(words)):
        MaskForest.from_dict(record)


@pytest.mark.usefixtures("as_at_run_time")
@pytest.mark.parametrize("text", ["{", "[]", "3", b"\xff", "[" * 100_000, None])
def test_text_that_is_no_forest(text):
    with pytest.raises(DataError, match="a forest is"):
        MaskForest.from_json(text)


@pytest.mark.usefixtures("as_at_run_time")
def test_whole_scores_are_numbers():
    forest = MaskForest.from_masks(torch.stack([box(0, 5, 0, 5), box(0, 2, 0, 2)]), [1, 0])
    assert MaskForest.from_json(forest.to_json()).scores.tolist() == [1.0, 0.0]


def test_contained_share_of_a_part_that_reaches_out():
    forest = MaskForest.from_masks(torch.stack([box(0, 10, 0, 10), box(1, 11, 0, 5)]))
    assert forest.contained[1].item() == pytest.approx(0.9)
    assert forest.contained[0].isnan()
    assert json.loads(forest.to_json())["nodes"][1]["contained"] == pytest.approx(0.9)


def test_json_has_no_nan():
    forest = MaskForest.from_masks(np.ones((1, 3, 3), dtype=bool), torch.tensor([float("nan")]))
    assert json.loads(forest.to_json())["nodes"][0]["score"] is None


@pytest.mark.usefixtures("as_at_run_time")
def test_numpy_and_lists_of_scores_are_as_good_as_tensors(forest):
    scores = forest.scores.numpy().copy()
    scores.flags.writeable = False  # as pandas hands columns out
    for raw in (scores, scores.tolist()):
        again = MaskForest.from_masks(forest.masks.numpy(), raw)
        assert again.parent.tolist() == forest.parent.tolist()
        assert again.scores.tolist() == pytest.approx(forest.scores.tolist())
    with pytest.raises(InputError, match=r"scores is .*expected numbers of shape \(N,\)"):
        MaskForest.from_masks(forest.masks, [[1.0], 2.0])


def test_repr_is_one_line(forest):
    assert repr(forest) == "MaskForest(6 masks, 2 roots; 20 x 20 pixels)"


@pytest.mark.usefixtures("as_at_run_time")
def test_errors(forest):
    masks = torch.ones(2, 3, 3, dtype=torch.bool)
    with pytest.raises(ShapeError, match="masks is"):
        MaskForest.from_masks(masks[0])
    with pytest.raises(ShapeError, match=r"expected \(N, H, W\)"):
        MaskForest.from_masks(masks[None])
    with pytest.raises(InputError, match="threshold it"):
        MaskForest.from_masks(masks.float())
    with pytest.raises(ShapeError, match=r"\(N,\) = \(2,\)"):
        MaskForest.from_masks(masks, torch.ones(3))
    with pytest.raises(InputError, match="nested_share=0"):
        MaskForest.from_masks(masks, nested_share=0)
    with pytest.raises(InputError, match="node 6 of a forest of 6"):
        forest.path(6)
    with pytest.raises(InputError, match="node -1"):
        forest.children(-1)
