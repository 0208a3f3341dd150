"""The training loop with the package's losses takes the same course as with a plain version of the same objective."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from arrcoc_sam.losses import functional as LF
from arrcoc_sam.scenes import generate_scene
from arrcoc_sam.training.interactive import ClickRecipe
from arrcoc_sam.training.segmenter import SegmenterTraining, Stage, train_segmenter

CONFIG = SegmenterTraining(
    stages=(Stage(64, 16, num_images=2, num_targets=2),),
    recipe=ClickRecipe(num_rounds=2),
    warmup_steps=4,
    autocast=False,
)


def plain_min_over_masks_loss(
    logits: Tensor, target: Tensor, *, focal_weight: float, dice_weight: float
) -> tuple[Tensor, Tensor]:
    """Minimum over masks of torchvision's focal loss and Dice."""
    targets = target[:, None].expand_as(logits).float()
    focal = sigmoid_focal_loss(logits, targets, alpha=0.25, gamma=2.0).mean((2, 3))
    p = logits.sigmoid()
    dice = 1 - (2 * (p * targets).sum((2, 3)) + 1) / (p.sum((2, 3)) + targets.sum((2, 3)) + 1)
    best, winner = (focal_weight * focal + dice_weight * dice).min(1)
    return best, winner


def plain_iou_loss(predicted_iou: Tensor, logits: Tensor, target: Tensor, **_: Any) -> Tensor:
    """The squared error of the predicted IoU, a prompt and mask."""
    inside, truth = logits.detach() > 0, target[:, None] > 0.5
    actual = (inside & truth).sum((2, 3)) / (inside | truth).sum((2, 3))
    return (predicted_iou - actual) ** 2


@pytest.mark.parametrize("backend", ["eager", pytest.param("compiled", marks=pytest.mark.slow)])
def test_the_curve_is_that_of_a_plain_loss(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = [generate_scene(seed, size=64) for seed in range(4)]

    def curve(name: str, config: SegmenterTraining = CONFIG) -> pd.DataFrame:
        rows: list[dict[str, float]] = []
        train_segmenter(config, scenes, tmp_path / name, progress=lambda step, row: rows.append({"step": step} | row))
        return pd.DataFrame(rows)[["step", "loss", "mask_loss"]]

    own = LF.min_over_masks_loss
    monkeypatch.setattr(LF, "min_over_masks_loss", lambda *a, **kw: own(*a, **kw, backend=backend))
    ours = curve("ours")
    monkeypatch.setattr(LF, "min_over_masks_loss", plain_min_over_masks_loss)
    monkeypatch.setattr(LF, "iou_prediction_loss", plain_iou_loss)
    plain = curve("plain")
    # Rounding differs, and each step starts where the last one ended.
    pd.testing.assert_frame_equal(ours, plain, rtol=2e-3)
    other = curve("other seed", replace(CONFIG, seed=1))
    assert (other["loss"] - plain["loss"]).abs().max() > 0.01  # that the curves agree says something
