"""The lean encoder gives what the stock encoder gives."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from segment_anything.modeling import ImageEncoderViT
from torch import nn

from arrcoc_sam.segmenters import lean_encoder as module
from arrcoc_sam.segmenters.lean_encoder import can_run_lean, lean_encoder
from arrcoc_sam.segmenters.sam import SamSegmenter
from arrcoc_sam.segmenters.tiny import build_tiny


def build(*, relative: bool = True, absolute: bool = True) -> ImageEncoderViT:
    """Two blocks with windows that do not fill the frame and two without, with weights that are nowhere 0."""
    torch.manual_seed(0)
    encoder = ImageEncoderViT(
        img_size=112,
        patch_size=8,
        embed_dim=24,
        depth=4,
        num_heads=3,
        out_chans=16,
        qkv_bias=True,
        use_rel_pos=relative,
        use_abs_pos=absolute,
        window_size=4,
        global_attn_indexes=(1, 3),
    )
    for name, weight in encoder.named_parameters():
        if "pos" in name:
            nn.init.normal_(weight, std=0.5)
    return encoder.eval().requires_grad_(False)


@pytest.mark.parametrize("budget", [1, 14**3, 3 * 14**4, 1 << 26])
@pytest.mark.parametrize("relative", [True, False])
def test_equals_stock(relative: bool, budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is worked out at a time: a row of a head, some rows, some heads, everything."""
    monkeypatch.setattr(module, "_SCORES_CPU", budget)
    encoder = build(relative=relative, absolute=relative)
    images = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(1))
    stock = encoder(images)
    assert stock.std() > 0.1
    torch.testing.assert_close(lean_encoder(encoder, images), stock, rtol=1e-5, atol=1e-5)


def test_bfloat16_stays_as_near_to_float32_as_the_stock_encoder() -> None:
    encoder = build()
    images = torch.randn(1, 3, 112, 112, generator=torch.Generator().manual_seed(1))
    exact = encoder(images)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = lean_encoder(encoder, images), encoder(images)
    assert ours.dtype == theirs.dtype
    assert 0 < (ours - exact).norm() < 1.5 * (theirs - exact).norm()


def test_the_segmenter_takes_it(small_sam: Any, picture: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sam, image = copy.deepcopy(small_sam), picture(90, 120, seed=1)
    segmenter = SamSegmenter(sam, name="small")
    assert can_run_lean(sam.image_encoder)
    lean = segmenter.encode(image)
    monkeypatch.setattr("arrcoc_sam.segmenters.sam.can_run_lean", lambda _: False)
    stock = segmenter.encode(image)
    for name, value in stock.features.items():
        torch.testing.assert_close(lean.features[name], value, rtol=1e-5, atol=1e-5)


def test_what_is_trained_or_changed_is_left_alone() -> None:
    class Wrapped(nn.Linear):
        pass

    encoder = build().requires_grad_(True)
    assert not can_run_lean(encoder)
    with torch.no_grad():
        assert can_run_lean(encoder)
    encoder.requires_grad_(False)
    blocks: Any = encoder.blocks
    blocks[1].attn.qkv = Wrapped(24, 72)
    assert not can_run_lean(encoder)
    assert not can_run_lean(build_tiny().image_encoder)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_same_on_the_gpu() -> None:
    encoder = build().cuda()
    images = torch.randn(2, 3, 112, 112, device="cuda")
    torch.testing.assert_close(lean_encoder(encoder, images), encoder(images), rtol=1e-3, atol=1e-3)
