"""Ways to run the cross attentions of SAM's two-way transformer, of the same weights and equal up to rounding.

In them a handful of tokens meets thousands of image positions. segment-anything projects every position to queries,
keys and values.

*Folded*: projections are linear, so they can be moved to the tokens instead, which is exact algebra: with n positions,
C channels, and H heads of d, products of n × C × (H · d) become products of n × C × (H · tokens). That pays for few
tokens.

*Positions last*, for a CPU: where tokens are too many to fold, positions have to be projected. segment-anything then
keeps the scores of a position beside each other: a softmax over as few numbers as there are tokens, for each of
thousands of positions and each head; and a head of 8 or 16 channels lies in as many pieces as there are positions. Here
positions come last throughout, so that the softmax over tokens is a few passes over long rows, and a head is a block of
memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from segment_anything.modeling.transformer import Attention
from torch import Tensor, nn

__all__ = ["FOLDED", "POSITIONS_LAST", "CrossAttentions", "folding_pays"]


class CrossAttentions(NamedTuple):
    """How tokens and positions attend to each other, given an attention layer, queries, keys and values."""

    token_to_image: Callable[[Attention, Tensor, Tensor, Tensor], Tensor]
    """(k, t, C), (k, n, C), (k, n, C) to (k, t, C): ``attention(q, k, v)`` where tokens look at positions."""
    image_to_token: Callable[[Attention, Tensor, Tensor, Tensor, Tensor], Tensor]
    """(k, n, C), (k, t, C), (k, t, C), (k, n, C) to (k, n, C): ``onto + attention(q, k, v)`` where positions look at
    tokens, with ``onto`` last. Where no gradient is asked for, ``onto`` may be written over."""


def folding_pays(attention: Attention, num_tokens: int) -> bool:
    """Whether folding takes no more products for so many tokens: 17 in SAM 1.

    A position and head take t · C products folded, and else C · d to be projected and d · t to meet the tokens.
    """
    head = attention.internal_dim // attention.num_heads
    return num_tokens * (attention.embedding_dim - head) <= attention.embedding_dim * head


def _token_to_image_folded(
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


def _image_to_token_folded(
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
    keys = _heads(attention.k_proj(k), heads) / math.sqrt(width)
    folded = keys @ attention.q_proj.weight.reshape(heads, width, -1)  # (k, H, t, C)
    bias = keys @ attention.q_proj.bias.reshape(heads, width, 1)  # (k, H, t, 1)
    # positions last: a softmax over few tokens then runs along memory
    scores = (folded.flatten(1, 2) @ q.transpose(1, 2)).reshape(*folded.shape[:3], q.shape[1])  # (k, H, t, n)
    weights = _added(scores, bias).softmax(dim=2).flatten(1, 2)
    out = attention.out_proj.weight.reshape(-1, heads, width).permute(1, 2, 0)  # (H, d, C)
    values = _heads(attention.v_proj(v), heads) @ out  # (k, H, t, C)
    values[:, 0] += attention.out_proj.bias  # the weights of a head add up to 1: no pass over the positions
    return _added_product(onto, weights.transpose(1, 2), values.flatten(1, 2))


def _token_to_image_last(
    attention: Attention, q: Float[Tensor, "k t C"], k: Float[Tensor, "k n C"], v: Float[Tensor, "k n C"]
) -> Float[Tensor, "k t C"]:
    """``attention(q, k, v)``.

    The bias of the keys adds the same to all scores of a query and drops out of the softmax; that of the values comes
    through as it is, since the weights of a query add up to 1.
    """
    if folding_pays(attention, q.shape[1]):  # the last attention is that of a few tokens, however many there are
        return _token_to_image_folded(attention, q, k, v)
    heads, width = attention.num_heads, attention.internal_dim // attention.num_heads
    queries = _heads(attention.q_proj(q), heads) / math.sqrt(width)
    weights = (queries @ _heads_last(attention.k_proj, k, heads)).softmax(dim=-1)  # (k, H, t, n)
    context = weights @ _heads_last(attention.v_proj, v, heads).transpose(2, 3)  # (k, H, t, d)
    projected: Tensor = attention.out_proj(context.transpose(1, 2).flatten(2) + attention.v_proj.bias)
    return projected


def _image_to_token_last(
    attention: Attention,
    q: Float[Tensor, "k n C"],
    k: Float[Tensor, "k t C"],
    v: Float[Tensor, "k t C"],
    onto: Float[Tensor, "k n C"],
) -> Float[Tensor, "k n C"]:
    """``onto + attention(q, k, v)``. The bias of the queries goes onto the scores, of which there are fewer."""
    heads, width = attention.num_heads, attention.internal_dim // attention.num_heads
    keys = _heads(attention.k_proj(k), heads) / math.sqrt(width)  # (k, H, t, d)
    scores = keys @ _heads_last(attention.q_proj, q, heads)  # (k, H, t, n)
    scores = _added(scores, keys @ attention.q_proj.bias.reshape(heads, width, 1))
    values = _heads(attention.v_proj(v), heads).transpose(2, 3)  # (k, H, d, t)
    context = (values @ scores.softmax(dim=2)).flatten(1, 2).transpose(1, 2)  # (k, n, H·d)
    out = attention.out_proj
    return _added(_added_product(onto, context, out.weight.t().expand(onto.shape[0], -1, -1)), out.bias)


def _heads_last(linear: nn.Linear, x: Float[Tensor, "k n C"], num_heads: int) -> Float[Tensor, "k H d n"]:
    """The layer without its bias, each head a block of memory."""
    # one product an image: matmul would make it the other way round, and copy
    rows = torch.bmm(linear.weight.expand(x.shape[0], -1, -1), x.transpose(1, 2))
    return rows.reshape(x.shape[0], num_heads, linear.out_features // num_heads, x.shape[1])


def _heads(x: Float[Tensor, "k t HC"], num_heads: int) -> Float[Tensor, "k H t d"]:
    """Channels dealt to the heads."""
    return x.reshape(*x.shape[:2], num_heads, x.shape[2] // num_heads).transpose(1, 2)


def _added(fresh: Tensor, other: Tensor) -> Tensor:
    """The sum, in the memory of a product just made where its precision allows: large allocations cost as much."""
    return fresh.add_(other) if fresh.dtype == other.dtype and not _is_transformed() else fresh + other


def _added_product(onto: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """``onto + a @ b`` in one pass over the positions, in the memory of ``onto`` where that harms nobody."""
    if onto.dtype != a.dtype or onto.dtype != b.dtype:
        return onto + a @ b
    if (torch.is_grad_enabled() and any(x.requires_grad for x in (onto, a, b))) or _is_transformed():
        return torch.baddbmm(onto, a, b)
    return onto.baddbmm_(a, b)


def _is_transformed() -> bool:
    """Whether ``torch.func`` is at work, whose ``vmap`` knows no writing of what varies onto what does not."""
    return bool(torch._C._are_functorch_transforms_active())


FOLDED = CrossAttentions(_token_to_image_folded, _image_to_token_folded)
"""With the projections of the image side folded onto the token side."""

POSITIONS_LAST = CrossAttentions(_token_to_image_last, _image_to_token_last)
"""With the image's positions along memory, and attentions of few tokens folded."""
