"""Builds a hierarchy cache: every click's three masks, computed once, read by any number of trainings.

The work on one shard is a function of its number (:meth:`CacheBuild.compute`), which any engine can map: the local one
below goes through the shards in this process, :class:`arrcoc_sam.distributed.RayCacheEngine` deals them to actors.
Finished shards stay, so a killed build goes on where it stopped, whatever the engine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from os.path import commonpath
from pathlib import Path
from typing import Any, TypeAlias

from arrcoc_sam.errors import ArrcocSamError, DataError, InputError, explain
from arrcoc_sam.images import load_image
from arrcoc_sam.report.provenance import installed_versions
from arrcoc_sam.training.cache.records import (
    CachePlan,
    names_digest,
    read_faults,
    read_shard,
    shard_fault,
    shard_path,
    write_shard,
)
from arrcoc_sam.training.cache.sources import CheckedSource, LevelSource

__all__ = ["CacheBuild", "CacheEngine", "CacheReport", "build_cache"]

Progress: TypeAlias = Callable[[int, int], None]
"""Called with (images done, images in all)."""


@dataclass(frozen=True)
class CacheBuild:
    """A cache that is being built; plain values, so that it can be sent to another machine.

    Attributes:
        folder: Where it goes, absolute.
        plan: What it holds.
        names: Of the images, relative to the plan's root.
        again: Shards that are there and are to be replaced, where no image is lost by that.
    """

    folder: Path
    plan: CachePlan
    names: tuple[str, ...]
    again: tuple[int, ...] = ()

    def images_of(self, shard: int) -> range:
        """The numbers of the images of a shard."""
        first = shard * self.plan.images_per_shard
        return range(first, min(first + self.plan.images_per_shard, len(self.names)))

    def missing(self) -> list[int]:
        """The shards to compute: not there yet, with a footer that can't be read, or to be replaced."""
        paths = (shard_path(self.folder, number) for number in range(self.plan.num_shards))
        return [
            number
            for number, path in enumerate(paths)
            if number in self.again or not path.is_file() or shard_fault(path) is not None
        ]

    def compute(self, shard: int, source: LevelSource, done: Callable[[int], None] | None = None) -> None:
        """Compute the levels of a shard's images and write them, whole or not at all.

        An image that can't be used is listed in the shard, and the rest is done. A shard to be replaced stays where an
        image that it has would be lost.

        Args:
            shard: Its number.
            source: What makes the levels.
            done: Called with the number of each image that is done.

        Raises:
            OutputError: It can't be written.
        """
        rows: list[dict[str, Any]] = []
        failed: list[tuple[str, str]] = []
        for index in self.images_of(shard):
            path = Path(self.plan.root) / self.names[index]
            try:
                made = list(source.rows(path, load_image(path)))
            except ArrcocSamError as error:
                failed.append((self.names[index], str(error)))
            else:
                rows += [{"image": self.names[index], "image_number": index, **row} for row in made]
            if done is not None:
                done(index)
        path = shard_path(self.folder, shard)
        if shard not in self.again or _images_in(path) <= {str(row["image"]) for row in rows}:
            write_shard(path, rows, failed)


CacheEngine: TypeAlias = Callable[[CacheBuild, Progress | None], None]
"""Computes the shards that are missing, of :meth:`CacheBuild.missing`; those to be replaced are among them."""


@dataclass(frozen=True)
class CacheReport:
    """What became of a build.

    Attributes:
        plan: What the cache holds.
        num_samples: Rows, one a click.
        num_valid: Of these, with two levels at least.
        num_new_shards: How many this run computed.
        faults: Images that could not be done, and why.
        note: Why shards stayed as they were although an image that they lack can be used by now; None without such.
    """

    plan: CachePlan
    num_samples: int
    num_valid: int
    num_new_shards: int
    faults: tuple[tuple[str, str], ...]
    note: str | None = None


