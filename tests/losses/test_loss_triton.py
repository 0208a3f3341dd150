"""The Triton kernels, on a GPU (``-m gpu``) or in Triton's interpreter (see ``test_loss_triton_interpreted.py``)."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_reference import ALPHAS, GAMMAS, assert_close_to_float64, cases
from torch import Tensor

from arrcoc_sam.errors import InputError, TrainingError
from arrcoc_sam.losses import functional as LF

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not (INTERPRETED or torch.cuda.is_available()), reason="needs CUDA or TRITON_INTERPRET=1"),
]
needs_gpu = pytest.mark.skipif(INTERPRETED, reason="needs a GPU")


def evaluate(logits: Tensor, targets: Tensor, **options) -> tuple[Tensor, Tensor]:
    x = logits.detach().requires_grad_()
    value = LF.focal_dice_loss(x, targets, reduction="none", **options)
    return value.detach(), torch.autograd.grad(value.sum(), x)[0]


def some_masks(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(shape, generator=generator) * 4, torch.rand(shape, generator=generator) > 0.5
    return logits.to(DEVICE), targets.to(DEVICE)


@settings(deadline=None, max_examples=20 if INTERPRETED else 150)
@given(case=cases(), gamma=st.sampled_from([*GAMMAS, 0.3, 1.5, 1.7]), alpha=st.sampled_from(ALPHAS))
def test_close_to_float64(case, gamma, alpha):
    logits, targets = (tensor.to(DEVICE) for tensor in case)
    fast = evaluate(logits, targets, gamma=gamma, alpha=alpha, backend="triton")
    exact = evaluate(logits.double(), targets, gamma=gamma, alpha=alpha, backend="eager")
    assert_close_to_float64(*fast, *exact)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("soft", [False, True])
def test_half_precision(dtype, soft):
    logits, targets = some_masks(2, 3, 31, 17)
    if soft:
        targets = (torch.rand(targets.shape, device=DEVICE) * targets).to(dtype)
    logits = logits.to(dtype)
    value, gradient = evaluate(logits, targets, backend="triton")
    exact, exact_gradient = evaluate(logits.double(), targets, backend="eager")
    assert value.dtype == torch.float32
    assert gradient.dtype == dtype
    torch.testing.assert_close(value.double(), exact, rtol=5e-6, atol=0)
    largest = exact_gradient.abs().amax(dim=(-2, -1), keepdim=True)
    assert ((gradient.double() - exact_gradient).abs() <= 2 * torch.finfo(dtype).eps * largest).all()


def test_soft_targets_beside_their_range_are_clamped():
    logits, mask = some_masks(2, 3, 31, 17)
    ours, expected = (evaluate(logits, each, backend="triton") for each in (mask * 1.1 - 0.05, mask.float()))
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)
    assert evaluate(logits, mask * torch.nan, backend="triton")[0].isnan().all()


def test_the_largest_logits_and_nan():
    largest = torch.finfo(torch.float32).max
    logits, targets = torch.tensor([[[largest, -largest]]], device=DEVICE), torch.tensor([[[1.0, 0.0]]], device=DEVICE)
    value, gradient = evaluate(logits, targets, backend="triton")
    assert value == 0
    assert (gradient == 0).all()
    assert evaluate(logits * torch.nan, targets, backend="triton")[0].isnan()


@pytest.mark.parametrize("side", [190, 256])  # 36,100 and 65,536 pixels; a stretch has 32,768, a block 2,048
def test_several_stretches_of_a_mask(side):
    logits, targets = some_masks(1, 2, side, side)
    assert_close_to_float64(
        *evaluate(logits, targets, backend="triton"), *evaluate(logits.double(), targets, backend="eager")
    )


def test_masks_that_share_a_target_and_logits_with_strides():
    logits, targets = some_masks(3, 4, 9, 8)
    some = logits[:, 1:]
    shared = targets[:, :1].expand_as(some)
    fast = evaluate(some, shared, backend="triton")
    exact = evaluate(some.double(), shared.contiguous(), backend="eager")
    assert_close_to_float64(*fast, *exact)


def test_invalid_masks_are_silent():
    logits = [torch.randn(2, 6, 6, device=DEVICE), torch.randn(2, 9, 9, device=DEVICE)]
    masks = torch.rand(2, 2, 18, 18, device=DEVICE) > 0.5
    valid = torch.tensor([[True, False], [True, True]], device=DEVICE)
    logits[1][0] = float("nan")
    results = []
    for backend in ("eager", "triton"):
        xs = [x.clone().requires_grad_() for x in logits]
        loss = LF.hierarchical_focal_dice_loss(xs, masks, torch.ones(2, 2, device=DEVICE), valid=valid, backend=backend)
        results.append([loss.detach(), *torch.autograd.grad(loss, xs)])
    assert (results[1][2][0] == 0).all()
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # opcheck's own
def test_opcheck():
    logits, targets = some_masks(3, 2, 10)
    valid = torch.tensor([[True, False]] * 3, device=DEVICE)
    operators = torch.ops.arrcoc_sam
    soft = torch.rand(3, 1, 10, device=DEVICE)
    torch.library.opcheck(
        operators.mask_sums_triton.default, (logits.requires_grad_(), targets.to(torch.uint8), valid, 0.25, 2.0)
    )
    torch.library.opcheck(operators.mask_sums_triton.default, (logits.detach(), soft, None, None, 0.5))
    grads = torch.rand(4, 3, 2, device=DEVICE)
    torch.library.opcheck(operators.mask_sums_triton_backward.default, (grads, logits.detach(), soft, valid, None, 2.0))


def test_float64_and_second_derivatives_are_refused():
    logits, targets = some_masks(2, 3, 4)
    with pytest.raises(InputError, match="float64"):
        LF.focal_dice_loss(logits.double(), targets, backend="triton")
    x = logits.requires_grad_()
    (gradient,) = torch.autograd.grad(LF.focal_dice_loss(x, targets, backend="triton"), x, create_graph=True)
    with pytest.raises(TrainingError, match="no second derivative"):
        gradient.sum().backward()


@needs_gpu
class TestOnTheGPU:
    def test_auto_is_triton(self):
        from arrcoc_sam.losses.fused import choose_backend

        assert choose_backend(torch.zeros(2, 2, device="cuda"), "auto") == "triton"
        assert choose_backend(torch.zeros(2, 2, device="cuda", dtype=torch.float64), "auto") == "eager"

    def test_more_elements_than_32_bits_count(self):
        if torch.cuda.get_device_properties(0).total_memory < 40 * 2**30:
            pytest.skip("needs 40 GB")
        logits = torch.full((2049, 1, 1024, 1024), 2.0, device="cuda", dtype=torch.float16, requires_grad=True)
        targets = torch.ones(1, 1, 1, 1, device="cuda", dtype=torch.bool).expand(logits.shape)
        value = LF.focal_dice_loss(logits, targets, reduction="none", backend="triton")
        value.sum().backward()
        assert (value == value[0]).all()
        assert (logits.grad[-1] == logits.grad[0]).all()

    def test_is_deterministic(self):
        logits, targets = some_masks(4, 3, 700, 701)
        first, second = (evaluate(logits, targets, backend="triton") for _ in range(2))
        assert torch.equal(first[0], second[0])
        assert torch.equal(first[1], second[1])

    def test_peak_memory_is_the_gradient(self):
        logits, targets = some_masks(4, 3, 1024, 1024)
        logits.requires_grad_()
        LF.focal_dice_loss(logits, targets, backend="triton").backward()
        logits.grad = None
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        LF.focal_dice_loss(logits, targets, backend="triton").backward()
        peak = torch.cuda.max_memory_allocated() - before
        assert peak <= 1.1 * logits.numel() * logits.element_size()

    @pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch 2.11's own
    def test_torch_compile_and_autocast(self, as_at_run_time):
        layer = torch.nn.Linear(16, 16, device="cuda")
        inputs, targets = some_masks(2, 3, 16, 16)

        def step(x: Tensor) -> Tensor:
            with torch.autocast("cuda", dtype=torch.bfloat16):
                return LF.focal_dice_loss(layer(x), targets, backend="triton")

        torch.testing.assert_close(torch.compile(step, fullgraph=True)(inputs), step(inputs), rtol=2e-2, atol=0)
