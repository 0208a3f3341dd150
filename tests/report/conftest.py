"""Small results with levels and attention that are known exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch

from arrcoc_sam.attention import AttentionMaps
from arrcoc_sam.geometry import ImageTransform
from arrcoc_sam.granularity import GranularityAnalyzer, GranularityResult
from arrcoc_sam.hierarchy import MaskHierarchy
from arrcoc_sam.levels import LEVELS

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


@pytest.fixture
def make_result() -> Callable[..., GranularityResult]:
    """A result of K prompts: "inner" attends to the first prompt's subpart, "outer" the less the further inside."""

    def make(
        num_prompts: int = 1, num_maps: int = 2, *, same_levels: bool = False, calibrated: bool = False
    ) -> GranularityResult:
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

    return make


def atlas_rows(group: str, num_layers: int, num_heads: int, *, seed: int, strength: float) -> pd.DataFrame:
    """Rows of an atlas whose deeper layers concentrate at finer levels; with no strength nothing is claimed."""
    rng = np.random.default_rng(seed)
    rows = []
    for layer in range(num_layers):
        for head in range(num_heads):
            depth = layer / max(num_layers - 1, 1)
            means = strength * np.array([0.6 - depth, 0.5 - abs(depth - 0.5), depth - 0.4]) * 12
            z, selection, report = (means + rng.normal(0, 1, 3) for _ in range(3))
            top = int(selection.argmax())
            gap = report[top] - np.delete(report, top).max()
            claimed = strength > 0 and gap > 1.5
            row = {"group": group, "map": f"L{layer:02d}.H{head:02d}", "layer": layer, "head": head}
            for name, values in (("z", z), ("selection_z", selection), ("report_z", report), ("p", np.exp(-z))):
                row |= {f"{name}_{level}": float(values[k]) for k, level in enumerate(LEVELS)}
            row |= {"p_any": 0.001 if claimed else 0.4, "q_value": 0.01 if claimed else 0.6, "top": LEVELS[top]}
            row |= {"gap": gap, "gap_low": gap - 1.5, "gap_high": gap + 1.5}
            reason = "" if claimed else "no level stands out from other images"
            row |= {"level": LEVELS[top] if claimed else "abstain", "reason": reason}
            row |= {"sink_mass": rng.uniform(0, 0.2), "prefix_mass": rng.uniform(0, 0.6) * depth, "p_toroidal": 0.03}
            rows.append(row)
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class MadeUpAtlas:
    """The tables of an atlas, without the work."""

    heads: pd.DataFrame
    images: pd.DataFrame
    ablation: pd.DataFrame
    info: dict[str, object]


@pytest.fixture
def make_atlas() -> Callable[..., MadeUpAtlas]:
    """An atlas of so many images, layers and heads, with controls."""

    def make(num_images: int = 60, num_layers: int = 4, num_heads: int = 3) -> MadeUpAtlas:
        enough = num_images >= 30
        frames = [atlas_rows("model", num_layers, num_heads, seed=0, strength=1.0 if enough else 0.0)]
        frames.append(atlas_rows("random weights", num_layers, num_heads, seed=1, strength=0.0))
        for control in ("centred Gaussian", "uniform"):
            one = atlas_rows(control, 1, 1, seed=2, strength=0.0).assign(map=control, layer=-1, head=-1)
            numbers = [name for name in one.columns if name.startswith(("z_", "selection_z", "report_z", "gap"))]
            one[[*numbers, "prefix_mass", "p_toroidal"]] = np.nan
            frames.append(one.assign(p_any=1.0, q_value=1.0))
        heads = pd.concat(frames, ignore_index=True)
        if not enough:
            heads["reason"] = "fewer than 30 images"
        images = pd.DataFrame(
            {"image": [f"photos/{n}.jpg" for n in range(num_images)], "prompts": 9, "measurable": 5, "error": ""}
        )
        shares = {f"share_{kind}": 0.25 for kind in (*LEVELS, "abstain")}
        thresholds = [(0.7, 0.9, 4.0), (0.6, 0.9, 4.0), (0.7, 0.8, 4.0), (0.7, 0.9, 8.0)]
        ablation = [
            {"distinct_iou": a, "nested_share": b, "min_cells": c, "num_images": num_images, "measurable_share": 0.5}
            | shares
            | {"agreement": 1.0 if n == 0 else 0.9}
            for n, (a, b, c) in enumerate(thresholds)
        ]
        info = {
            "metric": "shell_contrast",
            "num_images": num_images,
            "num_draws": 28_800,
            "false_discovery_rate": 0.05,
            "confidence": 0.95,
            "seed": 0,
            "points_per_side": 3,
            "description": {"model": "timm:a_model"},
        }
        return MadeUpAtlas(heads, images, pd.DataFrame(ablation), info)

    return make
