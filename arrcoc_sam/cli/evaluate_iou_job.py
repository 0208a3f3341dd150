"""``evaluate-iou`` from true masks to a judgement of the IoU head."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import typer

from arrcoc_sam.cli.calibrate_truth import TruthImages
from arrcoc_sam.cli.console import err, out, print_json, print_table, progress
from arrcoc_sam.cli.options import check_segmenter, open_segmenter
from arrcoc_sam.cli.orientation import note_orientation
from arrcoc_sam.cli.skipped import BAD_FILES, skipped_json
from arrcoc_sam.cli.staging import staged_folder
from arrcoc_sam.errors import DataError, InputError, explain
from arrcoc_sam.quality import IoUHeadReport, click_image, evaluate_iou_head
from arrcoc_sam.report.json_text import json_document
from arrcoc_sam.report.provenance import Provenance

__all__ = ["EvaluateIouJob"]

_AREA_ENDS, _AREA_NAMES = (0, 32**2, 96**2, np.inf), ("small", "medium", "large")
_PART = "the part of the segmenter's masks that its head speaks of"
_SHOWN = ("pearson", "spearman", "mae", "rmse", "selection_accuracy", "oracle_gap", "ece")


@dataclass(frozen=True)
class EvaluateIouJob:
    """Everything that ``evaluate-iou`` was told; :meth:`run` does it."""

    dataset: Path
    out: Path | None
    images: Path | None
    segmenter: str
    checkpoint: Path | None
    device: str
    clicks: tuple[int, ...]
    bootstrap: int
    confidence: float
    seed: int
    as_json: bool
    command: str

    def run(self) -> None:
        """Click, judge, print and write.

        Raises:
            ArrcocSamError: Bad input; nothing is written then.
            typer.Exit: With code 3, where images could not be read.
        """
        check_segmenter(self.segmenter)
        if not 0 < self.confidence < 1:
            raise InputError(explain(f"--confidence {self.confidence}", "a share in (0, 1)"))
        if min(self.clicks, default=2) < 1:
            raise InputError(explain(f"--clicks {min(self.clicks)}", "at least 1"))
        truth = TruthImages.read(self.dataset, self.images)
        note_orientation(truth.paths, "masks", in_place=True)
        with nullcontext() if self.out is None else staged_folder(self.out) as folder:
            segmenter = open_segmenter(self.segmenter, self.checkpoint, self.device)
            truth.fits = segmenter.transform_for
            judged = segmenter.scorer  # the head of SAM-HQ speaks of the SAM part of its masks
            frames = []
            clicks = sorted({1, *self.clicks})
            with progress("Clicking", total=len(truth)) as advance:
                for annotated in truth:
                    nodes = click_image(judged, annotated, clicks=clicks, seed=self.seed)
                    frames.append(nodes.assign(pixels=nodes["area"] * annotated.masks[0].size))
                    advance()
            if not frames:
                raise DataError(explain(f"no picture of {self.dataset} can be read", "images with true masks"))
            nodes = pd.concat(frames, ignore_index=True)
            reports = self._judge(nodes)
            provenance = Provenance(
                command=self.command,
                segmenter=segmenter.name,
                checkpoint_hash=segmenter.checkpoint_hash,
                device=str(segmenter.device),
                seed=self.seed,
            )
            table = pd.concat(
                [report.to_frame().assign(clicks=count) for count, report in reports.items()], ignore_index=True
            )
            record = {
                "num_masks": len(nodes),
                "num_images": int(nodes["image"].nunique()),
                "masks": "the segmenter's own" if judged is segmenter else _PART,
                **skipped_json(truth.faults),
                "left_out": truth.words,
                "metrics": json.loads(table.to_json(orient="records")),
                **provenance.as_json(),
            }
            if folder is not None:
                nodes.to_parquet(folder / "clicks.parquet", index=False)
                table.to_csv(folder / "iou_head.csv", index=False)
                reports[1].reliability.to_csv(folder / "reliability.csv", index=False)
                words = f"{segmenter.name}, one click, three masks"
                reports[1].plot(title=words).savefig(folder / "reliability.png")
                (folder / "iou_head.json").write_text(json_document(record), encoding="utf-8")
        if self.as_json:
            print_json(record)
        else:
            _print(reports, len(nodes))
            if record["masks"] == _PART:
                out().print(f"Judged is {_PART}.", soft_wrap=True, markup=False)
            if self.out is not None:
                out().print(f"Tables and diagram: {self.out}", soft_wrap=True, markup=False)
        for words in truth.words:
            err().print(f"left out: {words}", soft_wrap=True, markup=False)
        if truth.faults:
            raise typer.Exit(BAD_FILES)

    def _judge(self, nodes: pd.DataFrame) -> dict[int, IoUHeadReport]:
        """By number of clicks; three candidates after the first, one later."""
        areas = pd.cut(nodes["pixels"], _AREA_ENDS, labels=_AREA_NAMES, right=False).astype(str)
        strata = {"area": areas.tolist(), "level": nodes["level"].tolist()}
        reports = {1: self._report(nodes, [f"{{}}_{index}" for index in (1, 2, 3)], strata)}
        for count in sorted({*self.clicks} - {1}):
            reports[count] = self._report(nodes, [f"{{}}_after_{count}"], strata)
        return reports

    def _report(self, nodes: pd.DataFrame, columns: list[str], strata: Mapping[str, list[str]]) -> IoUHeadReport:
        predicted, actual = (
            nodes[[column.format(name) for column in columns]].to_numpy(np.float64) for name in ("predicted", "iou")
        )
        return evaluate_iou_head(
            predicted,
            actual,
            image_id=nodes["image"].tolist(),
            strata=strata,
            num_bootstrap=self.bootstrap,
            confidence=self.confidence,
            seed=self.seed,
        )


def _print(reports: Mapping[int, IoUHeadReport], num_masks: int) -> None:
    rows = [_row(f"{count} click{'s' if count > 1 else ''}", "all", report) for count, report in reports.items()]
    rows += [
        _row("1 click", f"{stratum}: {label}", report)
        for stratum, by_label in reports[1].strata.items()
        for label, report in by_label.items()
    ]
    columns = ["after", "masks", "number", *_SHOWN]
    print_table(f"The IoU head on {num_masks:,} masks", columns, rows, to=out(), right=columns[2:])
    ends = reports[1].intervals["pearson"]
    out().print(
        f"Pearson after one click {reports[1].pearson:.3f} ({ends[0]:.3f} to {ends[1]:.3f}, bootstrap by image).",
        soft_wrap=True,
        markup=False,
    )


def _row(after: str, masks: str, report: IoUHeadReport) -> tuple[str, ...]:
    values: list[Any] = [getattr(report, name) for name in _SHOWN]
    return after, masks, str(report.num_prompts), *("–" if np.isnan(value) else f"{value:.3f}" for value in values)
