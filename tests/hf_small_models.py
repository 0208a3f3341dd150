"""Each family of transformers at toy widths with random weights: frames of 128 × 128, embeddings of 8 × 8."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from arrcoc_sam.segmenters.hf.families import FAMILIES, SamFamily
from arrcoc_sam.segmenters.hf.segmenter import HuggingFaceSegmenter

WIDTH = 32
VIDEO_WIDTH = 128  # twice the memories' own width, which is fixed in transformers
FRAME = 128
GRID = FRAME // 16
NAMES = tuple(family.name for family in FAMILIES)
VIDEO_NAMES = tuple(family.name for family in FAMILIES if family.video_class)

_SIZES = [[GRID * 4, GRID * 4], [GRID * 2, GRID * 2], [GRID, GRID]]
_MEMORY: dict[str, Any] = {
    "image_size": FRAME,
    "memory_attention_hidden_size": VIDEO_WIDTH,
    "memory_attention_num_layers": 1,
    "memory_attention_rope_feat_sizes": [GRID, GRID],
    "memory_encoder_hidden_size": VIDEO_WIDTH,
    "memory_encoder_output_channels": 64,
    "mask_downsampler_embed_dim": VIDEO_WIDTH,
    "memory_fuser_num_layers": 1,
    "memory_fuser_embed_dim": VIDEO_WIDTH,
    "memory_fuser_intermediate_dim": 64,
}


_SPREAD = ("mask_decoder", "prompt_encoder", "memory_", "object_pointer_proj", "spatial_perceiver")


def family(name: str) -> SamFamily:
    return next(family for family in FAMILIES if family.name == name)


def config_of(name: str, *, video: bool = False) -> Any:
    """The configuration of a toy model."""
    import transformers

    width = VIDEO_WIDTH if video else WIDTH
    prompts = {"hidden_size": width, "image_size": FRAME, "patch_size": 16, "mask_input_channels": 16}
    decoder = {"hidden_size": width, "mlp_dim": 64, "num_attention_heads": 4, "iou_head_hidden_dim": width}

    if name in ("SAM", "SAM-HQ"):
        vision = {
            "hidden_size": WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": FRAME,
            "patch_size": 16,
            "window_size": 3,
            "global_attn_indexes": [1],
            "output_channels": WIDTH,
            "num_pos_feats": WIDTH // 2,
            "mlp_dim": 4 * WIDTH,
        }
        kind = transformers.SamConfig if name == "SAM" else transformers.SamHQConfig
        decoder |= {} if name == "SAM" else {"vit_dim": WIDTH}
        prompts |= {"image_embedding_size": GRID}
        return kind(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    if name == "SAM 2":
        vision = {
            "model_type": "sam2_vision_model",
            "backbone_config": {
                "model_type": "sam2_hiera_det_model",
                "hidden_size": 8,
                "image_size": [FRAME, FRAME],
                "blocks_per_stage": [1, 1, 2, 1],
                "embed_dim_per_stage": [8, 16, 32, 64],
                "num_attention_heads_per_stage": [1, 1, 2, 2],
                "window_size_per_stage": [8, 4, 4, 4],
                "global_attention_blocks": [3],
            },
            "backbone_channel_list": [64, 32, 16, 8],
            "backbone_feature_sizes": _SIZES,
            "fpn_hidden_size": width,
        }
        kind = transformers.Sam2VideoConfig if video else transformers.Sam2Config
    elif name == "EdgeTAM":
        vision = {
            "model_type": "edgetam_vision_model",
            "backbone_config": {
                "model_type": "timm_wrapper",
                "architecture": "test_convnext",
                "num_classes": 2,
                "model_args": {"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]},
            },
            "backbone_channel_list": [64, 48, 32, 24],
            "backbone_feature_sizes": _SIZES,
            "fpn_hidden_size": width,
        }
        kind = transformers.EdgeTamVideoConfig if video else transformers.EdgeTamConfig
    else:
        vision = {
            "model_type": "sam3_vision_model",
            "backbone_config": {
                "model_type": "sam3_vit_model",
                "hidden_size": WIDTH,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": FRAME,
                "patch_size": 16,
                "pretrain_image_size": 64,
                "window_size": 4,
                "global_attn_indexes": [1],
            },
            "backbone_feature_sizes": _SIZES,
            "fpn_hidden_size": width,
        }
        kind = transformers.Sam3TrackerConfig
    memory = dict(_MEMORY) if video else {}
    if video and name == "EdgeTAM":
        memory |= {
            "memory_attention_mlp_hidden_size": 64,
            "memory_attention_rope_k_sizes": [4, 4],
            "perceiver_resampler_num_latents": 16,
            "perceiver_resampler_num_latents_2d": 16,
            "perceiver_resampler_mlp_intermediate_size": 64,
        }
    elif video:
        memory |= {"memory_attention_feed_forward_hidden_size": 64}
    return kind(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder, **memory)


def build(name: str, *, video: bool = False, seed: int = 0) -> nn.Module:
    """A toy model, its logits spread over both signs, its positions random."""
    import transformers

    kind = family(name).video_class if video else family(name).image_class
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = getattr(transformers, str(kind))(config_of(name, video=video))
        for key, parameter in model.named_parameters():
            if "pos_embed" in key or "rel_pos" in key or "no_memory" in key or "temporal_positional_encoding" in key:
                nn.init.normal_(parameter, std=0.3)  # zeros until trained, which would hide a wrong position
            elif "memory_fuser" in key and "scale" in key:
                nn.init.constant_(parameter, 0.5)  # next to nothing until trained, which would hide a wrong memory
            elif parameter.ndim > 1 and key.startswith(_SPREAD):
                nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        for mlp in model.mask_decoder.output_hypernetworks_mlps:
            nn.init.normal_(mlp.proj_out.weight, std=2.0)
        if video:  # a hidden object has no mask to compare
            nn.init.constant_(model.mask_decoder.pred_obj_score_head.proj_out.bias, 1.0)
        for key, buffer in model.named_buffers():
            if key.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return model.eval().requires_grad_(False)


def build_segmenter(name: str, *, seed: int = 0) -> HuggingFaceSegmenter:
    return HuggingFaceSegmenter(build(name, seed=seed), family(name), name=f"small {name}")
