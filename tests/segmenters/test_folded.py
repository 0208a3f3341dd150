"""The decoder folded, or with positions along memory, gives what the stock decoder gives."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
from torch import nn

from arrcoc_sam.errors import InputError
from arrcoc_sam.prompts import Prompts
from arrcoc_sam.segmenters import folded as folded_module
from arrcoc_sam.segmenters.folded import FoldedDecoder, folded_transformer, positions_last_transformer
from arrcoc_sam.segmenters.iou_only import predict_iou
from arrcoc_sam.segmenters.sam import SamSegmenter, stock_decoder
from arrcoc_sam.segmenters.tiny import build_tiny
from arrcoc_sam.segmenters.two_way import can_cross

TOLERANCE = 1e-4
ALWAYS, NEVER = FoldedDecoder(max_tokens=1000), FoldedDecoder(max_tokens=0)


def scaled(module: nn.Module, factor: float) -> Any:
    """A copy with sharper attention, and biases that are not 0, as training leaves them."""
    made = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in made.named_parameters():
        if any(part in name for part in ("q_proj", "k_proj", "v_proj", "out_proj")):
            if name.endswith("bias"):
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
            if "q_proj" in name or "k_proj" in name:
                parameter.data *= factor
    return made


def prompts_of_every_kind(size: tuple[int, int], mask_size: tuple[int, int]) -> dict[str, Prompts]:
    """Two prompts of each kind, about two images."""
    height, width = size
    rng = np.random.default_rng(0)
    points = rng.uniform(0, [width - 1, height - 1], (2, 3, 2))
    boxes = np.array([[3, 4, width / 2, height / 2], [10, 5, width - 2, height - 3]])
    masks = rng.normal(0, 6, (2, *mask_size)).astype(np.float32)
    index = [0, 1]
    return {
        "point": Prompts(points_xy=points[:, :1], image_index=index),
        "points": Prompts(points_xy=points, labels=[[1, 0, 1], [1, 1, 0]], image_index=index),
        "box": Prompts(boxes_xyxy=boxes, image_index=index),
        "mask": Prompts(mask_logits=masks, image_index=index),
        "mask and point": Prompts(mask_logits=masks, points_xy=points[:, :1], image_index=index),
        "all": Prompts(mask_logits=masks, points_xy=points, boxes_xyxy=boxes, image_index=index),
    }


@pytest.mark.parametrize("path", [ALWAYS, NEVER], ids=["folded", "positions last"])
@pytest.mark.parametrize(("architecture", "factor"), [("small", 1.0), ("small", 6.0), ("tiny", 1.0), ("tiny", 6.0)])
def test_equals_stock(small_sam: Any, picture: Any, architecture: str, factor: float, path: FoldedDecoder) -> None:
    torch.manual_seed(0)
    model = copy.deepcopy(small_sam) if architecture == "small" else build_tiny().requires_grad_(False)
    model.mask_decoder = scaled(model.mask_decoder, factor)
    stock = SamSegmenter(model, name="stock", decoder_path=stock_decoder)
    folded = SamSegmenter(model, name="folded", decoder_path=path)
    assert SamSegmenter(model, name="as it comes").decoder_path == FoldedDecoder()
    size = (90, 120)
    embedding = stock.encode([picture(*size, seed=1), picture(*size, seed=2)])
    for name, prompts in prompts_of_every_kind(size, stock.mask_input_size).items():
        ours, theirs = (each.decode(embedding, prompts, "all") for each in (folded, stock))
        torch.testing.assert_close(ours.logits, theirs.logits, rtol=TOLERANCE, atol=TOLERANCE, msg=name)
        torch.testing.assert_close(ours.predicted_iou, theirs.predicted_iou, rtol=TOLERANCE, atol=TOLERANCE, msg=name)
        clear = theirs.logits.abs() > TOLERANCE
        assert torch.equal((ours.logits > 0)[clear], (theirs.logits > 0)[clear])
        if "mask" in name:
            alone = predict_iou(folded, embedding, prompts, "all")
            torch.testing.assert_close(alone, theirs.predicted_iou, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("multimask", [True, False])
def test_some_of_the_tokens_equal_stock(segmenter: SamSegmenter, picture: Any, multimask: bool) -> None:
    folded = SamSegmenter(segmenter.model, name="folded", decoder_path=ALWAYS)
    embedding = segmenter.encode([picture(90, 120, seed=1)] * 2)
    prompts = prompts_of_every_kind((90, 120), segmenter.mask_input_size)["point"]
    ours, theirs = (each.decode(embedding, prompts, multimask) for each in (folded, segmenter))
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=TOLERANCE, atol=TOLERANCE)
    alone = predict_iou(folded, embedding, prompts, multimask)
    torch.testing.assert_close(alone, theirs.predicted_iou, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.fixture(scope="module")
def vit_b_decoder() -> tuple[PromptEncoder, MaskDecoder, torch.Tensor]:
    """Prompt encoder and mask decoder as in SAM ViT-B, random, with a random embedding: no encoder is needed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        prompts = PromptEncoder(256, (64, 64), (1024, 1024), mask_in_chans=16)
        transformer = TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8)
        decoder = MaskDecoder(transformer_dim=256, transformer=transformer)
        for mlp in decoder.output_hypernetworks_mlps:
            nn.init.normal_(mlp.layers[-1].weight, std=2.0)
        embedding = torch.randn(1, 256, 64, 64)
    return prompts.eval().requires_grad_(False), decoder.eval().requires_grad_(False), embedding


