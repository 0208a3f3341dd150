"""Everything that, with the data, determines a training run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from arrcoc_sam.errors import InputError, explain
from arrcoc_sam.training.batches import Augmentation
from arrcoc_sam.training.recipe import SAM1_RECIPE, SAM2_RECIPE, ClickRecipe
from arrcoc_sam.training.schedule import Schedule, ScheduleShape

__all__ = ["PRESETS", "SegmenterTraining", "Stage"]


@dataclass(frozen=True)
class Stage:
    """So many steps at one resolution.

    Attributes:
        image_size: Side of the model's frame in pixels.
        steps: Optimizer steps.
        num_images: Images a step, on all devices together.
        num_targets: The most targets an image.
    """

    image_size: int
    steps: int
    num_images: int = 16
    num_targets: int = 4

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InputError: One is not positive.
        """
        for name in ("image_size", "steps", "num_images", "num_targets"):
            if getattr(self, name) < 1:
                raise InputError(explain(f"{name}={getattr(self, name)}", "at least 1"))


@dataclass(frozen=True)
class SegmenterTraining:
    """Everything that, with the data and the first weights, determines a training run.

    Attributes:
        stages: Resolutions and steps, in order.
        recipe: Prompts, rounds and loss weights.
        augmentation: How images are changed.
        trainable: Names of the parameters that are trained, with ``*`` and ``?``; the others stay as they are.
        learning_rate: Peak of AdamW.
        encoder_rate: What the image encoder's learning rate is multiplied with.
        weight_decay: Of AdamW, on weights with two axes or more.
        warmup_steps: Linear warm-up.
        schedule: How the rate falls: "linear", "cosine", "step" or "constant".
        decay_share: The last share of all steps, over which "linear" and "cosine" fall.
        floor: What they fall to, as a share of the peak.
        milestones: For "step", shares of the run at which the rate falls tenfold.
        ema_decay: Of the moving average that is evaluated and shipped; 0: the weights themselves.
        clip_norm: Largest gradient norm; 0: any.
        accumulation: Parts that a step's images are worked through in, for less memory.
        freeze_batch_norm: Keep batch normalisation at its running statistics. What a part of a batch gives then does
            not depend on the rest of it: needed for accumulation and for several CPU processes.
        autocast: bfloat16 for encoder and transformer.
        seed: Of weights, batches and clicks.
    """

    stages: tuple[Stage, ...]
    recipe: ClickRecipe = field(default_factory=ClickRecipe)
    augmentation: Augmentation = field(default_factory=Augmentation)
    trainable: tuple[str, ...] = ("*",)
    learning_rate: float = 8e-4
    encoder_rate: float = 1.0
    weight_decay: float = 0.05
    warmup_steps: int = 250
    schedule: ScheduleShape = "linear"
    decay_share: float = 0.4
    floor: float = 0.0
    milestones: tuple[float, ...] = ()
    ema_decay: float = 0.999
    clip_norm: float = 1.0
    accumulation: int = 1
    freeze_batch_norm: bool = False
    autocast: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Check what can be checked without model and data.

        Raises:
            InputError: No stage, or a number out of its range.
            UnknownNameError: An unknown schedule.
        """
        if not self.stages:
            raise InputError(explain("stages is empty", "at least one Stage"))
        for name in ("learning_rate", "encoder_rate"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(explain(f"{name}={getattr(self, name)}", "a finite number above 0"))
        for name in ("weight_decay", "clip_norm"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(explain(f"{name}={getattr(self, name)}", "a finite number of at least 0"))
        if not 0 <= self.ema_decay < 1:
            raise InputError(explain(f"ema_decay={self.ema_decay}", "in [0, 1)"))
        if self.seed < 0:
            raise InputError(explain(f"seed={self.seed}", "a whole number of at least 0"))
        if self.accumulation < 1:
            raise InputError(explain(f"accumulation={self.accumulation}", "at least 1"))
        self.curve  # noqa: B018 (its own checks)

    @property
    def curve(self) -> Schedule:
        """The learning rate's factor at each step."""
        return Schedule(
            self.total_steps, self.schedule, self.warmup_steps, self.decay_share, self.floor, self.milestones
        )

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
        return self.learning_rate * self.curve(step)


PRESETS: Final[dict[str, dict[str, object]]] = {
    "short": {},
    "sam1": {
        "recipe": SAM1_RECIPE,
        "learning_rate": 8e-4,
        "weight_decay": 0.1,
        "warmup_steps": 250,
        "schedule": "step",
        "milestones": (60_000 / 90_000, 86_666 / 90_000),
        "ema_decay": 0.0,
        "clip_norm": 0.0,
    },
    "sam2": {
        "recipe": SAM2_RECIPE,
        "learning_rate": 5e-6,
        "encoder_rate": 0.6,
        "weight_decay": 0.1,
        "warmup_steps": 0,
        "schedule": "cosine",
        "decay_share": 1.0,
        "floor": 0.1,
        "ema_decay": 0.0,
        "clip_norm": 0.1,
    },
}
"""Fields of :class:`SegmenterTraining` that differ from its defaults, by the recipe's name. "sam1": from scratch, as
Kirillov et al. 2023 say (layer-wise decay and drop path are not here); "sam2": the fine-tuning configuration that was
published with SAM 2."""
