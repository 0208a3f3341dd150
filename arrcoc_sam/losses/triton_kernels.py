"""The sums of each mask and their gradient as two Triton kernels: each reads the logits once.

The algebra is that of :mod:`arrcoc_sam.losses.compiled`. A program takes one stretch of one mask; the partial sums of a
mask's stretches are added up by a second, tiny kernel, so the result does not depend on the order in which programs
finish. Sums are float32 over at most ``_SUMS_STEPS`` blocks of pixels, which also keeps them exact.

Reciprocals come from ``rsqrt``, one instruction of a GPU; Triton makes nine of a division.

Run it without a GPU, for tests, with ``TRITON_INTERPRET=1``.
"""

# Triton's language is not Python's: what mypy knows of types does not hold inside a kernel, nor at its launch.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg, arg-type, no-any-return"

from __future__ import annotations

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

__all__ = ["mask_sums_triton", "mask_sums_triton_backward"]

_BLOCK = 2048
# Blocks a program. Programs of one mask are the grid's second axis, which CUDA ends at 65,535: 537 megapixels a mask.
_SUMS_STEPS, _GRADIENT_STEPS = 16, 4
# Fused multiply-adds are asked for, since Triton's default changes between versions; no result hangs on them.
_OPTIONS: dict[str, Any] = {"num_warps": 8, "enable_fp_fusion": True}


def mask_sums_triton(
    logits: Float[Tensor, "G M pixels"],
    targets: Shaped[Tensor, "G _ pixels"],
    valid: Bool[Tensor, "G M"] | None,
    alpha: float | None,
    gamma: float,
) -> Float[Tensor, "4 G M"]:
    """F, D, P and T of each mask; see :func:`arrcoc_sam.losses.sums.mask_sums`.

    Args:
        logits: (G, M, pixels) float32, bfloat16 or float16; any strides of G and M, copied unless that of pixels is 1.
        targets: (G, M, pixels), or (G, 1, pixels) for M masks that share a target; uint8 or float; strides likewise.
        valid: Masks that count, or None for all.
        alpha: Weight of the foreground; None for none.
        gamma: Focusing exponent.

    Returns:
        (4, G, M) float32.
    """
    groups, masks, pixels = logits.shape
    block = _block(pixels)
    stretches = triton.cdiv(pixels, _SUMS_STEPS * block)
    partial = torch.empty((4, stretches, groups * masks), dtype=torch.float32, device=logits.device)
    x, t = _dense_pixels(logits), _dense_pixels(targets)
    _sums_kernel[(groups * masks, stretches)](
        x,
        t,
        x if valid is None else valid.contiguous().view(torch.uint8),
        partial,
        pixels,
        *_layout(x, t),
        *_numbers(alpha, gamma),
        MASKED=valid is not None,
        POWER=_power(gamma),
        EVEN=pixels % block == 0,
        BLOCK=block,
        STEPS=_SUMS_STEPS,
        **_OPTIONS,
    )
    return partial.sum(1).view(4, groups, masks)


def mask_sums_triton_backward(
    grad_sums: Float[Tensor, "4 G M"],
    logits: Float[Tensor, "G M pixels"],
    targets: Shaped[Tensor, "G _ pixels"],
    valid: Bool[Tensor, "G M"] | None,
    alpha: float | None,
    gamma: float,
) -> Float[Tensor, "G M pixels"]:
    """Gradient of the logits from the gradient of the four sums.

    Args:
        grad_sums: Gradient of what :func:`mask_sums_triton` returned.
        logits: As there.
        targets: As there.
        valid: As there.
        alpha: As there.
        gamma: As there.

    Returns:
        (G, M, pixels), contiguous, the dtype of ``logits``.
    """
    groups, masks, pixels = logits.shape
    block = _block(pixels)
    gradient = torch.empty((groups, masks, pixels), dtype=logits.dtype, device=logits.device)
    x, t = _dense_pixels(logits), _dense_pixels(targets)
    _gradient_kernel[(groups * masks, triton.cdiv(pixels, _GRADIENT_STEPS * block))](
        grad_sums.contiguous(),
        x,
        t,
        x if valid is None else valid.contiguous().view(torch.uint8),
        gradient,
        pixels,
        *_layout(x, t),
        *_numbers(alpha, gamma),
        MASKED=valid is not None,
        POWER=_power(gamma),
        EVEN=pixels % block == 0,
        BLOCK=block,
        STEPS=_GRADIENT_STEPS,
        **_OPTIONS,
    )
    return gradient


