"""Everything that, with the data, determines a training run of attention."""

from __future__ import annotations

from dataclasses import dataclass

from arrcoc_sam.errors import InputError, UnknownNameError, explain
from arrcoc_sam.inputs import as_count
from arrcoc_sam.training.attention.features import BATCH_NORMS, BatchNorm
from arrcoc_sam.training.samples_supervision import SUPERVISIONS, SupervisionName
from arrcoc_sam.training.schedule import Schedule, ScheduleShape

__all__ = ["AttentionTraining"]


@dataclass(frozen=True)
class AttentionTraining:
    """Model, supervision and optimisation.

    Attributes:
        backbone: A timm name, or "segmenter:" and a segmenter's.
        levels: Rows of the grids of whole, part and subpart.
        image_size: Side of the square images, pixels.
        width: Channels of the pyramid and the heads.
        pretrained: Load timm's published weights.
        batch_norm: "group" for training from random weights, "frozen" for published ones, "keep" for neither.
        frozen: Train the heads alone: the backbone stays as it is, and answers for each picture once.
        target_size: Rows of the targets that are read; the loss averages them to each level's grid.
        supervision: Which mask teaches which level; see ``arrcoc_sam.training.samples_supervision``.
        weighted: Weigh levels by SAM's confidence.
        min_quality: Masks of a lower quality, in [0, 1], teach nothing; 0: all teach.
        draw_levels: Multi-mask augmentation: in each step a sample teaches one level, drawn by confidence.
        flip: Mirror pictures at random.
        focal_weight: Of the focal loss.
        dice_weight: Of the Dice loss.
        steps: Optimizer steps.
        num_images: Pictures a step, on all processes together.
        num_queries: The most clicks a picture.
        accumulation: Parts that a step's pictures are worked through in, for less memory.
        learning_rate: Peak of AdamW.
        weight_decay: Of AdamW, on weights with two axes or more.
        warmup_steps: Linear warm-up.
        schedule: How the rate falls.
        milestones: For "step", shares of the run at which the rate falls tenfold.
        ema_decay: Of the moving average that is evaluated and kept; 0: the weights themselves.
        clip_norm: Largest gradient norm; 0: any.
        autocast: bfloat16 for the model; the loss stays float32.
        seed: Of weights, batches and augmentation.
    """

    backbone: str = "test_convnext"
    levels: tuple[int, ...] = (8, 12, 16)
    image_size: int = 64
    width: int = 24
    pretrained: bool = False
    batch_norm: BatchNorm = "group"
    frozen: bool = False
    target_size: int = 48
    supervision: SupervisionName = "hierarchy"
    weighted: bool = True
    min_quality: float = 0.0
    draw_levels: bool = False
    flip: bool = True
    focal_weight: float = 20.0
    dice_weight: float = 1.0
    steps: int = 400
    num_images: int = 12
    num_queries: int = 3
    accumulation: int = 1
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    warmup_steps: int = 30
    schedule: ScheduleShape = "cosine"
    milestones: tuple[float, ...] = ()
    ema_decay: float = 0.98
    clip_norm: float = 1.0
    autocast: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Check what can be checked without data.

        Raises:
            InputError: A number out of its range, or levels that are not three.
            UnknownNameError: An unknown supervision, schedule or treatment of batch normalisation.
        """
        if len(self.levels) != 3:
            raise InputError(
                explain(f"levels={list(self.levels)}: {len(self.levels)} heads", "three: whole, part, subpart")
            )
        if self.supervision not in SUPERVISIONS:
            raise UnknownNameError(explain(f"supervision={self.supervision!r}", f"one of {', '.join(SUPERVISIONS)}"))
        if self.batch_norm not in BATCH_NORMS:
            raise UnknownNameError(explain(f"batch_norm={self.batch_norm!r}", f"one of {', '.join(BATCH_NORMS)}"))
        for name in ("image_size", "width", "target_size", "steps", "num_images", "num_queries", "accumulation"):
            as_count(getattr(self, name), name)
        for name in ("weight_decay", "clip_norm", "focal_weight", "dice_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(explain(f"{name}={getattr(self, name)}", "a finite number of at least 0"))
        if not 0 <= self.min_quality <= 1:
            raise InputError(explain(f"min_quality={self.min_quality}", "a quality in [0, 1]"))
        if not 0 < self.learning_rate < float("inf") or not 0 <= self.ema_decay < 1 or self.seed < 0:
            came = f"learning_rate={self.learning_rate}, ema_decay={self.ema_decay}, seed={self.seed}"
            raise InputError(explain(came, "a rate above 0, a decay in [0, 1), a seed of at least 0"))
        self.curve  # noqa: B018 (its own checks)

    @property
    def curve(self) -> Schedule:
        """The learning rate's factor at each step."""
        return Schedule(self.steps, self.schedule, self.warmup_steps, milestones=self.milestones)
