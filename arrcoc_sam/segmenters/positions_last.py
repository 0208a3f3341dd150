"""The cross attentions of SAM's mask decoder with the image's positions along memory, for a CPU.

Where many tokens meet the image, folding (:mod:`arrcoc_sam.segmenters.folded`) makes products larger, and positions
have to be projected. segment-anything then keeps the scores of a position beside each other: a softmax over as few
numbers as there are tokens, for each of thousands of positions and each head; and a head of 8 or 16 channels lies in as
many pieces as there are positions. Here positions come last throughout, so that the softmax over tokens is a few passes
over long rows, and a head is a block of memory. The same weights, the same numbers up to rounding.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from jaxtyping import Float
from segment_anything.modeling.transformer import Attention
from torch import Tensor, nn

from arrcoc_sam.segmenters.two_way import CrossAttentions, added, added_product, heads_of, two_way

__all__ = ["positions_last_transformer"]


def _token_to_image(
    attention: Attention, q: Float[Tensor, "k t C"], k: Float[Tensor, "k n C"], v: Float[Tensor, "k n C"]
) -> Float[Tensor, "k t C"]:
    """``attention(q, k, v)``.

    The bias of the keys adds the same to all scores of a query and drops out of the softmax; that of the values comes
    through as it is, since the weights of a query add up to 1.
    """
    heads, width = attention.num_heads, attention.internal_dim // attention.num_heads
    queries = heads_of(attention.q_proj(q), heads) / math.sqrt(width)
    weights = (queries @ _heads_last(attention.k_proj, k, heads)).softmax(dim=-1)  # (k, H, t, n)
    context = weights @ _heads_last(attention.v_proj, v, heads).transpose(2, 3)  # (k, H, t, d)
    projected: Tensor = attention.out_proj(context.transpose(1, 2).flatten(2) + attention.v_proj.bias)
    return projected


def _image_to_token(
    attention: Attention,
    q: Float[Tensor, "k n C"],
    k: Float[Tensor, "k t C"],
    v: Float[Tensor, "k t C"],
    onto: Float[Tensor, "k n C"],
) -> Float[Tensor, "k n C"]:
    """``onto + attention(q, k, v)``. The bias of the queries goes onto the scores, of which there are fewer."""
    heads, width = attention.num_heads, attention.internal_dim // attention.num_heads
    keys = heads_of(attention.k_proj(k), heads) / math.sqrt(width)  # (k, H, t, d)
    scores = keys @ _heads_last(attention.q_proj, q, heads)  # (k, H, t, n)
    scores = added(scores, keys @ attention.q_proj.bias.reshape(heads, width, 1))
    values = heads_of(attention.v_proj(v), heads).transpose(2, 3)  # (k, H, d, t)
    context = (values @ scores.softmax(dim=2)).flatten(1, 2).transpose(1, 2)  # (k, n, H·d)
    out = attention.out_proj
    return added(added_product(onto, context, out.weight.t().expand(len(onto), -1, -1)), out.bias)


def _heads_last(linear: nn.Linear, x: Float[Tensor, "k n C"], num_heads: int) -> Float[Tensor, "k H d n"]:
    """The layer without its bias, each head a block of memory."""
    # one product an image: matmul would make it the other way round, and copy
    rows = torch.bmm(linear.weight.expand(len(x), -1, -1), x.transpose(1, 2))
    return rows.reshape(len(x), num_heads, -1, x.shape[1])


positions_last_transformer = partial(two_way, CrossAttentions(_token_to_image, _image_to_token))
"""The two-way transformer with positions along memory; see :func:`~arrcoc_sam.segmenters.two_way.two_way`."""
