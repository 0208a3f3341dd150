"""Exact attention weights from a model that computes them inside fused kernels, without changing what it answers.

While :class:`AttentionCapture` is active it sees each call of ``scaled_dot_product_attention``, of ``softmax`` and of
``multi_head_attention_forward`` that happens inside the modules it watches. The call itself is passed on untouched; the
weights are computed a second time, in float32, and only for the query rows that a *reader* asks for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from types import TracebackType
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from arrcoc_sam.attention.mha import mha_query_key
from arrcoc_sam.errors import AttentionCaptureError, explain

__all__ = ["AttentionCall", "AttentionCapture", "attention_rows"]

Result = TypeVar("Result")
Rows = Int64[Tensor, " R"]

# Of rows of weights, at a time, where all of them are needed for a mean: 256 x 16 heads x 1370 keys are 22 MB.
ROWS_AT_A_TIME = 256
SUM_TOLERANCE = 1e-4


def attention_rows(
    query: Float[Tensor, "B H L E"],
    key: Float[Tensor, "B G S E"],
    *,
    rows: Rows | None = None,
    attn_mask: Bool[Tensor, ...] | Float[Tensor, ...] | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Float[Tensor, "B H R S"]:
    """The weights that ``scaled_dot_product_attention`` uses for some of its queries, in float32 or better.

    Args:
        query: Queries; B batch, H heads, L queries.
        key: Keys; with ``enable_gqa`` G divides H and each key head serves H / G query heads.
        rows: The queries that are wanted; all when None.
        attn_mask: Bool (True takes part) or additive, broadcastable to (B, H, L, S).
        is_causal: Whether query i sees keys 0 … i only.
        scale: Factor of the dot products; 1 / sqrt(E) when None.
        enable_gqa: Whether key heads are shared.

    Returns:
        Softmax weights, each row summing to 1; NaN where a row is masked altogether.

    Example:
        >>> q = torch.tensor([[[[1.0], [1.0]]]])
        >>> k = torch.tensor([[[[0.0], [1.0]]]])
        >>> attention_rows(q, k, is_causal=True)
        tensor([[[[1.0000, 0.0000],
                  [0.2689, 0.7311]]]])
    """
    precision = torch.promote_types(query.dtype, torch.float32)
    index = torch.arange(query.shape[-2], device=query.device) if rows is None else rows
    chosen = query.index_select(-2, index).to(precision)
    keys = key.to(precision)
    if enable_gqa and keys.shape[-3] != chosen.shape[-3]:
        keys = keys.repeat_interleave(chosen.shape[-3] // keys.shape[-3], dim=-3)
    scores = chosen @ keys.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        seen = torch.arange(key.shape[-2], device=index.device) <= index[:, None]
        scores = scores.masked_fill(~seen, float("-inf"))
    if attn_mask is not None:
        mask = attn_mask if attn_mask.ndim < 2 or attn_mask.shape[-2] == 1 else attn_mask.index_select(-2, index)
        if mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask, float("-inf"))
        else:
            scores = scores + mask
    return scores.softmax(-1)


class AttentionCall(ABC):
    """One attention as it is computed: its sizes, and the weights of whatever query rows are asked for.

    Attributes:
        name: The watched module that computes it.
        sizes: B batch, H heads, L queries, S keys.
        device: Where it is computed.
    """

    name: str
    sizes: tuple[int, int, int, int]
    device: torch.device

    @abstractmethod
    def _weights(self, index: Rows | None) -> Tensor:
        """Weights of some query rows, unchecked."""

    def rows(self, index: Rows | None = None) -> Float[Tensor, "B H R S"]:
        """Weights of the query rows ``index`` (all when None), float32, each row summing to 1.

        Raises:
            AttentionCaptureError: A row does not sum to 1.
        """
        weights = self._weights(index)
        error = (weights.detach().sum(-1) - 1).abs().amax()
        if not error <= SUM_TOLERANCE:  # written so that NaN fails too
            raise AttentionCaptureError(
                explain(
                    f"attention weights captured in {self.name} sum to 1 only up to {float(error):.2g}",
                    f"sums within {SUM_TOLERANCE}",
                    "look for NaN in the model's weights or inputs, or for query rows that are masked altogether",
                )
            )
        return weights

    def mean_row(self, start: int = 0) -> Float[Tensor, "B H S"]:
        """Mean weights over the query rows from ``start`` on, computed a few hundred rows at a time."""
        batch, heads, queries, keys = self.sizes
        total = None
        for first in range(start, queries, ROWS_AT_A_TIME):
            index = torch.arange(first, min(first + ROWS_AT_A_TIME, queries), device=self.device)
            part = self.rows(index).sum(-2)
            total = part if total is None else total + part
        if total is None:
            came = f"{self.name} has {queries} query rows and their mean was asked from row {start} on"
            raise AttentionCaptureError(explain(came, "at least one row"))
        return (total / (queries - start)).reshape(batch, heads, keys)


class _DotProductCall(AttentionCall):
    def __init__(self, name: str, query: Tensor, key: Tensor, options: dict[str, Any]) -> None:
        self.name, self.query, self.key, self.options = name, query, key, options
        self.sizes = (query.shape[0], query.shape[1], query.shape[2], key.shape[2])
        self.device = query.device

    def _weights(self, index: Rows | None) -> Tensor:
        return attention_rows(self.query, self.key, rows=index, **self.options)


class _SoftmaxCall(AttentionCall):
    def __init__(self, name: str, scores: Tensor) -> None:
        self.name, self.scores = name, scores
        self.sizes = (scores.shape[0], scores.shape[1], scores.shape[2], scores.shape[3])
        self.device = scores.device

    def _weights(self, index: Rows | None) -> Tensor:
        scores = self.scores if index is None else self.scores.index_select(-2, index)
        return scores.to(torch.promote_types(scores.dtype, torch.float32)).softmax(-1)


class AttentionCapture(TorchFunctionMode, Generic[Result]):
    """A context in which the attention of some modules is read while they run.

    Each watched module must compute exactly one attention each time it runs, and run exactly once: anything else raises
    when the context ends, because the weights could then not be told apart. The reader is called at once and its result
    kept, so that memory holds what it returns and never a whole attention matrix (unless it asks for one).

    The model's output does not change by a bit. Two things to know: ``nn.MultiheadAttention`` and
    ``nn.TransformerEncoderLayer`` leave their fused inference path while any such context is active, so compare with
    ``torch.backends.mha.set_fastpath_enabled(False)``; and attention dropout (in training mode) acts after what is
    read.

    Args:
        modules: What to watch, by name: transformer blocks or attention modules.
        read: Called as ``read(name, call)`` for each attention; its result is kept in ``results[name]``.
        differentiable: Keep the graph, so that a loss on the weights trains the model. Not with activation
            checkpointing, which runs modules again in the backward pass, where nothing watches.

    Raises:
        AttentionCaptureError: When the context ends without another error: a module that computed no attention, more
            than one, or ran twice; rows that do not sum to 1.

    Example:
        >>> layer = torch.nn.MultiheadAttention(8, 2, batch_first=True)
        >>> x = torch.randn(1, 5, 8)
        >>> with AttentionCapture({"layer": layer}, lambda name, call: call.rows()) as capture:
        ...     _ = layer(x, x, x)
        >>> capture.results["layer"].shape
        torch.Size([1, 2, 5, 5])
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        read: Callable[[str, AttentionCall], Result],
        *,
        differentiable: bool = False,
    ) -> None:
        super().__init__()
        self.results: dict[str, Result] = {}
        self._modules = dict(modules)
        self._read = read
        self._differentiable = differentiable
        self._running: list[str] = []
        self._seen = dict.fromkeys(self._modules, 0)
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> AttentionCapture[Result]:
        for name, module in self._modules.items():
            self._handles.append(module.register_forward_pre_hook(self._begin(name)))
            self._handles.append(module.register_forward_hook(self._end, always_call=True))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, value, trace)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if kind is None:
            for name, count in self._seen.items():
                if count != 1:
                    raise AttentionCaptureError(
                        explain(
                            f"{name} computed {count} attentions",
                            "one scaled_dot_product_attention or softmax in each watched module",
                            "load the model with PyTorch's own attention (attn_implementation='sdpa' or 'eager' in "
                            "transformers), uncompiled"
                            if count == 0
                            else "watch the module that computes a single attention",
                        )
                    )

    def _begin(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            del module, inputs
            self._running.append(name)

        return hook

    def _end(self, module: nn.Module, inputs: Any, output: Any) -> None:
        del module, inputs, output
        self._running.pop()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Pass every operation on; look at the attentions."""
        del types
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        look = _READERS.get(func)
        if look is not None and self._running:
            device = _first_tensor(args, kwargs).device.type
            with nullcontext() if self._differentiable else torch.no_grad():
                call = look(self._running[-1], device, *args, **kwargs)
                if call is not None:
                    # float32 means float32: under autocast the products would be rounded to bfloat16 again.
                    with torch.autocast(device, enabled=False):
                        self._keep(call)
        return output

    def _keep(self, call: AttentionCall) -> None:
        self._seen[call.name] += 1
        if self._seen[call.name] == 1:
            result = self._read(call.name, call)
            self.results[call.name] = result


def _see_dot_product(
    name: str,
    device: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> AttentionCall:
    del value, dropout_p
    if query.ndim != 4 or type(attn_mask) not in (type(None), Tensor, nn.Parameter):
        came = (
            f"{name} calls attention with queries of shape {tuple(query.shape)} and a {type(attn_mask).__name__} mask"
        )
        raise AttentionCaptureError(explain(came, "queries (batch, heads, queries, channels) and a plain mask"))
    options = {"attn_mask": attn_mask, "is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
    return _DotProductCall(name, _as_computed(query, device), _as_computed(key, device), options)


def _see_softmax(
    name: str, device: str, input: Tensor, dim: int | None = None, *args: Any, **kwargs: Any
) -> AttentionCall | None:
    del device, args, kwargs
    if input.ndim != 4 or dim not in (-1, 3):
        return (
            None  # a gate, a router, a classifier's probabilities: not an attention over (batch, heads, queries, keys)
        )
    return _SoftmaxCall(name, input)


def _see_multi_head(name: str, device: str, *args: Any, **kwargs: Any) -> AttentionCall:
    query, key, options = mha_query_key(name, args, kwargs)
    return _DotProductCall(name, _as_computed(query, device), _as_computed(key, device), options)


def _as_computed(tensor: Tensor, device: str) -> Tensor:
    """What the fused kernel works on: under autocast it rounds its inputs, and so must we."""
    if torch.is_autocast_enabled(device):
        return tensor.to(torch.get_autocast_dtype(device))
    return tensor


def _first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))


_READERS: dict[Any, Callable[..., AttentionCall | None]] = {
    F.scaled_dot_product_attention: _see_dot_product,
    F.softmax: _see_softmax,
    torch.softmax: _see_softmax,
    torch.Tensor.softmax: _see_softmax,
    F.multi_head_attention_forward: _see_multi_head,
}
