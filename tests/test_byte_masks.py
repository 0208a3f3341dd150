"""Bool masks whose True is a byte of 255, as Pillow gives them for images of mode "1", count as what they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import arrcoc_sam.masks as masks
from arrcoc_sam.granularity.metrics import mass_accuracy, shell_contrast
from arrcoc_sam.hierarchy import MaskForest
from arrcoc_sam.hierarchy.levels import shell_masks
from arrcoc_sam.losses import functional as LF

RNG = np.random.default_rng(0)
ONES = np.stack([RNG.random((40, 52)) < share for share in (0.7, 0.4, 0.1)])
ONES[1] &= ONES[0]
ONES[2] &= ONES[1]
# np.array of an image of mode "1", as torchvision's pil_to_tensor takes it
BYTES = np.stack([np.array(Image.fromarray(mask)) for mask in ONES])


def test_pillow_still_makes_such_masks() -> None:
    assert BYTES.dtype == np.bool_
    assert BYTES.view(np.uint8).max() == 255
    assert (BYTES == ONES).all()


FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "areas": masks.areas,
    "boxes": masks.mask_boxes,
    "iou": lambda m: masks.mask_iou(m[:2], m[1:]),
    "containment": lambda m: masks.containment(m[1:], m[:2]),
    "pairwise iou": lambda m: masks.pairwise_iou(m, m),
    "pairwise containment": lambda m: masks.pairwise_containment(m, m),
    "run lengths": masks.encode_rle,
    "average": lambda m: masks.area_average(m, (7, 9)),
    "interior point": lambda m: masks.largest_interior_point(m[0]),
    "components": lambda m: masks.connected_components(m[0]),
    "forest": lambda m: MaskForest.from_masks(m).to_json(),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_functions_of_masks(name: str, kind: Callable[[np.ndarray], Any]) -> None:
    ours, expected = (FUNCTIONS[name](kind(given.copy())) for given in (BYTES, ONES))
    if isinstance(expected, torch.Tensor):
        torch.testing.assert_close(ours, expected, rtol=0, atol=0, equal_nan=True)
    else:
        assert str(ours) == str(expected)


@pytest.mark.parametrize("metric", [shell_contrast, mass_accuracy])
def test_metrics(metric: Callable[..., torch.Tensor]) -> None:
    attention = torch.rand(2, 8, 10, generator=torch.Generator().manual_seed(0))
    distinct = torch.ones(1, 3, dtype=torch.bool)
    shells = [shell_masks(torch.from_numpy(given)[None], distinct) for given in (BYTES, ONES)]
    assert torch.equal(*shells)
    values = [metric(attention, torch.from_numpy(given)[None], distinct=distinct) for given in (BYTES, ONES)]
    torch.testing.assert_close(*values, rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_losses(backend: str) -> None:
    logits = torch.randn(3, 40, 52, generator=torch.Generator().manual_seed(0))
    ours, expected = (LF.focal_dice_loss(logits, torch.from_numpy(given), backend=backend) for given in (BYTES, ONES))
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)
