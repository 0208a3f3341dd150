"""Captured weights against PyTorch's own attention, and the promise that nothing else changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from arrcoc_sam.attention import capture as capture_module
from arrcoc_sam.attention.capture import AttentionCall, AttentionCapture, attention_rows
from arrcoc_sam.errors import AttentionCaptureError


@pytest.fixture
def no_fast_path() -> Iterator[None]:
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


class Plain(nn.Module):
    """Calls one function."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor, **kwargs: Any) -> Tensor:
        return self.function(*args, **kwargs)


def all_rows(name: str, call: AttentionCall) -> Tensor:
    return call.rows()


def read(module: nn.Module, *args: Tensor, **kwargs: Any) -> tuple[Tensor, Any]:
    with AttentionCapture({"it": module}, all_rows) as capture:
        output = module(*args, **kwargs)
    return capture.results["it"], output


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_rows_are_those_of_the_fused_attention(data: st.DataObject) -> None:
    batch, queries, keys, width = (data.draw(st.integers(1, top)) for top in (3, 7, 9, 5))
    groups = data.draw(st.integers(1, 3))
    heads = groups * data.draw(st.integers(1, 3))
    seed = data.draw(st.integers(0, 999))
    mask_kind = data.draw(st.sampled_from(["none", "causal", "bool", "additive"]))
    mask_shape = data.draw(
        st.sampled_from(
            [(queries, keys), (1, keys), (1, heads, queries, keys), (batch, 1, 1, keys), (batch, 1, queries, keys)]
        )
    )
    scale = data.draw(st.sampled_from([None, 0.3, 2.0]))
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(batch, heads, queries, width, generator=generator, dtype=torch.float64)
    key = torch.randn(batch, groups, keys, width, generator=generator, dtype=torch.float64)
    options: dict[str, Any] = {"scale": scale, "enable_gqa": True}
    if mask_kind == "causal":
        options["is_causal"] = True
    elif mask_kind == "bool":
        mask = torch.rand(mask_shape, generator=generator) > 0.4
        mask[..., 0] = True  # no row is masked altogether
        options["attn_mask"] = mask
    elif mask_kind == "additive":
        options["attn_mask"] = torch.randn(mask_shape, generator=generator, dtype=torch.float64)

    rows = attention_rows(query, key, **options)
    # With the identity as values, what the attention answers is its weights.
    identity = torch.eye(keys, dtype=torch.float64).expand(batch, groups, keys, keys)
    expected = F.scaled_dot_product_attention(query, key, identity, **options)
    torch.testing.assert_close(rows, expected, rtol=1e-12, atol=1e-12)

    chosen = torch.randint(0, queries, (4,), generator=generator)
    torch.testing.assert_close(attention_rows(query, key, rows=chosen, **options), rows[:, :, chosen])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_read_in_float32(dtype: torch.dtype) -> None:
    query, key = torch.randn(1, 2, 5, 8).to(dtype), torch.randn(1, 2, 6, 8).to(dtype)
    rows = attention_rows(query, key)
    assert rows.dtype == torch.float32
    expected = (query.double() @ key.double().transpose(-2, -1) / 8**0.5).softmax(-1)
    torch.testing.assert_close(rows.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_call_s_options_are_honoured_in_a_module() -> None:
    q, k, v = (torch.randn(2, 4, 6, 8) for _ in range(3))
    mask = torch.rand(6, 6) > 0.5
    mask.fill_diagonal_(True)
    for options in ({"attn_mask": mask}, {"is_causal": True}, {"scale": 0.1}, {"attn_mask": torch.randn(2, 1, 6, 6)}):
        module = Plain(F.scaled_dot_product_attention)
        weights, output = read(module, q, k, v, **options)
        torch.testing.assert_close(weights @ v, output)
        assert torch.equal(output, F.scaled_dot_product_attention(q, k, v, **options))


@pytest.mark.parametrize(
    "softmax",
    [
        nn.Softmax(dim=-1),
        lambda x: x.softmax(-1),
        lambda x: x.softmax(dim=3),
        lambda x: torch.softmax(x, -1),
        lambda x: torch.softmax(x, dim=-1, dtype=torch.float32),
        lambda x: F.softmax(x, dim=-1),
    ],
)
def test_every_way_to_call_softmax(softmax: Callable[[Tensor], Tensor]) -> None:
    scores = torch.randn(2, 3, 4, 5)
    weights, output = read(Plain(softmax), scores)
    assert torch.equal(weights, output)


def test_other_softmaxes_are_no_attention() -> None:
    def gated(scores: Tensor) -> Tensor:
        gate = scores.mean((1, 3)).softmax(-1)  # (batch, queries)
        channel = scores.softmax(1)  # over heads
        return scores.softmax(-1) * gate[:, None, :, None] * channel

    scores = torch.randn(2, 3, 4, 5)
    weights, output = read(Plain(gated), scores)
    torch.testing.assert_close(weights, scores.softmax(-1))
    assert torch.equal(output, gated(scores))


@pytest.mark.usefixtures("no_fast_path")
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("mask", ["none", "bool", "float", "by head", "padding", "both", "causal"])
@pytest.mark.parametrize("widths", [{}, {"kdim": 5, "vdim": 7}])
def test_multihead_attention(need_weights: bool, mask: str, widths: dict[str, int]) -> None:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(8, 2, batch_first=True, **widths).eval()
    query = torch.randn(3, 4, 8)
    key, value = torch.randn(3, 4, widths.get("kdim", 8)), torch.randn(3, 4, widths.get("vdim", 8))
    options: dict[str, Any] = {}
    if mask in ("bool", "both"):
        options["attn_mask"] = ~torch.eye(4, dtype=torch.bool) & (torch.rand(4, 4) > 0.5)
    if mask == "float":
        options["attn_mask"] = torch.randn(4, 4)
    if mask == "by head":
        options["attn_mask"] = torch.randn(6, 4, 4)
    if mask in ("padding", "both"):
        padding = torch.zeros(3, 4, dtype=torch.bool)
        padding[1, 3] = padding[2, 2] = mask == "padding"
        options["key_padding_mask"] = padding
    if mask == "causal":
        options["attn_mask"] = torch.full((4, 4), float("-inf")).triu(1)
        options["is_causal"] = True
    expected, reference = module(query, key, value, need_weights=True, average_attn_weights=False, **options)
    weights, output = read(module, query, key, value, need_weights=need_weights, **options)
    torch.testing.assert_close(weights, reference, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output[0], expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(output[0], module(query, key, value, need_weights=need_weights, **options)[0])


@pytest.mark.usefixtures("no_fast_path")
def test_unbatched_multihead_attention() -> None:
    module = nn.MultiheadAttention(8, 2)
    x = torch.randn(5, 8)
    _, reference = module(x, x, x, average_attn_weights=False)
    torch.testing.assert_close(read(module, x, x, x)[0][0], reference, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("no_fast_path")
def test_encoder_layer_is_unchanged_bit_for_bit() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, batch_first=True).eval()
    x = torch.randn(2, 7, 16)
    with torch.no_grad():
        weights, output = read(layer, x)
        assert torch.equal(output, layer(x))
    assert weights.shape == (2, 4, 7, 7)


def test_training_is_unchanged_bit_for_bit() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, batch_first=True, dropout=0.3).train()
    x = torch.randn(2, 7, 16)
    results = []
    for watched in (False, True):
        torch.manual_seed(1)  # dropout must draw the same numbers
        layer.zero_grad()
        if watched:
            weights, output = read(layer, x)
            torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 7))
        else:
            output = layer(x)
        output.square().sum().backward()
        results.append([output, *(p.grad for p in layer.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_autocast_is_read_as_it_was_computed() -> None:
    def half_precision(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return F.scaled_dot_product_attention(q, k, v)

    q, k, v = (torch.randn(1, 2, 5, 8) for _ in range(3))
    weights, output = read(Plain(half_precision), q, k, v)
    assert output.dtype == torch.bfloat16
    assert weights.dtype == torch.float32
    # The kernel sees queries and keys rounded to bfloat16; the softmax is then exact.
    torch.testing.assert_close(weights, attention_rows(q.bfloat16(), k.bfloat16()), rtol=0, atol=0)


def test_gradients_only_when_asked() -> None:
    q, k, v = (torch.randn(1, 2, 5, 8, requires_grad=True) for _ in range(3))
    module = Plain(F.scaled_dot_product_attention)
    assert not read(module, q, k, v)[0].requires_grad
    with AttentionCapture({"it": module}, all_rows, differentiable=True) as capture:
        module(q, k, v)
    (gradient,) = torch.autograd.grad(capture.results["it"][..., 0].sum(), q)
    weights = (q @ k.transpose(-2, -1) / 8**0.5).softmax(-1)
    (expected,) = torch.autograd.grad(weights[..., 0].sum(), q)
    torch.testing.assert_close(gradient, expected)


def test_means_in_chunks_are_means(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture_module, "ROWS_AT_A_TIME", 3)
    q, k, v = (torch.randn(2, 2, 11, 4) for _ in range(3))
    module = Plain(F.scaled_dot_product_attention)
    with AttentionCapture({"it": module}, lambda name, call: call.mean_row(2)) as capture:
        module(q, k, v)
    torch.testing.assert_close(capture.results["it"], attention_rows(q, k)[:, :, 2:].mean(2))


def test_several_modules_are_told_apart() -> None:
    first, second = nn.MultiheadAttention(4, 1), nn.MultiheadAttention(4, 2)
    x = torch.randn(3, 1, 4)
    with AttentionCapture({"a": first, "b": second}, all_rows) as capture:
        second(first(x, x, x)[0], x, x)
        F.scaled_dot_product_attention(x[None], x[None], x[None])  # outside: nobody's
    assert capture.results["a"].shape == (1, 1, 3, 3)
    assert capture.results["b"].shape == (1, 2, 3, 3)


def test_none_and_two_attentions_are_refused() -> None:
    q = torch.randn(1, 1, 2, 2)
    with pytest.raises(AttentionCaptureError, match="it computed 0 attentions"):
        read(nn.Identity(), q)
    twice = Plain(lambda q: F.scaled_dot_product_attention(F.scaled_dot_product_attention(q, q, q), q, q))
    with pytest.raises(AttentionCaptureError, match="it computed 2 attentions"):
        read(twice, q)
    once = Plain(lambda q: F.scaled_dot_product_attention(q, q, q))
    with (
        pytest.raises(AttentionCaptureError, match="it computed 2 attentions"),
        AttentionCapture({"it": once}, all_rows),
    ):
        once(once(q))


@pytest.mark.parametrize("bad", ["nan", "masked"])
def test_rows_that_do_not_sum_to_one_are_refused(bad: str) -> None:
    q = torch.randn(1, 2, 3, 4)
    mask = torch.ones(3, 3, dtype=torch.bool)
    if bad == "nan":
        q[0, 1, 2] = float("nan")
    else:
        mask[1] = False
    with pytest.raises(AttentionCaptureError, match="captured in it sum to 1 only"):
        read(Plain(lambda q: F.scaled_dot_product_attention(q, q, q, mask)), q)


def test_keys_that_are_no_tokens_are_refused() -> None:
    x = torch.randn(3, 1, 4)
    for module in (nn.MultiheadAttention(4, 1, add_bias_kv=True), nn.MultiheadAttention(4, 1, add_zero_attn=True)):
        with pytest.raises(AttentionCaptureError, match="keys that are no tokens"):
            read(module, x, x, x)
    with pytest.raises(AttentionCaptureError, match=r"queries of shape \(2, 3, 4\)"):
        read(Plain(lambda q: F.scaled_dot_product_attention(q, q, q)), torch.randn(2, 3, 4))


def test_an_error_in_the_model_comes_through_and_leaves_nothing_behind() -> None:
    def broken(q: Tensor) -> Tensor:
        raise ZeroDivisionError

    module = Plain(broken)
    with pytest.raises(ZeroDivisionError):
        read(module, torch.zeros(1))
    assert not module._forward_hooks
    assert not module._forward_pre_hooks
    module.function = lambda q: F.scaled_dot_product_attention(q, q, q)
    assert read(module, torch.randn(1, 1, 2, 2))[0].shape == (1, 1, 2, 2)
