"""Which files are images: what names, folders and globs stand for, and what belongs to a picture by its path."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from arrcoc_sam.errors import ImageReadError, InputError, describe, explain

__all__ = ["IMAGE_SUFFIXES", "find_by_path_end", "find_images"]

Found = TypeVar("Found")

# fmt: off
IMAGE_SUFFIXES = frozenset({
    ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg",
    ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
})
# fmt: on
"""Endings, in lower case, by which a file in a folder counts as an image."""


def find_images(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], *, recursive: bool = False
) -> list[Path]:
    """The image files that names, folders and globs stand for, sorted, each once.

    A file that is named outright is taken whatever its ending (:func:`~arrcoc_sam.images.load_image` will say if it is
    no image); from folders and globs only files with an ending of :data:`IMAGE_SUFFIXES` are, and no hidden ones.

    Args:
        paths: One or several files, folders or globs (``**`` reaches into subfolders).
        recursive: Whether folders are searched with their subfolders.

    Returns:
        The paths as given (not made absolute), sorted; of several names of one file the first in order.

    Raises:
        ImageReadError: A name that does not exist, a folder or glob without an image.
        InputError: No name at all.
    """
    names = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if not names:
        raise InputError(explain("no path", "at least one image file, folder or glob"))
    found: dict[Path, Path] = {}
    for path in sorted(path for name in names for path in _files_of(name, recursive)):
        found.setdefault(path.resolve(), path)
    return sorted(found.values())


def find_by_path_end(path: Path, find: Callable[[tuple[str, ...]], Found | None]) -> Found | None:
    """What belongs to a picture by its name, or by the end of its path: of several the one of the longest end.

    Names are compared by whole folders: ``birds/1.jpg`` ends ``/data/birds/1.jpg``, and not ``/data/blackbirds/1.jpg``.

    Args:
        path: The picture's, with all the folders that a name may have: absolute, as a rule.
        find: Answers what is known by the parts of an end, ``("birds", "1.jpg")``; what is false counts as nothing.

    Returns:
        The first answer, from the whole path to the name alone; None where there is none.

    Example:
        >>> clicks = {("1.jpg",): [[3, 4]], ("birds", "1.jpg"): [[8, 9]]}
        >>> find_by_path_end(Path("/data/birds/1.jpg"), clicks.get)
        [[8, 9]]
    """
    parts = path.parts
    ends = (parts[start:] for start in range(len(parts)))
    return next((found for end in ends if (found := find(end))), None)


def _files_of(name: object, recursive: bool) -> list[Path]:
    """The files that one name stands for."""
    if not isinstance(name, (str, os.PathLike)):
        raise InputError(explain(f"a path is {describe(name)}", "a file, folder or glob"))
    path = Path(name).expanduser()
    if path.is_dir():
        images = [p for p in (path.rglob("*") if recursive else path.iterdir()) if _counts(p, path)]
        if not images:
            mend = None if recursive else f"for images in subfolders name the glob '{path}/**/*'"
            raise ImageReadError(explain(f"no image in the folder {path}", _ENDINGS, mend))
        return images
    if path.exists():
        return [path]
    if glob.has_magic(str(path)):
        images = [Path(p) for p in glob.glob(str(path), recursive=True) if _counts(Path(p))]  # noqa: PTH207
        if not images:
            raise ImageReadError(explain(f"no image matches {path}", _ENDINGS))
        return images
    raise ImageReadError(explain(f"{path} does not exist", "an image file, a folder or a glob", "check the path"))


_ENDINGS = f"at least one file that ends in one of {' '.join(sorted(IMAGE_SUFFIXES))}"


def _counts(path: Path, root: Path | None = None) -> bool:
    """Whether a file of a folder or a glob is an image by its name; hidden ones, below the root, are not."""
    parts = path.relative_to(root).parts if root is not None else (path.name,)
    return path.suffix.lower() in IMAGE_SUFFIXES and not any(p.startswith(".") for p in parts) and path.is_file()
