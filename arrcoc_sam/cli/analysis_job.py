"""``analyze`` from checked inputs to files: tables, figures, one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
import typer
from jaxtyping import Float64
from torch import Tensor

from arrcoc_sam.attention import ArrayAttention, AttentionMaps, AttentionSource
from arrcoc_sam.cli.analysis_figures import figures_of_table, remove_figures, save_figures
from arrcoc_sam.cli.analysis_inputs import (
    AttentionOptions,
    ClickPlan,
    Inputs,
    about,
    refuse_shared_maps,
)
from arrcoc_sam.cli.console import err, noted, out, print_json, print_table, tracked
from arrcoc_sam.cli.granularity_run import Analysed, analyze_image
from arrcoc_sam.cli.level_sources import AnsweredLevels, HumanLevels, LevelFinder
from arrcoc_sam.cli.orientation import orientation_note
from arrcoc_sam.cli.skipped import BAD_FILES, skipped_json
from arrcoc_sam.cli.staging import staged_folder
from arrcoc_sam.errors import ArrcocSamError, DataError, InputError, ShapeError, explain
from arrcoc_sam.granularity.metrics import check_names
from arrcoc_sam.hierarchy.levels import LEVELS
from arrcoc_sam.images import load_image
from arrcoc_sam.report import GranularityPage, Provenance
from arrcoc_sam.report.provenance import DEMONSTRATION_MODEL
from arrcoc_sam.report.results import ABSTAIN

__all__ = ["AnalysisJob", "print_answers", "save_tables"]

MIN_REFERENCE = 19
"""With fewer other images no p could be as small as .05."""


@dataclass(frozen=True)
class AnalysisJob:
    """Everything that ``analyze`` was told; :meth:`run` does it."""

    images: Sequence[str]
    recursive: bool
    clicks: ClickPlan
    hierarchy: Path | None
    attention: AttentionOptions
    segmenter: str
    checkpoint: Path | None
    device: str
    reference: Sequence[str]
    metrics: str | None
    out: Path
    figure_format: str
    title: str
    max_shown: int
    as_json: bool
    command: str

    def run(self) -> None:
        """Analyse and write.

        Raises:
            ArrcocSamError: Bad input; nothing is written then.
            typer.Exit: With code 3, where some files of a folder were left out.
        """
        metrics = None if self.metrics is None else [name.strip() for name in self.metrics.split(",")]
        if metrics is not None:
            check_names(metrics)
        inputs = Inputs.find(self.images, recursive=self.recursive)
        others = Inputs.find(self.reference) if self.reference else Inputs((), frozenset())
        if self.reference:
            _check_number(inputs, others)
        levels = self._levels()
        with staged_folder(self.out) as folder:
            source = self.attention.load()
            self.attention.note_control()
            refuse_shared_maps(source, (*inputs.paths, *others.paths))
            self._check_named(inputs, others, source, levels)
            page = GranularityPage(
                title=self.title,
                notes=(*levels.notes, *self._orientation(inputs, source)),
                provenance=levels.provenance(
                    Provenance(command=self.command, attention=self.attention.describe(), seed=self.attention.seed)
                ),
                max_items=self.max_shown,
                control=self.attention.random_weights,
            )
            for name, reason in levels.faults:
                page.skip(name, reason)
            frames: list[pd.DataFrame] = []
            references = _References(source, others.paths)
            for path in tracked(inputs.paths, "Analysing"):
                try:
                    with about(path):
                        analysed = self._analyze(path, levels, source, references, metrics)
                except ArrcocSamError as error:
                    if path in inputs.named or references.too_few:
                        raise
                    page.skip(str(path), str(error))
                    continue
                page.add(analysed.item())
                frames.append(analysed.frame())
                save_figures(analysed, folder / "figures", path.stem, self.figure_format)
            for other, reason in references.left_out.items():
                page.skip(str(other), f"not used as a reference: {reason}")
            if page.skipped:
                rows = [(name, " ".join(reason.split())) for name, reason in page.skipped]
                print_table("Left out", ["file", "reason"], rows, to=err())
                pd.DataFrame(rows, columns=["file", "reason"]).to_csv(folder / "errors.csv", index=False)
            if not frames:
                raise DataError(explain(f"none of {len(inputs.paths)} images could be analysed", "at least one"))
            save_tables(pd.concat(frames, ignore_index=True), folder)
            page.write(folder / "report.html")
            written = [path.name for path in (folder / "figures").glob("*")]
            earlier = figures_of_table(self.out.expanduser())
        remove_figures(earlier, written)
        if not page.skipped:
            (self.out / "errors.csv").unlink(missing_ok=True)  # of an earlier run
        self._tell(page, num_images=len(frames))
        if page.skipped:
            raise typer.Exit(BAD_FILES)

    def _levels(self) -> LevelFinder:
        if self.hierarchy is None:
            return AnsweredLevels(self.segmenter, self.checkpoint, self.device, self.clicks)
        if self.clicks != ClickPlan():
            expected = "one of them: human masks bring their own clicks"
            raise InputError(explain("--hierarchy with --points or --grid", expected))
        if self.checkpoint is not None or self.segmenter != DEMONSTRATION_MODEL:
            expected = "one of them: human masks stand in place of a segmenter's"
            raise InputError(explain("--hierarchy with --segmenter or --checkpoint", expected))
        return HumanLevels(self.hierarchy)

    def _orientation(self, inputs: Inputs, source: AttentionSource) -> list[str]:
        """A sentence for the report, said on stderr too, where masks or maps from elsewhere may lie otherwise."""
        given = {"masks": self.hierarchy is not None, "attention maps": isinstance(source, ArrayAttention)}
        what = " and ".join(name for name, was_given in given.items() if was_given)
        note = orientation_note(inputs.paths, what, in_place=what == "masks") if what else None
        if note is None:
            return []
        noted(note)
        return [f"{note}."]

    def _check_named(self, inputs: Inputs, others: Inputs, source: AttentionSource, levels: LevelFinder) -> None:
        """What was named outright has to be good before any work begins."""
        for path in tracked(sorted(inputs.named), "Checking"):
            with about(path):
                pixels = load_image(path)
                points = levels.check(path, (pixels.shape[0], pixels.shape[1]))
                if isinstance(source, ArrayAttention):
                    source(path, points)
        for path in sorted(others.named - inputs.named):
            with about(path):
                load_image(path)
                if isinstance(source, ArrayAttention):
                    source(path)

    def _analyze(
        self,
        path: Path,
        levels: LevelFinder,
        source: AttentionSource,
        references: _References,
        metrics: Sequence[str] | None,
    ) -> Analysed:
        pixels = load_image(path)
        found = levels.on(path, pixels)
        # A folder of arrays finds the image's by its name; everything else is spared to read the file again.
        with torch.no_grad():
            maps = source(path if isinstance(source, ArrayAttention) else pixels, found.points_xy)
        reference = references.of(path, found.points_xy, (pixels.shape[0], pixels.shape[1]))
        if reference is not None and len(reference) < MIN_REFERENCE:
            first = next(iter(references.left_out.values()), "").rstrip(".")
            came = f"{len(reference)} of {len(references.paths)} images of --reference can be used for {path} ({first})"
            raise InputError(explain(came, f"at least {MIN_REFERENCE}"))
        result = analyze_image(
            pixels,
            found.points_xy,
            maps,
            found.hierarchy,
            metrics=metrics,
            reference=reference,
        )
        return Analysed(str(path), result, found.mask_scores)

    def _tell(self, page: GranularityPage, *, num_images: int) -> None:
        report = self.out / "report.html"
        if self.as_json:
            print_json(
                {
                    "report": str(report),
                    "table": str(self.out / "granularity.parquet"),
                    "num_images": num_images,
                    "abstained": page.abstained,
                    "answers": page.answers,
                    **skipped_json(page.skipped),
                    "errors": [{"file": name, "message": reason} for name, reason in page.skipped],
                    **page.provenance.as_json(),
                }
            )
            return
        print_answers(page)
        out().print(f"Report: {report}", soft_wrap=True, markup=False)


class _Reference(NamedTuple):
    """Attention on another image, of this size, with clicks at these places."""

    size_hw: tuple[int, int]
    places: Float64[Tensor, "K 2"]
    maps: AttentionMaps


class _References:
    """The same attention on other images, made once for all clicks at the same places.

    An image that can't be used is left out of all answers, and ``left_out`` says why.
    """

    def __init__(self, source: AttentionSource, paths: Sequence[Path]) -> None:
        self.source = source
        self.paths = paths
        self.left_out: dict[Path, str] = {}
        self._kept: dict[Path, _Reference] = {}

    def of(self, path: Path, points: Float64[Tensor, "K 2"], size_hw: tuple[int, int]) -> list[AttentionMaps] | None:
        """Maps of all images but this one, at the same places; None where there are none to compare with."""
        if not self.paths:
            return None
        maps = []
        for other in self.paths:
            if other in self.left_out or other.resolve() == path.resolve():
                continue
            try:
                maps.append(self._maps(other, points, size_hw))
            except ShapeError:  # maps for other clicks than these
                raise
            except InputError as error:
                self.left_out[other] = str(error)
        return maps

    @property
    def too_few(self) -> bool:
        """Whether so many were left out that no image has enough of them."""
        return bool(self.left_out) and len(self.paths) - len(self.left_out) < MIN_REFERENCE

    def _maps(self, other: Path, points: Float64[Tensor, "K 2"], size_hw: tuple[int, int]) -> AttentionMaps:
        kept = self._kept.get(other)
        if kept is not None and (
            kept.maps.num_prompts is None or torch.equal(kept.places, _carried(points, size_hw, kept.size_hw))
        ):
            return kept.maps
        with about(other), torch.no_grad():
            pixels = load_image(other)
            other_hw = (pixels.shape[0], pixels.shape[1])
            places = _carried(points, size_hw, other_hw)
            maps = self.source(other if isinstance(self.source, ArrayAttention) else pixels, places)
        self._kept[other] = _Reference(other_hw, places, maps)
        return maps


def _check_number(inputs: Inputs, others: Inputs) -> None:
    """Refuse too few references; an image that is one of them is none for itself.

    Raises:
        InputError: As said.
    """
    resolved = {path.resolve() for path in others.paths}
    among = next((path for path in inputs.paths if path.resolve() in resolved), None)
    count = len(others.paths) - (among is not None)
    if count < MIN_REFERENCE:
        came = f"{count} images for --reference" + ("" if among is None else f" besides {among} itself")
        raise InputError(explain(came, f"at least {MIN_REFERENCE}"))


def _carried(
    points: Float64[Tensor, "K 2"], size_hw: tuple[int, int], other_hw: tuple[int, int]
) -> Float64[Tensor, "K 2"]:
    """The same places in an image of another size.

    Pixel indices count from the first pixel's centre, half a pixel from the edge that scaling leaves alone.
    """
    scale = torch.tensor([other_hw[1] / size_hw[1], other_hw[0] / size_hw[0]], dtype=torch.float64)
    return (points + 0.5) * scale - 0.5


def save_tables(frame: pd.DataFrame, folder: Path) -> None:
    """One row a map, click and level, as Parquet and CSV."""
    frame.to_parquet(folder / "granularity.parquet", index=False)
    frame.to_csv(folder / "granularity.csv", index=False)


def _answers_rows(page: GranularityPage, most: int = 24) -> list[tuple[str, ...]]:
    """Counts of answers by map, for a table."""
    rows = [(name, *(str(of[kind]) for kind in (*LEVELS, ABSTAIN))) for name, of in page.answers.items()]
    return rows[:most] + ([(f"… {len(rows) - most} more in the report",)] if len(rows) > most else [])


def print_answers(page: GranularityPage) -> None:
    """How often each map answered which level, and how far that goes."""
    kinds = [*LEVELS, ABSTAIN]
    print_table("Answers by map", ["map", *kinds], _answers_rows(page), to=out(), right=kinds)
    flag = "calibrated" if page.calibrated else "not calibrated: one image's levels ranked, no comparison with others"
    out().print(f"Abstained: {100 * page.abstained:.0f} % ({flag})", soft_wrap=True)
