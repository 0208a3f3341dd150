"""Levels of attention: what a loss over them accepts, what each level weighs, and masks at a level's resolution."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from arrcoc_sam.errors import InputError, ShapeError, describe, explain
from arrcoc_sam.losses.arguments import (
    REDUCTIONS,
    Reduction,
    check_choice,
    check_logits,
    check_masks,
    check_number,
    check_range,
    check_same_device,
)
from arrcoc_sam.masks import area_average

__all__ = ["at_resolution", "by_level", "check_level_reduction", "check_levels", "level_weights", "reduce_levels"]


def level_weights(
    confidence: Float[Tensor, "B L"], valid: Bool[Tensor, "B L"] | Bool[Tensor, " B"] | None = None
) -> Float[Tensor, "B L"]:
    """The weight of every level: its confidence clamped to [0, 1], detached, and 0 where it is not valid.

    A trainer sums these over all processes to get ``normalizer``.

    Args:
        confidence: (B, L), SAM's predicted IoU, raw; NaN is taken where not valid.
        valid: Levels, (B, L), or samples, (B,), that count; all by default.

    Returns:
        (B, L) in [0, 1], float32 or float64.

    Example:
        >>> import torch
        >>> level_weights(torch.tensor([[1.2, 0.5, float("nan")]]), torch.tensor([[True, True, False]]))
        tensor([[1.0000, 0.5000, 0.0000]])
    """
    weights = confidence.detach().to(torch.promote_types(confidence.dtype, torch.float32)).clamp(0, 1)
    return weights if valid is None else torch.where(by_level(valid, confidence), weights, 0.0)


def by_level(valid: Tensor, confidence: Tensor) -> Bool[Tensor, "B L"]:
    """Validity of samples, (B,), or levels, (B, L), as one flag a level."""
    return (valid if valid.ndim == 2 else valid.unsqueeze(1)).expand(confidence.shape)


def at_resolution(masks: Tensor, level: Tensor) -> Tensor:
    """Masks at the resolution of a level, constants in [0, 1]; bool masks stay bool where they have it already."""
    grid_hw = (level.shape[-2], level.shape[-1])
    if tuple(masks.shape[-2:]) == grid_hw:
        return masks.detach().clamp(0, 1) if masks.is_floating_point() else masks
    # Under autocast the two matrix products of the average would run in half precision.
    device = masks.device.type
    exact = torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()
    with exact, torch.no_grad():
        return area_average(masks, grid_hw).clamp(0, 1)


def reduce_levels(
    loss: Float[Tensor, "B L"],
    weights: Float[Tensor, "B L"],
    normalize: bool,
    normalizer: float | Tensor | None,
    reduction: Reduction,
) -> Tensor:
    """Weighted losses by name; a mean over no weight is 0."""
    weighted = weights.to(loss.dtype) * loss
    if reduction == "none":
        return weighted
    total = weighted.sum()
    if reduction == "sum":
        return total
    if not normalize:
        return total / max(loss.shape[0], 1)
    # one number in (1,), as a collective of processes has it, would make the loss (1,) as well
    share = weights.sum() if normalizer is None else torch.as_tensor(normalizer, device=loss.device).reshape(())
    share = share.detach().to(loss.dtype)
    return total / torch.where(share == 0, 1.0, share)


def check_level_reduction(reduction: str, normalize: bool, normalizer: float | Tensor | None) -> None:
    """A known reduction, and a normalizer only where "mean" uses one."""
    check_choice(reduction, "reduction", REDUCTIONS)
    if normalizer is None:
        return
    if reduction != "mean" or not normalize:
        came = f"normalizer is given with reduction={reduction!r} and normalize={normalize}"
        raise InputError(explain(came, "reduction='mean' and normalize=True", "leave normalizer out"))
    if not isinstance(normalizer, Tensor):
        check_number(normalizer, "normalizer")
    elif normalizer.numel() != 1:
        raise ShapeError(explain(f"normalizer is {describe(normalizer)}", "one number"))


def check_levels(
    attention: Sequence[Tensor] | Tensor, masks: Tensor, confidence: Tensor, valid: Tensor | None, *, name: str
) -> None:
    """Levels of one batch, with masks, confidences and validity to match."""
    if isinstance(attention, Tensor):
        check_logits(attention, name, axes="(B, L, h, w)", rank=4)
        batch, num_levels = attention.shape[:2]
        first = attention
    else:
        if not isinstance(attention, Sequence) or len(attention) == 0:
            expected = "a sequence of L tensors (B, h, w) or one tensor (B, L, h, w)"
            raise InputError(explain(f"{name} is {describe(attention)}", expected))
        for index, level in enumerate(attention):
            given: object = level
            if given is None:
                mend = "give it logits all the same, and say where it does not count: valid="
                raise InputError(explain(f"{name}[{index}] is None", "a tensor (B, h, w)", mend))
            check_logits(level, f"{name}[{index}]", axes="(B, h, w)", rank=3)
            if level.shape[0] != attention[0].shape[0]:
                came = f"{name}[{index}] has a batch of {level.shape[0]}"
                raise ShapeError(explain(came, f"{attention[0].shape[0]}, as {name}[0] has it"))
            check_same_device(attention[0], level, (f"{name}[0]", f"{name}[{index}]"))
        batch, num_levels = attention[0].shape[0], len(attention)
        first = attention[0]
    if not isinstance(masks, Tensor) or not (masks.dtype == torch.bool or masks.is_floating_point()):
        expected = "a tensor (B, L, H, W), bool or floats in [0, 1]"
        raw: object = masks
        mend = "masks > 0" if isinstance(raw, Tensor) else "convert it: torch.as_tensor"
        if isinstance(raw, (list, tuple)):
            mend = "make it one: torch.stack(masks, dim=1)"
        raise InputError(explain(f"masks is {describe(masks)}", expected, mend))
    if masks.ndim != 4 or tuple(masks.shape[:2]) != (batch, num_levels) or 0 in masks.shape[-2:]:
        expected = f"({batch}, {num_levels}, H, W) for {num_levels} levels of {batch} samples"
        raise ShapeError(explain(f"masks has shape {tuple(masks.shape)}", expected))
    check_same_device(first, masks, (name, "masks"))
    if not isinstance(confidence, Tensor) or not confidence.is_floating_point():
        raise InputError(explain(f"confidence is {describe(confidence)}", "floats (B, L)", "confidence.float()"))
    check_masks(confidence, (batch, num_levels), "confidence", of="(B, L)")
    check_same_device(first, confidence, (name, "confidence"))
    if valid is not None:
        if not isinstance(valid, Tensor) or valid.dtype != torch.bool:
            raise InputError(explain(f"valid is {describe(valid)}", "bool (B, L) or (B,)", "valid.bool()"))
        if tuple(valid.shape) not in ((batch, num_levels), (batch,)):
            raise ShapeError(explain(f"valid has shape {tuple(valid.shape)}", f"{(batch, num_levels)} or {(batch,)}"))
        check_same_device(first, valid, (name, "valid"))
    check_range(masks, "masks", valid=valid, weights=confidence)
