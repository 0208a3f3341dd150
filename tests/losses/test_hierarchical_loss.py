"""Losses over levels: weights, resolutions, validity, normalisation."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from arrcoc_sam.errors import InputError, ShapeError, UnknownNameError
from arrcoc_sam.losses import arguments
from arrcoc_sam.losses import functional as LF

NAN = float("nan")


def a_batch(batch: int = 3, *, seed: int = 0) -> tuple[list[Tensor], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    levels = [torch.randn(batch, side, side + 1, generator=generator) for side in (3, 5, 10)]
    masks = torch.rand(batch, 3, 20, 22, generator=generator) > 0.6
    return levels, masks, torch.rand(batch, 3, generator=generator)


def brute_force_average(mask: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """Area average by repeating every pixel until cells are whole numbers of sub-pixels."""
    fine = mask.double().repeat_interleave(grid_hw[0], -2).repeat_interleave(grid_hw[1], -1)
    return torch.nn.functional.avg_pool2d(fine[None], (mask.shape[-2], mask.shape[-1]))[0]


class TestHierarchical:
    def test_is_the_weighted_mean_of_the_levels(self):
        levels, masks, confidence = a_batch()
        total = weights = 0.0
        for level in range(3):
            for sample in range(3):
                x = levels[level][sample].double()
                target = brute_force_average(masks[sample, level : level + 1], tuple(x.shape))[0]
                loss = LF.focal_dice_loss(x, target, backend="eager", focal_weight=3.0, gamma=1.0)
                total += confidence[sample, level].item() * loss.item()
                weights += confidence[sample, level].item()
        options = {"focal_weight": 3.0, "gamma": 1.0}
        loss = LF.hierarchical_focal_dice_loss(levels, masks, confidence, **options)
        assert loss.item() == pytest.approx(total / weights, rel=1e-5)
        loss = LF.hierarchical_focal_dice_loss(levels, masks, confidence, normalize=False, **options)
        assert loss.item() == pytest.approx(total / 3, rel=1e-5)
        loss = LF.hierarchical_focal_dice_loss(levels, masks, confidence, reduction="sum", **options)
        assert loss.item() == pytest.approx(total, rel=1e-5)

    def test_one_tensor_is_a_list_of_levels_of_one_size(self):
        _, masks, confidence = a_batch()
        logits = torch.randn(3, 3, 7, 5)
        stacked = LF.hierarchical_focal_dice_loss(logits, masks, confidence, reduction="none")
        listed = LF.hierarchical_focal_dice_loss(list(logits.unbind(1)), masks, confidence, reduction="none")
        assert stacked.shape == (3, 3)
        torch.testing.assert_close(stacked, listed)

    def test_masks_at_the_resolution_of_the_level_are_not_averaged(self):
        masks = torch.rand(2, 1, 6, 6) > 0.5
        logits = torch.randn(2, 1, 6, 6)
        loss = LF.hierarchical_focal_dice_loss(logits, masks, torch.ones(2, 1))
        torch.testing.assert_close(loss, LF.focal_dice_loss(logits, masks))

    def test_weights_are_clamped_and_detached(self):
        levels, masks, _ = a_batch()
        confidence = torch.tensor([[1.7, -0.3, 0.5]] * 3, requires_grad=True)
        clamped = torch.tensor([[1.0, 0.0, 0.5]] * 3)
        loss = LF.hierarchical_focal_dice_loss([x.requires_grad_() for x in levels], masks, confidence)
        torch.testing.assert_close(loss, LF.hierarchical_focal_dice_loss(levels, masks, clamped))
        loss.backward()
        assert confidence.grad is None

    def test_confidence_between_samples_does_not_cancel(self):
        """Division per sample would: doubling one sample's confidence must double its share of the gradient."""
        levels, masks, _ = a_batch(2)
        shares = []
        for weight in (0.4, 0.8):
            x = levels[0].clone().requires_grad_()
            confidence = torch.tensor([[weight] * 3, [0.4] * 3])
            LF.hierarchical_focal_dice_loss([x, *levels[1:]], masks, confidence).backward()
            shares.append(x.grad[0].abs().sum() / x.grad[1].abs().sum())
        assert (shares[1] / shares[0]).item() == pytest.approx(2.0, rel=1e-4)

    @pytest.mark.parametrize("stacked", [False, True])
    @pytest.mark.parametrize("smooth", [0.0, 1.0])
    def test_an_invalid_level_is_silent(self, stacked, smooth):
        levels, masks, confidence = a_batch()
        if stacked:
            levels = [torch.randn(3, 4, 4) for _ in range(3)]
        soft = masks.float()
        valid = torch.tensor([[True, False, True], [False, False, False], [True, True, False]])
        options = {"valid": valid, "smooth": smooth}

        def evaluate(fill: float) -> tuple[Tensor, list[Tensor]]:
            xs = [torch.where(valid[:, i, None, None], x, fill).requires_grad_() for i, x in enumerate(levels)]
            given_masks = torch.where(valid[..., None, None], soft, fill)
            given_confidence = torch.where(valid, confidence, fill)
            given = torch.stack(xs, dim=1) if stacked else xs
            loss = LF.hierarchical_focal_dice_loss(given, given_masks, given_confidence, **options)
            return loss.detach(), list(torch.autograd.grad(loss, xs))

        (quiet, gradients), (loud, loud_gradients) = evaluate(0.0), evaluate(NAN)
        assert torch.isfinite(quiet)
        assert torch.equal(quiet, loud)
        for level, (one, other) in enumerate(zip(gradients, loud_gradients, strict=True)):
            assert torch.equal(one, other)
            assert (one[~valid[:, level]] == 0).all()
            assert (one[valid[:, level]] != 0).any()
        kept = LF.hierarchical_focal_dice_loss(levels, masks, confidence * valid, smooth=smooth)
        torch.testing.assert_close(quiet, kept)

    def test_valid_samples(self):
        levels, masks, confidence = a_batch()
        valid = torch.tensor([True, False, True])
        loss = LF.hierarchical_focal_dice_loss(levels, masks, confidence, valid=valid)
        expected = LF.hierarchical_focal_dice_loss([x[valid] for x in levels], masks[valid], confidence[valid])
        torch.testing.assert_close(loss, expected)

    @pytest.mark.parametrize("normalize", [True, False])
    def test_nothing_valid_gives_zero_with_a_zero_gradient(self, normalize):
        levels, masks, _ = a_batch()
        levels = [x.mul(NAN).requires_grad_() for x in levels]
        confidence = torch.full((3, 3), NAN)
        valid = torch.zeros(3, 3, dtype=torch.bool)
        loss = LF.hierarchical_focal_dice_loss(levels, masks, confidence, valid=valid, normalize=normalize)
        assert loss.item() == 0.0
        loss.backward()
        assert all((x.grad == 0).all() for x in levels)

    def test_an_empty_batch_gives_zero(self):
        levels = [torch.zeros(0, 4, 4, requires_grad=True), torch.zeros(0, 8, 8, requires_grad=True)]
        for normalize in (True, False):
            loss = LF.hierarchical_focal_dice_loss(
                levels, torch.zeros(0, 2, 16, 16, dtype=torch.bool), torch.zeros(0, 2), normalize=normalize
            )
            assert loss.item() == 0.0
            loss.backward()

    def test_nan_at_a_valid_level_is_loud(self):
        levels, masks, confidence = a_batch()
        confidence[0, 0] = NAN
        assert LF.hierarchical_focal_dice_loss(levels, masks, confidence).isnan()

    def test_the_normalizer_makes_two_halves_equal_one_batch(self):
        levels, masks, confidence = a_batch(4)
        whole = LF.hierarchical_focal_dice_loss(levels, masks, confidence)
        total = LF.level_weights(confidence).sum()
        halves = [
            LF.hierarchical_focal_dice_loss([x[half] for x in levels], masks[half], confidence[half], normalizer=total)
            for half in (slice(0, 1), slice(1, 4))
        ]
        torch.testing.assert_close(halves[0] + halves[1], whole)
        number = LF.hierarchical_focal_dice_loss(levels, masks, confidence, normalizer=total.item())
        torch.testing.assert_close(number, whole)
        assert LF.hierarchical_focal_dice_loss(levels, masks, confidence * 0, normalizer=0.0).item() == 0.0

    def test_a_normalizer_of_one_element_gives_a_scalar(self, as_at_run_time):
        levels, masks, confidence = a_batch()
        loss = LF.hierarchical_focal_dice_loss(levels, masks, confidence, normalizer=torch.tensor([3.0]))
        assert loss.shape == ()
        assert loss == LF.hierarchical_focal_dice_loss(levels, masks, confidence, normalizer=3.0)

    def test_autocast_does_not_blur_the_masks(self):
        levels, masks, confidence = a_batch()
        expected = LF.hierarchical_focal_dice_loss(levels, masks, confidence, backend="eager")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = LF.hierarchical_focal_dice_loss(levels, masks, confidence, backend="eager")
        assert loss.dtype == torch.float32
        assert torch.equal(loss, expected)

    def test_averaged_masks_stay_within_zero_and_one(self):
        # A cell's average may round to 1 + 1e-7; with γ = ½ that would be a root of a negative number.
        logits = [torch.full((1, side, side), 50.0, requires_grad=True) for side in (3, 7, 11, 13)]
        masks = torch.ones(1, 4, 37, 41, dtype=torch.bool)
        loss = LF.hierarchical_focal_dice_loss(logits, masks, torch.ones(1, 4), gamma=0.5)
        loss.backward()
        assert torch.isfinite(loss)
        assert all(torch.isfinite(x.grad).all() for x in logits)

    def test_half_precision_levels(self):
        levels, masks, confidence = a_batch()
        expected = LF.hierarchical_focal_dice_loss([x.bfloat16().float() for x in levels], masks, confidence)
        loss = LF.hierarchical_focal_dice_loss([x.bfloat16() for x in levels], masks, confidence.bfloat16().float())
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected, rtol=1e-2, atol=0)

    @pytest.mark.parametrize(("side", "soft"), [(24, False), (25, True), (25, False)])
    def test_one_graph_for_the_compiler_whatever_the_batch(self, side, soft, as_at_run_time):
        """Cells that are whole pixels, and cells that are not; more batch sizes than the compiler makes graphs."""

        def step(masks, confidence, *logits):
            return LF.hierarchical_focal_dice_loss(logits, masks, confidence)

        torch.compiler.reset()
        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        for batch in range(1, 12):
            drawn = torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(batch))
            masks, confidence = drawn if soft else drawn > 0.5, drawn[:, :, 0, 0]
            levels = [torch.linspace(-2, 2, batch * n * n).view(batch, n, n).requires_grad_() for n in (4, 8, 12)]
            results = []
            for function in (step, compiled):
                loss = function(masks, confidence, *levels)
                results.append((loss.detach(), *torch.autograd.grad(loss, levels)))
            torch.testing.assert_close(results[1], results[0])


