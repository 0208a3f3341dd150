"""Trains the embedded model on scenes: stages of rising resolution, moving average, checkpoints that resume."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from arrcoc_sam.errors import InputError, TrainingError, explain
from arrcoc_sam.segmenters.sam import stock_decoder
from arrcoc_sam.segmenters.tiny import build_tiny, set_image_size
from arrcoc_sam.training.batches import SceneCollection, sample_scene_batch
from arrcoc_sam.training.interactive import ClickRecipe, interactive_loss

__all__ = ["SegmenterTraining", "Stage", "train_segmenter"]

ALL_TOKENS = (0, 1, 2, 3)


@dataclass(frozen=True)
class Stage:
    """So many steps at one resolution.

    Attributes:
        image_size: Side of the model's frame in pixels.
        steps: Optimizer steps.
        num_images: Images a step.
        num_targets: Prompts an image.
    """

    image_size: int
    steps: int
    num_images: int = 16
    num_targets: int = 4


@dataclass(frozen=True)
class SegmenterTraining:
    """Everything that, with the scenes, determines a training run.

    Attributes:
        stages: Resolutions and steps, in order.
        recipe: Prompts, rounds and loss weights.
        learning_rate: Peak of AdamW.
        weight_decay: Of AdamW, on weights with two axes or more.
        warmup_steps: Linear warm-up.
        decay_share: The last share of all steps, over which the rate falls linearly to zero.
        ema_decay: Of the moving average that is evaluated and shipped.
        clip_norm: Largest gradient norm.
        autocast: bfloat16 for encoder and transformer.
        seed: Of weights, batches and clicks.
    """

    stages: tuple[Stage, ...]
    recipe: ClickRecipe = field(default_factory=ClickRecipe)
    learning_rate: float = 8e-4
    weight_decay: float = 0.05
    warmup_steps: int = 250
    decay_share: float = 0.4
    ema_decay: float = 0.999
    clip_norm: float = 1.0
    autocast: bool = True
    seed: int = 0

    @property
    def total_steps(self) -> int:
        """Steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    def stage_at(self, step: int) -> Stage:
        """The stage that a step, counted from 0, belongs to."""
        for stage in self.stages:
            if step < stage.steps:
                return stage
            step -= stage.steps
        return self.stages[-1]

    def rate_at(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        warm = min(1.0, (step + 1) / max(self.warmup_steps, 1))
        left = (self.total_steps - step) / max(self.decay_share * self.total_steps, 1.0)
        return self.learning_rate * warm * min(1.0, left)


def train_segmenter(
    config: SegmenterTraining,
    scenes: SceneCollection,
    folder: str | Path,
    *,
    initial: str | Path | None = None,
    checkpoint_every: int = 250,
    progress: Callable[[int, dict[str, float]], None] | None = None,
) -> Sam:
    """Trains the embedded model and returns its moving average, in eval mode.

    The run can be stopped at any time: the last checkpoint in ``folder`` is resumed from, with the states of the
    optimizer and of the random generators, so that the curve is that of an unbroken run. The log is ``log.csv``.

    Args:
        config: Stages, recipe, optimizer, seed.
        scenes: Training scenes.
        folder: Where checkpoint and log go.
        initial: Weights of the embedded model (safetensors) to go on from; random ones by default.
        checkpoint_every: Steps between checkpoints.
        progress: Called with (steps done, figures of the step) at every tenth step.

    Raises:
        InputError: A stage without steps, or an image size that is not a multiple of 32.
        TrainingError: The loss is not finite; or ``folder`` holds a run of another configuration.
    """
    _check(config)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    model = build_tiny(config.stages[0].image_size).train()
    if initial is not None:
        model.load_state_dict({name: value.float() for name, value in load_file(initial).items()})
    model.image_encoder.to(memory_format=torch.channels_last)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay), use_buffers=True)  # type: ignore[no-untyped-call]
    optimizer = torch.optim.AdamW(_parameter_groups(model, config.weight_decay), lr=config.learning_rate)
    rng, clicks = np.random.default_rng(config.seed), torch.Generator().manual_seed(config.seed)
    step = _resume(folder / "last.pt", config, model, average, optimizer, rng, clicks)
    _truncate_log(folder / "log.csv", step)
    began = time.monotonic()
    first = step
    while step < config.total_steps:
        stage = config.stage_at(step)
        set_image_size(model, stage.image_size)
        for group in optimizer.param_groups:
            group["lr"] = config.rate_at(step)
        loss, figures = _step(model, scenes, stage, config, rng, clicks)
        if not torch.isfinite(loss):
            raise TrainingError(explain(f"the loss is {loss.item()} at step {step}", mend="lower the learning rate"))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimizer.step()
        average.update_parameters(model)
        step += 1
        if step % 10 == 0 or step == config.total_steps:
            row = {name: float(value) for name, value in figures.items()}
            row |= {"loss": loss.item(), "norm": float(norm), "rate": config.rate_at(step - 1)}
            row["images_per_second"] = (step - first) * stage.num_images / (time.monotonic() - began)
            _log(folder / "log.csv", step, row)
            if progress is not None:
                progress(step, row)
        if step % checkpoint_every == 0 or step == config.total_steps:
            _save(folder / "last.pt", config, step, model, average, optimizer, rng, clicks)
    shipped = cast(Sam, average.module)
    set_image_size(shipped, config.stages[-1].image_size)
    return shipped.eval()