@pytest.mark.parametrize(("kind", "factor"), [("point", 1.0), ("box", 6.0), ("mask and point", 6.0)])
def test_vit_b_decoder_equals_stock(vit_b_decoder: Any, kind: str, factor: float) -> None:
    prompt_encoder, decoder, embedding = vit_b_decoder
    decoder = scaled(decoder, factor)
    point = (torch.tensor([[[300.0, 500.0]]]), torch.tensor([[1]]))
    mask = torch.randn(1, 1, 256, 256, generator=torch.Generator().manual_seed(2)) * 6
    sparse, dense = prompt_encoder(
        points=None if kind == "box" else point,
        boxes=torch.tensor([[100.0, 200.0, 700.0, 900.0]]) if kind == "box" else None,
        masks=mask if "mask" in kind else None,
    )
    arguments = (decoder, embedding, prompt_encoder.get_dense_pe(), sparse, dense, (0, 1, 2, 3))
    stock_logits, stock_iou = stock_decoder(*arguments, reduced=nullcontext)
    assert 0.02 < (stock_logits > 0).float().mean() < 0.98
    exact, _ = copy.deepcopy(decoder).double().predict_masks(*(each.double() for each in arguments[1:5]))
    rounding = float((stock_logits - exact).abs().max())  # segment-anything's own, which differs from CPU to CPU
    assert rounding < 5 * TOLERANCE
    for path in (FoldedDecoder(), NEVER):
        logits, iou = path(*arguments, reduced=nullcontext)
        assert logits.shape == (1, 4, 256, 256)
        assert float((logits - exact).abs().max()) < max(TOLERANCE, 4 * rounding)
        torch.testing.assert_close(iou, stock_iou, rtol=TOLERANCE, atol=TOLERANCE)
    nothing, iou_only = FoldedDecoder(masks=False)(*arguments, reduced=nullcontext)
    assert nothing.shape == (1, 4, 0, 0)
    torch.testing.assert_close(iou_only, stock_iou, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("path", [ALWAYS, NEVER], ids=["folded", "positions last"])
def test_bfloat16_stays_as_near_to_float32_as_the_stock_decoder(
    small_sam: Any, picture: Any, path: FoldedDecoder
) -> None:
    size = (90, 120)
    exact = SamSegmenter(small_sam, name="float32")
    embedding = exact.encode([picture(*size, seed=1), picture(*size, seed=2)])
    stock = SamSegmenter(small_sam, name="stock", dtype=torch.bfloat16)
    folded = SamSegmenter(small_sam, name="folded", dtype=torch.bfloat16, decoder_path=path)
    kinds = prompts_of_every_kind(size, stock.mask_input_size)
    for prompts in (kinds["point"], kinds["mask and point"]):
        truth, theirs, ours = (each.decode(embedding, prompts, "all") for each in (exact, stock, folded))
        assert ours.logits.dtype == ours.predicted_iou.dtype == torch.float32
        for name in ("logits", "predicted_iou"):
            true = getattr(truth, name)
            error, stock_error = ((getattr(each, name) - true).abs().mean() for each in (ours, theirs))
            assert 0 < error < 2 * stock_error + 1e-3


@pytest.mark.parametrize("fast", [ALWAYS, NEVER], ids=["folded", "positions last"])
def test_gradients_to_images_and_prompts_equal_stock(
    segmenter: SamSegmenter, picture: Any, fast: FoldedDecoder
) -> None:
    embedding = segmenter.encode([picture(90, 120, seed=1)] * 2)
    prompts = prompts_of_every_kind((90, 120), segmenter.mask_input_size)["mask and point"]
    found = []
    for path in (stock_decoder, fast):
        features, masks = embedding.features["image"].clone().requires_grad_(), prompts.mask_logits.requires_grad_()
        again = SamSegmenter(segmenter.model, name="again", decoder_path=path)
        asked = Prompts(points_xy=prompts.points_xy, mask_logits=masks, image_index=[0, 1])
        cand = again.decode(replace(embedding, features={"image": features}), asked, "all")
        (cand.logits.sigmoid().mean() + cand.predicted_iou.mean()).backward()
        found.append((features.grad, masks.grad.clone()))
        masks.grad = None
    for ours, theirs in zip(found[1], found[0], strict=True):
        assert float(theirs.abs().max()) > 1e-6
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-8)


