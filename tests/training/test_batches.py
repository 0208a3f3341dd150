"""What a batch tells of its clicks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from arrcoc_sam.scenes import generate_scene
from arrcoc_sam.training.batches import Augmentation, BatchPlan, draw_batch
from arrcoc_sam.training.sources import SceneSource

STILL = Augmentation(crop_probability=0.0, rotate=False, flip=False, recolor=False)


@pytest.fixture(scope="module")
def source() -> SceneSource:
    return SceneSource([generate_scene(seed, size=64) for seed in range(6)])


@pytest.mark.parametrize("augmentation", [STILL, Augmentation()])
def test_clicks_lie_in_their_targets(source: SceneSource, augmentation: Augmentation) -> None:
    plan = BatchPlan(image_size=64, mask_size=64, num_targets=4, augmentation=augmentation)
    batch = draw_batch(source, plan, seed=0, step=3, places=range(8))
    columns, rows = batch.points_xy.round().long().unbind(1)
    inside = batch.targets[torch.arange(len(batch)), rows.clamp(0, 63), columns.clamp(0, 63)]
    assert (inside > 0).float().mean() > (0.99 if augmentation == STILL else 0.9)  # a crop is resized
    assert batch.meant is None


def test_what_a_click_may_have_meant(source: SceneSource) -> None:
    """Every node under it that is large enough, by one over the area; at the scene's own size that can be counted."""
    plan = BatchPlan(image_size=64, mask_size=64, num_targets=4, with_meant=True, augmentation=STILL)
    batch = draw_batch(source, plan, seed=0, step=0, places=range(8))
    assert batch.meant is not None
    assert batch.meant_chance is not None
    torch.testing.assert_close(batch.meant_chance.sum(1), torch.ones(len(batch)))
    several = 0
    for k, (x, y) in enumerate(batch.points_xy.round().long().tolist()):
        given = batch.meant_chance[k] > 0
        masks = batch.meant[k][given]
        assert masks[:, y, x].all()
        assert (masks == (batch.targets[k] > 0.5)).flatten(1).all(1).any()  # what was meant is among them
        by_area = 1 / masks.sum((1, 2))
        torch.testing.assert_close(batch.meant_chance[k][given], by_area / by_area.sum(), rtol=1e-4, atol=1e-4)
        several += int(len(masks) > 1)
    assert several > 5


def test_batches_do_not_depend_on_how_they_are_split(source: SceneSource) -> None:
    plan = BatchPlan(image_size=64, mask_size=32, num_targets=2, with_meant=True)
    whole = draw_batch(source, plan, seed=1, step=5, places=range(4))
    parts = [draw_batch(source, plan, seed=1, step=5, places=some) for some in (range(2), range(2, 4))]
    for name in ("images", "targets", "points_xy", "boxes_xyxy", "click_chance"):
        joined = torch.cat([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(joined, getattr(whole, name))