def _step(
    model: Sam,
    scenes: SceneCollection,
    stage: Stage,
    config: SegmenterTraining,
    rng: np.random.Generator,
    clicks: torch.Generator,
) -> tuple[Tensor, dict[str, Tensor]]:
    batch = sample_scene_batch(
        scenes,
        rng,
        num_images=stage.num_images,
        num_targets=stage.num_targets,
        image_size=stage.image_size,
        mask_size=stage.image_size // 2,
    )
    pixels = model.preprocess(batch.images).contiguous(memory_format=torch.channels_last)
    reduced = partial(torch.autocast, "cpu", torch.bfloat16, enabled=config.autocast)
    with reduced():
        embeddings = model.image_encoder(pixels)
    image_pe = model.prompt_encoder.get_dense_pe()

    def decode(embeddings: Tensor, sparse: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
        return stock_decoder(model.mask_decoder, embeddings, image_pe, sparse, dense, ALL_TOKENS, reduced=reduced)

    return interactive_loss(model, embeddings.float(), batch, config.recipe, generator=clicks, decode=decode)


def _check(config: SegmenterTraining) -> None:
    if not config.stages:
        raise InputError(explain("stages is empty", "at least one Stage"))
    for stage in config.stages:
        if stage.image_size % 32 or stage.image_size < 32 or stage.steps < 1:
            raise InputError(explain(f"{stage}", "image_size a positive multiple of 32, steps positive"))


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Biases, norms and embeddings of one row are not decayed."""
    matrices = [p for p in model.parameters() if p.ndim > 1 and p.shape[0] > 1]
    others = [p for p in model.parameters() if not (p.ndim > 1 and p.shape[0] > 1)]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _save(
    path: Path,
    config: SegmenterTraining,
    step: int,
    model: Sam,
    average: AveragedModel,
    optimizer: torch.optim.Optimizer,
    rng: np.random.Generator,
    clicks: torch.Generator,
) -> None:
    state = {
        "config": json.dumps(asdict(config)),
        "step": step,
        "model": model.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rng": json.dumps(rng.bit_generator.state),
        "clicks": clicks.get_state(),
        "torch_rng": torch.get_rng_state(),
    }
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(path)


def _resume(
    path: Path,
    config: SegmenterTraining,
    model: Sam,
    average: AveragedModel,
    optimizer: torch.optim.Optimizer,
    rng: np.random.Generator,
    clicks: torch.Generator,
) -> int:
    if not path.is_file():
        return 0
    state = torch.load(path, weights_only=True)
    if state["config"] != json.dumps(asdict(config)):
        raise TrainingError(
            explain(
                f"{path} belongs to a run of another configuration",
                "the configuration it was started with",
                "name another folder, or delete this one",
            )
        )
    model.load_state_dict(state["model"])
    average.load_state_dict(state["average"])
    optimizer.load_state_dict(state["optimizer"])
    rng.bit_generator.state = json.loads(state["rng"])
    clicks.set_state(state["clicks"])
    torch.set_rng_state(state["torch_rng"])
    return int(state["step"])


def _log(path: Path, step: int, row: dict[str, float]) -> None:
    new = not path.is_file()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(["step", *row])
        writer.writerow([step, *(f"{value:.6g}" for value in row.values())])


def _truncate_log(path: Path, step: int) -> None:
    """Drops the rows that a killed run logged after its last checkpoint."""
    if not path.is_file():
        return
    lines = path.read_text().splitlines()
    kept = [line for line in lines[1:] if int(line.split(",", 1)[0]) <= step]
    path.write_text("\n".join([lines[0], *kept]) + "\n")
