from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from arrcoc_sam.cli.analysis_inputs import Clicks, Inputs
from arrcoc_sam.errors import InputError

Command = Callable[..., Any]


def test_tables_figures_and_a_report(command: Command, make_photo: Any, weights: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_photo(tmp_path / "photos" / f"{name}.png", seed=ord(name))
    answer = command("analyze", "photos", "--checkpoint", weights, "--points", "10,12", "-p", "40,20", "-o", "out/deep")
    assert answer.code == 0, answer.err
    out = tmp_path / "out" / "deep"
    assert {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()} == {
        "granularity.parquet",
        "granularity.csv",
        "report.html",
        *(f"figures/{name}-{k}.png" for name in "ab" for k in (1, 2)),
    }
    table = pd.read_parquet(out / "granularity.parquet")
    # 2 images x 4 relevance maps x 2 clicks x 3 levels
    assert len(table) == 48
    assert set(table["image"]) == {"photos/a.png", "photos/b.png"}
    assert table.groupby("prompt")[["x", "y"]].first().to_numpy().tolist() == [[10, 12], [40, 20]]
    for column in ("map", "level", "shell_contrast", "pearson", "score", "stability", "best_match", "calibrated"):
        assert column in table
    pd.testing.assert_frame_equal(table, pd.read_csv(out / "granularity.csv"), check_dtype=False)
    report = (out / "report.html").read_text("utf-8")
    assert "photos/a.png" in report
    assert "arrcoc-sam analyze photos" in report
    assert "emonstration model" in report
    assert "Report: out/deep/report.html" in answer.out
    assert "demonstration model" in answer.err


def test_json_is_all_of_stdout(command: Command, photo: Path, array_file: Path, weights: Path) -> None:
    answer = command(
        "analyze", photo, "-a", array_file, "--checkpoint", weights, "-o", "out", "--format", "none", "--json"
    )
    record = json.loads(answer.out)
    assert record["num_images"] == 1
    assert sum(record["answers"]["map0"].values()) == 1
    assert record["errors"] == []
    assert record["segmenter"] == "tiny"
    assert len(record["checkpoint_hash"]) == 64
    assert not Path("out/figures").exists()


def test_bad_files_in_a_folder_are_left_out_and_listed(
    command: Command, make_photo: Any, array_file: Path, weights: Path, tmp_path: Path
) -> None:
    good = make_photo(tmp_path / "photos" / "good.png")
    (tmp_path / "photos" / "bad.jpg").write_bytes(good.read_bytes()[:200])
    (tmp_path / "photos" / "empty.png").touch()
    make_photo(tmp_path / "photos" / "tiny.png", height=2, width=2)
    words = ("-a", array_file, "--checkpoint", weights, "-o", "out", "--format", "none")
    answer = command("analyze", "photos", *words)
    assert answer.code == 3
    assert len(pd.read_csv("out/granularity.csv")) == 2 * 3
    errors = pd.read_csv("out/errors.csv")
    assert list(errors["file"]) == ["photos/bad.jpg", "photos/empty.png", "photos/tiny.png"]
    assert "0 bytes" in errors["reason"][1]
    assert "Left out" in answer.err
    assert "photos/empty.png" in answer.err
    assert "3 left out" in Path("out/report.html").read_text("utf-8")
    # Named outright, the same file is an error, whatever else is there.
    assert command("analyze", "photos", "photos/empty.png", *words).code == 2


def test_a_folder_without_any_good_file_is_an_error(command: Command, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_text("no picture")
    answer = command("analyze", "photos", "--checkpoint", weights, "-o", "out")
    assert answer.code == 2
    assert "none of 1 images" in answer.err
    assert not Path("out").exists()


def test_a_folder_of_arrays_is_matched_by_name(
    command: Command, make_photo: Any, weights: Path, tmp_path: Path
) -> None:
    for k, name in enumerate(("a", "b", "c")):
        make_photo(tmp_path / "photos" / f"{name}.png")
        if name != "c":
            maps = np.ones((4, 6), np.float32)
            maps[k, k] = 50
            (tmp_path / "maps").mkdir(exist_ok=True)
            np.save(tmp_path / "maps" / f"{name}.npy", maps)
    words = ("-a", "maps", "--checkpoint", weights, "-o", "out", "--format", "none")
    answer = command("analyze", "photos", *words)
    assert answer.code == 3
    assert list(pd.read_csv("out/errors.csv")["file"]) == ["photos/c.png"]
    table = pd.read_csv("out/granularity.csv")
    assert set(table["image"]) == {"photos/a.png", "photos/b.png"}
    assert command("analyze", "photos/c.png", *words).code == 2


def test_a_reference_makes_the_answers_calibrated(
    command: Command, make_photo: Any, array_file: Path, photo: Path, weights: Path, tmp_path: Path
) -> None:
    for k in range(19):
        make_photo(tmp_path / "others" / f"{k}.png", seed=k)
    words = ("-a", array_file, "--checkpoint", weights, "-o", "out", "--format", "none")
    assert command("analyze", photo, *words, "--reference", "others").code == 0
    table = pd.read_csv("out/granularity.csv")
    assert table["calibrated"].all()
    assert {"z", "p_value"} <= set(table)
    # Attention that does not depend on the image never stands out from other images.
    assert (table["best_match"] == "abstain").all()
    assert "Not calibrated." not in Path("out/report.html").read_text("utf-8")


def test_a_transformer_with_random_weights_is_called_a_control(command: Command, photo: Path, weights: Path) -> None:
    source = ("-a", "timm:vit_tiny_patch16_224", "--random-weights", "--layers", "-1", "--heads", "0,2")
    answer = command("analyze", photo, *source, "--checkpoint", weights, "-o", "out", "--format", "none", "--seed", "3")
    assert answer.code == 0, answer.err
    table = pd.read_csv("out/granularity.csv")
    assert table["map"].nunique() == 2
    assert "prefix_mass" in table
    report = Path("out/report.html").read_text("utf-8")
    assert "random weights (a control)" in report


def test_images_of_one_name_keep_their_own_figures(
    command: Command, make_photo: Any, array_file: Path, weights: Path, tmp_path: Path
) -> None:
    paths = [make_photo(tmp_path / folder / "a.png") for folder in ("x", "y")]
    assert command("analyze", *paths, "-a", array_file, "--checkpoint", weights, "-o", "out").code == 0
    assert len(list(Path("out/figures").iterdir())) == 2


def test_the_default_click_is_the_centre_and_a_grid_divides_the_image() -> None:
    assert Clicks.parse([], None).on((40, 61)).tolist() == [[30.0, 19.5]]
    assert Clicks.parse([], 2).on((40, 60)).tolist() == [[14.5, 9.5], [44.5, 9.5], [14.5, 29.5], [44.5, 29.5]]
    assert Clicks.parse(["3,4"], None).on((40, 60)).tolist() == [[3.0, 4.0]]
    with pytest.raises(InputError, match="outside"):
        Clicks.parse(["3,4"], None).on((4, 60))


def test_what_is_named_and_what_is_found(make_photo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_photo(tmp_path / "p" / "a.png")
    make_photo(tmp_path / "p" / "b.png")
    inputs = Inputs.find(["p", "p/b.png"])
    assert [str(path) for path in inputs.paths] == ["p/a.png", "p/b.png"]
    assert {str(path) for path in inputs.named} == {"p/b.png"}
    assert Inputs.find(["p/*.png"]).named == frozenset()
