"""Data sets of masks in whatever form they come: listed for scoring, and written again with fewer masks or more fields.

One class a form: :class:`~arrcoc_sam.datasets.coco_masks.CocoMasks`, :class:`~arrcoc_sam.datasets.folder.FolderMasks`,
:class:`~arrcoc_sam.datasets.records.ParquetMasks`. None of them holds more than a few records in memory.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa

from arrcoc_sam.datasets.faults import CocoId
from arrcoc_sam.datasets.mask_index import MaskIndex
from arrcoc_sam.errors import DataError, explain

__all__ = ["FORMATS", "Changes", "MaskSet", "files_digest", "open_masks"]

FORMATS = ("coco", "parquet", "folder")
"""COCO's JSON; Parquet with run lengths; a folder of images and PNG masks."""


@runtime_checkable
class Changes(Protocol):
    """What is to become of a data set's masks when it is written again.

    Attributes:
        field_types: Names and types of the values that are written beside each mask.
    """

    field_types: pa.Schema

    def keeps(self, mask_id: CocoId) -> bool:
        """Whether a mask stays."""
        ...

    def keeps_image(self, image_id: CocoId) -> bool:
        """Whether an image stays."""
        ...

    def fields(self, mask_id: CocoId) -> Mapping[str, Any]:
        """Values for ``field_types`` by name, None where one is not known."""
        ...


@runtime_checkable
class MaskSet(Protocol):
    """A data set of masks on disk.

    Attributes:
        path: The file or folder.
        images: What the names of image files are relative to.
        masks: What the names of mask files are relative to; None where masks are in the file.
    """

    path: Path
    images: Path
    masks: Path | None

    @property
    def format(self) -> str:
        """One of :data:`FORMATS`."""
        ...

    def digest(self) -> str:
        """SHA-256 that tells this data set from one that was changed; pictures are not read for it."""
        ...

    def fill(self, index: MaskIndex) -> None:
        """List all images and masks; a mask that can't be used is listed with the reason.

        Raises:
            DataError: The data set can't be read as a whole, or ids repeat.
        """
        ...

    def rewrite(self, target: Path, changes: Changes) -> None:
        """Write the data set again, in its form, whole or not at all. Nothing else of it is touched.

        Raises:
            DataError: It can't be read.
            OutputError: ``target`` can't be written.
        """
        ...


def open_masks(path: str | os.PathLike[str], *, images: str | os.PathLike[str] | None = None) -> MaskSet:
    """A data set by its path.

    A ``.json`` file is COCO's, a ``.parquet`` file or a folder of such is Parquet, another folder has ``images`` and
    ``masks`` in it.

    Args:
        path: File or folder.
        images: The folder that names of image files are relative to. By default that of the file; ``images`` in a
            folder of pictures.

    Raises:
        DataError: There is nothing there, or nothing that is known; the folder of images does not exist.
    """
    from arrcoc_sam.datasets.coco_masks import CocoMasks
    from arrcoc_sam.datasets.folder import FolderMasks
    from arrcoc_sam.datasets.records import ParquetMasks

    place = Path(path).expanduser()
    folder = None if images is None else Path(images).expanduser()
    if folder is not None and not folder.is_dir():
        raise DataError(explain(f"{folder} is no folder", "the folder of images", "check the path"))
    if place.is_dir():
        if (place / "masks").is_dir():
            return FolderMasks(place, images=folder)
        if any(place.glob("*.parquet")):
            return ParquetMasks(place, images=folder)
        expected = "'images' and 'masks' in it, or .parquet files"
        raise DataError(explain(f"the folder {place} holds no data set of masks", expected, "see docs/filtering.md"))
    if not place.exists():
        raise DataError(explain(f"{place} does not exist", "a data set of masks", "check the path"))
    if place.suffix.lower() == ".json":
        return CocoMasks(place, images=folder)
    if place.suffix.lower() == ".parquet":
        return ParquetMasks(place, images=folder)
    expected = "a COCO .json file, a .parquet file, or a folder"
    raise DataError(explain(f"{place} is of no known form", expected, "see docs/filtering.md"))


def files_digest(root: Path, files: Iterable[Path]) -> str:
    """SHA-256 over the contents of one file, or over names, sizes and times of several."""
    listed = list(files)
    if listed == [root]:
        with root.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for path in listed:
        facts = path.stat()
        digest.update(f"{path.relative_to(root)}\0{facts.st_size}\0{facts.st_mtime_ns}\n".encode())
    return digest.hexdigest()
