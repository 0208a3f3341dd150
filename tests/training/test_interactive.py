"""Each rule of the interactive recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from arrcoc_sam.errors import InputError, UnknownNameError
from arrcoc_sam.segmenters.tiny import build_tiny
from arrcoc_sam.training.batches import PromptBatch
from arrcoc_sam.training.interactive import ClickRecipe, _next_clicks, _noisy_boxes, interactive_loss
from arrcoc_sam.training.recipe import RECIPES, SAM1_RECIPE, SAM2_RECIPE, named_recipe

ROUNDS = 11


@pytest.fixture
def batch() -> PromptBatch:
    """One image of 64 pixels with two targets in its logits of 32."""
    targets = torch.zeros(2, 32, 32)
    targets[0, 8:24, 8:24] = 1.0
    targets[1, 2:10, 20:30] = 1.0
    generator = torch.Generator().manual_seed(0)
    return PromptBatch(
        images=torch.zeros(1, 3, 64, 64),
        valid=torch.ones(1, 32, 32, dtype=torch.bool),
        image_index=torch.zeros(2, dtype=torch.int64),
        targets=targets,
        points_xy=torch.tensor([[30.0, 30.0], [50.0, 10.0]]),
        boxes_xyxy=torch.tensor([[16.0, 16.0, 47.0, 47.0], [40.0, 4.0, 59.0, 19.0]]),
        box_chance=torch.tensor([0.3, 0.6]),
        box_shift=torch.zeros(2, 4),
        click_chance=torch.rand(2, ROUNDS - 1, 4, generator=generator),
        pause_chance=0.5,
    )


class Recorder:
    """Stands for a decoder: answers with given logits and keeps what it was asked."""

    def __init__(self, logits: Tensor, predicted: Tensor) -> None:
        self.logits, self.predicted = logits.requires_grad_(), predicted.requires_grad_()
        self.calls: list[tuple[Tensor, Tensor]] = []
        self.tokens: list[tuple[int, ...]] = []

    def __call__(
        self, embeddings: Tensor, sparse: Tensor, dense: Tensor, tokens: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        self.calls.append((sparse, dense))
        self.tokens.append(tuple(tokens))
        return self.logits[:, list(tokens)], self.predicted[:, list(tokens)]


def run(batch: PromptBatch, decode: Recorder, **options: Any) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(0)
    recipe = ClickRecipe(**{"num_rounds": 1, "box_probability": 0.0, **options})
    return interactive_loss(build_tiny(64), torch.zeros(1, 128, 8, 8), batch, recipe, decode=decode)


def answers(batch: PromptBatch) -> tuple[Tensor, Tensor]:
    """Token 2 is right, the others are not."""
    target = batch.targets * 8 - 4
    wrong = (torch.full_like(target, -3.0), torch.full_like(target, 3.0))
    return torch.stack([-target, wrong[0], target, wrong[1]], dim=1), torch.zeros(2, 4)


def test_first_round_gradient_goes_through_the_winner_alone(batch: PromptBatch) -> None:
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


def test_iou_of_the_winner_alone(batch: PromptBatch) -> None:
    decode = Recorder(*answers(batch))
    run(batch, decode, iou_supervise="winner")[0].backward()
    assert decode.predicted.grad is not None
    assert (decode.predicted.grad != 0).tolist() == [[False, False, True, False]] * 2


def test_l1_has_a_gradient_of_one_size(batch: PromptBatch) -> None:
    decode = Recorder(*answers(batch))
    _, figures = run(batch, decode, iou_kind="l1", iou_supervise="winner")
    assert figures["iou_loss"] == 1.0  # predicted 0, actual 1
    run(batch, decode, iou_kind="l1", iou_supervise="winner")[0].backward()
    assert decode.predicted.grad is not None
    assert decode.predicted.grad[:, 2].tolist() == [-0.5, -0.5]


def test_the_head_learns_the_mean_over_what_a_click_may_have_meant(batch: PromptBatch) -> None:
    """The first click means its target with a chance of 3/4, or else a mask of half as many rows again."""
    other = torch.zeros(32, 32, dtype=torch.bool)
    other[8:32, 8:24] = True
    meant = torch.zeros(2, 2, 32, 32, dtype=torch.bool)
    meant[:, 0], meant[0, 1] = batch.targets > 0.5, other
    asked = replace(batch, meant=meant, meant_chance=torch.tensor([[0.75, 0.25], [1.0, 0.0]]))
    logits = (batch.targets[:, None] * 2 - 1).repeat(1, 4, 1, 1)  # exactly the targets
    decode = Recorder(logits, torch.zeros(2, 4))
    _, figures = run(asked, decode, expected_iou=True)
    expected = 0.75 + 0.25 * (16 / 24)
    assert figures["iou_loss"].item() == pytest.approx((expected**2 + 1) / 2)
    _, figures = run(asked, decode, expected_iou=True, iou_kind="l1", iou_supervise="winner")
    assert figures["iou_loss"].item() == pytest.approx((expected + 1) / 2)
    _, figures = run(asked, decode, expected_iou=True, box_probability=1.0)
    assert figures["iou_loss"].item() == pytest.approx(1.0)  # a box says which
    _, figures = run(asked, decode)
    assert figures["iou_loss"].item() == pytest.approx(1.0)
    with pytest.raises(InputError, match="with_meant"):
        run(batch, decode, expected_iou=True)


def test_later_rounds_use_token_0_and_feed_back_detached_logits(batch: PromptBatch) -> None:
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
    assert decode.tokens == [(1, 2, 3), (0,)]  # nothing is decoded that nobody looks at


def test_a_box_takes_the_place_of_the_click(batch: PromptBatch) -> None:
    decode = Recorder(*answers(batch))
    run(batch, decode, box_probability=1.0)
    torch.manual_seed(0)
    expected, _ = build_tiny(64).prompt_encoder(None, batch.boxes_xyxy, None)
    torch.testing.assert_close(decode.calls[0][0], expected)


def test_a_box_may_be_answered_with_one_mask(batch: PromptBatch) -> None:
    decode = Recorder(*answers(batch))
    # chance .3 and .6: the first prompt is a box, the second a click
    loss, _ = run(batch, decode, box_probability=0.5, multimask_boxes=False)
    loss.backward()
    assert decode.logits.grad is not None
    moved = (decode.logits.grad.abs().sum(dim=(2, 3)) > 0).tolist()
    assert moved == [[True, False, False, False], [False, False, True, False]]
    assert decode.tokens == [(0, 1, 2, 3)]


def test_a_given_mask_takes_the_place_of_the_click(batch: PromptBatch) -> None:
    """The first target is asked for by a mask and a point in it, and answered with token 0; the second by its click."""
    shown = torch.zeros(2, 32, 32)
    shown[0] = torch.rand(32, 32, generator=torch.Generator().manual_seed(1)) * 20 - 10
    middle = torch.tensor([[20.0, 40.0], [0.0, 0.0]])
    asked = replace(batch, given=torch.tensor([True, False]), given_logits=shown, given_xy=middle)
    decode = Recorder(*answers(batch))
    # a box for the first target by its chance, but that it is given a mask
    loss, _ = run(asked, decode, given_mask_probability=0.5, box_probability=0.5, num_rounds=2)
    loss.backward()
    assert decode.tokens == [(0, 1, 2, 3), (0,)]
    torch.manual_seed(0)
    encoder = build_tiny(64).prompt_encoder
    sparse, dense = decode.calls[0]
    torch.testing.assert_close(dense[:1], encoder(None, None, shown[:1, None])[1])
    torch.testing.assert_close(dense[1:], encoder(None, None, None)[1].expand(1, -1, 8, 8))
    points = torch.stack([middle[0], batch.points_xy[1]])[:, None]
    torch.testing.assert_close(sparse, encoder((points, torch.ones(2, 1)), None, None)[0])
    clicked, _ = encoder((batch.points_xy[:, None], torch.ones(2, 1)), None, None)
    torch.testing.assert_close(decode.calls[1][0][:, 0], clicked[:, 0])  # then a click that is right
    assert decode.logits.grad is not None
    moved = (decode.logits.grad.abs().sum(dim=(2, 3)) > 0).tolist()
    assert moved == [[True, False, False, False], [True, False, True, False]]  # token 0 of the second: its next round
    with pytest.raises(InputError, match="given_share"):
        run(batch, decode, given_mask_probability=0.5)


def test_rounds_without_a_new_prompt(batch: PromptBatch) -> None:
    decode = Recorder(*answers(batch))
    run(batch, decode, num_rounds=4, mask_only_rounds=2)
    # chance .5, four places for it: after the first prompt come click, click, pause, click, and a pause at the end
    assert [sparse.shape[1] for sparse, _ in decode.calls] == [2, 3, 4, 4, 5, 5]
    places = [SAM1_RECIPE.bring_click(place / 100).index(False) for place in range(100)]
    assert set(places) == set(range(9))
    assert all(SAM1_RECIPE.bring_click(place / 100)[-1] is False for place in range(100))


def test_recipes_have_the_rounds_that_were_published(batch: PromptBatch) -> None:
    for recipe, rounds, clicks in ((SAM1_RECIPE, 11, 9), (SAM2_RECIPE, 8, 8)):
        decode = Recorder(*answers(batch))
        interactive_loss(build_tiny(64), torch.zeros(1, 128, 8, 8), batch, recipe, decode=decode)
        assert len(decode.calls) == rounds == recipe.total_rounds
        assert decode.calls[-1][0].shape[1] == clicks + 1
    assert (SAM1_RECIPE.focal_weight, SAM1_RECIPE.dice_weight, SAM1_RECIPE.iou_weight) == (20.0, 1.0, 1.0)
    assert SAM2_RECIPE.iou_kind == "l1"


def test_rounds_are_averaged_or_summed(batch: PromptBatch) -> None:
    mean, _ = run(batch, Recorder(*answers(batch)), num_rounds=3)
    total, _ = run(batch, Recorder(*answers(batch)), num_rounds=3, round_reduction="sum")
    torch.testing.assert_close(total, 3 * mean)


def test_weights_of_the_terms(batch: PromptBatch) -> None:
    loss, figures = run(batch, Recorder(*answers(batch)), iou_weight=5.0)
    torch.testing.assert_close(loss.detach(), figures["mask_loss"] + 5 * figures["iou_loss"])
    _, focal = run(batch, Recorder(*answers(batch)), dice_weight=0.0, focal_weight=1.0)
    _, dice = run(batch, Recorder(*answers(batch)), focal_weight=0.0)
    torch.testing.assert_close(figures["mask_loss"], 20 * focal["mask_loss"] + dice["mask_loss"])


def test_parts_of_a_batch_add_up_to_the_whole(batch: PromptBatch) -> None:
    def part(rows: list[int]) -> PromptBatch:
        state = {
            name: value[rows] if name not in ("images", "valid", "pause_chance") and value is not None else value
            for name, value in batch.state().items()
        }
        return PromptBatch(**state)

    def loss_of(rows: list[int]) -> Tensor:
        logits, predicted = answers(part(rows)) if len(rows) == 2 else [x[rows] for x in answers(batch)]
        recipe = ClickRecipe(num_rounds=3)
        model = build_tiny(64)
        found, _ = interactive_loss(
            model,
            torch.zeros(1, 128, 8, 8),
            part(rows),
            recipe,
            decode=Recorder(logits.detach(), predicted.detach()),
            normalizer=2.0,
        )
        return found.detach()

    torch.testing.assert_close(loss_of([0]) + loss_of([1]), loss_of([0, 1]))


def test_padding_neither_costs_nor_draws_clicks(batch: PromptBatch) -> None:
    valid = batch.valid.clone()
    valid[:, 24:] = False  # below both targets
    logits, predicted = answers(batch)
    logits[:, :, 24:] = 9.0  # wrong, but nobody sees it
    decode = Recorder(logits, predicted)
    loss, figures = run(replace(batch, valid=valid), decode, num_rounds=2)
    loss.backward()
    assert figures["oracle_iou"] == 1.0
    assert decode.logits.grad is not None
    assert decode.logits.grad[:, :, 24:].abs().sum() == 0


def test_no_click_comes_from_a_perfect_prediction() -> None:
    truth = torch.zeros(3, 16, 16, dtype=torch.bool)
    truth[:, 4:9, 6:12] = True
    predicted = truth.clone()
    predicted[1, 4, 6] = False  # one cell missed
    predicted[2, 0, 15] = True  # one cell too much
    points, labels = _next_clicks(predicted, truth, torch.rand(3, 4), ClickRecipe(), 64.0)
    assert labels.tolist() == [-1.0, 1.0, 0.0]
    assert 24 - 0.5 <= points[1, 0] <= 28 - 0.5
    assert 16 - 0.5 <= points[1, 1] <= 20 - 0.5
    assert points[2, 0] >= 60 - 0.5
    assert points[2, 1] <= 4 - 0.5


def test_some_clicks_fall_anywhere_in_the_target() -> None:
    truth = torch.zeros(2, 16, 16, dtype=torch.bool)
    truth[:, 4:9, 6:12] = True
    chance = torch.rand(2, 4)
    chance[:, 0] = torch.tensor([0.05, 0.5])
    recipe = ClickRecipe(truth_click_probability=0.1)
    points, labels = _next_clicks(truth, truth, chance, recipe, 16.0)  # a perfect prediction
    assert labels.tolist() == [1.0, -1.0]
    assert truth[0, int(points[0, 1] + 0.5), int(points[0, 0] + 0.5)]


def test_box_noise_is_bounded() -> None:
    boxes = torch.tensor([[100.0, 100.0, 900.0, 900.0]]).expand(20000, 4)
    normal = torch.randn(boxes.shape, generator=torch.Generator().manual_seed(0))
    shift = _noisy_boxes(boxes, normal, ClickRecipe(), 1024.0) - boxes
    assert shift.abs().max() <= 20.0 + 1e-4  # SAM: at most 20 pixels
    assert shift.abs().max() > 19.9  # 10 % of 800 reaches the bound
    small = torch.tensor([[500.0, 500.0, 540.0, 580.0]]).expand(20000, 4)
    spread = (_noisy_boxes(small, normal, ClickRecipe(), 1024.0) - small).std(dim=0)
    torch.testing.assert_close(spread, torch.tensor([4.0, 8.0, 4.0, 8.0]), rtol=0.05, atol=0.0)
    assert _noisy_boxes(boxes[:50] + 120, normal[:50], ClickRecipe(), 1024.0).max() <= 1023.0


def test_recipes_by_name() -> None:
    assert named_recipe("sam1", num_rounds=2).largest_target == 0.9
    assert set(RECIPES) == {"short", "sam1", "sam2"}
    with pytest.raises(UnknownNameError, match="sam3"):
        named_recipe("sam3")


@pytest.mark.parametrize(
    "options",
    [
        {"num_rounds": 0},
        {"mask_only_rounds": 3},
        {"box_probability": 1.5},
        {"given_mask_probability": -0.1},
        {"focal_weight": float("nan")},
        {"largest_target": 0.0},
    ],
)
def test_recipes_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        ClickRecipe(**options)


@pytest.mark.usefixtures("as_at_run_time")
def test_unknown_losses() -> None:
    with pytest.raises(UnknownNameError, match="iou_kind"):
        ClickRecipe(iou_kind="huber")  # type: ignore[arg-type]