def test_every_weight_has_a_gradient_while_the_decoder_is_trained(small_sam: Any) -> None:
    """The folded algebra would leave the key biases out."""
    decoder = copy.deepcopy(small_sam.mask_decoder).requires_grad_(True)
    width = decoder.transformer_dim
    arguments = (torch.randn(2, width, 8, 8), torch.randn(1, width, 8, 8), torch.randn(2, 2, width))
    logits, iou = ALWAYS(decoder, *arguments, torch.zeros(2, width, 8, 8), (0, 1, 2, 3), reduced=nullcontext)
    (logits.mean() + iou.mean()).backward()
    assert all(weight.grad is not None for weight in decoder.parameters())


# --- when it folds --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_sparse", "limit", "folds"),
    [(2, None, True), (12, None, True), (13, None, False), (2, 7, True), (2, 6, False), (13, 18, True)],
)
def test_folds_while_it_takes_no_more_products(
    vit_b_decoder: Any, monkeypatch: pytest.MonkeyPatch, num_sparse: int, limit: int | None, folds: bool
) -> None:
    """Heads are 16 wide of 256 channels, and the decoder has 5 tokens of its own."""
    called = []

    def watched(name: str, run: Any) -> Any:
        def count(*arguments: Any) -> Any:
            called.append(name)
            return run(*arguments)

        return count

    for name in ("folded_transformer", "positions_last_transformer"):
        monkeypatch.setattr(folded_module, name, watched(name, getattr(folded_module, name)))
    _, decoder, _ = vit_b_decoder
    embedding, pe = torch.randn(1, 256, 4, 4), torch.randn(1, 256, 4, 4)
    sparse, dense = torch.randn(1, num_sparse, 256), torch.zeros(1, 256, 4, 4)
    for masks in (True, False):
        path = FoldedDecoder(masks=masks, max_tokens=limit)
        logits, iou = path(decoder, embedding, pe, sparse, dense, (1, 2), reduced=nullcontext)
        assert logits.shape == ((1, 2, 16, 16) if masks else (1, 2, 0, 0))
        assert iou.shape == (1, 2)
    assert called == 2 * ["folded_transformer" if folds else "positions_last_transformer"]


