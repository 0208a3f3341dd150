"""Scoring and hierarchy caching on Ray: the work of the local engines on a pool of actors that hold the segmenter.

An actor takes the number of a part, reads its masks from Parquet (its images), does with the very code that the local
engine runs what there is to do, and writes the outcome to Parquet under a name of its own, which is then renamed. So an
actor that dies, or a part that Ray tries twice, changes nothing in the outcome, and a run can be stopped, resumed, and
carried on by the other engine. All machines must see the data set, the images and the folder of work under the same
paths.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from arrcoc_sam.errors import ArrcocSamError, CheckpointError, InputError, MissingExtraError, explain
from arrcoc_sam.quality.scoring import MaskScorer
from arrcoc_sam.quality.scoring_run import Progress, ScoringRun, read_part, write_part
from arrcoc_sam.quality.scoring_spec import EstimatorSpec
from arrcoc_sam.training.cache import CacheBuild
from arrcoc_sam.training.cache_sources import LevelSource

__all__ = ["ActorPool", "CacheActor", "RayCacheEngine", "RayEngine", "ScoringActor"]

# Blocks between which Ray may choose where to go on; each holds the numbers of a few parts.
_MOST_BLOCKS = 4096

# Of a Ray that is started here: numbers of parts go through its store, nothing else.
_STORE_BYTES = 1 << 28
_STARTS = 3


@dataclass(frozen=True)
class RayEngine:
    """Scores the parts of a run on a Ray cluster.

    Attributes:
        spec: Makes the estimator on every actor.
        address: Of the cluster, as for ``ray.init``; None starts Ray on this machine, or takes the one that is running
            in this process.
        actors: How many; by default one a GPU of the cluster, or one a core where there is none.
        gpus_per_actor: Of a GPU; by default 1 where the cluster has any and the spec's device is not "cpu". Less lets
            several share one, so that images are read while others are encoded.
        threads: Of PyTorch on the CPU, and cores that an actor asks for.
    """

    spec: EstimatorSpec
    address: str | None = None
    actors: int | None = None
    gpus_per_actor: float | None = None
    threads: int = 1

    def __post_init__(self) -> None:
        self._pool()

    def _pool(self) -> ActorPool:
        return ActorPool(self.spec.device, self.address, self.actors, self.gpus_per_actor, self.threads)

    def __call__(self, run: ScoringRun, progress: Progress | None) -> None:
        """Score the parts that are missing.

        Raises:
            MissingExtraError: Ray is not installed.
            ArrcocSamError: What an actor raised; what is scored is kept.
        """
        missing = run.missing()
        if not missing:
            return
        total = run.num_masks(run.parts())
        done = total - run.num_masks(missing)
        given = (self.spec, run.plan["checkpoint_hash"], run.work.absolute(), run.folders)
        for row in self._pool().map(ScoringActor, given, missing):
            done += int(row["num_masks"])
            if progress is not None:
                progress("Scoring", done, total)


@dataclass(frozen=True)
class ActorPool:
    """Actors that take numbers of parts; see :class:`RayEngine` for what its fields mean.

    Attributes:
        device: What the actors compute on: GPUs are asked for unless it is "cpu".
        address: Of the cluster.
        actors: How many.
        gpus_per_actor: Of a GPU.
        threads: Of PyTorch on the CPU.
    """

    device: str
    address: str | None = None
    actors: int | None = None
    gpus_per_actor: float | None = None
    threads: int = 1

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InputError: One is out of its range.
        """
        for name in ("actors", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(explain(f"{name}={value}", "at least 1"))
        share = self.gpus_per_actor
        if share is not None and not (0 <= share <= 1 or (share > 1 and share == int(share))):
            raise InputError(explain(f"gpus_per_actor={share}", "a share in [0, 1], or a whole number"))

    def map(self, actor: type, given: tuple[Any, ...], numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
        """What actors answer each number with, in the order in which they are done.

        Args:
            actor: Made with ``given`` and the keyword ``threads``; called with ``{"part": one number}``.
            given: Sent to every actor.
            numbers: At least one.

        Raises:
            MissingExtraError: Ray is not installed.
            ArrcocSamError: What an actor raised.
        """
        ray = _import_ray()
        with _cluster(ray, self.address, cores=self.threads * (self.actors or 1)):
            size, gpus = self._size(ray)
            context = ray.data.DataContext.get_current()
            context.enable_progress_bars = False
            items = [{"part": number} for number in numbers]
            parts = ray.data.from_items(items, override_num_blocks=min(len(items), _MOST_BLOCKS))
            answers = parts.map_batches(
                actor,
                fn_constructor_args=given,
                fn_constructor_kwargs={"threads": self.threads},
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=min(size, len(items))),
                num_cpus=self.threads,
                num_gpus=gpus or None,
            )
            try:
                yield from answers.iter_rows()
            except Exception as error:
                raise _ours(error) from error

    def _size(self, ray: Any) -> tuple[int, float]:
        """Number of actors, and GPUs for each."""
        resources = ray.cluster_resources()
        available = resources.get("GPU", 0.0) if self.device == "auto" or self.device.startswith("cuda") else 0.0
        gpus = self.gpus_per_actor
        if gpus is None:
            gpus = 1.0 if available else 0.0
        if gpus > available:
            came = f"gpus_per_actor={gpus:g} with device={self.device!r} and {available:g} GPUs in the cluster"
            raise InputError(explain(came, "no more than there are", "leave --gpus-per-actor out on CPUs"))
        if self.actors is not None:
            return self.actors, gpus
        most = available / gpus if gpus else resources.get("CPU", 1.0) / self.threads
        return max(1, int(most)), gpus


class ScoringActor:
    """Holds an estimator and scores one part after the other.

    Args:
        spec: Makes the estimator.
        checkpoint_hash: Of the weights that it must have.
        work: The folder of work.
        folders: Those of images and of mask files.
        threads: Of PyTorch on the CPU.

    Raises:
        CheckpointError: This machine has other weights.
    """

    def __init__(
        self,
        spec: EstimatorSpec,
        checkpoint_hash: str,
        work: Path,
        folders: tuple[Path, Path | None],
        *,
        threads: int,
    ) -> None:
        torch.set_num_threads(threads)
        estimator = spec.build()
        found = estimator.segmenter.checkpoint_hash
        if found != checkpoint_hash:
            came = f"this machine has the weights {found[:12]}… of {spec.segmenter}"
            raise CheckpointError(explain(came, f"those of the run, {checkpoint_hash[:12]}…", "copy the same file"))
        self._scorer = MaskScorer(estimator, *folders)
        self._work = work

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Score the parts whose numbers are in ``part``; answers how many masks each had."""
        counts = []
        for number in batch["part"].tolist():
            scores = self._scorer.score(read_part(self._work, number))
            write_part(self._work, number, scores)
            counts.append(len(scores))
        return {"part": batch["part"], "num_masks": np.array(counts, dtype=np.int64)}


@dataclass(frozen=True)
class RayCacheEngine:
    """Computes the shards of a hierarchy cache on a Ray cluster; for ``build_cache(engine=...)``.

    Attributes:
        make: Makes the source of levels on every actor; has to be picklable.
        device: What the actors compute on.
        address: See :class:`RayEngine`.
        actors: See :class:`RayEngine`.
        gpus_per_actor: See :class:`RayEngine`.
        threads: See :class:`RayEngine`.
    """

    make: Callable[[], LevelSource]
    device: str = "auto"
    address: str | None = None
    actors: int | None = None
    gpus_per_actor: float | None = None
    threads: int = 1

    def __post_init__(self) -> None:
        self._pool()

    def _pool(self) -> ActorPool:
        return ActorPool(self.device, self.address, self.actors, self.gpus_per_actor, self.threads)

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
        for row in self._pool().map(CacheActor, (self.make, build), missing):
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


def _import_ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingExtraError.of("ray", "ray") from error
    return ray


@contextmanager
def _cluster(ray: Any, address: str | None, *, cores: int) -> Iterator[None]:
    """Ray, started or joined; stopped at the end where it was not running before.

    Args:
        ray: The module.
        address: Of a cluster to join.
        cores: A cluster started here counts at least so many, or actors would wait for them for ever.
    """
    if ray.is_initialized():
        yield
        return
    if address is None:
        _start(ray, cores)
    else:
        _join(ray, address)
    try:
        yield
    finally:
        ray.shutdown()


def _start(ray: Any, cores: int) -> None:
    """Start Ray on this machine; on a busy one its patience of half a minute may run out, so more than once."""
    for left in reversed(range(_STARTS)):
        try:
            ray.init(
                num_cpus=max(cores, os.cpu_count() or 1),
                object_store_memory=_STORE_BYTES,
                include_dashboard=False,
                log_to_driver=False,
            )
            return
        except Exception as error:  # Ray raises half a dozen kinds, and the bare one where a start takes too long
            ray.shutdown()
            if left:
                continue
            came, mend = f"Ray does not start here ({_reason(error)})", "try again when the machine is less busy"
            raise InputError(explain(came, "a machine with room for it", f"{mend}, or name --engine local")) from error


def _join(ray: Any, address: str) -> None:
    try:
        ray.init(address=address, log_to_driver=False)
    except Exception as error:  # as above
        came = f"no Ray cluster at {address!r} ({_reason(error)})"
        raise InputError(explain(came, "its address, or none to start one here", "see docs/cluster.md")) from error


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _ours(error: BaseException) -> BaseException:
    """What an actor raised, where it is one of our errors, out of Ray's wrapping."""
    at: BaseException | None = error
    for _ in range(20):
        if at is None:
            break
        if isinstance(at, ArrcocSamError):
            words = next((line for line in reversed(str(at).strip().splitlines()) if "Error: " in line), str(at))
            kind: type[ArrcocSamError] = next(k for k in type(at).__mro__ if k.__module__ == ArrcocSamError.__module__)
            return kind(words.split("Error: ", 1)[-1])
        at = getattr(at, "cause", None) or at.__cause__
    return error
