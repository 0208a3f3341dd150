"""MultiScaleAttention on stages and on tokens: what it answers, what it depends on, what it refuses."""

from __future__ import annotations

from copy import deepcopy
from unittest.mock import Mock

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from arrcoc_sam.errors import InputError, ShapeError, UnknownNameError, UnsupportedModelError
from arrcoc_sam.segmenters import load_segmenter
from arrcoc_sam.segmenters.checkpoints import CHECKPOINTS
from arrcoc_sam.training.attention import features as features_module
from arrcoc_sam.training.attention.features import FeatureMaps
from arrcoc_sam.training.attention.memory import MapMemory
from arrcoc_sam.training.attention.model import MultiScaleAttention, attention_of_logits


class Maps(nn.Module):
    """A backbone of one's own: two maps, the coarse one first."""

    def __init__(self) -> None:
        super().__init__()
        self.near, self.far = nn.Conv2d(3, 5, 3, 4, 1), nn.Conv2d(3, 7, 3, 8, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.far(images), self.near(images)


class Fine(nn.Module):
    """One map, finer than all levels but the last: what a ViT's tokens are."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Conv2d(3, 5, 2, 2)

    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = self.tokens(images)
        return answer


def build(backbone: str | nn.Module = "test_convnext", **options: object) -> MultiScaleAttention:
    torch.manual_seed(0)
    return MultiScaleAttention(backbone, (4, 8, 16), image_size=32, width=8, **options).eval()  # type: ignore[arg-type]


IMAGES = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
POINTS = torch.tensor([[3.0, 4.0], [20.0, 9.0], [31.5, -0.5]])
INDEX = torch.tensor([0, 1, 1])


@pytest.mark.parametrize("backbone", ["test_convnext", "test_vit", "test_resnet", Maps(), Fine()])
def test_one_map_a_level_and_gradients_everywhere(backbone: str | nn.Module) -> None:
    model = build(backbone, batch_norm="group")
    logits = model(IMAGES, POINTS, INDEX)
    assert [tuple(level.shape) for level in logits] == [(3, 4, 4), (3, 8, 8), (3, 16, 16)]
    sum(level.square().mean() for level in logits).backward()  # type: ignore[union-attr]
    without = [
        name for name, p in model.named_parameters() if (p.grad is None or not p.grad.any()) and "backbone" not in name
    ]
    assert not without
    assert any(p.grad is not None and bool(p.grad.any()) for p in model.features.parameters())


def test_a_batch_equals_one_query_at_a_time() -> None:
    model = build()
    together = model(IMAGES, POINTS, INDEX)
    for k in range(3):
        alone = model(IMAGES[INDEX[k]][None], POINTS[k : k + 1])
        for level, expected in zip(alone, together, strict=True):
            torch.testing.assert_close(level[0], expected[k], rtol=1e-4, atol=1e-5)


def test_bytes_and_floats_are_the_same_image() -> None:
    model = build()
    for a, b in zip(model(IMAGES, POINTS, INDEX), model(IMAGES / 255, POINTS, INDEX), strict=True):
        torch.testing.assert_close(a, b)


def test_the_query_matters_and_vectors_are_queries_too() -> None:
    model = build()
    moved = model(IMAGES, POINTS + torch.tensor([[5.0, 5.0], [5.0, 5.0], [-9.0, 9.0]]), INDEX)
    assert all((a - b).abs().max() > 1e-4 for a, b in zip(model(IMAGES, POINTS, INDEX), moved, strict=True))
    model = build(query="vector", query_dim=6)
    one, other = (model(IMAGES, torch.randn(2, 6, generator=torch.Generator().manual_seed(s))) for s in (0, 1))
    assert one[2].shape == (2, 16, 16)
    assert (one[2] - other[2]).abs().max() > 1e-4
    with pytest.raises(InputError, match="as an attention source"):
        model.as_source()


def test_frozen_statistics_stay_and_group_norm_is_independent_of_the_batch() -> None:
    frozen = FeatureMaps("test_resnet", image_size=32, batch_norm="frozen").train()
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    frozen(IMAGES)
    assert all(torch.equal(value, before[name]) for name, value in frozen.state_dict().items())
    group = FeatureMaps("test_resnet", image_size=32, batch_norm="group").train()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in group.modules())
    for a, b in zip(group(IMAGES), group(IMAGES[:1]), strict=True):
        torch.testing.assert_close(a[:1], b, rtol=1e-4, atol=1e-5)


def test_every_level_sees_a_map_that_is_finer_than_its_grid() -> None:
    model = build(Fine())
    before = model(IMAGES, POINTS, INDEX)
    with torch.no_grad():
        model.features.backbone.tokens.weight.mul_(3.0)
    for level, changed in zip(before, model(IMAGES, POINTS, INDEX), strict=True):
        assert (level - changed).abs().max() > 1e-3


@pytest.mark.parametrize("backbone", ["test_convnext", Fine()])
def test_half_precision_on_the_cpu(backbone: str | nn.Module) -> None:
    """Maps that are averaged down and maps that are interpolated up."""
    model = build(backbone, batch_norm="group")
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(IMAGES, POINTS, INDEX)
    assert {level.dtype for level in logits} == {torch.bfloat16}
    sum(level.float().square().mean() for level in logits).backward()  # type: ignore[union-attr]
    for level, exact in zip(logits, model(IMAGES, POINTS, INDEX), strict=True):
        torch.testing.assert_close(level.float(), exact, rtol=0.1, atol=0.05)


def test_a_frozen_backbone_answers_once_and_is_not_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    backbone = Maps()
    live = build(backbone)(IMAGES, POINTS, INDEX)
    backbone.requires_grad_(True)
    model, other = (build(backbone, frozen=True).train() for _ in range(2))
    calls: list[int] = []
    real = Maps.forward

    def counting(self: Maps, images: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(len(images))
        return real(self, images)

    monkeypatch.setattr(Maps, "forward", counting)
    first = model(IMAGES, POINTS, INDEX)
    again = model(IMAGES.flip(0), POINTS, 1 - INDEX)
    model(torch.cat([IMAGES[:1], IMAGES[:1].flip(-1)]), POINTS[:2])
    assert calls == [2, 1]
    for a, b, c in zip(first, again, live, strict=True):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(a, c)
    sum(level.square().mean() for level in first).backward()  # type: ignore[union-attr]
    assert all(p.grad is None and not p.requires_grad for p in model.features.parameters())
    other(IMAGES, POINTS, INDEX)  # another model on the same backbone
    assert calls == [2, 1]
    build(deepcopy(backbone), frozen=True)(IMAGES, POINTS, INDEX)  # may have other settings: its maps are its own
    assert calls[2:] == [1, 2]  # a probe, and the two images
    del calls[2:]
    assert all(p.grad is not None for p in model.heads.parameters())
    state = model.state_dict()
    model.load_state_dict({name: 2 * value if "backbone" in name else value for name, value in state.items()})
    assert (model(IMAGES, POINTS, INDEX)[2] - first[2]).abs().max() > 1e-3
    assert calls == [2, 1, 2]


def test_the_least_used_maps_make_room() -> None:
    memory, calls = MapMemory(most_bytes=2 * 4), []

    def compute(images: Tensor) -> list[Tensor]:
        calls.append(len(images))
        return [images[:, :1, :1, :1].float()]

    a, b, c = torch.arange(9, dtype=torch.uint8).view(3, 1, 3, 1, 1)
    memory(torch.cat([a, b]), b"w", compute)
    memory(a, b"w", compute)
    memory(c, b"w", compute)
    assert len(memory) == 2
    assert memory(torch.cat([a, c]), b"w", compute)[0].flatten().tolist() == [0.0, 6.0]
    assert calls == [2, 1]
    memory(a, b"other", compute)
    assert calls == [2, 1, 1]


def test_the_encoder_of_a_segmenter_is_a_backbone() -> None:
    segmenter = load_segmenter("tiny", device="cpu")
    size = segmenter.image_size
    image = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    (maps,) = FeatureMaps("segmenter:tiny", image_size=size, frozen=True)(image)
    expected = segmenter.encode(image[0].permute(1, 2, 0).numpy()).features["image"]
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-4)
    (maps,) = FeatureMaps("segmenter:tiny", image_size=64, frozen=True)(image[..., :64, :64])  # its frame may differ
    assert maps.shape[-2:] == (8, 8)
    with pytest.raises(InputError, match=r"image_size=72 .*expected a multiple of 32"):
        FeatureMaps("segmenter:tiny", image_size=72)


def test_nothing_is_fetched_for_a_size_that_an_encoder_does_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features_module, "load_segmenter", Mock(side_effect=AssertionError("fetched")))
    for name in CHECKPOINTS:
        with pytest.raises(InputError, match=rf"image_size=64 with the encoder of '{name}'; expected image_size=1024"):
            FeatureMaps(f"segmenter:{name}", image_size=64)


def test_a_model_of_timm_is_normalised_as_it_was_trained() -> None:
    features = FeatureMaps(timm.create_model("test_vit", img_size=32), image_size=32)
    config = timm.get_pretrained_cfg("test_vit")
    assert config is not None
    assert features.mean.flatten().tolist() == pytest.approx(list(config.mean))


def test_granularity_from_subpart_to_whole() -> None:
    model = build()
    areas = [model.at_granularity(IMAGES, POINTS, g, INDEX).sigmoid().mean((1, 2)) for g in (0.0, 0.3, 0.5, 0.8, 1.0)]
    assert bool((torch.stack(areas).diff(dim=0) >= 0).all())
    expected = model.at_granularity(IMAGES, POINTS, "whole", INDEX)
    torch.testing.assert_close(model.at_granularity(IMAGES, POINTS, 1.0, INDEX), expected)


def test_it_is_an_attention_source() -> None:
    model = build()
    image = np.random.default_rng(0).integers(0, 256, (20, 40, 3), dtype=np.uint8)
    maps = model.as_source()(image, [[5.0, 5.0], [30.0, 10.0]])
    assert maps.names == ("whole", "part", "subpart")
    assert tuple(maps.values.shape) == (3, 2, 16, 16)
    torch.testing.assert_close(maps.values.sum((-2, -1)), torch.ones(3, 2))


def test_attention_of_very_negative_logits_is_still_a_distribution() -> None:
    torch.testing.assert_close(attention_of_logits(torch.full((1, 2, 2), -500.0)), torch.full((1, 2, 2), 0.25))


class Pooled(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


@pytest.mark.usefixtures("as_at_run_time")
def test_bad_input() -> None:
    with pytest.raises(UnsupportedModelError, match=r"Pooled has no spatial features: .*\(1, 3\)"):
        build(Pooled())
    with pytest.raises(UnsupportedModelError, match="no spatial features at 32 pixels"):
        build(nn.AdaptiveAvgPool2d(1))
    with pytest.raises(UnsupportedModelError, match=r"Conv2d does not answer an image of 32 pixels .*expected spatial"):
        build(nn.Conv2d(3, 4, 64))
    with pytest.raises(UnknownNameError, match="timm has no model 'no_such_net'"):
        build("no_such_net")
    with pytest.raises(InputError, match="coarse to fine"):
        MultiScaleAttention("test_vit", (16, 8), image_size=32)
    with pytest.raises(InputError, match="a length for 'vector' only"):
        build(query="vector")
    model = build()
    with pytest.raises(ShapeError, match="images is"):
        model(IMAGES[..., :16], POINTS, INDEX)
    with pytest.raises(ShapeError, match="one each, or image_index"):
        model(IMAGES, POINTS)
    with pytest.raises(ShapeError, match=r"\(K, 2\)"):
        model(IMAGES, POINTS[:, :1], INDEX)
    with pytest.raises(InputError, match="a point of"):
        model(IMAGES, POINTS + 1, INDEX)
    with pytest.raises(InputError, match=r"a point of \[nan, "):
        model(IMAGES, POINTS * torch.tensor([torch.nan, 1.0]), INDEX)
    with pytest.raises(InputError, match=rf"image_index from \d+ to \d+; expected 0 to {len(IMAGES) - 1}"):
        model(IMAGES, POINTS, INDEX + len(IMAGES))
    with pytest.raises(InputError, match="granularity is None; expected numbers"):
        model.at_granularity(IMAGES, POINTS, None, INDEX)  # type: ignore[arg-type]
