"""The losses as functions: the public names, each defined in the module of its own concept.

Common to all: targets, masks, confidences and weights are constants (no gradient flows to them); "none" is one number a
mask; half-precision inputs are evaluated and summed in float32; the mean over nothing is 0.
"""

from arrcoc_sam.losses.focal_dice import dice_loss, focal_dice_loss, sigmoid_focal_loss
from arrcoc_sam.losses.hierarchical import attention_mass_loss, hierarchical_focal_dice_loss
from arrcoc_sam.losses.levels import level_weights
from arrcoc_sam.losses.matching import matched_masks_loss
from arrcoc_sam.losses.multimask import MultiMaskTerms, iou_prediction_loss, min_over_masks_loss, multimask_loss

__all__ = [
    "MultiMaskTerms",
    "attention_mass_loss",
    "dice_loss",
    "focal_dice_loss",
    "hierarchical_focal_dice_loss",
    "iou_prediction_loss",
    "level_weights",
    "matched_masks_loss",
    "min_over_masks_loss",
    "multimask_loss",
    "sigmoid_focal_loss",
]
