"""Pictures that were turned by their EXIF data at a size that does not tell: noted once by whatever reads masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import ExifTags, Image

from arrcoc_sam import images
from arrcoc_sam.cli import score_job
from arrcoc_sam.datasets import CocoDataset
from arrcoc_sam.datasets.mask_forms import open_masks
from arrcoc_sam.scenes import generate_scene
from arrcoc_sam.training.iou_transfer.scored_masks import DegradedMasks, MatchedMasks
from arrcoc_sam.training.sources import CocoSource, MaskSetSource, MixedSource, SceneSource, TripleSource

Command = Callable[..., Any]

NOTE = "2 of the images, {}/0.png first, have an EXIF orientation that keeps their size"
STAGE = "[[training.stages]]\nimage_size = 64\nsteps = 1\nnum_images = 2\nnum_targets = 2\n"
SETTINGS = {
    "segmenter": f'[[data]]\nkind = "coco"\npath = "data/truth.json"\n[training]\nwarmup_steps = 0\n{STAGE}',
    "iou-head": '[data]\nkind = "coco"\npath = "data/truth.json"\n[transfer]\nepochs = 1\n',
}


@pytest.fixture
def turned(truth: Path) -> Path:
    """True masks of eight pictures, two of which are stored upside down or mirrored."""
    for name, orientation in (("0.png", 3), ("5.png", 2)):
        with Image.open(truth.parent / name) as picture:
            exif = picture.getexif()
            exif[ExifTags.Base.Orientation] = orientation
            picture.save(truth.parent / name, exif=exif)
    return truth


@pytest.fixture
def headers_read(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the header of each picture was read, by its name."""
    counts: Counter[str] = Counter()
    orientation = images._orientation

    def counted(picture: Image.Image) -> int:
        counts[Path(picture.filename).name] += 1  # type: ignore[attr-defined]
        return orientation(picture)

    monkeypatch.setattr(images, "_orientation", counted)
    return counts


def test_score(command: Command, turned: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("score", turned, "--checkpoint", weights, "--out", "s.parquet")
    monkeypatch.setattr(score_job, "_turned_so_far", pytest.fail)  # each is looked at when it is read
    answer = command(*words)
    assert answer.code == 0, answer.err
    assert answer.err.count("EXIF") == 1
    assert NOTE.format(turned.parent) in " ".join(answer.err.split())
    assert "EXIF" not in command(*words).err  # nothing is scored


def test_score_goes_on(command: Command, turned: Path, weights: Path) -> None:
    picture = (turned.parent / "3.png").read_bytes()
    (turned.parent / "3.png").unlink()
    words = ("score", turned, "--checkpoint", weights, "--out", "s.parquet", "--part-masks", 6)
    assert NOTE.format(turned.parent) in " ".join(command(*words).err.split())
    (turned.parent / "3.png").write_bytes(picture)
    answer = command(*words)  # scores the part of the third picture alone
    assert answer.code == 0, answer.err
    assert NOTE.format(turned.parent) in " ".join(answer.err.split())


def test_calibrate_and_evaluate(command: Command, turned: Path, weights: Path, headers_read: Counter[str]) -> None:
    for words in (
        ("evaluate-iou", turned, "--clicks", 1, "--bootstrap", 5),
        ("calibrate", turned, "--out", "c.json", "--per-mask", 2, "--min-masks", 6, "--no-ablation"),
    ):
        headers_read.clear()
        answer = command(*words, "--checkpoint", weights)
        assert answer.code == 0, answer.err
        assert answer.err.count("EXIF") == 1
        assert NOTE.format(turned.parent) in " ".join(answer.err.split())
        assert headers_read == {f"{number}.png": 1 for number in range(8)}


@pytest.mark.parametrize("kind", SETTINGS)
def test_training(command: Command, turned: Path, tmp_path: Path, kind: str, headers_read: Counter[str]) -> None:
    (tmp_path / "run.toml").write_text(SETTINGS[kind])
    answer = command("train", kind, "--config", "run.toml", "--out", "run", "--device", "cpu")
    assert answer.code == 0, answer.err
    assert answer.err.count("EXIF") == 1
    assert NOTE.format("data") in " ".join(answer.err.split())
    assert headers_read == {f"{number}.png": 1 for number in range(8)}
    assert turned.is_file()


def test_sources_of_training_know_what_is_turned(turned: Path) -> None:
    dataset = CocoDataset.read(turned, images=turned.parent)
    files = [turned.parent / "0.png", turned.parent / "5.png"]
    scenes = SceneSource([generate_scene(0, size=64)])
    for source in (CocoSource(dataset), TripleSource(dataset), MaskSetSource(open_masks(turned))):
        assert source.turned_in_place == files
        assert DegradedMasks(source).turned_in_place == files
        assert MixedSource([source, scenes, source], [1.0, 1.0, 1.0]).turned_in_place == files
    assert DegradedMasks(scenes).turned_in_place == ()
    assert MatchedMasks(dataset, dataset).turned_in_place == files
