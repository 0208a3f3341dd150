"""``arrcoc-sam atlas`` on pictures of nested squares, with a tiny transformer of random weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image

from arrcoc_sam.attention import loading
from arrcoc_sam.masks.rle import encode_rle

Command = Callable[..., Any]

SIZE = 64
MODEL = "timm:test_vit"  # six layers of two heads, patches of 16 pixels
# A grid of 10 x 10 for pictures of 64 pixels: a subpart of 15 pixels covers at least 4 cells.
WORDS = ("atlas", "-m", MODEL, "--random-weights", "--format", "none", "-o", "out")


def nested_squares(seed: int) -> np.ndarray:
    """Whole, part and subpart, one inside the other, anywhere."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((3, SIZE, SIZE), dtype=bool)
    top = left = 0
    room = SIZE
    for level, side in enumerate((46, 27, 15)):
        top, left = top + int(rng.integers(0, room - side + 1)), left + int(rng.integers(0, room - side + 1))
        masks[level, top : top + side, left : left + side] = True
        room = side
    return masks


def write_photos(folder: Path, count: int) -> Path:
    """Pictures of nested squares, and the COCO file of the squares; answers its path."""
    images, annotations, hierarchies = [], [], []
    (folder / "photos").mkdir()
    for number in range(count):
        masks = nested_squares(number)
        shades = 40 + 60 * masks.sum(0)
        name = f"{number:03d}.png"
        Image.fromarray(np.repeat(shades[..., None], 3, axis=2).astype(np.uint8)).save(folder / "photos" / name)
        images.append({"id": number, "file_name": name, "height": SIZE, "width": SIZE})
        for level in range(3):
            rle = encode_rle(torch.from_numpy(masks[level]))
            annotations.append(
                {"id": 3 * number + level, "image_id": number, "category_id": 1, "segmentation": rle, "iscrowd": 0}
            )
        chain = dict(zip(("whole", "part", "subpart"), range(3 * number, 3 * number + 3), strict=True))
        hierarchies.append({"id": number, "image_id": number, **chain, "point": None})
    path = folder / "people.json"
    record = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "square"}]}
    path.write_text(json.dumps(record | {"hierarchies": hierarchies}))
    return path


def test_a_control_of_enough_images_is_judged_and_called_a_control(command: Command, tmp_path: Path) -> None:
    people = write_photos(tmp_path, 30)
    answer = command(*WORDS, "--images", "photos", "--hierarchy", people, "--layers", "0,-1")
    assert answer.code == 0, answer.err
    assert "note: random weights: a control" in answer.err
    assert "Report: out/report.html" in answer.out
    assert "beyond its image-independent prior" in answer.out
    heads = pd.read_parquet("out/heads.parquet")
    assert heads["group"].value_counts().to_dict() == {"model": 4, "centred Gaussian": 1, "uniform": 1}
    assert heads[heads["group"] == "model"]["prefix_mass"].between(0, 1).all()
    assert (heads[heads["group"] != "model"]["level"] == "abstain").all()
    assert len(pd.read_csv("out/heads.csv")) == len(heads)
    images = pd.read_parquet("out/images.parquet")
    assert (images["measurable"] == 1).all()
    page = Path("out/report.html").read_text("utf-8")
    assert "Random weights: a control." in page
    assert "No claim." not in page
    assert "arrcoc-sam atlas -m timm:test_vit" in page
    assert "Demonstration model" not in page  # the levels are people's


def test_few_images_make_no_claim_and_bad_files_are_left_out(command: Command, tmp_path: Path) -> None:
    people = write_photos(tmp_path, 6)
    (tmp_path / "photos" / "broken.png").write_bytes(b"not a picture")
    words = ("atlas", "-m", MODEL, "--random-weights", "-o", "out")
    content = json.loads(people.read_text())
    other_size = {"id": 99, "file_name": "other.png", "width": 7, "height": 7}
    stray = {"id": 999, "image_id": 12345, "segmentation": [[0, 0, 9, 0, 9, 9]], "category_id": 1}
    faulty = {"images": [*content["images"], other_size], "annotations": [*content["annotations"], stray]}
    (tmp_path / "faulty.json").write_text(json.dumps(content | faulty))
    (tmp_path / "photos" / "other.png").write_bytes((tmp_path / "photos" / "000.png").read_bytes())
    answer = command(*words[:-1], "faults", "-i", "photos", "--hierarchy", "faulty.json", "--layers", "0", "--json")
    assert answer.code == 3, answer.err
    record = json.loads(answer.out)
    assert record["num_images"] == 6
    assert [each["file"] for each in record["errors"]] == ["faulty.json", "photos/broken.png", "photos/other.png"]
    assert "annotation 999" in record["errors"][0]["message"]
    assert (record["num_skipped"], record["skipped"][0]["file"]) == (3, "faulty.json")
    assert "has height 7 and width 7" in record["errors"][2]["message"]
    (tmp_path / "photos" / "other.png").unlink()
    answer = command(*words, "--images", "photos", "--hierarchy", people, "--layers", "0,-1")
    assert answer.code == 3
    assert "claims take at least 30" in answer.err
    assert "photos/broken.png" in answer.err
    assert "No claim: 6 images" in answer.out
    assert "photos/broken.png" in Path("out/errors.csv").read_text()
    page = Path("out/report.html").read_text("utf-8")
    assert "Claims take at least 30 images" in page
    assert "1 left out" in page
    assert "concentrate at the whole" not in page
    heads = pd.read_parquet("out/heads.parquet")
    assert set(heads[heads["group"] == "model"]["layer"]) == {0, 5}
    assert set(heads["level"]) == {"abstain"}
    assert {file.name for file in Path("out/figures").iterdir()} == {"contrast.png", "best-heads.png", "masses.png"}
    # The same command goes on from what is there: no image is read again.
    records = sorted(Path("out/images").glob("*.safetensors"))
    before = [record.stat().st_mtime_ns for record in records]
    (tmp_path / "photos" / "broken.png").write_bytes((tmp_path / "photos" / "000.png").read_bytes())
    again = (*words, "--images", "photos", "--hierarchy", people, "--layers", "0,-1", "--format", "none")
    answer = command(*again, "--json")
    assert "counts twice towards a claim: photos/broken.png is photos/000.png" in answer.err
    assert answer.code == 0, answer.err
    assert "1 of 7 images have no nested masks" in answer.err
    assert [record.stat().st_mtime_ns for record in records] == before
    record = json.loads(answer.out)
    assert record["num_images"] == 6
    assert record["claims_made"] is False
    assert record["claims"] == {}
    assert record["answers"]["model"] == {"whole": 0, "part": 0, "subpart": 0, "abstain": 4}
    assert record["errors"] == []
    # Another run may not mix with it.
    answer = command(*again, "--seed", 1)
    assert answer.code == 2
    assert "holds an atlas of other description" in answer.err
    # Named outright, a broken file is an error before any work.
    (tmp_path / "photos" / "broken.png").write_bytes(b"not a picture")
    answer = command(*words[:-1], "other", "-i", "photos", "-i", "photos/broken.png", "--hierarchy", people)
    assert answer.code == 2
    assert not Path("other").exists()


