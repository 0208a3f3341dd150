"""The predicted IoU of candidates whose masks nobody looks at."""

from __future__ import annotations

import copy
from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from arrcoc_sam.prompts import Prompts
from arrcoc_sam.segmenters.base import Multimask, Segmenter
from arrcoc_sam.segmenters.embedding import ImageEmbedding
from arrcoc_sam.segmenters.folded import FoldedDecoder
from arrcoc_sam.segmenters.sam import SamSegmenter

__all__ = ["predict_iou"]


def predict_iou(
    segmenter: Segmenter,
    embedding: ImageEmbedding,
    prompts: Prompts,
    multimask: Multimask = True,
    *,
    chunk_size: int | None = None,
) -> Float[Tensor, "K M"]:
    """Only the predicted IoU of the candidates that ``segmenter.decode`` would give: no mask is made.

    Args:
        segmenter: On a ``Sam`` the masks' share of the work is left out; any other decodes and drops them.
        embedding: As for ``decode``.
        prompts: As for ``decode``.
        multimask: As for ``decode``.
        chunk_size: As for ``decode``.

    Returns:
        (K, M) raw predictions.

    Raises:
        EmbeddingMismatchError: The embedding is another segmenter's.
        InputError: As for ``decode``.
    """
    _ = segmenter.checkpoint_hash  # worked out once, not by every copy
    without_masks = copy.copy(segmenter)
    if isinstance(without_masks, SamSegmenter):
        path = without_masks.decoder_path
        without_masks.decoder_path = replace(path if isinstance(path, FoldedDecoder) else FoldedDecoder(), masks=False)
    return without_masks.decode(embedding, prompts, multimask, chunk_size=chunk_size).predicted_iou
