"""A hierarchy cache as PyTorch data sets: one with random access, one that streams."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from numpy import ndarray
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from arrcoc_sam.errors import DataError, InputError, explain
from arrcoc_sam.hierarchy.levels import relate_levels
from arrcoc_sam.images import load_image
from arrcoc_sam.inputs import as_size
from arrcoc_sam.masks.rle import rle_intersections, run_lengths
from arrcoc_sam.segmenters.base import Segmenter
from arrcoc_sam.training.cache_grids import rle_to_grid
from arrcoc_sam.training.cache_records import MANIFEST, CachePlan, read_shard, reading, shard_fault, shard_path
from arrcoc_sam.training.samples import AttentionSample
from arrcoc_sam.training.samples_pictures import to_frame
from arrcoc_sam.training.samples_supervision import MaskTriple, Supervision, supervision

__all__ = ["HierarchyCache", "HierarchyDataset", "HierarchyStream", "SampleReader"]

_COLUMNS = (
    "image", "image_number", "height", "width", "x", "y", "counts", "score", "quality", "token_index", "distinct",
    "valid",
)  # fmt: skip
_PICTURES_KEPT = 1 << 28  # bytes of resized pictures that a reader remembers


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
        """Open what :func:`arrcoc_sam.training.cache.build_cache` wrote.

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


class SampleReader:
    """Turns a row of the cache into a sample.

    Args:
        root: The folder that image names are relative to.
        target_hw: Rows and columns of the targets.
        image_size: Side of the square that pictures are resized to; None reads no pictures.
        teach: Which mask teaches which level; the hierarchy by default.
        min_quality: Levels of a lower quality do not count; for caches that were built with it.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        target_hw: tuple[int, int] = (64, 64),
        image_size: int | None = None,
        teach: Supervision | None = None,
        min_quality: float | None = None,
    ) -> None:
        if image_size is not None and image_size < 1:
            raise InputError(explain(f"image_size={image_size}", "a positive number of pixels, or None"))
        self.root, self.target_hw, self.image_size = Path(root), as_size(target_hw, "target_hw"), image_size
        self.teach, self.min_quality = supervision() if teach is None else teach, min_quality
        self._pictures: OrderedDict[str, UInt8[Tensor, "3 S S"]] = OrderedDict()

    def sample(self, row: Mapping[str, Any]) -> AttentionSample:
        """The sample of a row.

        Raises:
            DataError: Damaged run lengths; a score that is not a number in a level that counts.
            ImageReadError: The picture can't be read.
        """
        size = [row["height"], row["width"]]
        runs = [run_lengths({"size": size, "counts": counts})[1] for counts in row["counts"]]
        masks = [{"size": size, "counts": lengths} for lengths in runs]
        triple = MaskTriple(
            score=np.array(row["score"], dtype=np.float64),
            token_index=np.array(row["token_index"], dtype=np.int64),
            distinct=np.array(row["distinct"], dtype=bool),
            counted=_counted(row, masks),
            area_share=np.array([lengths[1::2].sum() for lengths in runs]) / (size[0] * size[1]),
            key=row["image_number"],
        )
        taught = self.teach(triple)
        valid = taught.valid.copy()
        if self.min_quality is not None:
            valid &= np.array(row["quality"], dtype=np.float64)[taught.mask] >= self.min_quality
        if not np.isfinite(taught.confidence[valid]).all():
            raise _not_finite(row, taught.confidence.tolist())
        used = sorted({int(mask) for mask in taught.mask[valid]})
        grids = np.zeros((3, *self.target_hw), dtype=np.float32)
        drawn = dict(zip(used, rle_to_grid([masks[m] for m in used], self.target_hw), strict=True))
        for level in np.flatnonzero(valid):
            grids[level] = drawn[int(taught.mask[level])]
        image, point = None, torch.tensor([row["x"], row["y"]], dtype=torch.float32)
        if self.image_size is not None:
            image = self._picture(row["image"], (size[0], size[1]), self.image_size)
            scale = self.image_size / torch.tensor([size[1], size[0]], dtype=torch.float32)
            point = (point + 0.5) * scale - 0.5
        return AttentionSample(
            image=image,
            image_key=row["image_number"],
            point_xy=point,
            targets=torch.from_numpy(grids),
            confidence=torch.from_numpy(np.where(valid, taught.confidence, 0.0)).float(),
            valid=torch.from_numpy(valid),
        )

    def _picture(self, name: str, size_hw: tuple[int, int], side: int) -> UInt8[Tensor, "3 S S"]:
        """The picture at the frame's size; as many as fit into a quarter of a gigabyte are kept."""
        if name in self._pictures:
            self._pictures.move_to_end(name)
            return self._pictures[name]
        pixels = load_image(self.root / name)
        if pixels.shape[:2] != size_hw:
            came = f"{self.root / name} has height and width {pixels.shape[:2]}"
            raise DataError(explain(came, f"{size_hw}, as when the cache was built", "build the cache again"))
        picture = to_frame(pixels, side)
        self._pictures[name] = picture
        if len(self._pictures) * picture.nbytes > _PICTURES_KEPT:
            self._pictures.popitem(last=False)
        return picture


