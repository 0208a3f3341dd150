"""Predicted IoU that also looks at the masks: geometry, the correction, and every way to run the decoder."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor

from arrcoc_sam.errors import InputError
from arrcoc_sam.prompts import Prompts
from arrcoc_sam.segmenters.folded import FoldedDecoder
from arrcoc_sam.segmenters.iou_only import predict_iou
from arrcoc_sam.segmenters.mask_scoring import MaskScoring, mask_geometry, scored_iou
from arrcoc_sam.segmenters.sam import SamSegmenter, stock_decoder
from arrcoc_sam.segmenters.tiny import build_tiny

PROMPTS = Prompts(points_xy=[[[20.0, 30.0]], [[50.0, 12.0]]], labels=[[1], [1]])


@pytest.fixture
def model() -> Any:
    """The embedded model with random weights, whose correction is not zero."""
    torch.manual_seed(0)
    model = build_tiny(64)
    for scoring in model.mask_decoder.mask_scoring.values():
        torch.nn.init.normal_(scoring.layers[-1].weight, std=0.3)
    return model


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)


def logits_of(*masks: list[list[int]]) -> torch.Tensor:
    return 20.0 * torch.tensor(masks, dtype=torch.float32)[None] - 10.0


def test_geometry_of_a_square_in_a_frame() -> None:
    square = torch.zeros(8, 8)
    square[2:6, 1:5] = 1
    share, logarithm, stability, expected, inside, roundness = mask_geometry(20 * square[None, None] - 10)[0].tolist()
    assert share == pytest.approx(16 / 64)
    assert logarithm == pytest.approx(1 - np.log(0.25) / np.log(1e-4))
    assert (stability, expected, inside) == (1.0, pytest.approx(1, abs=1e-3), pytest.approx(1, abs=1e-3))
    assert roundness == pytest.approx(1.0)


def test_geometry_of_an_unsure_and_ragged_mask_is_lower() -> None:
    clear = torch.zeros(1, 1, 16, 16)
    clear[..., 4:12, 4:12] = 1
    ragged = clear.clone()
    ragged[..., 5:12:2, :4] = 1
    of_clear, of_ragged = mask_geometry(20 * clear - 10)[0], mask_geometry(20 * ragged - 10)[0]
    of_unsure = mask_geometry(1.2 * clear - 0.6)[0]
    assert of_ragged[5] < of_clear[5]
    assert (of_unsure[[2, 3, 4]] < of_clear[[2, 3, 4]]).all()


def test_geometry_of_nested_masks() -> None:
    whole = [[1, 1, 1, 1]] * 4
    part = [[1, 1, 0, 0]] * 4
    other = [[0, 0, 1, 1]] * 4
    geometry = mask_geometry(logits_of(whole, part, other))[0]
    pairs = geometry[18:].reshape(3, 3)  # IoU, share of the first, share of the second; pairs 01, 02, 12
    torch.testing.assert_close(pairs, torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [1.0, 1.0, 0.0]]))


@pytest.mark.parametrize("level", [-10.0, 10.0])
def test_geometry_of_nothing_and_everything_is_finite(level: float) -> None:
    geometry = mask_geometry(torch.full((2, 3, 8, 8), level))
    assert geometry.shape == (2, 27)
    assert ((geometry >= 0) & (geometry <= 1)).all()


def test_a_new_one_changes_nothing() -> None:
    predicted = torch.rand(5, 3)
    geometry = mask_geometry(torch.randn(5, 3, 8, 8))
    assert torch.equal(MaskScoring(3)(geometry, predicted), predicted)


def test_masks_get_no_gradient_and_the_head_does(model: Any) -> None:
    logits = torch.randn(2, 3, 8, 8, requires_grad=True)
    predicted = torch.rand(2, 3, requires_grad=True)
    scored_iou(model.mask_decoder, logits, predicted, (1, 2, 3)).sum().backward()
    assert logits.grad is None
    assert torch.equal(predicted.grad, torch.ones(2, 3))


@pytest.mark.parametrize("tokens", [(1, 2), (2, 1, 3), (1, 2, 3, 0), (0, 1)])
def test_masks_that_belong_together_are_judged_together(model: Any, tokens: tuple[int, ...]) -> None:
    count = len(tokens)
    with pytest.raises(InputError, match="0, all of 1 to 3"):
        scored_iou(model.mask_decoder, torch.randn(1, count, 8, 8), torch.rand(1, count), tokens)


def test_pixels_are_counted_in_full_whatever_the_caller_s_autocast(model: Any) -> None:
    logits, predicted = torch.randn(2, 4, 40, 40), torch.rand(2, 4)
    with torch.no_grad():
        expected = scored_iou(model.mask_decoder, logits, predicted, range(4))
        with torch.autocast("cpu", torch.bfloat16):
            came = scored_iou(model.mask_decoder, logits, predicted, range(4))
    torch.testing.assert_close(came, expected, rtol=0.0, atol=0.0)


def test_a_model_of_bfloat16_judges_its_masks_as_float32_does(model: Any) -> None:
    scoring = model.mask_decoder.mask_scoring["several"]
    geometry, said = mask_geometry(torch.randn(2, 3, 16, 16)), torch.rand(2, 3)
    exact = scoring(geometry, said)
    reduced = scoring.bfloat16()(geometry, said.bfloat16())
    assert reduced.dtype == torch.bfloat16
    torch.testing.assert_close(reduced.float(), exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("multimask", [True, False, "all"])
def test_every_path_of_the_decoder_answers_alike(model: Any, picture: np.ndarray, multimask: Any) -> None:
    folded, stock = (SamSegmenter(model, name="paths", decoder_path=path) for path in (FoldedDecoder(), stock_decoder))
    embedding = folded.encode(picture)
    with torch.no_grad():
        one, other = (segmenter.decode(embedding, PROMPTS, multimask) for segmenter in (folded, stock))
        alone = predict_iou(folded, embedding, PROMPTS, multimask)
    torch.testing.assert_close(one.predicted_iou, other.predicted_iou, atol=1e-4, rtol=0)
    torch.testing.assert_close(alone, one.predicted_iou, atol=1e-5, rtol=0)


@pytest.mark.parametrize("multimask", [True, False])
def test_segment_anything_s_predictor_gives_the_corrected_values(
    model: Any, picture: np.ndarray, multimask: bool
) -> None:
    segmenter = SamSegmenter(model, name="parity")
    with torch.no_grad():
        ours = segmenter.decode(segmenter.encode(picture), PROMPTS[0], multimask)
    predictor = SamPredictor(model)
    predictor.set_image(picture)
    _, theirs, _ = predictor.predict(np.array([[20.0, 30.0]]), np.array([1]), multimask_output=multimask)
    np.testing.assert_allclose(ours.predicted_iou[0].numpy(), theirs, atol=1e-4)
    for scoring in model.mask_decoder.mask_scoring.values():
        torch.nn.init.zeros_(scoring.layers[-1].weight)
    with torch.no_grad():
        plain = segmenter.decode(segmenter.encode(picture), PROMPTS[0], multimask)
    assert (plain.predicted_iou - ours.predicted_iou).abs().max() > 1e-3
