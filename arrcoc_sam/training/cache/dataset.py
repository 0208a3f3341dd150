"""A hierarchy cache as PyTorch data sets: one with random access, one that streams."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float, Int64
from numpy import ndarray
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from arrcoc_sam.errors import DataError, InputError, explain
from arrcoc_sam.masks.rle import run_lengths
from arrcoc_sam.segmenters.base import Segmenter
from arrcoc_sam.training.cache.records import MANIFEST, CachePlan, read_shard, reading, shard_fault, shard_path
from arrcoc_sam.training.cache.samples import SampleReader, not_finite
from arrcoc_sam.training.samples import AttentionSample

__all__ = ["HierarchyCache", "HierarchyDataset", "HierarchyStream"]

Rows = TypeVar("Rows", pa.Table, pa.RecordBatch)

_COLUMNS = (
    "image", "image_number", "height", "width", "x", "y", "counts", "score", "quality", "token_index", "distinct",
    "valid",
)  # fmt: skip


@dataclass(frozen=True)
class HierarchyCache:
    """A finished cache on disk.

    Attributes:
        folder: Where it lies.
        plan: What it holds.
    """

    folder: Path
    plan: CachePlan

    @classmethod
    def open(
        cls, folder: str | Path, *, segmenter: Segmenter | str | None = None, images: str | Path | None = None
    ) -> HierarchyCache:
        """Open what :func:`arrcoc_sam.training.cache.build.build_cache` wrote.

        Args:
            folder: Where it lies.
            segmenter: Whose masks it has to hold: a segmenter, or the hash of its weights; any by default.
            images: Where the pictures are now, if they were moved: the folder in place of the plan's ``root``, which
                was the deepest one that held them all.

        Raises:
            DataError: No cache, a shard missing or damaged, the masks of another segmenter, or a folder ``images``
                without the cache's first picture.
        """
        folder = Path(folder)
        plan = CachePlan.read(folder)
        again = "run arrcoc-sam cache again, which computes what is missing or damaged"
        if plan is None:
            raise DataError(explain(f"{folder} has no {MANIFEST}", "a hierarchy cache", "build it: arrcoc-sam cache"))
        expected = segmenter.checkpoint_hash if isinstance(segmenter, Segmenter) else segmenter
        if expected is not None and expected != plan.checkpoint_hash:
            came = f"{folder} holds masks of {plan.segmenter!r}, weights {plan.checkpoint_hash[:12]}…"
            raise DataError(explain(came, f"those of weights {expected[:12]}…", "build a cache with this segmenter"))
        missing = [number for number in range(plan.num_shards) if not shard_path(folder, number).is_file()]
        if missing:
            came = f"{folder} lacks {len(missing)} of {plan.num_shards} shards, {shard_path(folder, missing[0]).name}"
            raise DataError(explain(came, "all of them", again))
        for number in range(plan.num_shards):
            fault = shard_fault(shard_path(folder, number))
            if fault is not None:
                raise DataError(explain(f"{shard_path(folder, number)} {fault}", "a whole shard", again))
        return cls(folder, plan if images is None else plan.moved(folder, Path(images).expanduser().absolute()))

    def table(self) -> pa.Table:
        """All rows, in memory as Arrow arrays: some hundred bytes a mask.

        Raises:
            DataError: A shard is damaged inside.
        """
        numbers = range(self.plan.num_shards)
        tables = [read_shard(shard_path(self.folder, number), _COLUMNS) for number in numbers]
        return pa.concat_tables(tables).combine_chunks()


class HierarchyDataset(Dataset[AttentionSample]):
    """A cache with random access; its rows are held in memory as Arrow arrays.

    Args:
        cache: A finished one.
        only_valid: Leave out clicks without two levels.
        **options: Of :class:`SampleReader`; with ``min_quality``, clicks without a level that good are left out too.

    Raises:
        InputError: An option out of its range.
        DataError: No sample is left; a score is not a number; a quality is asked for that the cache does not have; a
            shard is damaged inside.
    """

    def __init__(self, cache: HierarchyCache, *, only_valid: bool = True, **options: Any) -> None:
        self.cache = cache
        self.reader = SampleReader(cache.plan.root, **options)
        check_quality(cache, self.reader)
        self.rows = _kept(cache.table(), only_valid, self.reader.min_quality)
        if len(self.rows) == 0:
            raise _none_left(cache, self.reader)
        if getattr(self.reader.teach, "weighted", True):
            _check_scores(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> AttentionSample:
        """Sample number ``index``."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return self.reader.sample({name: self.rows[name][index].as_py() for name in _COLUMNS})

    def image_keys(self) -> Int64[ndarray, " n"]:
        """The picture of each sample."""
        keys: ndarray = self.rows["image_number"].to_numpy()
        return keys.astype(np.int64)

    def area_shares(self) -> Float[ndarray, " n"]:
        """The share of the picture that each mask covers, over all levels of all samples."""
        sizes = zip(self.rows["height"].to_pylist(), self.rows["width"].to_pylist(), strict=True)
        shares = [
            int(run_lengths({"size": list(size), "counts": counts})[1][1::2].sum()) / (size[0] * size[1])
            for size, three in zip(sizes, self.rows["counts"].to_pylist(), strict=True)
            for counts in three
        ]
        return np.array(shares)


