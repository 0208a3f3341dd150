"""Focal and Dice loss of masks, one number a mask."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from arrcoc_sam.losses.arguments import (
    REDUCTIONS,
    Backend,
    FocalDiceOptions,
    Reduction,
    check_choice,
    check_focal_dice,
    check_logits,
    check_masks,
    check_range,
    check_same_device,
)
from arrcoc_sam.losses.fused import per_mask_sums
from arrcoc_sam.losses.sums import MaskSums, mask_sums

__all__ = ["dice_loss", "dice_of_sums", "focal_dice_loss", "per_mask_focal_dice", "reduce_masks", "sigmoid_focal_loss"]


def sigmoid_focal_loss(
    logits: Float[Tensor, "*N H W"],
    targets: Shaped[Tensor, "*N H W"],
    *,
    alpha: float | None = 0.25,
    gamma: float = 2.0,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*N"] | Float[Tensor, ""]:
    """Focal loss α_t·(1 − p_t)^γ·CE, averaged over the pixels of each mask.

    Soft targets weigh both classes: p_t = pt + (1−p)(1−t) and α_t = αt + (1−α)(1−t), as in torchvision.

    Args:
        logits: (…, H, W), finite, any floating dtype; half precision is evaluated and summed in float32.
        targets: (…, H, W) bool, integers (not 0: the mask), or floats in [0, 1]; constants.
        alpha: Weight of the foreground in [0, 1], its complement weighs the background; None: no class weight.
        gamma: Focusing exponent, ≥ 0; gradients are finite for γ < 1 too.
        reduction: "none" per mask, "mean" over the masks (0 of none), "sum".

    Returns:
        (…) for "none", else a scalar; ≥ 0, float32 (float64 for float64 logits).

    Raises:
        InputError: A dtype, device or number that can't be worked with.
        ShapeError: Shapes that differ, or no pixel.
        UnknownNameError: An unknown reduction.

    Reference:
        Lin et al. 2017, "Focal Loss for Dense Object Detection", equation 5. The mean is over pixels, where the paper
        divides by the number of foreground anchors: Segment Anything's convention.

    Example:
        >>> import torch
        >>> sigmoid_focal_loss(torch.zeros(2, 4, 4), torch.ones(2, 4, 4), alpha=None)  # ½² · ln 2
        tensor(0.1733)
    """
    options = check_focal_dice(alpha=alpha, gamma=gamma)
    sums = mask_sums(*_checked_pixels(logits, targets, reduction), alpha=options.alpha, gamma=options.gamma)
    return reduce_masks(sums.focal / (logits.shape[-2] * logits.shape[-1]), reduction)


def dice_loss(
    logits: Float[Tensor, "*N H W"],
    targets: Shaped[Tensor, "*N H W"],
    *,
    smooth: float = 1.0,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*N"] | Float[Tensor, ""]:
    """Dice loss 1 − (2Σpt + smooth) / (Σp + Σt + smooth) of sigmoid probabilities, per mask.

    Evaluated as Σ[p(1−t) + (1−p)t] / (Σp + Σt + smooth): the same number for hard and soft targets, without subtracting
    two nearly equal ones where the prediction is good. An empty target is a valid one: the loss tends to 0 as the
    prediction empties. A soft target that is met exactly (p = t) does not give 0 under this definition.

    Args:
        logits: (…, H, W), finite, any floating dtype.
        targets: (…, H, W) bool, integers (not 0: the mask), or floats in [0, 1]; constants.
        smooth: Added to numerator and denominator, ≥ 0. With 0, an empty target and a prediction that underflows to
            empty give 0/0, which is NaN.
        reduction: "none" per mask, "mean" over the masks (0 of none), "sum".

    Returns:
        (…) for "none", else a scalar; in [0, 1], float32 (float64 for float64 logits).

    Raises:
        InputError: A dtype, device or number that can't be worked with.
        ShapeError: Shapes that differ, or no pixel.
        UnknownNameError: An unknown reduction.

    Reference:
        Milletari et al. 2016, "V-Net", with Σp in place of Σp², as Segment Anything and DETR have it.

    Example:
        >>> import torch
        >>> dice_loss(torch.full((4, 4), 50.0), torch.zeros(4, 4))  # 16 wrong of 16, smooth 1
        tensor(0.9412)
    """
    options = check_focal_dice(smooth=smooth, gamma=0.0)
    sums = mask_sums(*_checked_pixels(logits, targets, reduction), alpha=None, gamma=0.0)
    return reduce_masks(dice_of_sums(sums, options.smooth), reduction)


def focal_dice_loss(
    logits: Float[Tensor, "*N H W"],
    targets: Shaped[Tensor, "*N H W"],
    *,
    focal_weight: float = 20.0,
    dice_weight: float = 1.0,
    alpha: float | None = 0.25,
    gamma: float = 2.0,
    smooth: float = 1.0,
    reduction: Reduction = "mean",
    backend: Backend = "auto",
) -> Float[Tensor, "*N"] | Float[Tensor, ""]:
    """``focal_weight`` · focal + ``dice_weight`` · Dice per mask, in one pass forward and one backward where fused.

    The default mix is Segment Anything's 20 : 1.

    Args:
        logits: (…, H, W), finite, any floating dtype; half precision is evaluated and summed in float32.
        targets: (…, H, W) bool, integers (not 0: the mask), or floats in [0, 1]; constants. May be expanded (stride 0).
        focal_weight: Weight of :func:`sigmoid_focal_loss`, ≥ 0.
        dice_weight: Weight of :func:`dice_loss`, ≥ 0.
        alpha: Weight of the foreground in the focal loss, in [0, 1]; None: no class weight.
        gamma: Focusing exponent of the focal loss, ≥ 0.
        smooth: Added to numerator and denominator of Dice, ≥ 0.
        reduction: "none" per mask, "mean" over the masks (0 of none), "sum".
        backend: "eager" (the specification, differentiable twice), "compiled" (needs a C++ compiler on the CPU),
            "triton" (CUDA), or "auto", which may choose one that is not differentiable twice, see
            :mod:`arrcoc_sam.losses.fused`.

    Returns:
        (…) for "none", else a scalar; ≥ 0, float32 (float64 for float64 logits).

    Raises:
        InputError: A dtype, device, number or backend that can't be worked with here.
        ShapeError: Shapes that differ, or no pixel.
        UnknownNameError: An unknown reduction or backend.

    Reference:
        Kirillov et al. 2023, "Segment Anything", appendix A, "Losses".

    Example:
        >>> import torch
        >>> logits, masks = torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8, dtype=torch.bool)
        >>> focal_dice_loss(logits, masks, reduction="none").shape
        torch.Size([2, 3])
    """
    options = check_focal_dice(
        focal_weight=focal_weight,
        dice_weight=dice_weight,
        alpha=alpha,
        gamma=gamma,
        smooth=smooth,
        backend=backend,
    )
    _checked_pixels(logits, targets, reduction)
    return reduce_masks(per_mask_focal_dice(logits, targets, options=options), reduction)


def per_mask_focal_dice(
    logits: Float[Tensor, "*N H W"],
    targets: Shaped[Tensor, "*N H W"],
    valid: Bool[Tensor, "*N"] | None = None,
    *,
    options: FocalDiceOptions,
) -> Float[Tensor, "*N"]:
    """The mixed loss of each mask, 0 without a gradient where not ``valid``; the arguments are taken as checked."""
    sums = per_mask_sums(logits, targets, valid, alpha=options.alpha, gamma=options.gamma, backend=options.backend)
    focal = sums.focal / (logits.shape[-2] * logits.shape[-1])
    return options.focal_weight * focal + options.dice_weight * dice_of_sums(sums, options.smooth, valid)


def dice_of_sums(sums: MaskSums, smooth: float, valid: Bool[Tensor, "*N"] | None = None) -> Float[Tensor, "*N"]:
    """Dice loss from the sums of each mask, 0 where not ``valid``."""
    total = sums.predicted + sums.target + smooth
    if valid is not None and smooth == 0:
        total = torch.where(valid, total, 1.0)
    return sums.mismatch / total


def reduce_masks(loss: Float[Tensor, "*N"], reduction: Reduction) -> Float[Tensor, "*N"] | Float[Tensor, ""]:
    """Per-mask losses by name; the mean of no masks is 0, so that an empty batch leaves the weights alone."""
    if reduction == "none":
        return loss
    total = loss.sum()
    return total / max(loss.numel(), 1) if reduction == "mean" else total


def _checked_pixels(
    logits: Tensor, targets: Tensor, reduction: Reduction
) -> tuple[Float[Tensor, "*N pixels"], Shaped[Tensor, "*N pixels"]]:
    check_choice(reduction, "reduction", REDUCTIONS)
    check_logits(logits)
    check_masks(targets, tuple(logits.shape))
    check_same_device(logits, targets, ("logits", "targets"))
    check_range(targets)
    return logits.flatten(-2), targets.flatten(-2)
