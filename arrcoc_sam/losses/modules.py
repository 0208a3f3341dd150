"""The losses as modules, for code that configures a criterion once and calls it often."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import NoReturn, TypedDict, Unpack

from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from arrcoc_sam.errors import explain, near_name
from arrcoc_sam.losses.arguments import REDUCTIONS, Backend, Reduction, check_choice, check_focal_dice, check_number
from arrcoc_sam.losses.focal_dice import focal_dice_loss
from arrcoc_sam.losses.hierarchical import hierarchical_focal_dice_loss
from arrcoc_sam.losses.multimask import IOU_LOSSES, SUPERVISIONS, IoULoss, MultiMaskTerms, Supervise, multimask_loss

__all__ = ["FocalDiceKeywords", "FocalDiceLoss", "HierarchicalAttentionLoss", "MultiMaskLoss"]


class FocalDiceKeywords(TypedDict, total=False):
    """Keywords of :func:`arrcoc_sam.losses.functional.focal_dice_loss` that every module takes, with its defaults."""

    focal_weight: float
    dice_weight: float
    alpha: float | None
    gamma: float
    smooth: float
    backend: Backend


class _FocalDiceModule(nn.Module):
    """Holds and checks the options that the three modules share."""

    def __init__(self, options: FocalDiceKeywords) -> None:
        super().__init__()
        for name in options:
            if name not in FocalDiceKeywords.__annotations__:
                self._refuse(name)
        check_focal_dice(**options)
        self.options = options

    def _refuse(self, name: str) -> NoReturn:
        """Python's own kind of error for a keyword that is not there; its own message names an inner function."""
        known = [each for each in signature(type(self)).parameters if each != "options"]
        known += FocalDiceKeywords.__annotations__
        mend = near_name(name, known)
        if name in signature(self.forward).parameters:
            mend = f"pass {name}= to the call: criterion(…, {name}=…)"
        raise TypeError(explain(f"{type(self).__name__} has no option {name!r}", f"one of {', '.join(known)}", mend))

    def extra_repr(self) -> str:
        """The options that were given; the others are the function's defaults."""
        own = {name: value for name, value in vars(self).items() if isinstance(value, (str, float, int))}
        own.pop("training", None)
        return ", ".join(f"{name}={value!r}" for name, value in (own | dict(self.options)).items())


class FocalDiceLoss(_FocalDiceModule):
    """:func:`arrcoc_sam.losses.functional.focal_dice_loss` with its options held.

    Args:
        reduction: "none" per mask, "mean" over the masks, "sum".
        **options: ``focal_weight``, ``dice_weight``, ``alpha``, ``gamma``, ``smooth`` and ``backend`` of the function.

    Example:
        >>> import torch
        >>> criterion = FocalDiceLoss(focal_weight=1.0)
        >>> criterion
        FocalDiceLoss(reduction='mean', focal_weight=1.0)
        >>> criterion(torch.zeros(2, 8, 8, requires_grad=True), torch.ones(2, 8, 8)).backward()
    """

    def __init__(self, *, reduction: Reduction = "mean", **options: Unpack[FocalDiceKeywords]) -> None:
        super().__init__(options)
        check_choice(reduction, "reduction", REDUCTIONS)
        self.reduction: Reduction = reduction

    def forward(
        self, logits: Float[Tensor, "*N H W"], targets: Shaped[Tensor, "*N H W"]
    ) -> Float[Tensor, "*N"] | Float[Tensor, ""]:
        """The loss of logits (…, H, W) against targets of the same shape."""
        return focal_dice_loss(logits, targets, reduction=self.reduction, **self.options)


