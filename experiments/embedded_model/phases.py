"""The last phases of the training: a record of what was run, each from a mean of weights of those before.

What phases 0 to 25 were is in ``earlier_phases.json``; their weights are in this repository's history.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from arrcoc_sam.training.augmentation import Augmentation
from arrcoc_sam.training.interactive import ClickRecipe
from arrcoc_sam.training.segmenter import SegmenterTraining, Stage

CLICKS = (1, 3, 8)
"""After how many clicks the model is judged."""

FRAME = 448
"""Side of the frame that the model ships with, in pixels."""

BEFORE = "5fbcffe"
"""The commit whose weights, of phases 23 and 25, they begin with, grown by layers that change nothing at first."""

TRAINING_SCENES = {
    "plain": range(16_000),
    "rich": range(1_000_000, 1_008_000),
    "lifelike": range(1_100_000, 1_112_000),
    "natural": range(1_200_000, 1_207_000),
}
"""Seeds of the scenes of training, by style; lifelike ones up to phase 23."""

DEVICE_SCENES = {
    "plain": range(40_000, 90_000),
    "rich": range(1_020_000, 1_035_000),
    "natural": range(1_220_000, 1_240_000),
}
"""Seeds for training on a GPU: as many as are drawn while it is at work, and as its memory holds (30 GB)."""

SIDES = {"natural": 384}
"""Sides of scenes in pixels where they are not 256: what is shown large is as sharp as in photographs."""

MEANT = ClickRecipe(
    num_rounds=2,
    iou_weight=5.0,
    expected_iou=True,
    supervise_meant=True,
    given_mask_probability=0.2,
    grouping_weight=1.0,
    decoded_targets=3,
)
"""Everything that a click may mean is learned, and the head learns the expected IoU."""


@dataclass(frozen=True)
class Phase:
    """A training run.

    Attributes:
        training: Its settings.
        begins: What it begins with: shares of the mean of weights of phases, or of :data:`BEFORE`.
        shares: Of the images, by the style of the scenes.
        seeds: Of the scenes, by style.
        seconds: Of one GPU (``device_training.py``), whose steps follow the clock; None: as many steps as are set.
        taken: Steps that were taken in that time.
    """

    training: SegmenterTraining
    begins: Mapping[int | str, float]
    shares: Mapping[str, float]
    seeds: Mapping[str, range] = field(default_factory=lambda: TRAINING_SCENES)
    seconds: float | None = None
    taken: int | None = None

    @property
    def steps(self) -> int:
        """Steps that are taken."""
        return self.training.total_steps if self.taken is None else self.taken


MUON = SegmenterTraining(
    stages=(Stage(352, 10_000, num_images=64, num_targets=8),),
    recipe=MEANT,
    augmentation=Augmentation(smallest_crop=0.45, rotate=False),
    optimizer="muon",
    learning_rate=8e-4,
    warmup_steps=300,
    decay_share=0.9,
    ema_decay=0.998,
    freeze_batch_norm=True,
    seed=100,
)

PHASES = {
    # four more layers of attention and five more residual blocks; on a GPU, whose schedule is as fine as the steps say
    26: Phase(
        MUON,
        begins={BEFORE: 1.0},
        shares={"plain": 0.5, "rich": 0.12, "natural": 0.38},
        seeds=DEVICE_SCENES,
        seconds=485.0,
        taken=1617,
    ),
    # larger; two processes of one thread each
    27: Phase(
        replace(
            MUON,
            stages=(Stage(416, 520, num_targets=8),),
            learning_rate=3e-4,
            warmup_steps=30,
            decay_share=1.0,
            ema_decay=0.995,
            seed=111,
        ),
        begins={BEFORE: 0.5, 26: 0.5},
        shares={"plain": 0.5, "rich": 0.12, "natural": 0.38},
    ),
    # at the size of the frame
    28: Phase(
        replace(
            MUON,
            stages=(Stage(448, 300, num_targets=8),),
            learning_rate=2.5e-4,
            warmup_steps=30,
            decay_share=1.0,
            ema_decay=0.995,
            seed=112,
        ),
        begins={27: 1.0},
        shares={"plain": 0.5, "rich": 0.12, "natural": 0.38},
    ),
}

SHIPPED: Mapping[int | str, float] = {BEFORE: 0.45, 28: 0.55}
"""Shares of the weights whose mean ships."""
