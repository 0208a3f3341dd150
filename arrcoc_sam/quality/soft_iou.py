"""Soft IoU: how far a mask overlaps with a decoder's probabilities, which know how sure it is of each pixel."""

from __future__ import annotations

from jaxtyping import Float, Float32
from torch import Tensor

__all__ = ["soft_iou"]


def soft_iou(
    logits: Float[Tensor, "K M h w"], shares: Float[Tensor, "K h w"], valid: Float[Tensor, "h w"]
) -> Float32[Tensor, "K M"]:
    """Σ p·m / Σ (p + m − p·m), with p = sigmoid(logits) and m the share of each cell that a mask covers.

    An uncertain cell counts for half, wherever its logit lies to the threshold; IoU with the thresholded mask can't
    tell it from one that the decoder is sure of.

    Args:
        logits: (K, M, h, w) low-resolution logits of M candidates for each mask.
        shares: (K, h, w) in [0, 1], of :meth:`~arrcoc_sam.geometry.ImageTransform.masks_to_grid`.
        valid: (h, w) how much each cell counts, of :meth:`~arrcoc_sam.geometry.ImageTransform.grid_valid`; 0 on
            padding.

    Returns:
        (K, M) float32 in [0, 1], on the logits' device; 0 for an empty mask, NaN where p is 0 everywhere as well.
    """
    weight = valid.to(logits.device)
    chances = logits.detach().float().sigmoid()
    masks = shares.to(logits.device).float() * weight
    # sums of products and no matrix product: autocast and TF32 would round that
    both = (chances * masks[:, None]).sum((-2, -1))
    either = (chances * weight).sum((-2, -1)) + masks.sum((-2, -1))[:, None] - both
    return (both / either).clamp(max=1.0)
