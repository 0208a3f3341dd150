"""Weights of segment-anything's ``Sam`` under the names of transformers' ``SamModel``."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

_MLP = (("layers.0.", "proj_in."), ("layers.1.", "layers.0."), ("layers.2.", "proj_out."))
_RENAMED = (
    ("image_encoder.", "vision_encoder."),
    ("patch_embed.proj.", "patch_embed.projection."),
    (".blocks.", ".layers."),
    ("neck.0.", "neck.conv1."),
    ("neck.1.", "neck.layer_norm1."),
    ("neck.2.", "neck.conv2."),
    ("neck.3.", "neck.layer_norm2."),
    ("mask_downscaling.0.", "mask_embed.conv1."),
    ("mask_downscaling.1.", "mask_embed.layer_norm1."),
    ("mask_downscaling.3.", "mask_embed.conv2."),
    ("mask_downscaling.4.", "mask_embed.layer_norm2."),
    ("mask_downscaling.6.", "mask_embed.conv3."),
    ("point_embeddings.", "point_embed."),
    ("pe_layer.positional_encoding_gaussian_matrix", "shared_embedding.positional_embedding"),
    ("output_upscaling.0.", "upscale_conv1."),
    ("output_upscaling.1.", "upscale_layer_norm."),
    ("output_upscaling.3.", "upscale_conv2."),
    (".norm", ".layer_norm"),
)


def transformers_name(key: str) -> str:
    """What ``SamModel`` calls a tensor of ``Sam``."""
    new = key
    if "output_hypernetworks_mlps" in key or "iou_prediction_head" in key:
        old, instead = next(pair for pair in _MLP if re.search(rf"\.{re.escape(pair[0])}", key))
        new = key.replace(f".{old}", f".{instead}")
    for old, instead in _RENAMED:
        new = new.replace(old, instead)
    return new


def to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a ``SamModel`` with the weights of a ``Sam``."""
    renamed = {transformers_name(key): value for key, value in state.items() if not key.startswith("pixel_")}
    twin = renamed["prompt_encoder.shared_embedding.positional_embedding"]
    return {**renamed, "shared_image_embedding.positional_embedding": twin}
