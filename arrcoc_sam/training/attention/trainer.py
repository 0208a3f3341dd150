"""Trains attention with a hierarchy of masks: on one device or many, resumed to the same curve after a kill."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from arrcoc_sam.errors import CheckpointError, InputError, TrainingError, explain, first_line
from arrcoc_sam.losses import HierarchicalAttentionLoss
from arrcoc_sam.losses.levels import level_weights
from arrcoc_sam.report.provenance import installed_versions
from arrcoc_sam.report.writing import made_folder, write_text
from arrcoc_sam.training.attention.evaluation import LevelReport, check_judged, evaluate_levels
from arrcoc_sam.training.attention.feed import SampleCollection, StepSamples, feed_samples
from arrcoc_sam.training.attention.model import MultiScaleAttention
from arrcoc_sam.training.attention.settings import AttentionTraining
from arrcoc_sam.training.checkpoint import load_parts, load_state, save_bad_batch, save_state, save_weights
from arrcoc_sam.training.configuration import check_counts
from arrcoc_sam.training.distributed import Devices, open_devices
from arrcoc_sam.training.logs import TrainingLog
from arrcoc_sam.training.optimizer import build_optimizer
from arrcoc_sam.training.samples import AttentionBatch, AttentionSample

__all__ = ["REPORT", "WEIGHTS", "build_attention", "load_attention_model", "peak_memory", "train_attention"]

WEIGHTS = "attention.safetensors"
"""What a finished run leaves in its folder: the weights, with the settings in the file's header."""

REPORT = "report.json"
"""Beside it: settings, versions, and what the heads attend to."""

Progress = Callable[[int, dict[str, float]], None]


def train_attention(
    settings: AttentionTraining,
    samples: SampleCollection,
    folder: str | Path,
    *,
    validation: Sequence[AttentionSample] | None = None,
    provenance: dict[str, str] | None = None,
    devices: Devices | None = None,
    num_workers: int = 0,
    checkpoint_every: int = 200,
    evaluate_every: int = 0,
    log_every: int = 10,
    tensorboard: bool = False,
    progress: Progress | None = None,
) -> tuple[MultiScaleAttention, LevelReport | None]:
    """Train, evaluate and keep a model.

    The run can be stopped at any time and called again: it goes on from the last checkpoint in ``folder`` and takes the
    course of an unbroken one. In ``folder`` are ``log.csv``, ``evaluation/log.csv``, ``last.pt`` and, at the end, the
    weights of the moving average (:data:`WEIGHTS`) and ``report.json``.

    Args:
        settings: Model, supervision, optimisation.
        samples: What to train on, such as a :class:`~arrcoc_sam.training.cache.dataset.HierarchyDataset`.
        folder: Where everything goes.
        validation: One sample a picture, from :func:`~arrcoc_sam.training.attention.evaluation.measurable_samples`.
        provenance: What the data are, for the checkpoint: a run is resumed only with the same.
        devices: Where to run; all processes of a launcher, or this one, by default.
        num_workers: Processes that draw batches ahead.
        checkpoint_every: Steps between checkpoints.
        evaluate_every: Steps between evaluations; 0 evaluates at the end only.
        log_every: Steps between rows of the log.
        tensorboard: Write for TensorBoard as well.
        progress: Called with (steps done, figures of the step) at every row of the log.

    Returns:
        The moving average in eval mode, and its evaluation.

    Raises:
        InputError: Batch normalisation that is kept while a step is worked through in several parts; samples that are
            no collection; pictures that can't be dealt evenly or are of another size; too few samples to judge on; a
            number of steps or processes below its least.
        TrainingError: The loss or the gradient is not finite (the batch is saved then), or ``folder`` holds a run of
            other settings.
        OutputError: ``folder`` can't be made.
    """
    check_counts(1, checkpoint_every=checkpoint_every, log_every=log_every)
    check_counts(0, evaluate_every=evaluate_every, num_workers=num_workers)
    devices = open_devices() if devices is None else devices
    if validation is not None:
        check_judged(validation)
    batches = StepSamples(samples, settings, rank=devices.rank, world_size=devices.world_size)
    batches.check_picture()  # before a model is made, or a folder
    run = _Run(settings, devices, Path(folder), provenance or {})
    watch = None
    if devices.rank == 0:
        watch = _Watch(run, validation, checkpoint_every, evaluate_every, log_every, tensorboard, progress)
    devices.wait()
    for parts in feed_samples(batches, range(run.step, settings.steps), num_workers=num_workers):
        figures = run.take_step(parts)
        if watch is not None:
            watch.after_step(figures)
    devices.wait()
    trained = run.averaged.eval()
    report = None if watch is None else watch.finish(trained, provenance or {})
    return trained, report


