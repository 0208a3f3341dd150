"""``cache`` from options to Parquet shards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import typer

from arrcoc_sam.cli.analysis_inputs import Inputs, about
from arrcoc_sam.cli.console import err, noted, out, print_json, print_table, tracked
from arrcoc_sam.cli.options import check_segmenter, open_segmenter, refuse_ray_options, wherever
from arrcoc_sam.cli.orientation import note_orientation
from arrcoc_sam.cli.skipped import BAD_FILES, record_faults, skipped_json
from arrcoc_sam.cli.stage_progress import stage_progress
from arrcoc_sam.datasets import CocoDataset
from arrcoc_sam.errors import InputError, explain
from arrcoc_sam.images import load_image
from arrcoc_sam.report.provenance import DEMONSTRATION_MODEL
from arrcoc_sam.training.cache.build import CacheEngine, CacheReport, build_cache
from arrcoc_sam.training.cache.prompts import GridPrompts, PointPrompts, PromptPlan, TruthPrompts
from arrcoc_sam.training.cache.sources import LevelSource, SegmenterLevels, TruthLevels

__all__ = ["CacheJob"]


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
    engine: str
    address: str | None
    actors: int | None
    gpus_per_actor: float | None
    as_json: bool

    def run(self) -> None:
        """Build the cache, or what is missing of it.

        Raises:
            ArrcocSamError: Bad input; nothing is written then.
            typer.Exit: With code 3, where images of a folder, or records, could not be used.
        """
        given = [name for name in ("grid", "points", "truth") if getattr(self, name) is not None]
        if len(given) > 1:
            raise InputError(explain(f"--{' and --'.join(given)}", "one kind of clicks"))
        if self.human and (self.truth is None or self.quality):
            raise InputError(explain("--human", "--truth with it, and no --quality"))
        if self.human and (self.segmenter != DEMONSTRATION_MODEL or self.checkpoint is not None):
            raise InputError(explain("--human with --segmenter or --checkpoint", "neither: no segmenter is asked"))
        refuse_ray_options(self.engine, self.address, self.actors, self.gpus_per_actor)
        check_segmenter(self.segmenter)
        inputs = Inputs.find(self.images, recursive=self.recursive)
        paths = inputs.paths
        dataset = None if self.truth is None else CocoDataset.read(self.truth, strict=False)
        records = () if dataset is None else record_faults(dataset)
        make = self._maker(paths, dataset)
        for path in tracked(sorted(inputs.named), "Checking"):
            with about(path):
                load_image(path)
        drawn = "clicks" if self.points is not None else "masks" if dataset is not None else None
        if drawn is not None:
            note_orientation(paths, drawn, in_place=drawn == "masks")
        # on a cluster this process only has to know the weights' hash
        source = make(self.segmenter, "cpu" if self.engine == "ray" else self.device)
        with stage_progress() as progress:
            report = build_cache(
                source,
                paths,
                self.out,
                images_per_shard=self.shard,
                engine=self._ray(make) if self.engine == "ray" else None,
                progress=lambda done, total: progress("images", done, total),
            )
        self._print(report, records)
        if report.faults or records:
            raise typer.Exit(BAD_FILES)

    def _maker(self, paths: Sequence[Path], dataset: CocoDataset | None) -> Callable[[str, str], LevelSource]:
        """What makes the source of levels of a segmenter on a device, here or on another machine."""
        if self.human and dataset is not None:
            return partial(_drawn_levels, dataset)
        prompts: PromptPlan
        if dataset is not None:
            prompts = TruthPrompts(dataset)
        elif self.points is not None:
            prompts = PointPrompts.read(self.points)
            prompts.check(paths)
        else:
            prompts = GridPrompts(8 if self.grid is None else self.grid)
        checkpoint = None if self.checkpoint is None else self.checkpoint.absolute()
        return partial(_segmenter_levels, checkpoint, prompts, self.quality)

    def _ray(self, make: Callable[[str, str], LevelSource]) -> CacheEngine:
        from arrcoc_sam.distributed import RayCacheEngine

        device = "cpu" if self.human else self.device
        return RayCacheEngine(
            partial(make, wherever(self.segmenter), device),
            device=device,
            address=self.address,
            actors=self.actors,
            gpus_per_actor=self.gpus_per_actor,
        )

    def _print(self, report: CacheReport, records: Sequence[tuple[str, str]]) -> None:
        if self.as_json:
            print_json(
                {
                    **asdict(report.plan),
                    "num_shards": report.plan.num_shards,
                    "num_new_shards": report.num_new_shards,
                    "num_samples": report.num_samples,
                    "num_valid": report.num_valid,
                    **skipped_json([*records, *report.faults]),
                    "faults": [{"image": name, "error": reason} for name, reason in report.faults],
                    "left_out": [f"{file}: {reason}" for file, reason in records],
                }
            )
        else:
            words = f"{report.num_samples:,} clicks, {report.num_valid:,} with two levels or more: {self.out}"
            out().print(words, soft_wrap=True, markup=False)
        if report.note is not None:
            noted(report.note)
        if report.faults:
            print_table("Images left out", ["image", "why"], report.faults, to=err())
        if records:
            print_table("Records left out", ["file", "why"], records, to=err())


def _drawn_levels(dataset: CocoDataset, name: str, device: str) -> LevelSource:
    del name, device
    return TruthLevels(dataset)


def _segmenter_levels(
    checkpoint: Path | None, prompts: PromptPlan, quality: bool, name: str, device: str
) -> LevelSource:
    return SegmenterLevels(open_segmenter(name, checkpoint, device), prompts, quality=quality)
