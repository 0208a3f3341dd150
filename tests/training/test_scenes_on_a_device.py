"""The experiment embedded_model: batches that are cut out of scenes on a device."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from arrcoc_sam.masks import mask_iou
from arrcoc_sam.scenes import generate_scene

EXPERIMENT = Path(__file__).parents[2] / "experiments" / "embedded_model"
SEEDS = {"plain": range(70, 74), "lifelike": range(70, 73)}


@pytest.fixture(scope="module")
def drawn() -> Any:
    """The module, and a few scenes as it hands them over."""
    sys.path.insert(0, str(EXPERIMENT))  # until the end: processes that are spawned look there, too
    module = importlib.import_module("device_scenes")
    parts = [module.draw_chunk(style, seeds) for style, seeds in SEEDS.items()]
    scenes = module.Drawn(*(torch.from_numpy(np.concatenate(column)) for column in zip(*parts, strict=True)))
    yield SimpleNamespace(module=module, scenes=scenes)
    sys.modules.pop("device_scenes")
    sys.path.remove(str(EXPERIMENT))


def cut(drawn: Any, **changes: Any) -> Any:
    look = drawn.module.Look(num_images=6, num_targets=5, image_size=256, num_clicks=2, **changes)
    return drawn.module.cut(drawn.scenes, look, torch.Generator().manual_seed(0))


def test_a_scene_that_is_not_cropped_is_the_scene(drawn: Any) -> None:
    batch, scene = cut(drawn, augment=False), generate_scene(SEEDS["plain"][0])
    assert torch.equal(batch.images[0], torch.from_numpy(scene.image).permute(2, 0, 1).float())
    assert batch.valid.all()
    nodes = torch.nn.functional.avg_pool2d(torch.from_numpy(scene.masks).float(), 2) > 0.5
    iou = mask_iou(batch.targets[batch.image_index == 0][:, None] > 0.5, nodes)
    assert (iou.amax(dim=1) == 1).all()


@pytest.mark.parametrize("augment", [True, False])
def test_clicks_lie_in_their_targets_which_are_among_what_they_may_mean(drawn: Any, augment: bool) -> None:
    batch = cut(drawn, augment=augment)
    assert batch.image_index.tolist() == sorted(batch.image_index.tolist())
    x, y = batch.points_xy.long().unbind(dim=1)
    assert (batch.targets[torch.arange(len(batch)), y // 2, x // 2] > 0).all()
    torch.testing.assert_close(batch.meant_chance.sum(dim=1), torch.ones(len(batch)))
    same = (batch.meant == (batch.targets > 0.5)[:, None]).flatten(2).all(dim=2) & (batch.meant_chance > 0)
    assert same.any(dim=1).all()
    left, top, right, bottom = batch.boxes_xyxy.unbind(dim=1)
    assert ((left <= x) & (x <= right) & (top <= y) & (y <= bottom)).all()


def test_the_smaller_of_what_a_click_may_mean_is_the_likelier(drawn: Any) -> None:
    batch = cut(drawn, augment=False)
    areas = batch.meant.flatten(2).sum(dim=2).float().masked_fill(batch.meant_chance == 0, torch.inf)
    assert (areas.diff(dim=1).nan_to_num(0.0) >= -0.01 * areas[:, 1:].nan_to_num(posinf=0.0)).all()


def test_padding_holds_nothing(drawn: Any) -> None:
    batch = cut(drawn, longest=3.0)
    assert not batch.valid.all()
    assert (batch.targets[~batch.valid[batch.image_index]] == 0).all()
    mean = torch.tensor((123.675, 116.28, 103.53))
    image, row, column = (~batch.valid).nonzero()[-1].tolist()
    torch.testing.assert_close(batch.images[image, :, 2 * row + 1, 2 * column + 1], mean)


def test_a_foreign_mask_means_the_first_target_of_its_image(drawn: Any) -> None:
    batch = cut(drawn, given=1.0, augment=False)
    assert batch.given.any()
    first = torch.searchsorted(batch.image_index, batch.image_index) == torch.arange(len(batch))
    assert first[batch.given].all()
    assert (batch.given_logits[~batch.given] == 0).all()
    x, y = (batch.given_xy[batch.given].round().long() // 2).unbind(dim=1)
    shown = batch.given_logits[batch.given]
    assert (shown[torch.arange(len(shown)), y, x] > 0).all()
    assert (mask_iou(shown > 0, batch.targets[batch.given] > 0.5) > 0).float().mean() > 0.5


def test_scenes_are_drawn_beside_and_in_every_style(drawn: Any) -> None:
    stock = drawn.module.DeviceScenes(SEEDS, {"plain": 0.5, "lifelike": 0.5}, "cpu", workers=1, first=7)
    try:
        assert len(stock) == 7
        look = drawn.module.Look(num_images=3, num_targets=2, image_size=64, num_clicks=1)
        assert len(stock.draw(look, torch.Generator().manual_seed(0)).images) == 3
    finally:
        stock.close()
