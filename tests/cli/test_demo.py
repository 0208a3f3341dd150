from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import arrcoc_sam.cli.demo_job
from arrcoc_sam.attention import RelevanceAttention
from arrcoc_sam.cli.demo_controls import planted_maps
from arrcoc_sam.cli.demo_images import DEMO_PHOTOS, DEMO_SCENE_SEED, DemoPhoto, load_photo, load_scene
from arrcoc_sam.cli.demo_masks import DEMO_DEGRADATIONS, degraded_masks, mask_section, score_scene, scores_frame
from arrcoc_sam.hierarchy import MaskHierarchy
from arrcoc_sam.masks import mask_iou
from arrcoc_sam.scenes import TEST_V1, TRAIN_SEEDS, VALIDATION_SEEDS
from arrcoc_sam.segmenters import load_segmenter

Command = Callable[..., Any]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("the network is off")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("photo", DEMO_PHOTOS, ids=lambda photo: photo.name)
def test_every_photograph_ships_with_scikit_image_and_is_clicked_inside(photo: DemoPhoto) -> None:
    image = load_photo(photo.name)
    assert image.dtype == np.uint8
    assert min(image.shape[:2]) >= 250
    assert photo.clicks
    for _, (x, y) in photo.clicks:
        assert 0 <= x <= image.shape[1] - 1
        assert 0 <= y <= image.shape[0] - 1


def test_one_photograph_shows_where_the_model_fails() -> None:
    assert sum(photo.fails for photo in DEMO_PHOTOS) == 1


def test_the_scene_is_new_to_the_model_and_its_levels_are_measurable() -> None:
    for seeds in (TRAIN_SEEDS, VALIDATION_SEEDS, TEST_V1.seeds):
        assert DEMO_SCENE_SEED not in seeds
    scene = load_scene()
    x, y = (round(value) for value in scene.point_xy)
    assert scene.levels[:, y, x].all()
    hierarchy = MaskHierarchy.from_masks(scene.levels[None])
    assert hierarchy.distinct.all()
    assert hierarchy.measurable((32, 32)).all()


def test_planted_attention_is_dense_where_it_should_be() -> None:
    scene = load_scene()
    like = RelevanceAttention()(scene.image)
    maps = planted_maps(scene.levels, like)
    assert maps.names == ("planted: whole", "planted: part", "planted: subpart", "control: uniform")
    assert maps.values.flatten(1).sum(1) == pytest.approx(torch.ones(4), abs=1e-5)
    density = maps.values / maps.valid
    for index in range(3):
        inside = like.transform.masks_to_grid(scene.levels[index], like.grid_hw)
        full, empty = density[index][inside == 1], density[index][inside == 0]
        assert (full / empty.mean()).tolist() == pytest.approx([6.0] * len(full), rel=1e-4)
    assert density[3].std() < 1e-7


def test_masks_are_wrong_by_as_much_as_they_say() -> None:
    scene = load_scene()
    masks = degraded_masks(scene)
    assert len(masks) >= 6
    severities = {name: severity for name, _, severity in DEMO_DEGRADATIONS}
    for name, mask in masks.items():
        if name != "a part for the whole":  # takes the part whose area is nearest
            assert float(mask_iou(mask, scene.levels[0])) == pytest.approx(1 - severities[name], abs=0.02)


def test_the_embedded_model_s_scores_are_calibrated_and_rank_the_masks() -> None:
    segmenter = load_segmenter("tiny", device="cpu")
    scene = load_scene()
    scored = score_scene(segmenter, scene)
    right, *wrong = scored
    assert right.true_iou == 1
    assert right.quality > max(each.quality for each in wrong)
    assert all(each.interval[0] <= each.quality <= each.interval[1] for each in scored)
    table = scores_frame(scored)
    assert table["quality"].tolist() == [each.quality for each in scored]
    section = mask_section(scene, scored)
    assert section.count("data:image/jpeg") == 1
    assert section.count("<use ") == len(scored) - 1
    assert "a calibrated estimate of the IoU" in section


@pytest.mark.usefixtures("offline")
def test_the_demo_finds_what_was_planted_and_writes_a_report(
    command: Command, weights: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(arrcoc_sam.cli.demo_job, "DEMO_PHOTOS", DEMO_PHOTOS[-1:])
    answer = command("demo", "--checkpoint", weights, "--format", "none")
    assert answer.code == 0, answer.err
    assert "Report: arrcoc-sam-demo/report.html" in answer.out
    assert "planted: subpart" in answer.out
    folder = tmp_path / "arrcoc-sam-demo"
    names = {"report.html", "granularity.csv", "granularity.parquet", "scores.csv"}
    assert {path.name for path in folder.iterdir()} == names
    table = pd.read_parquet(folder / "granularity.parquet")
    true = table[table["image"] == "scene, true"].groupby("map")["best_match"].first()
    for level in ("whole", "part", "subpart"):
        assert true[f"planted: {level}"] == level
    assert true["control: uniform"] == "abstain"
    found = table[table["image"] == "scene, found"]
    assert found["IoU_with_the_closest_true_mask"].between(0, 1).all()
    report = (folder / "report.html").read_text("utf-8")
    assert "demonstration model" in report
    assert "the embedded model fails here" in report
    scores = pd.read_csv(folder / "scores.csv")
    assert "a lower bound on the IoU, as these weights have no calibration" in report
    assert scores["interval_low"].isna().all()
    assert scores["quality"].tolist() == scores["lower_bound"].tolist()
    assert all(name in report and name in answer.out for name in scores["mask"])

    monkeypatch.setattr(arrcoc_sam.cli.demo_job, "DEMO_PHOTOS", ())
    record = json.loads(command("demo", "--checkpoint", weights, "--format", "none", "--json", "-o", "again").out)
    assert record["planted"]["scene, true"]["planted: part"] == "part"
    assert [row["mask"] for row in record["scores"]] == scores["mask"].tolist()
    # Nothing is drawn by chance: the same command gives the same numbers.
    again = pd.read_parquet(tmp_path / "again" / "granularity.parquet")
    scenes = table[table["image"].str.startswith("scene")].reset_index(drop=True)
    pd.testing.assert_frame_equal(scenes, again, check_column_type=False)
