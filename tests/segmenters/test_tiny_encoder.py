"""The embedded model's encoder: sizes, reach, and layers that begin as such that change nothing."""

from __future__ import annotations

import pytest
import torch

from arrcoc_sam.segmenters.tiny import build_tiny, set_image_size
from arrcoc_sam.segmenters.tiny_encoder import TinyEncoder


@pytest.mark.parametrize("size", [32, 96, 192])
def test_the_grid_has_a_stride_of_8_at_any_size(size: int) -> None:
    encoder = TinyEncoder(size, 128).eval()
    assert encoder(torch.randn(2, 3, size, size)).shape == (2, 128, size // 8, size // 8)


def test_no_weight_depends_on_the_size() -> None:
    torch.manual_seed(0)
    small, large = build_tiny(64), build_tiny(128)
    set_image_size(small, 128)
    small.load_state_dict(large.state_dict())
    image = torch.randn(1, 3, 128, 128)
    assert torch.equal(small.image_encoder(image), large.image_encoder(image))


def test_new_layers_change_nothing() -> None:
    torch.manual_seed(0)
    encoder = TinyEncoder(64, 128).eval()
    x = torch.randn(2, 128, 4, 4)
    for layer in (*encoder.context, encoder.refine):
        torch.testing.assert_close(layer(x), x)


def test_attention_sees_the_whole_frame() -> None:
    """A corner's embedding answers to the opposite corner's pixels once attention has weights, and not before."""
    torch.manual_seed(0)
    encoder = TinyEncoder(512, 128, depths=(0, 0, 0, 0)).eval()
    image = torch.randn(1, 3, 512, 512)
    changed = image.clone()
    changed[..., -16:, -16:] += 3.0

    def moved() -> float:
        with torch.no_grad():
            return (encoder(image) - encoder(changed))[..., :4, :4].abs().max().item()

    assert moved() == 0.0
    for layer in encoder.context:
        torch.nn.init.normal_(layer.out.weight, std=0.1)
    assert moved() > 1e-6