class _Run:
    """What changes from step to step: the weights, their moving average, the optimizer, the number of steps done."""

    def __init__(self, settings: AttentionTraining, devices: Devices, folder: Path, provenance: dict[str, str]) -> None:
        self.settings, self.devices, self.folder = settings, devices, folder
        torch.manual_seed(settings.seed)
        self._model = build_attention(settings).train()
        _check_norm(self._model, settings, devices)
        self._model.to(devices.device)
        self._average = AveragedModel(
            self._model,
            multi_avg_fn=get_ema_multi_avg_fn(settings.ema_decay),  # type: ignore[no-untyped-call]
            use_buffers=True,
        )
        self._optimizer = build_optimizer(
            "adamw", self._model, learning_rate=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self._identity = {"settings": asdict(settings), "data": provenance}
        self.step = self._resume()
        self._wrapped = devices.prepare(self._model)
        self._criterion = HierarchicalAttentionLoss(
            reduction="sum", focal_weight=settings.focal_weight, dice_weight=settings.dice_weight
        )

    @property
    def averaged(self) -> MultiScaleAttention:
        """The moving average."""
        return cast(MultiScaleAttention, self._average.module)

    @property
    def _parts(self) -> dict[str, Any]:
        return {"model": self._model, "average": self._average, "optimizer": self._optimizer}

    def _resume(self) -> int:
        """Loads the last checkpoint and answers how many steps were done."""
        before = {"settings": {"milestones": ()}}  # what an older version's checkpoint did not record
        path = self.folder / "last.pt"
        state = load_state(path, settings=self._identity, defaults=before)
        if state is None:
            return 0
        load_parts(path, state, self._parts)
        return int(state["step"])

    def save(self) -> None:
        """Write the checkpoint."""
        states = {name: part.state_dict() for name, part in self._parts.items()}
        save_state(self.folder / "last.pt", settings=self._identity, step=self.step, parts=states)

    def take_step(self, parts: Sequence[AttentionBatch]) -> dict[str, float]:
        """One step of the optimizer and of the moving average; answers loss, gradient norm and learning rate."""
        settings, devices, step = self.settings, self.devices, self.step
        for group in self._optimizer.param_groups:
            group["lr"] = group["peak"] * settings.curve(step)
        # dropout, stochastic depth
        torch.manual_seed((settings.seed * settings.steps + step) * devices.world_size + devices.rank)
        loss = _accumulate(self._wrapped, self._criterion, parts, settings, devices)
        norm = nn.utils.clip_grad_norm_(self._model.parameters(), settings.clip_norm or float("inf"))
        for name, value in (("loss", loss), ("gradient's norm", norm)):
            if not bool(torch.isfinite(value)):
                path = self.folder / f"bad_batch_{devices.rank}.pt"
                save_bad_batch(path, [part.state() for part in parts], step=step)
                came = f"the {name} is {value.item()} at step {step}; the batch is in {path}"
                raise TrainingError(explain(came, mend="lower the learning rate, or look at the batch"))
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._average.update_parameters(self._model)
        self.step += 1
        return {"loss": loss.item(), "norm": float(norm), "rate": self._optimizer.param_groups[0]["lr"]}


class _Watch:
    """What the main process does beside the steps: log, evaluation, checkpoints, and what is left at the end."""

    def __init__(
        self,
        run: _Run,
        validation: Sequence[AttentionSample] | None,
        checkpoint_every: int,
        evaluate_every: int,
        log_every: int,
        tensorboard: bool,
        progress: Progress | None,
    ) -> None:
        self._run, self._validation, self._progress = run, validation, progress
        self._checkpoint_every, self._evaluate_every, self._log_every = checkpoint_every, evaluate_every, log_every
        evaluation = made_folder(run.folder / "evaluation")
        self._log = TrainingLog(run.folder, first_step=run.step, tensorboard=tensorboard)
        self._judged = TrainingLog(evaluation, first_step=run.step, tensorboard=tensorboard)
        self._began, self._first = time.monotonic(), run.step

    def after_step(self, figures: dict[str, float]) -> None:
        """Whatever is due."""
        run, last = self._run, self._run.step == self._run.settings.steps
        if run.step % self._log_every == 0 or last:
            pace = (run.step - self._first) * run.settings.num_images / (time.monotonic() - self._began)
            row = figures | {"images_per_second": pace, "peak_gib": peak_memory(run.devices.device)}
            self._log.write(run.step, row)
            if self._progress is not None:
                self._progress(run.step, row)
        # evaluated before it is saved: a run that is killed in between comes by here again
        if self._validation and self._evaluate_every and run.step % self._evaluate_every == 0 and not last:
            self._judged.write(run.step, evaluate_levels(run.averaged, self._validation).figures())
        if run.step % self._checkpoint_every == 0 or last:
            run.save()

    def finish(self, trained: MultiScaleAttention, provenance: dict[str, str]) -> LevelReport | None:
        """Evaluate what came out, and write it."""
        run, report = self._run, None
        if self._validation:
            report = evaluate_levels(trained, self._validation)
            if self._judged.last_step < run.step:
                self._judged.write(run.step, report.figures())
        _finish(run.folder, trained, run.settings, provenance, report)
        self._log.close()
        self._judged.close()
        return report


def build_attention(settings: AttentionTraining) -> MultiScaleAttention:
    """The model that settings describe, with random weights unless they are published ones.

    Raises:
        UnknownNameError: timm has no such model.
        UnsupportedModelError: It has no spatial features.
    """
    return MultiScaleAttention(
        settings.backbone,
        settings.levels,
        image_size=settings.image_size,
        width=settings.width,
        pretrained=settings.pretrained,
        batch_norm=settings.batch_norm,
        frozen=settings.frozen,
    )


def load_attention_model(path: str | Path) -> MultiScaleAttention:
    """A trained model, in eval mode, from the file or the folder of its run.

    Raises:
        CheckpointError: No such file, or one that no run of attention wrote.
    """
    path = Path(path)
    path = path / WEIGHTS if path.is_dir() else path
    try:
        with safe_open(path, framework="pt") as file:
            record = json.loads((file.metadata() or {})["settings"])
        record |= {name: tuple(record.get(name, ())) for name in ("levels", "milestones")}  # JSON knows lists alone
        settings = AttentionTraining(**record | {"pretrained": False})
        model = build_attention(settings)
        model.load_state_dict(load_file(path))
    except Exception as error:  # safetensors and torch raise many kinds on files that are something else
        came = f"{path} can't be read ({first_line(error)})"
        raise CheckpointError(explain(came, f"the {WEIGHTS} of a run")) from error
    return model.eval()


def _accumulate(
    model: nn.Module,
    criterion: HierarchicalAttentionLoss,
    parts: Sequence[AttentionBatch],
    settings: AttentionTraining,
    devices: Devices,
) -> Tensor:
    """Gradients of one step, worked through part by part; answers the loss of all processes.

    Every part is divided by the weight of the whole step, so that its gradient does not depend on how it was cut up.
    """
    parts = [part.to(devices.device) for part in parts]
    weight = torch.stack([level_weights(part.confidence, part.valid).sum() for part in parts]).sum()
    weight = devices.sum(weight)
    total = torch.zeros((), device=devices.device)
    for number, part in enumerate(parts):
        context = devices.unsynced(model) if number + 1 < len(parts) else nullcontext()
        with context:
            with torch.autocast(devices.device.type, torch.bfloat16, enabled=settings.autocast):
                logits = model(part.images, part.points_xy, part.image_index)
            losses = criterion([level.float() for level in logits], part.targets, part.confidence, valid=part.valid)
            loss = losses / weight.clamp_min(torch.finfo(weight.dtype).tiny)
            # Gradients are averaged over the processes, and have to be summed.
            (loss * devices.world_size).backward()
            total += loss.detach()
    return devices.sum(total)


def _check_norm(model: nn.Module, settings: AttentionTraining, devices: Devices) -> None:
    live = any(isinstance(module, _BatchNorm) and module.training for module in model.modules())
    synced = devices.device.type == "cuda" and settings.accumulation == 1
    if live and settings.accumulation * devices.world_size > 1 and not synced:
        came = f"batch_norm='keep' with {settings.accumulation} parts a step on {devices.world_size} processes"
        mend = "statistics would depend on how a step is cut up: use batch_norm='group' or 'frozen'"
        raise InputError(explain(came, "one part on one process", mend))


def peak_memory(device: torch.device) -> float:
    """The most memory that was used, in GiB: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kibibytes on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _finish(
    folder: Path,
    model: MultiScaleAttention,
    settings: AttentionTraining,
    provenance: dict[str, str],
    report: LevelReport | None,
) -> None:
    metadata = {"settings": json.dumps(asdict(settings)), "data": json.dumps(provenance)}
    save_weights(folder / WEIGHTS, model, metadata | {"versions": json.dumps(installed_versions())})
    record: dict[str, Any] = {"settings": asdict(settings), "data": provenance, "versions": installed_versions()}
    if report is not None:
        claimed = [str(level) for level in report.claims.level]
        figures = {name: value if value == value else None for name, value in report.figures().items()}
        record["evaluation"] = figures | {
            "claimed": claimed,
            "reason": [str(reason) for reason in report.claims.reason],
            "p_level": [[float(p) if p == p else None for p in row] for row in report.claims.p_level],
            "num_images": report.claims.num_images,
        }
    write_text(folder / REPORT, json.dumps(record, indent=2) + "\n")
