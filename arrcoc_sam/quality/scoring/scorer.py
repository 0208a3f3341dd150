"""Tables of masks to tables of scores: the step that runs on one machine or on a hundred, always the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, UInt8
from torch import Tensor

from arrcoc_sam.datasets.folder import read_mask_file
from arrcoc_sam.errors import ArrcocSamError, DataError, explain
from arrcoc_sam.images import load_image
from arrcoc_sam.masks import decode_rle
from arrcoc_sam.quality.estimator import MaskQualityEstimator

__all__ = ["SCORE_FIELDS", "MaskScorer", "read_mask", "score_schema"]

SCORE_FIELDS = pa.schema(
    {
        "area": pa.int64(),
        "quality": pa.float32(),
        "quality_kind": pa.string(),
        "lower_bound": pa.float32(),
        "upper_bound": pa.float32(),
        "interval_low": pa.float32(),
        "interval_high": pa.float32(),
        "predicted_iou": pa.float32(),
        "alignment_iou": pa.float32(),
        "stability": pa.float32(),
        "soft_iou": pa.float32(),
        "token_index": pa.int32(),
        "area_share": pa.float32(),
        "num_components": pa.int32(),
        "object_score": pa.float32(),
    }
)
"""The area in pixels and the fields of :class:`MaskQuality`; null where they are NaN or not there."""

# Images that are encoded together, their pixels, and pixels of masks that are decoded together.
_IMAGES, _IMAGE_PIXELS, _MASK_PIXELS = 8, 1 << 24, 1 << 25


def score_schema(records: pa.Schema) -> pa.Schema:
    """The columns of scores of such records: what the mask is, its scores, and ``error`` where it has none."""
    about = [records.field(name) for name in records.names if name not in ("counts", "mask_file", "error")]
    return pa.schema([*about, *SCORE_FIELDS, records.field("error")])


@dataclass(frozen=True)
class MaskScorer:
    """Scores records of masks: every image is read and encoded once, masks are drawn a few at a time.

    Attributes:
        estimator: Scores the masks; make it with ``keep_masks=False``.
        images: The folder that names of images are relative to.
        masks: The folder that names of mask files are relative to, where there are any.
        on_image: Called with the name of each image that has a mask with scores, once they are there.
    """

    estimator: MaskQualityEstimator
    images: Path
    masks: Path | None = None
    on_image: Callable[[str], None] | None = None

    def score(self, records: pa.Table) -> pa.Table:
        """Score a table of masks.

        Args:
            records: Of :func:`~arrcoc_sam.datasets.mask_index.record_schema`, the masks of an image one after the
                other.

        Returns:
            A row for every row, in the same order, of :func:`score_schema`. What can't be read, or is answered with
            NaN, has no scores, and the reason as ``error``.
        """
        rows = records.to_pylist()
        scores: list[dict[str, Any]] = [{"error": row["error"]} for row in rows]
        window: list[tuple[UInt8[np.ndarray, "_ _ 3"], list[int]]] = []
        for members in _by_image(rows):
            try:
                pixels = self._pixels(rows[members[0]])
            except ArrcocSamError as error:
                for row in members:
                    scores[row]["error"] = str(error)
                continue
            held = sum(other.size for other, _ in window) + pixels.size
            if window and (len(window) == _IMAGES or held > 3 * _IMAGE_PIXELS):
                self._score_window(window, rows, scores)
                window = []
            window.append((pixels, members))
        if window:
            self._score_window(window, rows, scores)
        if self.on_image is not None:
            for members in _by_image(rows):
                if any(scores[row]["error"] is None for row in members):
                    self.on_image(rows[members[0]]["image"])
        schema = score_schema(records.schema)
        about = [records[name] for name in schema.names if name in records.column_names and name != "error"]
        fields = [*SCORE_FIELDS, schema.field("error")]
        found = [pa.array([row.get(f.name) for row in scores], f.type, from_pandas=True) for f in fields]
        return pa.table([*about, *found], schema=schema)

    def faults(self, records: Sequence[Mapping[str, Any]]) -> list[str | None]:
        """Why each record can't be scored; None where it can be read. Nothing is encoded.

        Args:
            records: As of a table for :meth:`score`.
        """
        found: list[str | None] = [row["error"] for row in records]
        for members in _by_image(records):
            try:
                height, width, _ = self._pixels(records[members[0]]).shape
            except ArrcocSamError as error:
                for row in members:
                    found[row] = str(error)
                continue
            for row in members:
                try:
                    self._mask(records[row], (height, width))
                except ArrcocSamError as error:
                    found[row] = str(error)
        return found

    def could_not_read(self, image: str, error: str) -> bool:
        """Whether an error that was listed says that this image could not be read: that begins with its path."""
        return image != "" and error.startswith(str(self.images / image))

    def can_read(self, image: str) -> bool:
        """Whether an image can be read now, and is of a size that the segmenter takes."""
        try:
            self._pixels({"image": image})
        except ArrcocSamError:
            return False
        return True

    @property
    def nan_fault(self) -> str:
        """What is said of a mask that the segmenter answers with NaN."""
        came = f"{self.estimator.segmenter.name} answers NaN for this mask"
        return explain(came, "numbers", "check its weights, or score in float32")

    def _score_window(
        self,
        window: Sequence[tuple[UInt8[np.ndarray, "_ _ 3"], list[int]]],
        rows: Sequence[Mapping[str, Any]],
        scores: list[dict[str, Any]],
    ) -> None:
        """Score the masks of a few images into ``scores``."""
        embedding = self.estimator.segmenter.encode([pixels for pixels, _ in window])
        sizes = [(pixels.shape[0], pixels.shape[1]) for pixels, _ in window]
        waiting: list[tuple[int, int, Bool[Tensor, "_ _"]]] = []
        held = 0
        for image, (_, members) in enumerate(window):
            for row in members:
                try:
                    mask = self._mask(rows[row], sizes[image])
                except ArrcocSamError as error:
                    scores[row]["error"] = str(error)
                    continue
                if waiting and held + mask.numel() > _MASK_PIXELS:
                    self._score_masks(embedding, waiting, scores)
                    waiting, held = [], 0
                waiting.append((row, image, mask))
                held += mask.numel()
        if waiting:
            self._score_masks(embedding, waiting, scores)

    def _score_masks(
        self, embedding: Any, waiting: Sequence[tuple[int, int, Bool[Tensor, "_ _"]]], scores: list[dict[str, Any]]
    ) -> None:
        masks = [mask for _, _, mask in waiting]
        quality = self.estimator.estimate(embedding, masks, image_index=[image for _, image, _ in waiting])
        for (row, _, mask), values in zip(waiting, quality.to_frame().to_dict("records"), strict=True):
            if np.isnan(values["quality"]):
                scores[row]["error"] = self.nan_fault
                continue
            scores[row] |= {str(name): value for name, value in values.items()} | {"area": int(mask.sum())}

    def _pixels(self, row: Mapping[str, Any]) -> UInt8[np.ndarray, "_ _ 3"]:
        """The image of a record, of a size that the segmenter takes."""
        pixels = load_image(self.images / row["image"])
        self.estimator.segmenter.transform_for((pixels.shape[0], pixels.shape[1]))
        return pixels

    def _mask(self, row: Mapping[str, Any], size_hw: tuple[int, int]) -> Bool[Tensor, "H W"]:
        mask = read_mask(row, self.masks)
        if tuple(mask.shape) != size_hw:
            came, mend = f"the mask has height {mask.shape[0]} and width {mask.shape[1]}", "bring it to that size"
            expected = f"those of {row['image']}, upright: {size_hw[0]} and {size_hw[1]}"
            if tuple(mask.shape)[::-1] == size_hw:
                came += ", as if drawn on the picture before its EXIF orientation"
                mend = "turn the mask upright with the picture, or take the orientation out of its EXIF data"
            raise DataError(explain(came, expected, mend))
        return mask


def read_mask(record: Mapping[str, Any], masks: Path | None) -> Bool[Tensor, "H W"]:
    """The mask of a record.

    Args:
        record: A row of :func:`~arrcoc_sam.datasets.mask_index.record_schema`.
        masks: The folder that names of mask files are relative to, where there are any.

    Raises:
        DataError: Its run lengths do not add up, or its file is no mask.
        ImageReadError: Its file can't be read.
    """
    if record["mask_file"] is None:
        return decode_rle({"size": [record["height"], record["width"]], "counts": record["counts"]})
    if masks is None:
        raise DataError(explain(f"the mask file {record['mask_file']} without a folder of masks", "a folder"))
    return read_mask_file(masks / record["mask_file"])


def _by_image(rows: Sequence[Mapping[str, Any]]) -> Iterator[list[int]]:
    """The rows of each image that have no error yet."""
    for _, members in groupby(range(len(rows)), key=lambda row: rows[row]["image_id"]):
        usable = [row for row in members if rows[row]["error"] is None]
        if usable:
            yield usable
