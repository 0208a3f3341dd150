"""A row of a hierarchy cache as a sample: masks on the grid, the picture in its frame, what counts and how much."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from numpy import ndarray
from torch import Tensor

from arrcoc_sam.errors import DataError, InputError, explain
from arrcoc_sam.hierarchy.levels import relate_levels
from arrcoc_sam.images import load_image
from arrcoc_sam.inputs import as_count, as_size
from arrcoc_sam.masks.rle import rle_intersections, run_lengths
from arrcoc_sam.training.cache.grids import rle_to_grid
from arrcoc_sam.training.samples import AttentionSample
from arrcoc_sam.training.samples_pictures import to_frame
from arrcoc_sam.training.samples_supervision import MaskTriple, Supervision, supervision

__all__ = ["SampleReader", "not_finite"]

_PICTURES_KEPT = 1 << 28  # bytes of resized pictures that a reader remembers


class SampleReader:
    """Turns a row of the cache into a sample.

    Args:
        root: The folder that image names are relative to.
        target_hw: Rows and columns of the targets.
        image_size: Side of the square that pictures are resized to; None reads no pictures.
        teach: Which mask teaches which level; the hierarchy by default.
        min_quality: Levels of a lower quality, in [0, 1], do not count; for caches that were built with it.

    Raises:
        InputError: A number out of its range.
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
        image_size = None if image_size is None else as_count(image_size, "image_size")
        if min_quality is not None and not 0 <= min_quality <= 1:
            raise InputError(explain(f"min_quality={min_quality}", "a quality in [0, 1], or None"))
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
            raise not_finite(row, taught.confidence.tolist())
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


def _counted(row: Mapping[str, Any], masks: Sequence[Mapping[str, Any]]) -> Bool[ndarray, " 3"]:
    """Which levels are distinct and nested. The cache says which are distinct and whether two are both.

    Caches are built with the usual thresholds.
    """
    distinct = np.array(row["distinct"], dtype=bool)
    if row["valid"] and distinct.sum() == 2:
        return distinct
    counted: ndarray = relate_levels(rle_intersections(masks)[None]).counted[0].numpy()
    return counted


def not_finite(row: Mapping[str, Any], confidence: Sequence[float]) -> DataError:
    """What is said of a row whose levels can't be weighed."""
    came = f"{row['image']}, click ({row['x']:g}, {row['y']:g}): confidence {list(confidence)}"
    return DataError(explain(came, "finite numbers", "build the cache again with weights that are finite"))
