"""Minimum over masks, the IoU head's loss, and the two together."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from arrcoc_sam.errors import InputError, ShapeError, UnknownNameError
from arrcoc_sam.losses import functional as LF


def an_answer(batch: int = 4, masks: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(batch, masks, 9, 7, generator=generator) * 2
    target = torch.rand(batch, 9, 7, generator=generator) > 0.5
    return logits, target, torch.rand(batch, masks, generator=generator)


class TestMinimumOverMasks:
    def test_is_the_smallest_of_the_mixed_losses(self):
        logits, target, _ = an_answer()
        loss, winner = LF.min_over_masks_loss(logits, target, focal_weight=2.0)
        each = LF.focal_dice_loss(logits, target[:, None].expand_as(logits), focal_weight=2.0, reduction="none")
        torch.testing.assert_close(loss, each.min(dim=1).values)
        assert torch.equal(winner, each.argmin(dim=1))

    def test_gradient_goes_through_the_winner_alone(self):
        logits, target, _ = an_answer()
        logits.requires_grad_()
        loss, winner = LF.min_over_masks_loss(logits, target)
        loss.sum().backward()
        won = F.one_hot(winner, 3).bool()
        assert (logits.grad[~won] == 0).all()
        assert (logits.grad[won] != 0).all()

    def test_the_mixed_loss_decides(self):
        """Focal alone and Dice alone would name different winners."""
        target = torch.zeros(1, 10, 10, dtype=torch.bool)
        target[:, 0, 0] = True
        nothing = torch.full((10, 10), -3.0)
        blob = torch.full((10, 10), -3.0)
        blob[0, :4] = 2.0
        logits = torch.stack([nothing, blob])[None]
        focal = LF.min_over_masks_loss(logits, target, focal_weight=1.0, dice_weight=0.0)[1].item()
        dice = LF.min_over_masks_loss(logits, target, focal_weight=0.0, dice_weight=1.0)[1].item()
        assert (focal, dice) == (0, 1)

    def test_one_mask_and_no_prompt(self):
        logits, target, _ = an_answer(masks=1)
        assert LF.min_over_masks_loss(logits, target)[1].tolist() == [0] * 4
        loss, winner = LF.min_over_masks_loss(logits[:0], target[:0])
        assert loss.shape == winner.shape == (0,)

    def test_errors(self, as_at_run_time):
        logits, target, _ = an_answer()
        with pytest.raises(ShapeError, match="target has shape"):
            LF.min_over_masks_loss(logits, target[:, None].expand_as(logits))
        with pytest.raises(ShapeError, match=r"\(B, M, H, W\)"):
            LF.min_over_masks_loss(logits[0], target)
        with pytest.raises(ShapeError, match="at least one mask"):
            LF.min_over_masks_loss(logits[:, :0], target)


class TestIoUPrediction:
    def test_by_hand(self):
        logits = torch.tensor([[[[1.0, 1.0], [-1.0, -1.0]], [[1.0, 1.0], [1.0, 1.0]]]])
        target = torch.tensor([[[True, False], [False, False]]])  # actual IoU ½ and ¼
        predicted = torch.tensor([[0.6, 0.75]])
        mse = LF.iou_prediction_loss(predicted, logits, target, reduction="none")
        torch.testing.assert_close(mse, torch.tensor([[0.01, 0.25]]))
        l1 = LF.iou_prediction_loss(predicted, logits, target, kind="l1", reduction="none")
        torch.testing.assert_close(l1, torch.tensor([[0.1, 0.5]]))
        assert LF.iou_prediction_loss(predicted, logits, target).item() == pytest.approx(0.13)
        one = LF.iou_prediction_loss(
            predicted, logits, target, kind="l1", supervise="winner", winner=torch.tensor([1]), reduction="none"
        )
        torch.testing.assert_close(one, torch.tensor([0.5]))

    def test_masks_are_detached_and_thresholded(self):
        logits, target, predicted = an_answer()
        logits.requires_grad_()
        predicted.requires_grad_()
        loss = LF.iou_prediction_loss(predicted, logits, target)
        loss.backward()
        assert logits.grad is None
        assert predicted.grad.abs().sum() > 0
        stretched = LF.iou_prediction_loss(predicted, logits * 100, target)
        torch.testing.assert_close(loss, stretched)

    def test_target_dtypes_agree(self):
        logits, target, predicted = an_answer()
        expected = LF.iou_prediction_loss(predicted, logits, target)
        for dtype in (torch.uint8, torch.float32, torch.int64):
            torch.testing.assert_close(LF.iou_prediction_loss(predicted, logits, target.to(dtype)), expected)
        torch.testing.assert_close(LF.iou_prediction_loss(predicted, logits, target * 0.3 + 0.3), expected)

    def test_an_iou_of_nothing_with_nothing_does_not_count(self):
        logits = torch.stack([torch.full((2, 2), -1.0), torch.full((2, 2), 1.0)])[None]
        target = torch.zeros(1, 2, 2, dtype=torch.bool)
        predicted = torch.tensor([[0.9, 0.5]], requires_grad=True)
        loss = LF.iou_prediction_loss(predicted, logits, target)
        assert loss.item() == pytest.approx(0.25)
        loss.backward()
        assert predicted.grad.tolist() == [[0.0, 1.0]]
        assert LF.iou_prediction_loss(predicted[:, :1], logits[:, :1], target).item() == 0.0

    def test_errors(self, as_at_run_time):
        logits, target, predicted = an_answer()
        with pytest.raises(InputError, match="min_over_masks_loss"):
            LF.iou_prediction_loss(predicted, logits, target, supervise="winner")
        with pytest.raises(InputError, match="int64"):
            LF.iou_prediction_loss(predicted, logits, target, supervise="winner", winner=torch.zeros(4))
        with pytest.raises(ShapeError, match="winner"):
            LF.iou_prediction_loss(
                predicted, logits, target, supervise="winner", winner=torch.zeros(3, dtype=torch.int64)
            )
        for wrong in (-1, 3):
            with pytest.raises(InputError, match=rf"winner reaches from .*{wrong}.*; expected 0 to 2"):
                LF.iou_prediction_loss(
                    predicted, logits, target, supervise="winner", winner=torch.tensor([0, 1, 2, wrong])
                )
        with pytest.raises(ShapeError, match="predicted_iou"):
            LF.iou_prediction_loss(predicted[:, :2], logits, target)
        with pytest.raises(UnknownNameError):
            LF.iou_prediction_loss(predicted, logits, target, kind="huber")
        with pytest.raises(UnknownNameError):
            LF.iou_prediction_loss(predicted, logits, target, supervise="best")
        with pytest.raises(UnknownNameError):
            LF.iou_prediction_loss(predicted, logits, target, reduction="max")


def sam2_step(
    logits: Tensor, target: Tensor, ious: Tensor, weights: dict[str, float], *, l1: bool, supervise_all: bool
) -> Tensor:
    """One step of SAM 2's training loss written from its paper and configuration, float64."""
    x, t = logits.double(), target.double()[:, None].expand_as(logits)
    p = x.sigmoid()
    ce = F.binary_cross_entropy_with_logits(x, t, reduction="none")
    p_t = p * t + (1 - p) * (1 - t)
    focal = ((0.25 * t + 0.75 * (1 - t)) * ce * (1 - p_t) ** 2).flatten(2).mean(-1)
    dice = 1 - (2 * (p * t).flatten(2).sum(-1) + 1) / (p.flatten(2).sum(-1) + t.flatten(2).sum(-1) + 1)
    mixed = weights["mask"] * focal + weights["dice"] * dice
    best = mixed.argmin(-1)
    rows = torch.arange(len(x))
    overlap = ((x > 0) & (t > 0)).flatten(2).sum(-1)
    actual = overlap / ((x > 0) | (t > 0)).flatten(2).sum(-1)
    error = (ious.double() - actual).abs() if l1 else (ious.double() - actual) ** 2
    error = error.mean(-1) if supervise_all else error[rows, best]
    return (mixed[rows, best] + weights["iou"] * error).mean()


