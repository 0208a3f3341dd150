"""The arguments that all metrics share: their types, and the checks before any work."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from arrcoc_sam.errors import InputError, ShapeError, describe, explain
from arrcoc_sam.granularity.regions import Masks, check_valid, checked_masks

__all__ = [
    "Attention",
    "Distinct",
    "Masks",
    "Resolution",
    "Valid",
    "Values",
    "check_arguments",
    "check_attention",
    "like",
]

Attention: TypeAlias = Float[Tensor, "N h w"] | Float[Tensor, "N K h w"]
Distinct: TypeAlias = Bool[Tensor, "K 3"] | None
Valid: TypeAlias = Float[Tensor, "h w"] | None
Values: TypeAlias = Float[Tensor, "N K 3"]
Resolution: TypeAlias = Literal["grid", "image"]


def check_arguments(attention: Attention, masks: Masks, resolution: Resolution, valid: Valid) -> None:
    """Refuse what no metric can work with.

    Raises:
        ShapeError: Wrong axes, or attention for another number of prompts.
        InputError: Negative or non-finite attention, masks that are neither bool nor floats in [0, 1], an unknown
            resolution, cell weights that are negative or all 0, or any at image resolution.
    """
    check_attention(attention, len(checked_masks(masks)))
    if resolution not in ("grid", "image"):
        raise InputError(explain(f"resolution is {resolution!r}", "'grid' or 'image'"))
    if resolution == "image" and valid is not None:
        mend = "crop the padding from maps and masks"
        raise InputError(
            explain("valid came with resolution='image'", "valid=None: cells weigh on the grid only", mend)
        )
    if valid is not None:
        check_valid(valid, (int(attention.shape[-2]), int(attention.shape[-1])))


def check_attention(attention: Attention, num_prompts: int) -> None:
    """Refuse attention that is neither (N, h, w) nor (N, K, h, w) for the K prompts of the masks, or no attention.

    Raises:
        ShapeError: Wrong axes, another number of prompts, or no floats.
        InputError: No tensor; negative or non-finite values.
    """
    if not isinstance(attention, Tensor):
        raise InputError(explain(f"attention is {describe(attention)}", "a tensor", "torch.as_tensor(attention)"))
    if attention.ndim not in (3, 4) or 0 in attention.shape or not attention.is_floating_point():
        raise ShapeError(
            explain(
                f"attention is {describe(attention)}",
                "floating maps of shape (N, h, w), or (N, K, h, w) for K prompts",
                "add the axis of the maps: attention[None]" if attention.ndim == 2 else None,
            )
        )
    if attention.ndim == 4 and attention.shape[1] != num_prompts:
        raise ShapeError(explain(f"attention is for {attention.shape[1]} prompts", f"the masks' {num_prompts}"))
    if not (torch.isfinite(attention) & (attention >= 0)).all():
        raise InputError(explain("attention holds negative or non-finite values", "finite values >= 0"))


def like(attention: Attention, values: Values) -> Values:
    """The values in the attention's dtype, float32 at least."""
    return values.to(torch.promote_types(attention.dtype, torch.float32))
