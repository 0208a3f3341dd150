"""The loop: it learns, it resumes to the same curve, it refuses what it can't do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from arrcoc_sam.errors import InputError, TrainingError
from arrcoc_sam.scenes import Scene, generate_scene
from arrcoc_sam.training import segmenter as module
from arrcoc_sam.training.batches import sample_scene_batch
from arrcoc_sam.training.interactive import ClickRecipe
from arrcoc_sam.training.segmenter import SegmenterTraining, Stage, train_segmenter


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [generate_scene(seed, size=64) for seed in range(4)]


CONFIG = SegmenterTraining(
    stages=(Stage(64, 4, num_images=2, num_targets=2), Stage(96, 2, num_images=2, num_targets=2)),
    recipe=ClickRecipe(num_rounds=2),
    warmup_steps=2,
)


def test_resumed_run_has_the_same_curve(scenes: list[Scene], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train_segmenter(CONFIG, scenes, tmp_path / "whole", checkpoint_every=3)

    class KilledError(Exception):
        pass

    def die(*arguments: object) -> None:
        raise KilledError

    def columns(folder: Path) -> list[list[str]]:
        # all but the last column, the throughput
        return [line.split(",")[:-1] for line in (folder / "log.csv").read_text().splitlines()]

    real = module._step
    calls = iter(range(100))
    monkeypatch.setattr(module, "_step", lambda *a: die() if next(calls) == 4 else real(*a))
    with pytest.raises(KilledError):
        train_segmenter(CONFIG, scenes, tmp_path / "parts", checkpoint_every=3)
    resumed = train_segmenter(CONFIG, scenes, tmp_path / "parts", checkpoint_every=3)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0.0, atol=0.0, msg=name)
    assert columns(tmp_path / "parts") == columns(tmp_path / "whole")
    assert whole.image_encoder.img_size == 96


def test_the_loss_falls(tmp_path: Path) -> None:
    """On one scene, in a few seconds; how far it goes in an hour is experiments/embedded_model's to say."""
    scene = min((generate_scene(seed, size=64) for seed in range(20)), key=len)
    figures: list[dict[str, float]] = []
    config = SegmenterTraining(
        stages=(Stage(64, 40, num_images=2, num_targets=4),), recipe=ClickRecipe(num_rounds=2), warmup_steps=10
    )
    train_segmenter(config, [scene], tmp_path, progress=lambda _, row: figures.append(row))
    assert figures[-1]["mask_loss"] < 0.85 * figures[0]["mask_loss"]


def test_bad_configurations(scenes: list[Scene], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="stages is empty"):
        train_segmenter(replace(CONFIG, stages=()), scenes, tmp_path)
    with pytest.raises(InputError, match="multiple of 32"):
        train_segmenter(replace(CONFIG, stages=(Stage(100, 1),)), scenes, tmp_path)
    train_segmenter(replace(CONFIG, stages=(Stage(64, 1, 1, 1),)), scenes, tmp_path)
    with pytest.raises(TrainingError, match="another configuration"):
        train_segmenter(CONFIG, scenes, tmp_path)


def test_a_loss_that_is_not_finite_stops(scenes: list[Scene], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_step", lambda *_: (torch.tensor(torch.nan, requires_grad=True), {}))
    with pytest.raises(TrainingError, match="at step 0"):
        train_segmenter(CONFIG, scenes, tmp_path)


def test_learning_rate_rises_stays_and_falls() -> None:
    config = SegmenterTraining(stages=(Stage(64, 100),), warmup_steps=10, decay_share=0.4, learning_rate=1.0)
    rates = [config.rate_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10:60] == pytest.approx([1.0] * 50)
    assert rates[80] == pytest.approx(0.5)
    assert 0 < rates[99] < 0.03


def test_batches_click_inside_their_targets(scenes: list[Scene]) -> None:
    batch = sample_scene_batch(
        scenes, np.random.default_rng(0), num_images=6, num_targets=3, image_size=64, mask_size=32, crop_probability=1.0
    )
    assert batch.images.shape == (6, 3, 64, 64)
    assert batch.targets.shape == (6, 3, 32, 32)
    cells = ((batch.points_xy + 0.5) / 2).long().clamp(0, 31)
    hit = [batch.targets[b, p, cells[b, p, 1], cells[b, p, 0]] for b in range(6) for p in range(3)]
    assert min(hit) > 0  # the click's cell is at least partly in the mask
    # the tight box holds the mask and touches it
    for b in range(6):
        for p in range(3):
            rows, columns = torch.nonzero(batch.targets[b, p] > 0, as_tuple=True)
            x0, y0, x1, y1 = (batch.boxes_xyxy[b, p] / 2).tolist()
            assert abs(columns.min() - x0) < 2
            assert abs(columns.max() - x1) < 2
            assert abs(rows.min() - y0) < 2
            assert abs(rows.max() - y1) < 2
