from __future__ import annotations

import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from arrcoc_sam.cli import score_job
from arrcoc_sam.errors import InputError
from arrcoc_sam.masks import encode_rle
from arrcoc_sam.quality import KeepRules, filter_masks

Command = Callable[..., Any]
NUM_IMAGES, NUM_MASKS = 4, 10


def write_masks(folder: Path, num_images: int = NUM_IMAGES) -> Path:
    """A COCO file of images of smooth colours with two or three squares each."""
    folder.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image in range(num_images):
        coarse = np.random.default_rng(image).integers(0, 255, (4, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((60, 40), Image.Resampling.BICUBIC).save(folder / f"{image}.png")
        images.append({"id": image, "file_name": f"{image}.png", "height": 40, "width": 60})
        for place in range(2 + image % 2):
            mask = np.zeros((40, 60), dtype=bool)
            mask[4 * place + 2 : 4 * place + 16, 9 * place + 3 : 9 * place + 20 + image] = True
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": place % 2,
                    "segmentation": encode_rle(mask),
                    "iscrowd": 0,
                    "bbox": [1, 2, 3, 4],
                }
            )
    categories = [{"id": 0, "name": "square <b>"}, {"id": 1, "name": "box"}]
    path = folder / "masks.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


@pytest.fixture
def scored(command: Command, weights: Path, tmp_path: Path) -> Path:
    """A table of scores."""
    path = write_masks(tmp_path / "set")
    answer = command("score", path, "--checkpoint", weights, "--out", "scores.parquet")
    assert answer.code == 0, answer.err
    return tmp_path / "scores.parquet"


# --- score ----------------------------------------------------------------------------------------------------------


def test_score_writes_a_table_and_scores_beside_masks(command: Command, weights: Path, tmp_path: Path) -> None:
    path = write_masks(tmp_path / "set")
    words = ("score", path, "--checkpoint", weights, "-o", "scores.parquet", "--annotated", "scored.json", "--json")
    answer = command(*words)
    assert answer.code == 0, answer.err
    record = json.loads(answer.out)
    assert (record["num_masks"], record["num_errors"], record["segmenter"]) == (NUM_MASKS, 0, "tiny")
    assert record["command"].startswith("arrcoc-sam score")
    table = pd.read_parquet("scores.parquet").set_index("id")
    before, after = json.loads(path.read_text()), json.loads(Path("scored.json").read_text())
    assert after["images"] == before["images"]
    for old, new in zip(before["annotations"], after["annotations"], strict=True):
        assert {key: new[key] for key in old} == old
        assert new["sam_quality"] == pytest.approx(table.loc[new["id"], "quality"], abs=1e-6)
        assert new["sam_quality_kind"] == "bound"
        assert new["sam_soft_iou"] == pytest.approx(table.loc[new["id"], "soft_iou"], abs=1e-6)
        assert new["sam_interval_low"] is None
    again = command(*words)
    assert json.loads(again.out) == record


