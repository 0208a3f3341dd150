"""What the experiment compares: true levels of scenes, and maps of feature similarity, which need no attention."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from segment_anything.modeling import Sam
from torch import Tensor

import arrcoc_sam as aa
from arrcoc_sam.hierarchy import MaskHierarchy
from arrcoc_sam.scenes import Scene

SIDE = 192
"""Side of the scenes and of the embedded encoder's input, pixels."""

GRID = 24
"""Cells a side: the encoder's stride is 8; a transformer of patches of 16 gets the scene at twice its size."""


class TrueLevels:
    """Stands where the atlas asks for a segmenter, and answers each click with what the scene is there.

    On the body of a part there are two levels, on that of a whole one, on the background none: the last two can't be
    measured, and count for nothing.
    """

    checkpoint_hash = "the truth"

    def __init__(self, scenes: Sequence[Scene]) -> None:
        self.scenes = {_digest(scene.image): scene for scene in scenes}

    def encode(self, pixels: np.ndarray) -> Scene:
        return self.scenes[_digest(pixels)]

    def decode(self, scene: Scene, prompts: aa.Prompts) -> TrueAnswers:
        points = prompts.points_xy[:, 0].numpy()
        return TrueAnswers(torch.stack([levels_at(scene, *np.floor(point + 0.5).astype(int)) for point in points]))


@dataclass(frozen=True)
class TrueAnswers:
    """Levels of several clicks, as candidates of a segmenter are asked for."""

    masks: Tensor

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, some: slice) -> TrueAnswers:
        return TrueAnswers(self.masks[some])

    def hierarchy(self) -> MaskHierarchy:
        return MaskHierarchy.from_masks(self.masks)


def levels_at(scene: Scene, x: int, y: int) -> Tensor:
    """Whole, part and subpart at a pixel, (3, H, W); a level that is not there repeats the one above it."""
    node = int(scene.labels[y, x]) - 1
    chain: list[int] = []
    while node >= 0:
        chain.insert(0, node)
        node = int(scene.parents[node])
    if not chain:
        return torch.zeros(3, *scene.size_hw, dtype=torch.bool)
    return torch.from_numpy(scene.masks[[*chain, *[chain[-1]] * (3 - len(chain))]])


class FeatureSimilarity:
    """How alike every cell's features are to those at a click, for each stage of the embedded encoder.

    Cosine similarity of features without their mean over the image, negative ones cut off. It works as attention of one
    query does, and is none: a baseline for what features alone give.
    """

    names = ("stride 4", "stride 8", "stride 16", "stride 32", "embedding")

    def __init__(self, model: Sam) -> None:
        self.model = model

    @torch.no_grad()
    def __call__(self, pixels: np.ndarray, points_xy: Tensor) -> Tensor:
        encoder: Any = self.model.image_encoder
        stages: list[Tensor] = []
        hooks = [stage.register_forward_hook(lambda _m, _i, out: stages.append(out)) for stage in encoder.stages]
        try:
            image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
            embedding = encoder(self.model.preprocess(image))
        finally:
            for hook in hooks:
                hook.remove()
        cells = torch.floor((points_xy + 0.5) * GRID / SIDE).long()
        return torch.stack([similarity(on_grid(features)[0], cells) for features in (*stages, embedding)])


def on_grid(features: Tensor) -> Tensor:
    """Features as (1, C, GRID, GRID): averaged where they are finer, interpolated where they are coarser."""
    if features.shape[-1] >= GRID:
        return torch.nn.functional.adaptive_avg_pool2d(features, GRID)  # 48 or 24 to 24: whole cells
    return torch.nn.functional.interpolate(features, size=(GRID, GRID), mode="bilinear", align_corners=False)


def similarity(features: Tensor, cells: Tensor) -> Tensor:
    """(K, GRID, GRID) for K cells (x, y) of features (C, GRID, GRID)."""
    flat = features.flatten(1)
    unit = torch.nn.functional.normalize(flat - flat.mean(1, keepdim=True), dim=0)
    queries = unit[:, cells[:, 1] * GRID + cells[:, 0]]
    return (queries.T @ unit).clamp(min=0).reshape(-1, GRID, GRID)


def _digest(pixels: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()
