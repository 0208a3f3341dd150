"""Focal and Dice: against 60-digit arithmetic, against float64, against other libraries, at the edges."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_reference import ALPHAS, GAMMAS, assert_close_to_float64, cases, exact_focal_dice, exact_gradient
from torch import Tensor

from arrcoc_sam.errors import InputError, ShapeError, UnknownNameError
from arrcoc_sam.losses import functional as LF

FEW_PIXELS = ([-3.0, -0.25, 0.0, 0.5, 2.0, 6.0], [1.0, 0.0, 1.0, 0.3, 0.8, 1.0])
CONFIDENT = ([30.0, -30.0, 25.0, -18.0], [1.0, 0.0, 1.0, 0.0])
WRONG = ([80.0, -80.0, 12.0], [0.0, 1.0, 0.0])
SATURATED = ([1e4, -1e4, 0.0], [0.0, 1.0, 1.0])


def as_mask(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).reshape(1, 1, -1)


class TestDefinition:
    """Our numbers are the textbook's, evaluated with 60 digits."""

    @pytest.mark.parametrize("alpha", ALPHAS)
    @pytest.mark.parametrize("gamma", [*GAMMAS, 1.5])
    @pytest.mark.parametrize("pixels", [FEW_PIXELS, CONFIDENT, WRONG], ids=["few", "confident", "wrong"])
    @pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-13), (torch.float32, 5e-6)])
    def test_values(self, pixels, gamma, alpha, dtype, rtol):
        focal, dice = exact_focal_dice(*pixels, alpha=alpha, gamma=gamma)
        logits, targets = (as_mask(values).to(dtype) for values in pixels)
        # 0.3 and 0.8 in float32 are other numbers, which the expectation must be told.
        if dtype == torch.float32:
            focal, dice = exact_focal_dice(
                logits.flatten().tolist(), targets.flatten().tolist(), alpha=alpha, gamma=gamma
            )
        assert float(LF.sigmoid_focal_loss(logits, targets, alpha=alpha, gamma=gamma)) == pytest.approx(
            float(focal), rel=rtol, abs=torch.finfo(dtype).tiny
        )
        assert float(LF.dice_loss(logits, targets)) == pytest.approx(float(dice), rel=rtol, abs=0)

    @pytest.mark.parametrize("gamma", [*GAMMAS, 1.5])
    @pytest.mark.parametrize(("pixels", "index"), [(FEW_PIXELS, 0), (FEW_PIXELS, 3), (CONFIDENT, 3), (WRONG, 2)])
    def test_gradients(self, pixels, index, gamma):
        targets = as_mask(pixels[1])
        for which, loss in enumerate((LF.sigmoid_focal_loss, LF.dice_loss)):
            logits = as_mask(pixels[0]).requires_grad_()
            options = {"alpha": 0.25, "gamma": gamma} if which == 0 else {}
            (gradient,) = torch.autograd.grad(loss(logits, targets, **options), logits)
            expected = exact_gradient(*pixels, index, which=which, alpha=0.25, gamma=gamma)
            assert float(gradient[0, 0, index]) == pytest.approx(float(expected), rel=1e-12, abs=0)

    def test_by_hand(self):
        # One pixel, x = 0, t = 1: p = ½, focal = α·(½)²·ln 2, Dice = 1 − (2·½ + 1)/(½ + 1 + 1).
        logits, targets = torch.zeros(1, 1), torch.ones(1, 1)
        assert float(LF.sigmoid_focal_loss(logits, targets)) == pytest.approx(0.25 * 0.25 * math.log(2))
        assert float(LF.dice_loss(logits, targets)) == pytest.approx(0.2)
        expected = 20 * 0.25 * 0.25 * math.log(2) + 0.2
        assert float(LF.focal_dice_loss(logits, targets, backend="eager")) == pytest.approx(expected)

    def test_gradient_of_a_zero_initialised_head(self):
        logits = torch.zeros(1, 2, requires_grad=True)
        LF.sigmoid_focal_loss(logits, torch.tensor([[1.0, 0.0]]), alpha=None, gamma=0.0).backward()
        torch.testing.assert_close(logits.grad, torch.tensor([[-0.25, 0.25]]))


