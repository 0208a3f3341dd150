"""Builds a hierarchy cache: every click's three masks, computed once, read by any number of trainings.

The work on one image is a function (:class:`SegmenterLevels`, :class:`TruthLevels`) that any engine can map; the local
engine below runs it in this process, shard by shard, and goes on where a killed run stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from os.path import commonpath
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray
from torch import Tensor

from arrcoc_sam.datasets import CocoDataset
from arrcoc_sam.errors import ArrcocSamError, DataError, InputError, explain
from arrcoc_sam.hierarchy import MaskHierarchy
from arrcoc_sam.images import load_image
from arrcoc_sam.masks import decode_rle, encode_rle, mask_iou
from arrcoc_sam.prompts import Prompts
from arrcoc_sam.quality import MaskQualityEstimator
from arrcoc_sam.report.provenance import installed_versions
from arrcoc_sam.segmenters.base import Segmenter
from arrcoc_sam.training.cache_prompts import Clicks, GridPrompts, PromptPlan
from arrcoc_sam.training.cache_records import CachePlan, names_digest, read_faults, shard_path, write_shard

__all__ = ["CacheReport", "LevelSource", "SegmenterLevels", "TruthLevels", "build_cache"]

_PROMPTS_AT_ONCE = 32
_TRUTH = "truth"


@runtime_checkable
class LevelSource(Protocol):
    """The levels of an image's clicks, as rows of the cache."""

    name: str
    checkpoint_hash: str
    quality: bool

    def describe_prompts(self) -> dict[str, Any]:
        """What makes the clicks, ready for JSON."""
        ...

    def rows(self, path: Path, image: UInt8[ndarray, "H W 3"]) -> Iterator[dict[str, Any]]:
        """One row a click, but for the name and the number of the image."""
        ...


class SegmenterLevels:
    """What a segmenter answers each click with, three masks as whole, part and subpart.

    Args:
        segmenter: Any.
        prompts: The clicks; by default a grid of 8 × 8.
        quality: Score every mask with :class:`arrcoc_sam.quality.MaskQualityEstimator` too: one more decoding a mask.
    """

    def __init__(self, segmenter: Segmenter, prompts: PromptPlan | None = None, *, quality: bool = False) -> None:
        self.segmenter = segmenter
        self.prompts: PromptPlan = GridPrompts() if prompts is None else prompts
        self.name, self.checkpoint_hash, self.quality = segmenter.name, segmenter.checkpoint_hash, quality
        self._estimator = MaskQualityEstimator(segmenter) if quality else None

    def describe_prompts(self) -> dict[str, Any]:
        """What makes the clicks."""
        return self.prompts.describe()

    @torch.no_grad()
    def rows(self, path: Path, image: UInt8[ndarray, "H W 3"]) -> Iterator[dict[str, Any]]:
        """One row a click; the image is encoded once.

        Raises:
            ArrcocSamError: The image or its clicks can't be used.
        """
        clicks = self.prompts.on(path, (image.shape[0], image.shape[1]))
        if not len(clicks.points_xy):
            return
        embedding = self.segmenter.encode(image)
        for start in range(0, len(clicks.points_xy), _PROMPTS_AT_ONCE):
            some = slice(start, start + _PROMPTS_AT_ONCE)
            points = clicks.points_xy[some]
            prompts = Prompts(points_xy=points[:, None], labels=torch.ones(len(points), 1, dtype=torch.long))
            candidates = self.segmenter.decode(embedding, prompts)
            hierarchy = candidates.hierarchy()
            columns = torch.searchsorted(candidates.token_index, hierarchy.token_index)
            quality = None
            if self._estimator is not None:
                scored = self._estimator.estimate(embedding, hierarchy.masks.flatten(0, 1))
                quality = scored.quality.reshape(-1, 3)
            yield from level_rows(
                hierarchy,
                Clicks(points, None if clicks.truth is None else clicks.truth[some]),
                first=start,
                stability=candidates.stability.gather(1, columns),
                quality=quality,
            )


class TruthLevels:
    """Levels that were drawn by people: a COCO file's nested masks, each known to be right.

    Args:
        dataset: With declared hierarchies, or masks that lie in one another.
    """

    name = _TRUTH
    quality = False

    def __init__(self, dataset: CocoDataset) -> None:
        self.dataset = dataset
        text = "".join(f"{a.image_id} {a.id} {a.counts}\n" for a in dataset.annotations)
        self.checkpoint_hash = names_digest([text, repr(dataset.declared)])

    def describe_prompts(self) -> dict[str, Any]:
        """The clicks of the file's triples."""
        return {"kind": "triples"}

    def rows(self, path: Path, image: UInt8[ndarray, "H W 3"]) -> Iterator[dict[str, Any]]:
        """One row a triple; none for an image without nested masks.

        Raises:
            DataError: The file does not know the picture, or gives it another size.
        """
        found = self.dataset.find(path)
        if found is None:
            raise DataError(explain(f"{self.dataset.path} has no image {path.name}", "annotations for every image"))
        if found.size_hw != image.shape[:2]:
            raise DataError(explain(f"{path.name} has height and width {image.shape[:2]}", f"{found.size_hw}"))
        levels = self.dataset.hierarchies(found)
        if levels is not None:
            yield from level_rows(levels[0], Clicks(levels[1]))


