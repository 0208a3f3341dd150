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
from typing import Any

import torch
from jaxtyping import Float
from segment_anything.modeling import MaskDecoder, TwoWayTransformer
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock
from torch import Tensor, nn

from arrcoc_sam.errors import InputError, explain
from arrcoc_sam.segmenters.decoder_path import run_decoder, stock_transformer
from arrcoc_sam.segmenters.upscaling import banded_masks, convolved_masks, is_plain

__all__ = ["FoldedDecoder", "can_fold", "folded_transformer", "image_to_token", "token_to_image"]


@dataclass(frozen=True)
class FoldedDecoder:
    """A decoder path that folds where this pays and runs segment-anything's own transformer elsewhere.

    It does not fold while the decoder's weights are trained, or when they are not plain linear layers. On a CPU masks
    are upscaled in bands (:mod:`arrcoc_sam.segmenters.upscaling`), but while weights are trained, or where the layers
    are not SAM's.

    Attributes:
        masks: False gives no masks: the logits are (k, m, 0, 0), predicted IoU is as ever. Upscaling and hypernetworks
            are skipped, unless predicted IoU depends on the masks, as the embedded model's does.
        max_tokens: Fold up to so many tokens (five of the decoder's own and those of the prompt); by default while the
            products get smaller, which is below the width of a head: 15 tokens in SAM 1.

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
        num_tokens = 1 + decoder.num_mask_tokens + sparse.shape[1]
        folds = not trained and self._pays(decoder, num_tokens)
        banded = not trained and image_embeddings.device.type == "cpu" and is_plain(decoder.output_upscaling)
        given = (decoder, image_embeddings, image_pe, sparse, dense, tokens)
        return run_decoder(
            folded_transformer if folds else stock_transformer,
            *given,
            reduced=reduced,
            upscale=banded_masks if banded else convolved_masks,
            masks=self.masks,
        )

    def _pays(self, decoder: MaskDecoder, num_tokens: int) -> bool:
        if not can_fold(decoder.transformer):
            return False
        attention: Any = decoder.transformer.final_attn_token_to_image
        limit = attention.internal_dim // attention.num_heads - 1 if self.max_tokens is None else self.max_tokens
        return bool(num_tokens <= limit)


def can_fold(transformer: nn.Module) -> bool:
    """Whether this is segment-anything's own transformer, of plain linear layers: not wrapped, say by adapters."""
    if type(transformer) is not TwoWayTransformer or any(
        type(b) is not TwoWayAttentionBlock for b in transformer.layers
    ):
        return False
    crossing: list[Any] = [transformer.final_attn_token_to_image]
    for block in transformer.layers:
        crossing += [block.cross_attn_token_to_image, block.cross_attn_image_to_token]
    return all(
        type(attention) is Attention
        and all(type(getattr(attention, f"{name}_proj")) is nn.Linear for name in ("q", "k", "v", "out"))
        for attention in crossing
    )


def folded_transformer(
    transformer: TwoWayTransformer,
    image_embedding: Float[Tensor, "k C h w"],
    image_pe: Float[Tensor, "1 C h w"],
    point_embedding: Float[Tensor, "k t C"],
    answers: Sequence[int],
) -> tuple[Float[Tensor, "k a C"], Float[Tensor, "k n C"]]:
    """The two-way transformer, its cross attentions folded.

    Args:
        transformer: One that :func:`can_fold` accepts.
        image_embedding: With the mask prompt added.
        image_pe: Positional encoding of the grid.
        point_embedding: The tokens.
        answers: Which tokens to give back; the last attention is worked out for these only.

    Returns:
        The answering tokens and the image positions.

    Reference:
        ``TwoWayTransformer.forward`` of segment-anything.
    """
    # positions first in memory: adding tensors that lie differently is as slow as a product
    keys = image_embedding.flatten(2).transpose(1, 2).clone(memory_format=torch.contiguous_format)
    pe = image_pe.flatten(2).transpose(1, 2).contiguous()
    queries = point_embedding
    block: Any
    for block in transformer.layers:
        if block.skip_first_layer_pe:
            queries = block.self_attn(q=queries, k=queries, v=queries)
        else:
            placed = queries + point_embedding
            queries = queries + block.self_attn(q=placed, k=placed, v=queries)
        queries = block.norm1(queries)
        placed_keys = _reduced(keys + pe)  # for two attentions
        attended = token_to_image(block.cross_attn_token_to_image, queries + point_embedding, placed_keys, keys)
        queries = block.norm2(queries + attended)
        queries = block.norm3(queries + block.mlp(queries))
        placed = queries + point_embedding
        keys = block.norm4(image_to_token(block.cross_attn_image_to_token, placed_keys, placed, queries, onto=keys))
    chosen = list(answers)
    queries = queries[:, chosen]
    attention = transformer.final_attn_token_to_image
    attended = token_to_image(attention, queries + point_embedding[:, chosen], keys + pe, keys)
    answer: Tensor = transformer.norm_final_attn(queries + attended)
    return answer, keys


