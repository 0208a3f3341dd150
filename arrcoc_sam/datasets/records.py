"""Parquet with run lengths as a data set of masks to be scored and filtered."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from arrcoc_sam.datasets.ids import as_id, as_whole
from arrcoc_sam.datasets.mask_index import MaskEntry, MaskIndex
from arrcoc_sam.datasets.mask_sets import Changes, files_digest
from arrcoc_sam.datasets.segmentations import segmentation_to_rle
from arrcoc_sam.errors import DataError, describe, explain
from arrcoc_sam.report.writing import replacing

__all__ = ["ParquetMasks", "parquet_files"]

_ROWS = 1024
_FORM = "columns id, image, height, width, counts, and if you like category and crowd"


class ParquetMasks:
    """Rows with an ``id``, an ``image`` (the path of its file) and a mask.

    A mask is ``height``, ``width`` and ``counts`` (COCO's compressed run lengths), or a ``segmentation`` with ``size``
    and ``counts``. ``category`` (the name of a class) and ``crowd`` are read where they are there; other columns are
    carried along.

    Attributes:
        path: A file, or a folder of files of the same columns, taken in the order of their names.
        images: The folder that ``image`` is relative to.
        masks: None.
    """

    format = "parquet"
    masks: Path | None = None

    def __init__(self, path: str | os.PathLike[str], *, images: str | os.PathLike[str] | None = None) -> None:
        self.path = Path(path)
        folder = self.path if self.path.is_dir() else self.path.parent
        self.images = folder if images is None else Path(images)

    def digest(self) -> str:
        """SHA-256 of the file, or over names, sizes and times of the files of a folder."""
        return files_digest(self.path, self._files())

    def fill(self, index: MaskIndex) -> None:
        """List images and masks.

        Raises:
            DataError: A file can't be read or lacks a column, or ids repeat.
        """
        numbers: tuple[str | None, int] = (None, 0)
        for file in self._files():
            with _opened(file) as parquet:
                columns = _columns(parquet.schema_arrow.names, file)
                for batch in _batches(parquet, file, columns):
                    for row in batch.to_pylist():
                        image = row["image"]
                        if isinstance(image, str) and image != numbers[0]:
                            known = index.image(image)
                            numbers = (image, index.add_image(image, image) if known is None else known[0])
                        index.add(_entry(row, numbers[1] if isinstance(image, str) else None))

    def rewrite(self, target: Path, changes: Changes) -> None:
        """Write the rows that stay to one file, fields as further columns after those that are there.

        Raises:
            DataError: It can't be read.
            OutputError: ``target`` can't be written.
        """
        with replacing(target) as temporary:
            writer: pq.ParquetWriter | None = None
            try:
                for table in self._changed(changes):
                    if writer is None:
                        writer = pq.ParquetWriter(temporary, table.schema)
                    writer.write_table(table.cast(writer.schema))
            finally:
                if writer is not None:
                    writer.close()

    def _changed(self, changes: Changes) -> Iterator[pa.Table]:
        for file in self._files():
            with _opened(file) as parquet:
                _columns(parquet.schema_arrow.names, file)
                for batch in _batches(parquet, file):
                    table = pa.Table.from_batches([batch])
                    kept = [changes.keeps(as_id(mask_id)) for mask_id in table["id"].to_pylist()]
                    yield _with_fields(table.filter(pa.array(kept, pa.bool_())), changes)
                if parquet.metadata.num_rows == 0:
                    yield _with_fields(parquet.schema_arrow.empty_table(), changes)

    def _files(self) -> list[Path]:
        if not self.path.is_dir():
            return [self.path]
        return parquet_files(self.path)


def parquet_files(folder: Path) -> list[Path]:
    """The Parquet files in a folder, hidden ones left out, in the order of their names."""
    files = (file for file in folder.glob("*") if file.suffix.lower() == ".parquet")
    return sorted(file for file in files if not file.name.startswith("."))


def _entry(row: Mapping[str, Any], image: int | None) -> MaskEntry:
    mask_id, category = as_id(row["id"]), row.get("category")
    name = None if category is None else str(category)
    if mask_id is None:
        words = explain(f"a mask of {row['image']!r} has the id {describe(row['id'])}", "a whole number or a string")
        return MaskEntry(None, image, name, error=words)
    if image is None:
        words = explain(f"its image is {describe(row['image'])}", "the path of a file")
        return MaskEntry(mask_id, None, name, error=words)
    runs = row.get("segmentation")
    if "segmentation" not in row:
        runs = {"size": [row["height"], row["width"]], "counts": row["counts"]}
    try:
        size_hw = _size(runs)
        rle, _ = segmentation_to_rle(runs, size_hw, allow_empty=True)
    except DataError as error:
        return MaskEntry(mask_id, image, name, error=str(error))
    return MaskEntry(mask_id, image, name, bool(row.get("crowd")), size_hw, rle["counts"])


def _size(runs: Any) -> tuple[int, int]:
    if not isinstance(runs, Mapping):
        mend = "bring polygons as COCO JSON, or draw them as run lengths" if isinstance(runs, list) else None
        raise DataError(explain(f"the segmentation is {describe(runs)}", "'size' and 'counts'", mend))
    size = runs.get("size")
    if not (isinstance(size, list) and len(size) == 2):
        raise DataError(explain(f"the mask's size is {describe(size)}", "whole numbers: height, width"))
    height, width = (as_whole(side) for side in size)
    if height is None or width is None:
        raise DataError(explain(f"the mask's size is {size}", "whole numbers: height, width"))
    return height, width


def _with_fields(table: pa.Table, changes: Changes) -> pa.Table:
    fields = [changes.fields(as_id(mask_id)) for mask_id in table["id"].to_pylist()]
    for field in changes.field_types:
        values = pa.array([each[field.name] for each in fields], field.type)
        place = table.schema.get_field_index(field.name)
        table = table.append_column(field, values) if place < 0 else table.set_column(place, field, values)
    return table


def _columns(names: list[str], file: Path) -> list[str]:
    mask = ["segmentation"] if "segmentation" in names else ["height", "width", "counts"]
    missing = [name for name in ("id", "image", *mask) if name not in names]
    if missing:
        raise DataError(explain(f"{file} has no column {missing[0]!r}", _FORM))
    return ["id", "image", *mask, *(name for name in ("category", "crowd") if name in names)]


def _opened(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(file, error) from error


def _batches(parquet: pq.ParquetFile, file: Path, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    batches = parquet.iter_batches(_ROWS, columns=columns)
    while True:
        try:
            batch = next(batches, None)
        except (OSError, pa.ArrowException) as error:  # a damaged page shows when it is read
            raise _unreadable(file, error) from error
        if batch is None:
            return
        yield batch


def _unreadable(file: Path, error: Exception) -> DataError:
    return DataError(explain(f"{file} can't be read as Parquet: {error}", "a whole Parquet file"))