@pytest.mark.usefixtures("as_at_run_time")
class TestHierarchicalErrors:
    def test_shapes(self):
        levels, masks, confidence = a_batch()
        loss = LF.hierarchical_focal_dice_loss
        with pytest.raises(ShapeError, match=r"masks has shape .* expected \(3, 2, H, W\) for 2 levels of 3 samples"):
            loss(levels[:2], masks, confidence[:, :2])
        with pytest.raises(ShapeError, match="confidence"):
            loss(levels, masks, confidence[:, 0])
        with pytest.raises(ShapeError, match=r"attention_logits\[1\] has a batch of 2"):
            loss([levels[0], levels[1][:2], levels[2]], masks, confidence)
        with pytest.raises(ShapeError, match=r"\(B, L, h, w\)"):
            loss(levels[0], masks, confidence)
        with pytest.raises(ShapeError, match=r"attention_logits\[0\]\.squeeze\(1\)"):
            loss([x[:, None] for x in levels], masks, confidence)
        with pytest.raises(InputError, match="a list of 0"):
            loss([], masks, confidence)
        with pytest.raises(InputError, match=r"attention_logits\[1\] is None.* Mend: .*valid="):
            loss([levels[0], None, levels[2]], masks, confidence)
        with pytest.raises(InputError, match=r"masks is a list of 3.*torch\.stack\(masks, dim=1\)"):
            loss(levels, list(masks.unbind(1)), confidence)
        with pytest.raises(ShapeError, match="valid has shape"):
            loss(levels, masks, confidence, valid=torch.ones(3, 2, dtype=torch.bool))
        with pytest.raises(InputError, match="valid"):
            loss(levels, masks, confidence, valid=torch.ones(3, 3))
        with pytest.raises(InputError, match="masks"):
            loss(levels, masks.to(torch.uint8), confidence)
        with pytest.raises(InputError, match=r"expected a tensor .*torch\.as_tensor"):
            loss(levels, masks.numpy(), confidence)
        with pytest.raises(InputError, match="confidence"):
            loss(levels, masks, confidence > 0.5)

    def test_normalizer(self):
        levels, masks, confidence = a_batch()
        loss = LF.hierarchical_focal_dice_loss
        with pytest.raises(InputError, match="normalize=False"):
            loss(levels, masks, confidence, normalizer=2.0, normalize=False)
        with pytest.raises(InputError, match="reduction='sum'"):
            loss(levels, masks, confidence, normalizer=2.0, reduction="sum")
        with pytest.raises(InputError, match="normalizer is -1"):
            loss(levels, masks, confidence, normalizer=-1.0)
        with pytest.raises(ShapeError, match="one number"):
            loss(levels, masks, confidence, normalizer=torch.ones(2))
        with pytest.raises(UnknownNameError):
            loss(levels, masks, confidence, reduction="batch")


