"""``segment`` from checked inputs to masks on disk or on stdout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from arrcoc_sam.attention.maps import as_points
from arrcoc_sam.cli.analysis_inputs import about
from arrcoc_sam.cli.console import json_document, out, print_table
from arrcoc_sam.cli.coordinates import parse_box, parse_labelled_point
from arrcoc_sam.cli.granularity_run import LevelScores, find_levels
from arrcoc_sam.cli.segment_setting import SegmentSetting
from arrcoc_sam.cli.staging import staged_folder
from arrcoc_sam.errors import InputError, explain
from arrcoc_sam.hierarchy.levels import LEVELS
from arrcoc_sam.images import load_image
from arrcoc_sam.masks import mask_boxes
from arrcoc_sam.masks.rle import encode_rle
from arrcoc_sam.prompts import Prompts
from arrcoc_sam.report.writing import write_text
from arrcoc_sam.segmenters.base import Segmenter
from arrcoc_sam.segmenters.interactive import InteractiveSession

__all__ = ["SegmentJob"]


@dataclass(frozen=True)
class SegmentJob:
    """Everything that ``segment`` was told; :meth:`run` does it."""

    setting: SegmentSetting
    image: Path
    points: Sequence[str]
    box: str | None
    refine: int

    def run(self) -> None:
        """Segment and write.

        Raises:
            ArrcocSamError: Bad input; nothing is written then.
        """
        clicks = [parse_labelled_point(text) for text in self.points]
        box = None if self.box is None else parse_box(self.box)
        if not clicks and box is None:
            raise InputError(explain("neither --point nor --box", "one of them", "add --point x,y"))
        target = self.setting.out
        if self.setting.output_format == "png" and (target is None or target.suffix == ".json"):
            raise InputError(explain(f"--format png with --out {target}", "a folder", "name one with --out"))
        self.setting.check()
        with about(self.image):
            pixels = load_image(self.image)
            prompts = _prompts(pixels, clicks, box)
        segmenter = self.setting.open()
        with about(self.image):
            found = find_levels(segmenter, pixels, prompts)
        record = {
            "image": str(self.image),
            "size_hw": list(pixels.shape[:2]),
            "prompt": {
                "points_xy": [[x, y] for x, y, _ in clicks],
                "labels": [label for _, _, label in clicks],
                "box_xyxy": None if box is None else list(box),
            },
            "valid_hierarchy": bool(found.hierarchy.valid[0]),
            "masks": _masks(found),
            **({"refined": self._refined(segmenter, pixels, clicks, box)} if self.refine else {}),
            **self.setting.provenance(segmenter),
        }
        written = [] if target is None else self._write(target, record, found)
        if not self.setting.prints_record:
            _print_masks(record["masks"])
        self.setting.print(record, "", written)

    def _refined(
        self,
        segmenter: Segmenter,
        pixels: UInt8[np.ndarray, "H W 3"],
        clicks: Sequence[tuple[float, float, int]],
        box: tuple[float, float, float, float] | None,
    ) -> dict[str, Any]:
        """The one mask that is left when the best of the three is fed back."""
        session = InteractiveSession(segmenter, pixels)
        session.prompt([click[:2] for click in clicks], [click[2] for click in clicks], box)
        step = session.refine(self.refine)
        return {
            "rounds": self.refine,
            "token_index": step.token,
            "predicted_iou": step.predicted_iou,
            "stability": _number(float(step.candidates.stability)),
            "area": int(step.mask.sum()),
            "segmentation": encode_rle(step.mask),
        }

    def _write(self, target: Path, record: dict[str, Any], found: LevelScores) -> list[Path]:
        document = json_document(record)
        if target.suffix == ".json":
            return [write_text(target, document)]
        stem = self.image.stem
        with staged_folder(target) as folder:
            if self.setting.output_format == "json":
                names = [f"{stem}.json"]
                (folder / names[0]).write_text(document, encoding="utf-8")
            else:
                names = [f"{stem}-{level}.png" for level in LEVELS]
                for name, mask in zip(names, found.hierarchy.masks[0].cpu().numpy(), strict=True):
                    Image.fromarray(np.where(mask, np.uint8(255), np.uint8(0))).save(folder / name)
        return [target / name for name in names]


def _prompts(
    pixels: UInt8[np.ndarray, "H W 3"],
    clicks: Sequence[tuple[float, float, int]],
    box: tuple[float, float, float, float] | None,
) -> Prompts:
    """One prompt of everything that was given."""
    size_hw = (pixels.shape[0], pixels.shape[1])
    if box is not None:
        as_points([box[:2], box[2:]], size_hw)  # corners lie inside the image, as clicks do
    return Prompts(
        points_xy=as_points([click[:2] for click in clicks], size_hw)[None] if clicks else None,
        labels=torch.tensor([[click[2] for click in clicks]]) if clicks else None,
        boxes_xyxy=None if box is None else torch.tensor([box], dtype=torch.float64),
    )


def _masks(found: LevelScores) -> list[dict[str, Any]]:
    hierarchy = found.hierarchy
    boxes, runs = mask_boxes(hierarchy.masks[0]), encode_rle(hierarchy.masks[0])
    return [
        {
            "level": level,
            "distinct": bool(hierarchy.distinct[0, i]),
            "token_index": int(hierarchy.token_index[0, i]),
            "predicted_iou": float(hierarchy.scores[0, i]),
            "stability": _number(float(found.stability[0, i])),
            "area": int(hierarchy.areas[0, i]),
            "box_xyxy": None if boxes[i].isnan().any() else boxes[i].tolist(),
            "segmentation": runs[i],
        }
        for i, level in enumerate(LEVELS)
    ]


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if np.isnan(value) else value


def _print_masks(masks: Sequence[dict[str, Any]]) -> None:
    columns = ["level", "predicted IoU", "stability", "area, px", "distinct"]
    rows = [
        (
            str(mask["level"]),
            f"{mask['predicted_iou']:.3f}",
            "–" if mask["stability"] is None else f"{mask['stability']:.3f}",
            f"{mask['area']:,}",
            "yes" if mask["distinct"] else "no",
        )
        for mask in masks
    ]
    print_table("Masks", columns, rows, to=out(), right=columns[1:4])
