"""The compiled backend, the choice of a backend, and the company that the fused operators keep."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_reference import ALPHAS, assert_close_to_float64, cases
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from arrcoc_sam.errors import InputError, TrainingError
from arrcoc_sam.losses import compiled, fused
from arrcoc_sam.losses import functional as LF
from arrcoc_sam.losses.arguments import Backend

needs_compiler = pytest.mark.skipif(not fused.has_cpp_compiler(), reason="needs a C++ compiler")
LARGE = (3, 3, 180, 180)  # more than MIN_COMPILED_ELEMENTS


def evaluate(logits: Tensor, targets: Tensor, **options) -> tuple[Tensor, Tensor]:
    x = logits.detach().requires_grad_()
    value = LF.focal_dice_loss(x, targets, reduction="none", **options)
    return value.detach(), torch.autograd.grad(value.sum(), x)[0]


def some_masks(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * 4, torch.rand(shape, generator=generator) > 0.5


@needs_compiler
class TestCompiled:
    """Numbers of the generated kernels. Each pair of dtypes and power of q is a kernel: there are few of them here."""

    @settings(deadline=None, max_examples=60)
    @given(case=cases(soft=False), gamma=st.sampled_from([0.0, 2.0]), alpha=st.sampled_from(ALPHAS))
    def test_hard_targets_close_to_float64(self, case, gamma, alpha):
        logits, targets = case
        targets = targets.bool()
        fast = evaluate(logits, targets, gamma=gamma, alpha=alpha, backend="compiled")
        exact = evaluate(logits.double(), targets, gamma=gamma, alpha=alpha, backend="eager")
        assert_close_to_float64(*fast, *exact)

    @settings(deadline=None, max_examples=60)
    @given(case=cases(soft=True), gamma=st.sampled_from([0.5, 1.0, 2.0, 5.0]), alpha=st.sampled_from(ALPHAS))
    def test_soft_targets_close_to_float64(self, case, gamma, alpha):
        logits, targets = case
        fast = evaluate(logits, targets, gamma=gamma, alpha=alpha, backend="compiled")
        exact = evaluate(logits.double(), targets, gamma=gamma, alpha=alpha, backend="eager")
        assert_close_to_float64(*fast, *exact)

    def test_many_pixels_keep_their_digits(self):
        logits, targets = some_masks(1, 3, 1024, 1024)
        logits = logits.abs() * (2.0 * targets - 1.0)  # right everywhere: small terms in long sums
        assert_close_to_float64(
            *evaluate(logits, targets, backend="compiled"), *evaluate(logits.double(), targets, backend="eager")
        )

    def test_integer_targets_are_bool_targets(self):
        logits, targets = some_masks(2, 3, 9, 9)
        expected = evaluate(logits, targets, backend="compiled")
        for dtype in (torch.uint8, torch.int64):
            value, gradient = evaluate(logits, targets.to(dtype), backend="compiled")
            assert torch.equal(value, expected[0])
            assert torch.equal(gradient, expected[1])

    def test_half_precision(self):
        logits, targets = some_masks(2, 3, 31, 17)
        half = logits.bfloat16()
        value, gradient = evaluate(half, targets, backend="compiled")
        exact, exact_gradient = evaluate(half.double(), targets, backend="eager")
        assert value.dtype == torch.float32
        assert gradient.dtype == torch.bfloat16
        torch.testing.assert_close(value.double(), exact, rtol=5e-6, atol=0)
        torch.testing.assert_close(gradient.double(), exact_gradient, rtol=2**-8, atol=1e-9)

    def test_gradcheck(self):
        logits, targets = some_masks(2, 2, 3, 4)
        assert torch.autograd.gradcheck(
            lambda x: LF.focal_dice_loss(x, targets, backend="compiled", reduction="none"),
            logits.double().requires_grad_(),
        )

    def test_a_target_that_masks_share_is_not_copied(self):
        logits, targets = some_masks(3, 4, 12, 12)
        shared = targets[:, :1]
        value, gradient = evaluate(logits, shared.expand_as(logits), backend="compiled")
        expected = evaluate(logits, shared.expand_as(logits).contiguous(), backend="compiled")
        torch.testing.assert_close(value, expected[0])
        torch.testing.assert_close(gradient, expected[1])

        x = logits.requires_grad_()
        with saved_sizes() as sizes:
            LF.min_over_masks_loss(x, targets[:, 0], backend="compiled")
        assert max(sizes) == x.numel()
        assert shared.numel() in sizes

    def test_the_forward_pass_keeps_its_inputs_and_a_few_numbers_a_mask(self):
        logits, targets = some_masks(2, 3, 40, 40)
        kept: list[Tensor] = []

        def pack(tensor: Tensor) -> Tensor:
            kept.append(tensor)
            return tensor

        x = logits.requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            LF.focal_dice_loss(x, targets, backend="compiled")
        inputs = {x.data_ptr(), targets.data_ptr()}
        assert {tensor.data_ptr() for tensor in kept} >= inputs
        assert all(tensor.data_ptr() in inputs or tensor.numel() <= 6 for tensor in kept)

    def test_shapes_do_not_recompile(self, as_at_run_time):
        torch._dynamo.utils.counters.clear()
        sizes = [(2, 3, 20, 21), (1, 4, 33, 5), (7, 8, 8), (5, 1, 64, 64), (2, 2, 2, 3, 130), (3, 1, 2)]
        graphs = []
        for seed, shape in enumerate(sizes):
            for alpha in (None, 0.25, 0.7):
                evaluate(*some_masks(*shape, seed=seed), alpha=alpha, backend="compiled")
            graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        assert graphs[-1] == graphs[0]

    def test_invalid_masks_are_silent(self):
        logits = [torch.randn(2, 6, 6), torch.randn(2, 9, 9)]
        masks, valid = torch.rand(2, 2, 18, 18) > 0.5, torch.tensor([[True, False], [True, True]])
        logits[1][0] = float("nan")
        results = []
        for backend in ("eager", "compiled"):
            xs = [x.clone().requires_grad_() for x in logits]
            loss = LF.hierarchical_focal_dice_loss(xs, masks, torch.ones(2, 2), valid=valid, backend=backend)
            results.append([loss.detach(), *torch.autograd.grad(loss, xs)])
        assert (results[1][2][0] == 0).all()
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other)

    def test_a_kernel_that_does_not_compile_is_run_as_it_is(self, monkeypatch):
        def refuse(*_, **__):
            def call(*_):
                raise torch._dynamo.exc.TorchDynamoException("no compiler\nand a long trace")

            return call

        monkeypatch.setattr(torch, "compile", refuse)
        logits, targets = some_masks(4, 1, 6 * 7)
        kernel = compiled._kernel.__wrapped__("sums", torch.float32, torch.uint8, False, "two")
        numbers = (torch.tensor(0.75), torch.tensor(-0.5), torch.tensor(2.0))
        with pytest.warns(UserWarning, match="runs slower: no compiler"):
            sums = kernel(logits, targets.to(torch.uint8), None, *numbers)
        expected = fused.mask_sums(logits, targets, alpha=0.25, gamma=2.0)
        torch.testing.assert_close(tuple(sums), tuple(expected))
        kernel(logits, targets.to(torch.uint8), None, *numbers)  # warns once


class saved_sizes:
    """Numbers of elements of the tensors that autograd saves."""

    def __enter__(self) -> list[int]:
        self.sizes: list[int] = []

        def pack(tensor: Tensor) -> Tensor:
            self.sizes.append(tensor.numel())
            return tensor

        self.hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        self.hooks.__enter__()
        return self.sizes

    def __exit__(self, *_: object) -> None:
        self.hooks.__exit__()


class TestChoice:
    def test_auto_on_the_cpu(self, monkeypatch):
        small, large = torch.zeros(2, 8, 8), torch.zeros(LARGE)
        monkeypatch.setattr(fused, "has_cpp_compiler", lambda: True)
        assert fused.choose_backend(small, "auto") == "eager"
        assert fused.choose_backend(large, "auto") == "compiled"
        monkeypatch.setattr(fused, "has_cpp_compiler", lambda: False)
        assert fused.choose_backend(large, "auto") == "eager"

    def test_auto_inside_torch_compile_is_eager(self, monkeypatch):
        monkeypatch.setattr(fused, "has_cpp_compiler", lambda: True)
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert fused.choose_backend(torch.zeros(LARGE), "auto") == "eager"
        assert fused.choose_backend(torch.zeros(LARGE), "compiled") == "compiled"

    @pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, of forward mode
    @pytest.mark.parametrize("transform", ["grad", "vmap of grad", "jvp", "forward mode"])
    def test_transforms_are_eager_or_refused(self, transform, monkeypatch):
        monkeypatch.setattr(fused, "has_cpp_compiler", lambda: True)
        monkeypatch.setattr(fused, "MIN_COMPILED_ELEMENTS", 1)
        logits, targets = some_masks(2, 3, 4)

        def derivative(backend: Backend) -> Tensor:
            def loss(x: Tensor, t: Tensor = targets) -> Tensor:
                return LF.focal_dice_loss(x, t, reduction="sum", backend=backend)

            if transform == "grad":
                return torch.func.grad(loss)(logits)
            if transform == "vmap of grad":
                return torch.vmap(torch.func.grad(loss))(logits, targets)
            if transform == "jvp":
                return torch.func.jvp(loss, (logits,), (torch.ones_like(logits),))[1]
            with forward_ad.dual_level():
                dual = forward_ad.make_dual(logits, torch.ones_like(logits))
                return forward_ad.unpack_dual(loss(dual)).tangent

        _, expected = evaluate(logits, targets, backend="eager")
        if transform in ("jvp", "forward mode"):
            expected = expected.sum()
        torch.testing.assert_close(derivative("auto"), expected)
        with pytest.raises(InputError, match=r"transform of torch\.func.*backend='auto' or 'eager'"):
            derivative("compiled")

    def test_auto_elsewhere(self):
        assert fused.choose_backend(torch.zeros(LARGE, device="meta"), "auto") == "eager"

    def test_compiled_without_a_compiler(self, monkeypatch):
        monkeypatch.setattr(fused, "has_cpp_compiler", lambda: False)
        with pytest.raises(InputError, match="CXX"):
            LF.focal_dice_loss(torch.zeros(2, 2), torch.zeros(2, 2), backend="compiled")

    def test_triton_on_the_cpu(self, monkeypatch):
        pytest.importorskip("triton")
        monkeypatch.setattr(fused, "_INTERPRETED", False)
        with pytest.raises(InputError, match="on cpu; expected a CUDA device"):
            LF.focal_dice_loss(torch.zeros(2, 2), torch.zeros(2, 2), backend="triton")

    def test_the_compiler_that_inductor_would_call(self):
        from torch._inductor import config

        for named, found in (((None, "/nowhere/c++"), False), ((None, sys.executable), True)):
            with config.patch({"cpp.cxx": named}):
                assert fused.has_cpp_compiler.__wrapped__() is found

    def test_importing_the_losses_imports_no_compiler(self):
        code = (
            "import sys, arrcoc_sam.losses as losses, torch\n"
            "losses.functional.focal_dice_loss(torch.zeros(2, 8, 8), torch.zeros(2, 8, 8))\n"
            "print([name for name in ('torch._inductor.compile_fx', 'triton', 'torch._dynamo.convert_frame')"
            " if name in sys.modules])"
        )
        loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert loaded.stdout.strip() == "[]"


@needs_compiler
class TestOperators:
    @pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # opcheck's own
    def test_opcheck(self):
        logits, targets = some_masks(3, 2, 10)
        valid, soft = torch.tensor([[True, False]] * 3), torch.rand(3, 1, 10)
        forward = torch.ops.arrcoc_sam.mask_sums_compiled.default
        backward = torch.ops.arrcoc_sam.mask_sums_compiled_backward.default
        torch.library.opcheck(forward, (logits.requires_grad_(), targets.to(torch.uint8), None, 0.25, 2.0))
        torch.library.opcheck(forward, (logits.detach(), soft, valid, None, 0.5))
        torch.library.opcheck(backward, (torch.rand(4, 3, 2), logits.detach(), soft, valid, None, 0.5))

    def test_second_derivatives_are_refused(self):
        logits, targets = some_masks(2, 3, 4)
        x = logits.requires_grad_()
        loss = LF.focal_dice_loss(x, targets, backend="compiled")
        (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
        with pytest.raises(TrainingError, match=r"no second derivative.*backend='eager'"):
            gradient.square().sum().backward()

    @pytest.mark.parametrize("soft", [False, True])
    def test_whoever_traces_sees_the_operators(self, soft):
        from torch.fx.experimental.proxy_tensor import make_fx

        logits, targets = some_masks(2, 3, 4)
        targets = torch.rand_like(logits) if soft else targets.bool()

        def loss(x: Tensor) -> Tensor:
            return LF.focal_dice_loss(x, targets, backend="compiled")

        traced = make_fx(loss, tracing_mode="fake", _allow_non_fake_inputs=True)(logits)
        called = [node.target for node in traced.graph.nodes if node.op == "call_function"]
        assert torch.ops.arrcoc_sam.mask_sums_compiled.default in called
        torch.testing.assert_close(traced(logits), loss(logits))

    def test_the_operators_and_what_runs_without_them_agree(self, monkeypatch):
        logits, targets = some_masks(2, 3, 4)
        results = []
        for traced in (False, True):
            monkeypatch.setattr(fused, "_is_traced", lambda *_, traced=traced: traced)
            x = logits.clone().requires_grad_()
            loss = LF.focal_dice_loss(x, targets, backend="compiled")
            results.append((loss.detach(), *torch.autograd.grad(loss, x)))
        torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)

    def test_inference_mode(self):
        logits, targets = some_masks(2, 3, 4)
        with torch.inference_mode():
            loss = LF.focal_dice_loss(logits, targets, backend="compiled")
        torch.testing.assert_close(loss.item(), LF.focal_dice_loss(logits, targets, backend="eager").item())


BACKENDS = ["eager", pytest.param("compiled", marks=needs_compiler)]


@pytest.mark.parametrize("backend", BACKENDS)
class TestCompany:
    """The losses inside what training puts around them."""

    def test_torch_compile_of_a_function_that_calls_ours(self, backend, as_at_run_time):
        if not fused.has_cpp_compiler():
            pytest.skip("needs a C++ compiler")
        scale = torch.tensor(2.0)

        def step(logits: Tensor, targets: Tensor) -> Tensor:
            return LF.focal_dice_loss(logits * scale, targets, backend=backend) * 3

        faster = torch.compile(step, fullgraph=True, dynamic=True)
        for shape in ((2, 3, 8, 9), (4, 2, 16, 7)):
            logits, targets = some_masks(*shape)
            results = []
            for function in (step, faster):
                x = logits.clone().requires_grad_()
                loss = function(x, targets)
                results.append((loss.detach(), torch.autograd.grad(loss, x)[0]))
            torch.testing.assert_close(results[0], results[1])

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int64])
    def test_integers_are_the_mask_where_they_are_not_0(self, backend, dtype):
        logits, mask = some_masks(2, 8, 8)
        values = [1, 255, 128] if dtype == torch.uint8 else [1, -1, 127]
        values += [256, -256] if dtype.itemsize > 1 else []
        targets = mask * torch.tensor(values, dtype=dtype)[torch.arange(64) % len(values)].view(8, 8)
        ours, expected = (evaluate(logits, each, backend=backend) for each in (targets, mask))
        torch.testing.assert_close(ours, expected, rtol=0, atol=0)
        several = logits[:, None].expand(-1, 3, -1, -1)
        shared = targets[:, None].expand(several.shape)
        ours = LF.focal_dice_loss(several, shared, reduction="none", backend=backend)
        torch.testing.assert_close(ours, expected[0][:, None].expand(-1, 3), rtol=1e-6, atol=0)
        plain = LF.dice_loss(logits, targets), LF.sigmoid_focal_loss(logits, targets)
        assert plain == (LF.dice_loss(logits, mask), LF.sigmoid_focal_loss(logits, mask))
        predicted = torch.full((2, 1), 0.5)
        assert LF.iou_prediction_loss(predicted, logits[:, None], targets) == LF.iou_prediction_loss(
            predicted, logits[:, None], mask
        )

    def test_soft_targets_beside_their_range_are_clamped(self, backend):
        logits, mask = some_masks(2, 3, 8, 8)
        resized = mask * 1.1 - 0.05
        ours, expected = (evaluate(logits, each, backend=backend) for each in (resized, mask.float()))
        torch.testing.assert_close(ours, expected, rtol=0, atol=0)
        plain = LF.dice_loss(logits, resized), LF.sigmoid_focal_loss(logits, resized)
        assert plain == (LF.dice_loss(logits, mask), LF.sigmoid_focal_loss(logits, mask))

    def test_autocast(self, backend):
        layer = torch.nn.Linear(8, 8, bias=False)
        inputs, targets = some_masks(2, 3, 8, 8)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = layer(inputs)
            loss = LF.focal_dice_loss(logits, targets, backend=backend)
        assert logits.dtype == torch.bfloat16
        assert loss.dtype == torch.float32
        loss.backward()
        exact = LF.focal_dice_loss(logits.detach().double(), targets, backend="eager")
        assert loss.item() == pytest.approx(exact.item(), rel=5e-6)
        assert torch.isfinite(layer.weight.grad).all()

    @pytest.mark.parametrize("reentrant", [False, True])
    def test_gradient_checkpointing(self, backend, reentrant):
        logits, targets = some_masks(2, 3, 8, 8)
        layer = torch.nn.Linear(8, 8, bias=False)

        def step(inputs: Tensor) -> Tensor:
            return LF.focal_dice_loss(layer(inputs), targets, backend=backend)

        gradients = []
        for loss in (step(logits), checkpoint(step, logits.requires_grad_(), use_reentrant=reentrant)):
            layer.zero_grad()
            loss.backward()
            gradients.append(layer.weight.grad.clone())
        torch.testing.assert_close(gradients[0], gradients[1])


DDP_SCRIPT = """
import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from arrcoc_sam.losses import HierarchicalAttentionLoss
from arrcoc_sam.losses import functional as LF


