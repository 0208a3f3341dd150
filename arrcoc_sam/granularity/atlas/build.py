"""The records of an atlas, one an image: work that any engine can deal out.

What is done for one image is a function of its number (:meth:`AtlasBuild.compute`). The local engine goes through the
images in this process, :class:`arrcoc_sam.distributed.RayAtlasEngine` deals them to actors. Finished records stay, so a
killed run goes on where it stopped, whatever the engine.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from arrcoc_sam.attention.maps import ImageLike
from arrcoc_sam.errors import CheckpointError, DataError, ImageReadError, InputError, OutputError, explain
from arrcoc_sam.granularity.atlas.read import AtlasReader
from arrcoc_sam.granularity.atlas.store import AtlasStore, ImageRecord, Thresholds
from arrcoc_sam.granularity.trials import Progress
from arrcoc_sam.images import load_image

__all__ = ["AtlasBuild", "AtlasEngine", "array_digest", "copies", "local_engine"]

# Largest difference of a map between two machines, as a share of its largest value.
_SAME_ATTENTION = 0.05


@dataclass(frozen=True)
class AtlasBuild:
    """An atlas whose records are being made; can be sent to another machine.

    Attributes:
        store: Where the records go.
        images: Paths or images.
        names: What each is called.
        asked: What makes the records, as :meth:`asked_of` tells it.
    """

    store: AtlasStore
    images: tuple[ImageLike, ...]
    names: tuple[str, ...]
    asked: dict[str, Any]

    @staticmethod
    def asked_of(reader: AtlasReader) -> dict[str, Any]:
        """What a reader asks of each image, and the hash of its segmenter's weights."""
        return {
            "sources": list(reader.sources),
            "points_per_side": None if reader.hierarchies is not None else reader.points_per_side,
            "square": reader.square,
            "checkpoint": None if reader.segmenter is None else reader.segmenter.checkpoint_hash,
        }

    def check(self, reader: AtlasReader) -> None:
        """Refuse a reader that makes other records, as another machine's might.

        It is shown an image whose record is there.

        Raises:
            CheckpointError: A segmenter or a source of other weights.
            InputError: Other sources, another lattice of points, another crop, other levels that people drew.
        """
        found = self.asked_of(reader)
        for key in (key for key, value in self.asked.items() if found[key] != value):
            came, expected = f"on this machine {key} is {found[key]}", f"{self.asked[key]}, as where the run began"
            if key == "checkpoint":
                raise CheckpointError(explain(came, expected, "copy the same file of weights"))
            raise InputError(explain(came, expected, "make the reader that run_atlas was given"))
        if (known := self._known(reader)) is None:
            return
        number, record = known
        for source in reader.sources:
            maps, kept = record.attention[source], self.store.attention(number, source)
            if maps.shape != kept.shape or bool((_gap(maps, kept) > _SAME_ATTENTION).any()):
                came = f"source {source!r} answers {self.names[number]} otherwise than when the run began"
                mend = "the same weights and options, on every machine; or another folder"
                raise CheckpointError(explain(came, "the attention that is in its record", mend))
        human = reader.hierarchies is not None
        if human and not torch.equal(record.levels.intersections, self.store.levels(number).intersections):
            came = f"the levels of {self.names[number]} are others than when the run began"
            mend = "the same annotations on every machine; or another folder"
            raise InputError(explain(came, "those in its record", mend))

    def _known(self, reader: AtlasReader) -> tuple[int, ImageRecord] | None:
        """The number of the first image that has a record and can still be read, and what this reader makes of it."""
        for number in range(len(self.names)):
            if number in self.store:
                with suppress(ImageReadError):  # a picture that is gone has its record all the same
                    return number, reader.read(self.images[number])[0]
        return None

    def absolute(self) -> AtlasBuild:
        """The same, for a process that works in another folder."""
        return replace(self, store=self.store.absolute(), images=tuple(_absolute(image) for image in self.images))

    def missing(self) -> list[int]:
        """Numbers of the images that are still to be read."""
        return [number for number in range(len(self.names)) if self.lacks(number)]

    def lacks(self, number: int) -> bool:
        """Whether an image has no record yet, nor a reason in this run why it can't have one."""
        return number not in self.store and self.store.fault(number) is None

    def begin(self, reader: AtlasReader) -> None:
        """Make the first record, unless there is one: all others are compared with its names and grid.

        Images that could not be read in a run before are tried again, and the first record that is there is compared.

        Raises:
            CheckpointError: The record that is there is of other models.
            InputError: It is of other levels that people drew.
            DataError: As :meth:`compute`.
            OutputError: It can't be written.
        """
        self.store.forget_faults()
        if self.store.grid() is not None:
            self.check(reader)  # a run before, perhaps of other models under the same names
            return
        for number in range(len(self.names)):
            self.compute(number, reader)
            if number in self.store:
                return

    def compute(self, number: int, reader: AtlasReader) -> None:
        """Make the record of an image, or remember why it can't be read.

        Raises:
            DataError: Maps of other names or another grid than those of the images before.
            OutputError: It can't be written.
        """
        try:
            record, map_names = reader.read(self.images[number])
        except ImageReadError as problem:
            came = str(problem).replace(str(self.images[number]), self.names[number])  # whatever folder it ran in
            self.store.write_fault(number, came)
            return
        self.store.keep_names(map_names, self.names[number])
        _check_alike(record.levels.valid, self.store.grid(), self.names[number])
        self.store.write(number, record)

    def table(self) -> pd.DataFrame:
        """One row an image: its prompts, those that the grid can measure, and why it was left out.

        Raises:
            OutputError: Images that nobody has read.
        """
        if missing := self.missing():
            came = f"{len(missing)} images have no record, {self.names[missing[0]]} first"
            mend = "run the same command again; on a cluster, see that all machines share the folder"
            raise OutputError(explain(came, "a record or a reason for each", mend))
        rows: list[dict[str, Any]] = []
        for number, name in enumerate(self.names):
            row = {"image": name, "prompts": 0, "measurable": 0, "error": ""}
            if number in self.store:
                _, measurable = self.store.levels(number).regions(Thresholds())
                row |= {"prompts": len(measurable), "measurable": int(measurable.sum())}
            else:
                row["error"] = self.store.fault(number)
            rows.append(row)
        return pd.DataFrame(rows)


