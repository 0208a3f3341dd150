"""``segment --points-file``: many prompts, on one image or many, to masks on disk or on stdout."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

import torch

from arrcoc_sam.attention.maps import as_points
from arrcoc_sam.candidates import MaskCandidates
from arrcoc_sam.cli.analysis_inputs import about
from arrcoc_sam.cli.granularity_run import LevelScores
from arrcoc_sam.cli.orientation import note_orientation
from arrcoc_sam.cli.segment_boxes import check_corners
from arrcoc_sam.cli.segment_records import box_or_none, level_records, number_or_none
from arrcoc_sam.cli.segment_setting import SegmentSetting
from arrcoc_sam.errors import ArrcocSamError, DataError, InputError, explain
from arrcoc_sam.images import load_image
from arrcoc_sam.masks import areas, encode_rle, mask_boxes
from arrcoc_sam.prompts import Prompts
from arrcoc_sam.report.json_text import json_document
from arrcoc_sam.report.writing import write_text
from arrcoc_sam.segmenters.base import Segmenter
from arrcoc_sam.segmenters.prompt_answers import answer_prompts

__all__ = ["SegmentPromptsJob"]


@dataclass(frozen=True)
class SegmentPromptsJob:
    """Everything that ``segment --points-file`` was told; :meth:`run` does it."""

    setting: SegmentSetting
    image: Path
    points_file: Path
    prompted: bool

    def run(self) -> None:
        """Segment and write.

        Raises:
            ArrcocSamError: Bad input; nothing is written then.
        """
        if self.prompted:
            came = "--points-file with --point, --box or --refine"
            raise InputError(explain(came, "one or the other", "put all prompts into the file"))
        self.setting.check(only_json="--points-file")
        asked = _read(self.points_file)
        by_image: dict[Path, list[int]] = {}
        for number, each in enumerate(asked):
            named = each.get("image")
            path = self.image if named is None else _beside(self.points_file, named)
            by_image.setdefault(path, []).append(number)
        prompts = _prompts(asked, by_image, self.points_file)
        note_orientation(by_image, "clicks and masks")
        segmenter = self.setting.open()
        answers = _answers(segmenter, prompts, by_image)
        record = {
            "prompts": [{"prompt": each, **answers[number]} for number, each in enumerate(asked)],
            **self.setting.provenance(segmenter),
        }
        written = []
        if (target := self.setting.out) is not None:
            target = target if target.suffix.lower() == ".json" else target / f"{self.points_file.stem}-masks.json"
            written = [write_text(target, json_document(record))]
        self.setting.print(record, f"{len(asked)} prompts on {len(by_image)} images", written)


def _beside(file: Path, named: str) -> Path:
    """A path relative to a file; folders may be parted by backslashes where no file is really called so."""
    path = file.parent / named
    return path if path.exists() or "\\" not in named else file.parent / PureWindowsPath(named).as_posix()


def _prompts(
    asked: Sequence[dict[str, Any]], by_image: Mapping[Path, Sequence[int]], points_file: Path
) -> dict[int, Prompts]:
    """All prompts by number, checked against their images before any work."""
    prompts: dict[int, Prompts] = {}
    for path, numbers in by_image.items():
        with about(path):
            size_hw = load_image(path).shape[:2]
        for number in numbers:
            try:
                prompts[number] = _prompt(asked[number], (size_hw[0], size_hw[1]))
            except ArrcocSamError as error:
                raise type(error)(f"prompt {number} of {points_file}: {error}") from error
    return prompts


def _answers(
    segmenter: Segmenter, prompts: Mapping[int, Prompts], by_image: Mapping[Path, Sequence[int]]
) -> dict[int, dict[str, Any]]:
    """Image and masks of every prompt by number, one image after another."""
    answers: dict[int, dict[str, Any]] = {}
    for path, numbers in by_image.items():
        with about(path), torch.no_grad():
            pixels = load_image(path)
            embedding = segmenter.encode(pixels)
            found = answer_prompts(segmenter, embedding, Prompts.cat(prompts[number] for number in numbers))
            for number, candidates in zip(numbers, found, strict=True):
                answers[number] = {"image": str(path), "size_hw": list(pixels.shape[:2]), **_masks(candidates)}
    return answers


def _read(path: Path) -> list[dict[str, Any]]:
    expected = 'a JSON list of {"points": [[x, y], …], "box": [x0, y0, x1, y1], "image": …}'
    try:
        asked = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(explain(f"{path} can't be read ({error.strerror or error})", expected)) from error
    except ValueError as error:
        raise DataError(explain(f"{path} is no JSON ({error})", expected)) from error
    if not isinstance(asked, list) or not asked or not all(isinstance(each, dict) for each in asked):
        raise DataError(explain(f"{path} holds something else", expected))
    for number, each in enumerate(asked):
        if unknown := sorted(set(each) - {"points", "box", "image"}):
            raise DataError(explain(f"prompt {number} of {path} has {', '.join(unknown)}", expected))
        if not isinstance(each.get("image", ""), str):
            raise DataError(explain(f"the image of prompt {number} of {path} is {each['image']!r}", "a file name"))
    return asked


def _prompt(asked: dict[str, Any], size_hw: tuple[int, int]) -> Prompts:
    points, box = asked.get("points") or [], asked.get("box")
    try:
        clicks = [(float(point[0]), float(point[1])) for point in points]
        labels = [point[2] if len(point) > 2 else 1 for point in points]
        corners = None if box is None else [float(side) for side in box]
    except (TypeError, ValueError, IndexError, KeyError) as error:
        came = json.dumps(asked)[:80]
        raise DataError(explain(came, '"points": [[x, y] or [x, y, label], …] and "box": [x0, y0, x1, y1]')) from error
    for label in labels:
        if label not in (0, 1):
            raise DataError(explain(f"the label {label!r}", "1 (foreground) or 0 (background)"))
    if corners is not None:
        check_corners(corners, size_hw)
    return Prompts(
        points_xy=as_points(clicks, size_hw)[None] if clicks else None,
        labels=torch.tensor([[int(label) for label in labels]]) if clicks else None,
        boxes_xyxy=None if corners is None else torch.tensor([corners], dtype=torch.float64),
    )


def _masks(candidates: MaskCandidates) -> dict[str, Any]:
    """Three masks sorted into levels, or one that is of no level, under the same names."""
    if len(candidates.token_index) > 1:
        found = LevelScores.of(candidates)
        return {"valid_hierarchy": bool(found.hierarchy.valid[0]), "masks": level_records(found)}
    mask = candidates.masks()[0]
    record = {
        "level": None,
        "distinct": None,
        "token_index": int(candidates.token_index[0]),
        "predicted_iou": float(candidates.predicted_iou[0, 0]),
        "stability": number_or_none(float(candidates.stability[0, 0])),
        "area": int(areas(mask)[0]),
        "box_xyxy": box_or_none(mask_boxes(mask)[0]),
        "segmentation": encode_rle(mask)[0],
    }
    return {"valid_hierarchy": None, "masks": [record]}
