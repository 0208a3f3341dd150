"""Losses of attention against whole / part / subpart masks, each level weighted by SAM's confidence in it.

Masks and weights are constants: no gradient flows to them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from arrcoc_sam.losses.arguments import Backend, Reduction, check_distributions, check_focal_dice
from arrcoc_sam.losses.focal_dice import per_mask_focal_dice
from arrcoc_sam.losses.levels import (
    at_resolution,
    by_level,
    check_level_reduction,
    check_levels,
    level_weights,
    reduce_levels,
)

__all__ = ["attention_mass_loss", "hierarchical_focal_dice_loss"]


def hierarchical_focal_dice_loss(
    attention_logits: Sequence[Float[Tensor, "B _ _"]] | Float[Tensor, "B L h w"],
    masks: Bool[Tensor, "B L H W"] | Float[Tensor, "B L H W"],
    confidence: Float[Tensor, "B L"],
    *,
    valid: Bool[Tensor, "B L"] | Bool[Tensor, " B"] | None = None,
    normalize: bool = True,
    normalizer: float | Float[Tensor, ""] | None = None,
    reduction: Reduction = "mean",
    focal_weight: float = 20.0,
    dice_weight: float = 1.0,
    alpha: float | None = 0.25,
    gamma: float = 2.0,
    smooth: float = 1.0,
    backend: Backend = "auto",
) -> Float[Tensor, "B L"] | Float[Tensor, ""]:
    """Focal + Dice of every level at its own resolution, weighted by the confidence in the level.

    The masks are averaged by area to each level's resolution (exact fractional overlap), so the targets are soft where
    a cell straddles a boundary. The weight of a level is its confidence, clamped to [0, 1] and detached, and 0 where
    it is not valid; an invalid level is silent even when its logits, mask or confidence are NaN.

    Args:
        attention_logits: L tensors (B, h_l, w_l), coarse to fine, or one (B, L, h, w); finite where valid.
        masks: (B, L, H, W) bool, or soft floats in [0, 1], over the same frame as the attention.
        confidence: (B, L), SAM's predicted IoU, raw.
        valid: Levels that count, (B, L), or samples that count, (B,); all by default.
        normalize: "mean" divides by the sum of the weights over all samples and levels of the batch; False: by B.
        normalizer: What "mean" divides by instead, ≥ 0. Under data parallelism: the sum of
            :func:`arrcoc_sam.losses.functional.level_weights` over all processes, divided by their number where
            gradients are averaged, as DDP does.
        reduction: "none" gives weight · loss per level, (B, L); "sum" their sum; "mean" as said above.
        focal_weight: See :func:`arrcoc_sam.losses.functional.focal_dice_loss`, as for the following.
        dice_weight: Weight of Dice.
        alpha: Weight of the foreground in the focal loss; None: no class weight.
        gamma: Focusing exponent of the focal loss.
        smooth: Added to numerator and denominator of Dice.
        backend: "auto", "eager", "compiled" or "triton".

    Returns:
        (B, L) for "none", else a scalar; 0 with a zero gradient when the weights sum to 0.

    Raises:
        InputError: A dtype, device or number that can't be worked with.
        ShapeError: Levels, batch sizes or axes that do not agree.
        UnknownNameError: An unknown reduction or backend.

    Example:
        >>> import torch
        >>> logits = [torch.zeros(2, 7, 7), torch.zeros(2, 14, 14), torch.zeros(2, 28, 28)]
        >>> masks = torch.rand(2, 3, 64, 64) > 0.5
        >>> hierarchical_focal_dice_loss(logits, masks, torch.rand(2, 3)).shape
        torch.Size([])
    """
    options = check_focal_dice(
        focal_weight=focal_weight,
        dice_weight=dice_weight,
        alpha=alpha,
        gamma=gamma,
        smooth=smooth,
        backend=backend,
    )
    check_levels(attention_logits, masks, confidence, valid, name="attention_logits")
    check_level_reduction(reduction, normalize, normalizer)
    counted = None if valid is None else by_level(valid, confidence)
    if isinstance(attention_logits, Tensor):
        loss = per_mask_focal_dice(attention_logits, at_resolution(masks, attention_logits), counted, options=options)
    else:
        levels = [
            per_mask_focal_dice(
                level,
                at_resolution(masks[:, index], level),
                None if counted is None else counted[:, index],
                options=options,
            )
            for index, level in enumerate(attention_logits)
        ]
        loss = torch.stack(levels, dim=1)
    return reduce_levels(loss, level_weights(confidence, valid), normalize, normalizer, reduction)


def attention_mass_loss(
    attention: Sequence[Float[Tensor, "B _ _"]] | Float[Tensor, "B L h w"],
    masks: Bool[Tensor, "B L H W"] | Float[Tensor, "B L H W"],
    confidence: Float[Tensor, "B L"],
    *,
    valid: Bool[Tensor, "B L"] | Bool[Tensor, " B"] | None = None,
    normalize: bool = True,
    normalizer: float | Float[Tensor, ""] | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "B L"] | Float[Tensor, ""]:
    """−ln of the attention that falls inside the mask, for attention that is a distribution over the cells.

    Softmax attention can't fill a mask with ones, so focal and Dice do not apply to it. The mass is Σ A·M over the
    cells, M averaged by area; what the attention gives to prefix tokens counts as outside. A level whose mask is empty
    has no mass to ask for and is treated as invalid. A mass of 0 (an underflow) costs 87.3 = −ln 1.2e-38, without a
    gradient.

    Args:
        attention: L tensors (B, h_l, w_l), or one (B, L, h, w); ≥ 0, the sum over the cells at most 1, which is looked
            at in the first few calls of a process.
        masks: (B, L, H, W) bool, or soft floats in [0, 1], over the same frame as the attention.
        confidence: (B, L), SAM's predicted IoU, raw; clamped to [0, 1] and detached.
        valid: Levels that count, (B, L), or samples that count, (B,); all by default.
        normalize: "mean" divides by the sum of the weights over all samples and levels of the batch; False: by B.
        normalizer: What "mean" divides by instead, ≥ 0.
        reduction: "none" gives weight · loss per level, (B, L); "sum" their sum; "mean" as said above.

    Returns:
        (B, L) for "none", else a scalar; 0 with a zero gradient when the weights sum to 0.

    Raises:
        InputError: A dtype, device or number that can't be worked with, or attention that is no distribution.
        ShapeError: Levels, batch sizes or axes that do not agree.
        UnknownNameError: An unknown reduction.

    Example:
        >>> import torch
        >>> masks = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
        >>> masks[..., :2] = True
        >>> attention_mass_loss(torch.full((1, 1, 4, 4), 1 / 16), masks, torch.ones(1, 1))  # ln 2
        tensor(0.6931)
    """
    check_levels(attention, masks, confidence, valid, name="attention")
    check_level_reduction(reduction, normalize, normalizer)
    counted = torch.ones_like(confidence, dtype=torch.bool) if valid is None else by_level(valid, confidence)
    levels = attention.unbind(1) if isinstance(attention, Tensor) else attention
    masses, filled = [], []
    for index, level in enumerate(levels):
        target = at_resolution(masks[:, index], level)
        dtype = torch.float64 if level.dtype == torch.float64 else torch.float32
        # Both factors are silenced, not their product: a NaN in one would be the other's derivative.
        silent = ~counted[:, index, None, None]
        inside = level.to(dtype).masked_fill(silent, 0.0) * target.to(dtype).masked_fill(silent, 0.0)
        masses.append(inside.flatten(1).sum(-1))
        filled.append((target > 0).flatten(1).any(-1))
    mass = torch.stack(masses, dim=1)
    counted = counted & torch.stack(filled, dim=1)
    check_distributions(levels, counted & (confidence > 0), "attention")
    loss = torch.where(counted, -mass.clamp_min(torch.finfo(torch.float32).tiny).log(), 0.0)
    return reduce_levels(loss, level_weights(confidence, counted), normalize, normalizer, reduction)
