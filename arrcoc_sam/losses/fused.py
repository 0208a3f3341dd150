"""Which code evaluates the sums of each mask, and the fused kernels as operators that PyTorch knows.

- ``"eager"``: :func:`arrcoc_sam.losses.sums.mask_sums`, the specification. Differentiable as often as one likes.
- ``"compiled"``: two kernels that TorchInductor generates (:mod:`arrcoc_sam.losses.compiled`), one pass forward and one
  backward. The first call with a new pair of dtypes compiles for some seconds; PyTorch caches the result on disk.
- ``"triton"``: two Triton kernels for CUDA (:mod:`arrcoc_sam.losses.triton_kernels`).
- ``"auto"``: Triton for CUDA tensors of at most 32 bits; compiled on the CPU from ``MIN_COMPILED_ELEMENTS`` logits on,
  when a C++ compiler is there and no ``torch.compile`` is tracing the call; else eager. Under the transforms of
  ``torch.func`` (``grad``, ``vmap``, ``jvp`` …) and for logits with a forward-mode tangent always eager.

The choice depends on shapes, dtypes, transforms and the machine, never on what was called before: a run that is resumed
adds up its numbers in the same order.

The fused kernels are ``torch.library`` operators with fake kernels, so they work inside ``torch.compile``, under
autocast, DDP and gradient checkpointing; where nothing traces the call they are run without the operators, whose
dispatch takes longer than the kernels do on small masks. They keep nothing but their inputs for the backward pass. They
have no second derivative, also where ``"auto"`` chose them: code that differentiates twice by ``torch.autograd`` passes
``"eager"``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from typing import Any, Final

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.autograd import forward_ad

from arrcoc_sam.errors import InputError, MissingExtraError, TrainingError, explain
from arrcoc_sam.losses.arguments import Backend
from arrcoc_sam.losses.compiled import mask_sums_compiled, mask_sums_compiled_backward
from arrcoc_sam.losses.sums import MaskSums, accumulation_dtype, mask_sums

__all__ = ["MIN_COMPILED_ELEMENTS", "choose_backend", "per_mask_sums"]

MIN_COMPILED_ELEMENTS: Final = 1 << 18
"""Logits from which ``"auto"`` compiles on the CPU: there a call of the eager code takes 10 ms, of the kernels 2 ms."""

_TRITON_DTYPES: Final = (torch.float32, torch.bfloat16, torch.float16)
# Looked up once, at import: Dynamo can't trace the look-up.
_HAS_TRITON: Final = find_spec("triton") is not None
_INTERPRETED: Final = os.environ.get("TRITON_INTERPRET") == "1"
# Forward and backward, by the name of the operator.
_KERNELS: Final[dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]]] = {}


def per_mask_sums(
    logits: Float[Tensor, "*N H W"],
    targets: Shaped[Tensor, "*N H W"],
    valid: Bool[Tensor, "*N"] | None,
    *,
    alpha: float | None,
    gamma: float,
    backend: Backend,
) -> MaskSums:
    """The sums of each mask by the backend that ``backend`` names.

    Args:
        logits: (…, H, W), any strides; copied where H and W can't be viewed as one axis.
        targets: (…, H, W) bool, integers, of which all but 0 are 1, or floats, clamped to [0, 1]. An axis before H
            that is expanded (stride 0) is not copied.
        valid: Masks that count; the sums of the others are 0 with zero gradient, whatever their logits (NaN too).
        alpha: Weight of the foreground in the focal sum; None for none.
        gamma: Focusing exponent.
        backend: One of the names above.

    Returns:
        The sums, each (…).

    Raises:
        InputError: The backend can't run these tensors here.
        MissingExtraError: Triton is not installed.
    """
    chosen = choose_backend(logits, backend)
    lead = logits.shape[:-2]
    if chosen == "eager" or logits.numel() == 0:
        return mask_sums(logits.flatten(-2), targets.flatten(-2), valid, alpha=alpha, gamma=gamma)
    name = f"mask_sums_{chosen}"
    run = getattr(torch.ops.arrcoc_sam, name) if _is_traced(logits, targets) else partial(_Untraced.apply, name)
    sums = run(*_as_groups(logits, targets, valid), alpha, float(gamma))
    return MaskSums(*sums.reshape(4, *lead).unbind(0))


def choose_backend(logits: Tensor, backend: Backend) -> Backend:
    """The backend that will run, or the error that says why the one that was asked for can't."""
    if backend == "eager":
        return "eager"
    if _is_transformed(logits):
        if backend == "auto":
            return "eager"
        came = f"backend is {backend!r} inside a transform of torch.func or forward-mode differentiation"
        raise InputError(explain(came, mend="pass backend='auto' or 'eager'"))
    on_gpu = logits.device.type == "cuda"
    if backend == "triton":
        if not _HAS_TRITON:
            mend = "install triton, or pass backend='auto'"
            raise MissingExtraError(explain("backend is 'triton', which is not installed", mend=mend))
        if not (on_gpu or _INTERPRETED):
            mend = "move the tensors to a GPU, or pass backend='auto'"
            raise InputError(explain(f"backend is 'triton' and logits is on {logits.device}", "a CUDA device", mend))
        if logits.dtype not in _TRITON_DTYPES:
            mend = "pass backend='eager'"
            raise InputError(
                explain(f"backend is 'triton' and logits is {logits.dtype}", "float32, bfloat16 or float16", mend)
            )
        return "triton"
    if backend == "compiled":
        if not on_gpu and not torch.compiler.is_compiling() and not has_cpp_compiler():
            mend = "install a C++ compiler or point the environment variable CXX to one, or pass backend='auto'"
            raise InputError(explain("backend is 'compiled' and no C++ compiler was found", mend=mend))
        return "compiled"
    if on_gpu:
        return "triton" if logits.dtype in _TRITON_DTYPES and _HAS_TRITON else "eager"
    if torch.compiler.is_compiling() or logits.device.type != "cpu":
        return "eager"
    return "compiled" if logits.numel() >= MIN_COMPILED_ELEMENTS and has_cpp_compiler() else "eager"