def _block(pixels: int) -> int:
    return min(_BLOCK, max(16, triton.next_power_of_2(pixels)))


def _dense_pixels(rows: Tensor) -> Tensor:
    return rows if rows.stride(2) == 1 else rows.contiguous()


def _layout(x: Tensor, t: Tensor) -> tuple[int, int, int, int, int]:
    """Masks a group, then the strides of group and mask; a target that is shared does not move with the mask."""
    return x.shape[1], x.stride(0), x.stride(1), t.stride(0), 0 if t.shape[1] == 1 else t.stride(1)


def _numbers(alpha: float | None, gamma: float) -> tuple[float, float, float]:
    base, slope = (1.0, 0.0) if alpha is None else (1 - alpha, 2 * alpha - 1)
    return float(base), float(slope), float(gamma)


def _power(gamma: float) -> int:
    """2γ where that is a small whole number, evaluated by products and a root; −1 for any other γ."""
    doubled = 2 * gamma
    return int(doubled) if doubled == int(doubled) and doubled <= 16 else -1


@triton.jit
@no_type_check
def _power_of(q, gamma, POWER: tl.constexpr):
    """q^(POWER/2), or q^γ for POWER = −1; 0^0 is 1."""
    result = tl.full(q.shape, 1.0, tl.float32)
    if POWER < 0:
        result = tl.exp2(gamma * tl.log2(tl.maximum(q, 1.1754943508222875e-38)))  # a smaller number is a double
        result = tl.where(q > 0, result, 0.0)
    else:
        for _ in tl.static_range(POWER // 2):
            result *= q
        if POWER % 2 == 1:
            result *= tl.sqrt(tl.maximum(q, 0.0))
    return result


@triton.jit
@no_type_check
def _terms(x_ptr, t_ptr, offsets, pixels, EVEN: tl.constexpr):
    if EVEN:
        x = tl.load(x_ptr + offsets).to(tl.float32)
        t = tl.load(t_ptr + offsets).to(tl.float32)
    else:
        # A logit of −128 whose target is 0 adds 0 to each sum.
        x = tl.load(x_ptr + offsets, mask=offsets < pixels, other=-128.0).to(tl.float32)
        t = tl.load(t_ptr + offsets, mask=offsets < pixels, other=0).to(tl.float32)
    # a byte may be 255: a mask's, or a bool of Pillow's images of mode "1"; floats lie beside [0, 1] after resizing
    t = tl.clamp(t, 0.0, 1.0, propagate_nan=tl.PropagateNan.ALL)
    positive = x >= 0
    magnitude = tl.abs(x)
    # exp(−|x|) = 2^y with y = −|x|·log₂e; the rounding of y, up to 4e-6 of the result, is multiplied back.
    bounded = tl.minimum(magnitude, 128.0, propagate_nan=tl.PropagateNan.ALL)
    y = bounded * -1.4426950408889634
    e = tl.exp2(y)
    e -= e * (tl.fma(y, 0.6931471805599453, bounded) + y * -1.904654299957768e-09)
    root = tl.rsqrt(1.0 + e)
    # ln(1 + e) = 2·arsinh(z/2) with z = e/√(1 + e); the polynomial of z² is within 6e-8 of 2·arsinh(z/2)/z.
    z = e * root
    w = z * z
    series = 1.0 + w * (-0.04166440981225391 + w * (0.004659461623943919 + w * -0.0005965688564987578))
    minor = z * root
    u = tl.where(positive, 1.0 - t, t)
    q = minor + u * (1.0 - 2.0 * minor)
    return t, positive, u, minor, q, magnitude * u + z * series


@triton.jit
@no_type_check
def _sums_kernel(
    x_ptr,
    t_ptr,
    valid_ptr,
    partial_ptr,
    pixels,
    masks,
    x_group,
    x_mask,
    t_group,
    t_mask,
    base,
    slope,
    gamma,
    MASKED: tl.constexpr,
    POWER: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
):
    row, stretch = tl.program_id(0), tl.program_id(1)
    group, mask = (row // masks).to(tl.int64), (row % masks).to(tl.int64)
    row = row.to(tl.int64)
    x_ptr += group * x_group + mask * x_mask
    t_ptr += group * t_group + mask * t_mask
    # A thread loads four neighbours and adds them up first: a quarter of the registers, so more programs at a time.
    within = tl.arange(0, BLOCK // 4)[:, None] * 4 + tl.arange(0, 4)[None, :]
    focal = tl.zeros((BLOCK // 4,), tl.float32)
    mismatch = tl.zeros((BLOCK // 4,), tl.float32)
    predicted = tl.zeros((BLOCK // 4,), tl.float32)
    target = tl.zeros((BLOCK // 4,), tl.float32)
    first = stretch * STEPS
    steps = tl.minimum(tl.cdiv(pixels, BLOCK) - first, STEPS)
    if MASKED:
        steps = tl.where(tl.load(valid_ptr + row) != 0, steps, 0)
    for step in range(steps):
        offsets = (first + step).to(tl.int64) * BLOCK + within
        t, positive, _, minor, q, cross_entropy = _terms(x_ptr, t_ptr, offsets, pixels, EVEN)
        focal += tl.sum((base + slope * t) * _power_of(q, gamma, POWER) * cross_entropy, 1)
        mismatch += tl.sum(q, 1)
        predicted += tl.sum(tl.where(positive, 1.0 - minor, minor), 1)
        target += tl.sum(t, 1)
    rows, stretches = tl.num_programs(0), tl.num_programs(1)
    partial_ptr += stretch.to(tl.int64) * rows + row
    plane = stretches.to(tl.int64) * rows
    tl.store(partial_ptr, tl.sum(focal, 0))
    tl.store(partial_ptr + plane, tl.sum(mismatch, 0))
    tl.store(partial_ptr + 2 * plane, tl.sum(predicted, 0))
    tl.store(partial_ptr + 3 * plane, tl.sum(target, 0))


@triton.jit
@no_type_check
def _gradient_kernel(
    grads_ptr,
    x_ptr,
    t_ptr,
    valid_ptr,
    gradient_ptr,
    pixels,
    masks,
    x_group,
    x_mask,
    t_group,
    t_mask,
    base,
    slope,
    gamma,
    MASKED: tl.constexpr,
    POWER: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
):
    row, first = tl.program_id(0), tl.program_id(1) * STEPS
    rows = tl.num_programs(0)
    group, mask = (row // masks).to(tl.int64), (row % masks).to(tl.int64)
    row = row.to(tl.int64)
    x_ptr += group * x_group + mask * x_mask
    t_ptr += group * t_group + mask * t_mask
    gradient_ptr += row * pixels
    grad_focal = tl.load(grads_ptr + row)
    grad_mismatch = tl.load(grads_ptr + rows + row)
    grad_predicted = tl.load(grads_ptr + 2 * rows + row)
    if MASKED:
        counts = tl.load(valid_ptr + row) != 0
    within = tl.arange(0, BLOCK // 4)[:, None] * 4 + tl.arange(0, 4)[None, :]
    base *= grad_focal
    slope *= grad_focal
    for step in range(tl.minimum(tl.cdiv(pixels, BLOCK) - first, STEPS)):
        offsets = (first + step).to(tl.int64) * BLOCK + within
        t, positive, u, minor, q, cross_entropy = _terms(x_ptr, t_ptr, offsets, pixels, EVEN)
        error = u - minor
        s = minor - minor * minor
        k = (2.0 * u - 1.0) * s
        if POWER == 0:
            slope_of_focal = error
        elif POWER >= 2:
            slope_of_focal = _power_of(q, gamma - 1.0, POWER - 2) * (gamma * k * cross_entropy + q * error)
        else:
            # γ·q^(γ−1)·k as γ·q^γ·(k/q), finite at q = 0 for γ < 1.
            ratio = k / tl.maximum(q, 1.1754943508222875e-38)
            slope_of_focal = _power_of(q, gamma, POWER) * (gamma * ratio * cross_entropy + error)
        odd = (base + slope * t) * slope_of_focal + grad_mismatch * k
        gradient = tl.where(positive, odd, -odd) + grad_predicted * s
        if MASKED:
            gradient = tl.where(counts, gradient, 0.0)
        gradient = gradient.to(gradient_ptr.dtype.element_ty)
        if EVEN:
            tl.store(gradient_ptr + offsets, gradient)
        else:
            tl.store(gradient_ptr + offsets, gradient, mask=offsets < pixels)