class HierarchyStream(IterableDataset[AttentionSample]):
    """A cache read from one end to the other, for those that do not fit into memory.

    Shards are dealt to processes and their data-loading workers, so that every sample is read once; each reads its
    own in an order drawn by epoch, through a buffer that samples are drawn from.

    Args:
        cache: A finished one.
        only_valid: Leave out clicks without two levels.
        shuffle_buffer: Rows that a sample is drawn from; 0 keeps the order of the cache.
        seed: Of the order.
        rank: Number of this process, which has to be told …
        num_processes: … as well as how many there are. The loader is then this process's own: not one for
            ``accelerator.prepare``.
        **options: Of :class:`SampleReader`; with ``min_quality``, clicks without a level that good are left out too.

    Raises:
        InputError: A number out of its range, or fewer shards than processes.
        DataError: A quality is asked for that the cache does not have; while it is read, a shard that is damaged
            inside.
    """

    def __init__(
        self,
        cache: HierarchyCache,
        *,
        only_valid: bool = True,
        shuffle_buffer: int = 1024,
        seed: int = 0,
        rank: int = 0,
        num_processes: int = 1,
        **options: Any,
    ) -> None:
        if not 0 <= rank < num_processes or shuffle_buffer < 0:
            came = f"rank={rank}, num_processes={num_processes}, shuffle_buffer={shuffle_buffer}"
            raise InputError(explain(came, "0 <= rank < num_processes, a buffer of 0 or more"))
        if cache.plan.num_shards < num_processes:
            came = f"{cache.plan.num_shards} shards for {num_processes} processes"
            raise InputError(
                explain(came, "a shard for each at least", "build the cache with fewer images_per_shard (--shard)")
            )
        self.cache, self.only_valid, self.shuffle_buffer, self.seed = cache, only_valid, shuffle_buffer, seed
        self.rank, self.num_processes = rank, num_processes
        # in shared memory, where workers that live on from pass to pass see it change
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self.reader = SampleReader(cache.plan.root, **options)
        check_quality(cache, self.reader)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order; call it before every pass."""
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[AttentionSample]:
        """All samples of this process and worker."""
        worker = get_worker_info()
        workers = 1 if worker is None else worker.num_workers
        # ranks before workers: with few shards some workers of each rank are idle, and no rank
        part, parts = (
            (0 if worker is None else worker.id) * self.num_processes + self.rank,
            self.num_processes * workers,
        )
        epoch = int(self._epoch)
        rng = np.random.default_rng([self.seed, epoch, part])
        shards = np.arange(self.cache.plan.num_shards)
        if self.shuffle_buffer:
            np.random.default_rng([self.seed, epoch]).shuffle(shards)
        rows = self._rows(shards[part::parts])
        return (self.reader.sample(row) for row in (_shuffled(rows, self.shuffle_buffer, rng)))

    def _rows(self, shards: ndarray) -> Iterator[dict[str, Any]]:
        for number in shards.tolist():
            path = shard_path(self.cache.folder, number)
            with reading(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
                for batch in file.iter_batches(512, columns=list(_COLUMNS)):
                    yield from _kept(batch, self.only_valid, self.reader.min_quality).to_pylist()


def check_quality(cache: HierarchyCache, reader: SampleReader) -> None:
    """Refuse a least quality where the cache has none.

    Raises:
        DataError: As said.
    """
    if reader.min_quality is not None and not cache.plan.quality:
        came = f"min_quality={reader.min_quality} for {cache.folder}, whose masks were not scored"
        raise DataError(
            explain(came, "a cache with quality", "build it with quality=True (--quality), or leave out min_quality")
        )


def _kept(rows: Rows, only_valid: bool, min_quality: float | None) -> Rows:
    """The rows that a sample is made of: those with two levels, and with one that is good enough."""
    if only_valid:
        rows = rows.filter(rows["valid"])
    if min_quality is not None and len(rows):
        quality, distinct = (np.array(rows[name].to_pylist()) for name in ("quality", "distinct"))
        rows = rows.filter(pa.array((distinct & (quality >= min_quality)).any(1)))
    return rows


def _none_left(cache: HierarchyCache, reader: SampleReader) -> DataError:
    """What is said of a cache whose rows are all left out."""
    if reader.min_quality is None:
        return DataError(explain(f"{cache.folder} has no sample that is valid", "at least one"))
    came = f"{cache.folder} has no valid sample with a level of min_quality={reader.min_quality}"
    return DataError(explain(came, "at least one", "lower min_quality"))


def _check_scores(rows: pa.Table) -> None:
    """Refuse, before anything is trained, what the first bad sample would be refused for.

    Raises:
        DataError: The score of a distinct level is not a finite number.
    """
    score, distinct = (np.array(rows[name].to_pylist()) for name in ("score", "distinct"))
    bad = np.flatnonzero((distinct & ~np.isfinite(score.astype(np.float64))).any(1))
    if len(bad):
        row = {name: rows[name][int(bad[0])].as_py() for name in ("image", "x", "y", "score")}
        raise not_finite(row, row["score"])


def _shuffled(rows: Iterator[dict[str, Any]], size: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Rows drawn from a buffer that is filled up as they go."""
    buffer: list[dict[str, Any]] = []
    for row in rows:
        if len(buffer) < size:
            buffer.append(row)
            continue
        if not size:
            yield row
            continue
        place = int(rng.integers(size))
        buffer[place], row = row, buffer[place]
        yield row
    rng.shuffle(buffer)
    yield from buffer
