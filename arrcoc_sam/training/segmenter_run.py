"""A run of :func:`~arrcoc_sam.training.segmenter.train_segmenter`: its state, one step, checkpoints, what it ships."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from arrcoc_sam.errors import InputError, TrainingError, explain
from arrcoc_sam.segmenters.tiny import set_image_size
from arrcoc_sam.segmenters.tiny_encoder import TinyEncoder
from arrcoc_sam.training.batches import PromptBatch
from arrcoc_sam.training.checkpoint import load_parts, load_state, save_bad_batch, save_state
from arrcoc_sam.training.distributed import Devices
from arrcoc_sam.training.interactive import InteractiveModel, num_targets
from arrcoc_sam.training.optimizer import build_optimizer
from arrcoc_sam.training.settings import SegmenterTraining, Stage, Validation
from arrcoc_sam.training.trainable import has_live_batch_norm, set_trainable, set_training_mode

__all__ = ["SegmenterRun", "ready_to_train"]


class SegmenterRun:
    """What changes from step to step: the weights, their moving average, the optimizer, the number of steps done.

    Attributes:
        config: Stages, recipe, optimizer, seed.
        model: What is trained.
        step: Steps done; those of the checkpoint in ``folder`` at first.
        extra: What else the checkpoint held, and what the next one is to hold.

    Args:
        config: Stages, recipe, optimizer, seed.
        model: The model, its first weights loaded.
        devices: Where it runs.
        folder: Of checkpoints.
        origin: What else the run depends on; a checkpoint is resumed only where it is the same.

    Raises:
        InputError: Parameters that there are not, or parts of a batch that depend on one another.
        TrainingError: The folder holds a run of another configuration.
    """

    def __init__(
        self, config: SegmenterTraining, model: Sam, devices: Devices, folder: Path, *, origin: Mapping[str, Any]
    ) -> None:
        ready_to_train(model, config, devices)
        if isinstance(model.image_encoder, TinyEncoder):
            model.image_encoder.to(memory_format=torch.channels_last)
        self.config, self.model, self.devices, self.folder = config, model, devices, folder
        self._module = devices.prepare(InteractiveModel(model, config.recipe, autocast=config.autocast))
        self._average = None if config.ema_decay == 0 else _average(model, config.ema_decay)
        self._optimizer = build_optimizer(
            config.optimizer,
            model,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            encoder_rate=config.encoder_rate,
        )
        self._settings = {"training": _recorded(config), "origin": dict(origin)}
        self.extra: dict[str, Any] = {}
        self.step = self._resume()

    @property
    def _parts(self) -> dict[str, Any]:
        averaged = {} if self._average is None else {"average": self._average}
        return {"model": self.model, "optimizer": self._optimizer} | averaged

    def _resume(self) -> int:
        """Loads the last checkpoint and answers how many steps were done."""
        path = self.folder / "last.pt"
        state = load_state(path, settings=self._settings, defaults=_DEFAULTS)
        if state is None:
            return 0
        load_parts(path, state, self._parts)
        self.extra = dict(state.get("extra", {}))
        return int(state["step"])

    def save(self) -> None:
        """Write the checkpoint.

        Raises:
            OutputError: It can't be written.
        """
        states = {name: part.state_dict() for name, part in self._parts.items()}
        path = self.folder / "last.pt"
        save_state(path, settings=self._settings, step=self.step, parts=states | {"extra": self.extra})

    def take_step(self, given: Sequence[PromptBatch]) -> dict[str, Tensor]:
        """One step of the optimizer and of the moving average.

        Args:
            given: This process's share of the step, one batch for each accumulation step.

        Returns:
            Figures over all devices, and ``norm``, the gradient's.

        Raises:
            TrainingError: Loss or gradient is not finite; the batch is on disk then.
        """
        stage = self.config.stage_at(self.step)
        if self.model.image_encoder.img_size != stage.image_size:
            set_image_size(self.model, stage.image_size)
        factor = self.config.curve(self.step)
        for group in self._optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        torch.manual_seed(self.config.seed + self.step)  # of layers that draw chance of their own, same after a kill
        self._optimizer.zero_grad(set_to_none=True)
        counts = [num_targets(batch, self.config.recipe) for batch in given]
        figures = _backward(self._module, [batch.to(self.devices.device) for batch in given], counts, self.devices)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm or float("inf"))
        if not (torch.isfinite(figures["loss"]) and torch.isfinite(norm)):
            path = self.folder / f"bad_batch_{self.devices.rank}.pt"
            raise _not_finite(path, given, self.step, figures["loss"], norm)
        self._optimizer.step()
        if self._average is not None:
            self._average.update_parameters(self.model)
        self.step += 1
        return figures | {"norm": norm}

    @contextmanager
    def as_shipped(self) -> Iterator[Sam]:
        """What :meth:`ship` gives, for a while; then the run goes on as if nothing had been."""
        model = self._shipped()
        size, training = model.image_encoder.img_size, [module for module in model.modules() if module.training]
        self._finish(model)
        try:
            yield model
        finally:
            if size != model.image_encoder.img_size:
                set_image_size(model, size)
            for module in training:
                module.training = True

    def ship(self) -> Sam:
        """The moving average, or the weights where there is none, in eval mode at the last stage's size."""
        return self._finish(self._shipped())

    def _shipped(self) -> Sam:
        return self.model if self._average is None else cast(Sam, self._average.module)

    def _finish(self, model: Sam) -> Sam:
        if model.image_encoder.img_size != self.config.stages[-1].image_size:
            set_image_size(model, self.config.stages[-1].image_size)
        return model.eval()


