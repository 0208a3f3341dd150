"""Scenes as a cache: drawn once, whatever is made of them, and not again by a run that goes on."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import pytest
from PIL import Image

from arrcoc_sam.errors import DataError, InputError
from arrcoc_sam.scenes import generate_scene
from arrcoc_sam.training import samples_scenes as module
from arrcoc_sam.training.cache.build import build_cache
from arrcoc_sam.training.cache.dataset import HierarchyCache
from arrcoc_sam.training.samples_scenes import SceneLevels, prepare_scenes


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """Counts the scenes that are drawn."""
    draw = Mock(side_effect=generate_scene)
    monkeypatch.setattr(module, "generate_scene", draw)
    return draw


def rows(cache: HierarchyCache) -> list[str]:
    """As text: NaN is not NaN."""
    return [str(row) for row in cache.table().to_pylist()]


def test_scenes_are_drawn_once(drawn: Mock, tmp_path: Path) -> None:
    first = prepare_scenes(tmp_path, range(5), size=48, clicks=2, images_per_shard=2)
    assert drawn.call_count == 5
    pictures = sorted((tmp_path / "pictures").iterdir(), key=lambda path: int(path.stem))
    build_cache(SceneLevels(48, 2), pictures, tmp_path / "apart")
    assert rows(first) == rows(HierarchyCache.open(tmp_path / "apart"))
    drawn.reset_mock()
    again = prepare_scenes(tmp_path, range(5), size=48, clicks=2, images_per_shard=2)
    assert drawn.call_count == 0
    assert rows(again) == rows(first)
    pictures[0].unlink()
    prepare_scenes(tmp_path, range(5), size=48, clicks=2, images_per_shard=2)
    assert pictures[0].is_file()
    assert drawn.call_count == 1


@pytest.mark.parametrize(
    ("options", "seeds", "message"),
    [
        ({"clicks": 0}, range(3), "clicks=0; expected at least 1"),
        ({"images_per_shard": 0}, range(3), "images_per_shard=0; expected at least 1"),
        ({"size": 8}, range(3), "size = 8; expected at least 32 pixels"),
        ({}, range(0), "scenes=0; expected at least 1"),
    ],
)
def test_what_is_refused_leaves_no_folder(tmp_path: Path, options: dict[str, int], seeds: range, message: str) -> None:
    with pytest.raises(InputError, match=message):
        prepare_scenes(tmp_path / "scenes", seeds, **options)  # type: ignore[arg-type]
    assert not (tmp_path / "scenes").exists()


def test_clicks_of_other_scenes_are_not_taken(drawn: Mock, tmp_path: Path) -> None:
    prepare_scenes(tmp_path, range(3), size=48, clicks=2)
    drawn.reset_mock()
    for other in ({"size": 48, "clicks": 1}, {"size": 64, "clicks": 2}):
        with pytest.raises(DataError, match=r"holds scenes of .*name another folder"):
            prepare_scenes(tmp_path, range(3), **other)
    assert drawn.call_count == 0
    (tmp_path / "clicks.json").write_text("{")
    drawn.reset_mock()
    prepare_scenes(tmp_path, range(3), size=48, clicks=2)
    assert drawn.call_count == 3


def test_a_killed_run_goes_on_and_pictures_without_a_record_are_drawn_again(
    drawn: Mock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SCENES_A_RECORD", 2)

    def kill(_: str, done: int, __: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_scenes(tmp_path / "killed", range(5), size=48, clicks=2, progress=kill)
    Image.new("RGB", (64, 64)).save(tmp_path / "killed" / "pictures" / "2.png")  # in no record yet: anybody's
    drawn.reset_mock()
    again = prepare_scenes(tmp_path / "killed", range(5), size=48, clicks=2)
    assert drawn.call_count == 3 + 2  # three pictures, and exact levels of the two that were there
    assert rows(again) == rows(prepare_scenes(tmp_path / "whole", range(5), size=48, clicks=2))
    for number in range(5):
        killed, whole = (tmp_path / name / "pictures" / f"{number}.png" for name in ("killed", "whole"))
        assert killed.read_bytes() == whole.read_bytes()
