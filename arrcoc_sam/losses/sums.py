"""The four sums over each mask that focal and Dice are made of, in plain PyTorch: the specification of every backend.

With logits x, targets t in [0, 1] and p = sigmoid(x), per mask:

- focal F = Σ a·q^γ·ce, where q = p(1−t) + (1−p)t is 1 − p_t, ce the cross entropy, a = αt + (1−α)(1−t);
- mismatch D = Σ q;
- predicted P = Σ p;
- target T = Σ t.

Then focal loss = F / pixels and Dice = D / (P + T + smooth), which equals 1 − (2Σpt + smooth) / (P + T + smooth) for
hard and soft targets alike, without its cancellation.

Everything is written in e = exp(−|x|), r = 1/(1 + e) and u, the distance of the target from the side of ½ that the
prediction is on (1 − t where x ≥ 0, else t). Then q = r·(u + e(1 − u)), ce = |x|·u + log1p(e) and p(1 − p) = e·r²
are sums of terms of one sign: no digit is lost where the prediction is confident, and none of them overflows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

__all__ = ["MaskSums", "accumulation_dtype", "focal_modulation", "mask_sums"]


class MaskSums(NamedTuple):
    """Sums over the pixels of each mask, float32 (float64 for float64 logits).

    Attributes:
        focal: Σ a·q^γ·ce.
        mismatch: Σ q.
        predicted: Σ p.
        target: Σ t.
    """

    focal: Float[Tensor, "*N"]
    mismatch: Float[Tensor, "*N"]
    predicted: Float[Tensor, "*N"]
    target: Float[Tensor, "*N"]


def accumulation_dtype(logits: Tensor) -> torch.dtype:
    """float64 for float64 logits, else float32: half precision is never summed in half precision."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def focal_modulation(mismatch: Tensor, gamma: float) -> Tensor:
    """q^γ with a finite derivative at q = 0, also for γ < 1, where it is 0 (what q^γ·ce tends to there)."""
    if gamma == 0:
        return torch.ones_like(mismatch)
    if gamma == 1:
        return mismatch
    if gamma == 2:
        return mismatch * mismatch
    if gamma == int(gamma):
        return mismatch**gamma
    # The inner where keeps pow's derivative γ·0^(γ−1) out of the graph: the outer one alone would multiply it by 0.
    positive = mismatch > 0
    return torch.where(positive, torch.where(positive, mismatch, 1.0) ** gamma, 0.0)


def mask_sums(
    logits: Float[Tensor, "*N pixels"],
    targets: Shaped[Tensor, "*N pixels"],
    valid: Bool[Tensor, "*N"] | None = None,
    *,
    alpha: float | None,
    gamma: float,
) -> MaskSums:
    """The sums of each mask, differentiable in the logits as often as one likes.

    Args:
        logits: (…, pixels), finite.
        targets: (…, pixels) bool, integers, of which all but 0 are 1, or floats, clamped to [0, 1]; constants, no
            gradient flows to them.
        valid: Masks that count; the sums of the others are 0 with zero gradient, whatever their logits (NaN too).
        alpha: Weight of the foreground in the focal sum; None for none.
        gamma: Focusing exponent, ≥ 0.

    Returns:
        The sums, each (…).
    """
    dtype = accumulation_dtype(logits)
    t = targets.detach()
    x, t = logits.to(dtype), t.to(dtype).clamp(0, 1) if t.is_floating_point() else (t != 0).to(dtype)
    if valid is not None:
        x = torch.where(valid.unsqueeze(-1), x, 0.0)
        t = torch.where(valid.unsqueeze(-1), t, 0.0)
    positive = x >= 0
    # Not abs(): its derivative at 0 is 0, which would drop the gradient of a layer that starts at zero.
    magnitude = torch.where(positive, x, -x)
    e = torch.exp(-magnitude)
    r = 1 / (1 + e)
    u = torch.where(positive, 1 - t, t)
    q = r * (u + e * (1 - u))
    focal = focal_modulation(q, gamma) * (magnitude * u + torch.log1p(e))
    if alpha is not None:
        focal = ((1 - alpha) + (2 * alpha - 1) * t) * focal
    p = torch.where(positive, r, e * r)
    sums = MaskSums(focal.sum(-1), q.sum(-1), p.sum(-1), t.sum(-1))
    if valid is None:
        return sums
    # A silenced mask was evaluated at x = t = 0, whose sums are not 0.
    return MaskSums(*(torch.where(valid, one, 0.0) for one in sums))
