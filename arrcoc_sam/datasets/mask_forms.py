"""Which form a data set of masks has: COCO's JSON, Parquet, or a folder of pictures."""

from __future__ import annotations

import os
from pathlib import Path

from arrcoc_sam.datasets.coco_masks import CocoMasks
from arrcoc_sam.datasets.folder import FolderMasks
from arrcoc_sam.datasets.mask_sets import MaskSet
from arrcoc_sam.datasets.records import ParquetMasks, parquet_files
from arrcoc_sam.errors import DataError, InputError, describe, explain

__all__ = ["open_masks"]


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
        InputError: A table or a dictionary in place of the path.
    """
    given: object = path
    if not isinstance(given, (str, os.PathLike)):
        mend = "write it to a file: frame.to_parquet('masks.parquet'), or COCO's dictionary with json.dump"
        raise InputError(explain(f"the data set is {describe(given)}", "the path of a data set of masks", mend))
    place = Path(path).expanduser()
    folder = None if images is None else Path(images).expanduser()
    if folder is not None and not folder.is_dir():
        raise DataError(explain(f"{folder} is no folder", "the folder of images", "check the path"))
    if place.is_dir():
        if (place / "masks").is_dir():
            return FolderMasks(place, images=folder)
        if parquet_files(place):
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
