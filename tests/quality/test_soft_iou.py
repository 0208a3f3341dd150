"""Soft IoU: by hand, blind to padding, and what the estimator makes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from arrcoc_sam.candidates import MaskCandidates
from arrcoc_sam.geometry import ImageTransform
from arrcoc_sam.masks import mask_iou
from arrcoc_sam.prompts import PROMPT_KINDS
from arrcoc_sam.prompts.mask_prompts import mask_prompt_logits, mask_prompt_shares
from arrcoc_sam.quality import MaskQualityEstimator
from arrcoc_sam.quality.soft_iou import soft_iou
from arrcoc_sam.segmenters.sam import SamSegmenter

LANDSCAPE = ImageTransform.letterbox((30, 60), 64)
"""Half of its frame is padding."""


def square(top: int, left: int, side: int, size_hw: tuple[int, int] = (64, 96)) -> np.ndarray:
    mask = np.zeros(size_hw, dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


def noise(size_hw: tuple[int, int] = (64, 96)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*size_hw, 3), dtype=np.uint8)


def test_by_hand() -> None:
    chances = torch.tensor([[0.5, 0.75], [0.25, 0.9]])
    shares = torch.tensor([[[1.0, 0.5], [0.0, 0.0]]])
    all_count = torch.ones(2, 2)
    both = 0.5 * 1 + 0.75 * 0.5
    expected = both / (chances.sum().item() + 1.5 - both)
    assert soft_iou(chances.logit()[None, None], shares, all_count).item() == pytest.approx(expected)
    weights = torch.tensor([[1.0, 0.5], [1.0, 0.0]])  # half of a cell at the image's edge, a cell of padding
    both = 0.5 * 1 + 0.5 * 0.75 * 0.5
    expected = both / (0.5 + 0.5 * 0.75 + 0.25 + 1 + 0.5 * 0.5 - both)
    assert soft_iou(chances.logit()[None, None], shares, weights).item() == pytest.approx(expected)


def test_of_a_sure_decoder_it_is_the_iou_and_doubt_lowers_it() -> None:
    masks = torch.stack([torch.from_numpy(square(8, 8, side, (48, 48))) for side in (10, 20, 30)])
    other = torch.from_numpy(square(12, 10, 18, (48, 48)))
    valid = torch.ones(48, 48)
    scales = torch.tensor([100.0, 3.0, 0.5])
    logits = (2 * other.float() - 1) * scales[:, None, None]
    found = soft_iou(logits.expand(3, 3, 48, 48), masks.float(), valid)
    torch.testing.assert_close(found[:, 0], mask_iou(masks, other))
    assert (found[:, 0] > found[:, 1]).all()
    assert (found[:, 1] > found[:, 2]).all()


def test_padding_does_not_count() -> None:
    mask = torch.zeros(1, 30, 60, dtype=torch.bool)
    mask[:, 5:25, 7:33] = True
    grid = (16, 16)
    shares, valid = LANDSCAPE.masks_to_grid(mask, grid), LANDSCAPE.grid_valid(grid)
    assert 0 < (valid == 0).float().mean() < 1
    logits = torch.randn(1, 3, *grid, generator=torch.Generator().manual_seed(0)) * 4
    for padding in (-50.0, 50.0):
        padded = torch.where(valid > 0, logits, padding)
        torch.testing.assert_close(soft_iou(padded, shares, valid), soft_iou(logits, shares, valid))
    counted = soft_iou(torch.where(valid > 0, logits, 50.0), shares, torch.ones(grid))
    assert (counted < soft_iou(logits, shares, valid) - 0.05).all()


def test_an_empty_mask_has_none_and_a_full_one_may_have_all() -> None:
    logits = torch.stack([torch.full((8, 8), -2.0), torch.full((8, 8), 200.0)])[None]
    shares, valid = torch.stack([torch.zeros(8, 8), torch.ones(8, 8)]), torch.ones(8, 8)
    found = soft_iou(logits.expand(2, 2, 8, 8), shares, valid)
    assert found[0].tolist() == [0.0, 0.0]
    assert found[1].tolist() == pytest.approx([torch.tensor(-2.0).sigmoid().item(), 1.0])
    nothing = soft_iou(torch.full((1, 1, 8, 8), -torch.inf), shares[:1], valid)
    assert nothing.isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_logits_of_any_precision(dtype: torch.dtype) -> None:
    logits = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).to(dtype) * 3
    shares = torch.rand(2, 64, 64, generator=torch.Generator().manual_seed(1))
    found = soft_iou(logits, shares, torch.ones(64, 64))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, soft_iou(logits.float(), shares, torch.ones(64, 64)))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(soft_iou(logits, shares, torch.ones(64, 64)), found)


def test_a_mask_prompt_holds_what_averaging_gives() -> None:
    masks = torch.from_numpy(np.random.default_rng(0).random((3, 30, 60)) > 0.6)
    logits = mask_prompt_logits(masks, LANDSCAPE, (16, 16), logit_scale=7.0)
    shares = mask_prompt_shares(logits, logit_scale=7.0)
    torch.testing.assert_close(shares, LANDSCAPE.masks_to_grid(masks, (16, 16)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("protocol", PROMPT_KINDS)
def test_the_estimator_takes_the_largest_of_all_candidates(
    toy_segmenter: SamSegmenter, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[MaskCandidates] = []
    decode = toy_segmenter.decode

    def listened(*arguments: Any) -> MaskCandidates:
        answers.append(decode(*arguments))
        return answers[-1]

    monkeypatch.setattr(toy_segmenter, "decode", listened)
    masks = np.stack([square(4, 6, 30), square(20, 40, 18)])
    found = MaskQualityEstimator(toy_segmenter, protocol, keep_masks=False).estimate(noise(), masks).soft_iou
    [candidates] = answers
    transform, grid = toy_segmenter.transform_for((64, 96)), toy_segmenter.mask_input_size
    shares, valid = transform.masks_to_grid(masks, grid).numpy(), transform.grid_valid(grid).numpy()
    assert (valid == 0).any()
    chances = candidates.logits.sigmoid().numpy()
    for mask in range(2):
        product = chances[mask] * shares[mask] * valid
        either = ((chances[mask] + shares[mask]) * valid).sum((1, 2)) - product.sum((1, 2))
        assert found[mask].item() == pytest.approx((product.sum((1, 2)) / either).max(), abs=1e-5)


def test_masks_are_averaged_once(toy_segmenter: SamSegmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    averaged = []
    masks_to_grid = ImageTransform.masks_to_grid

    def counted(transform: ImageTransform, *arguments: Any) -> Any:
        averaged.append(arguments)
        return masks_to_grid(transform, *arguments)

    monkeypatch.setattr(ImageTransform, "masks_to_grid", counted)
    for protocol in PROMPT_KINDS:
        averaged.clear()
        MaskQualityEstimator(toy_segmenter, protocol).estimate(noise(), square(4, 6, 30)[None])
        assert len(averaged) == 1


def test_empty_masks_and_a_truth_that_is_known(oracle_of: Callable[..., Any]) -> None:
    truth = square(10, 20, 40)
    masks = np.stack([np.zeros_like(truth), truth, np.roll(truth, 15, 1), np.ones_like(truth)])
    scores = MaskQualityEstimator(oracle_of([truth], noise=0.0)).estimate(noise(), masks)
    empty, clean, shifted, full = scores.soft_iou.tolist()
    assert empty == 0.0
    assert clean > 0.85
    assert 0.1 < shifted < 0.5
    assert 0.1 < full < 0.5
    assert scores.to_frame()["soft_iou"].tolist() == pytest.approx([empty, clean, shifted, full])


def test_of_components_it_is_that_of_the_worst(oracle_of: Callable[..., Any]) -> None:
    good, bad = square(8, 8, 30), square(40, 70, 16)
    estimator = MaskQualityEstimator(oracle_of([good], noise=0.0), components=True)
    both = estimator.estimate(noise(), (good | bad)[None])
    alone = estimator.estimate(noise(), np.stack([good, bad]))
    assert both.num_components.tolist() == [2]
    assert alone.soft_iou[0] > 0.8
    assert alone.soft_iou[1] < 0.2
    torch.testing.assert_close(both.soft_iou, alone.soft_iou[1:])


def test_grids_that_differ_from_the_prompt_s(toy_segmenter: SamSegmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder whose logits are coarser than its mask prompts."""
    masks = np.stack([square(4, 6, 30), square(20, 40, 18)])
    fine = MaskQualityEstimator(toy_segmenter).estimate(noise(), masks)
    decode = toy_segmenter.decode

    def coarse(*arguments: Any) -> MaskCandidates:
        candidates = decode(*arguments)
        return replace(candidates, logits=torch.nn.functional.avg_pool2d(candidates.logits, 2))

    monkeypatch.setattr(toy_segmenter, "decode", coarse)
    found = MaskQualityEstimator(toy_segmenter).estimate(noise(), masks)
    torch.testing.assert_close(found.soft_iou, fine.soft_iou, rtol=0, atol=0.05)
