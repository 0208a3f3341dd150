"""Small caches of scenes whose levels are known."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from arrcoc_sam.hierarchy import MaskHierarchy
from arrcoc_sam.scenes import Scene, generate_scene
from arrcoc_sam.training.cache.build import build_cache
from arrcoc_sam.training.cache.dataset import HierarchyCache
from arrcoc_sam.training.cache.prompts import Clicks
from arrcoc_sam.training.cache.sources import level_rows


class SceneLevels:
    """Exact levels of scenes whose file names are their seeds, one click a triple."""

    name, checkpoint_hash, quality = "truth", "0" * 64, False

    def __init__(self, size: int, *, score: float = 1.0) -> None:
        self.size, self.score = size, score
        self.calls: list[str] = []

    def describe_prompts(self) -> dict[str, Any]:
        return {"kind": "scenes", "size": self.size}

    def rows(self, path: Path, image: np.ndarray) -> Iterator[dict[str, Any]]:
        self.calls.append(path.name)
        scene = generate_scene(int(path.stem), self.size)
        np.testing.assert_array_equal(scene.image, image)
        hierarchy, points = triples_of(scene)
        hierarchy.scores.fill_(self.score)
        yield from level_rows(hierarchy, Clicks(points))


def triples_of(scene: Scene, most: int = 4) -> tuple[MaskHierarchy, torch.Tensor]:
    """Up to so many triples of a scene, with a pixel of each innermost mask."""
    chains = scene.triples()[:most]
    rng = np.random.default_rng(scene.seed)
    points = [scene.sample_point(int(chain[2]), rng) for chain in chains]
    masks = torch.from_numpy(scene.masks[chains].reshape(-1, 3, *scene.size_hw))
    return MaskHierarchy.from_masks(masks), torch.tensor(points, dtype=torch.float64).reshape(-1, 2)


def write_scenes(folder: Path, seeds: range, size: int = 48) -> list[Path]:
    """Pictures of the scenes of some seeds that have a triple."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for seed in seeds:
        scene = generate_scene(seed, size)
        if len(scene.triples()):
            paths.append(folder / f"{seed}.png")
            Image.fromarray(scene.image).save(paths[-1])
    return paths


def scene_cache(folder: Path, seeds: range, size: int = 48) -> HierarchyCache:
    """A finished cache of exact levels."""
    build_cache(SceneLevels(size), write_scenes(folder / "images", seeds, size), folder / "cache", images_per_shard=4)
    return HierarchyCache.open(folder / "cache")
