"""Trains a segmenter by clicks: stages of rising resolution, a moving average, checkpoints, one device or many."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from arrcoc_sam.errors import InputError, OutputError, TrainingError, explain
from arrcoc_sam.report.writing import replacing
from arrcoc_sam.scenes.scene import Scene
from arrcoc_sam.segmenters.checkpoints import load_weights
from arrcoc_sam.segmenters.tiny import TinyEncoder, build_tiny, set_image_size
from arrcoc_sam.training.batches import BatchPlan, PromptBatch
from arrcoc_sam.training.checkpoint import load_state, save_state
from arrcoc_sam.training.distributed import Devices, open_devices
from arrcoc_sam.training.feed import StepBatches, feed
from arrcoc_sam.training.interactive import InteractiveModel
from arrcoc_sam.training.logs import TrainingLog
from arrcoc_sam.training.settings import SegmenterTraining, Stage
from arrcoc_sam.training.sources import MaskSource, SceneCollection, SceneSource
from arrcoc_sam.training.trainable import has_live_batch_norm, parameter_groups, set_trainable, set_training_mode

__all__ = ["SegmenterTraining", "Stage", "train_segmenter"]


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
    progress: Callable[[int, dict[str, float]], None] | None = None,
) -> Sam:
    """Trains a model and returns its moving average, in eval mode.

    The run can be killed at any time: the last checkpoint in ``folder``, ``last.pt``, is resumed from, and the curve is
    that of an unbroken run. The log is ``log.csv``. Started by ``accelerate launch`` or ``torchrun`` it runs on many
    devices, which share the images of each step; the loss is normalised by the targets of all of them.

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
        InputError: Image sizes that the model can't take, images that can't be shared evenly, an unknown device, or
            parameters that there are not.
        CheckpointError: ``initial`` is missing, damaged, or of another architecture.
        DataError: The source holds no target of a usable size.
        TrainingError: The loss or the gradient is not finite (the batch is saved then), or ``folder`` holds a run of
            another configuration.
        MissingExtraError: Many devices without Accelerate, TensorBoard where it is not installed.
    """
    for name, value, least in (
        ("stop_after", 1 if stop_after is None else stop_after, 1),
        ("checkpoint_every", checkpoint_every, 1),
        ("log_every", log_every, 1),
        ("num_workers", num_workers, 0),
    ):
        if value < least:
            raise InputError(explain(f"{name}={value}", f"at least {least}"))
    devices = open_devices(device)
    torch.manual_seed(config.seed)
    trained = build_tiny(config.stages[0].image_size) if model is None else model
    _check(config, trained, devices)
    if initial is not None:
        load_weights(trained, initial, name="the model that is trained")
    folder = _made(Path(folder))
    set_trainable(trained, config.trainable)
    set_training_mode(trained, freeze_batch_norm=config.freeze_batch_norm)
    _check_parts(config, trained, devices)
    if isinstance(trained.image_encoder, TinyEncoder):
        trained.image_encoder.to(memory_format=torch.channels_last)
    module = devices.prepare(InteractiveModel(trained, config.recipe, autocast=config.autocast))
    average = None if config.ema_decay == 0 else _average(trained, config.ema_decay)
    groups = parameter_groups(
        trained,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        encoder_rate=config.encoder_rate,
    )
    optimizer = torch.optim.AdamW(groups)
    settings = {"training": asdict(config), "origin": dict(origin or {})}
    parts: dict[str, Any] = {"model": trained, "optimizer": optimizer} | ({"average": average} if average else {})
    step = _resume(folder / "last.pt", settings, parts)
    shared = StepBatches(
        _as_source(source), config, _plan(config, trained), rank=devices.rank, world_size=devices.world_size
    )
    final = config.total_steps if stop_after is None else min(stop_after, config.total_steps)
    batches = feed(shared, range(step, final), num_workers=num_workers)
    clock = _Throughput()
    main = devices.rank == 0
    log = TrainingLog(folder, first_step=step, tensorboard=tensorboard) if main else None
    for given in batches:
        stage = config.stage_at(step)
        if trained.image_encoder.img_size != stage.image_size:
            set_image_size(trained, stage.image_size)
        factor = config.curve(step)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        torch.manual_seed(config.seed + step)  # of layers that draw chance of their own, the same after a kill
        optimizer.zero_grad(set_to_none=True)
        here = [batch.to(devices.device) for batch in given]
        figures = _backward(module, here, devices)
        norm = nn.utils.clip_grad_norm_(trained.parameters(), config.clip_norm or float("inf"))
        if not (torch.isfinite(figures["loss"]) and torch.isfinite(norm)):
            raise _not_finite(folder / f"bad_batch_{devices.rank}.pt", given, step, figures["loss"], norm)
        optimizer.step()
        if average is not None:
            average.update_parameters(trained)
        step += 1
        clock.count(stage.num_images)
        last = step == final
        if main and log is not None and (step % log_every == 0 or last):
            row = {name: float(value) for name, value in figures.items()}
            row |= {"norm": float(norm), "rate": config.rate_at(step - 1), "images_per_second": clock.rate()}
            log.write(step, row)
            if progress is not None:
                progress(step, row)
        if main and (step % checkpoint_every == 0 or last):
            states = {name: part.state_dict() for name, part in parts.items()}
            save_state(folder / "last.pt", settings=settings, step=step, parts=states)
    if log is not None:
        log.close()
    devices.wait()
    shipped = trained if average is None else cast(Sam, average.module)
    if shipped.image_encoder.img_size != config.stages[-1].image_size:
        set_image_size(shipped, config.stages[-1].image_size)
    return shipped.eval()


def _backward(module: nn.Module, batches: Sequence[PromptBatch], devices: Devices) -> dict[str, Tensor]:
    """Gradients of one step's loss, and its figures over all devices."""
    count = torch.tensor(float(sum(len(batch) for batch in batches)), device=devices.device)
    # Gradients are averaged over the processes, and the loss is a mean over the targets of them all.
    normalizer = devices.sum(count)
    sums: dict[str, Tensor] = {}
    for number, batch in enumerate(batches):
        if number + 1 < len(batches):
            with devices.unsynced(module):
                loss, figures = module(batch, normalizer)
                (loss * devices.world_size).backward()
        else:
            loss, figures = module(batch, normalizer)
            (loss * devices.world_size).backward()
        for name, value in (figures | {"loss": loss.detach()}).items():
            sums[name] = sums[name] + value if name in sums else value
    totals = devices.sum(torch.stack(list(sums.values())))
    return dict(zip(sums, totals, strict=True))