class TestFloat32:
    """float32 against float64, over shapes, layouts, targets and options."""

    @settings(deadline=None, max_examples=150)
    @given(
        case=cases(), gamma=st.sampled_from(GAMMAS), alpha=st.sampled_from(ALPHAS), smooth=st.sampled_from([0.5, 1.0])
    )
    def test_close_to_float64(self, case, gamma, alpha, smooth):
        logits, targets = case
        results = []
        for dtype in (torch.float32, torch.float64):
            x = logits.detach().to(dtype).requires_grad_()
            value = LF.focal_dice_loss(
                x, targets, alpha=alpha, gamma=gamma, smooth=smooth, reduction="none", backend="eager"
            )
            assert value.shape == logits.shape[:-2]
            assert value.dtype == dtype
            results += [value.detach(), torch.autograd.grad(value.sum(), x)[0]]
        assert_close_to_float64(*results)

    @pytest.mark.parametrize("gamma", GAMMAS)
    def test_gradcheck(self, gamma):
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(2, 3, 4, dtype=torch.float64, generator=generator)
        logits[0, 0, 0] = 0.0
        soft = torch.rand(2, 3, 4, dtype=torch.float64, generator=generator)
        for targets in (soft, soft > 0.5):
            assert torch.autograd.gradcheck(
                lambda x, t=targets: LF.focal_dice_loss(x, t, gamma=gamma, backend="eager", reduction="none"),
                logits.requires_grad_(),
            )

    def test_gradgradcheck(self):
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(2, 2, 3, dtype=torch.float64, generator=generator).requires_grad_()
        targets = torch.rand(2, 2, 3, dtype=torch.float64, generator=generator)
        assert torch.autograd.gradgradcheck(lambda x: LF.focal_dice_loss(x, targets, backend="eager"), logits)


class TestExtremes:
    def test_saturated_logits_give_exact_values(self):
        logits, targets = as_mask(SATURATED[0]).float().requires_grad_(), as_mask(SATURATED[1])
        loss = LF.sigmoid_focal_loss(logits, targets, alpha=None)
        assert loss.item() == pytest.approx((2e4 + 0.25 * math.log(2)) / 3)
        loss.backward()
        assert torch.isfinite(logits.grad).all()
        assert logits.grad.flatten()[:2].tolist() == pytest.approx([1 / 3, -1 / 3])

    @pytest.mark.parametrize("magnitude", [20.0, 100.0, 200.0, 1e4])
    def test_gamma_below_one_has_finite_gradients_on_right_pixels(self, magnitude):
        logits = torch.tensor([[magnitude, -magnitude, 0.5]], requires_grad=True)
        LF.sigmoid_focal_loss(logits, torch.tensor([[1.0, 0.0, 1.0]]), gamma=0.5).backward()
        assert torch.isfinite(logits.grad).all()
        assert logits.grad[0, 2] < 0

    def test_torchvision_is_not_finite_there(self):
        """Why the guard exists; if this fails, torchvision has been mended and the table in the docs is out of date."""
        from torchvision.ops import sigmoid_focal_loss

        logits = torch.tensor([[100.0, -100.0, 0.5]], requires_grad=True)
        sigmoid_focal_loss(logits, torch.tensor([[1.0, 0.0, 1.0]]), gamma=0.5, reduction="mean").backward()
        assert torch.isnan(logits.grad).any()

    def test_half_precision_dice_of_many_pixels(self):
        # Σp + Σt = 524,288 and its float16 form is infinite: peers give 1 or NaN.
        logits = torch.full((512, 512), 10.0, dtype=torch.float16, requires_grad=True)
        loss = LF.dice_loss(logits, torch.ones(512, 512, dtype=torch.float16))
        pixels, p = 512 * 512, 1 / (1 + math.exp(-10.0))
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(pixels * (1 - p) / (pixels * (p + 1) + 1), rel=5e-6)
        loss.backward()
        assert logits.grad.dtype == torch.float16

    def test_near_perfect_dice_keeps_its_digits(self):
        # 1 − (2Σpt + 1)/(Σp + Σt + 1) in float32 has one or two digits left of this number.
        loss = LF.dice_loss(torch.full((256, 256), 12.0), torch.ones(256, 256))
        n, wrong = 65536, 1 / (1 + math.exp(12.0))
        assert float(loss) == pytest.approx(n * wrong / (n * (2 - wrong) + 1), rel=5e-6)

    def test_an_empty_target_is_reached_by_an_empty_prediction(self):
        losses = [float(LF.dice_loss(torch.full((8, 8), x), torch.zeros(8, 8))) for x in (0.0, -5.0, -10.0, -50.0)]
        assert losses == sorted(losses, reverse=True)
        assert losses[-1] < 1e-18

    def test_dice_without_smoothing_of_nothing_is_nan(self):
        assert math.isnan(float(LF.dice_loss(torch.full((2, 2), -1e4), torch.zeros(2, 2), smooth=0.0)))


