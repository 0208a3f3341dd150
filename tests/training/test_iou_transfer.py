"""The IoU head learns to judge foreign masks, and nothing else of the model moves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arrcoc_sam.datasets import CocoDataset
from arrcoc_sam.errors import (
    DataError,
    EmbeddingMismatchError,
    InputError,
    TrainingError,
    UnsupportedModelError,
)
from arrcoc_sam.masks import encode_rle
from arrcoc_sam.prompts import Prompts
from arrcoc_sam.quality import MaskQualityEstimator
from arrcoc_sam.scenes import generate_scene
from arrcoc_sam.segmenters.sam import SamSegmenter
from arrcoc_sam.segmenters.tiny import build_tiny
from arrcoc_sam.training.iou_transfer.config import IoUHeadConfig
from arrcoc_sam.training.iou_transfer.report import compare_heads
from arrcoc_sam.training.iou_transfer.scored_masks import DegradedMasks, MatchedMasks, split_images
from arrcoc_sam.training.iou_transfer.transfer import ScoredImage, TransferSettings, transfer_iou_head
from arrcoc_sam.training.sources import MaskedImage, SceneSource

HEAD = "mask_decoder.iou_prediction_head."


@pytest.fixture
def segmenter() -> SamSegmenter:
    torch.manual_seed(0)
    return SamSegmenter(build_tiny(64), name="untrained")


@pytest.fixture(scope="module")
def degraded() -> DegradedMasks:
    return DegradedMasks(SceneSource([generate_scene(seed, size=64) for seed in range(8)]), 4)


def test_degraded_masks_are_reproducible_and_scored_truly(degraded: DegradedMasks) -> None:
    first, again = degraded[3], degraded[3]
    np.testing.assert_array_equal(first.masks, again.masks)
    source = degraded.source[3]
    truth = source.read_masks(np.arange(source.num_masks))
    best = [max((m & t).sum() / (m | t).sum() for t in truth) for m in first.masks]
    assert (np.array(best) >= first.true_iou - 1e-12).all()
    spread = np.concatenate([one.true_iou for one in degraded])
    assert spread.min() < 0.4
    assert spread.max() > 0.7


def test_an_image_of_a_soft_mask_is_left_out(degraded: DegradedMasks) -> None:
    class Soft(SceneSource):
        def __getitem__(self, index: int) -> MaskedImage:
            masked = super().__getitem__(index)
            return replace(masked, read_masks=read) if index == 3 else masked

    def read(chosen: np.ndarray) -> np.ndarray:
        raise DataError("3.png has more than two values")

    with pytest.warns(UserWarning, match=r"Left out of training: 3\.png has more than two values"):
        assert len(replace(degraded, source=Soft(degraded.source.scenes))[3].masks) == 0
    for seed in range(8):  # those that its masks could be pasted into stay
        others = replace(degraded, source=Soft(degraded.source.scenes), seed=seed)
        assert all(len(others[number].masks) for number in range(3))


def test_only_the_head_moves(segmenter: SamSegmenter, degraded: DegradedMasks) -> None:
    model = segmenter.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    embedding = segmenter.encode(degraded[0].image)
    click = Prompts(points_xy=[[[20.0, 20.0]]], labels=[[1]])
    with torch.no_grad():
        drawn = segmenter.decode(embedding, click).logits
    train, held_out = split_images(degraded, 0.25)
    result = transfer_iou_head(segmenter, train, held_out, TransferSettings(epochs=3), num_bootstrap=50)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all(name.startswith(HEAD) for name in moved)
    with pytest.raises(EmbeddingMismatchError):  # other weights, another hash: old calibrations don't fit either
        segmenter.decode(embedding, click)
    embedding = segmenter.encode(degraded[0].image)
    with torch.no_grad():
        torch.testing.assert_close(segmenter.decode(embedding, click).logits, drawn, rtol=0.0, atol=0.0)
    assert segmenter.judges == "mask+point"
    with pytest.raises(InputError, match="taught to judge the mask that it is shown"):
        MaskQualityEstimator(segmenter)
    assert result.model is model
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert result.report.before.num_images == 2


def test_the_gain_of_calibration_allows_for_its_bias() -> None:
    """A head that is right has an ECE of noise, and more of it in draws: percentiles of gains hold too little gain."""
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(6):
        after = rng.uniform(0.3, 0.7, (300, 1))
        actual = torch.from_numpy((after[:, 0] + 0.1 * rng.standard_normal(300)).clip(0, 1))
        report = compare_heads(after + 0.1, after, actual, [f"{row}" for row in range(300)], (), 100, seed)
        low, high = report.gain_intervals["ece"]
        assert low <= report.gain["ece"] <= high
        covered += low <= -0.1 <= high
    assert covered >= 4


@pytest.mark.parametrize("part", ["head", "token+head"])
def test_a_head_learns(segmenter: SamSegmenter, degraded: DegradedMasks, part: Any) -> None:
    """Of a model that was never trained: the error falls, on what it learned from and on what it did not."""
    settings = TransferSettings(part=part, epochs=12 if part == "head" else 5, batch_size=8, learning_rate=3e-3)
    token = segmenter.model.mask_decoder.iou_token.weight.clone()
    train, held_out = list(degraded)[:6], list(degraded)[6:]
    report = transfer_iou_head(segmenter, train, held_out, settings, num_bootstrap=50).report
    assert report.losses[-1] < 0.75 * report.losses[0]
    assert report.after.mae < report.before.mae
    assert report.gain["mae"] == report.after.mae - report.before.mae
    low, high = report.gain_intervals["mae"]
    assert low <= report.gain["mae"] <= high
    assert torch.equal(segmenter.model.mask_decoder.iou_token.weight, token) == (part == "head")
    json.dumps(report.as_json(), allow_nan=False)


class _Killed(Exception):
    pass


@pytest.mark.parametrize("part", ["head", "token+head"])
@pytest.mark.parametrize("at", [("held-out images", 2), ("epochs", 2)])
def test_a_killed_transfer_goes_on(
    degraded: DegradedMasks, part: Any, at: tuple[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arrcoc_sam.training.iou_transfer.masks._KEEP_EVERY", 1)
    settings, seen = TransferSettings(part=part, epochs=3, batch_size=8), []

    def transfer(folder: Path | None, **more: Any) -> Any:
        torch.manual_seed(0)
        fresh = SamSegmenter(build_tiny(64), name="untrained")
        return transfer_iou_head(fresh, degraded_part, held_out, settings, num_bootstrap=20, folder=folder, **more)

    def killed(stage: str, done: int, total: int) -> None:
        if (stage, done) == at:
            raise _Killed

    degraded_part, held_out = split_images(degraded, 0.4)
    with pytest.raises(_Killed):
        transfer(tmp_path / "progress", progress=killed)
    resumed = transfer(tmp_path / "progress", progress=lambda stage, done, _: seen.append((stage, done)))
    unbroken = transfer(None)
    assert resumed.report.as_json() == unbroken.report.as_json()
    for name, value in unbroken.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name])
    assert at == ("epochs", 2) or part == "token+head" or ("images to learn from", 1) not in seen
    assert (("epochs", 2) not in seen) == (at == ("epochs", 2))
    if part == "head":
        with pytest.raises(TrainingError, match="another configuration"):
            transfer(tmp_path / "progress", origin={"data": "others"})
        settings = replace(settings, learning_rate=1e-4)  # the masks need not be asked about again
        seen.clear()
        transfer(tmp_path / "progress", progress=lambda stage, done, _: seen.append((stage, done)))
        assert {stage for stage, _ in seen} == {"epochs"}


def test_a_loss_that_is_not_finite_is_one_error(segmenter: SamSegmenter, degraded: DegradedMasks) -> None:
    """Without a warning of PyTorch's before it, which would be an error here."""
    with torch.no_grad():
        next(segmenter.model.mask_decoder.iou_prediction_head.parameters()).fill_(torch.nan)
    with pytest.raises(TrainingError, match="the loss is nan at step 0"):
        transfer_iou_head(segmenter, list(degraded)[:2], list(degraded)[2:4], TransferSettings(epochs=1))