def token_to_image(
    attention: Attention, q: Float[Tensor, "k t C"], k: Float[Tensor, "k n C"], v: Float[Tensor, "k n C"]
) -> Float[Tensor, "k t C"]:
    """Tokens attend to image positions: ``attention(q, k, v)`` without projecting a position.

    The key projection goes onto the queries; its bias adds the same to all scores of a query and drops out of the
    softmax. The value projection follows the weighted mean of the positions; the weights add up to 1, so that the
    bias comes through as it is.
    """
    heads, width = attention.num_heads, attention.internal_dim // attention.num_heads
    queries = _heads(attention.q_proj(q), heads) / math.sqrt(width)
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
    *,
    onto: Float[Tensor, "k n C"],
) -> Float[Tensor, "k n C"]:
    """Image positions attend to tokens: ``onto + attention(q, k, v)`` without projecting a position.

    The query projection goes onto the keys; here its bias differs from token to token, so it stays. The output
    projection goes onto the values. Where no gradient is asked for, ``onto`` is written over.
    """
    heads, width = attention.num_heads, attention.internal_dim // attention.num_heads
    keys = _heads(attention.k_proj(k), heads) / math.sqrt(width)
    folded = keys @ attention.q_proj.weight.reshape(heads, width, -1)  # (k, H, t, C)
    bias = keys @ attention.q_proj.bias.reshape(heads, width, 1)  # (k, H, t, 1)
    # positions last: a softmax over few tokens then runs along memory
    scores = (folded.flatten(1, 2) @ q.transpose(1, 2)).reshape(*folded.shape[:3], -1)  # (k, H, t, n)
    weights = _added(scores, bias).softmax(dim=2).flatten(1, 2)
    out = attention.out_proj.weight.reshape(-1, heads, width).permute(1, 2, 0)  # (H, d, C)
    values = _heads(attention.v_proj(v), heads) @ out  # (k, H, t, C)
    values[:, 0] += attention.out_proj.bias  # the weights of a head add up to 1: no pass over the positions
    return _added_product(onto, weights.transpose(1, 2), values.flatten(1, 2))


def _heads(x: Float[Tensor, "k t HC"], num_heads: int) -> Float[Tensor, "k H t d"]:
    return x.reshape(*x.shape[:2], num_heads, -1).transpose(1, 2)


def _added(fresh: Tensor, other: Tensor) -> Tensor:
    """The sum, in the memory of a product just made where its precision allows: large allocations cost as much."""
    return fresh.add_(other) if fresh.dtype == other.dtype else fresh + other


def _added_product(onto: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """``onto + a @ b`` in one pass over the positions, in the memory of ``onto`` where that harms nobody."""
    if onto.dtype != a.dtype or onto.dtype != b.dtype:
        return onto + a @ b
    if torch.is_grad_enabled() and any(x.requires_grad for x in (onto, a, b)):
        return torch.baddbmm(onto, a, b)
    return onto.baddbmm_(a, b)


def _reduced(x: Tensor) -> Tensor:
    """Cast to what autocast multiplies in, once instead of at every product."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x
