"""The records of an atlas, one an image: work that any engine can deal out.

What is done for one image is a function of its number (:meth:`AtlasBuild.compute`). The local engine goes through the
images in this process, :class:`arrcoc_sam.distributed.RayAtlasEngine` deals them to actors. Finished records stay, so a
killed run goes on where it stopped, whatever the engine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from arrcoc_sam.attention.maps import ImageLike
from arrcoc_sam.errors import CheckpointError, DataError, ImageReadError, InputError, explain
from arrcoc_sam.granularity.atlas_read import AtlasReader
from arrcoc_sam.granularity.atlas_store import AtlasStore, Thresholds
from arrcoc_sam.granularity.trials import Progress

__all__ = ["AtlasBuild", "AtlasEngine", "local_engine"]


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
        """Refuse a reader that asks something else, as another machine's might.

        Raises:
            CheckpointError: A segmenter of other weights.
            InputError: Other sources, another lattice of points, another crop.
        """
        found = self.asked_of(reader)
        differing = [key for key, value in self.asked.items() if found[key] != value]
        if differing:
            key = differing[0]
            came = f"on this machine {key} is {found[key]}"
            kind = CheckpointError if key == "checkpoint" else InputError
            raise kind(explain(came, f"{self.asked[key]}, as where the run began", "copy the same files"))

    def absolute(self) -> AtlasBuild:
        """The same, for a process that works in another folder."""
        images = tuple(Path(each).absolute() if isinstance(each, (str, Path)) else each for each in self.images)
        return replace(self, store=self.store.absolute(), images=images)

    def missing(self) -> list[int]:
        """Numbers of the images that have no record; those that could not be read are tried again."""
        return [number for number in range(len(self.names)) if number not in self.store]

    def begin(self, reader: AtlasReader) -> None:
        """Make the first record, unless there is one: all others are compared with its names and grid.

        Raises:
            DataError: As :meth:`compute`.
        """
        for number in range(len(self.names)):
            if number not in self.store:
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
        _check_alike(record.levels.valid, self._grid(), self.names[number])
        self.store.write(number, record)

    def table(self) -> pd.DataFrame:
        """One row an image: its prompts, those that the grid can measure, and why it was left out."""
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

    def _grid(self) -> Float[Tensor, "h w"] | None:
        """Cell weights of the first record."""
        first = next((number for number in range(len(self.names)) if number in self.store), None)
        return None if first is None else self.store.levels(first).valid


AtlasEngine: TypeAlias = Callable[[AtlasBuild, Progress | None], None]
"""Makes the records that are missing."""


def local_engine(reader: AtlasReader) -> AtlasEngine:
    """All in this process."""

    def compute(build: AtlasBuild, progress: Progress | None) -> None:
        for number in range(len(build.names)):
            if number not in build.store:
                build.compute(number, reader)
            if progress is not None:
                progress("images", number + 1, len(build.names))

    return compute


def _check_alike(valid: Float[Tensor, "h w"], first: Float[Tensor, "h w"] | None, name: str) -> None:
    if first is None or torch.equal(valid, first):
        return
    if valid.shape != first.shape:
        came = f"{name} has a grid of {tuple(valid.shape)}"
        raise DataError(explain(came, f"{tuple(first.shape)}, as the first image", "images of one size"))
    came = f"{name} is padded otherwise than the first image"
    raise DataError(explain(came, "images of one shape", "square=True"))
