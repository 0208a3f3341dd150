"""SAM's two-way transformer, whose cross attentions may be run in other ways than segment-anything's.

Tokens look at the image's positions and positions at tokens, in turn; there are a handful of the ones and thousands of
the others. Nearly all of the work is in these cross attentions, of which
:mod:`arrcoc_sam.segmenters.cross_attentions` has other forms of the same weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from segment_anything.modeling import TwoWayTransformer
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock
from torch import Tensor, nn

from arrcoc_sam.segmenters.cross_attentions import CrossAttentions

__all__ = ["can_cross", "two_way"]


def can_cross(transformer: nn.Module) -> bool:
    """Whether this is segment-anything's own transformer with nothing around its cross attentions.

    Their projections have to be plain linear layers, not wrapped, say by adapters, and nothing may be hooked into them.
    """
    if type(transformer) is not TwoWayTransformer or any(
        type(b) is not TwoWayAttentionBlock for b in transformer.layers
    ):
        return False
    crossing: list[Any] = [transformer.final_attn_token_to_image]
    for block in transformer.layers:
        crossing += [block.cross_attn_token_to_image, block.cross_attn_image_to_token]
    return all(type(attention) is Attention and not _is_hooked(attention) for attention in crossing) and all(
        type(layer) is nn.Linear and layer.bias is not None and not _is_hooked(layer)
        for attention in crossing
        for layer in (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj)
    )


def _is_hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


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


def _reduced(x: Tensor) -> Tensor:
    """Cast to what autocast multiplies in, once instead of at every product."""
    kind = x.device.type
    casts = torch.is_autocast_enabled(kind) and x.dtype != torch.float64
    return x.to(torch.get_autocast_dtype(kind)) if casts else x
