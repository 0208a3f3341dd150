"""SAM's two-way transformer, whose cross attentions may be run in other ways than segment-anything's.

Tokens look at the image's positions and positions at tokens, in turn; there are a handful of the ones and thousands of
the others. Nearly all of the work is in these cross attentions, of which :mod:`arrcoc_sam.segmenters.folded` and
:mod:`arrcoc_sam.segmenters.positions_last` have one form each, of the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from segment_anything.modeling import TwoWayTransformer
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock
from torch import Tensor, nn

__all__ = ["CrossAttentions", "added", "added_product", "can_cross", "heads_of", "two_way"]


class CrossAttentions(NamedTuple):
    """How tokens and positions attend to each other, given an attention layer, queries, keys and values."""

    token_to_image: Callable[[Attention, Tensor, Tensor, Tensor], Tensor]
    """(k, t, C), (k, n, C), (k, n, C) to (k, t, C): ``attention(q, k, v)`` where tokens look at positions."""
    image_to_token: Callable[[Attention, Tensor, Tensor, Tensor, Tensor], Tensor]
    """(k, n, C), (k, t, C), (k, t, C), (k, n, C) to (k, n, C): ``onto + attention(q, k, v)`` where positions look at
    tokens, with ``onto`` last. Where no gradient is asked for, ``onto`` may be written over."""


def can_cross(transformer: nn.Module) -> bool:
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


def two_way(
    cross: CrossAttentions,
    transformer: TwoWayTransformer,
    image_embedding: Float[Tensor, "k C h w"],
    image_pe: Float[Tensor, "1 C h w"],
    point_embedding: Float[Tensor, "k t C"],
    answers: Sequence[int],
) -> tuple[Float[Tensor, "k a C"], Float[Tensor, "k n C"]]:
    """The two-way transformer with other cross attentions.

    Args:
        cross: The cross attentions.
        transformer: One that :func:`can_cross` accepts.
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
        attended = cross.token_to_image(block.cross_attn_token_to_image, queries + point_embedding, placed_keys, keys)
        queries = block.norm2(queries + attended)
        queries = block.norm3(queries + block.mlp(queries))
        placed = queries + point_embedding
        looking = cross.image_to_token(block.cross_attn_image_to_token, placed_keys, placed, queries, keys)
        keys = block.norm4(looking)
    chosen = list(answers)
    queries = queries[:, chosen]
    attention = transformer.final_attn_token_to_image
    attended = cross.token_to_image(attention, queries + point_embedding[:, chosen], keys + pe, keys)
    answer: Tensor = transformer.norm_final_attn(queries + attended)
    return answer, keys


def heads_of(x: Float[Tensor, "k t HC"], num_heads: int) -> Float[Tensor, "k H t d"]:
    """Channels dealt to the heads."""
    return x.reshape(*x.shape[:2], num_heads, -1).transpose(1, 2)


def added(fresh: Tensor, other: Tensor) -> Tensor:
    """The sum, in the memory of a product just made where its precision allows: large allocations cost as much."""
    return fresh.add_(other) if fresh.dtype == other.dtype else fresh + other


def added_product(onto: Tensor, a: Tensor, b: Tensor) -> Tensor:
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