def test_images_without_masks_are_passed_over(segmenter: SamSegmenter, degraded: DegradedMasks) -> None:
    empty = ScoredImage("none", degraded[0].image, np.zeros((0, 64, 64), bool), np.zeros(0))
    settings = TransferSettings(part="token+head", epochs=1)
    report = transfer_iou_head(
        segmenter, [empty, degraded[0], empty, degraded[1]], [empty, degraded[2]], settings, num_bootstrap=0
    ).report
    assert report.before.num_images == 1


def test_the_head_reads_what_decode_gives_it(segmenter: SamSegmenter, degraded: DegradedMasks) -> None:
    """The judgement after the transfer is what decode answers with."""
    settings = TransferSettings(epochs=2, token=0)
    report = transfer_iou_head(segmenter, list(degraded)[:6], list(degraded)[6:], settings, num_bootstrap=0).report
    predicted, actual = [], []
    for scored in list(degraded)[6:]:
        prompts = Prompts.from_masks(scored.masks, segmenter, kind="mask+point")
        with torch.no_grad():
            predicted.append(segmenter.decode(segmenter.encode(scored.image), prompts, multimask=False).predicted_iou)
        actual.append(scored.true_iou)
    errors = np.abs(torch.cat(predicted)[:, 0].numpy() - np.concatenate(actual))
    assert report.after.mae == pytest.approx(errors.mean(), abs=1e-5)


