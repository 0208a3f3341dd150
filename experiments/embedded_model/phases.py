"""The phases of the training: a record of what was run, each from the weights of the one before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from arrcoc_sam.training.augmentation import Augmentation
from arrcoc_sam.training.interactive import ClickRecipe
from arrcoc_sam.training.segmenter import SegmenterTraining, Stage
from arrcoc_sam.training.settings import Validation

CLICKS = (1, 3, 8)
"""After how many clicks the model is judged."""


@dataclass(frozen=True)
class Phase:
    """A training run that goes on from the weights of the one before.

    Attributes:
        training: Its settings.
        stop_after: Steps after which it was broken off.
        shares: Of the images, by the style of the scenes.
    """

    training: SegmenterTraining
    stop_after: int | None = None
    shares: Mapping[str, float] = field(default_factory=lambda: {"plain": 0.7, "rich": 0.3})

    @property
    def steps(self) -> int:
        """Steps that are taken."""
        return self.training.total_steps if self.stop_after is None else self.stop_after


BEFORE = "1a0e12c"
"""The commit whose weights the phases begin with; its run.py made them from nothing, in the phases 0 to 3."""

TRAINING_SCENES = {
    "plain": range(16_000),
    "rich": range(1_000_000, 1_008_000),
    "lifelike": range(1_100_000, 1_112_000),
    "natural": range(1_200_000, 1_207_000),
}
"""Seeds of the scenes of training, by style."""

SIDES = {"natural": 384}
"""Sides of scenes in pixels where they are not 256: what is shown large is as sharp as in photographs."""

MEANT = ClickRecipe(iou_weight=5.0, expected_iou=True, supervise_meant=True)
"""Everything that a click may mean is learned, and the head learns the expected IoU."""

HEAD = SegmenterTraining(
    stages=(Stage(256, 350, num_targets=8),),
    recipe=ClickRecipe(expected_iou=True, given_mask_probability=0.2),
    augmentation=Augmentation(crop_probability=0.25),
    trainable=("mask_decoder.mask_scoring.*", "mask_decoder.iou_prediction_head.*"),
    learning_rate=2e-3,
    warmup_steps=30,
    decay_share=1.0,
    ema_decay=0.98,
    freeze_batch_norm=True,
)
"""The IoU head and what corrects it, once the masks are there."""

PHASES = {
    # everything through the decoder, half of the loss dense; broken off, since the dense loss fell too slowly
    4: Phase(
        SegmenterTraining(
            stages=(Stage(160, 2600), Stage(192, 2600)),
            recipe=replace(MEANT, grouping_weight=0.5),
            learning_rate=6e-4,
            warmup_steps=200,
            decay_share=0.7,
            floor=0.2,
            ema_decay=0.998,
            seed=10,
        ),
        stop_after=2500,
    ),
    # mostly dense: twelve targets an image, two of them through the decoder as well
    5: Phase(
        SegmenterTraining(
            stages=(Stage(160, 2400, num_targets=12),),
            recipe=replace(MEANT, grouping_weight=1.5, decoded_targets=2),
            learning_rate=8e-4,
            warmup_steps=100,
            decay_share=0.5,
            floor=0.4,
            ema_decay=0.995,
            seed=20,
        ),
    ),
    # more of the decoder, more clicks
    6: Phase(
        SegmenterTraining(
            stages=(Stage(192, 1600, num_targets=8),),
            recipe=replace(MEANT, num_rounds=4, grouping_weight=1.0, decoded_targets=3),
            learning_rate=5e-4,
            warmup_steps=50,
            decay_share=1.0,
            ema_decay=0.995,
            seed=21,
            validation=Validation(every=800, scenes=40, rich_share=0.3, clicks=CLICKS),
        ),
    ),
    # the IoU head and what corrects it
    7: Phase(
        SegmenterTraining(
            stages=(Stage(192, 350, num_targets=8),),
            recipe=ClickRecipe(expected_iou=True),
            augmentation=Augmentation(crop_probability=0.25),
            trainable=("mask_decoder.mask_scoring.*", "mask_decoder.iou_prediction_head.*"),
            learning_rate=2e-3,
            warmup_steps=30,
            decay_share=1.0,
            ema_decay=0.98,
            freeze_batch_norm=True,
            seed=22,
        ),
    ),
    # as phase 5, at a higher resolution
    8: Phase(
        SegmenterTraining(
            stages=(Stage(224, 2400, num_targets=12),),
            recipe=replace(MEANT, grouping_weight=1.5, decoded_targets=2),
            learning_rate=7e-4,
            warmup_steps=100,
            decay_share=0.6,
            floor=0.35,
            ema_decay=0.995,
            seed=30,
        ),
    ),
    # as phase 6, and a fifth of the decoder's prompts are masks of somebody else's making
    9: Phase(
        SegmenterTraining(
            stages=(Stage(224, 2500, num_targets=8),),
            recipe=replace(MEANT, num_rounds=4, given_mask_probability=0.2, grouping_weight=1.0, decoded_targets=3),
            learning_rate=5e-4,
            warmup_steps=50,
            decay_share=1.0,
            ema_decay=0.995,
            seed=31,
        ),
    ),
    # as phase 7, at the size of the frame
    10: Phase(replace(HEAD, seed=32)),
    # both at once and two rounds alone, the rate never high again; crops down to .45 of a side show objects larger;
    # broken off, since the loss of a rate that hardly falls does not fall either
    11: Phase(
        SegmenterTraining(
            stages=(Stage(224, 3200, num_targets=12),),
            recipe=replace(MEANT, num_rounds=2, given_mask_probability=0.1, grouping_weight=1.5, decoded_targets=3),
            augmentation=Augmentation(smallest_crop=0.45),
            learning_rate=4.5e-4,
            warmup_steps=100,
            decay_share=1.0,
            floor=0.4,
            ema_decay=0.998,
            seed=40,
        ),
        stop_after=1750,
    ),
    # from there to nothing, a round more
    12: Phase(
        SegmenterTraining(
            stages=(Stage(224, 2300, num_targets=8),),
            recipe=replace(MEANT, given_mask_probability=0.2, grouping_weight=1.0, decoded_targets=3),
            augmentation=Augmentation(smallest_crop=0.45),
            learning_rate=3e-4,
            warmup_steps=50,
            decay_share=1.0,
            ema_decay=0.998,
            seed=41,
        ),
    ),
    # as phase 10
    13: Phase(replace(HEAD, seed=42)),
    # the encoder above all: twelve targets dense, one of them through the decoder, once; two processes
    14: Phase(
        SegmenterTraining(
            stages=(Stage(224, 5000, num_targets=12),),
            recipe=replace(MEANT, num_rounds=1, grouping_weight=1.5, decoded_targets=1),
            augmentation=Augmentation(smallest_crop=0.45),
            learning_rate=5e-4,
            warmup_steps=100,
            decay_share=1.0,
            floor=0.3,
            ema_decay=0.998,
            freeze_batch_norm=True,
            seed=50,
        ),
    ),
    # as phase 12, from a high rate to nothing; two processes
    15: Phase(
        SegmenterTraining(
            stages=(Stage(224, 1700, num_targets=8),),
            recipe=replace(MEANT, given_mask_probability=0.2, grouping_weight=1.0, decoded_targets=3),
            augmentation=Augmentation(smallest_crop=0.45),
            learning_rate=3e-4,
            warmup_steps=50,
            decay_share=1.0,
            ema_decay=0.995,
            freeze_batch_norm=True,
            seed=51,
        ),
    ),
    # as phase 14, by Muon, and a fifth of the decoder's prompts are foreign masks; two processes
    16: Phase(
        SegmenterTraining(
            stages=(Stage(224, 5200, num_targets=12),),
            recipe=replace(MEANT, num_rounds=1, given_mask_probability=0.2, grouping_weight=1.5, decoded_targets=1),
            augmentation=Augmentation(smallest_crop=0.45),
            optimizer="muon",
            learning_rate=5e-4,
            warmup_steps=50,
            decay_share=1.0,
            floor=0.3,
            ema_decay=0.998,
            freeze_batch_norm=True,
            seed=60,
        ),
    ),
    # as phase 15, by Muon; two processes
    17: Phase(
        SegmenterTraining(
            stages=(Stage(224, 1600, num_targets=8),),
            recipe=replace(MEANT, given_mask_probability=0.2, grouping_weight=1.0, decoded_targets=3),
            augmentation=Augmentation(smallest_crop=0.45),
            optimizer="muon",
            learning_rate=3e-4,
            warmup_steps=50,
            decay_share=1.0,
            ema_decay=0.995,
            freeze_batch_norm=True,
            seed=61,
        ),
    ),
    # as phase 16, at a higher rate; two processes
    18: Phase(
        SegmenterTraining(
            stages=(Stage(224, 5400, num_targets=12),),
            recipe=replace(MEANT, num_rounds=1, given_mask_probability=0.2, grouping_weight=1.5, decoded_targets=1),
            augmentation=Augmentation(smallest_crop=0.45),
            optimizer="muon",
            learning_rate=8e-4,
            warmup_steps=50,
            decay_share=1.0,
            floor=0.2,
            ema_decay=0.998,
            freeze_batch_norm=True,
            seed=70,
        ),
    ),
    # as phase 17, nearer to the size of the frame; two processes
    19: Phase(
        SegmenterTraining(
            stages=(Stage(256, 1300, num_targets=8),),
            recipe=replace(MEANT, given_mask_probability=0.2, grouping_weight=1.0, decoded_targets=3),
            augmentation=Augmentation(smallest_crop=0.45),
            optimizer="muon",
            learning_rate=3e-4,
            warmup_steps=50,
            decay_share=1.0,
            ema_decay=0.995,
            freeze_batch_norm=True,
            seed=71,
        ),
    ),
    # as phase 18; two processes
    20: Phase(
        SegmenterTraining(
            stages=(Stage(224, 5200, num_targets=12),),
            recipe=replace(MEANT, num_rounds=1, given_mask_probability=0.2, grouping_weight=1.5, decoded_targets=1),
            augmentation=Augmentation(smallest_crop=0.45),
            optimizer="muon",
            learning_rate=8e-4,
            warmup_steps=50,
            decay_share=1.0,
            floor=0.2,
            ema_decay=0.998,
            freeze_batch_norm=True,
            seed=80,
        ),
    ),
    # as phase 19, nearer still to the size of the frame; two processes
    21: Phase(
        SegmenterTraining(
            stages=(Stage(288, 1000, num_targets=8),),
            recipe=replace(MEANT, given_mask_probability=0.2, grouping_weight=1.0, decoded_targets=3),
            augmentation=Augmentation(smallest_crop=0.45),
            optimizer="muon",
            learning_rate=3e-4,
            warmup_steps=50,
            decay_share=1.0,
            ema_decay=0.995,
            freeze_batch_norm=True,
            seed=81,
        ),
    ),
    # as phase 20, with lifelike scenes, and none turned; two processes
    22: Phase(
        SegmenterTraining(
            stages=(Stage(224, 4200, num_targets=12),),
            recipe=replace(MEANT, num_rounds=1, given_mask_probability=0.2, grouping_weight=1.5, decoded_targets=1),
            augmentation=Augmentation(smallest_crop=0.45, rotate=False),
            optimizer="muon",
            learning_rate=8e-4,
            warmup_steps=50,
            decay_share=1.0,
            floor=0.2,
            ema_decay=0.998,
            freeze_batch_norm=True,
            seed=90,
        ),
        shares={"plain": 0.4, "rich": 0.25, "lifelike": 0.35},
    ),
    # as phase 21, at the size of the frame, with lifelike scenes, and none turned; two processes
    23: Phase(
        SegmenterTraining(
            stages=(Stage(320, 1000, num_targets=8),),
            recipe=replace(MEANT, given_mask_probability=0.2, grouping_weight=1.0, decoded_targets=3),
            augmentation=Augmentation(smallest_crop=0.45, rotate=False),
            optimizer="muon",
            learning_rate=3e-4,
            warmup_steps=50,
            decay_share=1.0,
            ema_decay=0.995,
            freeze_batch_norm=True,
            seed=91,
        ),
        shares={"plain": 0.5, "rich": 0.2, "lifelike": 0.3},
    ),
    # as phase 22, with natural scenes in place of lifelike ones; two processes
    24: Phase(
        SegmenterTraining(
            stages=(Stage(224, 3900, num_targets=12),),
            recipe=replace(MEANT, num_rounds=1, given_mask_probability=0.2, grouping_weight=1.5, decoded_targets=1),
            augmentation=Augmentation(smallest_crop=0.45, rotate=False),
            optimizer="muon",
            learning_rate=8e-4,
            warmup_steps=50,
            decay_share=1.0,
            floor=0.2,
            ema_decay=0.998,
            freeze_batch_norm=True,
            seed=100,
        ),
        shares={"plain": 0.35, "rich": 0.15, "natural": 0.5},
    ),
    # as phase 23, with natural scenes, at the size of the frame; two processes
    25: Phase(
        SegmenterTraining(
            stages=(Stage(352, 850, num_targets=8),),
            recipe=replace(MEANT, given_mask_probability=0.2, grouping_weight=1.0, decoded_targets=3),
            augmentation=Augmentation(smallest_crop=0.45, rotate=False),
            optimizer="muon",
            learning_rate=3e-4,
            warmup_steps=50,
            decay_share=1.0,
            ema_decay=0.995,
            freeze_batch_norm=True,
            seed=101,
        ),
        shares={"plain": 0.45, "rich": 0.15, "natural": 0.4},
    ),
}

SHIPPED = (23, 25)
"""The phases whose weights are averaged for shipping."""
