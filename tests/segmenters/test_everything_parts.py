"""Crops, small regions, overlap and windows of the automatic mode, each against its reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jaxtyping import Float
from segment_anything.utils import amg
from torchvision.ops import box_iou as torchvision_box_iou

from arrcoc_sam.errors import InputError
from arrcoc_sam.geometry import ImageTransform
from arrcoc_sam.masks import mask_boxes, stability_score
from arrcoc_sam.segmenters.everything.crops import crop_layers, is_cut_off
from arrcoc_sam.segmenters.everything.overlap import RoughBoxes, box_iou
from arrcoc_sam.segmenters.everything.regions import without_small_regions
from arrcoc_sam.segmenters.everything.windows import LogitWindow, WindowUpscaler, cut_windows
from arrcoc_sam.upscaling import interpolate_twice


@settings(deadline=None, max_examples=60)
@given(st.integers(8, 900), st.integers(8, 900), st.integers(0, 3), st.floats(0, 0.9))
def test_crops_are_segment_anythings(height: int, width: int, num_layers: int, overlap: float) -> None:
    boxes, layers = amg.generate_crop_boxes((height, width), num_layers, overlap)
    crops = crop_layers((height, width), num_layers, overlap)
    assert [list(crop.box_xyxy) for crop in crops] == boxes
    assert [crop.layer for crop in crops] == layers
    rng = np.random.default_rng(height)
    for crop in crops:
        crop_h, crop_w = (max(1, side) for side in crop.size_hw)  # without overlap the last ones may be empty
        box = np.sort(rng.integers(0, (crop_w, crop_h), (2, 2)), axis=0).ravel()
        expected = amg.is_box_near_crop_edge(torch.from_numpy(box)[None], list(crop.box_xyxy), [0, 0, width, height])
        x0, y0 = crop.box_xyxy[:2]
        assert is_cut_off(box + np.array((x0, y0, x0, y0), dtype=np.float32), crop, (height, width)) == bool(expected)


@settings(deadline=None, max_examples=120)
@given(st.integers(0, 10**6), st.integers(3, 40), st.integers(3, 40), st.sampled_from([1, 3, 9, 30, 200]))
@example(748, 3, 40, 3)  # islands of one size, all small
def test_small_regions_go_as_in_segment_anything(seed: int, height: int, width: int, min_area: int) -> None:
    cv2 = pytest.importorskip("cv2")
    del cv2
    rng = np.random.default_rng(seed)
    mask = rng.random((height, width)) < rng.random()
    if seed % 2:  # larger pieces
        mask = np.kron(mask[: height // 2 + 1, : width // 2 + 1], np.ones((2, 2), dtype=bool))
    expected, filled = amg.remove_small_regions(mask, min_area, "holes")
    expected, dropped = amg.remove_small_regions(expected, min_area, "islands")
    before = mask.copy()
    cleaned, changed = without_small_regions(mask, min_area)
    if mask.any():  # segment-anything fills an empty mask that is smaller than the area
        np.testing.assert_array_equal(cleaned, expected)
        assert changed == (filled or dropped)
    np.testing.assert_array_equal(mask, before)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6))
def test_box_overlap_is_torchvisions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    boxes = np.sort(rng.integers(0, 12, (2, 9, 2)), axis=0).transpose(1, 0, 2).reshape(9, 4).astype(np.float32)
    expected = torchvision_box_iou(torch.from_numpy(boxes[:1]), torch.from_numpy(boxes))[0].nan_to_num().numpy()
    np.testing.assert_array_equal(box_iou(boxes[0], boxes), expected)


def smooth_logits(seed: int, count: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 1, height // 4, width // 4, generator=generator)
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[:, 0] * 3 - 2


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from([(100, 150), (61, 33), (240, 180)]))
def test_windows_give_the_masks_of_the_whole_frame(seed: int, size_hw: tuple[int, int]) -> None:
    transform = ImageTransform.letterbox(size_hw, 128)
    logits = smooth_logits(seed, 4, 32, 32)
    logits[3] = -9.0
    upscaler = WindowUpscaler.of(transform, (32, 32), device=torch.device("cpu"))
    threes = logits[:, None].expand(-1, 3, -1, -1)  # as segment-anything has them: one at a time may round otherwise
    full = interpolate_twice(threes, transform, size_hw)[:, 0]
    shown = logits[:, : -(-transform.resized_hw[0] // 4) + 1, : -(-transform.resized_hw[1] // 4) + 1]
    cell = (4 / transform.scale_xy[0], 4 / transform.scale_xy[1])
    sure = upscaler.sure_boxes(shown).numpy()
    rough = RoughBoxes.of(sure, mask_boxes(shown > 0).numpy(), cell, size_hw)
    for number, (window, expected) in enumerate(zip(cut_windows(logits, -1.0), full, strict=True)):
        (exact,), fast = upscaler.measure_exactly([window]), upscaler.measure(window)
        if not (expected > 0).any():
            assert exact is None
            assert fast is None
            continue
        assert exact is not None
        assert fast is not None
        np.testing.assert_array_equal(exact.drawn(size_hw), (expected > 0).numpy())
        assert exact.stability == stability_score(expected).item()
        assert exact.box_xyxy.tolist() == mask_boxes(expected > 0).tolist()
        differing = fast.drawn(size_hw) != (expected > 0).numpy()
        assert expected[torch.from_numpy(differing)].abs().max().item() < 1e-4 if differing.any() else True
        assert fast.stability == pytest.approx(exact.stability, abs=0.01)
        if not np.isnan(rough.outer[number]).any():
            assert (rough.outer[number, :2] <= exact.box_xyxy[:2]).all()
            assert (rough.outer[number, 2:] >= exact.box_xyxy[2:]).all()
        if not np.isnan(rough.inner[number]).any():
            assert (rough.inner[number, :2] >= exact.box_xyxy[:2]).all()
            assert (rough.inner[number, 2:] <= exact.box_xyxy[2:]).all()
    three = interpolate_twice(logits[None, 1:], transform, size_hw)[0]
    _assert_three_at_once(upscaler, cut_windows(logits[1:], -1.0), three)


SIZES = [(100, 150), (61, 33), (240, 180), (20, 20)]


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from(SIZES), st.sampled_from([16, 32, 64]))
def test_a_box_holds_what_is_surely_in_it(seed: int, size_hw: tuple[int, int], side: int) -> None:
    """Specks of single cells, most of which the image does not show, among them."""
    transform = ImageTransform.letterbox(size_hw, 128)
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(6, side, side, generator=generator) * 4 - 6
    logits[:3] += smooth_logits(seed, 3, side, side)
    upscaler = WindowUpscaler.of(transform, (side, side), device=torch.device("cpu"))
    boxes = mask_boxes(interpolate_twice(logits[None], transform, size_hw)[0] > 0)
    sure = upscaler.sure_boxes(logits)
    known = sure[:, 0].isfinite()
    assert (sure[known, :2] >= boxes[known, :2]).all()
    assert (sure[known, 2:] <= boxes[known, 2:]).all()


def test_the_box_of_a_square_is_sure_to_two_cells_and_that_of_a_speck_is_not() -> None:
    transform = ImageTransform.letterbox((128, 128), 64)
    logits = torch.full((3, 32, 32), -9.0)
    logits[0, 8:16, 4:20] = 3.0
    logits[1:, 5, 7] = 0.5
    logits[2, 8:16, 4:20] = 3.0  # the speck lies outside the square
    upscaler = WindowUpscaler.of(transform, (32, 32), device=torch.device("cpu"))
    square, speck, both = upscaler.sure_boxes(logits)
    cells = torch.tensor([16.0, 32.0, 79.0, 63.0])  # a cell has four pixels
    assert ((square - cells).abs() < 8).all()
    assert speck.isnan().all()
    assert torch.equal(both, square)


def _assert_three_at_once(
    upscaler: WindowUpscaler, windows: list[LogitWindow], expected: Float[torch.Tensor, "3 H W"]
) -> None:
    """Three windows measured together are the three masks of the whole frame, in order."""
    for found, logits in zip(upscaler.measure_exactly(windows), expected, strict=True):
        if not (logits > 0).any():
            assert found is None
            continue
        assert found is not None
        np.testing.assert_array_equal(found.drawn(tuple(logits.shape)), (logits > 0).numpy())
        assert found.stability == stability_score(logits).item()
    assert upscaler.measure_exactly([]) == []
    with pytest.raises(InputError, match="4 windows; expected at most 3"):
        upscaler.measure_exactly([*windows, windows[0]])


def test_the_least_overlap_of_rough_boxes_is_one() -> None:
    """Cells of 4 pixels; the mask's outline may run anywhere between the centres of its last cell and the next."""
    cells = np.array([[5.0, 5, 44, 44], [7, 7, 7, 7]])
    rough = RoughBoxes.of(np.array([[22.0, 22, 178, 178], [30, 30, 30, 30]]), cells, (4.0, 4.0), (300, 300))
    rng = np.random.default_rng(0)
    others = np.sort(rng.integers(0, 200, (50, 2, 2)), axis=1).reshape(50, 4).astype(np.float32)
    others[0] = (20, 20, 179, 179)
    for _ in range(50):
        left, top = rng.uniform(18, 22, 2)
        right, bottom = rng.uniform(178, 181, 2)
        true = box_iou(np.array((left, top, right, bottom)).round(), others)
        assert (rough.least_iou(0, others) <= true + 1e-6).all()
    assert rough.least_iou(0, others)[0] > 0.7  # sharp enough to be of use
    assert (rough.least_iou(1, others) == 0).all()


def test_a_mask_drawn_elsewhere() -> None:
    transform = ImageTransform.letterbox((16, 16), 16)
    logits = torch.full((1, 16, 16), -5.0)
    logits[0, 4:8, 6:9] = 5.0
    mask = WindowUpscaler.of(transform, (16, 16), device=torch.device("cpu")).measure(cut_windows(logits, -1.0)[0])
    assert mask is not None
    assert mask.box_xyxy.tolist() == [6, 4, 8, 7]
    drawn = mask.drawn((40, 50), (20, 10))
    assert drawn.sum() == 12
    assert drawn[14:18, 26:29].all()
