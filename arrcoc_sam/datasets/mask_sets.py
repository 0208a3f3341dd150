"""What a data set of masks can do, whatever its form: be listed for scoring, and be written again with changes.

One class a form: :class:`~arrcoc_sam.datasets.coco_masks.CocoMasks`, :class:`~arrcoc_sam.datasets.folder.FolderMasks`,
:class:`~arrcoc_sam.datasets.records.ParquetMasks`. None of them holds more than a few records in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa

from arrcoc_sam.datasets.faults import CocoId
from arrcoc_sam.datasets.mask_index import MaskIndex

__all__ = ["FORMATS", "Changes", "MaskSet", "files_digest"]

FORMATS = ("coco", "parquet", "folder")
"""COCO's JSON; Parquet with run lengths; a folder of images and PNG masks."""


@runtime_checkable
class Changes(Protocol):
    """What is to become of a data set's masks when it is written again.

    Attributes:
        field_types: Names and types of the values that are written beside each mask.
    """

    field_types: pa.Schema

    def keeps(self, mask_id: CocoId | None) -> bool:
        """Whether a mask stays; None is asked of one without an id that can be used."""
        ...

    def keeps_image(self, image_id: CocoId) -> bool:
        """Whether an image stays."""
        ...

    def fields(self, mask_id: CocoId | None) -> Mapping[str, Any]:
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