class MultiMaskLoss(_FocalDiceModule):
    """:func:`arrcoc_sam.losses.functional.multimask_loss` with its options held: SAM's loss of one decoder answer.

    Args:
        iou_weight: Weight of the IoU head's loss, ≥ 0.
        iou_kind: "mse" (SAM 1) or "l1" (SAM 2).
        iou_supervise: "all" masks, or the "winner" alone.
        **options: ``focal_weight``, ``dice_weight``, ``alpha``, ``gamma``, ``smooth`` and ``backend`` of the function.

    Example:
        >>> import torch
        >>> logits, target = torch.zeros(2, 3, 8, 8), torch.ones(2, 8, 8)
        >>> sorted(MultiMaskLoss(iou_kind="l1")(logits, target, torch.rand(2, 3)))
        ['iou_loss', 'loss', 'mask_loss', 'winner']
    """

    def __init__(
        self,
        *,
        iou_weight: float = 1.0,
        iou_kind: IoULoss = "mse",
        iou_supervise: Supervise = "all",
        **options: Unpack[FocalDiceKeywords],
    ) -> None:
        super().__init__(options)
        check_number(iou_weight, "iou_weight")
        check_choice(iou_kind, "iou_kind", IOU_LOSSES)
        check_choice(iou_supervise, "iou_supervise", SUPERVISIONS)
        self.iou_weight = iou_weight
        self.iou_kind: IoULoss = iou_kind
        self.iou_supervise: Supervise = iou_supervise

    def forward(
        self, logits: Float[Tensor, "B M H W"], target: Shaped[Tensor, "B H W"], predicted_iou: Float[Tensor, "B M"]
    ) -> MultiMaskTerms:
        """``loss``, ``mask_loss``, ``iou_loss`` and ``winner`` of one decoder answer."""
        return multimask_loss(
            logits,
            target,
            predicted_iou,
            iou_weight=self.iou_weight,
            iou_kind=self.iou_kind,
            iou_supervise=self.iou_supervise,
            **self.options,
        )


class HierarchicalAttentionLoss(_FocalDiceModule):
    """:func:`arrcoc_sam.losses.functional.hierarchical_focal_dice_loss` with its options held.

    Args:
        normalize: Whether "mean" divides by the sum of the weights, or by the batch size.
        reduction: "none" per sample and level, "mean", "sum".
        **options: ``focal_weight``, ``dice_weight``, ``alpha``, ``gamma``, ``smooth`` and ``backend`` of the function.

    Example:
        >>> import torch
        >>> criterion = HierarchicalAttentionLoss(normalize=False)
        >>> levels = [torch.zeros(1, side, side) for side in (8, 16, 32)]
        >>> criterion(levels, torch.ones(1, 3, 64, 64, dtype=torch.bool), torch.ones(1, 3)).ndim
        0
    """

    def __init__(
        self, *, normalize: bool = True, reduction: Reduction = "mean", **options: Unpack[FocalDiceKeywords]
    ) -> None:
        super().__init__(options)
        check_choice(reduction, "reduction", REDUCTIONS)
        self.normalize = normalize
        self.reduction: Reduction = reduction

    def forward(
        self,
        attention_logits: Sequence[Float[Tensor, "B _ _"]] | Float[Tensor, "B L h w"],
        masks: Bool[Tensor, "B L H W"] | Float[Tensor, "B L H W"],
        confidence: Float[Tensor, "B L"],
        *,
        valid: Bool[Tensor, "B L"] | Bool[Tensor, " B"] | None = None,
        normalizer: float | Float[Tensor, ""] | None = None,
    ) -> Float[Tensor, "B L"] | Float[Tensor, ""]:
        """The loss of L levels of attention logits against masks (B, L, H, W), weighted by confidence (B, L).

        On several processes, or with accumulated gradients, ``normalizer`` is what the mean divides by: see
        :func:`~arrcoc_sam.losses.functional.hierarchical_focal_dice_loss`.
        """
        return hierarchical_focal_dice_loss(
            attention_logits,
            masks,
            confidence,
            valid=valid,
            normalize=self.normalize,
            normalizer=normalizer,
            reduction=self.reduction,
            **self.options,
        )
