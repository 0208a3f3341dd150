"""Batches: the same however they are split, targets and clicks where they belong, padding where there is no image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from arrcoc_sam.datasets.mask_forms import open_masks
from arrcoc_sam.errors import DataError, ImageReadError, InputError
from arrcoc_sam.masks import mask_iou
from arrcoc_sam.scenes import Scene, generate_scene
from arrcoc_sam.training.augmentation import Augmentation
from arrcoc_sam.training.batches import BatchPlan, PromptBatch, _donors, draw_batch
from arrcoc_sam.training.sources import MaskedImage, MaskSetSource, MixedSource, SceneSource

PLAN = BatchPlan(image_size=64, mask_size=32, num_targets=3)
AS_IT_IS = Augmentation(crop_probability=0.0, rotate=False, flip=False, recolor=False)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [generate_scene(seed, size=64) for seed in range(4)]


class One:
    """A source of one image, wider than high, with the masks given."""

    def __init__(self, masks: np.ndarray, regions: np.ndarray | None = None) -> None:
        self.masks, self.regions = masks, regions

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> MaskedImage:
        image = np.full((*self.masks.shape[1:], 3), 40, np.uint8)
        read = None if self.regions is None else (lambda chosen: self.regions[chosen])  # type: ignore[index]
        return MaskedImage("one", image, len(self.masks), lambda chosen: self.masks[chosen], read)


def test_a_batch_is_the_sum_of_its_parts(scenes: list[Scene]) -> None:
    source = SceneSource(scenes)
    whole = draw_batch(source, PLAN, seed=3, step=7, places=range(4))
    parts = [draw_batch(source, PLAN, seed=3, step=7, places=range(first, first + 2)) for first in (0, 2)]
    for name in ("images", "targets", "points_xy", "boxes_xyxy", "box_shift", "click_chance"):
        joined = torch.cat([getattr(part, name) for part in parts])
        torch.testing.assert_close(getattr(whole, name), joined, rtol=0.0, atol=0.0, msg=name)
    assert parts[0].pause_chance == parts[1].pause_chance == whole.pause_chance
    other = draw_batch(source, PLAN, seed=3, step=8, places=range(4))
    assert not torch.equal(other.images, whole.images)
    assert other.pause_chance != whole.pause_chance


def test_clicks_fall_into_their_targets(scenes: list[Scene]) -> None:
    plan = replace(PLAN, augmentation=Augmentation(crop_probability=1.0))
    batch = draw_batch(SceneSource(scenes), plan, seed=0, step=0, places=range(6))
    assert batch.images.shape == (6, 3, 64, 64)
    assert set(batch.image_index.tolist()) == set(range(6))
    for target, (x, y), box in zip(batch.targets, batch.points_xy, batch.boxes_xyxy / 2, strict=True):
        assert target.max() > 0.5
        # a click is carried as segmenters do, up to half a pixel off
        row, column = int((y + 0.5) / 2), int((x + 0.5) / 2)
        assert target[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2].max() > 0
        rows, columns = torch.nonzero(target > 0, as_tuple=True)
        edges = torch.tensor([columns.min(), rows.min(), columns.max(), rows.max()])
        assert (edges - box).abs().max() < 2


def test_given_masks(scenes: list[Scene]) -> None:
    """Masks of the targets, some of them wrong; all other chance stays what it is without."""
    source, plan = SceneSource(scenes), replace(PLAN, given_share=0.5, given_targets=2)
    places = range(40)
    batch, without = (draw_batch(source, each, seed=1, step=0, places=places) for each in (plan, PLAN))
    for name, value in without.state().items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(getattr(batch, name), value, rtol=0.0, atol=0.0, msg=name)
    assert without.given is None
    assert batch.given is not None
    assert batch.given_logits is not None
    assert batch.given_xy is not None
    first = torch.arange(len(batch)) - torch.searchsorted(batch.image_index, batch.image_index) < 2
    assert not batch.given[~first].any()
    assert 0.35 < batch.given[first].float().mean() < 0.65
    shown, targets = batch.given_logits[batch.given] > 0, batch.targets[batch.given] > 0.5
    iou = mask_iou(shown, targets)
    assert (iou > 0.9).float().mean() > 0.05
    assert (iou < 0.5).float().mean() > 0.2
    for logits, (x, y) in zip(batch.given_logits[batch.given], batch.given_xy[batch.given], strict=True):
        row, column = int((y + 0.5) / 2), int((x + 0.5) / 2)  # slivers cover no cell by half
        assert (logits[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] > -10).any()
    assert batch.given_logits[~batch.given].abs().max() == 0
    again = draw_batch(source, plan, seed=1, step=0, places=places)
    assert again.given_logits is not None
    assert torch.equal(again.given_logits, batch.given_logits)


def test_padding(tmp_path: Path) -> None:
    masks = np.ones((1, 16, 32), bool)
    batch = draw_batch(One(masks), replace(PLAN, augmentation=AS_IT_IS), seed=0, step=0, places=[0])
    assert batch.valid[0, :16].all()
    assert not batch.valid[0, 16:].any()
    assert (batch.targets[0, :16] == 1).all()
    assert (batch.targets[0, 16:] == 0).all()
    torch.testing.assert_close(batch.images[0, :, 40, 5], torch.tensor(PLAN.padding))
    assert (batch.images[0, :, :32] == 40).all()
    torch.save(batch.state(), tmp_path / "batch.pt")
    again = PromptBatch(**torch.load(tmp_path / "batch.pt", weights_only=True))
    assert torch.equal(again.targets, batch.targets)


def test_clicks_of_triples_mean_all_levels() -> None:
    masks, regions = np.zeros((2, 32, 32), bool), np.zeros((2, 32, 32), bool)
    masks[0], masks[1, 8:24, 8:24] = True, True
    regions[:, 12:14, 12:14] = True
    batch = draw_batch(One(masks, regions), replace(PLAN, augmentation=AS_IT_IS), seed=0, step=0, places=range(5))
    assert len(batch) == 10
    assert batch.points_xy.min() >= 24
    assert batch.points_xy.max() <= 26


def test_targets_that_can_not_be_used() -> None:
    masks = np.zeros((3, 32, 32), bool)
    masks[0], masks[1, 0, 0], masks[2, 4:20, 4:20] = True, True, True
    plan = replace(PLAN, augmentation=AS_IT_IS, largest_target=0.9)
    batch = draw_batch(One(masks), plan, seed=0, step=0, places=range(4))
    assert len(batch) == 4  # neither the whole image nor the single pixel
    assert ((batch.targets > 0.5).sum((1, 2)) == 256).all()
    with pytest.raises(DataError, match="none with a target of a usable size"):
        draw_batch(One(masks[:2]), plan, seed=0, step=0, places=[0])


def test_a_mask_too_thin_to_be_a_target_is_no_meaning_either() -> None:
    masks = np.zeros((2, 64, 64), bool)
    masks[0, 8:40, 8:40], masks[1, 21, 8:40] = True, True  # the line covers half of 16 cells, and of none more
    plan = replace(PLAN, augmentation=AS_IT_IS, with_meant=True)
    regions = np.repeat(masks[1:], 2, axis=0)  # every click lies on the line
    batch = draw_batch(One(masks, regions), plan, seed=0, step=0, places=range(3))
    assert batch.meant is not None
    assert batch.meant_chance is not None
    assert batch.meant.flatten(2).any(dim=2)[batch.meant_chance > 0].all()
    torch.testing.assert_close(batch.meant_chance, torch.ones(3, 1))


def test_an_image_that_can_t_be_read_is_left_out(scenes: list[Scene]) -> None:
    class Broken(SceneSource):
        def __getitem__(self, index: int) -> MaskedImage:
            if index in broken:
                raise ImageReadError(f"{index}.png can't be read; expected a whole image file.")
            return super().__getitem__(index)

    broken = {1}
    with pytest.warns(UserWarning, match=r"Left out of training: 1\.png"):
        batch = draw_batch(Broken(scenes), PLAN, seed=0, step=0, places=range(12))
    assert set(batch.image_index.tolist()) == set(range(12))
    broken |= set(range(4))
    with pytest.raises(ImageReadError, match="50 images drawn"), pytest.warns(match="Left out of training"):
        draw_batch(Broken(scenes), PLAN, seed=0, step=0, places=[0])


def test_an_image_does_without_masks_of_another_that_can_t_be_read(scenes: list[Scene]) -> None:
    class Broken(SceneSource):
        def __getitem__(self, index: int) -> MaskedImage:
            if index == 1:
                raise ImageReadError("1.png can't be read; expected a whole image file.")
            return super().__getitem__(index)

    rng = np.random.default_rng(0)
    source = Broken(scenes[:2])
    assert _donors(source, 0, rng) == []
    assert _donors(source, 1, rng)


def test_a_soft_mask_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for number in range(3):
        scene = generate_scene(number, size=64)
        mask = scene.masks[0] * np.uint8(255)
        if number == 1:
            mask[:, ::2] //= 2
        Image.fromarray(scene.image).save(tmp_path / "images" / f"{number}.png")
        Image.fromarray(mask).save(tmp_path / "masks" / f"{number}.png")
    source = MaskSetSource(open_masks(tmp_path))
    with pytest.warns(UserWarning, match=r"Left out of training: .*1\.png has more than two values"):
        batch = draw_batch(source, PLAN, seed=0, step=0, places=range(12))
    assert set(batch.image_index.tolist()) == set(range(12))
    for number in range(3):
        scene = generate_scene(number, size=64)
        Image.fromarray((scene.masks.cumsum(0)[-1] * 40).astype(np.uint8)).save(tmp_path / "masks" / f"{number}.png")
    with (
        pytest.raises(DataError, match=r"50 images drawn, and none can be read; the last: .*two values"),
        pytest.warns(match="Left out of training"),
    ):
        draw_batch(source, PLAN, seed=0, step=0, places=[0])


def test_mixtures_hold_every_image_in_proportion(scenes: list[Scene]) -> None:
    few, many = SceneSource(scenes[:1]), SceneSource(scenes[1:])
    mixed = MixedSource([few, many], [3.0, 1.0])
    names = [mixed[i].name for i in range(len(mixed))]
    assert names.count("scene 0") == 9
    assert set(names) == {f"scene {seed}" for seed in range(4)}
    assert len(names) == 12
    with pytest.raises(IndexError):
        mixed[12]
    with pytest.raises(InputError, match="positive weight"):
        MixedSource([few], [0.0])
    with pytest.raises(InputError, match="no scenes"):
        SceneSource([])
