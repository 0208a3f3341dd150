"""``segment`` beyond one prompt: --refine, --points-file, --everything."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

import arrcoc_sam as aa
from arrcoc_sam.masks import decode_rle
from arrcoc_sam.segmenters.everything.generator import AutomaticMaskGenerator
from arrcoc_sam.segmenters.sam import SamSegmenter

Command = Callable[..., Any]


def test_refined_is_what_a_session_gives(command: Command, photo: Path, weights: Path) -> None:
    answer = command("segment", photo, "--point", "10,12", "--refine", 2, "--checkpoint", weights)
    assert answer.code == 0, answer.err
    refined = json.loads(answer.out)["refined"]
    session = aa.InteractiveSession(aa.load_segmenter("tiny", checkpoint=weights), str(photo))
    session.click(10, 12)
    step = session.refine(2)
    assert refined["token_index"] == 0
    assert decode_rle(refined["segmentation"]).equal(step.mask.cpu())
    assert refined["predicted_iou"] == pytest.approx(step.predicted_iou)


def test_the_refined_mask_is_a_picture_and_a_row_too(
    command: Command, photo: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("segment", photo, "--point", "10,12", "--checkpoint", weights)
    record = json.loads(command(*words, "--refine", 1).out)
    plain = json.loads(command(*words).out)
    for one, other in zip(record["masks"], plain["masks"], strict=True):
        assert (one["level"], one["token_index"], one["area"]) == (other["level"], other["token_index"], other["area"])
        assert one["predicted_iou"] == pytest.approx(other["predicted_iou"])
        assert one["stability"] == pytest.approx(other["stability"])
    encoded = []
    encode = SamSegmenter.encode
    monkeypatch.setattr(SamSegmenter, "encode", lambda *given: encoded.append(1) or encode(*given))
    answer = command(*words, "--refine", 1, "--format", "png", "--out", "pictures")
    assert answer.code == 0, answer.err
    assert encoded == [1]
    assert sorted(path.name for path in Path("pictures").iterdir()) == [
        f"photo-{name}.png" for name in ("part", "refined", "subpart", "whole")
    ]
    picture = np.asarray(Image.open("pictures/photo-refined.png")) == 255
    assert (picture == decode_rle(record["refined"]["segmentation"]).numpy()).all()
    row = next(line for line in answer.out.splitlines() if line.strip().startswith("refined"))
    assert f"{record['refined']['area']:,}" in row
    assert "Wrote pictures/photo-refined.png" in answer.out


def test_many_prompts_on_two_images(
    command: Command, photo: Path, make_photo: Any, weights: Path, tmp_path: Path
) -> None:
    make_photo(tmp_path / "second.png", height=50, width=30)
    asked = [{"points": [[10, 12]]}, {"points": [[5, 6], [7, 8, 0]], "image": "second.png"}, {"box": [5, 5, 40, 30]}]
    (tmp_path / "prompts.json").write_text(json.dumps(asked))
    answer = command("segment", photo, "--points-file", "prompts.json", "--checkpoint", weights, "-o", "out", "--json")
    assert answer.code == 0, answer.err
    record = json.loads(answer.out)
    assert json.loads((tmp_path / "out" / "prompts-masks.json").read_text()) == record
    assert [len(each["masks"]) for each in record["prompts"]] == [3, 1, 1]
    assert [each["prompt"] for each in record["prompts"]] == asked
    assert record["prompts"][1]["masks"][0]["segmentation"]["size"] == [50, 30]
    for each in record["prompts"]:
        for mask in each["masks"]:
            assert int(decode_rle(mask["segmentation"]).sum()) == mask["area"]
    single = json.loads(command("segment", photo, "--point", "10,12", "--checkpoint", weights).out)
    assert [mask["level"] for mask in record["prompts"][0]["masks"]] == ["whole", "part", "subpart"]
    for ours, alone in zip(record["prompts"][0]["masks"], single["masks"], strict=True):
        assert ours["token_index"] == alone["token_index"]
        assert ours["predicted_iou"] == pytest.approx(alone["predicted_iou"], abs=1e-4)
    assert record["prompts"][0]["valid_hierarchy"] == single["valid_hierarchy"]
    for each in record["prompts"]:
        assert set(each) == {"prompt", "image", "size_hw", "valid_hierarchy", "masks"}
        assert all(set(mask) == set(single["masks"][0]) for mask in each["masks"])
    assert record["prompts"][1]["masks"][0]["level"] is None


def test_an_image_named_with_backslashes(command: Command, photo: Path, make_photo: Any, weights: Path) -> None:
    make_photo(Path("more/second.png"), height=50, width=30)
    Path("prompts.json").write_text(json.dumps([{"points": [[5, 6]], "image": "more\\second.png"}]))
    answer = command("segment", photo, "--points-file", "prompts.json", "--checkpoint", weights)
    assert json.loads(answer.out)["prompts"][0]["size_hw"] == [50, 30]


def test_everything_with_its_forest(command: Command, photo: Path, weights: Path) -> None:
    words = ("segment", photo, "--everything", "--points-per-side", 3, "--checkpoint", weights)
    answer = command(*words, "--min-predicted-iou", 0, "--min-stability", 0, "-o", "out")
    assert answer.code == 0, answer.err
    record = json.loads(Path("out/photo.json").read_text())
    assert f"{len(record['masks'])} masks" in answer.out
    fields = ["area", "bbox", "crop_box", "point_coords", "predicted_iou", "segmentation", "stability_score"]
    assert all(sorted(mask) == fields for mask in record["masks"])
    assert json.loads(Path("out/photo-forest.json").read_text())["size"] == [40, 60]
    assert Path("out/photo-forest.png").read_bytes().startswith(b"\x89PNG")


def test_options_of_everything_reach_the_generator(
    command: Command, photo: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Mock(wraps=AutomaticMaskGenerator)
    monkeypatch.setattr("arrcoc_sam.cli.segment_everything_job.AutomaticMaskGenerator", made)
    words = ("--crop-points-downscale", 2, "--box-nms-iou", 0.5, "--min-region-area", 7, "--points-per-side", 2)
    assert command("segment", photo, "--everything", *words, "--checkpoint", weights).code == 0
    expected = {"crop_points_downscale": 2, "box_nms_iou": 0.5, "min_region_area": 7, "points_per_side": 2}
    assert {name: made.call_args.kwargs[name] for name in expected} == expected


def test_no_mask_at_all_says_what_to_lower(command: Command, photo: Path, weights: Path) -> None:
    words = ("segment", photo, "--everything", "--points-per-side", 2, "--checkpoint", weights, "-o", "out.json")
    answer = command(*words, "--min-predicted-iou", 9)
    assert answer.code == 0
    assert "0 masks" in answer.out
    hints = [line for line in answer.err.splitlines() if "no mask is predicted better than 9" in line]
    assert len(hints) == 1
    assert "lower --min-predicted-iou and --min-stability" in hints[0]
    answer = command(*words, "--min-predicted-iou", 0, "--min-stability", 0)
    assert "no mask" not in answer.err


@pytest.mark.parametrize(
    "words",
    [
        ("--points-per-side", 32),
        ("--min-stability", 0.3),
        ("--min-predicted-iou", 0),
        ("--exact",),
        ("--crop-layers", 0),
        ("--box-nms-iou", 0.5),
        ("--crop-points-downscale", 2),
        ("--min-region-area", 0),
    ],
)
@pytest.mark.parametrize("prompt", [("--point", "10,12"), ("--points-file", "prompts.json")])
def test_options_of_everything_only(
    command: Command, photo: Path, words: tuple[object, ...], prompt: tuple[str, str]
) -> None:
    answer = command("segment", photo, *prompt, *words, "-o", "out")
    assert answer.code == 2
    assert f"{words[0]} without --everything" in answer.error


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[", "no JSON"),
        ("[]", "something else"),
        ('[{"point": [1, 2]}]', "prompt 0 of prompts.json has point"),
        ('[{"points": [[1]]}]', 'prompt 0 of prompts.json: {"points": [[1]]}'),
        ('[{"points": [[1, 99]]}]', "prompt 0 of prompts.json: the point (1, 99) lies outside the image"),
        ('[{"points": [[1, 2, 7]]}]', "prompt 0 of prompts.json: the label 7; expected 1 (foreground)"),
        ('[{"points": [[1, 2]]}, {"points": [[1, 2, -1]]}]', "prompt 1 of prompts.json: the label -1"),
        ('[{"points": [[1, 2, 0.5]]}]', "prompt 0 of prompts.json: the label 0.5"),
        ('[{"box": [1, 2, 3]}]', "prompt 0 of prompts.json: a box of 3 numbers"),
        ('[{"box": [9, 9, 3, 3]}]', "prompt 0 of prompts.json: the box (9, 9, 3, 3) ends before it begins"),
        ('[{"box": [1, 2, 3, 99]}]', "prompt 0 of prompts.json: the box (1, 2, 3, 99) reaches outside the image"),
        ('[{"points": [[1, 2]], "image": "nowhere.png"}]', "nowhere.png"),
        ("[{}]", "prompt 0 of prompts.json: no prompt"),
    ],
)
def test_bad_files_of_prompts(command: Command, photo: Path, tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "prompts.json").write_text(text)
    answer = command("segment", photo, "--points-file", "prompts.json", "-o", "out")
    assert answer.code == 2
    assert words in answer.error
    assert not (tmp_path / "out").exists()


def test_modes_that_do_not_go_together(command: Command, photo: Path) -> None:
    assert "one or the other" in command("segment", photo, "--everything", "--point", "1,2").error
    assert "one or the other" in command("segment", photo, "--points-file", "a.json", "--box", "1,1,9,9").error
    assert "json" in command("segment", photo, "--everything", "--format", "png").error