def build_cache(
    source: LevelSource,
    images: Sequence[Path],
    folder: str | Path,
    *,
    images_per_shard: int = 64,
    engine: CacheEngine | None = None,
    progress: Progress | None = None,
) -> CacheReport:
    """Compute the levels of every click of every image, and write them; finished shards are kept when run again.

    An image that can't be used is listed in its shard, and the rest is done. When run again it is tried again: a shard
    with an image that can be used by now is computed anew, and replaced once that is done. It stays as it is where an
    image that it has would be lost.

    Args:
        source: What makes the levels.
        images: Files, each once.
        folder: Where the cache goes; made if missing.
        images_per_shard: Images a Parquet file.
        engine: What computes the shards; by default this process, one after the other.
        progress: Called with (images done, images in all).

    Returns:
        What is in the cache now.

    Raises:
        InputError: No image, a path in place of several, one that is there twice, or a shard of none.
        DataError: The folder holds a cache of other names of images, clicks or weights (what the images show is not
            compared), or a shard that is damaged inside.
        OutputError: It can't be written.
    """
    if isinstance(images, (str, Path)):
        raise InputError(explain(f"images is the path {str(images)!r}", "a list of paths", f"images=[{str(images)!r}]"))
    if not images or images_per_shard < 1:
        raise InputError(explain(f"{len(images)} images, {images_per_shard} a shard", "at least one of each"))
    paths = [Path(path).absolute() for path in images]
    if len(set(paths)) < len(paths):
        [(path, count)] = Counter(paths).most_common(1)
        raise InputError(explain(f"{path} is there {count} times", "each image once", "list(dict.fromkeys(images))"))
    root = Path(commonpath([path.parent for path in paths]))
    names = tuple(path.relative_to(root).as_posix() for path in paths)
    plan = CachePlan(
        segmenter=source.name,
        checkpoint_hash=source.checkpoint_hash,
        prompts=source.describe_prompts(),
        root=str(root),
        images_sha256=names_digest(names),
        num_images=len(names),
        images_per_shard=images_per_shard,
        quality=source.quality,
    )
    build = CacheBuild(Path(folder).absolute(), plan, names)
    _claim(build.folder, plan)
    again, held = _mended(build, source, progress)
    build = replace(build, again=again)
    new = len(build.missing())
    before = {number: _identity(build, number) for number in again}
    (_local_engine(source) if engine is None else engine)(build, progress)
    stayed = [number for number in again if _identity(build, number) == before[number]]
    return _report(build, new - len(stayed), len(held) + len(stayed))


def _local_engine(source: LevelSource) -> CacheEngine:
    """All in this process."""

    def compute(build: CacheBuild, progress: Progress | None) -> None:
        total = len(build.names)
        missing = set(build.missing())
        if progress is not None:
            progress(0, total)
        for number in range(build.plan.num_shards):
            if number in missing:
                build.compute(number, source, None if progress is None else lambda index: progress(index + 1, total))
            elif progress is not None:
                progress(build.images_of(number).stop, total)

    return compute


def _mended(build: CacheBuild, source: LevelSource, progress: Progress | None) -> tuple[tuple[int, ...], list[int]]:
    """The shards that lack an image which can be used by now: those that would lose none anew, and the others."""
    missing = set(build.missing())
    root, checked = Path(build.plan.root), isinstance(source, CheckedSource)
    again: list[int] = []
    held: list[int] = []
    for number in range(build.plan.num_shards):
        path = shard_path(build.folder, number)
        if number in missing or not (faults := read_faults(path)):
            continue
        # of a source that can't be asked only what load_image said, that begins with the path, may have changed
        tried = [name for name, reason in faults if checked or reason.startswith(str(root / name))]
        if any(_usable(root / name, source) for name in tried):
            try:
                keeps = all(_usable(root / name, source) for name in sorted(_images_in(path)))
            except DataError:  # damaged inside: whoever reads it says so
                continue
            (again if keeps else held).append(number)
        if progress is not None:
            progress(build.images_of(number).stop, len(build.names))
    return tuple(again), held


def _usable(path: Path, source: LevelSource) -> bool:
    """Whether an image can be read and has its clicks; no segmenter is asked."""
    try:
        image = load_image(path)
        if isinstance(source, CheckedSource):
            source.check(path, image)
    except ArrcocSamError:
        return False
    return True


def _images_in(path: Path) -> set[str]:
    """The images of which a shard has rows."""
    return set(read_shard(path, ["image"])["image"].unique().to_pylist())


def _identity(build: CacheBuild, number: int) -> tuple[int, int] | None:
    """What changes when a shard is replaced; None where it is not there."""
    path = shard_path(build.folder, number)
    if not path.exists():
        return None
    found = path.stat()
    return found.st_ino, found.st_mtime_ns


def _report(build: CacheBuild, new: int, num_held: int) -> CacheReport:
    paths = [shard_path(build.folder, number) for number in range(build.plan.num_shards)]
    valid = [read_shard(path, ["valid"])["valid"].to_numpy() for path in paths]
    return CacheReport(
        plan=build.plan,
        num_samples=sum(len(flags) for flags in valid),
        num_valid=sum(int(flags.sum()) for flags in valid),
        num_new_shards=new,
        faults=tuple(fault for path in paths for fault in read_faults(path)),
        note=None if not num_held else _held_note(num_held),
    )


def _held_note(number: int) -> str:
    shards = "1 shard stays" if number == 1 else f"{number} shards stay"
    return f"{shards} as before, though an image can be used again: others, which were done, can't be used now"


def _claim(folder: Path, plan: CachePlan) -> None:
    """Write the manifest, or make sure that the one that is there says the same."""
    found = CachePlan.read(folder)
    if found is None:
        plan.write(folder, installed_versions())
        return
    differences = plan.differences(found)
    if differences:
        raise DataError(
            explain(
                f"{folder} holds a cache of {'; '.join(differences)}",
                "the same names of images, clicks and weights",
                "name another folder, or delete this one",
            )
        )
