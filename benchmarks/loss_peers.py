"""Focal and Dice losses of other libraries behind one signature: (R, H, W) logits and float targets to their mean.

Every peer is called the way its documentation says, with the options that bring it closest to Segment Anything's loss:
α = ¼, γ = 2, smoothing 1, the mean over masks of a number per mask.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Peer:
    """Another library's losses.

    Attributes:
        name: How the tables call it.
        distribution: The package whose version is recorded.
        focal: The focal loss, or None if it has none.
        dice: The Dice loss of sigmoid probabilities, or None if it has none.
        note: What differs, in a few words.
    """

    name: str
    distribution: str
    focal: Loss | None
    dice: Loss | None
    note: str

    def focal_dice(self, logits: Tensor, targets: Tensor) -> Tensor:
        """20 · focal + Dice, or what there is of it."""
        parts = []
        if self.focal is not None:
            parts.append(20 * self.focal(logits, targets))
        if self.dice is not None:
            parts.append(self.dice(logits, targets))
        return sum(parts[1:], parts[0])


def sam2_dice(logits: Tensor, targets: Tensor) -> Tensor:
    """1 − (2Σpt + 1)/(Σp + Σt + 1) in its plain form: DETR's, MaskFormer's and SAM 2's."""
    p, t = logits.sigmoid().flatten(1), targets.flatten(1)
    return (1 - (2 * (p * t).sum(-1) + 1) / (p.sum(-1) + t.sum(-1) + 1)).mean()


def _torchvision() -> Peer:
    from torchvision.ops import sigmoid_focal_loss

    return Peer(
        "torchvision + SAM 2's Dice",
        "torchvision",
        lambda x, t: sigmoid_focal_loss(x, t, alpha=0.25, gamma=2, reduction="mean"),
        sam2_dice,
        "“none” is per pixel; no Dice of its own",
    )


def _transformers() -> Peer:
    from transformers.loss import loss_for_object_detection as detr

    return Peer(
        "transformers (DETR)",
        "transformers",
        lambda x, t: detr.sigmoid_focal_loss(x.flatten(1), t.flatten(1), len(x)),
        lambda x, t: detr.dice_loss(x.flatten(1), t.flatten(1), len(x)),
        "sums over masks, divided by `num_boxes`",
    )


def _monai() -> Peer:
    from monai.losses import DiceLoss, FocalLoss

    focal, dice = FocalLoss(gamma=2.0, alpha=0.25), DiceLoss(sigmoid=True, smooth_nr=1.0, smooth_dr=1.0)
    return Peer(
        "MONAI",
        "monai",
        lambda x, t: focal(x.unsqueeze(1), t.unsqueeze(1)),
        lambda x, t: dice(x.unsqueeze(1), t.unsqueeze(1)),
        "smooths with 1e-5 by default; focal of soft targets uses another p_t; `soft_label=True` is another Dice",
    )


def _smp() -> Peer:
    from segmentation_models_pytorch.losses import DiceLoss, FocalLoss

    # Its Tversky form smooths (Σpt + s)/(½Σp + ½Σt + s): s = ½ there is s = 1 here.
    focal, dice = FocalLoss("binary", alpha=0.25, gamma=2.0), DiceLoss("multilabel", smooth=0.5)
    return Peer(
        "segmentation-models-pytorch",
        "segmentation-models-pytorch",
        lambda x, t: focal(x.unsqueeze(1), t.unsqueeze(1)),
        lambda x, t: dice(x.unsqueeze(0), t.unsqueeze(0)),
        "one Dice of the whole batch unless masks are channels; an empty target costs 0; `smooth` counts double",
    )


def _kornia() -> Peer:
    from kornia.losses import binary_focal_loss_with_logits, dice_loss

    def two_classes(x: Tensor, t: Tensor) -> Tensor:
        return dice_loss(torch.stack([torch.zeros_like(x), x], 1), (t > 0.5).long(), average="macro", eps=1.0)

    return Peer(
        "kornia",
        "kornia",
        lambda x, t: binary_focal_loss_with_logits(
            x.unsqueeze(1), t.unsqueeze(1), alpha=0.25, gamma=2.0, reduction="mean"
        ),
        two_classes,
        "Dice of class labels, the background counted as a class; no soft targets there; smooths the denominator only",
    )


BUILDERS: dict[str, Callable[[], Peer]] = {
    "torchvision + SAM 2's Dice": _torchvision,
    "transformers (DETR)": _transformers,
    "MONAI": _monai,
    "segmentation-models-pytorch": _smp,
    "kornia": _kornia,
}
"""How to make each peer; what it imports is imported then."""


def peers() -> list[Peer]:
    """The peers that are installed; all of them with the extras ``bench`` and ``hf``."""
    made = []
    for build in BUILDERS.values():
        with suppress(ImportError):
            made.append(build())
    return made
