"""``calibrate`` from true masks to a calibration and its figures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import typer

from arrcoc_sam.cli.calibrate_truth import TruthImages
from arrcoc_sam.cli.console import err, out, print_json, print_table, progress
from arrcoc_sam.cli.options import check_segmenter, open_segmenter, tokens_asked
from arrcoc_sam.cli.orientation import note_turned
from arrcoc_sam.cli.skipped import BAD_FILES, skipped_json
from arrcoc_sam.cli.staging import staged_folder
from arrcoc_sam.errors import DataError, InputError, explain
from arrcoc_sam.quality import MaskQualityEstimator
from arrcoc_sam.quality.calibration_ablation import compare_protocols, protocol_estimators
from arrcoc_sam.quality.calibration_fit import CalibrationFit, fit_calibration
from arrcoc_sam.quality.calibration_samples import calibration_samples
from arrcoc_sam.report.calibration_plots import plot_calibration, plot_protocols
from arrcoc_sam.report.writing import refuse_overwriting

__all__ = ["CalibrateJob"]


@dataclass(frozen=True)
class CalibrateJob:
    """Everything that ``calibrate`` was told; :meth:`run` does it."""

    dataset: Path
    out: Path
    images: Path | None
    segmenter: str
    checkpoint: Path | None
    device: str
    protocol: str
    tokens: Literal["all", "1-3", "0"]
    components: bool
    method: Literal["monotone", "isotonic"]
    confidence: float
    per_mask: int
    min_masks: int
    min_images: int
    ablation_images: int
    seed: int
    as_json: bool
    command: str

    def run(self) -> None:
        """Score, fit, judge and write.

        Raises:
            ArrcocSamError: Bad input, too few masks, or nothing can be written; nothing is written then.
            typer.Exit: With code 3, where images could not be read.
        """
        check_segmenter(self.segmenter)
        if self.out.suffix.lower() != ".json":
            raise InputError(explain(f"--out {self.out}", "a .json file"))
        refuse_overwriting([self.out], [self.dataset, self.checkpoint])
        if not 0 < self.confidence < 1:
            raise InputError(explain(f"--confidence {self.confidence}", "a share in (0, 1)"))
        truth = TruthImages.read(self.dataset, self.images)
        if truth.num_masks * self.per_mask < 3 * self.min_masks:  # how they fall into the sets shows later
            came = f"{truth.num_masks:,} masks with --per-mask {self.per_mask}"
            expected = f"at least {3 * self.min_masks:,} samples, {self.min_masks:,} each to fit, to cover and to judge"
            raise InputError(explain(came, expected, "give more images, raise --per-mask, or lower --min-masks"))
        if self.min_images > 1 and truth.num_images < 4 * self.min_images:  # a quarter of them is the least set
            came, expected = f"{truth.num_images:,} images with masks", f"at least {4 * self.min_images:,}"
            raise InputError(explain(came, expected, "give more images, or lower --min-images"))
        headers = truth.read_headers()
        if headers.masks_by_image:  # of none it is said below why
            self._check_sets(sorted(headers.masks_by_image, reverse=True))
        note_turned(headers.turned_in_place, "masks")
        with staged_folder(self.out.parent) as folder:
            segmenter = open_segmenter(self.segmenter, self.checkpoint, self.device)
            truth.fits = segmenter.transform_for
            estimator = MaskQualityEstimator(
                segmenter, self.protocol, tokens_asked(self.tokens), components=self.components, keep_masks=False
            )
            samples = self._samples({"": estimator}, truth, len(truth), "Scoring")[""]
            data = {
                "name": self.dataset.name,
                "sha256": hashlib.sha256(self.dataset.read_bytes()).hexdigest(),
                "per_mask": self.per_mask,
                "command": self.command,
            }
            fit = fit_calibration(
                samples,
                estimator,
                method=self.method,
                confidence=self.confidence,
                min_masks=self.min_masks,
                min_images=self.min_images,
                seed=self.seed,
                data=data,
            )
            protocols = None
            if self.ablation_images:
                count = min(self.ablation_images, len(truth))
                ways = protocol_estimators(segmenter, default=self.protocol, components=self.components)
                again = replace(truth, faults=[])  # the same pictures, whose faults are known by now
                asked = self._samples(ways, islice(again, count), count, "Protocols")
                protocols = compare_protocols(asked, default=f"{self.protocol}, {self.tokens}", seed=self.seed)
            self._save(fit, protocols, folder)
        self._print(fit, protocols, truth.faults)
        for words in truth.words:
            err().print(f"left out: {words}", soft_wrap=True, markup=False)
        if truth.faults:
            raise typer.Exit(BAD_FILES)

    def _check_sets(self, counts: Sequence[int]) -> None:
        """See that no set is too small whatever the split is: that depends on which pictures can be read.

        Args:
            counts: Masks of each image, most first.

        Raises:
            DataError: The images with most masks would not do for the smallest set.
        """
        num_images = len(counts) // 4
        num_masks = sum(counts[:num_images]) * self.per_mask
        least = max(self.min_masks, 2)
        if num_masks < least or num_images < self.min_images:
            came = f"the smallest of the three sets has {num_masks} masks of {num_images} images at most"
            few = num_images < max(self.min_images, 1)
            mend = "give more images" + ("" if few else ", or more samples a mask")
            raise DataError(explain(came, f"at least {least} masks of at least {self.min_images} images", mend))

    def _samples(
        self, estimators: dict[str, MaskQualityEstimator], images: Iterable[Any], total: int, words: str
    ) -> dict[str, pd.DataFrame]:
        with progress(words, total=total) as advance:
            return calibration_samples(
                estimators, images, per_mask=self.per_mask, seed=self.seed, progress=lambda: advance()
            )

    def _save(self, fit: CalibrationFit, protocols: pd.DataFrame | None, folder: Path) -> None:
        fit.calibration.save(folder / self.out.name)
        chosen = {"lower bound": fit.reports["bound"], f"calibrated ({self.method})": fit.reports[self.method]}
        tables = {name: report.reliability for name, report in chosen.items()}
        errors = {name: report.ece for name, report in chosen.items()}
        plot_calibration(tables, errors).savefig(folder / f"{self.out.stem}-reliability.png")
        if protocols is not None:
            protocols.to_csv(folder / f"{self.out.stem}-protocols.csv", index=False)
            plot_protocols(protocols).savefig(folder / f"{self.out.stem}-protocols.png")

    def _print(self, fit: CalibrationFit, protocols: pd.DataFrame | None, left_out: Sequence[tuple[str, str]]) -> None:
        report = fit.calibration.report
        if self.as_json:
            record: dict[str, Any] = {"calibration": str(self.out), "report": dict(report)}
            record |= {"provenance": dict(fit.calibration.provenance), **skipped_json(left_out)}
            if protocols is not None:
                record["protocols"] = json.loads(protocols.to_json(orient="records"))
            print_json(record)
            return
        metrics = ["spearman", "pearson", "mae", "rmse", "ece"]
        rows = [
            (name, *(f"{getattr(judged, metric):.3f}" for metric in metrics)) for name, judged in fit.reports.items()
        ]
        title = f"Estimates of IoU on {len(fit.test):,} masks of images that no fit has seen"
        print_table(title, ["estimate", *metrics], rows, to=out(), right=metrics)
        low, high = report["coverage_interval"]
        held, width = report["bounds"]["inside"], report["bounds"]["width"]
        out().print(
            f"Intervals of {self.confidence:.0%} cover {report['coverage']:.1%} ({low:.1%} to {high:.1%}, by image), "
            f"width {report['interval_width']:.3f}. Bounds hold {held:.1%}, width {width:.3f}.",
            soft_wrap=True,
            markup=False,
        )
        if protocols is not None:
            columns = ["spearman", "mae", "inside", "width"]
            rows = [
                (
                    row["protocol"],
                    row["tokens"],
                    *(f"{row[name]:.3f}" for name in columns),
                    f"{row['gain']:+.3f} ({row['gain_low']:+.3f} to {row['gain_high']:+.3f})",
                )
                for row in protocols.to_dict("records")
            ]
            gain = f"gain over {self.protocol}, {self.tokens}"
            print_table(
                "Ways of asking, by Spearman on these masks: the first is selected on them",
                ["protocol", "tokens", *columns, gain],
                rows,
                to=out(),
                right=[*columns, gain],
            )
        out().print(f"Calibration: {self.out}", soft_wrap=True, markup=False)
