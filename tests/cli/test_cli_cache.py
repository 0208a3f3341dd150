"""``arrcoc-sam cache``: what it writes and says, and what it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import ExifTags, Image

from arrcoc_sam.training.cache.dataset import HierarchyCache

Command = Callable[..., Any]


def test_a_cache_is_built_resumed_and_described(
    command: Command, make_photo: Callable[..., Path], weights: Path, tmp_path: Path
) -> None:
    for seed in range(2):
        make_photo(tmp_path / "photos" / f"{seed}.png", seed=seed)
    words = ("cache", "photos", "-o", "cache", "--checkpoint", weights, "--grid", 2, "--quality", "--shard", 1)
    answer = command(*words, "--json")
    assert answer.code == 0, answer.err
    record = json.loads(answer.out)
    assert (record["num_samples"], record["num_shards"], record["num_new_shards"]) == (8, 2, 2)
    assert HierarchyCache.open(tmp_path / "cache", segmenter=record["checkpoint_hash"]).plan.quality
    (tmp_path / "cache" / "shard-00001.parquet").unlink()
    again = command(*words, "--json")
    assert json.loads(again.out) == record | {"num_new_shards": 1}
    refused = command(*words[:-2], "--shard", 2)
    assert refused.code == 2
    assert "images_per_shard 1, not 2" in refused.error


def test_bad_pictures_are_listed(
    command: Command, make_photo: Callable[..., Path], weights: Path, tmp_path: Path
) -> None:
    make_photo(tmp_path / "photos" / "a.png")
    (tmp_path / "photos" / "b.png").write_bytes(b"no picture")
    answer = command("cache", "photos", "-o", "cache", "--checkpoint", weights, "--grid", 1)
    assert answer.code == 3
    assert "1 clicks" in answer.out
    assert "b.png" in answer.err


def test_a_bad_picture_that_was_named_is_refused(
    command: Command, make_photo: Callable[..., Path], weights: Path, tmp_path: Path
) -> None:
    make_photo(tmp_path / "photos" / "a.png")
    (tmp_path / "photos" / "b.png").write_bytes(b"no picture")
    answer = command("cache", "photos/b.png", "photos", "-o", "cache", "--checkpoint", weights, "--grid", 1)
    assert answer.code == 2
    assert "photos/b.png" in answer.error
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("clicks", [{}, {"a.png": []}, {"c.png": [[1, 2]]}])
def test_clicks_for_none_of_the_pictures_are_refused(
    command: Command, make_photo: Callable[..., Path], weights: Path, tmp_path: Path, clicks: dict[str, Any]
) -> None:
    for name in ("a.png", "b.png"):
        make_photo(tmp_path / "photos" / name)
    (tmp_path / "p.json").write_text(json.dumps(clicks))
    answer = command("cache", "photos", "-o", "cache", "--checkpoint", weights, "--points", "p.json")
    assert answer.code == 2
    names = ", ".join(clicks) or "none"
    assert f"none of 2 images has a click in p.json, which names {names}; expected clicks for one" in answer.error
    assert not (tmp_path / "cache").exists()


def test_a_click_outside_its_image_is_refused_before_anything_is_written(
    command: Command, make_photo: Callable[..., Path], weights: Path, tmp_path: Path
) -> None:
    with Image.open(make_photo(tmp_path / "a.png")) as photo:
        width, height = photo.size
        turned = photo.getexif()
        turned[ExifTags.Base.Orientation] = 6
        photo.crop((0, 0, 40, 20)).save(tmp_path / "turned.jpg", exif=turned)
    words = ("cache", "a.png", "turned.jpg", "-o", "c", "--checkpoint", weights, "--points", "p.json")
    bad: list[tuple[object, str]] = [
        ({"a.png": [[1, 2], [-3, 2.5]]}, rf"p.json: the click \(-3, 2.5\) on a.png; .*width {width}, height {height}"),
        ({"turned.jpg": [[30, 5]]}, r"p.json: the click \(30, 5\) on turned.jpg; .*width 20, height 40"),
    ]
    for clicks, message in bad:
        (tmp_path / "p.json").write_text(json.dumps(clicks))
        answer = command(*words)
        assert answer.code == 2
        assert re.search(message, answer.error)
        assert not (tmp_path / "c").exists()
    (tmp_path / "p.json").write_text(json.dumps({"a.png": [[1, 2]], "turned.jpg": [[5, 30]]}))
    answer = command(*words)
    assert answer.code == 0, answer.err
    assert "2 clicks" in answer.out


def test_faulty_records_of_the_truth_are_listed(command: Command, weights: Path, truth: Path) -> None:
    content = json.loads(truth.read_text())
    content["annotations"][0]["segmentation"] = [[1, 2, 3]]
    truth.write_text(json.dumps(content))
    words = ("cache", "data/0.png", "data/1.png", "--truth", truth, "--checkpoint", weights)
    answer = command(*words, "-o", "c", "--json")
    assert answer.code == 3
    record = json.loads(answer.out)
    assert record["num_samples"] == 5
    assert len(record["left_out"]) == 1
    assert "annotation 0" in record["left_out"][0]
    assert record["num_skipped"] == 1
    (skipped,) = record["skipped"]
    assert skipped["file"] == str(truth)
    assert "annotation 0" in skipped["reason"]
    assert "Records left out" in answer.err


def test_an_orientation_that_keeps_the_size_is_noted(
    command: Command, make_photo: Callable[..., Path], weights: Path, tmp_path: Path
) -> None:
    with Image.open(make_photo(tmp_path / "a.png")) as photo:
        upside_down = photo.getexif()
        upside_down[ExifTags.Base.Orientation] = 3
        photo.save(tmp_path / "b.jpg", exif=upside_down)
    (tmp_path / "p.json").write_text(json.dumps({"a.png": [[1, 2]], "b.jpg": [[1, 2]]}))
    words = ("cache", "a.png", "b.jpg", "--checkpoint", weights)
    answer = command(*words, "-o", "c", "--points", "p.json")
    assert answer.code == 0, answer.err
    assert answer.err.count("EXIF orientation") == 1
    assert "1 of the images, b.jpg first" in answer.err
    assert "EXIF" not in command(*words, "-o", "d", "--grid", 1).err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("photos", "-o", "c"), "photos"),
        (("a.png", "-o", "c", "--grid", 2, "--points", "p.json"), "one kind of clicks"),
        (("a.png", "-o", "c", "--human"), "--truth"),
        (("a.png", "-o", "c", "--human", "--truth", "t.json", "-s", "sam_vit_b"), "no segmenter is asked"),
        (("a.png", "-o", "c", "--gpus-per-actor", 0.5), "--gpus-per-actor with --engine local"),
        (("a.png", "-o", "c", "--points", "missing.json"), "missing.json does not exist"),
        (("a.png", "-o", "c", "--grid", 0), "num_per_side=0; expected a whole number, at least 1"),
        (("a.png", "-o", "c", "--grid", 65), "a grid of 65 clicks a side; expected 1 to 64"),
        (("a.png", "-o", "c", "--segmenter", "none"), "no segmenter is called"),
    ],
)
def test_bad_input(
    command: Command, make_photo: Callable[..., Path], tmp_path: Path, words: tuple[object, ...], message: str
) -> None:
    make_photo(tmp_path / "a.png")
    answer = command("cache", *words)
    assert answer.code == 2
    assert message in answer.error
    assert not (tmp_path / "c").exists()
