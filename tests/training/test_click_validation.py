"""Validation in training: held out, without a trace in the run, its best weights kept, the same after a kill."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from arrcoc_sam.errors import InputError, UnknownNameError
from arrcoc_sam.quality import evaluate_clicks
from arrcoc_sam.scenes import TEST_V1, TEST_V2, VALIDATION_SEEDS, Scene, generate_scene
from arrcoc_sam.segmenters import load_segmenter
from arrcoc_sam.training import segmenter_run
from arrcoc_sam.training.interactive import ClickRecipe
from arrcoc_sam.training.segmenter import SegmenterTraining, Stage, train_segmenter
from arrcoc_sam.training.settings import Validation
from arrcoc_sam.training.validation import BEST, SegmenterValidator, read_best, validation_images

VALIDATION = Validation(every=2, scenes=4, rich_share=0.25, lifelike_share=0.25, natural_share=0.25, size=64)
CONFIG = SegmenterTraining(
    stages=(Stage(64, 3, num_images=2, num_targets=2), Stage(96, 2, num_images=2, num_targets=2)),
    recipe=ClickRecipe(num_rounds=2),
    warmup_steps=2,
    ema_decay=0.5,
    validation=VALIDATION,
)
OPTIONS: dict[str, Any] = {"checkpoint_every": 3, "log_every": 1, "device": "cpu"}


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [generate_scene(seed, size=64) for seed in range(4)]


def curve(folder: Path) -> list[list[str]]:
    """All of a training log but its last column, the throughput."""
    return [line.split(",")[:-1] for line in (folder / "log.csv").read_text().splitlines()]


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "validation" / "log.csv").open() as file:
        return list(csv.DictReader(file))


def test_scenes_are_held_out_and_of_every_style() -> None:
    images = validation_images(VALIDATION)
    assert [image.name for image in images] == ["rich-5000000", "lifelike-5000001", "natural-5000002", "plain-5000003"]
    for seed, image in enumerate(images, 5_000_000):
        assert (image.image == generate_scene(seed, 64, style=image.name.partition("-")[0]).image).all()
    assert not set(VALIDATION_SEEDS) & (set(TEST_V1.seeds) | set(TEST_V2.seeds))


@pytest.mark.parametrize("ema_decay", [0.5, 0.0])
def test_the_run_takes_the_same_course_with_and_without(scenes: list[Scene], tmp_path: Path, ema_decay: float) -> None:
    """Also where the weights themselves are judged, at another size and with other running statistics."""
    config = replace(CONFIG, ema_decay=ema_decay)
    judged = train_segmenter(config, scenes, tmp_path / "with", **OPTIONS)
    alone = train_segmenter(replace(config, validation=Validation()), scenes, tmp_path / "without", **OPTIONS)
    assert curve(tmp_path / "with") == curve(tmp_path / "without")
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(judged.state_dict()[name], value, rtol=0.0, atol=0.0, msg=name)
    assert [row["step"] for row in rows(tmp_path / "with")] == ["2", "4", "5"]
    assert not (tmp_path / "without" / "validation").exists()
    assert read_best(tmp_path / "without") is None


def test_the_figures_are_those_of_the_protocol_and_the_best_weights_have_most(
    scenes: list[Scene], tmp_path: Path
) -> None:
    train_segmenter(CONFIG, scenes, tmp_path, **OPTIONS)
    logged = rows(tmp_path)
    best = read_best(tmp_path)
    assert best is not None
    most = max(logged, key=lambda row: float(row["oracle_iou"]))
    assert (str(best["step"]), best["chosen_by"]) == (most["step"], "oracle_iou")
    segmenter = load_segmenter("tiny", checkpoint=tmp_path / BEST, device="cpu")
    assert segmenter.image_size == 96
    again = evaluate_clicks(segmenter, validation_images(VALIDATION), clicks=VALIDATION.clicks).summary
    for name in ("oracle_iou", "automatic_iou", "pearson", "iou_after_3"):
        assert best["figures"][name] == pytest.approx(again[name], abs=1e-4)
        assert float(most[name]) == pytest.approx(again[name], abs=1e-4)
    assert {f"{style}/oracle_iou" for style in ("rich", "lifelike", "natural", "plain")} <= set(logged[0])


def test_a_later_figure_that_is_worse_does_not_replace_the_best(
    scenes: list[Scene], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nan = float("nan")
    given = iter([0.3, nan, 0.2])
    monkeypatch.setattr(SegmenterValidator, "_judge", lambda *_: {"oracle_iou": next(given), "pearson": nan})
    train_segmenter(CONFIG, scenes, tmp_path, **OPTIONS)
    best = read_best(tmp_path)
    assert best is not None
    assert (best["step"], best["figures"]) == (2, {"oracle_iou": 0.3, "pearson": None})


def test_resumed_run_has_the_same_validation_and_the_same_best(
    scenes: list[Scene], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_segmenter(CONFIG, scenes, tmp_path / "whole", **OPTIONS)

    class KilledError(Exception):
        pass

    real, calls = segmenter_run._backward, iter(range(100))

    def die(*arguments: Any) -> dict[str, torch.Tensor]:
        if next(calls) == 4:  # validated after the checkpoint of step 3
            raise KilledError
        return real(*arguments)

    monkeypatch.setattr(segmenter_run, "_backward", die)
    with pytest.raises(KilledError):
        train_segmenter(CONFIG, scenes, tmp_path / "parts", **OPTIONS)
    assert [row["step"] for row in rows(tmp_path / "parts")] == ["2", "4"]
    train_segmenter(CONFIG, scenes, tmp_path / "parts", **OPTIONS)
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")
    assert read_best(tmp_path / "parts") == read_best(tmp_path / "whole")
    whole, parts = (load_file(tmp_path / name / BEST) for name in ("whole", "parts"))
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=0.0, atol=0.0, msg=name)
    assert not list((tmp_path / "parts").glob(".*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"every": -1}, "every=-1"),
        ({"rich_share": 1.5}, "rich_share=1.5"),
        ({"rich_share": 0.6, "lifelike_share": 0.5}, "lifelike_share=0.5"),
        ({"rich_share": 0.6, "natural_share": 0.5}, "natural_share=0.5"),
        ({"scenes": 10, "rich_share": 0.5, "natural_share": 0.04}, "the share of natural to none"),
        ({"scenes": 1, "rich_share": 0.9}, "the share of plain to none"),
        ({"scenes": 0}, "scenes=0"),
        ({"first_seed": 0}, "first_seed=0"),
        ({"first_seed": VALIDATION_SEEDS[-1], "scenes": 2}, "5,000,000 to 8,999,999"),
        ({"clicks": (3,)}, "begin with 1"),
        ({"size": 8}, "size=8"),
    ],
)
def test_bad_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Validation(**changes)


def test_a_figure_that_there_is_not() -> None:
    with pytest.raises(UnknownNameError, match="iou_after_3"):
        Validation(figure="iou_after_8")