def _is_transformed(logits: Tensor) -> bool:
    """Whether functorch or forward-mode differentiation is at work: the fused operators would drop its tangents."""
    if torch._C._are_functorch_transforms_active():  # what torch.autograd.Function asks, and Dynamo can trace
        return True
    if torch.compiler.is_compiling():
        return False
    return forward_ad.unpack_dual(logits).tangent is not None  # type: ignore[no-untyped-call]


def _is_traced(*tensors: Tensor) -> bool:
    """Whether Dynamo, a dispatch mode (fake tensors, ``make_fx``) or a subclass has to see an operator."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
        return True
    return any(type(tensor) not in (Tensor, torch.nn.Parameter) for tensor in tensors)


@cache
def has_cpp_compiler() -> bool:
    """Whether the C++ compiler that TorchInductor would call is there."""
    from torch._inductor import config

    candidates = config.cpp.cxx if isinstance(config.cpp.cxx, (list, tuple)) else (config.cpp.cxx,)
    return any(shutil.which(name) is not None for name in candidates if name)


def _as_groups(
    logits: Tensor, targets: Tensor, valid: Tensor | None
) -> tuple[
    Float[Tensor, "G M pixels"],
    Shaped[Tensor, "G _ pixels"],
    Bool[Tensor, "G M"] | None,
]:
    """Groups of masks that share a target, which is one mask a group unless ``targets`` is expanded."""
    targets = targets.detach()
    masks = logits.shape[-3] if logits.ndim > 2 else 1
    if masks > 1 and targets.stride(-3) == 0:
        targets = targets.narrow(-3, 0, 1)
    if not targets.is_floating_point() and targets.dtype not in (torch.bool, torch.uint8):
        targets = targets != 0  # cast, 256 would be 0
    grouped = logits.reshape(-1, masks, logits.shape[-2] * logits.shape[-1])
    shared = targets.reshape(grouped.shape[0], -1, grouped.shape[2])
    return grouped, shared, None if valid is None else valid.reshape(grouped.shape[:2])


def _register(name: str, forward: Callable[..., Tensor], backward: Callable[..., Tensor]) -> None:
    """Define the operators ``arrcoc_sam::<name>`` and ``arrcoc_sam::<name>_backward``."""
    _KERNELS[name] = forward, backward
    schema = "Tensor logits, Tensor targets, Tensor? valid, float? alpha, float gamma"
    sums = torch.library.custom_op(f"arrcoc_sam::{name}", forward, mutates_args=(), schema=f"({schema}) -> Tensor")
    gradient = torch.library.custom_op(
        f"arrcoc_sam::{name}_backward", backward, mutates_args=(), schema=f"(Tensor grad_sums, {schema}) -> Tensor"
    )
    sums.register_fake(_fake_sums)
    gradient.register_fake(_fake_gradient)

    def keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        del output
        logits, targets, valid, ctx.alpha, ctx.gamma = inputs
        ctx.save_for_backward(logits, targets, valid)

    def differentiate(ctx: Any, grad_sums: Tensor) -> tuple[Tensor | None, ...]:
        return gradient(grad_sums, *ctx.saved_tensors, ctx.alpha, ctx.gamma), None, None, None, None

    sums.register_autograd(differentiate, setup_context=keep_inputs)
    gradient.register_autograd(_refuse)


def _fake_sums(logits: Tensor, *_: Any) -> Tensor:
    return logits.new_empty((4, *logits.shape[:2]), dtype=accumulation_dtype(logits))


def _fake_gradient(_: Tensor, logits: Tensor, *__: Any) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _refuse(*_: Any) -> Any:
    mend = "pass backend='eager' to the loss"
    raise TrainingError(explain("The fused loss kernels have no second derivative", mend=mend))


class _Untraced(torch.autograd.Function):
    """A pair of kernels without the operators around it."""

    @staticmethod
    def forward(
        ctx: Any, name: str, logits: Tensor, targets: Tensor, valid: Tensor | None, alpha: float | None, gamma: float
    ) -> Tensor:
        ctx.name, ctx.numbers = name, (alpha, gamma)
        ctx.save_for_backward(logits, targets, valid)
        return _KERNELS[name][0](logits, targets, valid, alpha, gamma)

    @staticmethod
    def backward(ctx: Any, grad_sums: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # asked for a second derivative, which the operator refuses
            gradient = getattr(torch.ops.arrcoc_sam, f"{ctx.name}_backward")
        else:
            gradient = _KERNELS[ctx.name][1]
        return None, gradient(grad_sums, *ctx.saved_tensors, *ctx.numbers), None, None, None, None


def _as_bytes(targets: Tensor) -> Tensor:
    """The bytes of bools: inductor's bool arithmetic is several times slower, and torch 2.11's has no view of them."""
    return targets.view(torch.uint8) if targets.dtype == torch.bool else targets


def _run_compiled(logits: Tensor, targets: Tensor, *others: Any) -> Tensor:
    return mask_sums_compiled(logits, _as_bytes(targets), *others)


def _run_compiled_backward(grad_sums: Tensor, logits: Tensor, targets: Tensor, *others: Any) -> Tensor:
    return mask_sums_compiled_backward(grad_sums, logits, _as_bytes(targets), *others)


def _run_triton(logits: Tensor, targets: Tensor, *others: Any) -> Tensor:
    from arrcoc_sam.losses.triton_kernels import mask_sums_triton

    return mask_sums_triton(logits, _as_bytes(targets), *others)


def _run_triton_backward(grad_sums: Tensor, logits: Tensor, targets: Tensor, *others: Any) -> Tensor:
    from arrcoc_sam.losses.triton_kernels import mask_sums_triton_backward

    return mask_sums_triton_backward(grad_sums, logits, _as_bytes(targets), *others)


_register("mask_sums_compiled", _run_compiled, _run_compiled_backward)
_register("mask_sums_triton", _run_triton, _run_triton_backward)
