from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import ExifTags, Image

import arrcoc_sam as aa
from arrcoc_sam.cli import analysis_job
from arrcoc_sam.cli.analysis_inputs import ClickPlan, Inputs
from arrcoc_sam.errors import InputError

Command = Callable[..., Any]


def test_tables_figures_and_a_report(
    command: Command, make_photo: Any, array_file: Path, weights: Path, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        make_photo(tmp_path / "photos" / f"{name}.png", seed=ord(name))
    words = ("photos", "-a", array_file, "--checkpoint", weights, "-o", "out/deep", "--format", "svg")
    answer = command("analyze", *words, "--points", "10,12", "-p", "40,20")
    assert answer.code == 0, answer.err
    out = tmp_path / "out" / "deep"
    assert {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()} == {
        "granularity.parquet",
        "granularity.csv",
        "report.html",
        *(f"figures/{name}-{k}.svg" for name in "ab" for k in (1, 2)),
    }
    table = pd.read_parquet(out / "granularity.parquet")
    # 2 images x 2 maps x 2 clicks x 3 levels
    assert len(table) == 24
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


def test_references_that_can_not_be_used_and_the_image_among_them(
    command: Command, make_photo: Any, array_file: Path, weights: Path, tmp_path: Path
) -> None:
    for k in range(20):
        make_photo(tmp_path / "others" / f"{k:02}.png", seed=k)
    words = ("-a", array_file, "--checkpoint", weights, "-o", "out", "--format", "none", "--reference", "others")
    assert command("analyze", "others/00.png", *words).code == 0
    photo = make_photo(tmp_path / "photo.png")
    (tmp_path / "others" / "00.png").write_bytes(b"no picture")
    answer = command("analyze", photo, *words, "--json")
    assert answer.code == 3
    (left_out,) = json.loads(answer.out)["errors"]
    assert left_out["file"] == "others/00.png"
    assert left_out["message"].startswith("not used as a reference: others/00.png is no image")
    assert pd.read_csv("out/granularity.csv")["calibrated"].all()
    assert "others/00.png is no image" in command("analyze", photo, *words, "--reference", "others/00.png").error
    make_photo(tmp_path / "two" / "a.png")
    (tmp_path / "others" / "01.png").write_bytes(b"no picture")
    answer = command("analyze", "two", *words)
    assert answer.code == 2
    assert "18 of 20 images of --reference can be used for two/a.png (others/00.png is no image" in answer.error
    (tmp_path / "others" / "01.png").unlink()
    answer = command("analyze", "others/02.png", *words)
    assert answer.code == 2
    assert "18 images for --reference besides others/02.png itself; expected at least 19" in answer.error


def test_images_of_one_name_do_not_share_a_map(
    command: Command, make_photo: Any, weights: Path, tmp_path: Path
) -> None:
    for folder in ("a", "b"):
        make_photo(tmp_path / "photos" / folder / "1.png")
    (tmp_path / "maps").mkdir()
    np.save(tmp_path / "maps" / "1.npy", np.random.default_rng(0).random((4, 6)))
    words = ("analyze", "photos", "-r", "-a", "maps", "--checkpoint", weights, "-o", "out", "--format", "none")
    answer = command(*words)
    assert answer.code == 2
    assert "photos/a/1.png and photos/b/1.png share the attention file maps/1.npy" in answer.error
    (tmp_path / "maps" / "b").mkdir()
    np.save(tmp_path / "maps" / "b" / "1.npy", np.ones((4, 6)))
    assert command(*words).code == 0


def test_maps_of_a_reference_are_made_once_for_clicks_at_the_same_places(make_photo: Any, tmp_path: Path) -> None:
    asked: list[torch.Tensor] = []

    def attend(image: np.ndarray, points_xy: torch.Tensor) -> torch.Tensor:
        asked.append(points_xy)
        return torch.ones(1, len(points_xy), 4, 6) * float(points_xy.sum())

    other = make_photo(tmp_path / "other.png", height=80, width=120)
    references = analysis_job._References(aa.CallableAttention(attend, takes_points=True), [other])
    points = torch.tensor([[10.0, 12.0], [30.0, 20.0]], dtype=torch.float64)
    first = references.of(tmp_path / "a.png", points, (40, 60))
    assert references.of(tmp_path / "b.png", points.clone(), (40, 60))[0] is first[0]
    assert references.of(tmp_path / "c.png", 2 * points + 0.5, (80, 120))[0] is first[0]  # the same places
    assert len(asked) == 1
    references.of(tmp_path / "d.png", points, (80, 120))
    references.of(tmp_path / "e.png", points[:1], (80, 120))
    assert len(asked) == 3
    torch.testing.assert_close(asked[1], points)


def test_a_transformer_with_random_weights_is_called_a_control(command: Command, photo: Path, weights: Path) -> None:
    source = ("-a", "timm:vit_tiny_patch16_224", "--random-weights", "--layers", "-1", "--heads", "0,2")
    answer = command("analyze", photo, *source, "--checkpoint", weights, "-o", "out", "--format", "none", "--seed", "3")
    assert answer.code == 0, answer.err
    table = pd.read_csv("out/granularity.csv")
    assert table["map"].nunique() == 2
    assert "prefix_mass" in table
    report = Path("out/report.html").read_text("utf-8")
    assert "random weights (a control)" in report


def test_figures_of_an_earlier_run_go_and_what_else_lies_there_stays(
    command: Command, make_photo: Any, array_file: Path, weights: Path, tmp_path: Path
) -> None:
    for name in ("0", "00", "b"):
        make_photo(tmp_path / "photos" / f"{name}.png")
    words = ("-a", array_file, "--checkpoint", weights, "-o", "out")
    assert command("analyze", "photos", *words).code == 0
    mine = tmp_path / "out" / "figures" / "mine.png"
    mine.write_bytes(b"of somebody else")
    assert command("analyze", "photos/0.png", *words, "-p", "100000,2").code == 2  # nothing was written
    assert {path.name for path in mine.parent.iterdir()} == {"0.png", "00.png", "b.png", "mine.png"}
    assert command("analyze", "photos/0.png", *words, "-p", "10,12", "-p", "40,20").code == 0
    assert {path.name for path in mine.parent.iterdir()} == {"0-1.png", "0-2.png", "mine.png"}
    assert command("analyze", "photos/b.png", *words, "--format", "none").code == 0
    assert [path.name for path in mine.parent.iterdir()] == ["mine.png"]


def test_images_of_one_name_keep_their_own_figures(
    command: Command, make_photo: Any, array_file: Path, weights: Path, tmp_path: Path
) -> None:
    paths = [make_photo(tmp_path / folder / "a.png") for folder in ("x", "y")]
    assert command("analyze", *paths, "-a", array_file, "--checkpoint", weights, "-o", "out").code == 0
    assert len(list(Path("out/figures").iterdir())) == 2


@pytest.fixture
def coco_file(tmp_path: Path) -> Path:
    """Three nested boxes on photos/a.png and their click; nothing on photos/b.png."""
    boxes = {1: (0, 0, 50, 40), 2: (5, 5, 35, 35), 3: (10, 10, 30, 30)}  # x0, y0, x1, y1
    content = {
        "images": [{"id": 1, "file_name": "photos/a.png", "height": 40, "width": 60}],
        "annotations": [
            {"id": number, "image_id": 1, "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]]}
            for number, (x0, y0, x1, y1) in boxes.items()
        ],
        "hierarchies": [{"id": 1, "image_id": 1, "whole": 1, "part": 2, "subpart": 3, "point": [12, 20]}],
    }
    (tmp_path / "nested.json").write_text(json.dumps(content))
    return tmp_path / "nested.json"


def test_human_masks_in_place_of_a_segmenter(
    command: Command, make_photo: Any, coco_file: Path, tmp_path: Path
) -> None:
    """No weights are read; areas, click and answer are those of the file."""
    photo = make_photo(tmp_path / "photos" / "a.png")
    maps = np.full((40, 60), 1.0, np.float32)
    maps[5:35, 5:35] = 20.0
    maps[10:30, 10:30] = 1.0
    np.save(tmp_path / "on_the_part.npy", maps)
    words = ("-a", "on_the_part.npy", "--hierarchy", coco_file, "-o", "out", "--format", "none")
    answer = command("analyze", photo, *words)
    assert answer.code == 0, answer.err
    assert "demonstration" not in answer.err
    table = pd.read_csv("out/granularity.csv")
    assert table["area_share"].tolist() == pytest.approx([2000 / 2400, 900 / 2400, 400 / 2400])
    assert table[["x", "y"]].drop_duplicates().to_numpy().tolist() == [[12, 20]]
    assert set(table["best_match"]) == {"part"}
    assert table["score"].isna().all()  # nobody predicted an IoU
    report = Path("out/report.html").read_text("utf-8")
    assert "masks that people drew, from nested.json" in report
    assert "redicted IoU" not in report.replace("predicted IoU</th>", "")

    make_photo(tmp_path / "photos" / "b.png")
    assert command("analyze", "photos", *words).code == 3
    assert list(pd.read_csv("out/errors.csv")["file"]) == ["photos/b.png"]
    answer = command("analyze", "photos/b.png", *words)
    assert answer.code == 2
    assert "no nested masks on photos/b.png" in answer.error


def test_faulty_records_of_human_masks_are_listed_and_the_rest_used(
    command: Command, make_photo: Any, array_file: Path, coco_file: Path, tmp_path: Path
) -> None:
    photo = make_photo(tmp_path / "photos" / "a.jpg")
    with Image.open(photo) as picture:
        upside_down = picture.getexif()
        upside_down[ExifTags.Base.Orientation] = 3
        picture.save(photo, exif=upside_down)
    content = json.loads(coco_file.read_text().replace("a.png", "a.jpg"))
    content["annotations"].append({"id": 9, "image_id": 7, "segmentation": [[0, 0, 9, 0, 9, 9]]})
    coco_file.write_text(json.dumps(content))
    words = ("-a", array_file, "--hierarchy", coco_file, "-o", "out", "--format", "none")
    answer = command("analyze", photo, *words, "--json")
    assert answer.code == 3
    record = json.loads(answer.out)
    assert record["num_images"] == 1
    assert [each["file"] for each in record["errors"]] == [str(coco_file)]
    assert "annotation 9" in record["errors"][0]["message"]
    assert record["num_skipped"] == 1
    assert record["skipped"] == [{"file": str(coco_file), "reason": record["errors"][0]["message"]}]
    assert "1 of the images, " in answer.err
    assert "masks and attention maps have to be of the picture as it is shown" in answer.err
    assert "a.jpg first, have an EXIF orientation, which was applied" in Path("out/report.html").read_text("utf-8")
    content["hierarchies"][0]["subpart"] = 77
    coco_file.write_text(json.dumps(content))
    assert "2 of its records can't be used" in command("analyze", photo, *words).error


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--points", "3,4"], "--hierarchy with --points or --grid"),
        (["--grid", "3"], "--hierarchy with --points or --grid"),
        (["--segmenter", "sam_vit_b"], "--hierarchy with --segmenter or --checkpoint"),
        (["--checkpoint", "weights.pth"], "--hierarchy with --segmenter or --checkpoint"),
        (["--hierarchy", "photo.png"], "photo.png can't be read as JSON"),
        (["--hierarchy", "nothing.json"], "nothing.json does not exist"),
    ],
)
def test_human_masks_that_can_not_be(
    command: Command, photo: Path, coco_file: Path, more: list[str], message: str
) -> None:
    answer = command("analyze", photo, "--hierarchy", coco_file, "-o", "out", *more)
    assert answer.code == 2
    assert message in answer.error
    assert not Path("out").exists()


def test_the_default_click_is_the_centre_and_a_grid_divides_the_image() -> None:
    assert ClickPlan.parse([], None).on((40, 61)).tolist() == [[30.0, 19.5]]
    assert ClickPlan.parse([], 2).on((40, 60)).tolist() == [[14.5, 9.5], [44.5, 9.5], [14.5, 29.5], [44.5, 29.5]]
    assert ClickPlan.parse(["3,4"], None).on((40, 60)).tolist() == [[3.0, 4.0]]
    with pytest.raises(InputError, match="outside"):
        ClickPlan.parse(["3,4"], None).on((4, 60))


def test_what_is_named_and_what_is_found(make_photo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_photo(tmp_path / "p" / "a.png")
    make_photo(tmp_path / "p" / "b.png")
    inputs = Inputs.find(["p", "p/b.png"])
    assert [str(path) for path in inputs.paths] == ["p/a.png", "p/b.png"]
    assert {str(path) for path in inputs.named} == {"p/b.png"}
    assert Inputs.find(["p/*.png"]).named == frozenset()
