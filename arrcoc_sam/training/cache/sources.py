"""What makes the levels of a hierarchy cache: a segmenter's answers to clicks, or masks that people drew."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray
from torch import Tensor

from arrcoc_sam.datasets import CocoDataset, CocoImage
from arrcoc_sam.errors import DataError, explain
from arrcoc_sam.hierarchy import MaskHierarchy
from arrcoc_sam.masks import decode_rle, encode_rle, mask_iou
from arrcoc_sam.prompts import Prompts
from arrcoc_sam.quality import MaskQualityEstimator
from arrcoc_sam.segmenters.base import Segmenter
from arrcoc_sam.training.cache.prompts import Clicks, GridPrompts, PromptPlan
from arrcoc_sam.training.cache.records import names_digest

__all__ = ["CheckedSource", "LevelSource", "SegmenterLevels", "TruthLevels", "level_rows"]

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


@runtime_checkable
class CheckedSource(LevelSource, Protocol):
    """A source of levels that can tell whether an image is of use without making its levels."""

    def check(self, path: Path, image: UInt8[ndarray, "H W 3"]) -> None:
        """Raise what :meth:`rows` would, as far as the image's size and its clicks go.

        Raises:
            ArrcocSamError: The image or its clicks can't be used.
        """
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

    def check(self, path: Path, image: UInt8[ndarray, "H W 3"]) -> None:
        """See that there are clicks, and that the segmenter takes the size; nothing is encoded.

        Raises:
            ArrcocSamError: The image or its clicks can't be used.
        """
        size_hw = (image.shape[0], image.shape[1])
        if len(self.prompts.on(path, size_hw).points_xy):
            self.segmenter.transform_for(size_hw)

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
            quality = None
            if self._estimator is not None:
                scored = self._estimator.estimate(embedding, hierarchy.masks.flatten(0, 1))
                quality = scored.quality.reshape(-1, 3)
            yield from level_rows(
                hierarchy,
                Clicks(points, None if clicks.truth is None else clicks.truth[some]),
                first=start,
                stability=candidates.stability_of(hierarchy),
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

    def check(self, path: Path, image: UInt8[ndarray, "H W 3"]) -> None:
        """See that the file knows the picture, and its size.

        Raises:
            DataError: It does not know the picture, or gives it another size.
        """
        self._record(path, image)

    def rows(self, path: Path, image: UInt8[ndarray, "H W 3"]) -> Iterator[dict[str, Any]]:
        """One row a triple; none for an image without nested masks.

        Raises:
            DataError: The file does not know the picture, or gives it another size.
        """
        levels = self.dataset.hierarchies(self._record(path, image))
        if levels is not None:
            yield from level_rows(levels[0], Clicks(levels[1]))

    def _record(self, path: Path, image: UInt8[ndarray, "H W 3"]) -> CocoImage:
        found = self.dataset.find(path)
        if found is None:
            raise DataError(explain(f"{self.dataset.path} has no image {path.name}", "annotations for every image"))
        if found.size_hw != image.shape[:2]:
            raise DataError(explain(f"{path.name} has height and width {image.shape[:2]}", f"{found.size_hw}"))
        return found


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
