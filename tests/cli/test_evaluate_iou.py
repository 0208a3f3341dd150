"""``evaluate-iou``: true masks in, a judgement of the IoU head out."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from arrcoc_sam.quality import click_image
from arrcoc_sam.segmenters.base import Segmenter

Command = Callable[..., Any]


def test_evaluate_iou_by_area_level_and_clicks(command: Command, truth: Path, weights: Path) -> None:
    (truth.parent / "7.png").write_bytes(b"no picture")
    words = ("evaluate-iou", truth, "--checkpoint", weights, "--clicks", 3, "--bootstrap", 20, "--out", "made")
    answer = command(*words)
    assert answer.code == 3, answer.err
    assert "left out:" in answer.err
    assert "7.png" in answer.err
    assert "selection_accuracy" in answer.out.replace("\n", "") or "select" in answer.out
    record = json.loads(Path("made/iou_head.json").read_text())
    assert record["num_masks"] == 21
    assert record["num_images"] == 7
    table = pd.DataFrame(record["metrics"])
    assert set(table["clicks"]) == {1, 3}
    assert set(table["stratum"]) == {"all", "area", "level"}
    assert set(table.loc[table["stratum"] == "level", "label"]) == {"whole", "part"}
    assert set(table.loc[table["stratum"] == "area", "label"]) == {"small"}
    whole = table[(table["stratum"] == "all") & (table["clicks"] == 1)].set_index("metric")
    assert whole.loc["mae", "low"] <= whole.loc["mae", "value"] <= whole.loc["mae", "high"]
    clicks = pd.read_parquet("made/clicks.parquet")
    by_hand = clicks[[f"predicted_{i}" for i in (1, 2, 3)]].values - clicks[[f"iou_{i}" for i in (1, 2, 3)]].values
    assert whole.loc["mae", "value"] == pytest.approx(abs(by_hand).mean(), abs=1e-6)
    assert Path("made/reliability.png").stat().st_size > 5000


def test_masks_are_judged_that_the_head_speaks_of(
    command: Command, truth: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("evaluate-iou", truth, "--checkpoint", weights, "--clicks", 1, "--bootstrap", 2)
    assert json.loads(command(*words, "--json").out)["masks"] == "the segmenter's own"

    def clicked(segmenter: Any, *args: Any, **options: Any) -> pd.DataFrame:
        assert segmenter.part
        return click_image(segmenter, *args, **options)

    def part(segmenter: Any) -> Any:
        found = copy.copy(segmenter)
        found.part = True
        return found

    monkeypatch.setattr("arrcoc_sam.cli.evaluate_iou_job.click_image", clicked)
    monkeypatch.setattr(Segmenter, "scorer", property(part))  # as SAM-HQ has
    answer = command(*words)
    assert answer.code == 0, answer.err
    assert "Judged is the part of the segmenter's masks that its head speaks of." in answer.out


def test_a_picture_too_small_for_the_segmenter_is_listed(
    command: Command, truth: Path, weights: Path, make_photo: Callable[..., Path]
) -> None:
    document = json.loads(truth.read_text())
    document["images"][7] |= {"width": 60, "height": 5}
    for annotation in document["annotations"]:
        if annotation["image_id"] == 7:
            annotation["segmentation"] = [[4, 1, 30, 1, 30, 4, 4, 4]]
    truth.write_text(json.dumps(document))
    make_photo(truth.parent / "7.png", height=5)
    answer = command("evaluate-iou", truth, "--checkpoint", weights, "--clicks", 3, "--bootstrap", 5, "--json")
    assert answer.code == 3, answer.err
    assert "left out: 7.png" in answer.err
    record = json.loads(answer.out)
    assert record["num_images"] == 7
    assert (record["num_skipped"], [each["file"] for each in record["skipped"]]) == (1, ["7.png"])
    assert record["left_out"] == [f"7.png: {record['skipped'][0]['reason']}"]
    words = ("calibrate", truth, "--checkpoint", weights, "--per-mask", 2, "--min-masks", 6, "--no-ablation")
    answer = command(*words, "--out", "c.json", "--components", "--json")
    assert answer.code == 3, answer.err
    assert "left out: 7.png" in answer.err
    assert json.loads(answer.out)["skipped"] == record["skipped"]
    assert json.loads(Path("c.json").read_text())["components"] is True


def test_evaluate_iou_of_nothing(command: Command, truth: Path, tmp_path: Path) -> None:
    empty = tmp_path / "data" / "empty.json"
    empty.write_text(json.dumps(json.loads(truth.read_text()) | {"annotations": []}))
    answer = command("evaluate-iou", empty)
    assert answer.code == 2
    assert "has no usable mask" in answer.error
    assert command("evaluate-iou", truth, "--clicks", 0).code == 2
