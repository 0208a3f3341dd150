"""``train attention`` from a file of settings to a trained model and what it attends to."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arrcoc_sam.cli.console import out, print_json, print_table
from arrcoc_sam.cli.options import check_segmenter, open_segmenter
from arrcoc_sam.cli.stage_progress import stage_progress
from arrcoc_sam.errors import DataError, InputError, explain
from arrcoc_sam.granularity.claims import MIN_COMPUTED
from arrcoc_sam.hierarchy.levels import LEVELS
from arrcoc_sam.report.provenance import DEMONSTRATION_MODEL
from arrcoc_sam.scenes.splits import TRAIN_SEEDS, VALIDATION_SEEDS
from arrcoc_sam.segmenters.base import Segmenter
from arrcoc_sam.training.attention.config import AttentionConfig, AttentionData, default_config
from arrcoc_sam.training.attention.evaluation import LevelReport, measurable_samples
from arrcoc_sam.training.attention.settings import AttentionTraining
from arrcoc_sam.training.attention.trainer import REPORT, WEIGHTS, build_attention, train_attention
from arrcoc_sam.training.cache.dataset import HierarchyCache, HierarchyDataset
from arrcoc_sam.training.cache.sources import TruthLevels
from arrcoc_sam.training.distributed import Devices, open_devices
from arrcoc_sam.training.samples_scenes import SceneLevels, prepare_scenes
from arrcoc_sam.training.samples_supervision import area_quantile_bounds, supervision

__all__ = ["TrainAttentionJob"]

Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class TrainAttentionJob:
    """Everything that ``train attention`` was told; :meth:`run` does it."""

    config: Path | None
    out: Path
    segmenter: str | None
    checkpoint: Path | None
    device: str
    workers: int
    evaluate_every: int
    checkpoint_every: int
    tensorboard: bool
    print_config: bool
    as_json: bool

    def run(self) -> None:
        """Train, and print what the heads attend to.

        Raises:
            ArrcocSamError: Bad settings or data, or a folder of another run.
        """
        if self.print_config:
            print(default_config(), end="")
            return
        config = AttentionConfig.read(self.config)
        if self.segmenter is not None:
            check_segmenter(self.segmenter)
        devices = open_devices(self.device)
        check_settings(config, devices)
        last: dict[str, float] = {}
        with stage_progress() as progress:
            train, judge = self._caches(config, devices, progress)
            samples = read_samples(train, config.attention)
            validation = None
            if judge is not None:
                truth = HierarchyDataset(
                    judge, target_hw=(config.attention.target_size,) * 2, image_size=config.attention.image_size
                )
                validation = measurable_samples(truth, config.attention.levels[-1], most=config.data.validation)

            def told(step: int, row: dict[str, float]) -> None:
                last.update(row)
                progress("steps", step, config.attention.steps)

            _, report = train_attention(
                config.attention,
                samples,
                self.out,
                validation=validation,
                provenance={
                    "checkpoint_hash": train.plan.checkpoint_hash,
                    "segmenter": train.plan.segmenter,
                    "images_sha256": train.plan.images_sha256,
                    "prompts": json.dumps(train.plan.prompts, sort_keys=True),
                },
                devices=devices,
                num_workers=self.workers,
                evaluate_every=self.evaluate_every,
                checkpoint_every=self.checkpoint_every,
                tensorboard=self.tensorboard,
                progress=told,
            )
        if devices.rank == 0:
            self._print(report, last)

    def _caches(
        self, config: AttentionConfig, devices: Devices, progress: Report
    ) -> tuple[HierarchyCache, HierarchyCache | None]:
        """What to train on, and what to judge on."""
        data = config.data
        if data.kind == "scenes" and data.levels == "truth" and (self.segmenter or self.checkpoint) is not None:
            came = 'levels = "truth" with --segmenter or --checkpoint'
            raise InputError(explain(came, "neither: exact masks teach, and no segmenter is asked"))
        if data.kind == "cache":
            # A cache of another segmenter than the one that is named is a mistake; without a name any will do.
            named = None
            if self.segmenter is not None or self.checkpoint is not None:
                named = self._segmenter()
            train = HierarchyCache.open(str(data.cache), segmenter=named, images=data.images)
            return train, None if data.validation_cache is None else _judging_cache(data, named)
        found = self._scenes(data, config.attention, progress) if devices.rank == 0 else None
        devices.wait()
        return self._drawn(data) if found is None else found

    def _segmenter(self) -> Segmenter:
        return open_segmenter(self.segmenter or DEMONSTRATION_MODEL, self.checkpoint, self.device)

    def _scenes(
        self, data: AttentionData, settings: AttentionTraining, progress: Report
    ) -> tuple[HierarchyCache, HierarchyCache | None]:
        named = self._segmenter() if data.levels == "segmenter" else None
        train = prepare_scenes(
            self.out / "scenes",
            TRAIN_SEEDS[: data.scenes],
            size=data.size,
            clicks=data.clicks,
            segmenter=named,
            quality=settings.min_quality > 0,
            progress=progress,
        )
        if data.validation == 0:
            return train, None
        # Twice as many: not every scene has a triple that the grid can tell apart.
        seeds = VALIDATION_SEEDS[: 2 * data.validation]
        judge = prepare_scenes(self.out / "validation", seeds, size=data.size, clicks=data.clicks, progress=progress)
        return train, judge

    def _drawn(self, data: AttentionData) -> tuple[HierarchyCache, HierarchyCache | None]:
        """What the main process made of the scenes."""
        places = [self.out / "scenes" / ("levels" if data.levels == "segmenter" else "truth")]
        places += [self.out / "validation" / "truth"] if data.validation else []
        for place in places:
            if not place.is_dir():
                came = f"{place}, which the first process made, is not here"
                raise DataError(explain(came, "a folder that all processes see", "name one that they share (--out)"))
        train, *judge = (HierarchyCache.open(place) for place in places)
        return train, judge[0] if judge else None

    def _print(self, report: LevelReport | None, last: dict[str, float]) -> None:
        figures: dict[str, Any] = {} if report is None else report.figures()
        if self.as_json:
            claimed = None if report is None else [str(level) for level in report.claims.level]
            print_json({"weights": str(self.out / WEIGHTS), "evaluation": figures, "claimed": claimed})
            return
        if report is not None:
            rows = [
                (
                    level,
                    *(f"{float(value):+.2f}" for value in report.contrast.nanmean(0)[number]),
                    f"{figures[f'z_{level}']:.1f}",
                    f"{100 * figures[f'area_{level}']:.0f} %",
                    str(report.claims.level[number]),
                )
                for number, level in enumerate(LEVELS)
            ]
            columns = ["head", *(f"at {level}" for level in LEVELS), "z", "area", "claimed"]
            title = f"Shell contrast beyond other images, nats ({report.claims.num_images} pictures)"
            print_table(title, columns, rows, to=out(), right=columns[1:-1])
            for reason in dict.fromkeys(str(reason) for reason in report.claims.reason if reason):
                heads = [level for level, found in zip(LEVELS, report.claims.reason, strict=True) if found == reason]
                out().print(f"Nothing is claimed of {', '.join(heads)}: {reason}.", soft_wrap=True, markup=False)
        if last:
            pace = f"{last['images_per_second']:.0f} pictures/s, at most {last['peak_gib']:.1f} GiB"
            out().print(pace, soft_wrap=True, markup=False)
        words = f"Wrote {self.out / WEIGHTS}, {REPORT} and log.csv beside it"
        out().print(words, soft_wrap=True, markup=False)
        words = f"Load it with arrcoc_sam.training.load_attention_model({str(self.out)!r})"
        out().print(words, soft_wrap=True, markup=False)


def _judging_cache(data: AttentionData, named: Segmenter | None) -> HierarchyCache:
    """The cache to judge on: of the named segmenter, or of masks that are known to be right.

    Raises:
        DataError: It is of another segmenter, or can't be read.
    """
    folder, images = str(data.validation_cache), data.validation_images
    cache = HierarchyCache.open(folder, images=images)
    if cache.plan.segmenter in (TruthLevels.name, SceneLevels.name):
        return cache
    return HierarchyCache.open(folder, segmenter=named, images=images)


def check_settings(config: AttentionConfig, devices: Devices) -> None:
    """Refuse what would be refused after scenes were drawn and caches built: a model, or numbers of pictures.

    Raises:
        InputError: Levels that do not grow, too few scenes to judge on, pictures that can't be dealt evenly.
        UnknownNameError: There is no such backbone.
        UnsupportedModelError: It has no spatial features.
    """
    if 0 < config.data.validation < MIN_COMPUTED:
        came = f"validation={config.data.validation} pictures to judge on"
        raise InputError(explain(came, f"at least {MIN_COMPUTED}, or 0 to judge nothing"))
    settings = config.attention
    parts = settings.accumulation * devices.world_size
    if settings.num_images % parts:
        came = f"num_images={settings.num_images} a step for {devices.world_size} processes"
        raise InputError(explain(f"{came} of {settings.accumulation} parts", f"a multiple of {parts}"))
    build_attention(settings)


def read_samples(cache: HierarchyCache, settings: AttentionTraining) -> HierarchyDataset:
    """The samples of a cache, taught as the settings say."""
    options: dict[str, Any] = {
        "target_hw": (settings.target_size,) * 2,
        "image_size": settings.image_size,
        "min_quality": settings.min_quality or None,
    }
    bounds = None
    if settings.supervision == "area_quantiles":
        bounds = area_quantile_bounds(HierarchyDataset(cache, **options).area_shares())
    teach = supervision(settings.supervision, weighted=settings.weighted, area_bounds=bounds, seed=settings.seed)
    return HierarchyDataset(cache, teach=teach, **options)