@pytest.mark.parametrize(("tokens", "expected"), [("all", {0, 1, 2, 3}), ("1-3", {1, 2, 3}), ("0", {0})])
def test_score_decodes_the_tokens_that_are_named(
    command: Command, weights: Path, tmp_path: Path, tokens: str, expected: set[int]
) -> None:
    path = write_masks(tmp_path / "set", num_images=1)
    answer = command("score", path, "--checkpoint", weights, "-o", "scores.parquet", "--tokens", tokens, "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["plan"]["multimask"] == {"all": "all", "1-3": True, "0": False}[tokens]
    assert set(pd.read_parquet("scores.parquet")["token_index"]) <= expected


NOT_THERE = [(1, 3), (1, 4), (1, 5), (2, 6), (2, 7)]  # picture and mask


def test_bad_files_in_a_data_set_exit_3(
    command: Command, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_masks(tmp_path / "set")
    (tmp_path / "set" / "1.png").unlink()
    (tmp_path / "set" / "2.png").write_bytes(b"")
    monkeypatch.setattr(score_job, "MOST_LISTED", 4)
    words = ("score", path, "--checkpoint", weights, "--out", "scores.parquet")
    answer = command(*words, "--json")
    record = json.loads(answer.out)
    assert (record["num_errors"], record["num_skipped"]) == (5, 5)
    assert [(each["file"], each["id"]) for each in record["skipped"]] == [(f"{n}.png", i) for n, i in NOT_THERE[:4]]
    assert "does not exist" in record["skipped"][0]["reason"]
    answer = command(*words)
    assert answer.code == 3
    assert "5 masks left out: scores.errors.csv" in answer.err
    assert re.search(r"most often: \S*1\.png does not exist\n", answer.err)
    assert "5 of 10 masks scored, 10 of them before" in answer.out
    errors = pd.read_csv("scores.errors.csv")
    assert errors["id"].tolist() == [3, 4, 5, 6, 7]
    assert errors["category"].tolist() == ["square <b>", "box", "square <b>", "square <b>", "box"]
    assert errors["error"].str.contains("does not exist|0 bytes").all()
    kept = command("filter", "scores.parquet", "--min-quality", "0", "--out", "kept.json", "--json")
    record = json.loads(kept.out)
    assert (record["num_kept"], record["num_unscored"], record["num_images_lost"]) == (5, 5, 2)
    assert record["num_skipped"] == 5
    assert [(each["file"], each["id"]) for each in record["skipped"]] == [(f"{n}.png", i) for n, i in NOT_THERE]
    assert list(record["unscored_classes"].items()) == [("square <b>", 3), ("box", 2)]
    assert [image["id"] for image in json.loads(Path("kept.json").read_text())["images"]] == [0, 3]
    words = ("filter", "scores.parquet", "--min-quality", "0", "--out", "all.json", "--keep-unscored")
    answer = command(*words)
    assert answer.code == 0
    assert re.search(r"Without a score\s+class\s+masks\s+\S+\s+square <b>\s+3\s+box\s+2", answer.out)
    assert len(json.loads(Path("all.json").read_text())["annotations"]) == NUM_MASKS
    assert record["num_unscored_dropped"] == 5
    gone = pd.read_csv("kept.dropped.csv")
    assert gone["id"].tolist() == errors["id"].tolist()
    assert (gone["failed"] == "unscored").all()
    assert gone[["category", "error"]].equals(errors[["category", "error"]])
    assert "They are dropped" in Path("kept.report.html").read_text()
    assert "They stay" in Path("all.report.html").read_text()
    assert pd.read_csv("all.dropped.csv").empty


def test_a_table_of_errors_from_before_it_had_classes(command: Command, weights: Path, tmp_path: Path) -> None:
    path = write_masks(tmp_path / "set")
    (tmp_path / "set" / "1.png").unlink()
    assert command("score", path, "--checkpoint", weights, "--out", "scores.parquet").code == 3
    pd.read_csv("scores.errors.csv").drop(columns="category").to_csv("scores.errors.csv", index=False)
    words = ("filter", "scores.parquet", "--min-quality", 0, "--pictures", 0, "--json")
    assert json.loads(command(*words, "--dry-run").out)["unscored_classes"] == {"(not recorded)": 3}
    record = json.loads(command(*words, "--out", "kept.json").out)  # the data set is read anyway
    assert record["unscored_classes"] == {"square <b>": 2, "box": 1}
    gone = pd.read_csv("kept.dropped.csv")
    assert gone["category"].tolist() == ["square <b>", "box", "square <b>"]
    assert gone["error"].str.contains("does not exist").all()


@pytest.mark.parametrize("left", [[], ["manifest.json"], ["errors.csv"]])
def test_masks_without_a_score_are_known_without_the_tables_beside(
    command: Command, weights: Path, tmp_path: Path, left: list[str]
) -> None:
    path = write_masks(tmp_path / "set")
    document = json.loads(path.read_text())
    document["annotations"].append({"image_id": 1, "segmentation": [[1, 1, 9, 1, 9, 9]]})  # without an id
    path.write_text(json.dumps(document))
    for image in (1, 2):
        (tmp_path / "set" / f"{image}.png").unlink()
    assert command("score", path, "--checkpoint", weights, "--out", "scores.parquet").code == 3
    (tmp_path / "elsewhere").mkdir()
    for name in ("scores.parquet", *(f"scores.{ending}" for ending in left)):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    words = ("filter", "elsewhere/scores.parquet", "--min-quality", 0, "--pictures", 0)
    dry = json.loads(command(*words, "--dry-run", "--json").out)
    assert (dry["num_unscored"], dry["num_unscored_dropped"], dry["num_images_lost"]) == (6, 6, 2)
    answer = command(*words, "--out", "kept.json")
    assert "6 have no score and are dropped (most often: " in answer.out
    kept = json.loads(Path("kept.json").read_text())
    assert [annotation["id"] for annotation in kept["annotations"]] == [1, 2, 8, 9, 10]
    assert [image["id"] for image in kept["images"]] == [0, 3]
    assert pd.read_csv("kept.dropped.csv")["error"].notna().sum() == 6
    assert command(*words, "--out", "all.json", "--keep-unscored").code == 0
    everything = json.loads(Path("all.json").read_text())
    assert (everything["annotations"], everything["images"]) == (document["annotations"], document["images"])


def test_from_python_as_by_the_command(command: Command, scored: Path, tmp_path: Path) -> None:
    least = int(pd.read_parquet(scored)["area"].median())
    rules = KeepRules(min_area=least)
    summary = filter_masks(str(scored), tmp_path / "python.json", rules, pictures=1)
    assert 0 < summary.record["num_dropped"] < summary.record["num_scored"]
    assert command("filter", scored, "--min-area", least, "--out", "command.json", "--pictures", 1).code == 0
    assert Path("python.json").read_text() == Path("command.json").read_text()
    assert Path("python.dropped.csv").read_text() == Path("command.dropped.csv").read_text()
    assert Path("python.report.html").is_file()
    assert repr(summary).endswith(f"0 without a score; out={tmp_path / 'python.json'})")
    ours, theirs = (json.loads(Path(f"{name}.manifest.json").read_text()) for name in ("python", "command"))
    differing = {name for name in ours if ours[name] != theirs[name]}
    assert differing <= {"out", "scores", "command", "created"}
    before = sorted(tmp_path.iterdir())
    judged = filter_masks(scored, None, rules)
    assert (judged.out, judged.record["num_kept"]) == (None, summary.record["num_kept"])
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(InputError, match="pictures=-1"):
        filter_masks(scored, None, rules, pictures=-1)


@pytest.mark.usefixtures("as_at_run_time")
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((pd.DataFrame(), None, KeepRules(min_area=1)), "score_masks tells it as .scores"),
        (("s.parquet", 3, KeepRules(min_area=1)), "out is "),
        (("s.parquet", None, 0.8), "write KeepRules"),
        (("s.parquet", "..", KeepRules(min_area=1)), "ends in a name"),
    ],
)
def test_slips_in_python(arguments: tuple[Any, ...], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        filter_masks(*arguments)


def test_names_that_look_like_numbers_stay_names(command: Command, weights: Path, tmp_path: Path) -> None:
    source = write_masks(tmp_path / "set")
    for name in ("images", "masks"):
        (tmp_path / "named" / name).mkdir(parents=True)
    (tmp_path / "named" / "images" / "7.png").write_bytes((source.parent / "0.png").read_bytes())
    (tmp_path / "named" / "images" / "NA.png").write_bytes(b"")
    for name in ("000139", "7", "NA"):  # the image of the first is missing
        Image.fromarray(np.full((40, 60), 255, np.uint8)).save(tmp_path / "named" / "masks" / f"{name}.png")
    assert command("score", "named", "--checkpoint", weights, "--out", "s.parquet").code == 3
    words = ("filter", "s.parquet", "--min-quality", 0, "--keep-unscored")
    assert command(*words, "--out", "kept").code == 0
    assert sorted(path.name for path in Path("kept/masks").iterdir()) == ["000139.png", "7.png", "NA.png"]


def test_a_table_whose_manifest_is_gone(command: Command, scored: Path, weights: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "scores.manifest.json"
    known = json.loads(manifest.read_text())
    manifest.unlink()
    answer = command("score", tmp_path / "set" / "masks.json", "--checkpoint", weights, "--out", scored, "--json")
    assert answer.code == 0, answer.err
    again = json.loads(manifest.read_text())
    assert all(again[name] == known[name] for name in ("num_masks", "num_scored", "num_errors", "plan"))


@pytest.mark.usefixtures("as_at_run_time")
def test_annotated_is_a_file_of_its_own(command: Command, weights: Path, tmp_path: Path) -> None:
    write_masks(tmp_path / "set")
    rows = pd.DataFrame({"id": [1], "image": ["0.png"], "segmentation": [encode_rle(np.ones((40, 60), bool))]})
    (tmp_path / "parts").mkdir()
    rows.to_parquet(tmp_path / "parts" / "a.parquet")
    options = ("--images", "set", "--checkpoint", weights, "--out", "s.parquet")
    answer = command("score", "parts", *options, "--annotated", "s.parquet")
    assert "belongs to the scores" in answer.error
    answer = command("score", "parts", *options, "--annotated", "parts/b.parquet")
    assert "in the folder of the data set" in answer.error
    assert not list(tmp_path.glob("s.*"))


@pytest.mark.usefixtures("as_at_run_time")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["no.json"], "no.json does not exist"),
        (["set/masks.json", "--images", "nowhere"], "nowhere is no folder"),
        (["set/masks.json", "--out", "scores.csv"], "ends in .parquet"),
        (["set/masks.json", "--protocol", "guess"], "protocol='guess'"),
        (["set/masks.json", "--segmenter", "sam_vit_q"], "no segmenter is called"),
        (["set/masks.json", "--actors", "2"], "--actors with --engine local"),
        (["set/masks.json", "--gpus-per-actor", "0.5"], "--gpus-per-actor with --engine local"),
        (["set/masks.json", "--annotated", "set/masks.json"], "masks.json is to be written and to be read"),
        (["set/masks.json", "--annotated", "scored.parquet"], "a .json file"),
        (["set/masks.json", "--annotated", "set/cut.json/x.json"], "cut.json is a file; expected a folder"),
        (["set/masks.json", "--part-masks", "0"], "--part-masks"),
        (["set/twice.json"], "mask id 1 occurs twice"),
        (["set/cut.json"], "is no JSON"),
        (["set/bare.json"], "has no masks"),
    ],
)
def test_score_refuses(command: Command, weights: Path, tmp_path: Path, words: list[str], expected: str) -> None:
    path = write_masks(tmp_path / "set")
    document = json.loads(path.read_text())
    document["annotations"][1]["id"] = 1
    (tmp_path / "set" / "twice.json").write_text(json.dumps(document))
    (tmp_path / "set" / "cut.json").write_text(path.read_text()[:-200])
    (tmp_path / "set" / "bare.json").write_text(json.dumps(document | {"annotations": []}))
    before = {file for file in tmp_path.rglob("*") if file.is_file()}
    options = ["--checkpoint", weights] + ([] if "--out" in words else ["--out", "scores.parquet"])
    answer = command("score", *words, *options)
    assert answer.code == 2
    assert expected in answer.error
    assert "note:" not in answer.err
    assert {file for file in tmp_path.rglob("*") if file.is_file()} == before


