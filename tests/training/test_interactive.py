"""Each rule of the interactive recipe."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from arrcoc_sam.segmenters.tiny import build_tiny
from arrcoc_sam.training.batches import SceneBatch
from arrcoc_sam.training.interactive import ClickRecipe, _error_clicks, _noisy_boxes, interactive_loss


@pytest.fixture
def batch() -> SceneBatch:
    targets = torch.zeros(1, 2, 32, 32)
    targets[0, 0, 8:24, 8:24] = 1.0
    targets[0, 1, 2:10, 20:30] = 1.0
    points = torch.tensor([[[30.0, 30.0], [50.0, 10.0]]])
    boxes = torch.tensor([[[16.0, 16.0, 47.0, 47.0], [40.0, 4.0, 59.0, 19.0]]])
    return SceneBatch(torch.zeros(1, 3, 64, 64), targets, points, boxes)


class Recorder:
    """Stands for a decoder: answers with given logits and keeps what it was asked."""

    def __init__(self, logits: Tensor, predicted: Tensor) -> None:
        self.logits, self.predicted = logits.requires_grad_(), predicted.requires_grad_()
        self.calls: list[tuple[Tensor, Tensor]] = []

    def __call__(self, embeddings: Tensor, sparse: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
        self.calls.append((sparse, dense))
        return self.logits, self.predicted


def run(batch: SceneBatch, decode: Recorder, **options: float) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(0)
    recipe = ClickRecipe(**{"num_rounds": 1, "box_probability": 0.0, **options})  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    return interactive_loss(
        build_tiny(64), torch.zeros(1, 128, 8, 8), batch, recipe, generator=generator, decode=decode
    )


def answers(batch: SceneBatch) -> tuple[Tensor, Tensor]:
    """Token 2 is right, the others are not."""
    target = batch.targets.flatten(0, 1) * 8 - 4
    return torch.stack([-target, torch.full_like(target, -3.0), target, torch.full_like(target, 3.0)], 1), torch.zeros(
        2, 4
    )


def test_first_round_gradient_goes_through_the_winner_alone(batch: SceneBatch) -> None:
    decode = Recorder(*answers(batch))
    loss, figures = run(batch, decode)
    loss.backward()
    assert decode.logits.grad is not None
    assert decode.logits.grad[:, 2].abs().sum() > 0
    assert decode.logits.grad[:, [0, 1, 3]].abs().sum() == 0
    assert figures["oracle_iou"] == 1.0
    # tokens 1-3 are supervised by their true IoU, token 0 is silent while there is one prompt
    assert decode.predicted.grad is not None
    assert (decode.predicted.grad[:, 0] == 0).all()
    assert (decode.predicted.grad[:, 2] < 0).all()


def test_later_rounds_use_token_0_and_feed_back_detached_logits(batch: SceneBatch) -> None:
    logits, predicted = answers(batch)
    predicted[:, 3] = 1.0  # the head prefers token 3: that one is fed back
    decode = Recorder(logits, predicted)
    loss, _ = run(batch, decode, num_rounds=2)
    loss.backward()
    assert decode.logits.grad is not None
    assert decode.logits.grad[:, 0].abs().sum() > 0
    assert decode.logits.grad[:, 3].abs().sum() == 0  # fed back, so detached
    torch.manual_seed(0)
    encoder = build_tiny(64).prompt_encoder
    torch.testing.assert_close(decode.calls[1][1], encoder(None, None, logits[:, 3:].detach())[1])
    assert decode.calls[0][0].shape[1] == 2  # a click and the padding point
    assert decode.calls[1][0].shape[1] == 3


def test_a_box_takes_the_place_of_the_click(batch: SceneBatch) -> None:
    decode = Recorder(*answers(batch))
    run(batch, decode, box_probability=1.0, box_noise=0.0)
    torch.manual_seed(0)
    expected, _ = build_tiny(64).prompt_encoder(None, batch.boxes_xyxy[0], None)
    torch.testing.assert_close(decode.calls[0][0], expected)


def test_no_click_comes_from_a_perfect_prediction() -> None:
    truth = torch.zeros(3, 16, 16, dtype=torch.bool)
    truth[:, 4:9, 6:12] = True
    predicted = truth.clone()
    predicted[1, 4, 6] = False  # one cell missed
    predicted[2, 0, 15] = True  # one cell too much
    points, labels = _error_clicks(predicted, truth, 64.0, torch.Generator().manual_seed(0))
    assert labels.tolist() == [-1.0, 1.0, 0.0]
    assert 24 - 0.5 <= points[1, 0] <= 28 - 0.5
    assert 16 - 0.5 <= points[1, 1] <= 20 - 0.5
    assert points[2, 0] >= 60 - 0.5
    assert points[2, 1] <= 4 - 0.5


def test_box_noise_is_bounded() -> None:
    boxes = torch.tensor([[100.0, 100.0, 900.0, 900.0]]).expand(4000, 4)
    noisy = _noisy_boxes(boxes, ClickRecipe(), 1024.0, torch.Generator().manual_seed(0))
    shift = noisy - boxes
    assert shift.abs().max() <= 20.0 + 1e-4  # SAM: at most 20 pixels
    assert shift.abs().max() > 19.9  # 10 % of 800 reaches the bound
    small = torch.tensor([[500.0, 500.0, 540.0, 580.0]]).expand(20000, 4)
    spread = (_noisy_boxes(small, ClickRecipe(), 1024.0, torch.Generator().manual_seed(0)) - small).std(dim=0)
    torch.testing.assert_close(spread, torch.tensor([4.0, 8.0, 4.0, 8.0]), rtol=0.05, atol=0.0)
    assert _noisy_boxes(boxes[:50] + 120, ClickRecipe(), 1024.0, torch.Generator()).max() <= 1023.0