AtlasEngine: TypeAlias = Callable[[AtlasBuild, Progress | None], None]
"""Makes the records that are missing."""


def local_engine(reader: AtlasReader) -> AtlasEngine:
    """All in this process."""

    def compute(build: AtlasBuild, progress: Progress | None) -> None:
        if progress is not None:
            progress("images", 0, len(build.names))
        for number in range(len(build.names)):
            if build.lacks(number):
                build.compute(number, reader)
            if progress is not None:
                progress("images", number + 1, len(build.names))

    return compute


def array_digest(image: ImageLike) -> str | None:
    """What tells an image in memory from another; None of a file, which has a name."""
    if isinstance(image, (str, Path)):
        return None
    try:
        pixels = load_image(image)
    except ImageReadError as problem:  # it will be left out, and why
        return str(problem)
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()[:16]


def copies(images: Sequence[ImageLike], digests: Sequence[str | None]) -> list[tuple[int, int]]:
    """Numbers of images that are one picture, each copy beside the first of its kind.

    Files are compared by their bytes, and read only where another has the same size; images in memory by their pixels.
    What can't be read is no copy: it will be left out.

    Args:
        images: Paths or images.
        digests: Of each, from :func:`array_digest`.
    """
    paths = [Path(image).expanduser() if isinstance(image, (str, Path)) else None for image in images]
    sizes = [None if path is None else _file_size(path) for path in paths]
    alike = Counter(sizes)
    seen: dict[str, int] = {}
    found = []
    for number, (path, size, digest) in enumerate(zip(paths, sizes, digests, strict=True)):
        if path is not None:
            digest = _file_digest(path) if size is not None and alike[size] > 1 else None
        first = number if digest is None else seen.setdefault(digest, number)
        if first != number:
            with suppress(ImageReadError):
                load_image(images[number])
                found.append((first, number))
    return found


def _file_size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _file_digest(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


def _absolute(image: ImageLike) -> ImageLike:
    return Path(image).absolute() if isinstance(image, (str, Path)) else image


def _gap(maps: Tensor, kept: Tensor) -> Tensor:
    """The largest difference of each map from another, as a share of that one's largest value."""
    return (maps - kept).abs().amax(dim=(-2, -1)) / kept.abs().amax(dim=(-2, -1)).clamp(min=1e-12)


def _check_alike(valid: Float[Tensor, "h w"], first: Float[Tensor, "h w"] | None, name: str) -> None:
    if first is None or torch.equal(valid, first):
        return
    if valid.shape != first.shape:
        came = f"{name} has a grid of {tuple(valid.shape)}"
        raise DataError(explain(came, f"{tuple(first.shape)}, as the first image", "images of one size"))
    came = f"{name} is padded otherwise than the first image"
    raise DataError(explain(came, "images of one shape", "square=True"))
