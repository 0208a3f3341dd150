from __future__ import annotations

from pathlib import Path

import pytest

from arrcoc_sam.cli.staging import staged_folder
from arrcoc_sam.errors import OutputError


def test_files_arrive_together_and_others_stay(tmp_path: Path) -> None:
    target = tmp_path / "out"
    (target / "deep").mkdir(parents=True)
    (target / "mine.txt").write_text("mine")
    (target / "deep" / "a.txt").write_text("old")
    with staged_folder(target) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "a.txt").write_text("new")
        (folder / "b.txt").write_text("b")
        assert (target / "deep" / "a.txt").read_text() == "old"
    assert (target / "deep" / "a.txt").read_text() == "new"
    assert {path.name for path in target.iterdir()} == {"mine.txt", "deep", "b.txt"}
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


def test_an_error_leaves_nothing_not_even_the_folder(tmp_path: Path) -> None:
    def fail() -> None:
        with staged_folder(tmp_path / "a" / "b") as folder:
            (folder / "half.txt").write_text("half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_the_name_of_a_file_is_refused_and_a_folder_of_such_a_name_is_not(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"o\.png is the name of a file; expected a folder .* such as .*/o\."):
        staged_folder(tmp_path / "o.png").__enter__()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "o.png").mkdir()
    with staged_folder(tmp_path / "o.png") as folder:
        (folder / "x").touch()
    assert (tmp_path / "o.png" / "x").exists()


def test_parents_are_made_at_the_end(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "a" / "b") as folder:
        (folder / "x").touch()
        assert not (tmp_path / "a").exists()
    assert (tmp_path / "a" / "b" / "x").is_file()


def test_a_relative_name_is_meant_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with staged_folder(Path("results")) as folder:
        (folder / "x").touch()
    assert (tmp_path / "results" / "x").is_file()


def test_a_file_in_the_way_is_named_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for target in (tmp_path / "file", tmp_path / "file" / "deep" / "er"):
        with pytest.raises(OutputError, match="file is a file"), staged_folder(target):
            pytest.fail("work began")
