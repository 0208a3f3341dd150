from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arrcoc_sam import prompts as module
from arrcoc_sam.errors import InputError, ShapeError, UnknownNameError
from arrcoc_sam.geometry import ImageTransform
from arrcoc_sam.prompts import PROMPT_KINDS, PromptFrame, Prompts, PromptSignature, mask_prompt_logits

NAN = math.nan


class Frame:
    """A segmenter as far as prompts know one."""

    mask_input_size = (16, 16)
    mask_logit_scale = 8.0

    def transform_for(self, original_hw: tuple[int, int]) -> ImageTransform:
        return ImageTransform.letterbox(original_hw, 64)


def mixed() -> Prompts:
    """Five prompts: point; two points + box; box; mask; point + mask, one of its two points absent in the middle."""
    logits = torch.full((5, 4, 4), NAN)
    logits[3:] = torch.randn(2, 4, 4)
    return Prompts(
        points_xy=[
            [[1, 2], [NAN, NAN], [0, 0]],
            [[3, 4], [5, 6], [0, 0]],
            [[0, 0], [0, 0], [0, 0]],
            [[0, 0], [0, 0], [0, 0]],
            [[NAN, 7], [0, 0], [8, 9]],
        ],
        labels=[[1, -1, -1], [1, 0, -1], [-1, -1, -1], [-1, -1, -1], [-1, -1, 0]],
        boxes_xyxy=[[NAN] * 4, [0, 1, 2, 3], [4, 4, 4, 4], [NAN] * 4, [NAN] * 4],
        mask_logits=logits,
        image_index=[0, 1, 0, 2, 1],
    )


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_lists_arrays_and_tensors_are_the_same():
    points, labels, boxes = [[[1, 2]], [[3, 4]]], [[1], [0]], [[0, 0, 5, 5], [1, 1, 2, 2]]
    for kind in (list, np.array, torch.tensor):
        prompts = Prompts(kind(points), kind(labels), kind(boxes), image_index=kind([0, 3]))
        assert prompts.points_xy.tolist() == points
        assert prompts.labels.tolist() == labels
        assert prompts.boxes_xyxy.tolist() == boxes
        assert prompts.image_index.tolist() == [0, 3]
        dtypes = [prompts.points_xy.dtype, prompts.labels.dtype, prompts.boxes_xyxy.dtype, prompts.image_index.dtype]
        assert dtypes == [torch.float64, torch.int64, torch.float64, torch.int64]


def test_labels_and_image_index_have_defaults():
    prompts = Prompts(points_xy=torch.zeros(3, 2, 2))
    assert prompts.labels.tolist() == [[1, 1]] * 3
    assert prompts.image_index.tolist() == [0, 0, 0]
    assert Prompts(boxes_xyxy=torch.zeros(2, 4), image_index=4).image_index.tolist() == [4, 4]


def test_mask_logits_become_float32_and_keep_their_gradient():
    logits = torch.randn(2, 4, 4, dtype=torch.bfloat16, requires_grad=True)
    prompts = Prompts(mask_logits=logits)
    assert prompts.mask_logits.dtype == torch.float32
    prompts[[1]].mask_logits.sum().backward()
    assert logits.grad[0].abs().sum() == 0
    assert (logits.grad[1] == 1).all()


def test_frozen():
    with pytest.raises(AttributeError):
        mixed().labels = None  # type: ignore[misc]


def test_what_is_there():
    prompts = mixed()
    assert len(prompts) == 5
    assert prompts.num_points.tolist() == [1, 2, 0, 0, 1]
    assert prompts.has_box.tolist() == [False, True, True, False, False]
    assert prompts.has_mask.tolist() == [False, False, False, True, True]
    assert prompts.signatures()[4] == PromptSignature(1, False, True)
    assert prompts.device == torch.device("cpu")
    boxes = Prompts(boxes_xyxy=[[0, 0, 1, 1]])
    assert boxes.signatures() == [(0, True, False)]
    assert repr(boxes) == "Prompts(boxes_xyxy (1, 4), image_index (1,), on cpu)"


def test_copies_and_pickles():
    for again in (copy.copy(mixed()), copy.deepcopy(mixed()), pickle.loads(pickle.dumps(mixed()))):
        assert again.signatures() == mixed().signatures()


# --- groups -----------------------------------------------------------------------------------------------------------