def level_rows(
    hierarchy: MaskHierarchy,
    clicks: Clicks,
    *,
    first: int = 0,
    stability: Float[Tensor, "K 3"] | None = None,
    quality: Float[Tensor, "K 3"] | None = None,
) -> Iterator[dict[str, Any]]:
    """Rows of the cache from levels and their clicks.

    Args:
        hierarchy: K triples.
        clicks: One each.
        first: Number of the first click in its image.
        stability: Of every mask.
        quality: Of every mask.
    """
    unknown = torch.full_like(hierarchy.scores, torch.nan)
    counts = [rle["counts"] for rle in encode_rle(hierarchy.masks.flatten(0, 1))]
    height, width = hierarchy.masks.shape[-2:]
    columns = {
        "score": hierarchy.scores,
        "stability": unknown if stability is None else stability,
        "quality": unknown if quality is None else quality,
        "token_index": hierarchy.token_index,
        "distinct": hierarchy.distinct,
        "valid": hierarchy.valid,
    }
    listed = {name: values.tolist() for name, values in columns.items()}
    for k, (x, y) in enumerate(clicks.points_xy.tolist()):
        truth = None if clicks.truth is None else clicks.truth[k]
        agreement = [np.nan] * 3 if truth is None else _agreement(hierarchy.masks[k], decode_rle(truth))
        yield {
            "prompt": first + k,
            "height": height,
            "width": width,
            "x": x,
            "y": y,
            "counts": counts[3 * k : 3 * k + 3],
            "truth": None if truth is None else truth["counts"],
            "truth_iou": agreement,
            **{name: values[k] for name, values in listed.items()},
        }


def _agreement(levels: Bool[Tensor, "3 H W"], truth: Bool[Tensor, "H W"]) -> list[float]:
    iou: list[float] = mask_iou(levels.cpu(), truth.expand_as(levels)).tolist()
    return iou


@dataclass(frozen=True)
class CacheReport:
    """What became of a build.

    Attributes:
        plan: What the cache holds.
        num_samples: Rows, one a click.
        num_valid: Of these, with two levels at least.
        num_new_shards: How many this run computed.
        faults: Images that could not be done, and why.
    """

    plan: CachePlan
    num_samples: int
    num_valid: int
    num_new_shards: int
    faults: tuple[tuple[str, str], ...]


def build_cache(
    source: LevelSource,
    images: Sequence[Path],
    folder: str | Path,
    *,
    images_per_shard: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> CacheReport:
    """Compute the levels of every click of every image, and write them; finished shards are kept when run again.

    An image that can't be used is listed in its shard, and the rest is done.

    Args:
        source: What makes the levels.
        images: Files, each once.
        folder: Where the cache goes; made if missing.
        images_per_shard: Images a Parquet file.
        progress: Called with (images done, images in all).

    Returns:
        What is in the cache now.

    Raises:
        InputError: No image, or a shard of none.
        DataError: The folder holds a cache of other images, clicks or weights.
        OutputError: It can't be written.
    """
    import pyarrow.parquet as pq

    if not images or images_per_shard < 1:
        raise InputError(explain(f"{len(images)} images, {images_per_shard} a shard", "at least one of each"))
    folder = Path(folder)
    paths = [Path(path).absolute() for path in images]
    root = Path(commonpath([path.parent for path in paths]))
    names = [path.relative_to(root).as_posix() for path in paths]
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
    _claim(folder, plan)
    samples = valid = new = 0
    faults: list[tuple[str, str]] = []
    for number in range(plan.num_shards):
        path = shard_path(folder, number)
        some = range(number * images_per_shard, min((number + 1) * images_per_shard, len(paths)))
        if not path.is_file():
            rows: list[dict[str, Any]] = []
            failed: list[tuple[str, str]] = []
            for index in some:
                try:
                    made = list(source.rows(paths[index], load_image(paths[index])))
                except ArrcocSamError as error:
                    failed.append((names[index], str(error)))
                else:
                    rows += [{"image": names[index], "image_number": index, **row} for row in made]
                if progress is not None:
                    progress(index + 1, len(paths))
            write_shard(path, rows, failed)
            new += 1
        elif progress is not None:
            progress(some.stop, len(paths))
        flags = pq.read_table(path, columns=["valid"])["valid"].to_numpy()
        samples, valid = samples + len(flags), valid + int(flags.sum())
        faults += read_faults(path)
    return CacheReport(plan, samples, valid, new, tuple(faults))


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
                "the same images, clicks and weights",
                "name another folder, or delete this one",
            )
        )
