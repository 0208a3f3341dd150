"""What names stand for, and what belongs to a picture by its path."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from arrcoc_sam.errors import ImageReadError, InputError
from arrcoc_sam.image_files import IMAGE_SUFFIXES, find_by_path_end, find_images


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("b.png", "a.JPG", "c.webp", ".hidden.png", "notes.txt", "sub/d.png", ".cache/e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder.png").mkdir()
    return tmp_path


def names(paths: list[Path], root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in paths]


def test_a_folder_gives_its_images(folder):
    assert names(find_images(folder), folder) == ["a.JPG", "b.png", "c.webp"]
    assert names(find_images(str(folder), recursive=True), folder) == ["a.JPG", "b.png", "c.webp", "sub/d.png"]


def test_globs_and_names_are_sorted_and_each_file_once(folder):
    assert names(find_images(f"{folder}/*.png"), folder) == ["b.png"]
    assert names(find_images(f"{folder}/**/*"), folder) == ["a.JPG", "b.png", "c.webp", "sub/d.png"]
    several = [folder / "c.webp", folder, f"{folder}/?.png", folder / "sub" / ".." / "b.png"]
    assert names(find_images(several), folder) == ["a.JPG", "b.png", "c.webp"]


def test_a_link_to_an_image_is_the_same_image(folder):
    (folder / "z.png").symlink_to(folder / "b.png")
    assert names(find_images(folder), folder) == ["a.JPG", "b.png", "c.webp"]


def test_a_named_file_is_taken_whatever_its_ending(folder):
    assert names(find_images(folder / "notes.txt"), folder) == ["notes.txt"]
    assert names(find_images([folder / ".hidden.png"]), folder) == [".hidden.png"]


def test_a_name_with_brackets_is_a_name_first(folder):
    path = folder / "photo[1].png"
    path.write_bytes(b"x")
    assert find_images(path) == [path]


def test_a_hidden_folder_that_is_named_is_searched(folder):
    assert names(find_images(folder / ".cache"), folder) == [".cache/e.png"]


def test_relative_names_stay_relative(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert find_images(["b.png", "sub"]) == [Path("b.png"), Path("sub/d.png")]


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("nowhere", ImageReadError, "does not exist"),
        ("empty", ImageReadError, "/**/*"),
        ("*.bmp", ImageReadError, "no image matches"),
    ],
)
def test_nothing_found_is_an_error(folder, name, kind, words):
    (folder / "empty").mkdir()
    with pytest.raises(kind) as caught:
        find_images([folder / "a.JPG", folder / name])
    assert words in str(caught.value)


def test_no_name_is_an_error(as_at_run_time):
    with pytest.raises(InputError, match="no path"):
        find_images([])
    with pytest.raises(InputError, match="a path is 3"):
        find_images([3])


def test_the_longest_end_of_a_path_is_meant_by_whole_folders():
    known = {("1.jpg",): "name", ("a", "1.jpg"): "folder", ("/", "data", "a", "1.jpg"): "path", ("2.jpg",): ""}
    assert find_by_path_end(Path("/data/a/1.jpg"), known.get) == "path"
    assert find_by_path_end(Path("/other/a/1.jpg"), known.get) == "folder"
    assert find_by_path_end(Path("/data/ba/1.jpg"), known.get) == "name"
    assert find_by_path_end(Path("/data/a/11.jpg"), known.get) is None
    assert find_by_path_end(Path("/1.jpg/a"), known.get) is None  # an end, not anywhere
    assert find_by_path_end(Path("/data/a/2.jpg"), known.get) is None  # what is empty counts as nothing
    assert find_by_path_end(Path("1.jpg"), known.get) == "name"
    assert find_by_path_end(Path(), known.get) is None


def test_ends_are_asked_from_the_longest_on():
    asked = []
    assert find_by_path_end(Path("/a/b.png"), asked.append) is None
    assert asked == [("/", "a", "b.png"), ("a", "b.png"), ("b.png",)]


def test_every_ending_is_one_that_pillow_reads():
    known = Image.registered_extensions()
    unread = {suffix for suffix in IMAGE_SUFFIXES if known.get(suffix) not in Image.OPEN}
    assert unread <= {".avif"}  # Pillow reads AVIF from version 11.3 on
