"""The images of an atlas are read on Ray."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from arrcoc_sam.distributed.pool import OnRay
from arrcoc_sam.granularity.atlas.build import AtlasBuild
from arrcoc_sam.granularity.atlas.read import AtlasReader
from arrcoc_sam.granularity.trials import Progress

__all__ = ["AtlasActor", "RayAtlasEngine"]


@dataclass(frozen=True)
class RayAtlasEngine(OnRay):
    """Makes the records of an atlas on a Ray cluster, for ``run_atlas(engine=...)``; see :class:`OnRay`.

    Name images by their files: those in memory go through Ray to every actor. The heads are judged by the process that
    asked. For ``run_atlas(paths, source, segmenter, folder, controls={"noise": noise}, engine=RayAtlasEngine(make))``
    ``make()`` answers ``AtlasReader({"model": source, "noise": noise}, segmenter, None, 3, True)`` with models of its
    own. Each actor first reads an image whose record is there, and refuses to go on where it finds something else.

    Attributes:
        make: Makes what was given to ``run_atlas``, on every actor; has to be picklable.
        device: What the actors compute on.
    """

    make: Callable[[], AtlasReader]
    device: str = "auto"

    def __call__(self, build: AtlasBuild, progress: Progress | None) -> None:
        """Make the records that are missing.

        Raises:
            MissingExtraError: Ray is not installed.
            ArrcocSamError: What an actor raised; finished records are kept.
        """
        missing = build.missing()
        if not missing:
            return
        total = len(build.names)
        done = total - len(missing)
        if progress is not None:
            progress("images", done, total)  # before actors start
        for _ in self.pool(self.device).map(AtlasActor, (self.make, build.absolute()), missing):
            done += 1
            if progress is not None:
                progress("images", done, total)


class AtlasActor:
    """Holds sources and segmenter and makes one record after the other.

    Args:
        make: Makes them.
        build: The atlas.
        threads: Of PyTorch on the CPU.

    Raises:
        CheckpointError: This machine has other weights.
        InputError: Other sources, another lattice of points, other annotations.
    """

    def __init__(self, make: Callable[[], AtlasReader], build: AtlasBuild, *, threads: int) -> None:
        torch.set_num_threads(threads)
        self._reader, self._build = make(), build
        build.check(self._reader)

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Make the records whose numbers are in ``part``, but for those that another actor has made."""
        for number in batch["part"].tolist():
            if self._build.lacks(number):
                self._build.compute(number, self._reader)
        return {"part": batch["part"]}
