"""Scenes as a cache: drawn once, whatever is made of them, and not again by a run that goes on."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import pytest

from arrcoc_sam.errors import DataError
from arrcoc_sam.scenes import generate_scene
from arrcoc_sam.training import samples_scenes as module
from arrcoc_sam.training.cache import build_cache
from arrcoc_sam.training.cache_dataset import HierarchyCache
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


def test_clicks_of_other_scenes_are_not_taken(drawn: Mock, tmp_path: Path) -> None:
    prepare_scenes(tmp_path, range(3), size=48, clicks=2)
    drawn.reset_mock()
    with pytest.raises(DataError, match="holds a cache of"):
        prepare_scenes(tmp_path, range(3), size=48, clicks=1)
    assert drawn.call_count == 3
    (tmp_path / "clicks.json").write_text("{")
    drawn.reset_mock()
    prepare_scenes(tmp_path, range(3), size=48, clicks=2)
    assert drawn.call_count == 3
