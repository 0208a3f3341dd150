"""Trains a segmenter by clicks: stages of rising resolution, a moving average, checkpoints, one device or many."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from segment_anything.modeling import Sam
from torch import Tensor

from arrcoc_sam.errors import InputError, explain
from arrcoc_sam.report.writing import made_folder
from arrcoc_sam.scenes.scene import Scene
from arrcoc_sam.segmenters.tiny import build_tiny
from arrcoc_sam.segmenters.tiny_encoder import TinyEncoder
from arrcoc_sam.segmenters.weights import load_weights
from arrcoc_sam.training.batches import BatchPlan
from arrcoc_sam.training.configuration import check_counts
from arrcoc_sam.training.distributed import Devices, open_devices
from arrcoc_sam.training.feed import StepBatches, feed
from arrcoc_sam.training.logs import TrainingLog
from arrcoc_sam.training.segmenter_run import SegmenterRun, ready_to_train
from arrcoc_sam.training.settings import SegmenterTraining, Stage
from arrcoc_sam.training.sources import MaskSource, SceneCollection, SceneSource
from arrcoc_sam.training.validation import SegmenterValidator

__all__ = ["SegmenterTraining", "Stage", "check_training", "train_segmenter"]

Progress = Callable[[int, dict[str, float]], None]


def train_segmenter(
    config: SegmenterTraining,
    source: MaskSource | SceneCollection,
    folder: str | Path,
    *,
    model: Sam | None = None,
    initial: str | Path | None = None,
    device: torch.device | str = "auto",
    stop_after: int | None = None,
    checkpoint_every: int = 250,
    log_every: int = 10,
    num_workers: int = 0,
    tensorboard: bool = False,
    origin: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Sam:
    """Trains a model and returns its moving average, in eval mode.

    The run can be killed at any time: the last checkpoint in ``folder``, ``last.pt``, is resumed from, and the curve is
    that of an unbroken run. The log is ``log.csv``. Started by ``accelerate launch`` or ``torchrun`` it runs on many
    devices, which share the images of each step; the loss is normalised by the targets of all of them. With validation
    in ``config`` the best weights so far are in ``best.safetensors`` and the figures in ``validation/log.csv``.

    Args:
        config: Stages, recipe, optimizer, seed.
        source: What targets are drawn from; a collection of scenes is taken for a :class:`SceneSource`.
        folder: Where checkpoint and log go.
        model: What is trained, in place: a model of the embedded family, or one of segment-anything's; the embedded
            model with random weights by default.
        initial: Weights to begin with (.safetensors or .pth), of this architecture.
        device: "auto", "cpu", "cuda" or "mps".
        stop_after: Steps after which to end, before the schedule does; called again, the run goes on from there.
        checkpoint_every: Steps between checkpoints.
        log_every: Steps between rows of the log.
        num_workers: Processes that draw batches ahead.
        tensorboard: Write the log for TensorBoard too.
        origin: What else the run depends on, as JSON takes it (where data and weights come from): a checkpoint is
            resumed only where it is the same.
        progress: Called with (steps done, figures of the step) at each row of the log, on the main process.

    Raises:
        InputError: Image sizes that the model can't take, images that can't be shared evenly, an unknown device,
            parameters that there are not, or a number of steps or processes below its least.
        CheckpointError: ``initial`` is missing, damaged, or of another architecture.
        DataError: The source holds no target of a usable size.
        TrainingError: The loss or the gradient is not finite (the batch is saved then), or ``folder`` holds a run of
            another configuration.
        OutputError: ``folder`` can't be made.
        MissingExtraError: Many devices without Accelerate, TensorBoard where it is not installed.
    """
    check_counts(1, stop_after=stop_after, checkpoint_every=checkpoint_every, log_every=log_every)
    check_counts(0, num_workers=num_workers)
    devices = open_devices(device)
    torch.manual_seed(config.seed)
    trained = build_tiny(config.stages[0].image_size) if model is None else model
    _check(config, trained, devices)
    if initial is not None:
        load_weights(trained, initial, name="the model that is trained")
    run = SegmenterRun(config, trained, devices, made_folder(Path(folder)), origin=origin or {})
    shared = StepBatches(
        _as_source(source), config, _plan(config, trained), rank=devices.rank, world_size=devices.world_size
    )
    final = config.total_steps if stop_after is None else min(stop_after, config.total_steps)
    watch = _Watch(run, final, checkpoint_every, log_every, tensorboard, progress) if devices.rank == 0 else None
    for given in feed(shared, range(run.step, final), num_workers=num_workers):
        figures = run.take_step(given)
        if watch is not None:
            watch.after_step(figures)
    if watch is not None:
        watch.close()
    devices.wait()
    return run.ship()


class _Watch:
    """What the main process does beside the steps: log, validation, checkpoints."""

    def __init__(
        self,
        run: SegmenterRun,
        final: int,
        checkpoint_every: int,
        log_every: int,
        tensorboard: bool,
        progress: Progress | None,
    ) -> None:
        self._run, self._final, self._progress = run, final, progress
        self._checkpoint_every, self._log_every = checkpoint_every, log_every
        self._log = TrainingLog(run.folder, first_step=run.step, tensorboard=tensorboard)
        validated = run.config.validation.every > 0
        self._validator = SegmenterValidator(run, tensorboard=tensorboard) if validated else None
        self._clock = _Throughput()

    def after_step(self, figures: Mapping[str, Tensor]) -> None:
        """Whatever is due."""
        run, last = self._run, self._run.step == self._final
        self._clock.count(run.config.stage_at(run.step - 1).num_images)
        if run.step % self._log_every == 0 or last:
            row = {name: float(value) for name, value in figures.items()}
            row |= {"rate": run.config.rate_at(run.step - 1), "images_per_second": self._clock.rate()}
            self._log.write(run.step, row)
            if self._progress is not None:
                self._progress(run.step, row)
        if self._validator is not None:
            self._validator.after_step()
        if run.step % self._checkpoint_every == 0 or last:
            run.save()

    def close(self) -> None:
        """End the logs."""
        self._log.close()
        if self._validator is not None:
            self._validator.close()


def check_training(config: SegmenterTraining, model: Sam, devices: Devices) -> None:
    """Refuses what :func:`train_segmenter` would refuse of model and devices, which may be asked before there is data.

    Raises:
        InputError: Image sizes that the model can't take, images that can't be shared evenly, parameters that there
            are not, or parts of a batch that depend on one another.
    """
    _check(config, model, devices)
    ready_to_train(model, config, devices)


def _check(config: SegmenterTraining, model: Sam, devices: Devices) -> None:
    """See that model and devices can take the stages."""
    size, parts = model.image_encoder.img_size, config.accumulation * devices.world_size
    for number, stage in enumerate(config.stages):
        came = f"stages[{number}]: image_size={stage.image_size}"
        if isinstance(model.image_encoder, TinyEncoder):
            if stage.image_size % 32:
                raise InputError(explain(came, "a multiple of 32"))
        elif stage.image_size != size:
            raise InputError(explain(came, f"{size}: the positions of this model's encoder are learned"))
        if stage.num_images % parts:
            came = f"stages[{number}]: num_images={stage.num_images} for {parts} parts (devices x accumulation)"
            raise InputError(explain(came, "a multiple of their number"))


def _as_source(source: MaskSource | SceneCollection) -> MaskSource:
    if len(source) and isinstance(source[0], Scene):
        return SceneSource(cast(SceneCollection, source))
    return cast(MaskSource, source)


def _plan(config: SegmenterTraining, model: Sam) -> Callable[[int, int], BatchPlan]:
    """The look of batches at an image size and a number of targets."""
    height, _ = model.prompt_encoder.mask_input_size
    return partial(
        _batch_plan,
        cells_per_pixel=(int(height), int(model.image_encoder.img_size)),
        num_clicks=config.recipe.total_rounds - 1,
        config=config,
        padding=tuple(cast(Tensor, model.pixel_mean).flatten().tolist()),
    )


def _batch_plan(
    image_size: int,
    num_targets: int,
    *,
    cells_per_pixel: tuple[int, int],
    num_clicks: int,
    config: SegmenterTraining,
    padding: tuple[float, float, float],
) -> BatchPlan:
    cells, pixels = cells_per_pixel
    return BatchPlan(
        image_size=image_size,
        mask_size=image_size * cells // pixels,
        num_targets=num_targets,
        num_clicks=num_clicks,
        largest_target=config.recipe.largest_target,
        with_meant=config.recipe.needs_meant,
        given_share=config.recipe.given_mask_probability,
        given_targets=config.recipe.decoded_targets,
        augmentation=config.augmentation,
        padding=padding,
    )


class _Throughput:
    """Images a second since the run began or was resumed."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._images = 0

    def count(self, images: int) -> None:
        self._images += images

    def rate(self) -> float:
        return self._images / max(time.monotonic() - self._began, 1e-9)
