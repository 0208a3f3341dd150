"""Ways to run SAM's mask decoder with an image embedding for each prompt.

segment-anything repeats one image's embedding for all prompts; here every prompt brings the embedding of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float
from segment_anything.modeling import MaskDecoder
from torch import Tensor

from arrcoc_sam.segmenters.mask_scoring import looks_at_masks, scored_iou
from arrcoc_sam.segmenters.prompt_content import with_content
from arrcoc_sam.segmenters.upscaling import Upscaling, convolved_masks

__all__ = ["DecoderPath", "Transform", "published_decoder", "run_decoder", "stock_decoder", "stock_transformer"]

Transform: TypeAlias = Callable[[Any, Tensor, Tensor, Tensor, Sequence[int]], tuple[Tensor, Tensor]]
"""A way through the two-way transformer; see :func:`run_decoder`."""


@runtime_checkable
class DecoderPath(Protocol):
    """A way to run SAM's mask decoder with an image embedding for each prompt."""

    def __call__(
        self,
        decoder: MaskDecoder,
        image_embeddings: Float[Tensor, "k C h w"],
        image_pe: Float[Tensor, "1 C h w"],
        sparse: Float[Tensor, "k n C"],
        dense: Float[Tensor, "k C h w"],
        tokens: Sequence[int],
        *,
        reduced: Callable[[], AbstractContextManager[object]],
    ) -> tuple[Float[Tensor, "k m H W"], Float[Tensor, "k m"]]:
        """Logits and predicted IoU of some of the mask tokens; ``reduced`` goes around the transformer."""
        ...


def stock_decoder(
    decoder: MaskDecoder,
    image_embeddings: Float[Tensor, "k C h w"],
    image_pe: Float[Tensor, "1 C h w"],
    sparse: Float[Tensor, "k n C"],
    dense: Float[Tensor, "k C h w"],
    tokens: Sequence[int],
    *,
    reduced: Callable[[], AbstractContextManager[object]],
) -> tuple[Float[Tensor, "k m H W"], Float[Tensor, "k m"]]:
    """SAM's mask decoder by its own submodules, one embedding a prompt.

    Args:
        decoder: The decoder.
        image_embeddings: The embedding of each prompt's image.
        image_pe: The positional encoding of the embedding's grid.
        sparse: Tokens of points and boxes.
        dense: What the mask prompts add to the embedding.
        tokens: Which mask tokens to answer with, in this order.
        reduced: Makes the context that the transformer runs in (autocast); the rest runs in the caller's, and in the
            dtype of the decoder's weights.

    Returns:
        Logits and raw predicted IoU, float32.

    Reference:
        ``MaskDecoder.predict_masks`` of segment-anything.
    """
    given = (decoder, image_embeddings, image_pe, sparse, dense, tokens)
    return run_decoder(stock_transformer, *given, reduced=reduced)


def stock_transformer(
    transformer: Any, source: Tensor, image_pe: Tensor, queries: Tensor, answers: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """segment-anything's own way; see :func:`run_decoder`."""
    queries, keys = transformer(source, image_pe, queries)
    return queries[:, list(answers)], keys


def run_decoder(
    transform: Transform,
    decoder: MaskDecoder,
    image_embeddings: Float[Tensor, "k C h w"],
    image_pe: Float[Tensor, "1 C h w"],
    sparse: Float[Tensor, "k n C"],
    dense: Float[Tensor, "k C h w"],
    tokens: Sequence[int],
    *,
    reduced: Callable[[], AbstractContextManager[object]],
    upscale: Upscaling = convolved_masks,
    masks: bool = True,
) -> tuple[Float[Tensor, "k m H W"], Float[Tensor, "k m"]]:
    """:func:`stock_decoder` with other ways through the two-way transformer and from there to the masks.

    Args:
        transform: From the decoder's transformer, the embedding with the mask prompt added, its positional encoding,
            all tokens, and which of them are read: these tokens and the image's positions, (k, a, C) and (k, n, C).
        decoder: The decoder.
        image_embeddings: The embedding of each prompt's image.
        image_pe: The positional encoding of the embedding's grid.
        sparse: Tokens of points and boxes.
        dense: What the mask prompts add to the embedding.
        tokens: Which mask tokens to answer with, in this order.
        reduced: Makes the transformer's context.
        upscale: From the decoder's upscaling, the image's positions, a vector a mask, and the grid: the logits.
        masks: False gives no masks, logits (k, m, 0, 0), and works them out only if predicted IoU depends on them.

    Returns:
        Logits and raw predicted IoU, float32.
    """
    learned = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    sparse = with_content(decoder, image_embeddings, image_pe, sparse)
    queries = torch.cat([learned.expand(len(sparse), -1, -1), sparse], dim=1)
    source = image_embeddings + dense
    with_masks = masks or looks_at_masks(decoder)
    answers = [0, *(1 + token for token in tokens)] if with_masks else [0]
    with reduced():
        queries, keys = transform(decoder.transformer, source, image_pe, queries, answers)
    queries, keys = queries.to(learned.dtype), keys.to(learned.dtype)
    predicted_iou = decoder.iou_prediction_head(queries[:, 0])[:, list(tokens)].float()
    nothing = predicted_iou.new_empty(*predicted_iou.shape, 0, 0)
    if not with_masks:
        return nothing, predicted_iou
    mlps = decoder.output_hypernetworks_mlps
    weights = torch.stack([mlps[token](queries[:, 1 + row]) for row, token in enumerate(tokens)], dim=1)
    logits = upscale(decoder.output_upscaling, keys, weights, (source.shape[2], source.shape[3])).float()
    return logits if masks else nothing, scored_iou(decoder, logits, predicted_iou, tokens)


def published_decoder(
    decoder: MaskDecoder,
    image_embeddings: Float[Tensor, "k C h w"],
    image_pe: Float[Tensor, "1 C h w"],
    sparse: Float[Tensor, "k n C"],
    dense: Float[Tensor, "k C h w"],
    tokens: Sequence[int],
    *,
    reduced: Callable[[], AbstractContextManager[object]],
) -> tuple[Float[Tensor, "k m H W"], Float[Tensor, "k m"]]:
    """:func:`stock_decoder` by the decoder's own method, bit by bit for as many prompts; all are about one image."""
    with reduced():
        logits, predicted_iou = decoder.predict_masks(image_embeddings[:1], image_pe, sparse, dense)
    chosen = list(tokens)
    return logits[:, chosen].float(), predicted_iou[:, chosen].float()