def _check(config: SegmenterTraining, model: Sam, devices: Devices) -> None:
    """See that model and devices can take the stages."""
    size, parts = model.image_encoder.img_size, config.accumulation * devices.world_size
    for stage in config.stages:
        if isinstance(model.image_encoder, TinyEncoder):
            if stage.image_size % 32:
                raise InputError(explain(f"image_size={stage.image_size}", "a multiple of 32"))
        elif stage.image_size != size:
            expected = f"{size}: the positions of this model's encoder are learned"
            raise InputError(explain(f"image_size={stage.image_size}", expected))
        if stage.num_images % parts:
            came = f"num_images={stage.num_images} for {parts} parts (devices x accumulation)"
            raise InputError(explain(came, "a multiple of their number"))


def _check_parts(config: SegmenterTraining, model: Sam, devices: Devices) -> None:
    """See that the parts of a batch do not depend on one another."""
    alone = devices.world_size == 1 or devices.device.type == "cuda"  # where statistics are shared
    if has_live_batch_norm(model) and (config.accumulation > 1 or not alone):
        came = f"{config.accumulation} x {devices.world_size} parts of a batch, and batch normalisation in training"
        mend = "set freeze_batch_norm, or leave the encoder out of trainable"
        raise InputError(explain(came, "a model whose answer for an image does not depend on the others", mend))


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        came = f"{folder} can't be made ({error.strerror or error})"
        raise OutputError(explain(came, "a folder for checkpoints and log", "name another one")) from error
    return folder


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
        with_meant=config.recipe.expected_iou,
        augmentation=config.augmentation,
        padding=padding,
    )


def _average(model: nn.Module, decay: float) -> AveragedModel:
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)  # type: ignore[no-untyped-call]


def _resume(path: Path, settings: Mapping[str, Any], parts: Mapping[str, Any]) -> int:
    """Loads the last checkpoint into the parts and answers how many steps were done."""
    state = load_state(path, settings=settings)
    if state is None:
        return 0
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return int(state["step"])


def _not_finite(path: Path, batches: Sequence[PromptBatch], step: int, loss: Tensor, norm: Tensor) -> TrainingError:
    """The error that ends the run, with the batch on disk."""
    with replacing(path) as temporary:
        torch.save({"step": step, "batches": [batch.state() for batch in batches]}, temporary)
    came = f"the loss is {float(loss)} and the gradient's norm {float(norm)} at step {step}; the batch is in {path}"
    return TrainingError(explain(came, mend="lower the learning rate, or look at the batch"))


class _Throughput:
    """Images a second since the run began or was resumed."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._images = 0

    def count(self, images: int) -> None:
        self._images += images

    def rate(self) -> float:
        return self._images / max(time.monotonic() - self._began, 1e-9)