def calibration_of(checkpoint_hash: str, path: Path) -> Path:
    """A calibration that halves the distance to 1, for the weights of this hash."""
    from arrcoc_sam.quality.calibration import ConformalIntervals, FittedCalibration
    from arrcoc_sam.quality.calibration_curves import BoundCurve

    FittedCalibration(
        checkpoint_hash=checkpoint_hash,
        protocol="mask+point",
        multimask="all",
        components=False,
        curve=BoundCurve((0.0, 1.0), (0.5, 1.0)),
        intervals=ConformalIntervals(0.9, (0.0, 1.0), (0.1, 0.1), 1.5, 100),
    ).save(path)
    return path


def test_a_calibration_makes_estimates_of_bounds(command: Command, scored: Path, weights: Path, tmp_path: Path) -> None:
    bounds = pd.read_parquet(scored)
    weights_hash = json.loads((tmp_path / "scores.manifest.json").read_text())["checkpoint_hash"]
    calibration = calibration_of(weights_hash, tmp_path / "calibration.json")
    words = ("score", tmp_path / "set" / "masks.json", "--checkpoint", weights, "--calibration", calibration)
    answer = command(*words, "--out", "estimates.parquet")
    assert answer.code == 0, answer.err
    estimates = pd.read_parquet("estimates.parquet")
    assert (estimates["quality_kind"] == "calibrated").all()
    np.testing.assert_allclose(estimates["quality"], 0.5 + bounds["lower_bound"] / 2, atol=1e-6)
    np.testing.assert_allclose(estimates["interval_low"], estimates["quality"] - 0.15, atol=1e-6)
    plan = json.loads(Path("estimates.manifest.json").read_text())["plan"]
    assert plan["quality_kind"] == "calibrated"
    assert len(plan["calibration"]) == 64
    assert "holds scores of other calibration" in command(*words, "--out", scored).error
    answer = command(*words, "--out", "components.parquet", "--components")
    assert "Mend: score with components=False (--components), or calibrate anew" in answer.error


