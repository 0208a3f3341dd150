"""MultiScaleAttention on stages and on tokens: what it answers, what it depends on, what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from arrcoc_sam.errors import InputError, ShapeError, UnknownNameError, UnsupportedModelError
from arrcoc_sam.training.attention import MultiScaleAttention, attention_of_logits
from arrcoc_sam.training.attention_features import FeatureMaps


class Maps(nn.Module):
    """A backbone of one's own: two maps, the coarse one first."""

    def __init__(self) -> None:
        super().__init__()
        self.near, self.far = nn.Conv2d(3, 5, 3, 4, 1), nn.Conv2d(3, 7, 3, 8, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.far(images), self.near(images)


def build(backbone: str | nn.Module = "test_convnext", **options: object) -> MultiScaleAttention:
    torch.manual_seed(0)
    return MultiScaleAttention(backbone, (4, 8, 16), image_size=32, width=8, **options).eval()  # type: ignore[arg-type]


IMAGES = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
POINTS = torch.tensor([[3.0, 4.0], [20.0, 9.0], [31.5, -0.5]])
INDEX = torch.tensor([0, 1, 1])


@pytest.mark.parametrize("backbone", ["test_convnext", "test_vit", "test_resnet", Maps()])
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