def test_groups_hold_what_is_present_and_nothing_else():
    prompts = mixed()
    groups = list(prompts.groups())
    assert [(tuple(signature), index.tolist()) for signature, index, _ in groups] == [
        ((1, False, False), [0]),
        ((2, True, False), [1]),
        ((0, True, False), [2]),
        ((0, False, True), [3]),
        ((1, False, True), [4]),
    ]
    parts = [part for _, _, part in groups]
    assert parts[0].points_xy.tolist() == [[[1, 2]]]
    assert parts[0].boxes_xyxy is None
    assert parts[0].mask_logits is None
    assert parts[1].points_xy.tolist() == [[[3, 4], [5, 6]]]
    assert parts[1].labels.tolist() == [[1, 0]]
    assert parts[2].points_xy is None
    assert parts[2].labels is None
    assert parts[4].points_xy.tolist() == [[[8, 9]]]
    assert torch.equal(parts[4].mask_logits, prompts.mask_logits[4:])
    assert [part.image_index.tolist() for part in parts] == [[0], [1], [0], [2], [1]]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 10**6))
def test_groups_are_a_partition_in_order(num_prompts, num_points, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(-1, 2, (num_prompts, num_points))
    points = rng.random((num_prompts, num_points, 2))
    boxes = np.sort(rng.random((num_prompts, 2, 2)), axis=1).reshape(-1, 4)
    boxes[(rng.random(num_prompts) < 0.5) & (labels >= 0).any(1)] = np.nan
    prompts = Prompts(points, labels, boxes, image_index=np.arange(num_prompts))
    seen = []
    for signature, index, part in prompts.groups():
        assert (index.diff() > 0).all()
        assert torch.equal(part.image_index, index)
        seen += index.tolist()
        for place, k in enumerate(index.tolist()):
            assert signature == prompts.signatures()[k]
            present = labels[k] >= 0
            if present.any():
                np.testing.assert_array_equal(part.points_xy[place].numpy(), points[k][present])
                np.testing.assert_array_equal(part.labels[place].numpy(), labels[k][present])
            else:
                assert part.points_xy is None
            if np.isnan(boxes[k, 0]):
                assert part.boxes_xyxy is None
            else:
                np.testing.assert_array_equal(part.boxes_xyxy[place].numpy(), boxes[k])
    assert sorted(seen) == list(range(num_prompts))


# --- parts and unions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (1, [1]),
        (-1, [4]),
        (np.int64(2), [2]),
        (torch.tensor(3), [3]),
        (slice(1, None, 2), [1, 3]),
        ([4, 0, 0], [4, 0, 0]),
        ([], []),
        ([True, False, False, True, False], [0, 3]),
        (torch.tensor([2, -1]), [2, 4]),
        (torch.tensor([2, 1], dtype=torch.uint8), [2, 1]),
        (torch.tensor([False, True, False, False, False]), [1]),
        (np.array([False] * 5), []),
    ],
)
def test_indices(index, expected):
    part = mixed()[index]
    assert part.image_index.tolist() == [[0, 1, 0, 2, 1][i] for i in expected]
    assert part.signatures() == [mixed().signatures()[i] for i in expected]
    assert len(part) == len(expected)


def test_iteration_gives_batches_of_one():
    assert [len(prompt) for prompt in mixed()] == [1] * 5
    with pytest.raises(IndexError):
        mixed()[5]
    with pytest.raises(IndexError):
        mixed()[-6]


def test_cat_fills_up_what_some_lack():
    points = Prompts(points_xy=[[[1, 2]]], labels=[[0]], image_index=[3])
    more = Prompts(points_xy=[[[3, 4], [5, 6]]])
    box = Prompts(boxes_xyxy=[[0, 0, 1, 1]])
    mask = Prompts(mask_logits=torch.ones(1, 4, 4))
    joined = Prompts.cat([points, more, box, mask])
    assert [tuple(s) for s in joined.signatures()] == [
        (1, False, False),
        (2, False, False),
        (0, True, False),
        (0, False, True),
    ]
    assert joined.labels.tolist() == [[0, -1], [1, 1], [-1, -1], [-1, -1]]
    assert joined.image_index.tolist() == [3, 0, 0, 0]
    assert joined.points_xy[0, 1].isnan().all()  # never a click at (0, 0)
    assert [part.points_xy.tolist() for part in (joined[0], joined[1])][1] == [[[3, 4], [5, 6]]]
    only_boxes = Prompts.cat(iter([box, box]))
    assert only_boxes.points_xy is None
    assert only_boxes.mask_logits is None


def test_cat_undoes_slicing():
    prompts = mixed()
    joined = Prompts.cat(list(prompts))
    for field in ("points_xy", "labels", "boxes_xyxy", "mask_logits", "image_index"):
        torch.testing.assert_close(getattr(joined, field), getattr(prompts, field), equal_nan=True)


def test_to_moves_everything():
    moved = mixed().to("meta")
    assert moved.device.type == "meta"
    assert moved.mask_logits.device.type == "meta"


# --- from masks -------------------------------------------------------------------------------------------------------


def square() -> torch.Tensor:
    mask = torch.zeros(2, 48, 64, dtype=torch.bool)
    mask[0, 8:24, 16:32] = True
    mask[1, 0:48, 0:64] = True
    return mask


