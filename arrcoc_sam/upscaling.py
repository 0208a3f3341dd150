"""From low-resolution logits to the original image, as segment-anything does it."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from arrcoc_sam.geometry import ImageTransform

__all__ = ["interpolate_twice", "upscale"]


def upscale(
    logits: Float[Tensor, "K M h w"], transform: ImageTransform, *, size_hw: tuple[int, int] | None = None
) -> Float[Tensor, "K M H W"]:
    """Low-resolution logits at image resolution, as segment-anything does it: two bilinear steps.

    The first goes to the model's frame, whose padding is then cut off; the second to the original size
    (``align_corners=False``, no antialiasing). Differentiable.

    Args:
        logits: (K, M, h, w) over the whole frame of the model, padding included.
        transform: The map from the image to that frame.
        size_hw: The size to go to; the original one by default.

    Returns:
        (K, M, H, W), of the logits' dtype. Thresholds belong on this, not on the logits before.

    Reference:
        ``Sam.postprocess_masks`` of segment-anything.
    """
    # A mask a row: of several channels PyTorch would make a channels-last copy, which takes longer than the work. In
    # one thread that copy rounds otherwise.
    shown = interpolate_twice(logits.flatten(0, 1)[:, None], transform, size_hw or transform.original_hw)
    return shown.reshape(*logits.shape[:2], *shown.shape[-2:])


def interpolate_twice(
    logits: Float[Tensor, "N C h w"], transform: ImageTransform, size_hw: tuple[int, int]
) -> Float[Tensor, "N C H W"]:
    """The steps of :func:`upscale` by the operations of segment-anything: bit by bit the same for as many channels."""
    height, width = transform.resized_hw
    frame = F.interpolate(logits, transform.frame_hw, mode="bilinear", align_corners=False)[..., :height, :width]
    if (height, width) != tuple(size_hw):  # at its own size, interpolation changes nothing
        frame = F.interpolate(frame, size_hw, mode="bilinear", align_corners=False)
    return frame
