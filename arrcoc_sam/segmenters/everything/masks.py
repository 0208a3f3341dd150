"""AutomaticMasks: what the automatic mode found in an image, as segment-anything's records."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypedDict, cast

import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from arrcoc_sam.errors import DataError, explain, listed
from arrcoc_sam.hierarchy import MaskForest
from arrcoc_sam.hierarchy.levels import NESTED_SHARE
from arrcoc_sam.inputs import RecordKind, as_records, as_size, parsed_json
from arrcoc_sam.masks import RLE, decode_rle
from arrcoc_sam.masks.rle import run_lengths

__all__ = ["AutomaticMasks", "MaskRecord"]


class MaskRecord(TypedDict):
    """One mask, with the fields of ``SamAutomaticMaskGenerator(output_mode="coco_rle")``, ready for JSON."""

    segmentation: RLE
    """COCO's compressed run lengths at the image's size."""
    area: int
    """Pixels."""
    bbox: list[int]
    """X, Y, width and height between the mask's outermost pixels: one column is 0 wide."""
    predicted_iou: float
    """The model's own, raw."""
    point_coords: list[list[float]]
    """The click [[x, y]] that the mask answers."""
    stability_score: float
    """Share of the mask that stays when its threshold moves by the offset."""
    crop_box: list[int]
    """X, Y, width and height of the crop that it was found in."""


_KINDS: dict[str, RecordKind] = dict.fromkeys(MaskRecord.__annotations__, "any")
_KINDS |= {"area": "whole number", "predicted_iou": "finite number", "stability_score": "finite number"}


@dataclass(frozen=True, eq=False)
class AutomaticMasks:
    """The masks of one image, best first within each crop.

    Attributes:
        size_hw: Height and width of the image.
        records: One a mask.
    """

    size_hw: tuple[int, int]
    records: tuple[MaskRecord, ...]

    def __repr__(self) -> str:
        """How many, and of what size, instead of all the run lengths."""
        return f"AutomaticMasks({len(self)} masks; {self.size_hw[0]} x {self.size_hw[1]} pixels)"

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> MaskRecord:
        return self.records[index]

    def __iter__(self) -> Iterator[MaskRecord]:
        return iter(self.records)

    @property
    def scores(self) -> Float32[Tensor, " N"]:
        """(N,) raw predicted IoU."""
        return torch.tensor([record["predicted_iou"] for record in self.records], dtype=torch.float32)

    def masks(self) -> Bool[Tensor, "N H W"]:
        """All masks, decoded."""
        if not self.records:
            return torch.zeros(0, *self.size_hw, dtype=torch.bool)
        masks: Tensor = decode_rle([record["segmentation"] for record in self.records])
        return masks

    def forest(self, *, duplicate_iou: float | None = 0.9, nested_share: float = NESTED_SHARE) -> MaskForest:
        """The masks joined by containment: :meth:`arrcoc_sam.hierarchy.MaskForest.from_masks`."""
        return MaskForest.from_masks(self.masks(), self.scores, duplicate_iou=duplicate_iou, nested_share=nested_share)

    def to_json(self, *, indent: int | None = None) -> str:
        """The records as a JSON array, such as ``amg.py`` of segment-anything writes it; :meth:`from_json` reads it.

        The size of an image without masks is lost.
        """
        return json.dumps(list(self.records), indent=indent, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes, *, size_hw: tuple[int, int] | None = None) -> AutomaticMasks:
        """What :meth:`to_json` wrote, ``amg.py --convert-to-rle`` of segment-anything, or ``segment --everything``.

        Args:
            text: The JSON.
            size_hw: Height and width of the image, where there are no masks whose run lengths tell.

        Raises:
            DataError: No JSON of masks of one size, or none at all and no ``size_hw``.
            InputError: ``size_hw`` is no size.
        """
        document = parsed_json(text, "text")
        if isinstance(document, dict) and {"size_hw", "masks"} <= document.keys():
            size_hw, document = document["size_hw"] if size_hw is None else size_hw, document["masks"]
        records = as_records(document, _KINDS, "the masks")
        sizes = set() if size_hw is None else {as_size(size_hw, "size_hw")}
        for number, record in enumerate(records):
            try:
                sizes.add(run_lengths(record["segmentation"])[0])
            except DataError as error:
                raise DataError(f"mask {number}: {error}") from error
        if len(sizes) != 1:
            came = f"{len(records)} masks of sizes {listed([f'{h} x {w}' for h, w in sorted(sizes)])}"
            raise DataError(explain(came, "masks of one image", None if sizes else "say its size as size_hw"))
        return cls(sizes.pop(), tuple(cast(MaskRecord, record) for record in records))
