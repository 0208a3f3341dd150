"""Procedural scenes as a hierarchy cache: pictures on disk, clicks in subparts, levels by a segmenter or exact."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64, UInt8
from numpy import ndarray
from PIL import Image
from torch import Tensor

from arrcoc_sam.errors import DataError, InputError, explain
from arrcoc_sam.hierarchy import MaskHierarchy
from arrcoc_sam.report.writing import made_folder, replacing, write_text
from arrcoc_sam.scenes import Scene, generate_scene
from arrcoc_sam.scenes.generator import GENERATOR_VERSION, check_scene
from arrcoc_sam.segmenters.base import Segmenter
from arrcoc_sam.training.cache.build import build_cache
from arrcoc_sam.training.cache.dataset import HierarchyCache
from arrcoc_sam.training.cache.prompts import Clicks, PointPrompts
from arrcoc_sam.training.cache.sources import SegmenterLevels, level_rows
from arrcoc_sam.training.configuration import check_counts

__all__ = ["SceneLevels", "prepare_scenes", "scene_clicks"]

_SCENES_A_RECORD = 64


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
        self._drawn: dict[int, list[dict[str, Any]]] = {}

    def describe_prompts(self) -> dict[str, Any]:
        """Kind, size and number."""
        return {"kind": "scenes", "size": self.size, "clicks": self.clicks}

    def rows(self, path: Path, image: UInt8[ndarray, "H W 3"]) -> Iterator[dict[str, Any]]:
        """One row a click."""
        del image
        seed = int(path.stem)
        yield from self._drawn.pop(seed, None) or self._rows(generate_scene(seed, self.size))

    def remember(self, scene: Scene) -> None:
        """Find the rows of a scene that has just been drawn, so that it is not drawn again for them."""
        self._drawn[scene.seed] = list(self._rows(scene))

    def _rows(self, scene: Scene) -> Iterator[dict[str, Any]]:
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
    """Draw scenes and build their cache; what is there already is kept, and not drawn again.

    A run that was killed goes on, at most 64 scenes from where it was.

    Args:
        folder: Gets ``pictures``, their clicks in ``clicks.json``, and one cache a segmenter, ``truth`` or ``levels``.
        seeds: One scene each; those without a triple are left out.
        size: Side of the pictures.
        clicks: The most a picture.
        segmenter: Whose three masks are the levels; None takes the exact ones.
        quality: Score the masks too.
        images_per_shard: Images a Parquet file.
        progress: Called with (stage, done, in all).

    Raises:
        InputError: A number below 1, no scene with a triple, or exact masks that are to be scored.
        DataError: The folder holds other scenes, or a cache of others.
        OutputError: It can't be made.
    """
    folder = Path(folder)
    if segmenter is None and quality:
        raise InputError(explain("quality of exact masks", "a segmenter to score with"))
    check_counts(1, scenes=len(seeds), clicks=clicks, images_per_shard=images_per_shard)
    for seed in seeds:
        check_scene(seed, size)
    pictures = made_folder(folder / "pictures")
    exact = SceneLevels(size, clicks)
    points = _draw(seeds, exact, pictures, remember=segmenter is None, progress=progress)
    if not points:
        raise InputError(explain(f"{len(seeds)} scenes, none with a triple", "more scenes"))
    source = exact if segmenter is None else SegmenterLevels(segmenter, PointPrompts(points), quality=quality)
    target = folder / ("truth" if segmenter is None else "levels")
    stage = "exact levels" if segmenter is None else f"levels of {segmenter.name}"
    build_cache(
        source,
        [pictures / name for name in points],
        target,
        images_per_shard=images_per_shard,
        progress=None if progress is None else lambda done, total: progress(stage, done, total),
    )
    return HierarchyCache.open(target)


def _draw(
    seeds: Sequence[int],
    exact: SceneLevels,
    pictures: Path,
    *,
    remember: bool,
    progress: Callable[[str, int, int], None] | None,
) -> dict[str, list[tuple[float, float]]]:
    """Pictures that are not there yet; answers the clicks of all, by the names of their files."""
    record = pictures.with_name("clicks.json")
    plan = {"version": GENERATOR_VERSION, "size": exact.size, "clicks": exact.clicks}
    known = _known_clicks(record, plan)
    found: dict[str, list[tuple[float, float]]] = {}
    for number, seed in enumerate(seeds):
        path = pictures / f"{seed}.png"
        points = known.get(path.name)
        if points is None or (points and not path.is_file()):  # a picture without a record may be of another plan
            scene = generate_scene(seed, exact.size)
            points = [(x, y) for x, y in scene_clicks(scene, exact.clicks)[1].tolist()]
            if points:
                with replacing(path) as temporary:
                    Image.fromarray(scene.image).save(temporary)
            if points and remember:
                exact.remember(scene)
        found[path.name] = points
        last = number + 1 == len(seeds)
        if (last or (number + 1) % _SCENES_A_RECORD == 0) and found.keys() - known.keys():
            known |= found
            write_text(record, json.dumps({"scenes": plan, "points": known}))
        if progress is not None:
            progress("scenes", number + 1, len(seeds))
    return {name: points for name, points in found.items() if points}


def _known_clicks(record: Path, plan: dict[str, int]) -> dict[str, list[tuple[float, float]]]:
    """Clicks in the pictures that are there, by file name; none of scenes that have no triple.

    Raises:
        DataError: The pictures are of other scenes.
    """
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        theirs = content["scenes"]
        known = {name: [(x, y) for x, y in points] for name, points in content["points"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # not there, or damaged: they are found again
        return {}
    if theirs != plan:
        came = f"{record.parent} holds scenes of {theirs}"
        raise DataError(explain(came, f"of {plan}", "name another folder, or delete this one"))
    return known
