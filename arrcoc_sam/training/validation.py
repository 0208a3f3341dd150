"""Judges a segmenter in training on held-out scenes, by clicks, and keeps the best weights."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import safe_open

from arrcoc_sam.quality.click_protocol import AnnotatedImage, evaluate_clicks, summarize_clicks
from arrcoc_sam.report.writing import made_folder
from arrcoc_sam.scenes import STYLES, generate_scene
from arrcoc_sam.segmenters.sam import SamSegmenter
from arrcoc_sam.training.checkpoint import save_weights
from arrcoc_sam.training.logs import TrainingLog
from arrcoc_sam.training.segmenter_run import SegmenterRun
from arrcoc_sam.training.settings import Validation

__all__ = ["BEST", "SegmenterValidator", "read_best", "validation_images"]

BEST = "best.safetensors"
"""The best weights so far in the folder of a run, with step and figures in the file's header, as JSON; null for NaN."""


def validation_images(settings: Validation) -> list[AnnotatedImage]:
    """Held-out scenes: the rich ones first, by their share, then lifelike, then natural, then plain ones."""
    styles = [style for style, count in settings.counts.items() for _ in range(count)]
    images = []
    for seed, style in enumerate(styles, settings.first_seed):
        scene = generate_scene(seed, settings.size, style=style)
        images.append(AnnotatedImage(f"{style}-{seed}", scene.image, scene.masks, scene.levels))
    return images


class SegmenterValidator:
    """Judges a run when it is due.

    Args:
        run: What is judged; its ``extra["best"]`` keeps step and figure of the best weights.
        tensorboard: Write for TensorBoard too.
    """

    def __init__(self, run: SegmenterRun, *, tensorboard: bool = False) -> None:
        self._run, self._settings = run, run.config.validation
        folder = made_folder(run.folder / "validation")
        self._log = TrainingLog(folder, first_step=run.step, tensorboard=tensorboard)

    @cached_property
    def _images(self) -> list[AnnotatedImage]:
        return validation_images(self._settings)

    def after_step(self) -> None:
        """Judge, log, and keep the weights if they are the best so far; nothing where it is not due."""
        run = self._run
        if run.step % self._settings.every and run.step != run.config.total_steps:
            return
        with run.as_shipped() as model:
            figures = self._judge(SamSegmenter(model, name=f"step {run.step}"))
            self._log.write(run.step, figures)
            best, figure = run.extra.get("best"), figures[self._settings.figure]
            if figure == figure and (best is None or figure > best["figure"]):  # NaN is never the best
                run.extra["best"] = {"step": run.step, "figure": figure}
                known = {name: value if value == value else None for name, value in figures.items()}
                record = {"step": run.step, "chosen_by": self._settings.figure, "figures": known}
                size = str(model.image_encoder.img_size)
                save_weights(run.folder / BEST, model, {"image_size": size, "validation": json.dumps(record)})

    def _judge(self, segmenter: SamSegmenter) -> dict[str, float]:
        """The protocol's figures over all scenes, and those of each style where there are several."""
        report = evaluate_clicks(segmenter, self._images, clicks=self._settings.clicks)
        figures = {name: float(value) for name, value in report.summary.items()}
        style = report.nodes["image"].str.partition("-")[0]
        for name in STYLES:
            nodes = report.nodes[style == name]
            if 0 < len(nodes) < len(report.nodes):
                summary = summarize_clicks(nodes)
                chosen = ("oracle_iou", "automatic_iou", "pearson")
                figures |= {f"{name}/{each}": float(summary[each]) for each in chosen}
        return figures

    def close(self) -> None:
        """End the log."""
        self._log.close()


def read_best(folder: Path) -> dict[str, Any] | None:
    """Step and figures of the best weights of a run; None where none were kept."""
    path = folder / BEST
    if not path.is_file():
        return None
    with safe_open(path, "pt") as file:
        record: dict[str, Any] = json.loads((file.metadata() or {})["validation"])
    return record
