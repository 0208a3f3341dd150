from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from segment_anything.utils.amg import batched_mask_to_box, calculate_stability_score
from torchmetrics.functional import jaccard_index

from arrcoc_sam import masks as module
from arrcoc_sam.errors import InputError, ShapeError
from arrcoc_sam.hierarchy import MaskForest, MaskHierarchy
from arrcoc_sam.masks import (
    areas,
    containment,
    mask_boxes,
    mask_iou,
    measures,
    pairwise_containment,
    pairwise_intersection,
    pairwise_iou,
    stability_score,
)


def random_masks(*shape: int, seed: int = 0, share: float = 0.5) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random(shape) < share)


shapes = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 30), st.integers(1, 30))


@settings(deadline=None, max_examples=50)
@given(shapes, st.integers(0, 10**6), st.sampled_from([0.02, 0.5, 0.98]))
def test_counts_against_python(shape, seed, share):
    masks = random_masks(*shape, seed=seed, share=share)
    other = random_masks(*shape, seed=seed + 1, share=share)
    assert areas(masks).tolist() == masks.sum((-2, -1)).tolist()
    for index in itertools.product(*map(range, shape[:2])):
        a, b = (set(zip(*np.nonzero(m[index].numpy()), strict=True)) for m in (masks, other))
        expected = len(a & b) / len(a | b) if a | b else float("nan")
        assert float(mask_iou(masks, other)[index]) == pytest.approx(expected, nan_ok=True)
        expected = len(a & b) / len(a) if a else float("nan")
        assert float(containment(masks, other)[index]) == pytest.approx(expected, nan_ok=True)


def test_areas_of_tall_and_full_masks_are_exact():
    # more rows than a byte can count, and more pixels than float32 can
    assert areas(torch.ones(2, 1000, 7, dtype=torch.bool)).tolist() == [7000, 7000]
    assert int(areas(torch.ones(1, 4200, 4200, dtype=torch.bool))) == 17_640_000
    assert areas(np.ones((3, 2), dtype=bool)).dtype == torch.int64


@settings(deadline=None, max_examples=40)
@given(shapes, st.integers(1, 4), st.integers(0, 10**6))
def test_pairwise_is_elementwise_on_all_pairs(shape, num_others, seed):
    a = random_masks(*shape, seed=seed)
    b = random_masks(shape[0], num_others, *shape[2:], seed=seed + 1, share=0.2)
    left, right = a[:, :, None], b[:, None]
    assert torch.equal(pairwise_intersection(a, b), (left & right).sum((-2, -1)))
    torch.testing.assert_close(pairwise_iou(a, b), mask_iou(left, right), equal_nan=True)
    torch.testing.assert_close(pairwise_containment(a, b), containment(left, right), equal_nan=True)


@pytest.mark.parametrize("chunk", [1, 7, 100, 10**4])
def test_chunks_change_nothing(monkeypatch, chunk):
    a, b = random_masks(3, 4, 9, 11), random_masks(3, 2, 9, 11, seed=1)
    whole = pairwise_iou(a, b)
    monkeypatch.setattr(measures, "_CHUNK_CPU", chunk)
    assert torch.equal(pairwise_iou(a, b), whole)


def test_intersections_beyond_what_float32_counts():
    masks = torch.ones(1, 4200, 4200, dtype=torch.bool)  # 17.6 million pixels; 2^24 = 16.8 million
    masks[0, 0, 0] = False
    assert pairwise_intersection(masks, masks).item() == 17_639_999


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_counts_are_exact_under_autocast(dtype):
    masks = random_masks(3, 600, 600, share=0.9)
    expected = pairwise_intersection(masks, masks)
    assert expected.diagonal().tolist() == areas(masks).tolist()
    with torch.autocast("cpu", dtype):
        assert torch.equal(pairwise_intersection(masks, masks), expected)
        assert torch.equal(MaskHierarchy.from_masks(masks[None]).areas[0].sort().values, areas(masks).sort().values)
        assert torch.equal(MaskForest.from_masks(masks).areas.sort().values, areas(masks).sort().values)


def test_iou_is_torchmetrics():
    a, b = random_masks(40, 30), random_masks(40, 30, seed=1)
    expected = jaccard_index(a.int(), b.int(), task="binary")
    torch.testing.assert_close(mask_iou(a, b), expected)
    torch.testing.assert_close(pairwise_iou(a[None], b[None])[0, 0], expected)


def test_degenerate_pairs():
    empty, full = torch.zeros(3, 3, dtype=torch.bool), torch.ones(3, 3, dtype=torch.bool)
    stack = torch.stack((empty, full))
    torch.testing.assert_close(pairwise_iou(stack, stack), torch.tensor([[torch.nan, 0.0], [0.0, 1.0]]), equal_nan=True)
    assert containment(empty, full).isnan()
    assert containment(full, empty) == 0
    assert mask_iou(empty, empty).isnan()
    assert pairwise_iou(stack[:0], stack).shape == (0, 2)


