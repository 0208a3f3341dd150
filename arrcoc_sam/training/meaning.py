"""What a click may mean: every mask that it lies in, each as probable as it is small."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from arrcoc_sam.errors import InputError, explain
from arrcoc_sam.losses import functional as LF
from arrcoc_sam.masks import mask_iou
from arrcoc_sam.training.batches import PromptBatch
from arrcoc_sam.training.recipe import ClickRecipe

__all__ = ["Meant", "expected_iou", "matched_loss", "what_is_meant"]


class Meant(NamedTuple):
    """What k prompts may mean: A masks each, padded with empty ones, and how probable each is."""

    masks: Bool[Tensor, "k A g g"]
    chance: Float[Tensor, "k A"]


def what_is_meant(batch: PromptBatch, rows: Int64[Tensor, " k"], boxed: Bool[Tensor, " K"]) -> Meant:
    """What some prompts of a batch may mean: what the click leaves open, or the target where a box has said it.

    Raises:
        InputError: The batch does not tell.
    """
    if batch.meant is None or batch.meant_chance is None:
        came = "a batch that does not tell what its clicks may have meant"
        raise InputError(explain(came, mend="draw it by a plan with with_meant"))
    masks, chance, said = batch.meant[rows], batch.meant_chance[rows], boxed[rows]
    if said.any():
        masks, chance = masks.clone(), chance.clone()
        masks[said, 0] = batch.targets[rows][said] > 0.5
        chance[said] = torch.eye(chance.shape[1], device=chance.device)[0]
    return Meant(masks, chance)


def matched_loss(shown: Float[Tensor, "k M g g"], meant: Meant, recipe: ClickRecipe) -> Float[Tensor, " k"]:
    """The mask loss of everything a prompt may mean; of more than there are masks, the most probable."""
    most = shown.shape[1]
    chance = meant.chance[:, :most]
    loss, _ = LF.matched_masks_loss(
        shown,
        meant.masks[:, :most],
        chance / chance.sum(dim=1, keepdim=True),
        focal_weight=recipe.focal_weight,
        dice_weight=recipe.dice_weight,
    )
    return loss


def expected_iou(masks: Bool[Tensor, "k M g g"], meant: Meant) -> Float[Tensor, "k M"]:
    """Mean IoU of masks over what their prompts may mean."""
    each = mask_iou(masks[:, :, None], meant.masks[:, None]).nan_to_num(0.0)
    return (each * meant.chance[:, None]).sum(dim=2)
