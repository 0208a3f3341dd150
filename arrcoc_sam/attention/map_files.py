"""Which file in a folder of attention maps belongs to an image."""

from __future__ import annotations

import os
from pathlib import Path

from arrcoc_sam.errors import InputError, explain
from arrcoc_sam.image_files import find_by_path_end

__all__ = ["ARRAY_SUFFIXES", "map_file"]

ARRAY_SUFFIXES = (".npy", ".npz", ".png", ".safetensors")


def map_file(folder: Path, image: Path) -> Path:
    """The file that is called like an image, in folders called like the image's, as far as there are any.

    For ``photos/birds/1.jpg`` these are ``photos/birds/1.npy``, ``birds/1.npy`` and ``1.npy`` in the folder, and the
    first that is there is meant; so for the other suffixes, in small or capital letters. The image itself is no map.

    Args:
        folder: Of the maps.
        image: Path of the image.

    Raises:
        InputError: There is none, or there are several that differ by their suffix.
    """
    own = Path(os.path.abspath(image))  # noqa: PTH100 - resolve() would follow links to other names
    stem = own.with_suffix("").relative_to(own.anchor)
    found = find_by_path_end(stem, lambda end: _spelled(folder.joinpath(*end), own)) or []
    if len(found) != 1:
        came = f"{folder} has {len(found)} attention files for the image {image.name}"
        raise InputError(explain(came, f"exactly one of {', '.join(own.stem + suffix for suffix in ARRAY_SUFFIXES)}"))
    return found[0]


def _spelled(stem: Path, image: Path) -> list[Path]:
    """The files of a stem, one a suffix: where case counts, ``.npy`` before ``.NPY``."""
    found = []
    for suffix in ARRAY_SUFFIXES:
        spellings = (stem.with_name(stem.name + spelling) for spelling in (suffix, suffix.upper()))
        path = next((path for path in spellings if path.is_file()), None)
        if path is not None and Path(os.path.abspath(path)) != image:  # noqa: PTH100
            found.append(path)
    return found