class TestReduction:
    def test_names(self):
        logits, targets = torch.randn(2, 3, 5, 4), torch.rand(2, 3, 5, 4)
        for loss in (LF.sigmoid_focal_loss, LF.dice_loss, LF.focal_dice_loss):
            per_mask = loss(logits, targets, reduction="none")
            assert per_mask.shape == (2, 3)
            for i in range(2):
                torch.testing.assert_close(per_mask[i, 1], loss(logits[i, 1], targets[i, 1], reduction="none"))
            torch.testing.assert_close(loss(logits, targets), per_mask.mean())
            torch.testing.assert_close(loss(logits, targets, reduction="sum"), per_mask.sum())

    @pytest.mark.parametrize("reduction", ["mean", "sum"])
    def test_no_masks_give_zero_with_a_gradient(self, reduction):
        logits = torch.zeros(0, 3, 4, 4, requires_grad=True)
        loss = LF.focal_dice_loss(logits, torch.zeros(0, 3, 4, 4), reduction=reduction)
        assert loss.item() == 0.0
        loss.backward()
        assert logits.grad.shape == logits.shape

    def test_targets_are_constants(self):
        logits, targets = torch.randn(2, 3, 3, requires_grad=True), torch.rand(2, 3, 3, requires_grad=True)
        LF.focal_dice_loss(logits, targets).backward()
        assert targets.grad is None


@pytest.mark.usefixtures("as_at_run_time")
class TestErrors:
    @pytest.mark.parametrize("loss", [LF.sigmoid_focal_loss, LF.dice_loss, LF.focal_dice_loss])
    def test_shapes_and_dtypes(self, loss):
        logits, targets = torch.zeros(2, 4, 4), torch.zeros(2, 4, 4)
        with pytest.raises(ShapeError, match=r"targets has shape \(4, 4\); expected \(2, 4, 4\)"):
            loss(logits, targets[0])
        with pytest.raises(ShapeError, match=r"logits\.squeeze\(1\), or targets\.unsqueeze\(1\)"):
            LF.focal_dice_loss(torch.zeros(2, 1, 4, 4), torch.zeros(2, 4, 4))
        with pytest.raises(ShapeError, match="area_average"):
            loss(logits, torch.zeros(2, 8, 8))
        with pytest.raises(ShapeError, match="H and W >= 1"):
            loss(torch.zeros(2, 0, 4), torch.zeros(2, 0, 4))
        with pytest.raises(ShapeError):
            loss(torch.zeros(3), torch.zeros(3))
        with pytest.raises(InputError, match="logits"):
            loss(targets > 0, targets)
        with pytest.raises(InputError, match="targets"):
            loss(logits, targets.to(torch.complex64))
        with pytest.raises(InputError, match="a list of 1"):
            loss([0.0], targets)
        with pytest.raises(InputError, match="on meta"):
            loss(logits, targets.to("meta"))
        with pytest.raises(UnknownNameError, match="'average'"):
            loss(logits, targets, reduction="average")

    @pytest.mark.parametrize(
        "options",
        [
            {"alpha": -1.0},
            {"alpha": 1.5},
            {"gamma": -0.5},
            {"gamma": math.nan},
            {"smooth": -1.0},
            {"focal_weight": math.inf},
            {"dice_weight": "1"},
            {"focal_weight": True},
        ],
    )
    def test_numbers(self, options):
        with pytest.raises(InputError, match=next(iter(options))):
            LF.focal_dice_loss(torch.zeros(2, 2), torch.zeros(2, 2), **options)

    def test_minus_one_says_how_to_drop_the_class_weight(self):
        with pytest.raises(InputError, match="alpha=None"):
            LF.sigmoid_focal_loss(torch.zeros(2, 2), torch.zeros(2, 2), alpha=-1.0)

    def test_backend(self):
        with pytest.raises(UnknownNameError, match="'auto', 'eager', 'compiled', 'triton'"):
            LF.focal_dice_loss(torch.zeros(2, 2), torch.zeros(2, 2), backend="cuda")