def test_the_segmenter_s_levels_are_used_without_others(command: Command, weights: Path, tmp_path: Path) -> None:
    write_photos(tmp_path, 4)
    answer = command(*WORDS, "-i", "photos", "--checkpoint", weights, "--grid", 2)
    # Whether masks of random weights nest is chance; what was asked of the segmenter is on disk either way.
    assert answer.code in (0, 2)
    plan = json.loads(Path("out/plan.json").read_text())
    assert plan["points_per_side"] == 2
    assert plan["description"]["segmenter"] == "tiny"
    assert len(plan["description"]["checkpoint"]) == 64
    assert plan["sources"] == ["model"]
    assert len(list(Path("out/images").iterdir())) == 4


def test_without_weights_there_is_one_error_that_names_the_control(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unplugged(*args: object, **kwargs: object) -> None:
        raise ConnectionError("Name or service not known")

    people = write_photos(tmp_path, 4)
    monkeypatch.setattr(timm, "create_model", unplugged)
    monkeypatch.setattr(loading, "_hub_is_reachable", lambda: False)
    answer = command("atlas", "-m", MODEL, "-i", "photos", "--hierarchy", people, "-o", "out")
    assert answer.code == 2
    assert "the weights of timm:test_vit can't be had (Name or service not known)" in answer.error
    assert "--random-weights, for a control only" in answer.error
    assert not Path("out").exists()


def test_the_random_control_stands_beside_a_model_with_weights(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    people = write_photos(tmp_path, 5)
    create = timm.create_model
    asked = []

    def pretend(name: str, pretrained: bool, **options: Any) -> Any:
        asked.append(pretrained)
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", pretend)
    monkeypatch.setattr(loading, "_hub_is_reachable", lambda: True)
    words = ("atlas", "-m", MODEL, "--layers", 0, "-i", "photos", "--hierarchy", people, "--format", "none")
    assert command(*words, "-o", "both").code == 0
    assert asked == [True, False]
    assert "random weights" in set(pd.read_parquet("both/heads.parquet")["group"])
    assert "Random weights: a control." not in Path("both/report.html").read_text("utf-8")
    assert command(*words, "-o", "one", "--no-control").code == 0
    assert asked == [True, False, True]
    assert "random weights" not in set(pd.read_parquet("one/heads.parquet")["group"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-m", "timm:no_such_model", "-i", "photos"), "no model 'no_such_model'"),
        (("-m", "resnet", "-i", "photos"), "timm has no model 'resnet'; expected such as resnet"),
        (("-m", "photos", "-i", "photos"), "timm:MODEL, hf:MODEL or relevance"),
        (("-m", MODEL, "-i", "nowhere"), "nowhere"),
        (("-m", MODEL, "-i", "photos/000.png"), "1 images"),
        (("-m", MODEL, "-i", "photos", "--metric", "no_such"), "no metric is called 'no_such'"),
        (("-m", MODEL, "-i", "photos", "--fdr", "1.5"), "--fdr 1.5"),
        (("-m", MODEL, "-i", "photos", "--segmenter", "nobody"), "no segmenter is called 'nobody'"),
        (("-m", MODEL, "-i", "photos", "--hierarchy", "none.json"), "none.json"),
        (("-m", MODEL, "-i", "photos", "--hierarchy", "a.json", "--segmenter", "sam_vit_b"), "in place of a segmenter"),
        (("-m", MODEL, "-i", "photos", "--layers", "99"), "layers of timm:test_vit"),
    ],
)
def test_bad_input_is_refused_before_any_work(
    command: Command, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    write_photos(tmp_path, 4)
    answer = command("atlas", *words, "--random-weights", "-o", "out")
    assert answer.code == 2
    (error,) = answer.err.splitlines()  # no notes of work that is not done
    assert error.startswith("error: ")
    assert message in error
    assert not Path("out").exists()