class TestAttentionMass:
    def test_by_hand(self):
        attention = torch.tensor([[[[0.5, 0.1], [0.3, 0.1]]]])
        masks = torch.tensor([[[[True, False], [True, False]]]])
        loss = LF.attention_mass_loss(attention, masks, torch.tensor([[0.5]]), reduction="none")
        assert loss.item() == pytest.approx(-0.5 * math.log(0.8))
        loss = LF.attention_mass_loss(attention, masks, torch.tensor([[0.5]]))
        assert loss.item() == pytest.approx(-math.log(0.8))

    def test_masks_are_averaged_to_each_level(self):
        masks = torch.zeros(1, 2, 4, 4, dtype=torch.bool)
        masks[:, :, :, :3] = True
        attention = [torch.full((1, 2, 2), 0.25), torch.full((1, 3, 3), 1 / 9)]
        loss = LF.attention_mass_loss(attention, masks, torch.ones(1, 2), reduction="none")
        torch.testing.assert_close(loss, torch.full((1, 2), -math.log(0.75)))

    @pytest.mark.parametrize("side", [4, 8])
    def test_soft_masks_are_constants_in_their_range(self, side):
        attention = torch.rand(2, 1, 4, 4).flatten(1).softmax(-1).view(2, 1, 4, 4).requires_grad_()
        inside = torch.zeros(2, 1, side, side)
        inside[..., : side // 2] = 1.0
        resized = (inside * 1.1 - 0.05).requires_grad_()
        loss = LF.attention_mass_loss(attention, resized, torch.ones(2, 1))
        torch.testing.assert_close(loss, LF.attention_mass_loss(attention, inside, torch.ones(2, 1)))
        loss.backward()
        assert resized.grad is None

    def test_gradient_pulls_attention_inside(self):
        scores = torch.zeros(1, 1, 4, 4, requires_grad=True)
        masks = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
        masks[..., :2] = True
        attention = scores.flatten(2).softmax(-1).view_as(scores)
        LF.attention_mass_loss(attention, masks, torch.ones(1, 1)).backward()
        assert (scores.grad[masks] < 0).all()
        assert (scores.grad[~masks] > 0).all()

    @settings(deadline=None, max_examples=20)
    @given(seed=st.integers(0, 1000))
    def test_invalid_and_empty_levels_are_silent(self, seed):
        generator = torch.Generator().manual_seed(seed)
        attention = torch.rand(4, 3, 5, 5, generator=generator).flatten(2).softmax(-1).view(4, 3, 5, 5)
        masks = (torch.rand(4, 3, 9, 9, generator=generator) > 0.5).float()
        confidence = torch.rand(4, 3, generator=generator)
        valid = torch.rand(4, 3, generator=generator) > 0.3
        masks[0, 0] = 0.0
        expected = LF.attention_mass_loss(attention, masks, confidence, valid=valid, reduction="none")
        assert (expected[~valid] == 0).all()
        assert expected[0, 0] == 0
        silent = ~valid[..., None, None]
        x = attention.masked_fill(silent, NAN).requires_grad_()
        loss = LF.attention_mass_loss(
            x,
            masks.masked_fill(silent, NAN),
            confidence.masked_fill(~valid, NAN),
            valid=valid,
            reduction="none",
        )
        assert torch.equal(loss, expected)
        loss.sum().backward()
        assert torch.isfinite(x.grad).all()
        assert (x.grad[~valid] == 0).all()

    def test_the_weight_of_an_empty_level_is_not_counted(self):
        attention = torch.full((1, 2, 2, 2), 0.25)
        masks = torch.zeros(1, 2, 2, 2, dtype=torch.bool)
        masks[0, 0, 0] = True
        loss = LF.attention_mass_loss(attention, masks, torch.ones(1, 2))
        assert loss.item() == pytest.approx(math.log(2))

    def test_logits_and_maps_that_are_no_distribution_are_refused(self, monkeypatch):
        monkeypatch.setattr(arguments._Looks, "attention_left", 2)
        logits, masks = torch.linspace(-3.0, 3.0, 32).view(2, 1, 4, 4), torch.ones(2, 1, 4, 4, dtype=torch.bool)
        ones = torch.ones(2, 1)
        attention = logits.flatten(2).softmax(-1).view_as(logits)
        for wrong in (logits, logits.sigmoid()):
            with pytest.raises(InputError, match=r"attention\[0\] has cells down to .*softmax"):
                LF.attention_mass_loss(wrong, masks, ones)
        # what does not count may hold anything
        wrong = torch.cat([attention[:1], logits[1:]])
        LF.attention_mass_loss(wrong, masks, torch.tensor([[1.0], [0.0]]))
        LF.attention_mass_loss(wrong, masks, ones, valid=torch.tensor([True, False]))
        assert not arguments._Looks.attention_left
        LF.attention_mass_loss(logits, masks, ones)  # nobody looks any more

    def test_no_mass_is_finite(self):
        attention = torch.tensor([[[[0.0, 1.0]]]], requires_grad=True)
        loss = LF.attention_mass_loss(attention, torch.tensor([[[[True, False]]]]), torch.ones(1, 1))
        assert loss.item() == pytest.approx(87.3365, rel=1e-4)
        loss.backward()
        assert (attention.grad == 0).all()

    def test_gradcheck(self):
        attention = torch.rand(2, 2, 3, 3, dtype=torch.float64).softmax(-1).requires_grad_()
        masks = torch.rand(2, 2, 6, 6) > 0.4
        assert torch.autograd.gradcheck(
            lambda a: LF.attention_mass_loss(a, masks, torch.tensor([[0.5, 1.0], [0.2, 0.9]])), attention
        )


class TestLevelWeights:
    def test_values(self):
        confidence = torch.tensor([[1.2, 0.5, -1.0], [NAN, 0.25, NAN]])
        weights = LF.level_weights(confidence, torch.tensor([[True, True, True], [False, True, False]]))
        assert weights.tolist() == [[1.0, 0.5, 0.0], [0.0, 0.25, 0.0]]
        assert LF.level_weights(torch.ones(2, 3), torch.tensor([True, False])).tolist() == [[1.0] * 3, [0.0] * 3]
        assert LF.level_weights(torch.ones(1, 3, dtype=torch.float16)).dtype == torch.float32