def test_a_calibration_of_another_checkpoint_is_refused(command: Command, weights: Path, tmp_path: Path) -> None:
    path = write_masks(tmp_path / "set")
    calibration = calibration_of("0" * 64, tmp_path / "calibration.json")
    words = ("score", path, "--checkpoint", weights, "--out", "scores.parquet", "--calibration")
    assert "a calibration of checkpoint_hash='000000" in command(*words, calibration).error
    assert "can't be read" in command(*words, "no.json").error
    assert not list(tmp_path.glob("scores*"))


# --- filter ---------------------------------------------------------------------------------------------------------


def test_filter_writes_what_stays_with_a_report(command: Command, scored: Path) -> None:
    table = pd.read_parquet(scored)
    limit = int(table["area"].median()) + 1
    answer = command("filter", scored, "--min-area", limit, "--out", "kept.json", "--with-scores", "--pictures", 3)
    assert answer.code == 0, answer.err
    kept = set(table["id"][table["area"] >= limit])
    assert 0 < len(kept) < NUM_MASKS
    document = json.loads(Path("kept.json").read_text())
    assert {annotation["id"] for annotation in document["annotations"]} == kept
    assert all("sam_quality" in annotation for annotation in document["annotations"])
    left = {annotation["image_id"] for annotation in document["annotations"]}
    assert {image["id"] for image in document["images"]} == left
    dropped = pd.read_csv("kept.dropped.csv")
    assert set(dropped["id"]) == set(table["id"]) - kept
    assert (dropped["failed"] == "min_area").all()
    manifest = json.loads(Path("kept.manifest.json").read_text())
    assert manifest["rules"] == {"min_area": limit, "crowd": "keep"}
    assert (manifest["num_kept"], manifest["num_dropped"]) == (len(kept), NUM_MASKS - len(kept))
    assert manifest["plan"]["protocol"] == "mask+point"
    page = Path("kept.report.html").read_text()
    assert page.count("<svg") >= 3 + 6
    assert "square &lt;b&gt;" in page
    assert "square <b>" not in page
    assert "Demonstration model" in page


