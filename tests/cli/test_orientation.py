"""Pictures that were turned by their EXIF data at a size that does not tell: noted once by whatever reads masks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import ExifTags, Image

from arrcoc_sam.datasets import CocoDataset
from arrcoc_sam.datasets.mask_forms import open_masks
from arrcoc_sam.scenes import generate_scene
from arrcoc_sam.training.scored_masks import DegradedMasks, MatchedMasks
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


def test_score(command: Command, turned: Path, weights: Path) -> None:
    words = ("score", turned, "--checkpoint", weights, "--out", "s.parquet")
    answer = command(*words)
    assert answer.code == 0, answer.err
    assert answer.err.count("EXIF") == 1
    assert NOTE.format(turned.parent) in " ".join(answer.err.split())
    assert "EXIF" not in command(*words).err  # nothing is scored


def test_calibrate_and_evaluate(command: Command, turned: Path, weights: Path) -> None:
    for words in (
        ("evaluate-iou", turned, "--clicks", 1, "--bootstrap", 5),
        ("calibrate", turned, "--out", "c.json", "--per-mask", 2, "--min-masks", 6, "--no-ablation"),
    ):
        answer = command(*words, "--checkpoint", weights)
        assert answer.code == 0, answer.err
        assert answer.err.count("EXIF") == 1
        assert NOTE.format(turned.parent) in " ".join(answer.err.split())


@pytest.mark.parametrize("kind", SETTINGS)
def test_training(command: Command, turned: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "run.toml").write_text(SETTINGS[kind])
    answer = command("train", kind, "--config", "run.toml", "--out", "run", "--device", "cpu")
    assert answer.code == 0, answer.err
    assert answer.err.count("EXIF") == 1
    assert NOTE.format("data") in " ".join(answer.err.split())
    assert turned.is_file()


def test_sources_of_training_know_their_files(truth: Path) -> None:
    dataset = CocoDataset.read(truth, images=truth.parent)
    files = [truth.parent / f"{number}.png" for number in range(8)]
    scenes = SceneSource([generate_scene(0, size=64)])
    for source in (CocoSource(dataset), TripleSource(dataset), MaskSetSource(open_masks(truth))):
        assert source.paths == files
        assert DegradedMasks(source).paths == files
        assert MixedSource([source, scenes, source], [1.0, 1.0, 1.0]).paths == files
    assert DegradedMasks(scenes).paths == ()
    assert MatchedMasks(dataset, dataset).paths == files
