"""How well could anybody rank the degraded masks? A regression that is told every true mask of the scene.

uv run python experiments/mask_quality/ceiling.py    # ceiling.json, about five minutes on one core

It sees, in place of an image, what perfect vision could make of one: how the mask lies to each of the four nearest true
masks, their levels and sizes, the mask's own area, outline and components, and how many true masks lie in it and around
it. What it is not told is which object was meant and what was done to the mask. Judged by cross-validation over scenes.
What anybody could reach is at least that; whether more masks would bring more is seen with a half and a quarter of the
scenes to learn from.
"""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path

import numpy as np
import pandas as pd
from numpy import ndarray
from rich.progress import track
from scipy import ndimage
from scipy.stats import spearmanr
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.model_selection import GroupKFold

from arrcoc_sam.quality import AnnotatedImage
from arrcoc_sam.quality.calibration_samples import degrade_masks
from arrcoc_sam.scenes import TEST_V1, VALIDATION_SEEDS, generate_scene

HERE = Path(__file__).parent
SEEDS = range(VALIDATION_SEEDS.start + 3_000_000, VALIDATION_SEEDS.start + 3_000_600)
PER_MASK = 2
NEAREST = 4
INSIDE = 0.9
NUM_DONORS = 24
SHARES = (0.25, 0.5, 1.0)


def samples() -> tuple[ndarray, pd.DataFrame]:
    """Features (n, F) of degraded masks, and their table."""
    donors: deque[ndarray] = deque(maxlen=NUM_DONORS)
    features, tables = [], []
    for seed in track(SEEDS, "scenes"):
        scene = generate_scene(seed, TEST_V1.size)
        annotated = AnnotatedImage(f"scene {seed}", scene.image, scene.masks, scene.levels)
        degraded = degrade_masks(annotated, donors=tuple(donors), per_mask=PER_MASK)
        donors.extend(scene.masks)
        features.append(told(degraded.masks, scene.masks, scene.levels))
        tables.append(degraded.table)
    return np.vstack(features), pd.concat(tables, ignore_index=True)


def told(masks: ndarray, truths: ndarray, levels: ndarray) -> ndarray:
    """What the regression sees of masks (K, H, W) among the true masks (n, H, W) of their scene."""
    ours, theirs = (stack.reshape(len(stack), -1).astype(np.float32) for stack in (masks, truths))
    shared, own, true = ours @ theirs.T, ours.sum(axis=1)[:, None], theirs.sum(axis=1)[None]
    iou, pixels = shared / (own + true - shared), ours.shape[1]
    columns = [own / pixels, outline(masks)[:, None] / np.sqrt(own), components(masks)[:, None]]
    columns += [(shared / whole > INSIDE).sum(axis=1, keepdims=True) for whole in (true, own)]
    order = np.argsort(-iou, axis=1)
    for rank in range(NEAREST):
        at = order[:, [min(rank, len(truths) - 1)]]
        here, size = np.take_along_axis(shared, at, axis=1), true[0][at]
        there = np.take_along_axis(iou, at, axis=1) if rank < len(truths) else np.zeros_like(own)
        columns += [there, here / own, here / size, levels[at], size / pixels]
    return np.hstack(columns)


def outline(masks: ndarray) -> ndarray:
    """Sides of pixels between each mask and what is not in it."""
    down, across = (np.diff(masks, axis=axis).sum(axis=(1, 2)) for axis in (1, 2))
    return np.asarray(down + across, dtype=np.float64)


def components(masks: ndarray) -> ndarray:
    """Connected components of each mask."""
    return np.array([ndimage.label(mask)[1] for mask in masks], dtype=np.float64)


def cross_validated(features: ndarray, actual: ndarray, images: ndarray, share: float) -> ndarray:
    """Estimates (n,) of each mask by a regression that was fitted on a share of the other scenes."""
    estimate, rng = np.zeros(len(actual)), np.random.default_rng(0)
    for fitted, judged in GroupKFold(5).split(features, actual, images):
        names = np.unique(images[fitted])
        chosen = fitted[np.isin(images[fitted], rng.permutation(names)[: round(share * len(names))])]
        model = HistGradientBoostingRegressor(max_iter=250, learning_rate=0.06, l2_regularization=1.0, random_state=0)
        estimate[judged] = model.fit(features[chosen], actual[chosen]).predict(features[judged])
    return estimate


def main() -> None:
    """Cross-validates and writes the ranks."""
    features, table = samples()
    actual, images = table["actual_iou"].to_numpy(), table["image"]
    curve = {share: cross_validated(features, actual, images.to_numpy(), share) for share in SHARES}
    estimate = curve[1.0]
    rng, names = np.random.default_rng(0), images.unique()
    groups = {name: rows.to_numpy() for name, rows in images.groupby(images).groups.items()}
    drawn = [np.concatenate([groups[name] for name in rng.choice(names, len(names))]) for _ in range(200)]
    spread = np.quantile([spearmanr(estimate[rows], actual[rows]).statistic for rows in drawn], [0.025, 0.975])
    found = {
        "masks": len(table),
        "scenes": len(names),
        "spearman": round(float(spearmanr(estimate, actual).statistic), 4),
        "interval": np.round(spread, 4).tolist(),
        "spearman by share of the scenes to learn from": {
            str(share): round(float(spearmanr(each, actual).statistic), 4) for share, each in curve.items()
        },
        "spearman of the nearest true mask's IoU": round(float(spearmanr(table["nearest_iou"], actual).statistic), 4),
        "by kind": {
            str(kind): round(float(spearmanr(estimate[rows], actual[rows]).statistic), 4)
            for kind, rows in table.groupby("kind").groups.items()
            if actual[rows].std() > 0
        },
    }
    (HERE / "ceiling.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
