"""The bank gives back the scenes that the generator draws, and finishes what a killed run left."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from arrcoc_sam.errors import DataError, InputError, UnknownNameError
from arrcoc_sam.scenes import SceneBank, bank, draw_bank, generate_scene


def test_bank_equals_generator_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bank, "_SHARD", 3)
    drawn = draw_bank(tmp_path, first_seed=40, num_scenes=7, size=64, workers=2)
    assert len(drawn) == 7
    for index in (0, 4, 6):
        expected = generate_scene(40 + index, size=64)
        assert (drawn[index].image == expected.image).all()
        assert (drawn[index].labels == expected.labels).all()
        assert (drawn[index].levels == expected.levels).all()
        assert drawn[index].seed == expected.seed
    # a run killed in its last shard: the others are kept, byte for byte and untouched
    kept = (tmp_path / "00001.images.npy").stat().st_mtime_ns
    (tmp_path / "00002.parents.npy").unlink()
    with pytest.raises(DataError, match="lacks 1 of 3"):
        SceneBank.open(tmp_path)
    again = draw_bank(tmp_path, first_seed=40, num_scenes=7, size=64, workers=1)
    assert (tmp_path / "00001.images.npy").stat().st_mtime_ns == kept
    assert (again[6].image == generate_scene(46, size=64).image).all()
    assert not list(tmp_path.glob(".*tmp"))


def test_index_out_of_range(tmp_path: Path) -> None:
    drawn = draw_bank(tmp_path, first_seed=0, num_scenes=2, size=32, workers=1)
    with pytest.raises(IndexError):
        drawn[2]


def test_bad_banks(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"bank\.json"):
        SceneBank.open(tmp_path)
    with pytest.raises(InputError, match="num_scenes"):
        draw_bank(tmp_path, first_seed=0, num_scenes=0)
    draw_bank(tmp_path, first_seed=0, num_scenes=1, size=32, workers=1)
    info = json.loads((tmp_path / "bank.json").read_text())
    (tmp_path / "bank.json").write_text(json.dumps(info | {"version": 0}))
    with pytest.raises(DataError, match="version 0"):
        SceneBank.open(tmp_path)


def test_a_bank_of_rich_scenes(tmp_path: Path) -> None:
    drawn = draw_bank(tmp_path, first_seed=3, num_scenes=2, size=48, style="rich", workers=1)
    expected = generate_scene(4, size=48, style="rich")
    assert (drawn[1].image == expected.image).all()
    assert (drawn[1].masks == expected.masks).all()
    assert drawn[1].version == SceneBank.open(tmp_path).version == 2
    with pytest.raises(DataError, match="'version': 2"):
        draw_bank(tmp_path, first_seed=3, num_scenes=2, size=48, workers=1)
    with pytest.raises(UnknownNameError, match="plain, rich, lifelike, natural"):
        draw_bank(tmp_path / "other", first_seed=3, num_scenes=2, style="odd")
    assert not (tmp_path / "other").exists()


def test_other_seeds_in_a_finished_folder_are_refused(tmp_path: Path) -> None:
    draw_bank(tmp_path, first_seed=0, num_scenes=2, size=32, workers=1)
    with pytest.raises(DataError, match="first_seed"):
        draw_bank(tmp_path, first_seed=10, num_scenes=2, size=32, workers=1)
    assert np.array_equal(SceneBank.open(tmp_path)[1].image, generate_scene(1, 32).image)