def test_frame_is_what_is_asked_of_a_segmenter():
    assert isinstance(Frame(), PromptFrame)


@pytest.mark.parametrize("kind", PROMPT_KINDS)
def test_from_masks_has_the_parts_of_its_kind(kind):
    prompts = Prompts.from_masks(square(), Frame(), kind, image_index=[0, 2])
    expected = (int("point" in kind), "box" in kind, "mask" in kind)
    assert prompts.signatures() == [expected] * 2
    assert prompts.image_index.tolist() == [0, 2]


def test_from_masks_by_hand():
    prompts = Prompts.from_masks(square(), Frame(), "mask+point+box")
    assert prompts.boxes_xyxy.tolist() == [[16, 8, 31, 23], [0, 0, 63, 47]]
    # all of the 2 x 2 innermost pixels of a 16 x 16 square are 8 from the outside; the first one is at +7
    assert prompts.points_xy[0].tolist() == [[23, 15]]
    # 48 x 64 fits a frame of 64 x 64 as it is: cells of 4 x 4 pixels, 12 rows of image, 4 of padding
    expected = torch.full((2, 16, 16), -8.0)
    expected[0, 2:6, 4:8] = 8.0
    expected[1, :12] = 8.0
    assert torch.equal(prompts.mask_logits, expected)


def test_the_outline_of_a_mask_prompt_is_at_zero_and_its_scale_can_be_given():
    mask = torch.zeros(1, 64, 64, dtype=torch.bool)
    mask[0, :, :6] = True  # one and a half cells of 4
    prompts = Prompts.from_masks(mask, Frame(), "mask", logit_scale=7.0)
    assert prompts.mask_logits[0, 0, :3].tolist() == [7.0, 0.0, -7.0]


def test_an_upsampled_mask_prompt_is_the_mask_again():
    mask = torch.zeros(1, 60, 64, dtype=torch.bool)
    y, x = torch.meshgrid(torch.arange(60), torch.arange(64), indexing="ij")
    mask[0] = (y - 30) ** 2 + (x - 30) ** 2 < 20**2
    logits = mask_prompt_logits(mask, Frame().transform_for((60, 64)), (16, 16))
    up = torch.nn.functional.interpolate(logits[None], (64, 64), mode="bilinear", align_corners=False)[0, :, :60]
    iou = ((up > 0) & mask).sum() / ((up > 0) | mask).sum()
    assert iou > 0.96


def test_masks_of_several_sizes_come_as_a_list():
    masks = [torch.ones(48, 64, dtype=torch.bool), np.ones((100, 30), dtype=bool), square()[0]]
    together = Prompts.from_masks(masks, Frame(), "mask+point+box")
    assert together.points_xy.shape == (3, 1, 2)
    for index, mask in enumerate(masks):
        alone = Prompts.from_masks(mask[None], Frame(), "mask+point+box")
        for field in ("points_xy", "labels", "boxes_xyxy", "mask_logits"):
            assert torch.equal(getattr(together, field)[index], getattr(alone, field)[0])


def test_an_empty_mask_has_no_point_and_no_box():
    masks = torch.zeros(2, 48, 64, dtype=torch.bool)
    masks[1, 3, 3] = True
    prompts = Prompts.from_masks(masks, Frame(), "mask+point+box")
    assert prompts.signatures() == [(0, False, True), (1, True, True)]
    assert (prompts.mask_logits[0] == -8).all()
    with pytest.raises(InputError, match="prompts 0 have no point"):
        Prompts.from_masks(masks, Frame(), "point")


# --- bad input --------------------------------------------------------------------------------------------------------