def ready_to_train(model: Sam, config: SegmenterTraining, devices: Devices) -> None:
    """Freezes what is not trained and sets the mode of every module.

    Raises:
        InputError: Parameters that there are not, or parts of a batch that depend on one another.
    """
    set_trainable(model, config.trainable)
    set_training_mode(model, freeze_batch_norm=config.freeze_batch_norm)
    _check_parts(config, model, devices)


def _recorded(config: SegmenterTraining) -> dict[str, Any]:
    """The settings that a run is known by: how often it is judged is none."""
    return asdict(config if config.validation.every else replace(config, validation=Validation()))


_DEFAULTS = {"training": asdict(SegmenterTraining(stages=(Stage(32, 1),)))}
"""What an older version's checkpoint did not record: an option that came later, with the value that changes nothing."""


def _average(model: nn.Module, decay: float) -> AveragedModel:
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)  # type: ignore[no-untyped-call]


def _backward(
    module: nn.Module, batches: Sequence[PromptBatch], counts: Sequence[tuple[int, int]], devices: Devices
) -> dict[str, Tensor]:
    """Gradients of one step's loss, and its figures over all devices."""
    # Gradients are averaged over the processes, and the loss is a mean over the targets of them all.
    normalizers = devices.sum(torch.tensor(counts, dtype=torch.float32, device=devices.device).sum(dim=0))
    sums: dict[str, Tensor] = {}
    for number, batch in enumerate(batches):
        if number + 1 < len(batches):
            with devices.unsynced(module):
                loss, figures = module(batch, normalizers)
                (loss * devices.world_size).backward()
        else:
            loss, figures = module(batch, normalizers)
            (loss * devices.world_size).backward()
        for name, value in (figures | {"loss": loss.detach()}).items():
            sums[name] = sums[name] + value if name in sums else value
    totals = devices.sum(torch.stack(list(sums.values())))
    return dict(zip(sums, totals, strict=True))


def _check_parts(config: SegmenterTraining, model: Sam, devices: Devices) -> None:
    """See that the parts of a batch do not depend on one another."""
    alone = devices.world_size == 1 or devices.device.type == "cuda"  # where statistics are shared
    if has_live_batch_norm(model) and (config.accumulation > 1 or not alone):
        came = f"{config.accumulation} x {devices.world_size} parts of a batch, and batch normalisation in training"
        mend = "set freeze_batch_norm, or leave the encoder out of trainable"
        raise InputError(explain(came, "a model whose answer for an image does not depend on the others", mend))


def _not_finite(path: Path, batches: Sequence[PromptBatch], step: int, loss: Tensor, norm: Tensor) -> TrainingError:
    """The error that ends the run, with the batch on disk."""
    save_bad_batch(path, [batch.state() for batch in batches], step=step)
    came = f"the loss is {float(loss)} and the gradient's norm {float(norm)} at step {step}; the batch is in {path}"
    return TrainingError(explain(came, mend="lower the learning rate, or look at the batch"))
