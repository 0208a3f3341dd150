"""Small results with levels and attention that are known exactly."""

from __future__ import annotations

import numpy as np
import torch

from arrcoc_sam.attention import AttentionMaps
from arrcoc_sam.geometry import ImageTransform
from arrcoc_sam.granularity import GranularityAnalyzer, GranularityResult
from arrcoc_sam.hierarchy import MaskHierarchy

HEIGHT, WIDTH = 48, 72


class FixedAttention:
    """The same mass on a grid that covers the image, whatever it shows; N maps."""

    def __init__(self, values: torch.Tensor, names: list[str]) -> None:
        self.values, self.names = values, names

    def __call__(self, image: np.ndarray, points_xy: object = None) -> AttentionMaps:
        transform = ImageTransform.squash(image.shape[:2], (80, 120))
        return AttentionMaps.from_values(self.values, names=self.names, transform=transform)


def nested_masks(num_prompts: int) -> torch.Tensor:
    masks = torch.zeros(num_prompts, 3, HEIGHT, WIDTH, dtype=torch.bool)
    for k in range(num_prompts):
        shift = 12 * k
        masks[k, 0, 6:42, 6 + shift : 48 + shift] = True
        masks[k, 1, 12:36, 12 + shift : 36 + shift] = True
        masks[k, 2, 18:30, 18 + shift : 30 + shift] = True
    return masks


def make_result(
    num_prompts: int = 1, num_maps: int = 2, *, same_levels: bool = False, calibrated: bool = False
) -> GranularityResult:
    """A result of K prompts: "inner" attends to the first prompt's subpart, "outer" the less the further inside."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    masks = nested_masks(num_prompts)
    if same_levels:
        masks[:, 1:] = masks[:, :1]
    values = torch.ones(num_maps, 8, 12)
    values[0, 3:5, 3:5] = 9.0
    if num_maps > 1:
        values[1] = 4.0
        values[1, 1:7, 1:8], values[1, 2:6, 2:6], values[1, 3:5, 3:5] = 3.0, 2.0, 1.0
    names = ["inner", "outer", *(f"map {i}" for i in range(2, num_maps))][:num_maps]
    points = [[23.0 + 12 * k, 23.0] for k in range(num_prompts)]
    hierarchy = MaskHierarchy.from_masks(masks, torch.tensor([[0.9, 0.8, 1.05]]).expand(num_prompts, 3))
    analyzer = GranularityAnalyzer(None, FixedAttention(values, names))
    reference = None
    if calibrated:
        generator = torch.Generator().manual_seed(0)
        others = [FixedAttention(torch.rand(num_maps, 8, 12, generator=generator), names)(image) for _ in range(40)]
        reference = others
    return analyzer.analyze(image, points, hierarchy=hierarchy, reference=reference)