POINT = [[[1, 2]]]


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: Prompts(), InputError, "no prompt"),
        (lambda: Prompts(points_xy=torch.zeros(0, 1, 2)), InputError, "no prompt"),
        (lambda: Prompts(labels=[[1]]), InputError, "labels without points_xy"),
        (lambda: Prompts(points_xy=[[1, 2]]), ShapeError, "points_xy[:, None]"),
        (lambda: Prompts(points_xy=[[[1, 2, 3]]]), ShapeError, "(K, P, 2)"),
        (lambda: Prompts(points_xy=[[[1, 2]], [[3]]]), InputError, "list of 2"),
        (lambda: Prompts(points_xy=[[["a", "b"]]]), InputError, "numbers"),
        (lambda: Prompts(POINT, [[1, 0]]), ShapeError, "labels"),
        (lambda: Prompts(POINT, [1]), ShapeError, "(K, P)"),
        (lambda: Prompts(POINT, [[2]]), InputError, "labels hold 2"),
        (lambda: Prompts(POINT, [[0.5]]), InputError, "labels hold 0.5"),
        (lambda: Prompts([[[NAN, 2]]], [[1]]), InputError, "not finite"),
        (lambda: Prompts([[[math.inf, 2]]]), InputError, "label -1"),
        (lambda: Prompts(POINT, [[-1]]), InputError, "no point, no box and no mask"),
        (lambda: Prompts(boxes_xyxy=[0, 0, 1, 1]), ShapeError, "boxes_xyxy[None]"),
        (lambda: Prompts(boxes_xyxy=[[0, 0, 1]]), ShapeError, "(K, 4)"),
        (lambda: Prompts(boxes_xyxy=[[5, 0, 1, 1]]), InputError, "x + width"),
        (lambda: Prompts(boxes_xyxy=[[0, 5, 1, 1]]), InputError, "boxes_xyxy 0 end"),
        (lambda: Prompts(boxes_xyxy=[[0, NAN, 1, 1]]), InputError, "four NaN"),
        (lambda: Prompts(boxes_xyxy=[[0, 0, 1, math.inf]]), InputError, "not finite"),
        (lambda: Prompts(mask_logits=torch.zeros(2, 1, 4, 4)), ShapeError, "squeeze(1)"),
        (lambda: Prompts(mask_logits=torch.zeros(2, 4, 4, dtype=torch.bool)), InputError, "Prompts.from_masks"),
        (lambda: Prompts(mask_logits=torch.zeros(2, 0, 4)), InputError, "(2, 0, 4)"),
        (lambda: Prompts(mask_logits=torch.tensor([[[NAN, 1.0]]])), InputError, "maps of NaN"),
        (lambda: Prompts(mask_logits=torch.full((1, 2, 2), NAN)), InputError, "prompts 0 have"),
        (lambda: Prompts(POINT, boxes_xyxy=[[0, 0, 1, 1]] * 2), ShapeError, "1 points_xy, 2 boxes_xyxy"),
        (lambda: Prompts(POINT, image_index=[0, 1]), ShapeError, "(1,)"),
        (lambda: Prompts(POINT, image_index=[-1]), InputError, "image_index"),
        (lambda: Prompts(POINT, image_index=[0.5]), InputError, "image_index"),
        (lambda: Prompts.cat([]), InputError, "no prompts to join"),
        (
            lambda: Prompts.cat([Prompts(mask_logits=torch.ones(1, n, n)) for n in (4, 8)]),
            ShapeError,
            "[(4, 4), (8, 8)]",
        ),
        (lambda: mixed()[[True, False]], ShapeError, "(2,)"),
        (lambda: mixed()[[0.5]], InputError, "an index"),
        (lambda: mixed()[[[0]]], InputError, "an index"),
        (lambda: Prompts.from_masks(square(), Frame(), "points"), UnknownNameError, "kind='points'"),
        (lambda: Prompts.from_masks(square()[0], Frame()), ShapeError, "at least 3 axes"),
        (lambda: Prompts.from_masks(square()[:0], Frame()), ShapeError, "K >= 1"),
        (lambda: Prompts.from_masks([], Frame()), ShapeError, "list of 0"),
        (lambda: Prompts.from_masks(None, Frame()), InputError, "masks is None"),
        (lambda: Prompts.from_masks(square(), None), InputError, "segmenter is None"),
        (lambda: Prompts.from_masks(square().float(), Frame()), InputError, "masks > 0"),
        (lambda: Prompts.from_masks([square()[0], square()[0].int()], Frame()), InputError, "masks[1]"),
        (lambda: Prompts.from_masks(square(), Frame(), logit_scale=0.0), InputError, "logit_scale=0.0"),
    ],
)
def test_errors_say_what_came(call, kind, words, as_at_run_time):
    with pytest.raises(kind) as caught:
        call()
    assert words in str(caught.value)


def test_a_message_names_a_few_of_many():
    with pytest.raises(InputError, match=r"boxes_xyxy 0, 1, 2, 3, 4, … \(9 in all\)"):
        Prompts(boxes_xyxy=[[1, 0, 0, 1]] * 9)


@pytest.mark.parametrize("name", module.__all__)
def test_names_offered_exist(name):
    assert getattr(module, name) is not None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_same_on_the_gpu():
    there, here = Prompts.from_masks(square().cuda(), Frame()), Prompts.from_masks(square(), Frame())
    assert there.device.type == "cuda"
    for field in ("points_xy", "labels", "mask_logits", "image_index"):
        assert torch.equal(getattr(there, field).cpu(), getattr(here, field))
    boxes = Prompts(boxes_xyxy=[[0, 0, 1, 1]]).to("cuda")
    assert all(part.device.type == "cuda" for _, _, part in Prompts.cat([there, boxes]).groups())
    assert Prompts(points_xy=[[[1, 2]]], mask_logits=torch.zeros(1, 4, 4).cuda()).points_xy.is_cuda
    assert [s for s, _, _ in mixed().to("cuda").groups()] == [s for s, _, _ in mixed().groups()]