class TestMultiMask:
    @pytest.mark.parametrize("kind", ["mse", "l1"])
    @pytest.mark.parametrize("supervise", ["all", "winner"])
    def test_sam2_formula(self, kind, supervise):
        logits, target, predicted = an_answer()
        weights = {"mask": 20.0, "dice": 1.0, "iou": 0.7}
        terms = LF.multimask_loss(
            logits, target, predicted, iou_weight=0.7, iou_kind=kind, iou_supervise=supervise, backend="eager"
        )
        expected = sam2_step(logits, target, predicted, weights, l1=kind == "l1", supervise_all=supervise == "all")
        assert terms["loss"].item() == pytest.approx(expected.item(), rel=1e-6)
        torch.testing.assert_close(terms["loss"], terms["mask_loss"] + 0.7 * terms["iou_loss"])
        assert terms["winner"].shape == (4,)

    @pytest.mark.parametrize("supervise", ["all", "winner"])
    def test_no_value_is_looked_at_inside_vmap(self, supervise, as_at_run_time):
        logits, target, predicted = an_answer()

        def each(x: Tensor, t: Tensor, iou: Tensor) -> Tensor:
            return LF.multimask_loss(x[None], t[None], iou[None], iou_supervise=supervise)["loss"]

        together = LF.multimask_loss(logits, target, predicted, iou_supervise=supervise)["loss"]
        torch.testing.assert_close(torch.vmap(each)(logits, target, predicted).mean(), together)

    def test_empty_batch(self):
        logits, target, predicted = (x[:0] for x in an_answer())
        logits.requires_grad_()
        for supervise in ("all", "winner"):
            terms = LF.multimask_loss(logits, target, predicted, iou_supervise=supervise)
            assert terms["loss"].item() == 0.0
            terms["loss"].backward()

    def test_errors(self, as_at_run_time):
        logits, target, predicted = an_answer()
        with pytest.raises(InputError, match="iou_weight"):
            LF.multimask_loss(logits, target, predicted, iou_weight=math.nan)
        with pytest.raises(InputError, match="predicted_iou"):
            LF.multimask_loss(logits, target, predicted > 0.5)