def test_bad_input(segmenter: SamSegmenter, degraded: DegradedMasks) -> None:
    some = list(degraded)[:2]
    with pytest.raises(InputError, match="both parts"):
        transfer_iou_head(segmenter, some, some)
    with pytest.raises(DataError, match="no held-out images"):
        transfer_iou_head(segmenter, some, [])
    with pytest.raises(InputError, match="held_out"):
        split_images(degraded, 0.01)
    with pytest.raises(InputError, match="token=4"):
        TransferSettings(token=4)
    with pytest.raises(DataError, match="an empty mask"):
        ScoredImage("x", np.zeros((8, 8, 3), np.uint8), np.zeros((1, 8, 8), bool), np.array([0.5]))
    with pytest.raises(DataError, match="outside"):
        ScoredImage("x", np.zeros((8, 8, 3), np.uint8), np.ones((1, 8, 8), bool), np.array([1.5]))


@pytest.mark.usefixtures("as_at_run_time")
def test_another_class_of_segmenter(degraded: DegradedMasks) -> None:
    class Other:
        name = "other"

    with pytest.raises(UnsupportedModelError, match="other is a Other"):
        transfer_iou_head(Other(), [degraded[0]], [degraded[1]])  # type: ignore[arg-type]


def coco(folder: Path, name: str, masks: np.ndarray, file_name: str = "0.png") -> CocoDataset:
    from PIL import Image

    Image.fromarray(np.zeros((*masks.shape[1:], 3), np.uint8)).save(folder / file_name)
    images = [{"id": 1, "file_name": file_name, "height": masks.shape[1], "width": masks.shape[2]}]
    annotations = [
        {"id": i, "image_id": 1, "segmentation": encode_rle(torch.from_numpy(mask))} for i, mask in enumerate(masks)
    ]
    (folder / name).write_text(json.dumps({"images": images, "annotations": annotations}))
    return CocoDataset.read(folder / name, images=folder)


def test_masks_of_another_file_mean_what_they_fit_best(tmp_path: Path) -> None:
    truth = np.zeros((2, 16, 16), bool)
    truth[0, :8], truth[1, 8:] = True, True
    external = np.zeros((2, 16, 16), bool)
    external[0, :4], external[1, 6:] = True, True
    matched = MatchedMasks(coco(tmp_path, "external.json", external), coco(tmp_path, "truth.json", truth))
    assert len(matched) == 1
    assert matched[0].true_iou.tolist() == pytest.approx([0.5, 0.8])
    other = coco(tmp_path, "larger.json", np.pad(truth, ((0, 0), (0, 1), (0, 0))))
    with pytest.raises(DataError, match="has size"):
        MatchedMasks(matched.external, other)
    with pytest.raises(DataError, match="share no image"):
        MatchedMasks(coco(tmp_path, "external.json", external), coco(tmp_path, "other.json", truth, "1.png"))


def test_the_default_file_can_be_read() -> None:
    config = IoUHeadConfig.read(None)
    assert config.transfer.part == "head"
    assert config.data is not None
