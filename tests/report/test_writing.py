from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from arrcoc_sam.errors import OutputError
from arrcoc_sam.report.writing import made_folder, refuse_overwriting, replacing, saving, write_text


def test_a_file_that_fails_half_way_leaves_the_old_one(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a" / "x.txt", "old")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        fail()
    assert path.read_text() == "old"
    assert [file.name for file in path.parent.iterdir()] == ["x.txt"]


@pytest.mark.parametrize(("room", "size"), [(100, 10), (100_000, 300_000)])  # of a small file torch says another thing
@pytest.mark.parametrize("save", [torch.save, save_file])
def test_a_full_disk(tmp_path: Path, save: Callable[..., None], room: int, size: int) -> None:
    """As a limit of the size of files shows it."""
    resource = pytest.importorskip("resource")
    path = write_text(tmp_path / "last.pt", "old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    tensors = {"weight": torch.randn(size)}

    def fail() -> None:
        with saving(path) as temporary:
            save(tensors, temporary)

    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        with pytest.raises(OutputError, match=r"last\.pt can't be written"):
            fail()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]
    assert path.read_text() == "old"


def test_an_error_that_is_not_about_writing_stays_itself(tmp_path: Path) -> None:
    def fail() -> None:
        with saving(tmp_path / "last.pt"):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        fail()
    assert not list(tmp_path.iterdir())


def test_the_new_file_replaces_the_old_one_and_others_may_read_it(tmp_path: Path) -> None:
    path = write_text(tmp_path / "x.txt", "old")
    write_text(path, "näh")
    assert path.read_text(encoding="utf-8") == "näh"
    other = tmp_path / "plain"
    other.touch()
    assert path.stat().st_mode == other.stat().st_mode


def test_the_temporary_name_keeps_the_ending(tmp_path: Path) -> None:
    with replacing(tmp_path / "figure.png") as temporary:
        assert temporary.suffix == ".png"
        assert temporary.parent == tmp_path


@pytest.mark.parametrize("name", ["file/x.txt", "."])
def test_places_that_can_t_be_written_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=str(tmp_path)):
        write_text(tmp_path / name, "")
    if name != ".":
        with pytest.raises(OutputError, match=r"file/x.txt can't be made .*; expected a folder"):
            made_folder(tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_what_is_read_is_not_written(tmp_path: Path) -> None:
    data, absent = write_text(tmp_path / "data.json", "{}"), tmp_path / "absent.json"
    refuse_overwriting([tmp_path / "out.json", absent], [data, absent, None])
    with pytest.raises(OutputError, match="is to be written and to be read"):
        refuse_overwriting([tmp_path / "out.json", tmp_path / "new" / ".." / "data.json"], [None, data])
