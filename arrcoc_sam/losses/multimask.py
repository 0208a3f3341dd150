"""Losses of a decoder that answers one prompt with several masks and predicts the IoU of each."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias, TypedDict

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from arrcoc_sam.errors import InputError, ShapeError, describe, explain
from arrcoc_sam.losses.arguments import (
    REDUCTIONS,
    Backend,
    Reduction,
    check_choice,
    check_focal_dice,
    check_logits,
    check_masks,
    check_number,
    check_range,
    check_same_device,
)
from arrcoc_sam.losses.focal_dice import per_mask_focal_dice, reduce_masks
from arrcoc_sam.masks.measures import iou_of_comparisons

__all__ = [
    "IOU_LOSSES",
    "SUPERVISIONS",
    "IoULoss",
    "MultiMaskTerms",
    "Supervise",
    "iou_prediction_loss",
    "min_over_masks_loss",
    "multimask_loss",
]

IoULoss: TypeAlias = Literal["mse", "l1"]
Supervise: TypeAlias = Literal["all", "winner"]
IOU_LOSSES: Final = ("mse", "l1")
SUPERVISIONS: Final = ("all", "winner")


class MultiMaskTerms(TypedDict):
    """What :func:`multimask_loss` returns.

    Attributes:
        loss: ``mask_loss + iou_weight · iou_loss``.
        mask_loss: Focal + Dice of the winners.
        iou_loss: Loss of the predicted IoUs.
        winner: (B,) index of the mask that the mask loss went through.
    """

    loss: Tensor
    mask_loss: Tensor
    iou_loss: Tensor
    winner: Tensor


def min_over_masks_loss(
    logits: Float[Tensor, "B M H W"],
    target: Shaped[Tensor, "B H W"],
    *,
    focal_weight: float = 20.0,
    dice_weight: float = 1.0,
    alpha: float | None = 0.25,
    gamma: float = 2.0,
    smooth: float = 1.0,
    backend: Backend = "auto",
) -> tuple[Float[Tensor, " B"], Int64[Tensor, " B"]]:
    """The mixed loss of each prompt's best mask; the gradient goes through that mask alone.

    The winner is the argmin of the mixed loss, the first among equals.

    Args:
        logits: (B, M, H, W), M candidate masks of each of B prompts; M ≥ 1.
        target: (B, H, W) bool, integers (not 0: the mask), or floats in [0, 1]; constant, and not copied M times.
        focal_weight: See :func:`arrcoc_sam.losses.functional.focal_dice_loss`, as for the following.
        dice_weight: Weight of Dice.
        alpha: Weight of the foreground in the focal loss; None: no class weight.
        gamma: Focusing exponent of the focal loss.
        smooth: Added to numerator and denominator of Dice.
        backend: "auto", "eager", "compiled" or "triton".

    Returns:
        The loss (B,) and the winner (B,).

    Raises:
        InputError: A dtype, device or number that can't be worked with.
        ShapeError: Axes or sizes that do not agree.
        UnknownNameError: An unknown backend.

    Reference:
        Kirillov et al. 2023, "Segment Anything", section 3, "Resolving ambiguity".

    Example:
        >>> import torch
        >>> logits = torch.stack([torch.full((4, 4), -5.0), torch.full((4, 4), 5.0)])[None]
        >>> min_over_masks_loss(logits, torch.ones(1, 4, 4, dtype=torch.bool))[1]
        tensor([1])
    """
    options = check_focal_dice(
        focal_weight=focal_weight,
        dice_weight=dice_weight,
        alpha=alpha,
        gamma=gamma,
        smooth=smooth,
        backend=backend,
    )
    _check_candidates(logits, target)
    losses = per_mask_focal_dice(logits, target.unsqueeze(1).expand(logits.shape), options=options)
    winner = losses.detach().argmin(dim=1)
    return losses.gather(1, winner.unsqueeze(1)).squeeze(1), winner


def iou_prediction_loss(
    predicted_iou: Float[Tensor, "B M"],
    logits: Float[Tensor, "B M H W"],
    target: Shaped[Tensor, "B H W"],
    *,
    kind: IoULoss = "mse",
    supervise: Supervise = "all",
    winner: Int64[Tensor, " B"] | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "B M"] | Float[Tensor, " B"] | Float[Tensor, ""]:
    """Error of the predicted IoUs against the IoU of the thresholded, detached masks with the target.

    A mask is logits > 0, the target is target > ½ (of integers, what is not 0). Where both are empty the IoU is 0/0:
    that pair contributes nothing, and does not count in the mean (SAM 2's training code calls it 0).

    Args:
        predicted_iou: (B, M), raw.
        logits: (B, M, H, W); no gradient flows to them.
        target: (B, H, W) bool, integers (not 0: the mask), or floats in [0, 1].
        kind: "mse" (SAM 1) or "l1" (SAM 2).
        supervise: "all" masks, or the "winner" of each prompt alone.
        winner: (B,) index into M, for ``supervise="winner"``; :func:`min_over_masks_loss` returns it. Its range is
            looked at on the CPU alone.
        reduction: "none": (B, M), or (B,) for winners; "mean" over the pairs that have an IoU (0 of none); "sum".

    Returns:
        The loss, float32 (float64 for float64 predictions).

    Raises:
        InputError: A dtype or device that can't be worked with, or no ``winner`` for ``supervise="winner"``, or one out
            of its range.
        ShapeError: Axes or sizes that do not agree.
        UnknownNameError: An unknown kind, supervision or reduction.

    Example:
        >>> import torch
        >>> logits, target = torch.ones(1, 1, 2, 2), torch.tensor([[[True, True], [True, False]]])
        >>> iou_prediction_loss(torch.tensor([[0.5]]), logits, target)  # (0.5 − 3/4)²
        tensor(0.0625)
    """
    check_choice(kind, "kind", IOU_LOSSES)
    check_choice(supervise, "supervise", SUPERVISIONS)
    check_choice(reduction, "reduction", REDUCTIONS)
    _check_candidates(logits, target)
    _check_predictions(predicted_iou, logits)
    if supervise == "winner":
        if winner is None:
            mend = "pass the winner that min_over_masks_loss returns"
            raise InputError(explain("winner is None", "(B,) indices for supervise='winner'", mend))
        _check_winner(winner, logits)
        rows = winner[:, None, None, None].expand(-1, 1, *logits.shape[-2:])
        predicted_iou, logits = predicted_iou.gather(1, winner.unsqueeze(1)), logits.detach().gather(1, rows)
    dtype = torch.promote_types(predicted_iou.dtype, torch.float32)
    wanted = target > 0.5 if target.is_floating_point() else target != 0
    actual = iou_of_comparisons(logits.detach() > 0, wanted.unsqueeze(1))
    defined = ~actual.isnan()
    difference = predicted_iou.to(dtype) - torch.where(defined, actual, 0.0)
    loss = torch.where(defined, difference.abs() if kind == "l1" else difference.square(), 0.0)
    if supervise == "winner":
        loss, defined = loss.squeeze(1), defined.squeeze(1)
    if reduction == "mean":
        return loss.sum() / defined.sum().clamp_min(1)
    return reduce_masks(loss, reduction)


def multimask_loss(
    logits: Float[Tensor, "B M H W"],
    target: Shaped[Tensor, "B H W"],
    predicted_iou: Float[Tensor, "B M"],
    *,
    focal_weight: float = 20.0,
    dice_weight: float = 1.0,
    iou_weight: float = 1.0,
    alpha: float | None = 0.25,
    gamma: float = 2.0,
    smooth: float = 1.0,
    iou_kind: IoULoss = "mse",
    iou_supervise: Supervise = "all",
    backend: Backend = "auto",
) -> MultiMaskTerms:
    """SAM's training loss of one decoder answer: minimum over masks, plus the IoU head's.

    SAM 1 is the default; SAM 2 is ``iou_kind="l1"``.

    Args:
        logits: (B, M, H, W), M candidate masks of each of B prompts.
        target: (B, H, W) bool, integers (not 0: the mask), or floats in [0, 1].
        predicted_iou: (B, M), raw.
        focal_weight: See :func:`arrcoc_sam.losses.functional.focal_dice_loss`.
        dice_weight: Weight of Dice.
        iou_weight: Weight of :func:`iou_prediction_loss`, ≥ 0.
        alpha: Weight of the foreground in the focal loss; None: no class weight.
        gamma: Focusing exponent of the focal loss.
        smooth: Added to numerator and denominator of Dice.
        iou_kind: "mse" or "l1".
        iou_supervise: "all" masks, or the "winner" of each prompt alone.
        backend: "auto", "eager", "compiled" or "triton".

    Returns:
        A dict of ``loss``, ``mask_loss`` and ``iou_loss`` (scalars, means over the prompts) and ``winner`` (B,).

    Raises:
        InputError: A dtype, device or number that can't be worked with.
        ShapeError: Axes or sizes that do not agree.
        UnknownNameError: An unknown name.

    Reference:
        Kirillov et al. 2023, "Segment Anything", appendix A; Ravi et al. 2024, "SAM 2", appendix D.2.
    """
    check_number(iou_weight, "iou_weight")
    _check_candidates(logits, target)
    _check_predictions(predicted_iou, logits)
    losses, winner = min_over_masks_loss(
        logits,
        target,
        focal_weight=focal_weight,
        dice_weight=dice_weight,
        alpha=alpha,
        gamma=gamma,
        smooth=smooth,
        backend=backend,
    )
    mask_loss = reduce_masks(losses, "mean")
    iou_loss = iou_prediction_loss(predicted_iou, logits, target, kind=iou_kind, supervise=iou_supervise, winner=winner)
    return {"loss": mask_loss + iou_weight * iou_loss, "mask_loss": mask_loss, "iou_loss": iou_loss, "winner": winner}


def _check_candidates(logits: Tensor, target: Tensor) -> None:
    check_logits(logits, axes="(B, M, H, W)", rank=4)
    batch, num_masks, height, width = logits.shape
    if num_masks == 0:
        raise ShapeError(explain(f"logits is {describe(logits)}", "at least one mask a prompt"))
    check_masks(target, (batch, height, width), "target")
    check_same_device(logits, target, ("logits", "target"))
    check_range(target, "target")


def _check_predictions(predicted_iou: Tensor, logits: Tensor) -> None:
    if not isinstance(predicted_iou, Tensor) or not predicted_iou.is_floating_point():
        raise InputError(explain(f"predicted_iou is {describe(predicted_iou)}", "floats (B, M)"))
    if predicted_iou.shape != logits.shape[:2]:
        came = f"predicted_iou has shape {tuple(predicted_iou.shape)}"
        raise ShapeError(explain(came, f"{tuple(logits.shape[:2])}, the (B, M) of logits"))
    check_same_device(logits, predicted_iou, ("logits", "predicted_iou"))


def _check_winner(winner: Tensor, logits: Tensor) -> None:
    if not isinstance(winner, Tensor) or winner.dtype != torch.int64:
        raise InputError(explain(f"winner is {describe(winner)}", "int64 (B,)"))
    if winner.shape != logits.shape[:1]:
        raise ShapeError(explain(f"winner has shape {tuple(winner.shape)}", f"{tuple(logits.shape[:1])}"))
    check_same_device(logits, winner, ("logits", "winner"))
    if winner.device.type != "cpu" or torch.compiler.is_compiling():  # to look would wait for the GPU, or break a graph
        return
    try:
        low, high = (int(value) for value in winner.aminmax())
    except RuntimeError:  # none at all, or none that can be seen here
        return
    if low < 0 or high >= logits.shape[1]:
        mend = "pass the winner that min_over_masks_loss returns"
        raise InputError(explain(f"winner reaches from {low} to {high}", f"0 to {logits.shape[1] - 1}", mend))
