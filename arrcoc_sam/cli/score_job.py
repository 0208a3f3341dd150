"""``score`` from checked inputs to a table of scores."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow.parquet as pq
import typer

from arrcoc_sam.cli.console import err, note, noted, out, print_json, progress
from arrcoc_sam.cli.options import check_segmenter, refuse_ray_options, tokens_asked, wherever
from arrcoc_sam.cli.orientation import note_turned
from arrcoc_sam.cli.skipped import BAD_FILES, MOST_LISTED, masks_left_out, skipped_json
from arrcoc_sam.cli.stage_progress import stage_progress
from arrcoc_sam.cli.staging import staged_folder
from arrcoc_sam.datasets.faults import commonest
from arrcoc_sam.datasets.mask_forms import open_masks
from arrcoc_sam.datasets.mask_sets import MaskSet
from arrcoc_sam.errors import InputError, OutputError, explain
from arrcoc_sam.images import is_turned
from arrcoc_sam.quality.calibration import EMBEDDED
from arrcoc_sam.quality.score_table import ScoredChanges
from arrcoc_sam.quality.scoring.local import ScoringSummary, local_engine, run_scoring
from arrcoc_sam.quality.scoring.plan import scoring_plan
from arrcoc_sam.quality.scoring.spec import EstimatorSpec
from arrcoc_sam.quality.unscored import listed_errors
from arrcoc_sam.report.provenance import DEMONSTRATION_MODEL, Provenance
from arrcoc_sam.report.writing import refuse_overwriting

if TYPE_CHECKING:
    from arrcoc_sam.quality.scoring.local import Engine

__all__ = ["ScoreJob"]


@dataclass(frozen=True)
class ScoreJob:
    """Everything that ``score`` was told; :meth:`run` does it."""

    dataset: Path
    out: Path
    images: Path | None
    segmenter: str
    checkpoint: Path | None
    device: str
    dtype: Literal["float32", "bfloat16", "float16"]
    protocol: str
    tokens: Literal["all", "1-3", "0"]
    components: bool
    calibration: Path | None
    annotated: Path | None
    part_masks: int
    engine: str
    address: str | None
    actors: int | None
    gpus_per_actor: float | None
    as_json: bool
    command: str

    def run(self) -> None:
        """Score and write.

        Raises:
            ArrcocSamError: Bad input, or nothing can be written.
            typer.Exit: With code 3, where some masks could not be scored.
        """
        check_segmenter(self.segmenter)
        refuse_ray_options(self.engine, self.address, self.actors, self.gpus_per_actor)
        dataset = open_masks(self.dataset, images=self.images)
        self._check_annotated(dataset)
        spec = EstimatorSpec(
            self.segmenter,
            None if self.checkpoint is None else str(self.checkpoint.absolute()),
            # on a cluster this process only has to know the weights' hash
            "cpu" if self.engine == "ray" else self.device,
            self.dtype,
            self.protocol,
            tokens_asked(self.tokens),
            self.components,
            self._calibration(),
        )
        if self.segmenter == DEMONSTRATION_MODEL:
            noted("'tiny' is a demonstration model; real work names a real checkpoint (--segmenter sam_vit_b)")
        estimator = spec.build()
        provenance = Provenance(
            command=self.command,
            segmenter=self.segmenter,
            checkpoint_hash=estimator.segmenter.checkpoint_hash,
            device=self.device if self.engine == "ray" else str(estimator.segmenter.device),
        )
        plan = scoring_plan(dataset, estimator, part_masks=self.part_masks)
        turned: list[Path] = []

        def look(name: str) -> None:
            if is_turned(dataset.images / name, in_place=True):
                turned.append(dataset.images / name)

        engine = self._ray(spec) if self.engine == "ray" else local_engine(estimator, on_image=look)
        manifest = {**provenance.as_json(), "engine": self.engine}
        try:
            with stage_progress() as report:
                summary = run_scoring(
                    dataset, self.out, plan, engine, manifest=manifest, estimator=estimator, progress=report
                )
        except KeyboardInterrupt:
            note("what is scored is kept: the same command goes on from there")
            raise
        if self.annotated is not None:
            dataset.rewrite(self.annotated, ScoredChanges(summary.scores))
        # on a cluster this process would ask for every picture, one after the other
        if self.engine == "local" and summary.num_resumed < summary.num_masks:
            note_turned(_turned_so_far(summary.scores, dataset) if summary.num_resumed else turned, "masks")
        self._tell(summary)

    def _calibration(self) -> str | None:
        if self.calibration is None:
            return None
        return EMBEDDED if str(self.calibration) == EMBEDDED else str(self.calibration.absolute())

    def _ray(self, spec: EstimatorSpec) -> Engine:
        from dataclasses import replace

        from arrcoc_sam.distributed import RayEngine

        return RayEngine(
            replace(spec, segmenter=wherever(spec.segmenter), device=self.device),
            address=self.address,
            actors=self.actors,
            gpus_per_actor=self.gpus_per_actor,
        )

    def _check_annotated(self, dataset: MaskSet) -> None:
        if self.annotated is None:
            return
        if dataset.format == "folder":
            expected = "a COCO or Parquet data set"
            raise InputError(explain("--annotated with a folder of pictures, which have no fields", expected))
        if self.annotated.suffix.lower() != dataset.path.suffix.lower() and not dataset.path.is_dir():
            raise InputError(explain(f"--annotated {self.annotated}", f"a {dataset.path.suffix.lower()} file"))
        refuse_overwriting([self.annotated], [dataset.path])
        target = self.annotated.resolve()
        beside = [self.out.with_name(f"{self.out.stem}.{end}") for end in ("manifest.json", "errors.csv")]
        if target in [path.resolve() for path in (self.out, *beside)]:
            raise OutputError(explain(f"--annotated {self.annotated} belongs to the scores", "a file of its own"))
        if dataset.path.is_dir() and target.parent == dataset.path.resolve():
            expected = "a file outside, or it would be taken for a part of it"
            raise OutputError(explain(f"--annotated {self.annotated} in the folder of the data set", expected))
        with staged_folder(self.annotated.parent):  # that nothing can be written there shows before hours of scoring
            pass

    def _tell(self, summary: ScoringSummary) -> None:
        if summary.note is not None:
            noted(summary.note)
        if self.as_json:
            print_json(
                {
                    "scores": str(summary.scores),
                    "annotated": None if self.annotated is None else str(self.annotated),
                    **self._skipped(summary),
                    "errors": None if summary.errors is None else str(summary.errors),
                    "commonest_error": None if summary.errors is None else _commonest_error(summary.errors),
                    **json.loads(summary.manifest.read_text(encoding="utf-8")),
                }
            )
        else:
            resumed = f", {summary.num_resumed:,} of them before" if summary.num_resumed else ""
            scored = summary.num_masks - summary.num_errors
            out().print(f"{scored:,} of {summary.num_masks:,} masks scored{resumed}", soft_wrap=True)
            out().print(f"Scores: {summary.scores}", soft_wrap=True, markup=False)
            if self.annotated is not None:
                out().print(f"Data set with scores: {self.annotated}", soft_wrap=True, markup=False)
        if summary.errors is not None:
            err().print(f"{summary.num_errors:,} masks left out: {summary.errors}", soft_wrap=True, markup=False)
            err().print(f"most often: {_commonest_error(summary.errors)}", soft_wrap=True, markup=False)
            raise typer.Exit(BAD_FILES)

    def _skipped(self, summary: ScoringSummary) -> dict[str, Any]:
        if summary.errors is None:
            return skipped_json(())
        listed = listed_errors(summary.scores, most=MOST_LISTED)
        return skipped_json(masks_left_out(listed, str(self.dataset)), number=summary.num_errors)


def _turned_so_far(scores: Path, dataset: MaskSet) -> list[Path]:
    """The pictures with scores, of earlier calls as well, that their EXIF orientation turns at the same size."""
    turned = []
    with pq.ParquetFile(scores) as table, progress("Orientation", total=None) as advance:
        names = (name for batch in table.iter_batches(columns=["image"]) for name in batch["image"].to_pylist())
        for name, _ in groupby(names):  # the masks of an image stand one after the other
            if is_turned(dataset.images / name, in_place=True):
                turned.append(dataset.images / name)
            advance()
    return turned


def _commonest_error(errors: Path) -> str | None:
    with errors.open(newline="", encoding="utf-8") as listed:
        return commonest(row["error"] for row in csv.DictReader(listed))
