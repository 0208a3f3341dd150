"""Made-up atlases, for the tests of their page and figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest

from arrcoc_sam.hierarchy.levels import LEVELS


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
