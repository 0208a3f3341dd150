"""Prompt tokens that know what lies under them, in every way to run the decoder."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from arrcoc_sam.segmenters.folded import FoldedDecoder
from arrcoc_sam.segmenters.prompt_content import PromptContent, with_content
from arrcoc_sam.segmenters.sam import stock_decoder
from arrcoc_sam.segmenters.tiny import build_tiny


@pytest.fixture
def model() -> Any:
    """The embedded model with random weights and a projection that is not zero."""
    torch.manual_seed(0)
    model = build_tiny(192)
    torch.nn.init.normal_(model.mask_decoder.prompt_content.project.weight, std=0.1)
    return model


def test_a_new_one_changes_nothing() -> None:
    sparse = torch.randn(2, 3, 16)
    assert torch.equal(PromptContent(16)(torch.randn(2, 16, 4, 4), torch.randn(1, 16, 4, 4), sparse), sparse)


def test_a_plain_decoder_takes_tokens_as_they_are(model: Any) -> None:
    del model.mask_decoder.prompt_content
    sparse = torch.randn(2, 3, 128)
    assert with_content(model.mask_decoder, torch.randn(2, 128, 24, 24), torch.randn(1, 128, 24, 24), sparse) is sparse


@pytest.mark.parametrize("point", [(51.5, 83.5), (99.5, 20.0), (187.5, 3.5)])
def test_a_token_is_told_what_lies_under_it(point: tuple[float, float]) -> None:
    """An embedding that holds its own coordinates: each click reads off where it is, to a few pixels."""
    torch.manual_seed(0)
    model: Any = build_tiny(192)
    content = model.mask_decoder.prompt_content
    with torch.no_grad():
        content.project.weight.copy_(torch.eye(128))
        model.prompt_encoder.point_embeddings[1].weight.zero_()
    centers = torch.arange(24.0) * 8 + 3.5
    embedding = torch.zeros(1, 128, 24, 24)
    embedding[0, 0], embedding[0, 1] = centers.expand(24, 24), centers.expand(24, 24).T
    sparse, _ = model.prompt_encoder((torch.tensor([[point]]), torch.tensor([[1]])), None, None)
    told = content(embedding, model.prompt_encoder.get_dense_pe(), sparse) - sparse
    torch.testing.assert_close(told[0, 0, :2], torch.tensor(point), atol=2.0, rtol=0)


def test_every_path_of_the_decoder_reads_it(model: Any) -> None:
    decoder, image_pe = model.mask_decoder, model.prompt_encoder.get_dense_pe()
    embedding = torch.randn(1, 128, 24, 24)
    sparse, dense = model.prompt_encoder((torch.tensor([[[40.0, 60.0]]]), torch.tensor([[1]])), None, None)
    tokens = (0, 1, 2, 3)
    with torch.no_grad():
        published = decoder.predict_masks(embedding, image_pe, sparse, dense)
        stock = stock_decoder(decoder, embedding, image_pe, sparse, dense, tokens, reduced=nullcontext)
        folded = FoldedDecoder()(decoder, embedding, image_pe, sparse, dense, tokens, reduced=nullcontext)
        torch.nn.init.zeros_(decoder.prompt_content.project.weight)
        without = stock_decoder(decoder, embedding, image_pe, sparse, dense, tokens, reduced=nullcontext)
    for masks, iou in (published, folded):
        torch.testing.assert_close(masks, stock[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(iou, stock[1], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(without[0], stock[0], atol=1e-2)
