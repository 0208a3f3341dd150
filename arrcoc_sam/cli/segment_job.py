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
from arrcoc_sam.cli.console import out, print_table
from arrcoc_sam.cli.coordinates import parse_box, parse_labelled_point
from arrcoc_sam.cli.granularity_run import LevelScores, find_levels
from arrcoc_sam.cli.orientation import note_orientation
from arrcoc_sam.cli.segment_boxes import check_corners
from arrcoc_sam.cli.segment_records import level_records, number_or_none
from arrcoc_sam.cli.segment_setting import SegmentSetting
from arrcoc_sam.cli.staging import staged_folder
from arrcoc_sam.errors import InputError, explain
from arrcoc_sam.hierarchy.levels import LEVELS
from arrcoc_sam.images import load_image
from arrcoc_sam.masks.rle import encode_rle
from arrcoc_sam.prompts import Prompts
from arrcoc_sam.report.json_text import json_document
from arrcoc_sam.report.writing import write_text
from arrcoc_sam.segmenters.base import Segmenter
from arrcoc_sam.segmenters.interactive import InteractiveSession, InteractiveStep

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
            raise InputError(
                explain(
                    "neither --point nor --box", "one of them", "add --point x,y; or --everything, or --points-file"
                )
            )
        target = self.setting.out
        if self.setting.output_format == "png" and (target is None or target.suffix.lower() == ".json"):
            came = f"--format png {'without --out' if target is None else f'with --out {target}'}"
            raise InputError(explain(came, "a folder", "name one with --out"))
        self.setting.check()
        with about(self.image):
            pixels = load_image(self.image)
            note_orientation([self.image], "clicks and masks")
            prompts = _prompts(pixels, clicks, box)
        segmenter = self.setting.open()
        refined: InteractiveStep | None = None
        with about(self.image):
            if self.refine:
                found, refined = _refine(segmenter, pixels, (clicks, box), self.refine)
            else:
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
            "masks": level_records(found),
            **({} if refined is None else {"refined": _refined(refined, self.refine)}),
            **self.setting.provenance(segmenter),
        }
        written = [] if target is None else self._write(target, record, found, refined)
        if not self.setting.prints_record:
            _print_masks(record["masks"], record.get("refined"))
        self.setting.print(record, "", written)

    def _write(
        self, target: Path, record: dict[str, Any], found: LevelScores, refined: InteractiveStep | None
    ) -> list[Path]:
        document = json_document(record)
        if target.suffix.lower() == ".json":
            return [write_text(target, document)]
        stem = self.image.stem
        with staged_folder(target) as folder:
            if self.setting.output_format == "json":
                names = [f"{stem}.json"]
                (folder / names[0]).write_text(document, encoding="utf-8")
            else:
                masks = dict(zip(LEVELS, found.hierarchy.masks[0], strict=True))
                if refined is not None:
                    masks["refined"] = refined.mask
                names = [f"{stem}-{name}.png" for name in masks]
                for name, mask in zip(names, masks.values(), strict=True):
                    picture = np.where(mask.cpu().numpy(), np.uint8(255), np.uint8(0))
                    Image.fromarray(picture).save(folder / name)
        return [target / name for name in names]


def _refine(
    segmenter: Segmenter,
    pixels: UInt8[np.ndarray, "H W 3"],
    asked: tuple[Sequence[tuple[float, float, int]], tuple[float, float, float, float] | None],
    rounds: int,
) -> tuple[LevelScores, InteractiveStep]:
    """The three levels, and the one mask that is left when the best of the three is fed back; one encoding."""
    clicks, box = asked
    session = InteractiveSession(segmenter, pixels)
    first = session.prompt([click[:2] for click in clicks], [click[2] for click in clicks], box)
    return LevelScores.of(first.candidates), session.refine(rounds)


def _refined(step: InteractiveStep, rounds: int) -> dict[str, Any]:
    """The refined mask for the record."""
    return {
        "rounds": rounds,
        "token_index": step.token,
        "predicted_iou": step.predicted_iou,
        "stability": number_or_none(float(step.candidates.stability)),
        "area": int(step.mask.sum()),
        "segmentation": encode_rle(step.mask),
    }


def _prompts(
    pixels: UInt8[np.ndarray, "H W 3"],
    clicks: Sequence[tuple[float, float, int]],
    box: tuple[float, float, float, float] | None,
) -> Prompts:
    """One prompt of everything that was given."""
    size_hw = (pixels.shape[0], pixels.shape[1])
    if box is not None:
        check_corners(box, size_hw)
    return Prompts(
        points_xy=as_points([click[:2] for click in clicks], size_hw)[None] if clicks else None,
        labels=torch.tensor([[click[2] for click in clicks]]) if clicks else None,
        boxes_xyxy=None if box is None else torch.tensor([box], dtype=torch.float64),
    )


def _print_masks(masks: Sequence[dict[str, Any]], refined: dict[str, Any] | None) -> None:
    columns = ["level", "predicted IoU", "stability", "area, px", "distinct"]
    rows = [
        (
            str(mask.get("level", "refined")),
            f"{mask['predicted_iou']:.3f}",
            "–" if mask["stability"] is None else f"{mask['stability']:.3f}",
            f"{mask['area']:,}",
            {True: "yes", False: "no", None: "–"}[mask.get("distinct")],
        )
        for mask in (*masks, *([] if refined is None else [refined]))
    ]
    print_table("Masks", columns, rows, to=out(), right=columns[1:4])
