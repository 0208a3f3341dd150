"""Ways from positions to masks that give what SAM's layers give."""

from __future__ import annotations

import pytest
import torch
from segment_anything.modeling.common import LayerNorm2d
from torch import nn

from arrcoc_sam.segmenters.tiny import build_tiny
from arrcoc_sam.segmenters.upscaling import banded_masks, convolved_masks, is_plain, multiplied_masks


def layers() -> nn.Sequential:
    """Upscaling of SAM's kind whose biases and norm are not those of a new model."""
    torch.manual_seed(0)
    first, second = nn.ConvTranspose2d(8, 4, 2, stride=2), nn.ConvTranspose2d(4, 2, 2, stride=2)
    norm = LayerNorm2d(4)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return nn.Sequential(first, norm, nn.GELU(), second, nn.GELU()).double()


@pytest.mark.parametrize(("count", "grid_hw"), [(1, (3, 5)), (3, (33, 20)), (2, (2, 600)), (0, (4, 4))])
def test_equal_masks_and_gradients(count: int, grid_hw: tuple[int, int]) -> None:
    """Bands are a whole grid, 17 rows and 16, and single rows that are too long for one."""
    positions = torch.randn(count, grid_hw[0] * grid_hw[1], 8, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(count, 4, 2, dtype=torch.float64, requires_grad=True)
    upscaling = layers()
    given = (upscaling, positions, weights, grid_hw)
    expected = convolved_masks(*given)
    assert expected.shape == (count, 4, 4 * grid_hw[0], 4 * grid_hw[1])
    learned = (positions, weights, *upscaling.parameters())
    gradients = torch.autograd.grad(expected.square().sum(), learned)
    for way in (banded_masks, multiplied_masks):
        masks = way(*given)
        torch.testing.assert_close(masks, expected)
        torch.testing.assert_close(torch.autograd.grad(masks.square().sum(), learned), gradients)


def test_other_layers_are_not_taken_apart() -> None:
    upscaling = build_tiny(64).mask_decoder.output_upscaling
    assert is_plain(upscaling)
    upscaling[0] = nn.ConvTranspose2d(128, 32, 4, stride=2, padding=1)
    assert not is_plain(upscaling)
    upscaling[0] = nn.Identity()
    assert not is_plain(upscaling)