@pytest.mark.parametrize("path", [ALWAYS, NEVER], ids=["folded", "positions last"])
@pytest.mark.parametrize("num_prompts", [0, 1, 3])
def test_any_number_of_prompts(small_sam: Any, path: FoldedDecoder, num_prompts: int) -> None:
    decoder = small_sam.mask_decoder
    width = decoder.transformer_dim
    image, sparse = torch.randn(num_prompts, width, 8, 8), torch.randn(num_prompts, 2, width)
    arguments = (decoder, image, torch.randn(1, width, 8, 8), sparse, torch.zeros_like(image), (0, 3))
    ours, theirs = (each(*arguments, reduced=nullcontext) for each in (path, stock_decoder))
    torch.testing.assert_close(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("run", [folded_transformer, positions_last_transformer], ids=["folded", "positions last"])
def test_many_prompts_of_one_image_by_vmap(vit_b_decoder: Any, run: Any) -> None:
    _, decoder, _ = vit_b_decoder
    image, pe, prompts = torch.randn(1, 256, 4, 4), torch.randn(1, 256, 4, 4), torch.randn(3, 1, 20, 256)
    with torch.no_grad():
        tokens, _ = torch.func.vmap(lambda prompt: run(decoder.transformer, image, pe, prompt, [0, 1]))(prompts)
        singly = torch.stack([run(decoder.transformer, image, pe, prompt, [0, 1])[0] for prompt in prompts])
    torch.testing.assert_close(tokens, singly, rtol=TOLERANCE, atol=TOLERANCE)


def test_hooks_are_called_and_missing_biases_allowed(small_sam: Any) -> None:
    decoder = copy.deepcopy(small_sam.mask_decoder)
    width = decoder.transformer_dim
    arguments = (torch.randn(2, width, 8, 8), torch.randn(1, width, 8, 8), torch.randn(2, 2, width))
    arguments = (decoder, *arguments, torch.zeros(2, width, 8, 8), (0, 3))
    attention, called = decoder.transformer.layers[1].cross_attn_token_to_image, []
    for module in (attention, attention.v_proj):
        hook = module.register_forward_hook(lambda *_: called.append(True))
        ALWAYS(*arguments, reduced=nullcontext)
        hook.remove()
    assert len(called) == 2
    assert can_cross(decoder.transformer)
    attention.q_proj.bias = None
    torch.testing.assert_close(*(path(*arguments, reduced=nullcontext) for path in (NEVER, stock_decoder)))


def test_changed_transformers_run_the_stock_code(small_sam: Any) -> None:
    class Wrapped(nn.Linear):
        """An adapter around a projection, whose ``weight`` is not all there is to it."""

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input) + 1

    model = copy.deepcopy(small_sam)
    decoder = model.mask_decoder
    assert can_cross(decoder.transformer)
    attention = decoder.transformer.layers[1].cross_attn_token_to_image
    attention.v_proj = Wrapped(attention.embedding_dim, attention.internal_dim)
    assert not can_cross(decoder.transformer)
    assert not can_cross(nn.Identity())
    width = attention.embedding_dim
    arguments = (torch.randn(2, width, 8, 8), torch.randn(1, width, 8, 8), torch.randn(2, 2, width))
    arguments = (decoder, *arguments, torch.zeros(2, width, 8, 8), (0, 3))
    (logits, iou), stock = (path(*arguments, reduced=nullcontext) for path in (ALWAYS, stock_decoder))
    assert torch.equal(iou, stock[1])
    torch.testing.assert_close(logits, stock[0])


def test_predict_iou_leaves_the_segmenter_as_it_is(segmenter: SamSegmenter, picture: Any) -> None:
    embedding = segmenter.encode([picture(90, 120, seed=1)] * 2)
    prompts = prompts_of_every_kind((90, 120), segmenter.mask_input_size)["point"]
    assert predict_iou(segmenter, embedding, prompts, chunk_size=1).shape == (2, 3)
    assert segmenter.decoder_path == FoldedDecoder(masks=True)
    assert segmenter.decode(embedding, prompts).logits.shape[-1] > 0


def test_bad_limit() -> None:
    with pytest.raises(InputError, match="max_tokens=-1"):
        FoldedDecoder(max_tokens=-1)
