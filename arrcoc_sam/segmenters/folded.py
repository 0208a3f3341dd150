"""SAM's mask decoder with the projections of the image side folded onto the token side.

In the cross attentions of the two-way transformer a handful of tokens meets thousands of image positions. The stock
code projects every position to queries, keys and values. Projections are linear, so they can be moved to the tokens
instead, which is exact algebra: with n positions, C channels, and H heads of d, products of n × C × (H · d) become
products of n × C × (H · tokens). The same weights, the same numbers up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from segment_anything.modeling import MaskDecoder
from segment_anything.modeling.transformer import Attention
from torch import Tensor

from arrcoc_sam.errors import InputError, explain
from arrcoc_sam.segmenters.decoder_path import Transform, run_decoder, stock_transformer
from arrcoc_sam.segmenters.positions_last import positions_last_transformer
from arrcoc_sam.segmenters.two_way import CrossAttentions, added, added_product, can_cross, heads_of, two_way
from arrcoc_sam.segmenters.upscaling import banded_masks, convolved_masks, is_plain

__all__ = ["FoldedDecoder", "folded_transformer", "image_to_token", "token_to_image"]


@dataclass(frozen=True)
class FoldedDecoder:
    """A decoder path that folds where this pays.

    Elsewhere positions lie along memory on a CPU (:mod:`arrcoc_sam.segmenters.positions_last`), and on other devices
    the transformer runs as segment-anything has it; so it does while the decoder's weights are trained, or when they
    are not plain linear layers. On a CPU masks are upscaled in bands (:mod:`arrcoc_sam.segmenters.upscaling`), but
    while weights are trained, or where the layers are not SAM's.

    Attributes:
        masks: False gives no masks: the logits are (k, m, 0, 0), predicted IoU is as ever. Upscaling and hypernetworks
            are skipped, unless predicted IoU depends on the masks, as the embedded model's does.
        max_tokens: Fold up to so many tokens (five of the decoder's own and those of the prompt); by default while that
            takes no more products: 17 tokens in SAM 1.

    Example:
        >>> from arrcoc_sam.segmenters.sam import SamSegmenter
        >>> from arrcoc_sam.segmenters.tiny import build_tiny
        >>> segmenter = SamSegmenter(build_tiny(), name="untrained", decoder_path=FoldedDecoder(max_tokens=7))
    """

    masks: bool = True
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 0:
            raise InputError(explain(f"max_tokens={self.max_tokens}", "at least 0, or None"))

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
        """Logits and predicted IoU of some of the mask tokens, as :func:`run_decoder` gives them."""
        # A key bias drops out of the algebra and would be left without its gradient of 0, which data-parallel training
        # takes for an error; gradients to prompts and images flow through the folded code as well.
        trained = torch.is_grad_enabled() and any(weight.requires_grad for weight in decoder.parameters())
        banded = not trained and image_embeddings.device.type == "cpu" and is_plain(decoder.output_upscaling)
        num_tokens = 1 + decoder.num_mask_tokens + sparse.shape[1]
        return run_decoder(
            stock_transformer if trained else self._transform(decoder, num_tokens, image_embeddings.device),
            decoder,
            image_embeddings,
            image_pe,
            sparse,
            dense,
            tokens,
            reduced=reduced,
            upscale=banded_masks if banded else convolved_masks,
            masks=self.masks,
        )

    def _transform(self, decoder: MaskDecoder, num_tokens: int, device: torch.device) -> Transform:
        if not can_cross(decoder.transformer):
            return stock_transformer
        attention: Any = decoder.transformer.final_attn_token_to_image
        width, head = attention.embedding_dim, attention.internal_dim // attention.num_heads
        # a position and head: t · C products folded, else C · d to project and d · t to meet the tokens
        pays = num_tokens * (width - head) <= width * head if self.max_tokens is None else num_tokens <= self.max_tokens
        if pays:
            return folded_transformer
        return positions_last_transformer if device.type == "cpu" else stock_transformer


def token_to_image(
    attention: Attention, q: Float[Tensor, "k t C"], k: Float[Tensor, "k n C"], v: Float[Tensor, "k n C"]
) -> Float[Tensor, "k t C"]:
    """Tokens attend to image positions: ``attention(q, k, v)`` without projecting a position.

    The key projection goes onto the queries; its bias adds the same to all scores of a query and drops out of the
    softmax. The value projection follows the weighted mean of the positions; the weights add up to 1, so that the
    bias comes through as it is.
    """
    heads, width = attention.num_heads, attention.internal_dim // attention.num_heads
    queries = heads_of(attention.q_proj(q), heads) / math.sqrt(width)
    folded = queries @ attention.k_proj.weight.reshape(heads, width, -1)  # (k, H, t, C)
    weights = (folded.flatten(1, 2) @ k.transpose(1, 2)).softmax(dim=-1)  # (k, H·t, n)
    context = (weights @ v).reshape(folded.shape)
    values = context @ attention.v_proj.weight.reshape(heads, width, -1).transpose(1, 2)  # (k, H, t, d)
    projected: Tensor = attention.out_proj(values.transpose(1, 2).flatten(2) + attention.v_proj.bias)
    return projected


def image_to_token(
    attention: Attention,
    q: Float[Tensor, "k n C"],
    k: Float[Tensor, "k t C"],
    v: Float[Tensor, "k t C"],
    onto: Float[Tensor, "k n C"],
) -> Float[Tensor, "k n C"]:
    """Image positions attend to tokens: ``onto + attention(q, k, v)`` without projecting a position.

    The query projection goes onto the keys; here its bias differs from token to token, so it stays. The output
    projection goes onto the values. Where no gradient is asked for, ``onto`` is written over.
    """
    heads, width = attention.num_heads, attention.internal_dim // attention.num_heads
    keys = heads_of(attention.k_proj(k), heads) / math.sqrt(width)
    folded = keys @ attention.q_proj.weight.reshape(heads, width, -1)  # (k, H, t, C)
    bias = keys @ attention.q_proj.bias.reshape(heads, width, 1)  # (k, H, t, 1)
    # positions last: a softmax over few tokens then runs along memory
    scores = (folded.flatten(1, 2) @ q.transpose(1, 2)).reshape(*folded.shape[:3], -1)  # (k, H, t, n)
    weights = added(scores, bias).softmax(dim=2).flatten(1, 2)
    out = attention.out_proj.weight.reshape(-1, heads, width).permute(1, 2, 0)  # (H, d, C)
    values = heads_of(attention.v_proj(v), heads) @ out  # (k, H, t, C)
    values[:, 0] += attention.out_proj.bias  # the weights of a head add up to 1: no pass over the positions
    return added_product(onto, weights.transpose(1, 2), values.flatten(1, 2))


folded_transformer = partial(two_way, CrossAttentions(token_to_image, image_to_token))
"""The two-way transformer, its cross attentions folded; see :func:`~arrcoc_sam.segmenters.two_way.two_way`."""
