"""``segment --everything`` from checked inputs to masks and their tree on disk or on stdout."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from arrcoc_sam.cli.analysis_inputs import about
from arrcoc_sam.cli.console import out, print_json
from arrcoc_sam.cli.options import check_segmenter, open_segmenter
from arrcoc_sam.cli.stage_progress import stage_progress
from arrcoc_sam.cli.staging import staged_folder
from arrcoc_sam.errors import InputError, explain
from arrcoc_sam.images import load_image
from arrcoc_sam.report import Provenance
from arrcoc_sam.report.forest_plots import plot_forest
from arrcoc_sam.report.writing import write_text
from arrcoc_sam.segmenters.everything import AutomaticMaskGenerator

__all__ = ["SegmentEverythingJob"]


@dataclass(frozen=True)
class SegmentEverythingJob:
    """Everything that ``segment --everything`` was told; :meth:`run` does it."""

    image: Path
    prompted: bool
    points_per_side: int
    min_predicted_iou: float
    min_stability: float
    crop_layers: int
    exact: bool
    segmenter: str
    checkpoint: Path | None
    device: str
    out: Path | None
    output_format: str
    as_json: bool
    command: str

    def run(self) -> None:
        """Segment and write.

        Raises:
            ArrcocSamError: Bad input; nothing is written then.
        """
        if self.prompted:
            came = "--everything with --point, --box, --points-file or --refine"
            raise InputError(explain(came, "one or the other"))
        if self.output_format == "png":
            raise InputError(explain("--format png with --everything", "json, which holds masks as run lengths"))
        check_segmenter(self.segmenter)
        with about(self.image):
            pixels = load_image(self.image)
        segmenter = open_segmenter(self.segmenter, self.checkpoint, self.device)
        generator = AutomaticMaskGenerator(
            segmenter,
            points_per_side=self.points_per_side,
            min_predicted_iou=self.min_predicted_iou,
            min_stability=self.min_stability,
            num_crop_layers=self.crop_layers,
            exact=self.exact,
        )
        with about(self.image), stage_progress() as report:
            found = generator.generate(pixels, on_progress=lambda done, total: report("clicks", done, total))
        record = {
            "image": str(self.image),
            "size_hw": list(found.size_hw),
            "masks": list(found.records),
            **Provenance(
                command=self.command,
                segmenter=segmenter.name,
                checkpoint_hash=segmenter.checkpoint_hash,
                device=str(segmenter.device),
            ).as_json(),
        }
        written: list[Path] = []
        document = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        if self.out is not None and self.out.suffix == ".json":
            written = [write_text(self.out, document)]
        elif self.out is not None:
            forest, stem = found.forest(), self.image.stem
            names = [f"{stem}.json", f"{stem}-forest.json", f"{stem}-forest.png"]
            with staged_folder(self.out) as folder:
                (folder / names[0]).write_text(document, encoding="utf-8")
                (folder / names[1]).write_text(forest.to_json(indent=2) + "\n", encoding="utf-8")
                plot_forest(pixels, forest, title=self.image.name).savefig(folder / names[2])
            written = [self.out / name for name in names]
        if self.as_json or self.out is None:
            print_json(record)
            return
        out().print(f"{len(found)} masks")
        for path in written:
            out().print(f"Wrote {path}", soft_wrap=True, markup=False)
