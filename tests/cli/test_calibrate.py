"""``calibrate``: true masks in, a calibration and its figures out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arrcoc_sam.errors import InputError
from arrcoc_sam.quality import load_calibration
from arrcoc_sam.segmenters import load_segmenter

Command = Callable[..., Any]


def test_calibrate_writes_a_calibration_of_these_weights(command: Command, truth: Path, weights: Path) -> None:
    words = ("calibrate", truth, "--out", "made/c.json", "--checkpoint", weights, "--per-mask", 2, "--min-masks", 8)
    few = command(*words, "--no-ablation", "--min-images", 30)
    assert "8 images with masks; expected at least 120. Mend: give more images, or lower --min-images" in few.error
    answer = command(*words, "--ablation-images", 2, "--tokens", "1-3", "--json")
    assert answer.code == 0, answer.err
    record = json.loads(answer.out)
    calibration = load_calibration("made/c.json")
    assert calibration.checkpoint_hash == load_segmenter("tiny", checkpoint=weights, device="cpu").checkpoint_hash
    assert calibration.multimask is True
    assert record["report"] == json.loads(Path("made/c.json").read_text())["report"]
    assert calibration.provenance["data"]["name"] == "truth.json"
    assert sum(part["masks"] for part in calibration.provenance["sets"].values()) == 48
    assert len(record["protocols"]) == 8
    assert sorted(path.name for path in Path("made").iterdir()) == [
        "c-protocols.csv",
        "c-protocols.png",
        "c-reliability.png",
        "c.json",
    ]


def test_calibrate_knows_its_sets_before_it_scores(
    command: Command, truth: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arrcoc_sam.cli.calibrate_job.open_segmenter", lambda *_: pytest.fail("a segmenter is loaded"))
    words = ("calibrate", truth, "--out", "c.json", "--checkpoint", weights, "--no-ablation", "--min-masks")
    answer = command(*words, 8)  # 24 masks of 8 images: two images hold 6
    assert answer.code == 2
    assert "the smallest of the three sets has 6 masks of 2 images at most; expected at least 8 masks" in answer.error


def test_calibrate_leaves_to_the_fit_what_depends_on_the_split(
    command: Command, truth: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*_: object) -> None:
        raise InputError("a segmenter is loaded")

    monkeypatch.setattr("arrcoc_sam.cli.calibrate_job.open_segmenter", loaded)
    document = json.loads(truth.read_text())
    first = document["annotations"][0]
    document["annotations"] += [first | {"id": 1_000 + number} for number in range(9)]  # 12 masks of one image of 8
    truth.write_text(json.dumps(document))
    words = ("calibrate", truth, "--out", "c.json", "--checkpoint", weights, "--no-ablation", "--min-masks")
    assert "a segmenter is loaded" in command(*words, 8).error


def test_calibrate_needs_masks_enough(command: Command, truth: Path, weights: Path) -> None:
    answer = command("calibrate", truth, "--out", "c.json", "--checkpoint", weights, "--no-ablation")
    assert answer.code == 2
    assert "24 masks with --per-mask 1; expected at least 3,000 samples" in answer.error
    assert not Path("c.json").exists()
    assert command("calibrate", truth, "--out", "c.txt").error.startswith("error: --out c.txt; expected a .json file")


def test_calibrate_keeps_its_ground_truth(command: Command, truth: Path, weights: Path) -> None:
    before = truth.read_bytes()
    words = ("calibrate", truth, "--checkpoint", weights, "--min-masks", 2, "--no-ablation", "--out")
    (truth.parent / "link.json").symlink_to(truth)
    for name in (truth, truth.parent / "link.json"):
        answer = command(*words, name)
        assert answer.code == 2
        assert "is to be written and to be read; expected two files. Mend: name another output" in answer.error
    assert truth.read_bytes() == before
