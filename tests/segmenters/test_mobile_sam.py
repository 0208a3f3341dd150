"""MobileSAM: the published checkpoint's names and shapes, and the repository's own encoder's numbers."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import torch
from torch import Tensor

from arrcoc_sam.errors import CheckpointError
from arrcoc_sam.prompts import Prompts
from arrcoc_sam.segmenters import load_segmenter
from arrcoc_sam.segmenters.mobile_sam import build_mobile_sam, rename_mobile_sam
from arrcoc_sam.segmenters.sam import SamSegmenter

Shapes = dict[str, tuple[int, ...]]
WIDTHS, DEPTHS, HEADS, WINDOWS = (64, 128, 160, 320), (2, 2, 6, 2), (2, 4, 5, 10), (7, 7, 14, 7)


def conv_norm(name: str, width_in: int, width_out: int, kernel: int, *, depthwise: bool = False) -> Shapes:
    """A convolution and its batch normalisation, as the checkpoint names them."""
    shapes: Shapes = {f"{name}.c.weight": (width_out, 1 if depthwise else width_in, kernel, kernel)}
    statistics = ("weight", "bias", "running_mean", "running_var")
    return {**shapes, **{f"{name}.bn.{s}": (width_out,) for s in statistics}, f"{name}.bn.num_batches_tracked": ()}


def linear(name: str, width_in: int, width_out: int) -> Shapes:
    return {f"{name}.weight": (width_out, width_in), f"{name}.bias": (width_out,)}


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def encoder_shapes() -> Shapes:
    """Every tensor of ``TinyViT`` as ``build_sam_vit_t`` of ChaoningZhang/MobileSAM makes it (commit 34bbbfd)."""
    shapes = conv_norm("patch_embed.seq.0", 3, 32, 3) | conv_norm("patch_embed.seq.2", 32, 64, 3)
    for stage, width in enumerate(WIDTHS):
        for block in range(DEPTHS[stage]):
            name = f"layers.{stage}.blocks.{block}"
            if stage == 0:
                shapes |= conv_norm(f"{name}.conv1", width, 4 * width, 1)
                shapes |= conv_norm(f"{name}.conv2", 4 * width, 4 * width, 3, depthwise=True)
                shapes |= conv_norm(f"{name}.conv3", 4 * width, width, 1)
                continue
            shapes |= {f"{name}.attn.attention_biases": (HEADS[stage], WINDOWS[stage] ** 2)}
            shapes |= norm(f"{name}.attn.norm", width) | norm(f"{name}.mlp.norm", width)
            shapes |= linear(f"{name}.attn.qkv", width, 3 * width) | linear(f"{name}.attn.proj", width, width)
            shapes |= linear(f"{name}.mlp.fc1", width, 4 * width) | linear(f"{name}.mlp.fc2", 4 * width, width)
            shapes |= conv_norm(f"{name}.local_conv", width, width, 3, depthwise=True)
        if stage < 3:
            name, wider = f"layers.{stage}.downsample", WIDTHS[stage + 1]
            shapes |= conv_norm(f"{name}.conv1", width, wider, 1) | conv_norm(f"{name}.conv3", wider, wider, 1)
            shapes |= conv_norm(f"{name}.conv2", wider, wider, 3, depthwise=True)
    shapes |= norm("norm_head", 320) | linear("head", 320, 1000)
    shapes |= {"neck.0.weight": (256, 320, 1, 1), "neck.2.weight": (256, 256, 3, 3)}
    return shapes | norm("neck.1", 256) | norm("neck.3", 256)


def filled(name: str, shape: tuple[int, ...]) -> Tensor:
    """Weights that depend on the name alone."""
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("num_batches_tracked"):
        return torch.tensor(1)
    values = generator.standard_normal(shape)
    if name.endswith("running_var"):
        values = 1 + 0.2 * np.abs(values)
    elif name.endswith(".weight") and len(shape) == 1:
        values = 1 + 0.1 * values
    elif len(shape) > 1 and not name.endswith("attention_biases"):
        values = values / np.sqrt(np.prod(shape[1:]))
    else:
        values = 0.1 * values
    return torch.from_numpy(values.astype(np.float32))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A file with the published names and shapes: the encoder's, and segment-anything's own for the rest."""
    state = {
        f"image_encoder.{name}": filled(f"image_encoder.{name}", shape) for name, shape in encoder_shapes().items()
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        rest = build_mobile_sam().state_dict()
    state |= {name: value for name, value in rest.items() if not name.startswith("image_encoder.")}
    path = tmp_path_factory.mktemp("weights") / "mobile_sam.pt"
    torch.save(state, path)
    return path


def test_the_names_are_those_of_the_repository():
    """302 tensors of 6,075,415 numbers: counted on the repository's own class."""
    shapes = encoder_shapes()
    assert len(shapes) == 302
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 6_075_415


def test_every_tensor_finds_its_place(checkpoint):
    state = torch.load(checkpoint, weights_only=True)
    renamed = rename_mobile_sam(state)
    wanted = build_mobile_sam().state_dict()
    assert {key: value.shape for key, value in renamed.items()} == {key: value.shape for key, value in wanted.items()}
    assert len(state) - len(renamed) == 4  # the classifier
    assert rename_mobile_sam(renamed) == renamed


def test_the_encoder_gives_the_repositorys_numbers(checkpoint):
    """Known answers: its ``TinyViT`` with these weights on this input, run once with timm 1.0 and torch 2."""
    segmenter = load_segmenter("mobile_sam", checkpoint=checkpoint, device="cpu")
    assert isinstance(segmenter, SamSegmenter)
    assert segmenter.image_size == 1024
    y, x = np.mgrid[0:1024, 0:1024] / 1024
    waves = np.stack([np.sin(9 * x + 4 * y), np.cos(7 * y - 3 * x), np.sin(20 * x * y)]).astype(np.float32)
    out = segmenter.model.image_encoder(torch.from_numpy(waves)[None])
    assert out.shape == (1, 256, 64, 64)
    places = torch.tensor(
        [[0, 0, 0], [1, 5, 60], [17, 31, 32], [100, 63, 63], [128, 40, 3], [200, 13, 50], [255, 63, 0], [77, 0, 63]]
    )
    expected = torch.tensor([-1.28423, 0.30666, 0.06877, -1.29756, -1.63375, 0.79430, -0.30119, 1.39633])
    torch.testing.assert_close(out[0][tuple(places.T)], expected, atol=1e-4, rtol=1e-4)


def test_smaller_frames_answer_all_prompts(picture):
    """No weight depends on the frame; at 128 px the same model runs all kinds of prompts in a moment."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        segmenter = SamSegmenter(build_mobile_sam(128).requires_grad_(False), name="small")
    mask = torch.randn(1, 32, 32, generator=torch.Generator().manual_seed(0))
    prompts = Prompts.cat(
        [Prompts([[[20.0, 30]]]), Prompts(boxes_xyxy=[[5.0, 5, 60, 40]]), Prompts([[[20.0, 30]]], mask_logits=mask)]
    )
    cand = segmenter.decode(segmenter.encode(picture(60, 90, 0)), prompts, multimask="all")
    assert cand.logits.shape == (3, 4, 32, 32)
    assert cand.logits.isfinite().all()


def test_weights_of_another_model_are_refused(checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match=r"another architecture .*tensors of sam_vit_b"):
        load_segmenter("sam_vit_b", checkpoint=checkpoint, device="cpu")
    state = torch.load(checkpoint, weights_only=True)
    del state["image_encoder.neck.0.weight"]
    torch.save(state, tmp_path / "less.pt")
    with pytest.raises(CheckpointError, match=r"1 tensors missing.*image_encoder.neck.0.weight"):
        load_segmenter("mobile_sam", checkpoint=tmp_path / "less.pt", device="cpu")