class HierarchyDataset(Dataset[AttentionSample]):
    """A cache with random access; its rows are held in memory as Arrow arrays.

    Args:
        cache: A finished one.
        only_valid: Leave out clicks without two levels.
        **options: Of :class:`SampleReader`.

    Raises:
        DataError: No sample is left; a score is not a number; a quality is asked for that the cache does not have; a
            shard is damaged inside.
    """

    def __init__(self, cache: HierarchyCache, *, only_valid: bool = True, **options: Any) -> None:
        self.cache = cache
        self.reader = SampleReader(cache.plan.root, **options)
        check_quality(cache, self.reader)
        table = cache.table()
        self.rows = table.filter(table["valid"]) if only_valid else table
        if len(self.rows) == 0:
            raise DataError(explain(f"{cache.folder} has no sample that is valid", "at least one"))
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
        **options: Of :class:`SampleReader`.

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
        self.rank, self.num_processes, self.epoch = rank, num_processes, 0
        self.reader = SampleReader(cache.plan.root, **options)
        check_quality(cache, self.reader)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order; call it before every pass."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[AttentionSample]:
        """All samples of this process and worker."""
        worker = get_worker_info()
        workers = 1 if worker is None else worker.num_workers
        # ranks before workers: with few shards some workers of each rank are idle, and no rank
        part, parts = (
            (0 if worker is None else worker.id) * self.num_processes + self.rank,
            self.num_processes * workers,
        )
        rng = np.random.default_rng([self.seed, self.epoch, part])
        shards = np.arange(self.cache.plan.num_shards)
        if self.shuffle_buffer:
            np.random.default_rng([self.seed, self.epoch]).shuffle(shards)
        rows = self._rows(shards[part::parts])
        return (self.reader.sample(row) for row in (_shuffled(rows, self.shuffle_buffer, rng)))

    def _rows(self, shards: ndarray) -> Iterator[dict[str, Any]]:
        for number in shards.tolist():
            path = shard_path(self.cache.folder, number)
            with reading(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
                for batch in file.iter_batches(512, columns=list(_COLUMNS)):
                    yield from (row for row in batch.to_pylist() if row["valid"] or not self.only_valid)


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


def _check_scores(rows: pa.Table) -> None:
    """Refuse, before anything is trained, what the first bad sample would be refused for.

    Raises:
        DataError: The score of a distinct level is not a finite number.
    """
    score, distinct = (np.array(rows[name].to_pylist()) for name in ("score", "distinct"))
    bad = np.flatnonzero((distinct & ~np.isfinite(score.astype(np.float64))).any(1))
    if len(bad):
        row = {name: rows[name][int(bad[0])].as_py() for name in ("image", "x", "y", "score")}
        raise _not_finite(row, row["score"])


def _counted(row: Mapping[str, Any], masks: Sequence[Mapping[str, Any]]) -> Bool[ndarray, " 3"]:
    """Which levels are distinct and nested. The cache says which are distinct and whether two are both.

    Caches are built with the usual thresholds.
    """
    distinct = np.array(row["distinct"], dtype=bool)
    if row["valid"] and distinct.sum() == 2:
        return distinct
    counted: ndarray = relate_levels(rle_intersections(masks)[None]).counted[0].numpy()
    return counted


def _not_finite(row: Mapping[str, Any], confidence: Sequence[float]) -> DataError:
    came = f"{row['image']}, click ({row['x']:g}, {row['y']:g}): confidence {list(confidence)}"
    return DataError(explain(came, "finite numbers", "build the cache again with weights that are finite"))


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
