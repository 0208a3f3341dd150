"""A small SAM with random weights, of segment-anything's own classes, and photographs' stand-ins."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

from arrcoc_sam.segmenters.sam import SamSegmenter

WIDTH = 32
FRAME = 128
GRID = FRAME // 16


def build_small_sam(seed: int = 0) -> Sam:
    """SAM's architecture at toy widths: 8 × 8 positions, mask prompts of 32 × 32."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sam = Sam(
            image_encoder=ImageEncoderViT(
                img_size=FRAME,
                patch_size=16,
                embed_dim=WIDTH,
                depth=2,
                num_heads=2,
                out_chans=WIDTH,
                use_rel_pos=True,
                window_size=3,
                global_attn_indexes=(1,),
            ),
            prompt_encoder=PromptEncoder(
                embed_dim=WIDTH,
                image_embedding_size=(GRID, GRID),
                input_image_size=(FRAME, FRAME),
                mask_in_chans=16,
            ),
            mask_decoder=MaskDecoder(
                num_multimask_outputs=3,
                transformer=TwoWayTransformer(depth=2, embedding_dim=WIDTH, mlp_dim=64, num_heads=4),
                transformer_dim=WIDTH,
                iou_head_depth=3,
                iou_head_hidden_dim=WIDTH,
            ),
        )
        for name, parameter in sam.named_parameters():
            if "pos" in name:  # zeros until trained, which would hide a wrong position
                torch.nn.init.normal_(parameter, std=0.5)
        # random weights answer in a narrow range: spread the logits over both signs, as trained ones do
        for mlp in sam.mask_decoder.output_hypernetworks_mlps:
            torch.nn.init.normal_(mlp.layers[-1].weight, std=2.0)
    return sam.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def small_sam() -> Sam:
    return build_small_sam()


@pytest.fixture(scope="session")
def small_sam_of() -> Callable[..., Sam]:
    """Makes small SAMs of one's own: (seed) -> Sam."""
    return build_small_sam


@pytest.fixture(scope="session")
def segmenter(small_sam: Sam) -> SamSegmenter:
    return SamSegmenter(small_sam, name="small")


@pytest.fixture(scope="session")
def picture() -> Callable[[int, int, int], np.ndarray]:
    """Makes an image of smooth blobs of colour: (height, width, seed) -> H×W×3 uint8."""

    def make(height: int, width: int, seed: int) -> np.ndarray:
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.rand(1, 3, 6, 6, generator=generator) * 255
        smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
        return smooth[0].clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy()

    return make
