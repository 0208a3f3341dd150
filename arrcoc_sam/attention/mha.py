"""The queries and keys inside ``multi_head_attention_forward``, which ``nn.MultiheadAttention`` calls.

PyTorch hands that function to an active mode as a whole and hides what happens inside from it, so its projections are
computed here a second time.
"""

from __future__ import annotations

import inspect
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from arrcoc_sam.errors import AttentionCaptureError, explain

__all__ = ["mha_query_key"]

_SIGNATURE = inspect.signature(F.multi_head_attention_forward)


def mha_query_key(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Float[Tensor, "B H L E"], Float[Tensor, "B H S E"], dict[str, Any]]:
    """Projected queries and keys by head, and the options of the attention between them.

    Args:
        name: The module that is read, for error messages.
        args: Positional arguments of a call of :func:`torch.nn.functional.multi_head_attention_forward`.
        kwargs: Its keyword arguments.

    Returns:
        Queries, keys, and the keyword arguments ``attn_mask`` (additive) and ``is_causal`` of ``attention_rows``.

    Raises:
        AttentionCaptureError: The attention gets keys that are no tokens (``bias_k``, ``add_zero_attn``, ``static_k``).
    """
    bound = _SIGNATURE.bind(*args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    if given["bias_k"] is not None or given["add_zero_attn"] or given["static_k"] is not None:
        came = f"{name} attends to keys that are no tokens (add_bias_kv, add_zero_attn or static keys)"
        raise AttentionCaptureError(explain(came, "keys that are projected tokens"))
    query, key, padding = given["query"], given["key"], given["key_padding_mask"]
    if query.ndim == 2:
        query, key = query[:, None], key[:, None]
        padding = None if padding is None else padding[None]

    width = query.shape[-1]
    if given["use_separate_proj_weight"]:
        query_weight, key_weight = given["q_proj_weight"], given["k_proj_weight"]
    else:
        query_weight, key_weight = given["in_proj_weight"][:width], given["in_proj_weight"][width : 2 * width]
    bias = given["in_proj_bias"]
    query_bias, key_bias = (None, None) if bias is None else (bias[:width], bias[width : 2 * width])
    queries = _by_head(F.linear(query, query_weight, query_bias), given["num_heads"])
    keys = _by_head(F.linear(key, key_weight, key_bias), given["num_heads"])
    if given["is_causal"] and padding is None and not given["need_weights"]:
        return queries, keys, {"is_causal": True}  # PyTorch, too, then takes the hint and drops the mask
    return queries, keys, {"attn_mask": _additive(queries, keys, given["attn_mask"], padding)}


def _by_head(tokens: Float[Tensor, "L B C"], num_heads: int) -> Float[Tensor, "B H L E"]:
    length, batch, width = tokens.shape
    return tokens.reshape(length, batch, num_heads, width // num_heads).permute(1, 2, 0, 3)


def _additive(
    queries: Float[Tensor, "B H L E"], keys: Float[Tensor, "B H S E"], mask: Tensor | None, padding: Tensor | None
) -> Tensor | None:
    """Both masks as one that is added to the scores. In these True means "not seen", unlike in the fused attention."""
    total = None
    if mask is not None:
        total = _as_floats(mask, queries)
        if mask.ndim == 3:
            total = total.reshape(*queries.shape[:2], *mask.shape[1:])
    if padding is not None:
        unseen = _as_floats(padding, queries)[:, None, None].expand(-1, 1, 1, keys.shape[2])
        total = unseen if total is None else total + unseen
    return total


def _as_floats(mask: Tensor, like: Tensor) -> Tensor:
    if mask.is_floating_point():
        return mask
    return like.new_zeros(mask.shape).masked_fill_(mask, float("-inf"))
