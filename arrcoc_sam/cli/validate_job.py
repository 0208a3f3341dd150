"""``validate`` from options to tables on the terminal and on disk."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import typer

from arrcoc_sam.cli.console import err, out, print_json, print_table
from arrcoc_sam.cli.stage_progress import stage_progress
from arrcoc_sam.cli.staging import staged_folder
from arrcoc_sam.errors import InputError, explain
from arrcoc_sam.granularity.validation import VERDICT_TRIALS, ValidationReport, validate
from arrcoc_sam.report.json_text import json_document
from arrcoc_sam.report.provenance import Provenance
from arrcoc_sam.report.validation_plots import plot_validation

__all__ = ["ValidateJob"]

NOT_PASSED = 1
"""Exit code when the method's error rates are not what they must be."""


@dataclass(frozen=True)
class ValidateJob:
    """Everything that ``validate`` was told; :meth:`run` does it."""

    out: Path | None
    trials: int
    scenes: int
    heads: int
    gains: tuple[float, ...]
    grid: int
    alpha: float
    seed: int
    as_json: bool
    command: str

    def run(self) -> None:
        """Count errors, print and write them.

        Raises:
            ArrcocSamError: Bad input; nothing is written then.
            typer.Exit: With code 1, where the method does not pass.
        """
        if not 0 < self.alpha < 1:
            raise InputError(explain(f"--alpha {self.alpha:g}", "a share in (0, 1)"))
        wrong = next((gain for gain in self.gains if not (math.isfinite(gain) and gain > 0)), None)
        if wrong is not None:
            raise InputError(explain(f"--gain {wrong:g}", "a finite number > 0"))
        with nullcontext() if self.out is None else staged_folder(self.out) as folder:
            with stage_progress() as progress:
                report = validate(
                    num_images=self.scenes,
                    num_heads=self.heads,
                    gains=self.gains,
                    num_trials=self.trials,
                    grid_hw=(self.grid, self.grid),
                    alpha=self.alpha,
                    seed=self.seed,
                    progress=progress,
                )
            provenance = Provenance(command=self.command, seed=self.seed)
            record = as_json(report) | {"versions": dict(provenance.versions), "command": self.command}
            if folder is not None:
                _save(report, record, folder)
        if self.as_json:
            print_json(record)
        else:
            _print(report)
            if self.out is not None:
                out().print(f"Tables and figure: {self.out}", soft_wrap=True, markup=False)
        if not report.passed:
            err().print(f"not passed: {_why(report)}", soft_wrap=True, markup=False)
            raise typer.Exit(NOT_PASSED)


def as_json(report: ValidationReport) -> dict[str, Any]:
    """A report as a dictionary for JSON."""
    return {
        "passed": report.passed,
        "conclusive": report.conclusive,
        "num_trials": report.num_trials,
        "confusion": {str(kind): row.astype(int).to_dict() for kind, row in report.confusion.iterrows()},
        "by_gain": json.loads(report.by_gain.to_json(orient="records")),
        "balanced_accuracy": report.balanced_accuracy,
        "balanced_accuracy_answered": report.balanced_accuracy_answered,
        "abstained": report.abstained,
        "false_claims": report.false_claims,
        "sizes": json.loads(report.sizes.to_json(orient="records")),
        "single_image": json.loads(report.single_image.to_json(orient="records")),
        "num_images": report.num_images,
        "alpha": report.alpha,
        "seed": report.seed,
    }


def _save(report: ValidationReport, record: dict[str, Any], folder: Path) -> None:
    report.confusion.to_csv(folder / "confusion.csv")
    report.by_gain.to_csv(folder / "by_gain.csv", index=False)
    report.sizes.to_csv(folder / "false_positive_rates.csv", index=False)
    report.single_image.to_csv(folder / "single_image.csv", index=False)
    (folder / "validation.json").write_text(json_document(record), encoding="utf-8")
    plot_validation(report).savefig(folder / "validation.png")


def _print(report: ValidationReport) -> None:
    kinds = [str(kind) for kind in report.confusion.columns]
    rows = [(str(name), *(str(int(row[kind])) for kind in kinds)) for name, row in report.confusion.iterrows()]
    title = f"Heads by what was planted and what was claimed ({report.num_images} scenes)"
    print_table(title, ["planted", *kinds], rows, to=out(), right=kinds)
    for words in (
        f"Balanced accuracy {report.balanced_accuracy:.3f}, abstentions counted as wrong; "
        f"{report.balanced_accuracy_answered:.3f} where an answer is given; {100 * report.abstained:.1f} % abstain.",
        f"Claims about heads that know nothing of the image: {100 * report.false_claims:.2f} %.",
    ):
        out().print(words, soft_wrap=True, markup=False)
    _print_power(report.by_gain)
    _print_sizes(report.sizes, report.alpha)
    _print_single(report.single_image)
    out().print(_verdict(report), soft_wrap=True, markup=False)


def _print_power(by_gain: pd.DataFrame) -> None:
    counts = ["heads", "right", "wrong", "abstained"]
    rows = [
        (f"{row['gain']:g}", str(row["level"]), *(str(row[name]) for name in counts))
        for row in by_gain.to_dict("records")
    ]
    title = "Power: claims by how much denser than elsewhere attention is on the planted level"
    print_table(title, ["gain", "planted", *counts], rows, to=out(), right=["gain", *counts])


def _print_sizes(sizes: pd.DataFrame, alpha: float) -> None:
    rows = [
        (
            str(row["null"]),
            str(row["attention"]),
            f"{row['trials']:,}",
            f"{100 * row['rate']:.2f} %",
            f"{100 * row['low']:.2f} – {100 * row['high']:.2f} %",
            "convicted" if row["convicted"] else "",
        )
        for row in sizes.to_dict("records")
    ]
    columns = ["null", "attention", "trials", "rejected", "99 % limits", ""]
    title = f"False positives at α = {alpha:g}: claims stand on the null of other images, the rest is for comparison"
    print_table(title, columns, rows, to=out(), right=["trials", "rejected", "99 % limits"])


def _print_single(single: pd.DataFrame) -> None:
    rows = [
        (str(row["metric"]), *(f"{100 * row[name]:.1f} %" for name in single.columns if name != "metric"))
        for row in single.to_dict("records")
    ]
    columns = ["metric", "balanced accuracy", *(f"“{level}” of nothing" for level in ("whole", "part", "subpart"))]
    title = "One image at a time, with neither null nor abstention: why single images support no claim"
    print_table(title, columns, rows, to=out(), right=columns[1:])


def _verdict(report: ValidationReport) -> str:
    if report.passed and not report.conclusive:
        return (
            f"Not convicted in {report.num_trials:,} trials; a verdict takes {VERDICT_TRIALS:,} (--trials "
            f"{VERDICT_TRIALS})."
        )
    return "Passed." if report.passed else "Not passed."


def _why(report: ValidationReport) -> str:
    own = report.sizes[report.sizes["null"] == report.sizes["null"].iloc[0]]
    guilty = own[own["convicted"]]["attention"].tolist()
    if guilty:
        return f"the test rejects more often than {report.alpha:g} for {', '.join(guilty)}"
    return "pixel shuffling was not convicted; with more --trials it has to be"
