"""``cache`` from options to Parquet shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import typer

from arrcoc_sam.cli.console import err, out, print_json, print_table
from arrcoc_sam.cli.options import check_segmenter, open_segmenter
from arrcoc_sam.cli.stage_progress import stage_progress
from arrcoc_sam.datasets import CocoDataset
from arrcoc_sam.errors import InputError, explain
from arrcoc_sam.images import find_images
from arrcoc_sam.training.cache import CacheReport, LevelSource, SegmenterLevels, TruthLevels, build_cache
from arrcoc_sam.training.cache_prompts import GridPrompts, PointPrompts, PromptPlan, TruthPrompts

__all__ = ["CacheJob"]

BAD_FILES = 3
"""Exit code when some images could not be used."""


@dataclass(frozen=True)
class CacheJob:
    """Everything that ``cache`` was told; :meth:`run` does it."""

    images: Sequence[str]
    out: Path
    segmenter: str
    checkpoint: Path | None
    device: str
    grid: int | None
    points: Path | None
    truth: Path | None
    human: bool
    quality: bool
    shard: int
    recursive: bool
    as_json: bool

    def run(self) -> None:
        """Build the cache, or what is missing of it.

        Raises:
            ArrcocSamError: Bad input; nothing is written then.
            typer.Exit: With code 3, where images could not be used.
        """
        given = [name for name in ("grid", "points", "truth") if getattr(self, name) is not None]
        if len(given) > 1:
            raise InputError(explain(f"--{' and --'.join(given)}", "one kind of clicks"))
        if self.human and (self.truth is None or self.quality):
            raise InputError(explain("--human", "--truth with it, and no --quality"))
        check_segmenter(self.segmenter)
        paths = find_images(self.images, recursive=self.recursive)
        source = self._source()
        with stage_progress() as progress:
            report = build_cache(
                source,
                paths,
                self.out,
                images_per_shard=self.shard,
                progress=lambda done, total: progress("images", done, total),
            )
        self._print(report)
        if report.faults:
            raise typer.Exit(BAD_FILES)

    def _source(self) -> LevelSource:
        dataset = None if self.truth is None else CocoDataset.read(self.truth)
        if self.human and dataset is not None:
            return TruthLevels(dataset)
        prompts: PromptPlan
        if dataset is not None:
            prompts = TruthPrompts(dataset)
        elif self.points is not None:
            prompts = PointPrompts.read(self.points)
        else:
            prompts = GridPrompts(8 if self.grid is None else self.grid)
        segmenter = open_segmenter(self.segmenter, self.checkpoint, self.device)
        return SegmenterLevels(segmenter, prompts, quality=self.quality)

    def _print(self, report: CacheReport) -> None:
        if self.as_json:
            print_json(
                {
                    **asdict(report.plan),
                    "num_shards": report.plan.num_shards,
                    "num_new_shards": report.num_new_shards,
                    "num_samples": report.num_samples,
                    "num_valid": report.num_valid,
                    "faults": [{"image": name, "error": reason} for name, reason in report.faults],
                }
            )
        else:
            words = f"{report.num_samples:,} clicks, {report.num_valid:,} with two levels or more: {self.out}"
            out().print(words, soft_wrap=True, markup=False)
        if report.faults:
            print_table("Images left out", ["image", "why"], report.faults, to=err())
