"""Hierarchy caches are built on Ray, shard by shard."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from arrcoc_sam.distributed.pool import OnRay
from arrcoc_sam.errors import CheckpointError, explain
from arrcoc_sam.training.cache.build import CacheBuild
from arrcoc_sam.training.cache.sources import LevelSource

__all__ = ["CacheActor", "RayCacheEngine"]


@dataclass(frozen=True)
class RayCacheEngine(OnRay):
    """Computes the shards of a cache on a Ray cluster, for ``build_cache(engine=...)``; see :class:`OnRay`.

    Attributes:
        make: Makes the source of levels on every actor; has to be picklable.
        device: What the actors compute on.
    """

    make: Callable[[], LevelSource]
    device: str = "auto"

    def __call__(self, build: CacheBuild, progress: Callable[[int, int], None] | None) -> None:
        """Compute the shards that are missing.

        Raises:
            MissingExtraError: Ray is not installed.
            ArrcocSamError: What an actor raised; finished shards are kept.
        """
        missing = build.missing()
        if not missing:
            return
        total = len(build.names)
        done = total - sum(len(build.images_of(number)) for number in missing)
        if progress is not None:
            progress(done, total)  # before actors start
        for row in self.pool(self.device).map(CacheActor, (self.make, build), missing):
            done += len(build.images_of(int(row["part"])))
            if progress is not None:
                progress(done, total)


class CacheActor:
    """Holds a source of levels and computes one shard after the other.

    Args:
        make: Makes the source.
        build: The cache.
        threads: Of PyTorch on the CPU.

    Raises:
        CheckpointError: This machine has other weights, or other annotations.
    """

    def __init__(self, make: Callable[[], LevelSource], build: CacheBuild, *, threads: int) -> None:
        torch.set_num_threads(threads)
        self._source, self._build = make(), build
        found, expected = self._source.checkpoint_hash, build.plan.checkpoint_hash
        if found != expected:
            came = f"this machine has the weights {found[:12]}… of {self._source.name}"
            raise CheckpointError(explain(came, f"those of the cache, {expected[:12]}…", "copy the same file"))

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute the shards whose numbers are in ``part``."""
        for number in batch["part"].tolist():
            self._build.compute(number, self._source)
        return {"part": batch["part"]}
