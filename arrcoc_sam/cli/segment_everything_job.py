"""``segment --everything`` from checked inputs to masks and their tree on disk or on stdout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from arrcoc_sam.cli.analysis_inputs import about
from arrcoc_sam.cli.console import noted
from arrcoc_sam.cli.orientation import note_orientation
from arrcoc_sam.cli.segment_setting import SegmentSetting
from arrcoc_sam.cli.stage_progress import stage_progress
from arrcoc_sam.cli.staging import staged_folder
from arrcoc_sam.errors import InputError, explain
from arrcoc_sam.images import load_image
from arrcoc_sam.report.forest_plots import plot_forest
from arrcoc_sam.report.json_text import json_document
from arrcoc_sam.report.writing import write_text
from arrcoc_sam.segmenters.everything.generator import AutomaticMaskGenerator
from arrcoc_sam.segmenters.everything.masks import AutomaticMasks

__all__ = ["SegmentEverythingJob", "refuse_without_everything"]


def refuse_without_everything(given: Mapping[str, object]) -> None:
    """Refuse options that only ``--everything`` uses.

    Args:
        given: Option by name, None where it was not given.

    Raises:
        InputError: One was given.
    """
    names = [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]
    if names:
        came = f"{', '.join(names)} without --everything"
        raise InputError(explain(came, "--everything, which alone uses such options", "add it, or leave them out"))


@dataclass(frozen=True)
class SegmentEverythingJob:
    """Everything that ``segment --everything`` was told; :meth:`run` does it."""

    setting: SegmentSetting
    image: Path
    prompted: bool
    points_per_side: int = 32
    min_predicted_iou: float = 0.88
    min_stability: float = 0.95
    box_nms_iou: float = 0.7
    crop_layers: int = 0
    crop_points_downscale: int = 1
    min_region_area: int = 100
    exact: bool = False

    def run(self) -> None:
        """Segment and write.

        Raises:
            ArrcocSamError: Bad input; nothing is written then.
        """
        if self.prompted:
            came = "--everything with --point, --box, --points-file or --refine"
            raise InputError(explain(came, "one or the other"))
        self.setting.check(only_json="--everything")
        with about(self.image):
            pixels = load_image(self.image)
            note_orientation([self.image], "clicks and masks")
        segmenter = self.setting.open()
        generator = AutomaticMaskGenerator(
            segmenter,
            points_per_side=self.points_per_side,
            min_predicted_iou=self.min_predicted_iou,
            min_stability=self.min_stability,
            box_nms_iou=self.box_nms_iou,
            num_crop_layers=self.crop_layers,
            crop_points_downscale=self.crop_points_downscale,
            min_region_area=self.min_region_area,
            exact=self.exact,
        )
        with about(self.image), stage_progress() as report:
            found = generator.generate(pixels, on_progress=lambda done, total: report("clicks", done, total))
        record = {
            "image": str(self.image),
            "size_hw": list(found.size_hw),
            "masks": list(found.records),
            **self.setting.provenance(segmenter),
        }
        written = self._write(record, found, pixels)
        if not len(found):
            noted(
                f"no mask is predicted better than {self.min_predicted_iou:g} and at least {self.min_stability:g} "
                "stable; lower --min-predicted-iou and --min-stability (tiny: .3 and .3)"
            )
        self.setting.print(record, f"{len(found)} masks", written)

    def _write(self, record: dict[str, Any], found: AutomaticMasks, pixels: UInt8[np.ndarray, "H W 3"]) -> list[Path]:
        """The masks in a file, or in a folder beside their tree; answers the files."""
        target, document = self.setting.out, json_document(record)
        if target is None:
            return []
        if target.suffix.lower() == ".json":
            return [write_text(target, document)]
        forest, stem = found.forest(), self.image.stem
        names = [f"{stem}.json", f"{stem}-forest.json", f"{stem}-forest.png"]
        with staged_folder(target) as folder:
            (folder / names[0]).write_text(document, encoding="utf-8")
            (folder / names[1]).write_text(forest.to_json(indent=2) + "\n", encoding="utf-8")
            plot_forest(pixels, forest, title=self.image.name).savefig(folder / names[2])
        return [target / name for name in names]
