"""MobileSAM: SAM's prompt encoder and mask decoder behind a TinyViT, and the names of its published weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import cast

from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor

from arrcoc_sam.segmenters.tiny_vit import TinyViTEncoder

__all__ = ["build_mobile_sam", "rename_mobile_sam"]

_ENCODER = "image_encoder."
_CLASSIFIER = ("norm_head.", "head.")
_SUBSTITUTED = (
    (re.compile(r"^patch_embed\.seq\.0\."), "patch_embed.conv1."),
    (re.compile(r"^patch_embed\.seq\.2\."), "patch_embed.conv2."),
    (re.compile(r"^layers\."), "stages."),
    (re.compile(r"\.c\.weight$"), ".conv.weight"),
)


def build_mobile_sam(image_size: int = 1024) -> Sam:
    """MobileSAM with random weights, as segment-anything's own ``Sam``.

    Args:
        image_size: Side of the model's square frame in pixels, a multiple of 16; the published weights are for 1,024.

    Returns:
        The model; ``SamPredictor`` and everything else written for ``Sam`` works with it.

    Reference:
        ``build_sam_vit_t`` of ChaoningZhang/MobileSAM.
    """
    grid = image_size // 16
    sam = Sam(
        image_encoder=cast(ImageEncoderViT, TinyViTEncoder(image_size)),  # Sam uses img_size and forward of it, no more
        prompt_encoder=PromptEncoder(
            embed_dim=256,
            image_embedding_size=(grid, grid),
            input_image_size=(image_size, image_size),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8),
            transformer_dim=256,
            iou_head_depth=3,
            iou_head_hidden_dim=256,
        ),
        pixel_mean=[123.675, 116.28, 103.53],
        pixel_std=[58.395, 57.12, 57.375],
    )
    return sam.eval()


def rename_mobile_sam(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published weights under the names of :func:`build_mobile_sam`.

    The original ends each stage with the downsampling, timm begins the next one with it. The classifier, which the
    checkpoint carries along and MobileSAM never runs, is left out; a state dict that has our names already comes back
    as it is.

    Args:
        state: The state dict of ``mobile_sam.pt``.

    Returns:
        The same tensors by their new names, as far as they are used.

    Example:
        >>> import torch
        >>> list(rename_mobile_sam({"image_encoder.layers.0.downsample.conv1.c.weight": torch.zeros(1)}))
        ['image_encoder.stages.1.downsample.conv1.conv.weight']
    """
    renamed = {}
    for key, value in state.items():
        if not key.startswith(_ENCODER):
            renamed[key] = value
            continue
        name = key.removeprefix(_ENCODER)
        if name.startswith(_CLASSIFIER) or name.endswith("attention_bias_idxs"):
            continue
        name = re.sub(r"^layers\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) + 1}.downsample.", name)
        for pattern, instead in _SUBSTITUTED:
            name = pattern.sub(instead, name)
        renamed[_ENCODER + name] = value
    return renamed
