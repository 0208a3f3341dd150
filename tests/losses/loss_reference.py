"""Expectations for the loss tests, from the definitions in 60-digit arithmetic, and the cases that they run over."""

from __future__ import annotations

from collections.abc import Sequence

import mpmath
import torch
from hypothesis import strategies as st
from torch import Tensor

mpmath.mp.dps = 60

GAMMAS = (0.0, 0.5, 1.0, 2.0, 5.0)
ALPHAS = (None, 0.25, 0.5)


def exact_focal_dice(
    logits: Sequence[float],
    targets: Sequence[float],
    *,
    alpha: float | None,
    gamma: float,
    smooth: float = 1.0,
) -> tuple[mpmath.mpf, mpmath.mpf]:
    """Focal (mean over pixels) and Dice of one mask from their textbook definitions."""
    focal = intersection = predicted = wanted = mpmath.mpf(0)
    for x, t in zip(map(mpmath.mpf, logits), map(mpmath.mpf, targets), strict=True):
        p = 1 / (1 + mpmath.exp(-x))
        cross_entropy = -(t * mpmath.log(p) + (1 - t) * mpmath.log(1 - p))
        p_t = p * t + (1 - p) * (1 - t)
        alpha_t = 1 if alpha is None else mpmath.mpf(alpha) * t + (1 - mpmath.mpf(alpha)) * (1 - t)
        focal += alpha_t * (1 - p_t) ** mpmath.mpf(gamma) * cross_entropy
        intersection, predicted, wanted = intersection + p * t, predicted + p, wanted + t
    dice = 1 - (2 * intersection + smooth) / (predicted + wanted + smooth)
    return focal / len(logits), dice


def exact_gradient(
    logits: Sequence[float], targets: Sequence[float], index: int, *, which: int, **options: float | None
) -> mpmath.mpf:
    """Derivative of focal (``which`` 0) or Dice (1) by one logit, by a central difference at 60 digits."""
    step = mpmath.mpf(10) ** -20
    up, down = list(map(mpmath.mpf, logits)), list(map(mpmath.mpf, logits))
    up[index] += step
    down[index] -= step
    difference = exact_focal_dice(up, targets, **options)[which] - exact_focal_dice(down, targets, **options)[which]
    return difference / (2 * step)


@st.composite
def cases(draw: st.DrawFn, *, max_side: int = 33, soft: bool | None = None) -> tuple[Tensor, Tensor]:
    """Logits and targets (…, H, W): odd sizes, one pixel, empty batches, extremes, layouts that are not contiguous."""
    lead = draw(st.sampled_from([(), (0,), (1,), (3,), (2, 3), (2, 1, 2)]))
    height, width = draw(st.integers(1, max_side)), draw(st.integers(1, max_side))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shape = (*lead, height, width)
    noise = torch.randn(shape, generator=generator)
    kind = draw(st.sampled_from(["normal", "wide", "extreme", "zero", "mixed"]))
    scale = {"normal": 3.0, "wide": 30.0, "extreme": 1e4, "zero": 0.0}
    if kind == "mixed":
        logits = noise * 10.0 ** torch.randint(-3, 4, shape, generator=generator)
    else:
        logits = noise * scale[kind]
    logits = logits.clamp(-1e4, 1e4)
    filling = draw(st.sampled_from(["random", "empty", "full", "right"]))
    if soft is True or (soft is None and draw(st.booleans())):
        targets = {
            "random": torch.rand(shape, generator=generator),
            "empty": torch.zeros(shape),
            "full": torch.ones(shape),
            "right": (noise > 0).float() * 0.75,
        }[filling]
    else:
        hard = {
            "random": torch.rand(shape, generator=generator) > 0.5,
            "empty": torch.zeros(shape, dtype=torch.bool),
            "full": torch.ones(shape, dtype=torch.bool),
            "right": noise > 0,
        }[filling]
        targets = hard.to(draw(st.sampled_from([torch.bool, torch.uint8, torch.float32, torch.int64])))
    layout = draw(st.sampled_from(["contiguous", "transposed", "strided"]))
    if layout == "transposed":
        logits = logits.mT.contiguous().mT
    elif layout == "strided":
        logits = torch.stack([logits, torch.full_like(logits, torch.nan)], dim=-1)[..., 0]
        targets = torch.cat([targets, targets], dim=-1)[..., :width]
    return logits, targets


def assert_close_to_float64(
    value: Tensor,
    gradient: Tensor,
    value_64: Tensor,
    gradient_64: Tensor,
    *,
    value_rtol: float = 5e-6,
    gradient_rtol: float = 1e-5,
) -> None:
    """Per-mask values within ``value_rtol``; gradients within ``gradient_rtol`` of each mask's largest."""
    assert torch.isfinite(value).all()
    assert torch.isfinite(gradient).all()
    # Numbers under 1e-38 do not exist in float32; half of the smallest one is the best that can be asked there.
    assert ((value.double() - value_64).abs() <= value_rtol * value_64.abs() + 2e-38).all()
    largest = gradient_64.abs().amax(dim=(-2, -1), keepdim=True)
    assert ((gradient.double() - gradient_64).abs() <= gradient_rtol * largest + 2e-38).all()
