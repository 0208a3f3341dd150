"""Everything that, with the data, determines a training run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from arrcoc_sam.errors import InputError, UnknownNameError, explain
from arrcoc_sam.scenes.splits import VALIDATION_SEEDS
from arrcoc_sam.training.augmentation import Augmentation
from arrcoc_sam.training.optimizer import OptimizerName
from arrcoc_sam.training.recipe import SAM1_RECIPE, SAM2_RECIPE, ClickRecipe
from arrcoc_sam.training.schedule import Schedule, ScheduleShape

__all__ = ["PRESETS", "SegmenterTraining", "Stage", "Validation", "style_shares"]


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


def style_shares(**shares: float) -> dict[str, float]:
    """The share of each style of scenes that has one, by name; plain scenes, the first, have what is left of 1.

    Raises:
        InputError: One is negative or no number, or they add up to more than 1.
    """
    left = 1.0 - sum(shares.values())
    if any(share < 0 for share in shares.values()) or not left >= -1e-9:
        came = ", ".join(f"{style}_share={share}" for style, share in shares.items())
        raise InputError(explain(came, "shares in [0, 1] that add up to at most 1"))
    return {style: share for style, share in {"plain": left, **shares}.items() if share > 1e-9}


@dataclass(frozen=True)
class Validation:
    """Judging the moving average on held-out scenes now and then, by clicks.

    Attributes:
        every: Steps between; 0: never. The end of the run is judged too.
        scenes: How many.
        rich_share: The share of them that is rich.
        lifelike_share: The share of them that is lifelike.
        natural_share: The share of them that is natural; the rest is plain.
        size: Side of the scenes in pixels.
        first_seed: Of the scenes; one of those of validation, never of training or test.
        clicks: After how many clicks to judge, ascending from 1.
        figure: What the best weights have most of: "oracle_iou", "automatic_iou", "pearson", "selection_accuracy",
            "distinct_share", or "iou_after_k" and "pearson_after_k" for k clicks.
    """

    every: int = 0
    scenes: int = 60
    rich_share: float = 0.5
    lifelike_share: float = 0.0
    natural_share: float = 0.0
    size: int = 256
    first_seed: int = VALIDATION_SEEDS.start
    clicks: tuple[int, ...] = (1, 3)
    figure: str = "oracle_iou"

    def __post_init__(self) -> None:
        """Check the numbers and the name.

        Raises:
            InputError: A number out of its range, or clicks that do not ascend from 1.
            UnknownNameError: No such figure.
        """
        if self.every < 0:
            raise InputError(explain(f"every={self.every}", "at least 0"))
        shares = style_shares(rich=self.rich_share, lifelike=self.lifelike_share, natural=self.natural_share)
        unseen = [style for style, count in self.counts.items() if count == 0 and style in shares]
        if unseen:
            came = f"scenes={self.scenes}, which rounds the share of {', '.join(unseen)} to none"
            raise InputError(explain(came, "at least one scene of each style that has a share"))
        if not 32 <= self.size <= 2048:
            raise InputError(explain(f"size={self.size}", "32 to 2048 pixels"))
        seeds = (self.first_seed, self.first_seed + self.scenes - 1)
        if self.scenes < 1 or any(seed not in VALIDATION_SEEDS for seed in seeds):
            came = f"scenes={self.scenes} from first_seed={self.first_seed}"
            expected = f"at least one, with seeds {VALIDATION_SEEDS.start:,} to {VALIDATION_SEEDS[-1]:,}"
            raise InputError(explain(came, expected))
        if list(self.clicks) != sorted(set(self.clicks)) or self.clicks[:1] != (1,):
            raise InputError(explain(f"clicks={self.clicks}", "ascending whole numbers that begin with 1"))
        later = [f"{name}_after_{k}" for k in self.clicks[1:] for name in ("iou", "pearson")]
        known = ("oracle_iou", "automatic_iou", "pearson", "selection_accuracy", "distinct_share", *later)
        if self.figure not in known:
            raise UnknownNameError(explain(f"figure={self.figure!r}", f"one of {', '.join(known)}"))

    @property
    def counts(self) -> dict[str, int]:
        """How many scenes of each style, in the order in which they are drawn; plain ones are what is left."""
        counts: dict[str, int] = {}
        for style in ("rich", "lifelike", "natural"):
            wanted = round(getattr(self, f"{style}_share") * self.scenes)
            counts[style] = min(wanted, self.scenes - sum(counts.values()))
        return counts | {"plain": self.scenes - sum(counts.values())}


@dataclass(frozen=True)
class SegmenterTraining:
    """Everything that, with the data and the first weights, determines a training run.

    Attributes:
        stages: Resolutions and steps, in order.
        recipe: Prompts, rounds and loss weights.
        augmentation: How images are changed.
        trainable: Names of the parameters that are trained, with ``*`` and ``?``; the others stay as they are.
        optimizer: "adamw", or "muon": matrices step along their orthogonalised gradient, the rest as by AdamW; a
            learning rate means the same for both.
        learning_rate: Peak of the optimizer.
        encoder_rate: What the image encoder's learning rate is multiplied with.
        weight_decay: Decoupled, on weights with two axes or more.
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
        autocast: bfloat16 for encoder and mask decoder.
        seed: Of weights, batches and clicks.
        validation: How the moving average is judged meanwhile; it does not change the course of the run.
    """

    stages: tuple[Stage, ...]
    recipe: ClickRecipe = field(default_factory=ClickRecipe)
    augmentation: Augmentation = field(default_factory=Augmentation)
    trainable: tuple[str, ...] = ("*",)
    optimizer: OptimizerName = "adamw"
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
    validation: Validation = field(default_factory=Validation)

    def __post_init__(self) -> None:
        """Check what can be checked without model and data.

        Raises:
            InputError: No stage, a number out of its range, or validation without the decoder's transformer.
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
        if self.validation.every and not self.recipe.transformer:
            came = f"validation.every={self.validation.every} with transformer=False"
            raise InputError(explain(came, "0: validation asks the whole decoder, of which half is not trained then"))
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