def test_filter_on_a_full_disk(command: Command, scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    before = {file for file in tmp_path.rglob("*") if file.is_file()}
    monkeypatch.setattr("arrcoc_sam.datasets.mask_index.MaskIndex.add", full)
    answer = command("filter", scored, "--min-quality", 0.1, "--out", "kept.json")
    assert answer.code == 2
    assert "can't be listed in" in answer.error
    assert "(database or disk is full); expected room" in answer.error
    assert {file for file in tmp_path.rglob("*") if file.is_file()} == before


def test_masks_that_can_t_be_listed_end_filter_but_no_dry_run(
    command: Command, scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    (tmp_path / "scores.manifest.json").unlink()  # which says that all masks have a score
    monkeypatch.setattr("arrcoc_sam.datasets.mask_index.MaskIndex.add", full)
    words = ("filter", scored, "--min-quality", 0.1, "--pictures", 0)
    answer = command(*words, "--out", "kept.json")
    assert answer.code == 2
    assert "can't be listed in" in answer.error
    assert not Path("kept.json").exists()
    answer = command(*words, "--dry-run")
    assert answer.code == 0
    assert "of the table of errors alone: the masks can't be listed in" in answer.err


def test_suffixes_in_capital_letters(command: Command, weights: Path, tmp_path: Path) -> None:
    path = write_masks(tmp_path / "set", num_images=1)
    path = path.rename(path.with_name("MASKS.JSON"))
    answer = command("score", path, "--checkpoint", weights, "--out", "S.PARQUET", "--annotated", "scored.json")
    assert answer.code == 0, answer.err
    assert Path("S.manifest.json").exists()
    answer = command("filter", "S.PARQUET", "--min-area", 0, "--out", "kept.JSON", "--pictures", 0)
    assert answer.code == 0, answer.err
    assert Path("kept.manifest.json").exists()


def test_a_dry_run_writes_nothing_and_says_the_same(command: Command, scored: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    dry = json.loads(command("filter", scored, "--class-quantile", 0.4, "--dry-run", "--json").out)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    wet = json.loads(command("filter", scored, "--class-quantile", 0.4, "--out", "kept.json", "--json").out)
    for key in ("num_kept", "num_dropped", "classes", "reasons", "num_images_lost"):
        assert dry[key] == wet[key]
    assert sum(row["masks"] for row in dry["classes"]) == NUM_MASKS
    table = command("filter", scored, "--class-quantile", 0.4, "--dry-run")
    assert "Dry run" in table.out


@pytest.mark.usefixtures("as_at_run_time")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--out", "kept.json"], "no rule"),
        (["--min-quality", "2", "--out", "kept.json"], "min_quality=2.0"),
        (["--min-quality", "0.5"], "neither --out nor --dry-run"),
        (["--min-quality", "0.5", "--out", "kept.parquet"], "ends in .json"),
        (["--min-quality", "0.5", "--out", "set/masks.json"], "masks.json is to be written and to be read"),
        (["--min-quality", "0.5", "--out", "scores.json"], "scores.manifest.json belongs to the scores"),
        (["--min-quality", "0.5", "--out", "scores.manifest.json"], "scores.manifest.json belongs to the scores"),
        (["--min-quality", "0.5", "--out", "kept.json", "--dataset", "gone.json"], "gone.json does not exist"),
    ],
)
def test_filter_refuses(command: Command, scored: Path, words: list[str], expected: str) -> None:
    before = {path: path.read_bytes() for path in scored.parent.rglob("*") if path.is_file()}
    answer = command("filter", scored, *words)
    assert answer.code == 2
    assert expected in answer.error
    assert {path: path.read_bytes() for path in scored.parent.rglob("*") if path.is_file()} == before


@pytest.mark.usefixtures("as_at_run_time")
def test_filter_refuses_what_was_not_scored_or_has_changed(command: Command, scored: Path, tmp_path: Path) -> None:
    path = tmp_path / "set" / "masks.json"
    assert "is no table of scores" in command("filter", path, "--min-quality", 0.5, "--out", "kept.json").error
    assert "does not exist" in command("filter", "no.parquet", "--min-quality", 0.5, "--out", "kept.json").error
    path.write_text(path.read_text() + "\n")
    words = ("filter", scored, "--min-quality", 0.5, "--out", "kept.json")
    assert "has changed since it was scored" in command(*words).error
    assert "is not what was scored" in command(*words, "--dataset", path).error
    path.write_text(path.read_text()[:-1])
    moved = path.with_name("moved.json")
    moved.write_bytes(path.read_bytes())
    path.unlink()
    assert command(*words, "--dataset", moved).code == 0


def test_a_table_of_scores_that_is_damaged_inside(command: Command, scored: Path) -> None:
    content = bytearray(scored.read_bytes())
    content[100:300] = bytes(200)
    scored.write_bytes(content)  # its footer is whole
    for words in (("--dry-run",), ("--out", "kept.json")):
        answer = command("filter", scored, "--min-quality", 0, *words)
        assert answer.code == 2
        assert "scores.parquet can't be read (" in answer.error
        assert "expected a whole table of scores. Mend: remove it, and score the data set again." in answer.error


@pytest.mark.usefixtures("as_at_run_time")
def test_no_file_beside_an_output_takes_the_place_of_the_data_set(
    command: Command, weights: Path, tmp_path: Path
) -> None:
    path = write_masks(tmp_path / "set")
    path = path.rename(path.with_name("d.manifest.json"))
    before = path.read_bytes()
    options = ("--checkpoint", weights, "--out")
    answer = command("score", path, *options, "set/d.parquet")
    assert answer.code == 2
    assert "d.manifest.json is to be written and to be read" in answer.error
    assert command("score", path, *options, "s.parquet").code == 0
    answer = command("filter", "s.parquet", "--min-quality", 0, "--out", "set/d.json")
    assert answer.code == 2
    assert "d.manifest.json is to be written and to be read" in answer.error
    assert path.read_bytes() == before
    assert [file.name for file in (tmp_path / "set").glob("d.*")] == ["d.manifest.json"]


# --- kill -9 --------------------------------------------------------------------------------------------------------

# Imports once, then a child for every line: each is a process of its own, killed or not, without the start of Python.
RUNS = """
import os, random, sys, time
from pathlib import Path
replace = Path.replace
def slowly(self, target):  # stretches the moment in which a file is written and has no name yet
    time.sleep(random.uniform(0.05, 0.15))
    return replace(self, target)
Path.replace = slowly
import arrcoc_sam.cli.score_job
from arrcoc_sam.cli.main import run
for _ in sys.stdin:
    child = os.fork()
    if not child:
        os._exit(run(sys.argv[1:]))
    print(child, flush=True)
    os.waitpid(child, 0)
"""


def done(work: Path) -> int:
    """How much of a run is on disk: steps of listing, then parts."""
    if not (work / "records").exists():
        return len(list(work.glob("records.draft/*"))) + len(list(work.glob("*")))
    return 1_000 + len(list(work.glob("scores/[!.]*.parquet")))


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def killed_run(runs: subprocess.Popen[str], work: Path, moment: float, further: int, *, writing: bool) -> str | None:
    """Starts the command and kills it ``moment`` seconds after it has got so much further, or as it writes a part then.

    Returns:
        Where it was: "listing", "writing" a part, "scoring", or None where it was through before.
    """
    begun, left = done(work), set(work.glob("scores/.*"))  # an earlier kill may have left half a file

    def half_written() -> bool:
        return bool(set(work.glob("scores/.*")) - left)

    assert runs.stdin is not None
    assert runs.stdout is not None
    runs.stdin.write("\n")
    runs.stdin.flush()
    process = int(runs.stdout.readline())
    while alive(process) and done(work) < begun + further:
        time.sleep(0.002)
    while writing and alive(process) and not half_written():
        time.sleep(0.002)
    time.sleep(moment)
    if not alive(process):
        return None
    os.kill(process, signal.SIGKILL)
    while alive(process):
        time.sleep(0.002)
    if not (work / "records").exists():
        return "listing"
    return "writing" if half_written() else "scoring"


def check_kills(command: Command, weights: Path, tmp_path: Path, num_images: int, kills: int, seed: int) -> list[str]:
    """Kills the command at moments spread over its whole run, resumes it, and compares; where it was hit."""
    path = write_masks(tmp_path / "set", num_images)
    options = ("--checkpoint", weights, "--part-masks", 2, "--device", "cpu")
    assert command("score", path, *options, "--out", "reference.parquet").code == 0
    rng, hits = random.Random(seed), []
    out = tmp_path / "scores.parquet"
    words = [sys.executable, "-c", RUNS, "score", path, *options, "--out", out]
    pipe = subprocess.PIPE
    runs = subprocess.Popen([*map(str, words)], stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
    for kill in range(kills):
        further = rng.randrange(1, 5 if kill == 0 else num_images // kills)  # the first one while masks are listed
        writing = kill > 0 and kill % 2 == 0
        moment = 0.0 if writing else rng.uniform(0.0, 0.06)
        hits.append(killed_run(runs, out.with_name(f"{out.name}.work"), moment, further, writing=writing))
    runs.communicate()
    assert None not in hits
    answer = command("score", path, *options, "--out", "scores.parquet")
    assert answer.code == 0, answer.err
    reference, resumed = pq.read_table("reference.parquet"), pq.read_table("scores.parquet")
    assert len(set(resumed["id"].to_pylist())) == len(resumed)
    assert resumed.equals(reference)
    assert not list(tmp_path.glob("*.work"))
    return [hit for hit in hits if hit is not None]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kill_9_and_resume(command: Command, weights: Path, tmp_path: Path) -> None:
    check_kills(command, weights, tmp_path, 24, kills=1, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_kill_9_at_ten_random_moments(command: Command, weights: Path, tmp_path: Path) -> None:
    hits = check_kills(command, weights, tmp_path, 60, kills=10, seed=1)
    assert {"listing", "scoring", "writing"} <= set(hits), hits
