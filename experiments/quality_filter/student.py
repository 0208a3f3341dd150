"""A small model that segments the object in a box, to see what its training masks were worth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from arrcoc_sam.masks import mask_iou

SIDE, MARGIN = 48, 0.25


def crop(image: np.ndarray, mask: np.ndarray) -> tuple[Tensor, Tensor]:
    """Image and mask in the box of the mask, widened on all sides, at 48 × 48: (3, 48, 48) in [-1, 1], and bool."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    high, wide = MARGIN * (bottom - top), MARGIN * (right - left)
    box = (left - wide, top - high, right + wide, bottom + high)
    picture = Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=_inside(box, image))
    label = Image.fromarray(mask).resize((SIDE, SIDE), Image.Resampling.NEAREST, box=_inside(box, image))
    pixels = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).float() / 127.5 - 1
    return pixels, torch.from_numpy(np.asarray(label).copy())


def train(images: Tensor, masks: Tensor, *, seed: int, steps: int) -> nn.Module:
    """A student trained on crops (N, 3, 48, 48) and their masks (N, 48, 48), the same number of steps whatever N."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = _Student()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        chosen = torch.randint(len(images), (32,), generator=generator)
        inputs, targets = images[chosen], masks[chosen].float()
        if torch.rand((), generator=generator) < 0.5:
            inputs, targets = inputs.flip(-1), targets.flip(-1)
        loss = F.binary_cross_entropy_with_logits(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def mean_iou(model: nn.Module, images: Tensor, masks: Tensor) -> float:
    """Mean IoU of the model's masks (logits above 0) with the true ones, crop by crop."""
    found = torch.cat([model(part) > 0 for part in images.split(128)])
    return float(mask_iou(found, masks).mean())


def stacked(crops: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Crops as two tensors."""
    return torch.stack([pixels for pixels, _ in crops]), torch.stack([mask for _, mask in crops])


class _Student(nn.Module):
    """A U-Net of three scales, about 70,000 weights."""

    def __init__(self, widths: tuple[int, int, int] = (16, 32, 48)) -> None:
        super().__init__()
        first, second, third = widths
        self.down = nn.ModuleList([_block(3, first), _block(first, second), _block(second, third)])
        self.up = nn.ModuleList([_block(third + second, second), _block(second + first, first)])
        self.head = nn.Conv2d(first, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.down[0](x)
        middle = self.down[1](F.max_pool2d(fine, 2))
        coarse = self.down[2](F.max_pool2d(middle, 2))
        middle = self.up[0](torch.cat([F.interpolate(coarse, scale_factor=2.0), middle], dim=1))
        fine = self.up[1](torch.cat([F.interpolate(middle, scale_factor=2.0), fine], dim=1))
        logits: Tensor = self.head(fine)[:, 0]
        return logits


def _block(width_in: int, width_out: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (width_in, width_out):
        layers += [nn.Conv2d(width, width_out, 3, padding=1, bias=False), nn.BatchNorm2d(width_out), nn.ReLU()]
    return nn.Sequential(*layers)


def _inside(box: tuple[float, float, float, float], image: np.ndarray) -> tuple[float, float, float, float]:
    height, width = image.shape[:2]
    return max(0.0, box[0]), max(0.0, box[1]), min(float(width), box[2]), min(float(height), box[3])
