"""The transform says where a pixel of the model's input comes from: measured on pictures of their own coordinates."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import timm
import torch

from arrcoc_sam.attention.layouts import TokenLayout, layout_of
from arrcoc_sam.attention.preprocess import (
    Preprocess,
    aspect_size,
    timm_preprocess,
    transformers_preprocess,
)
from arrcoc_sam.errors import InputError, UnsupportedModelError
from arrcoc_sam.geometry import ImageTransform

transformers = pytest.importorskip("transformers")


def coordinates(height: int, width: int) -> np.ndarray:
    """Red is x + 20, green is y + 20, blue 255: what is black, grey or anything else is padding."""
    image = np.full((height, width, 3), 255, dtype=np.uint8)
    image[..., 0] = np.arange(width) + 20
    image[..., 1] = (np.arange(height) + 20)[:, None]
    return image


def measure(preprocess: Preprocess, image_hw: tuple[int, int], mean: Any, std: Any) -> ImageTransform:
    """Check each coordinate seen in the input against the transform; return the transform."""
    pixels, transform = preprocess(coordinates(*image_hw))
    channels = [std] * 3 if isinstance(std, float) else list(std)
    means = [mean] * 3 if isinstance(mean, float) else list(mean)
    seen = pixels[0] * torch.tensor(channels)[:, None, None] + torch.tensor(means)[:, None, None]
    seen = seen * 255 - 20
    rows, columns = torch.meshgrid(torch.arange(seen.shape[1]), torch.arange(seen.shape[2]), indexing="ij")
    expected = transform.points_to_original(torch.stack([columns, rows], -1).flatten(0, 1).double())
    expected = expected.reshape(*rows.shape, 2)
    # Away from the borders, where resampling has nothing to mirror: two pixels of the coarser of image and input.
    margin = 2 * max(1.0, *(1 / s for s in transform.scale_xy)) + 1
    limit = torch.tensor([image_hw[1] - 1 - margin, image_hw[0] - 1 - margin])
    inside = ((expected > margin) & (expected < limit)).all(-1)
    assert inside.sum() > 20
    error = (seen[:2].permute(1, 2, 0) - expected)[inside]
    assert error.abs().max() < 1.0  # 8-bit rounding
    assert error.mean(0).abs().max() < 0.15  # and no shift: half an input pixel would be more
    # What the transform calls padding is not the picture.
    outside = ((expected < -1) | (expected > torch.tensor([image_hw[1], image_hw[0]]))).any(-1)
    assert (seen[2][outside] < 230 - 20).all()
    return transform


def timm_model(**config: Any) -> tuple[Any, TokenLayout]:
    options: dict[str, Any] = {"img_size": 64, "depth": 1, "embed_dim": 48, "num_heads": 3}
    options.update(config.pop("options", {}))
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, **options)
    model.pretrained_cfg.update(config)
    return model, layout_of(model)


@pytest.mark.parametrize("image_hw", [(200, 200), (120, 230), (231, 97), (50, 60)])
@pytest.mark.parametrize(
    ("mode", "share"),
    [("center", 0.9), ("center", 1.0), ("center", 0.875), ("squash", 0.9), ("border", 1.0), ("border", 0.9)],
)
@pytest.mark.parametrize("input_hw", [(64, 64), (48, 80)])
def test_timm(image_hw: tuple[int, int], mode: str, share: float, input_hw: tuple[int, int]) -> None:
    model, layout = timm_model(crop_mode=mode, crop_pct=share, options={"img_size": input_hw})
    transform = measure(
        timm_preprocess(model, layout), image_hw, model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
    )
    assert transform.frame_hw == input_hw


@pytest.mark.parametrize("image_hw", [(200, 200), (120, 230), (231, 97)])
def test_timm_whole_images(image_hw: tuple[int, int]) -> None:
    model, layout = timm_model(options={"dynamic_img_size": True})
    norm = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
    squashed = measure(timm_preprocess(model, layout, framing="squash"), image_hw, *norm)
    assert torch.equal(squashed.grid_valid((4, 4)), torch.ones(4, 4))
    kept = measure(timm_preprocess(model, layout, framing="aspect", image_size=(64, 64)), image_hw, *norm)
    assert all(side % 16 == 0 for side in kept.frame_hw)
    ratio = (kept.frame_hw[0] / kept.frame_hw[1]) / (image_hw[0] / image_hw[1])
    assert 0.85 < ratio < 1.18
    other = measure(timm_preprocess(model, layout, framing="squash", image_size=(32, 96)), image_hw, *norm)
    assert other.frame_hw == (32, 96)


PROCESSORS = [
    ("ViTImageProcessor", {"size": {"height": 64, "width": 48}}),
    ("ViTImageProcessor", {"do_resize": False}),
    ("SiglipImageProcessor", {"size": {"height": 64, "width": 64}}),
    ("DINOv3ViTImageProcessor", {"size": {"height": 64, "width": 64}}),
    ("DeiTImageProcessor", {"size": {"height": 73, "width": 73}, "crop_size": {"height": 64, "width": 64}}),
    ("CLIPImageProcessor", {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}),
    ("BitImageProcessor", {"size": {"shortest_edge": 73}, "crop_size": {"height": 64, "width": 64}}),
    ("CLIPImageProcessor", {"size": {"shortest_edge": 53}, "crop_size": {"height": 66, "width": 64}}),  # pads
    ("CLIPImageProcessorPil", {"size": {"shortest_edge": 73}, "crop_size": {"height": 64, "width": 64}}),
    ("CLIPImageProcessorPil", {"size": {"shortest_edge": 53}, "crop_size": {"height": 66, "width": 64}}),
]


def processor_of(kind: str, options: dict[str, Any]) -> Any:
    cls = getattr(transformers, kind, None)
    if cls is None:
        pytest.skip(f"transformers {transformers.__version__} has no {kind}")
    return cls(**options)


def any_layout() -> TokenLayout:
    _, layout = timm_model()
    return replace(layout, library="transformers", any_size=True)


@pytest.mark.parametrize("image_hw", [(200, 200), (120, 230), (231, 97)])
@pytest.mark.parametrize(("kind", "options"), PROCESSORS)
def test_transformers(kind: str, options: dict[str, Any], image_hw: tuple[int, int]) -> None:
    processor = processor_of(kind, options)
    preprocess = transformers_preprocess(processor, any_layout())
    transform = measure(preprocess, image_hw, processor.image_mean, processor.image_std)
    assert transform.original_hw == image_hw
    assert tuple(preprocess(coordinates(*image_hw))[0].shape[-2:]) == transform.frame_hw


@pytest.mark.parametrize(("kind", "options"), [PROCESSORS[0], PROCESSORS[6]])
def test_transformers_other_sizes_and_whole_images(kind: str, options: dict[str, Any]) -> None:
    processor = processor_of(kind, options)
    norm = processor.image_mean, processor.image_std
    layout = any_layout()
    larger = measure(transformers_preprocess(processor, layout, image_size=(96, 96)), (120, 230), *norm)
    assert larger.frame_hw == (96, 96)
    whole = measure(transformers_preprocess(processor, layout, framing="squash"), (120, 230), *norm)
    assert float(whole.grid_valid((4, 4)).min()) == 1.0
    assert whole.scale_xy[0] * 230 == pytest.approx(whole.frame_hw[1])
    kept = measure(transformers_preprocess(processor, layout, framing="aspect", image_size=(64, 64)), (120, 230), *norm)
    assert kept.frame_hw == (64, 128)


def test_larger_inputs_keep_the_share_that_is_cut_off() -> None:
    processor = processor_of(
        "BitImageProcessor", {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}
    )
    transform = transformers_preprocess(processor, any_layout(), image_size=(448, 448))(coordinates(200, 200))[1]
    assert transform.scale_xy[0] * 200 == pytest.approx(512)


def test_aspect_size() -> None:
    assert aspect_size((480, 640), (224, 224), (14, 14)) == (224, 294)
    assert aspect_size((10, 1000), (16, 16), (16, 16)) == (16, 1600)


def test_what_is_not_known_is_refused() -> None:
    layout = any_layout()
    with pytest.raises(UnsupportedModelError, match="Siglip2ImageProcessor"):
        transformers_preprocess(transformers.Siglip2ImageProcessor(), layout)
    with pytest.raises(UnsupportedModelError, match="that pads"):
        transformers_preprocess(transformers.ViTImageProcessor(do_pad=True), layout)
    between = transformers.ViTImageProcessor(size={"shortest_edge": 32, "longest_edge": 64})
    with pytest.raises(UnsupportedModelError, match="resizes to"):
        transformers_preprocess(between, layout)(coordinates(64, 64))
    model, fixed = timm_model()
    with pytest.raises(InputError, match=r"takes inputs of \(64, 64\) only"):
        timm_preprocess(model, fixed, image_size=(96, 96))
    with pytest.raises(InputError, match="framing is 'aspect'"):
        timm_preprocess(model, fixed, framing="aspect")
    with pytest.raises(InputError, match="at least one patch"):
        timm_preprocess(model, replace(fixed, any_size=True), image_size=(8, 64))
