"""From the attention calls of a model's blocks to maps on its token grid: queries, heads, prefix tokens, rollout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from arrcoc_sam.attention.capture import ROWS_AT_A_TIME, AttentionCall
from arrcoc_sam.errors import AttentionCaptureError, explain

__all__ = ["POOL", "QUERIES", "GridReader", "Query", "ReadRows", "on_grid"]

Query: TypeAlias = Literal["cls", "mean", "point", "pool"]
QUERIES: tuple[Query, ...] = ("cls", "mean", "point", "pool")
POOL = "pool"


@dataclass(frozen=True)
class ReadRows:
    """What is kept of one attention call: rows over all of its keys, prefix tokens included.

    Attributes:
        names: One name a map.
        weights: (B, N, K, S), K = 1 unless the query is "point".
        num_prefix: Prefix tokens among the S keys.
    """

    names: tuple[str, ...]
    weights: Float[Tensor, "B N K S"]
    num_prefix: int


class GridReader:
    """A reader for :class:`arrcoc_sam.attention.AttentionCapture`: takes what is needed from each call, and no more.

    Args:
        label: The model, for error messages.
        grid_hw: Rows and columns of patches.
        num_prefix: Tokens before the patches.
        query: Whose attention is read.
        heads: The heads that are kept; None for their mean.
        rollout_at: The blocks after which the rollout is read; None for the blocks' own attention.
        pool_sees_prefix: Whether the pool's keys include the prefix tokens.
        cells: (row, column) of the query patches for "point".
    """

    def __init__(
        self,
        *,
        label: str,
        grid_hw: tuple[int, int],
        num_prefix: int,
        query: Query,
        heads: Sequence[int] | None,
        rollout_at: frozenset[str] | None = None,
        pool_sees_prefix: bool = False,
        cells: Int64[Tensor, "K 2"] | None = None,
    ) -> None:
        self.label = label
        self.grid_hw = grid_hw
        self.num_prefix = num_prefix
        self.query = query
        self.heads = heads
        self.rollout_at = rollout_at
        self.pool_sees_prefix = pool_sees_prefix
        self.cells = cells
        self._rolled: Tensor | None = None  # B, tokens, tokens: the product so far

    def __call__(self, name: str, call: AttentionCall) -> ReadRows | None:
        """Rows of the call of block ``name``; None where a rollout only passes through.

        Raises:
            AttentionCaptureError: The call has other numbers of queries or keys than the model has tokens.
        """
        if name == POOL:
            return self._read_pool(call)
        tokens = self.num_prefix + self.grid_hw[0] * self.grid_hw[1]
        self._expect(name, call, queries=tokens, keys=tokens)
        if self.rollout_at is not None:
            rolled = self._roll(call)
            if name not in self.rollout_at:
                return None
            return ReadRows((f"{name}.rollout",), self._query_rows(rolled), self.num_prefix)
        if self.query == "mean":
            weights = call.mean_row(self.num_prefix)[:, :, None]
        else:
            weights = call.rows(self._query_index(call.device))
        return self._by_head(name, weights, self.num_prefix)

    def _read_pool(self, call: AttentionCall) -> ReadRows:
        prefix = self.num_prefix if self.pool_sees_prefix else 0
        self._expect(POOL, call, queries=1, keys=prefix + self.grid_hw[0] * self.grid_hw[1])
        weights = call.rows()
        if self.rollout_at is None or self._rolled is None:
            return self._by_head(POOL, weights, prefix)
        seen = self._rolled[:, self.num_prefix - prefix :]
        return ReadRows((f"{POOL}.rollout",), (weights.mean(1) @ seen)[:, None], self.num_prefix)

    def _by_head(self, name: str, weights: Tensor, num_prefix: int) -> ReadRows:
        if self.heads is None:
            return ReadRows((f"{name}.mean",), weights.mean(1, keepdim=True), num_prefix)
        names = tuple(f"{name}.H{head:02d}" for head in self.heads)
        return ReadRows(names, weights[:, list(self.heads)], num_prefix)

    def _query_index(self, device: torch.device) -> Int64[Tensor, " K"]:
        if self.query == "cls":
            return torch.zeros(1, dtype=torch.int64, device=device)
        if self.cells is None:
            raise AttentionCaptureError(explain("the query is 'point' and no cells were given", "cells (K, 2)"))
        return (self.num_prefix + self.cells[:, 0] * self.grid_hw[1] + self.cells[:, 1]).to(device)

    def _query_rows(self, matrix: Float[Tensor, "B T T"]) -> Float[Tensor, "B 1 K T"]:
        if self.query == "mean":
            return matrix[:, None, self.num_prefix :].mean(2, keepdim=True)
        return matrix.index_select(1, self._query_index(matrix.device))[:, None]

    def _roll(self, call: AttentionCall) -> Float[Tensor, "B T T"]:
        """The rollout through this block: half its mean attention, half the residual path, times what came before."""
        tokens = call.sizes[2]
        before = self._rolled
        if before is None:
            before = torch.eye(tokens, device=call.device).expand(call.sizes[0], -1, -1)
        parts = []
        for first in range(0, tokens, ROWS_AT_A_TIME):
            index = torch.arange(first, min(first + ROWS_AT_A_TIME, tokens), device=call.device)
            parts.append(call.rows(index).mean(1).to(before.dtype) @ before)
        self._rolled = (torch.cat(parts, dim=1) + before) / 2
        return self._rolled

    def _expect(self, name: str, call: AttentionCall, *, queries: int, keys: int) -> None:
        if call.sizes[2:] != (queries, keys):
            came = f"{name} of {self.label} attends from {call.sizes[2]} queries to {call.sizes[3]} keys"
            patches = f"{self.grid_hw[0]} x {self.grid_hw[1]} patches after {self.num_prefix} prefix tokens"
            mend = "turn off patch dropout and token merging"
            raise AttentionCaptureError(explain(came, f"{queries} and {keys} ({patches})", mend))


def on_grid(
    rows: Sequence[ReadRows], grid_hw: tuple[int, int]
) -> tuple[tuple[str, ...], Float[Tensor, "B N K h w"], Float[Tensor, "B N K"]]:
    """Names, attention on the patches, and attention on the prefix tokens, of all that was read.

    Args:
        rows: What the reader returned, in order.
        grid_hw: Rows and columns of patches.

    Returns:
        The maps' names, (B, N, K, h, w) and (B, N, K).
    """
    names = tuple(name for part in rows for name in part.names)
    values = torch.cat([part.weights[..., part.num_prefix :] for part in rows], dim=1)
    mass = torch.cat([part.weights[..., : part.num_prefix].sum(-1) for part in rows], dim=1)
    return names, values.reshape(*values.shape[:-1], *grid_hw), mass
