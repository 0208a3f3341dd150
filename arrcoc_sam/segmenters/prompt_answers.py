"""Many prompts on many images, each answered as it was asked: several masks to one click, one mask to more."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from arrcoc_sam.candidates import MaskCandidates
from arrcoc_sam.prompts import Prompts
from arrcoc_sam.segmenters.base import Segmenter
from arrcoc_sam.segmenters.embedding import ImageEmbedding

__all__ = ["answer_prompts", "is_ambiguous"]


def is_ambiguous(prompts: Prompts) -> Bool[Tensor, " K"]:
    """Whether each prompt is a single click and nothing else: a whole, a part or a subpart may be meant."""
    return (prompts.num_points == 1) & ~prompts.has_box & ~prompts.has_mask


def answer_prompts(
    segmenter: Segmenter, embedding: ImageEmbedding, prompts: Prompts, *, chunk_size: int | None = None
) -> list[MaskCandidates]:
    """Answer K prompts: a single click with tokens 1-3; all else leaves little open, and is answered with token 0.

    Args:
        segmenter: Answers.
        embedding: Of all the images that ``prompts.image_index`` counts.
        prompts: Points, boxes and masks, mixed as you like.
        chunk_size: As for ``segmenter.decode``.

    Returns:
        For each prompt its candidates (K = 1, M = 3 or 1), in order. They are views: no mask is upscaled before it is
        asked for.

    Raises:
        EmbeddingMismatchError: The embedding is another segmenter's.
        InputError: As for ``segmenter.decode``.

    Example:
        >>> import numpy as np
        >>> from arrcoc_sam.segmenters import load_segmenter
        >>> tiny = load_segmenter("tiny", device="cpu")
        >>> images = [np.zeros((60, 80, 3), np.uint8), np.zeros((50, 50, 3), np.uint8)]
        >>> boxes = [[float("nan")] * 4, [2, 2, 30, 30]]
        >>> prompts = Prompts(points_xy=[[[20, 10]], [[5, 5]]], boxes_xyxy=boxes, image_index=[0, 1])
        >>> [candidates.token_index.tolist() for candidates in answer_prompts(tiny, tiny.encode(images), prompts)]
        [[1, 2, 3], [0]]
    """
    ambiguous = is_ambiguous(prompts)
    answers: dict[int, MaskCandidates] = {}
    for multimask in (True, False):
        rows = (ambiguous == multimask).nonzero()[:, 0]
        if len(rows):
            with torch.no_grad():
                found = segmenter.decode(embedding, prompts[rows], multimask, chunk_size=chunk_size)
            answers.update(zip(rows.tolist(), found, strict=True))
    return [answers[row] for row in range(len(prompts))]
