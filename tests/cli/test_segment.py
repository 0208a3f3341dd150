from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from arrcoc_sam.segmenters import load_segmenter

Command = Callable[..., Any]


def test_json_holds_the_masks_and_their_scores(command: Command, photo: Path, weights: Path) -> None:
    answer = command("segment", photo, "--point", "10,12", "-p", "50,30,0", "--checkpoint", weights)
    assert answer.code == 0, answer.err
    record = json.loads(answer.out)
    assert record["size_hw"] == [40, 60]
    assert record["prompt"] == {"points_xy": [[10.0, 12.0], [50.0, 30.0]], "labels": [1, 0], "box_xyxy": None}
    masks = record["masks"]
    assert [mask["level"] for mask in masks] == ["whole", "part", "subpart"]
    assert sorted(mask["token_index"] for mask in masks) == [1, 2, 3]
    areas = [mask["area"] for mask in masks]
    assert areas == sorted(areas, reverse=True)
    for mask in masks:
        runs = mask["segmentation"]
        assert int(coco_mask.area({"size": runs["size"], "counts": runs["counts"].encode()})) == mask["area"]
    assert record["checkpoint_hash"] == load_segmenter("tiny", checkpoint=weights).checkpoint_hash
    assert record["command"].startswith("arrcoc-sam segment")


def test_pictures_hold_the_same_masks(command: Command, photo: Path, weights: Path, tmp_path: Path) -> None:
    words = ("segment", photo, "--box", "5,5,40,30", "--checkpoint", weights)
    record = json.loads(command(*words, "--json", "-o", "masks.json").out)
    assert json.loads((tmp_path / "masks.json").read_text())["masks"] == record["masks"]
    answer = command(*words, "--format", "png", "--out", "pictures")
    assert answer.code == 0, answer.err
    assert "Wrote pictures/photo-whole.png" in answer.out
    for mask in record["masks"]:
        picture = np.asarray(Image.open(f"pictures/photo-{mask['level']}.png"))
        assert picture.shape == (40, 60)
        assert set(np.unique(picture)) <= {0, 255}
        assert int((picture == 255).sum()) == mask["area"]


def test_a_folder_gets_one_json_file(command: Command, photo: Path, weights: Path) -> None:
    answer = command("segment", photo, "--point", "10,12", "--checkpoint", weights, "--out", "results")
    assert answer.code == 0, answer.err
    assert json.loads(Path("results/photo.json").read_text())["image"] == str(photo)
    assert "predicted IoU" in answer.out


@pytest.mark.parametrize("suffix", ["jpg", "webp", "bmp"])
def test_other_kinds_of_pictures(command: Command, make_photo: Any, weights: Path, tmp_path: Path, suffix: str) -> None:
    path = make_photo(tmp_path / f"photo.{suffix}")
    assert command("segment", path, "--point", "10,12", "--checkpoint", weights).code == 0
