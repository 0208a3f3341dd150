"""Scenes drawn beforehand into memory-mapped files, so that training never waits for them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from arrcoc_sam.errors import DataError, InputError, UnknownNameError, explain
from arrcoc_sam.processes import end_with_parent
from arrcoc_sam.report.writing import made_folder, replacing, write_text
from arrcoc_sam.scenes.generator import MAX_NODES, STYLES, generate_scene, style_of_version
from arrcoc_sam.scenes.scene import Scene

__all__ = ["SceneBank", "draw_bank"]

_SHARD = 500  # scenes a file: what a killed run has to draw again, at most
_KINDS = ("images", "labels", "parents")  # parents are written last: their file marks a shard as finished
_PLAN = "bank.json"


@dataclass(frozen=True)
class SceneBank:
    """Pre-drawn scenes, memory-mapped; indexing gives :class:`Scene`.

    Attributes:
        folder: Where the shards lie.
        images: One (n, S, S, 3) uint8 map a shard.
        labels: One (n, S, S) uint8 map a shard.
        parents: One (n, MAX_NODES) int8 array a shard, -2 where there is no node.
        first_seed: Seed of scene 0.
        version: The generator's version that drew them.
    """

    folder: Path
    images: tuple[NDArray[np.uint8], ...]
    labels: tuple[NDArray[np.uint8], ...]
    parents: tuple[NDArray[np.int8], ...]
    first_seed: int
    version: int

    @classmethod
    def open(cls, folder: str | Path) -> SceneBank:
        """Opens what :func:`draw_bank` wrote.

        Raises:
            DataError: The folder has no finished bank, or one of a version that the generator does not draw.
        """
        folder = Path(folder)
        plan = _read_plan(folder)
        if plan is None:
            raise DataError(explain(f"{folder} has no {_PLAN}", "a scene bank", "draw it with draw_bank"))
        if style_of_version(plan["version"]) is None:
            came = f"{folder} was drawn by generator version {plan['version']}"
            expected = f"one of the versions {', '.join(map(str, STYLES.values()))}"
            raise DataError(explain(came, expected, "draw the bank again in another folder"))
        numbers = range(_num_shards(plan["num_scenes"]))
        missing = [number for number in numbers if not _shard(folder, number, _KINDS[-1]).is_file()]
        if missing:
            raise DataError(
                explain(
                    f"{folder} lacks {len(missing)} of {len(numbers)} shards", mend="call draw_bank again to finish it"
                )
            )
        images, labels, parents = (
            tuple(np.load(_shard(folder, number, kind), mmap_mode="r") for number in numbers) for kind in _KINDS
        )
        return cls(folder, images, labels, parents, plan["first_seed"], plan["version"])

    def __len__(self) -> int:
        """Number of scenes."""
        return sum(len(shard) for shard in self.labels)

    def __getitem__(self, index: int) -> Scene:
        """Scene number ``index``; its seed is ``first_seed + index``."""
        if not 0 <= index < len(self):
            raise IndexError(f"scene {index} of {len(self)}")
        shard, row = divmod(index, _SHARD)
        parents = self.parents[shard][row].astype(np.int64)
        parents = parents[parents > -2]
        levels = np.zeros(len(parents), np.int64)
        for node, parent in enumerate(parents):
            levels[node] = 0 if parent < 0 else levels[parent] + 1
        return Scene(
            np.asarray(self.images[shard][row]),
            np.asarray(self.labels[shard][row]),
            parents,
            levels,
            seed=self.first_seed + index,
            version=self.version,
        )


def draw_bank(
    folder: str | Path,
    *,
    first_seed: int,
    num_scenes: int,
    size: int = 256,
    style: str = "plain",
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SceneBank:
    """Draws scenes ``first_seed``, ``first_seed + 1``, … into a folder; finished shards are kept when it is run again.

    Args:
        folder: Where to; made if missing.
        first_seed: Seed of the first scene.
        num_scenes: How many.
        size: Side of the images in pixels.
        style: Of the scenes, as :func:`~arrcoc_sam.scenes.generator.generate_scene` takes it.
        workers: Processes; by default one a core. What one can do alone is done in this one.
        progress: Called with (shards done, shards in all).

    Raises:
        InputError: ``num_scenes`` is not positive.
        UnknownNameError: No such style.
        DataError: The folder holds a bank of other seeds, size or generator version.
        OutputError: The folder can't be made.
    """
    if num_scenes < 1:
        raise InputError(explain(f"num_scenes = {num_scenes}", "a positive number"))
    if style not in STYLES:
        raise UnknownNameError(explain(f"style = {style!r}", f"one of {', '.join(STYLES)}"))
    folder = Path(folder)
    plan = {"version": STYLES[style], "first_seed": first_seed, "num_scenes": num_scenes, "size": size}
    found = _read_plan(folder)
    if found is not None and found != plan:
        raise DataError(explain(f"{folder} holds a bank of {found}", f"{plan}", "name another folder"))
    write_text(made_folder(folder) / _PLAN, json.dumps(plan))
    numbers = [n for n in range(_num_shards(num_scenes)) if not _shard(folder, n, _KINDS[-1]).is_file()]
    seeds = [range(first_seed + n * _SHARD, first_seed + min((n + 1) * _SHARD, num_scenes)) for n in numbers]
    total, done = _num_shards(num_scenes), _num_shards(num_scenes) - len(numbers)
    processes = min(workers or os.cpu_count() or 1, len(numbers))
    with ExitStack() as stack:
        run: Callable[..., Iterable[None]] = map
        if processes > 1:  # spawned, not forked: torch's threads in the parent don't survive a fork
            pool = ProcessPoolExecutor(processes, get_context("spawn"), end_with_parent)
            run = stack.enter_context(pool).map
        for _ in run(_draw_shard, repeat(folder), numbers, seeds, repeat(size), repeat(style)):
            done += 1
            if progress is not None:
                progress(done, total)
    return SceneBank.open(folder)


def _num_shards(num_scenes: int) -> int:
    return -(-num_scenes // _SHARD)


def _shard(folder: Path, number: int, kind: str) -> Path:
    return folder / f"{number:05d}.{kind}.npy"


def _read_plan(folder: Path) -> dict[str, int] | None:
    path = folder / _PLAN
    return json.loads(path.read_text()) if path.is_file() else None


def _draw_shard(folder: Path, number: int, seeds: Sequence[int], size: int, style: str) -> None:
    images = np.zeros((len(seeds), size, size, 3), np.uint8)
    labels = np.zeros((len(seeds), size, size), np.uint8)
    parents = np.full((len(seeds), MAX_NODES), -2, np.int8)
    for row, seed in enumerate(seeds):
        scene = generate_scene(seed, size, style=style)
        images[row], labels[row] = scene.image, scene.labels
        parents[row, : len(scene)] = scene.parents
    for kind, array in zip(_KINDS, (images, labels, parents), strict=True):
        with replacing(_shard(folder, number, kind)) as temporary:
            np.save(temporary, array)
