"""The sums of each mask and their gradient as two Triton kernels: each reads the logits once.

The algebra is that of :mod:`arrcoc_sam.losses.compiled`. A program takes one stretch of one mask; the partial sums of a
mask's stretches are added up by a second, tiny kernel, so the result does not depend on the order in which programs
finish. Sums are float32 over at most ``_STRETCH`` pixels, which also keeps them exact.

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
_STRETCH = 16 * _BLOCK
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
    stretches = triton.cdiv(pixels, 16 * block)
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
        BLOCK=block,
        STEPS=triton.cdiv(min(pixels, 16 * block), block),
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
    # One axis: CUDA's second ends at 65,535 programs, which a mask of 67 megapixels has blocks for.
    _gradient_kernel[(groups * masks * triton.cdiv(pixels, block),)](
        grad_sums.contiguous(),
        x,
        t,
        x if valid is None else valid.contiguous().view(torch.uint8),
        gradient,
        groups * masks,
        pixels,
        *_layout(x, t),
        *_numbers(alpha, gamma),
        MASKED=valid is not None,
        POWER=_power(gamma),
        BLOCK=block,
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
def _terms(x_ptr, t_ptr, valid_ptr, row, offsets, inside, MASKED: tl.constexpr):
    x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    # a byte may be 255: a mask's, or a bool of Pillow's images of mode "1"
    t = tl.minimum(tl.load(t_ptr + offsets, mask=inside, other=0).to(tl.float32), 1.0)
    if MASKED:
        counts = tl.load(valid_ptr + row) != 0
        x = tl.where(counts, x, 0.0)
        t = tl.where(counts, t, 0.0)
    positive = x >= 0
    magnitude = tl.abs(x)
    # exp(−|x|) = 2^−y with y = |x|·log₂e; the rounding of y, up to 4e-6 of the result, is multiplied back.
    y = magnitude * 1.4426950408889634
    lost = tl.fma(magnitude, 1.4426950408889634, -y) + magnitude * 1.925963033500611e-08
    e = tl.exp2(-y) * (1.0 - 0.6931471805599453 * lost)
    e = tl.where(magnitude > 104.0, 0.0, e)
    r = 1.0 / (1.0 + e)
    u = tl.where(positive, 1.0 - t, t)
    v = u + e * (1.0 - u)
    # ln(1 + e) = 2·artanh(e/(2 + e)), see the compiled kernel.
    z = e / (2.0 + e)
    w = z * z
    series = 1.0 + w * (
        0.3333333333333333
        + w
        * (
            0.2
            + w * (0.14285714285714285 + w * (0.1111111111111111 + w * (0.09090909090909091 + w * 0.07692307692307693)))
        )
    )
    return t, positive, e, r, u, v, magnitude * u + 2.0 * z * series


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
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    stretch = tl.program_id(1)
    group, mask = row // masks, row % masks
    x_ptr += group * x_group + mask * x_mask
    t_ptr += group * t_group + mask * t_mask
    focal = tl.zeros((BLOCK,), tl.float32)
    mismatch = tl.zeros((BLOCK,), tl.float32)
    predicted = tl.zeros((BLOCK,), tl.float32)
    target = tl.zeros((BLOCK,), tl.float32)
    for step in range(STEPS):
        offsets = (stretch * STEPS + step).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = offsets < pixels
        t, positive, e, r, _, v, cross_entropy = _terms(x_ptr, t_ptr, valid_ptr, row, offsets, inside, MASKED)
        q = r * v
        focal += tl.where(inside, (base + slope * t) * _power_of(q, gamma, POWER) * cross_entropy, 0.0)
        mismatch += tl.where(inside, q, 0.0)
        predicted += tl.where(inside, tl.where(positive, r, e * r), 0.0)
        target += t
    rows, stretches = tl.num_programs(0), tl.num_programs(1)
    share = 1.0
    if MASKED:
        share = tl.where(tl.load(valid_ptr + row) != 0, 1.0, 0.0)
    partial_ptr += stretch.to(tl.int64) * rows + row
    plane = stretches.to(tl.int64) * rows
    tl.store(partial_ptr, share * tl.sum(focal, 0))
    tl.store(partial_ptr + plane, share * tl.sum(mismatch, 0))
    tl.store(partial_ptr + 2 * plane, share * tl.sum(predicted, 0))
    tl.store(partial_ptr + 3 * plane, share * tl.sum(target, 0))


@triton.jit
@no_type_check
def _gradient_kernel(
    grads_ptr,
    x_ptr,
    t_ptr,
    valid_ptr,
    gradient_ptr,
    rows,
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
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    row = (program % rows).to(tl.int64)
    group, mask = row // masks, row % masks
    x_ptr += group * x_group + mask * x_mask
    t_ptr += group * t_group + mask * t_mask
    offsets = (program // rows).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < pixels
    grad_focal = tl.load(grads_ptr + row)
    grad_mismatch = tl.load(grads_ptr + rows + row)
    grad_predicted = tl.load(grads_ptr + 2 * rows + row)
    if MASKED:
        counts = tl.load(valid_ptr + row) != 0
        grad_focal = tl.where(counts, grad_focal, 0.0)
        grad_mismatch = tl.where(counts, grad_mismatch, 0.0)
        grad_predicted = tl.where(counts, grad_predicted, 0.0)
    t, positive, e, r, u, v, cross_entropy = _terms(x_ptr, t_ptr, valid_ptr, row, offsets, inside, MASKED)
    q = r * v
    error = u - e * r
    s = e * r * r
    k = (2.0 * u - 1.0) * s
    if POWER == 0:
        slope_of_focal = error
    elif POWER >= 2:
        slope_of_focal = _power_of(q, gamma - 1.0, POWER - 2) * (gamma * k * cross_entropy + q * error)
    else:
        # γ·q^(γ−1)·s as γ·q^γ·(s/q), finite at q = 0 for γ < 1.
        ratio = e * r / tl.maximum(v, 1.1754943508222875e-38)
        slope_of_focal = _power_of(q, gamma, POWER) * (gamma * ratio * (2.0 * u - 1.0) * cross_entropy + error)
    odd = grad_focal * (base + slope * t) * slope_of_focal + grad_mismatch * k
    gradient = tl.where(positive, odd, -odd) + grad_predicted * s
    tl.store(gradient_ptr + row * pixels + offsets, gradient.to(gradient_ptr.dtype.element_ty), mask=inside)
