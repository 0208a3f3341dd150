"""Procedural scenes as a hierarchy cache: pictures on disk, clicks in subparts, levels by a segmenter or exact."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64, UInt8
from numpy import ndarray
from PIL import Image
from torch import Tensor

from arrcoc_sam.errors import InputError, explain
from arrcoc_sam.hierarchy import MaskHierarchy
from arrcoc_sam.report.writing import made_folder, replacing
from arrcoc_sam.scenes import Scene, generate_scene
from arrcoc_sam.scenes.generator import GENERATOR_VERSION
from arrcoc_sam.segmenters.base import Segmenter
from arrcoc_sam.training.cache import build_cache
from arrcoc_sam.training.cache_dataset import HierarchyCache
from arrcoc_sam.training.cache_prompts import Clicks, PointPrompts
from arrcoc_sam.training.cache_sources import SegmenterLevels, level_rows

__all__ = ["SceneLevels", "prepare_scenes", "scene_clicks"]


def scene_clicks(scene: Scene, count: int) -> tuple[Int64[ndarray, "K 3"], Float64[Tensor, "K 2"]]:
    """Up to so many clicks, each on a pixel of another subpart, with the triple of nodes that it means.

    The same for the same scene and count.
    """
    chains = scene.triples()
    rng = np.random.default_rng([scene.seed, scene.version])
    chosen = chains[rng.permutation(len(chains))[:count]]
    points = [scene.sample_point(int(chain[2]), rng) for chain in chosen]
    return chosen, torch.tensor(points, dtype=torch.float64).reshape(-1, 2)


class SceneLevels:
    """Exact levels of scenes whose file names are their seeds.

    Args:
        size: Side of the pictures.
        clicks: The most a picture.
    """

    name = "scenes"
    quality = False

    def __init__(self, size: int, clicks: int) -> None:
        self.size, self.clicks = size, clicks
        self.checkpoint_hash = f"{GENERATOR_VERSION:064x}"

    def describe_prompts(self) -> dict[str, Any]:
        """Kind, size and number."""
        return {"kind": "scenes", "size": self.size, "clicks": self.clicks}

    def rows(self, path: Path, image: UInt8[ndarray, "H W 3"]) -> Iterator[dict[str, Any]]:
        """One row a click."""
        del image
        scene = generate_scene(int(path.stem), self.size)
        chains, points = scene_clicks(scene, self.clicks)
        masks = torch.from_numpy(scene.masks[chains].reshape(-1, 3, *scene.size_hw))
        yield from level_rows(MaskHierarchy.from_masks(masks), Clicks(points))


def prepare_scenes(
    folder: str | Path,
    seeds: Sequence[int],
    *,
    size: int = 256,
    clicks: int = 6,
    segmenter: Segmenter | None = None,
    quality: bool = False,
    images_per_shard: int = 64,
    progress: Callable[[str, int, int], None] | None = None,
) -> HierarchyCache:
    """Draw scenes and build their cache; what is there already is kept.

    Args:
        folder: Gets ``pictures`` and one cache a segmenter, ``truth`` or ``levels``.
        seeds: One scene each; those without a triple are left out.
        size: Side of the pictures.
        clicks: The most a picture.
        segmenter: Whose three masks are the levels; None takes the exact ones.
        quality: Score the masks too.
        images_per_shard: Images a Parquet file.
        progress: Called with (stage, done, in all).

    Raises:
        InputError: No scene with a triple, or exact masks that are to be scored.
        DataError: The folder holds a cache of other scenes.
        OutputError: It can't be made.
    """
    folder = Path(folder)
    if segmenter is None and quality:
        raise InputError(explain("quality of exact masks", "a segmenter to score with"))
    pictures = made_folder(folder / "pictures")
    paths, points = [], {}
    for number, seed in enumerate(seeds):
        scene = generate_scene(seed, size)
        found = scene_clicks(scene, clicks)[1].tolist()
        if found:
            path = pictures / f"{seed}.png"
            points[path.name] = [(x, y) for x, y in found]
            paths.append(path)
            if not path.is_file():
                with replacing(path) as temporary:
                    Image.fromarray(scene.image).save(temporary)
        if progress is not None:
            progress("scenes", number + 1, len(seeds))
    if not paths:
        raise InputError(explain(f"{len(seeds)} scenes, none with a triple", "more scenes"))
    source = (
        SceneLevels(size, clicks)
        if segmenter is None
        else SegmenterLevels(segmenter, PointPrompts(points), quality=quality)
    )
    target = folder / ("truth" if segmenter is None else "levels")
    stage = "exact levels" if segmenter is None else f"levels of {segmenter.name}"
    build_cache(
        source,
        paths,
        target,
        images_per_shard=images_per_shard,
        progress=None if progress is None else lambda done, total: progress(stage, done, total),
    )
    return HierarchyCache.open(target)
