"""The decoder of training: the numbers of segment-anything's own, and its gradients."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn

from arrcoc_sam.segmenters.decoder_path import run_decoder, stock_decoder
from arrcoc_sam.segmenters.folded import folded_transformer
from arrcoc_sam.segmenters.tiny import build_tiny
from arrcoc_sam.segmenters.upscaling import multiplied_masks
from arrcoc_sam.training.reduced_decoder import ReducedDecoder

TOKENS = (0, 1, 2, 3)


@pytest.fixture
def model() -> Sam:
    torch.manual_seed(0)
    model = build_tiny(64)
    for module in model.modules():  # biases and norms that tell a wrong one
        if isinstance(module, (nn.LayerNorm, nn.ConvTranspose2d, nn.Linear)) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.5)
    return model


def prompts(num: int = 2, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = ((3, 128, 8, 8), (3, num, 128), (3, 128, 8, 8))
    embeddings, sparse, dense = (torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes)
    return embeddings.requires_grad_(), sparse.requires_grad_(), dense.requires_grad_()


@pytest.mark.parametrize("num", [2, 9])
def test_same_numbers_and_gradients(model: Sam, num: int) -> None:
    decoder, image_pe = model.mask_decoder.double(), model.prompt_encoder.get_dense_pe().double()
    answers, gradients = [], []
    for lean in (False, True):
        model.zero_grad()
        given = prompts(num, torch.float64)
        every = (decoder, given[0], image_pe, given[1], given[2], TOKENS)
        if lean:
            logits, iou = run_decoder(folded_transformer, *every, reduced=nullcontext, upscale=multiplied_masks)
        else:
            logits, iou = stock_decoder(*every, reduced=nullcontext)
        weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))
        ((logits * weights).mean() + iou.square().mean()).backward()
        answers.append((logits.detach(), iou.detach()))
        found = {name: value.grad for name, value in decoder.named_parameters() if value.grad is not None}
        gradients.append(found | {str(row): value.grad for row, value in enumerate(given)})
    for stock, ours in zip(*answers, strict=True):
        torch.testing.assert_close(ours, stock, rtol=1e-4, atol=1e-4)
    for name, value in gradients[0].items():
        if name.endswith("k_proj.bias") and name not in gradients[1]:
            torch.testing.assert_close(value, torch.zeros_like(value), rtol=0, atol=1e-12)
        else:
            torch.testing.assert_close(gradients[1][name], value, rtol=1e-4, atol=1e-8)


def test_in_bfloat16_with_gradients_on_the_weights_themselves(model: Sam) -> None:
    embeddings, sparse, dense = prompts()
    logits, iou = ReducedDecoder(model)(embeddings, sparse, dense, TOKENS)
    exact = stock_decoder(
        model.mask_decoder, embeddings, model.prompt_encoder.get_dense_pe(), sparse, dense, TOKENS, reduced=nullcontext
    )
    assert (logits.dtype, iou.dtype) == (torch.float32, torch.float32)
    for ours, stock in zip((logits, iou), exact, strict=True):
        assert (ours - stock).abs().max() < 0.05 * stock.abs().max()
    logits.mean().backward()
    weight = model.mask_decoder.output_upscaling[0].weight
    assert weight.dtype == torch.float32
    assert weight.grad is not None
    assert weight.grad.abs().sum() > 0


def test_another_upscaling_runs_as_it_is(model: Sam) -> None:
    """A decoder of other layers is not taken apart."""
    model.mask_decoder.output_upscaling[2] = nn.ReLU()
    logits, _ = ReducedDecoder(model)(*prompts(), TOKENS)
    given = prompts()
    exact, _ = stock_decoder(
        model.mask_decoder, given[0], model.prompt_encoder.get_dense_pe(), *given[1:], TOKENS, reduced=nullcontext
    )
    assert (logits - exact).abs().max() < 0.05 * exact.abs().max()