def test_leading_axes_broadcast():
    a, b = random_masks(2, 1, 5, 6), random_masks(3, 5, 6, seed=1)
    assert mask_iou(a, b).shape == (2, 3)
    torch.testing.assert_close(mask_iou(a, b)[1, 2], mask_iou(a[1, 0], b[2]))
    assert containment(a[0], b.numpy()).shape == (3,)


# --- boxes ------------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(shapes, st.integers(0, 10**6), st.sampled_from([0.01, 0.1, 0.7]))
def test_boxes_are_segment_anythings(shape, seed, share):
    masks = random_masks(*shape, seed=seed, share=share)
    boxes = mask_boxes(masks)
    filled = areas(masks) > 0
    assert torch.equal(boxes[filled], batched_mask_to_box(masks)[filled].double())
    assert boxes[~filled].isnan().all()
    assert boxes.dtype == torch.float64


def test_box_of_one_pixel_and_of_a_numpy_mask():
    mask = np.zeros((4, 9), dtype=bool)
    mask[3, 7] = True
    assert mask_boxes(mask).tolist() == [7, 3, 7, 3]


# --- stability --------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.floats(-1, 1), st.floats(0, 2))
def test_stability_is_segment_anythings(seed, threshold, offset):
    logits = torch.from_numpy(np.random.default_rng(seed).normal(0, 2, (3, 2, 9, 8)).astype(np.float32))
    expected = calculate_stability_score(logits.flatten(0, 1), threshold, offset).reshape(3, 2)
    torch.testing.assert_close(stability_score(logits, threshold=threshold, offset=offset), expected)


def test_stability_is_of_each_mask_and_nan_when_there_is_none():
    logits = torch.full((3, 4, 4), -5.0)
    logits[0, 0] = 5.0
    logits[1, :2] = 0.5  # above -1, not above 1
    torch.testing.assert_close(stability_score(logits), torch.tensor([1.0, 0.0, torch.nan]), equal_nan=True)
    assert stability_score(logits.bfloat16()).dtype == torch.float32


# --- bad input --------------------------------------------------------------------------------------------------------

A, B = torch.zeros(2, 4, 5, dtype=torch.bool), torch.zeros(3, 4, 5, dtype=torch.bool)


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: areas(A.float()), InputError, "threshold it"),
        (lambda: areas(A.numpy().astype(np.uint8)), InputError, "masks > 0"),
        (lambda: areas([[True]]), InputError, "tensor or a numpy array"),
        (lambda: areas(A[0, 0]), ShapeError, "(5,)"),
        (lambda: mask_iou(A, B), ShapeError, "(3, 4, 5)"),
        (lambda: mask_iou(A, A[:, :3]), ShapeError, "(2, 3, 5)"),
        (lambda: containment(A, B), ShapeError, "inner"),
        (lambda: pairwise_iou(A, B[:, :, :4]), ShapeError, "(3, 4, 4)"),
        (lambda: pairwise_iou(A[0], B), ShapeError, "at least 3 axes"),
        (lambda: pairwise_iou(A[None], B[None].expand(2, 3, 4, 5)), ShapeError, "(2, 3, 4, 5)"),
        (lambda: stability_score(A), InputError, "logits"),
        (lambda: stability_score(torch.zeros(3)), InputError, "(…, h, w)"),
        (lambda: stability_score(torch.zeros(3, 3), offset=-1.0), InputError, "offset=-1.0"),
    ],
)
def test_errors_say_what_came(call, kind, words, as_at_run_time):
    with pytest.raises(kind) as caught:
        call()
    assert words in str(caught.value)


@pytest.mark.parametrize("name", module.__all__)
def test_names_offered_exist(name):
    assert getattr(module, name) is not None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_same_on_the_gpu():
    a, b = random_masks(2, 3, 300, 70), random_masks(2, 3, 300, 70, seed=1)
    a[0, 0] = False
    for function in (areas, mask_boxes, module.largest_interior_point, module.inscribed_circle):
        on_gpu, here = function(a.cuda()), function(a)
        for x, y in zip(on_gpu, here, strict=True):
            assert x.is_cuda
            torch.testing.assert_close(x.cpu(), y, equal_nan=True)
    for function in (mask_iou, containment, pairwise_iou, pairwise_containment, pairwise_intersection):
        torch.testing.assert_close(function(a.cuda(), b.cuda()).cpu(), function(a, b), equal_nan=True)
    assert module.encode_rle(a[0].cuda()) == module.encode_rle(a[0])
    labels, counts = module.connected_components(a.cuda())
    assert labels.is_cuda
    assert torch.equal(counts.cpu(), module.connected_components(a)[1])
