"""A segmenter that knows the truth: its candidates are made of an object's mask, its IoU is the actual one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

from arrcoc_sam.candidates import MaskCandidates
from arrcoc_sam.masks import mask_iou
from arrcoc_sam.prompts import Prompts
from arrcoc_sam.segmenters.base import Multimask
from arrcoc_sam.segmenters.embedding import ImageEmbedding
from arrcoc_sam.segmenters.sam import SamSegmenter

WIDTH, GRID = 16, 8


def toy_sam(seed: int = 0) -> Sam:
    """SAM's architecture as small as it gets, with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sam = Sam(
            image_encoder=ImageEncoderViT(
                img_size=GRID * 16, embed_dim=WIDTH, depth=1, num_heads=2, out_chans=WIDTH, global_attn_indexes=(0,)
            ),
            prompt_encoder=PromptEncoder(WIDTH, (GRID, GRID), (GRID * 16, GRID * 16), mask_in_chans=4),
            mask_decoder=MaskDecoder(
                transformer_dim=WIDTH,
                transformer=TwoWayTransformer(depth=2, embedding_dim=WIDTH, mlp_dim=32, num_heads=2),
                iou_head_hidden_dim=WIDTH,
            ),
        )
        for mlp in sam.mask_decoder.output_hypernetworks_mlps:
            torch.nn.init.normal_(mlp.layers[-1].weight, std=2.0)
    return sam.eval().requires_grad_(False)


class OracleSegmenter(SamSegmenter):
    """One object an image. Its four masks are the object, more and less of it; its IoU with the object is exact."""

    def __init__(self, truths: Sequence[np.ndarray], noise: float = 3.0) -> None:
        super().__init__(toy_sam(), name="oracle")
        self.truths = [torch.from_numpy(truth) for truth in truths]
        self.noise = noise
        self.asked = 0

    def decode(
        self,
        embedding: ImageEmbedding,
        prompts: Prompts,
        multimask: Multimask = True,
        *,
        chunk_size: int | None = None,
    ) -> MaskCandidates:
        candidates = super().decode(embedding, prompts, multimask, chunk_size=chunk_size)
        self.asked += len(prompts)
        size = self.mask_input_size
        truths = [self.truths[image] for image in prompts.image_index.tolist()]
        frames = [self.transform_for((truth.shape[0], truth.shape[1])) for truth in truths]
        shares = torch.stack([frame.masks_to_grid(truth, size) for frame, truth in zip(frames, truths, strict=True)])
        wobble = torch.randn(candidates.logits.shape, generator=torch.Generator().manual_seed(0)) * self.noise
        shift = torch.tensor([0.0, 4.0, -4.0, 1.0])[candidates.token_index]
        logits = (2 * shares - 1)[:, None] * 5 + shift[:, None, None] + wobble
        candidates = replace(candidates, logits=logits)
        predicted = [mask_iou(masks, truths[row]) for row, masks in candidates.iter_masks()]
        return replace(candidates, predicted_iou=torch.stack(predicted))


@pytest.fixture(scope="session")
def toy_segmenter() -> SamSegmenter:
    return SamSegmenter(toy_sam(), name="toy")


@pytest.fixture(scope="session")
def toy_sam_of() -> Callable[[int], Sam]:
    """Makes toy SAMs: (seed) -> Sam."""
    return toy_sam


@pytest.fixture(scope="session")
def oracle_of() -> type[OracleSegmenter]:
    """Makes segmenters that know the truth: (masks, one an image) -> segmenter."""
    return OracleSegmenter