def batch():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(4, 3, 6, 6, generator=generator)
    masks = torch.rand(4, 3, 18, 18, generator=generator) > 0.5
    confidence = torch.rand(4, 3, generator=generator)
    valid = torch.tensor([[True, True, False], [True, False, False], [True, True, True], [False, True, True]])
    return features, masks, confidence, valid


def model():
    torch.manual_seed(1)
    return torch.nn.Conv2d(3, 3, 1)


rank, store, backend = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
wrapped = DistributedDataParallel(model())
part = slice(0, 1) if rank == 0 else slice(1, 4)
features, masks, confidence, valid = (tensor[part] for tensor in batch())
total = LF.level_weights(confidence, valid).sum()
dist.all_reduce(total)
criterion = HierarchicalAttentionLoss(backend=backend)
criterion(wrapped(features), masks, confidence, valid=valid, normalizer=total / 2).backward()
single = model()
features, masks, confidence, valid = batch()
criterion(single(features), masks, confidence, valid=valid).backward()
torch.testing.assert_close(wrapped.module.weight.grad, single.weight.grad)
dist.destroy_process_group()
"""


@pytest.mark.parametrize("backend", ["eager", pytest.param("compiled", marks=[needs_compiler, pytest.mark.slow])])
def test_two_processes_equal_one(backend, tmp_path: Path):
    """DDP averages gradients: with the all-reduced normalizer over the number of processes, the mean is the batch's."""
    script = tmp_path / "two.py"
    script.write_text(DDP_SCRIPT)
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(tmp_path / "store"), backend],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=220)
        assert process.returncode == 0, errors
