"""SAM's image encoder without the tensor of all positions against all positions.

The stock attention makes the scores of every position with every other, adds to them two tensors of relative positions
of the same size, and takes the softmax of the sum: several gigabytes for a frame of 1024 pixels. The relative positions
are a sum of a term of rows and a term of columns, so here some rows of scores are made at a time and the terms are
added to them in place by broadcasting. The same weights, the same numbers up to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.image_encoder import Attention, Block, get_rel_pos, window_partition, window_unpartition
from torch import Tensor, nn

__all__ = ["can_run_lean", "lean_attention", "lean_encoder"]

# Elements of scores that are made at a time: what stays in the caches of a core, and what keeps a GPU busy.
_SCORES_CPU, _SCORES_GPU = 1 << 20, 1 << 26


def can_run_lean(encoder: nn.Module) -> bool:
    """Whether this is segment-anything's own encoder with nothing changed in its attention, and not being trained."""
    if type(encoder) is not ImageEncoderViT or any(type(block) is not Block for block in encoder.blocks):
        return False
    blocks: list[Any] = list(encoder.blocks)
    if any(type(part) is not nn.Linear for block in blocks for part in (block.attn.qkv, block.attn.proj)):
        return False
    if any(type(block.attn) is not Attention for block in blocks):
        return False
    trained = any(weight.requires_grad for weight in encoder.parameters())
    return not (torch.is_grad_enabled() and trained)


def lean_encoder(encoder: ImageEncoderViT, x: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B C s s"]:
    """What ``encoder(x)`` gives, with less memory and in less time.

    It works in place and has no gradient: see :func:`can_run_lean`.

    Args:
        encoder: One that :func:`can_run_lean` accepts.
        x: Normalised, padded images.

    Reference:
        ``ImageEncoderViT.forward`` of segment-anything.
    """
    with torch.no_grad():
        tokens: Tensor = encoder.patch_embed(x)
        if encoder.pos_embed is not None:
            tokens = tokens + encoder.pos_embed
        block: Any
        for block in encoder.blocks:
            tokens = tokens + _attended(block, block.norm1(tokens))
            tokens = tokens + block.mlp(block.norm2(tokens))
        embedding: Tensor = encoder.neck(tokens.permute(0, 3, 1, 2))
    return embedding


def _attended(block: Any, tokens: Float[Tensor, "B h w C"]) -> Float[Tensor, "B h w C"]:
    if block.window_size == 0:
        return lean_attention(block.attn, tokens)
    size_hw = (tokens.shape[1], tokens.shape[2])
    windows, padded_hw = window_partition(tokens, block.window_size)
    whole: Tensor = window_unpartition(lean_attention(block.attn, windows), block.window_size, padded_hw, size_hw)
    return whole


def lean_attention(attention: Attention, x: Float[Tensor, "B h w C"]) -> Float[Tensor, "B h w C"]:
    """What ``attention(x)`` gives; scores are made for some heads, or some rows of one head, at a time.

    Args:
        attention: Multi-head attention with or without decomposed relative positions.
        x: The positions of B images or windows.
    """
    batch, height, width, channels = x.shape
    num_positions, heads = height * width, attention.num_heads
    qkv = attention.qkv(x).reshape(batch, num_positions, 3, heads, -1).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.reshape(3, batch * heads, num_positions, -1).unbind(0)
    rows, columns = _relative(attention, q.unflatten(1, (height, width))) if attention.use_rel_pos else (None, None)
    answer = torch.empty_like(q)
    transposed = k.transpose(1, 2)
    budget = _SCORES_CPU if x.device.type == "cpu" else _SCORES_GPU
    heads_at_once = max(1, budget // num_positions**2)
    # Whole rows of the frame, so that the terms broadcast; all of them where several heads go together.
    rows_at_once = height if heads_at_once > 1 else max(1, budget // (num_positions * width))
    for head in range(0, len(q), heads_at_once):
        some = slice(head, head + heads_at_once)
        for top in range(0, height, rows_at_once):
            at = slice(top * width, (top + rows_at_once) * width)
            scores = (q[some, at] * attention.scale) @ transposed[some]
            if rows is not None and columns is not None:
                placed = scores.view(scores.shape[0], -1, width, height, width)
                placed += rows[some, top : top + rows_at_once, :, :, None]
                placed += columns[some, top : top + rows_at_once, :, None, :]
            torch.softmax(scores, dim=-1, out=scores)
            answer[some, at] = scores @ v[some]
    joined = answer.view(batch, heads, height, width, -1).permute(0, 2, 3, 1, 4).reshape(batch, height, width, channels)
    projected: Tensor = attention.proj(joined)
    return projected


def _relative(
    attention: Attention, q: Float[Tensor, "n h w d"]
) -> tuple[Float[Tensor, "n h w h"], Float[Tensor, "n h w w"]]:
    """The terms of rows and of columns of each query against every row and column of keys."""
    _, height, width, _ = q.shape
    in_rows, in_columns = (
        get_rel_pos(size, size, table).to(q.dtype)
        for size, table in ((height, attention.rel_pos_h), (width, attention.rel_pos_w))
    )
    # segment-anything's own sums: another order rounds otherwise
    return torch.einsum("nhwd,hkd->nhwk", q, in_rows), torch.einsum("nhwd,wkd->nhwk", q, in_columns)
