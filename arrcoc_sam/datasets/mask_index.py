"""The masks of a data set brought into the order of its images, on disk: millions of them in a few megabytes of memory.

Data sets list masks in any order, and an image should be encoded once for all of its own. SQLite sorts them, sees to it
that ids are unique, and knows which image an id means; what comes out are tables of masks, whole images in each.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from arrcoc_sam.datasets.coco_records import CocoImage
from arrcoc_sam.datasets.faults import CocoId
from arrcoc_sam.errors import DataError, describe, explain

__all__ = ["IndexedImages", "MaskEntry", "MaskIndex", "record_schema"]

_TABLES = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA temp_store = FILE;
PRAGMA cache_size = -8000;
CREATE TABLE images (number INTEGER PRIMARY KEY, id UNIQUE, file, height, width);
CREATE TABLE masks
  (position INTEGER PRIMARY KEY, id UNIQUE, image, category, crowd, height, width, counts, mask_file, error);
"""
_RECORDS = """
SELECT position, masks.id, images.id, file, category, crowd, masks.height, masks.width, counts, mask_file, error
FROM masks LEFT JOIN images ON images.number = masks.image ORDER BY masks.image IS NULL, masks.image, position
"""


@dataclass(frozen=True, slots=True)
class MaskEntry:
    """One mask as a data set lists it.

    Attributes:
        id: Its id; None only where ``error`` says why.
        image: The number of its image in the index; None where it has none.
        category: The name of its class.
        crowd: Whether it covers a group of objects.
        size_hw: Its height and width, where the data set states them.
        counts: COCO's compressed run lengths, or
        mask_file: a picture of it, relative to the folder of masks.
        error: Why it can't be used.
    """

    id: CocoId | None
    image: int | None
    category: str | None = None
    crowd: bool = False
    size_hw: tuple[int, int] | None = None
    counts: str | None = None
    mask_file: str | None = None
    error: str | None = None


class MaskIndex:
    """Masks and images of one data set, to be filled once and then read in order.

    Args:
        path: A file that does not exist yet; the caller removes it.
        name: What messages call the data set.
    """

    def __init__(self, path: Path, *, name: str) -> None:
        self.name = name
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.executescript(_TABLES)
        self._database.execute("BEGIN")

    def __enter__(self) -> MaskIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def add_image(self, image_id: CocoId, file: str, size_hw: tuple[int, int] | None = None) -> int:
        """Take in an image; answers its number.

        Args:
            image_id: Unique among the images.
            file: Its path, relative to the folder of images.
            size_hw: Height and width where the data set states them.

        Raises:
            DataError: The id occurs twice.
        """
        command = "INSERT INTO images (id, file, height, width) VALUES (?, ?, ?, ?)"
        return self._insert("image", image_id, command, (image_id, file, *(size_hw or (None, None))))

    def add(self, entry: MaskEntry) -> None:
        """Take in a mask.

        Raises:
            DataError: The id occurs twice.
        """
        columns = "id, image, category, crowd, height, width, counts, mask_file, error"
        height, width = entry.size_hw or (None, None)
        category = entry.category
        if category is not None:  # JSON can hold half a character, a name in UTF-8 its escape
            category = category.encode("utf-8", "backslashreplace").decode()
        about = (entry.id, entry.image, category, entry.crowd)
        mask = (height, width, entry.counts, entry.mask_file, entry.error)
        self._insert(
            "mask", entry.id, f"INSERT INTO masks ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", about + mask
        )

    def __len__(self) -> int:
        """The number of masks, those that can't be used included."""
        (count,) = self._database.execute("SELECT count(*) FROM masks").fetchone()
        return int(count)

    @property
    def num_images(self) -> int:
        """The number of images, those without masks included."""
        (count,) = self._database.execute("SELECT count(*) FROM images").fetchone()
        return int(count)

    def image_ids(self) -> Iterator[CocoId]:
        """The ids of the images, in the order in which they came."""
        return (row[0] for row in self._database.execute("SELECT id FROM images ORDER BY number"))

    def image(self, image_id: object) -> tuple[int, CocoImage] | None:
        """Number and record of the image of an id; None where there is none. An unknown size is 0 x 0."""
        if not isinstance(image_id, (int, str)):
            return None
        command = "SELECT number, file, height, width FROM images WHERE id = ?"
        try:
            row = self._database.execute(command, (image_id,)).fetchone()
        except OverflowError:
            return None
        return None if row is None else (row[0], CocoImage(image_id, row[1], (row[2] or 0, row[3] or 0)))

    def parts(self, num_masks: int) -> Iterator[pa.Table]:
        """The masks in the order of the images, and of the data set within each.

        Args:
            num_masks: A part ends with the image that fills it so far.

        Yields:
            Tables of :func:`record_schema`.

        Raises:
            DataError: Some ids are numbers and others strings.
        """
        schema = record_schema(self._id_type("masks"), self._id_type("images"))
        rows: list[tuple[Any, ...]] = []
        with closing(self._database.execute(_RECORDS)) as cursor:
            for row in cursor:
                if len(rows) >= num_masks and (row[2] is None or row[2] != rows[-1][2]):
                    yield _table(rows, schema)
                    rows = []
                rows.append((*row[:5], bool(row[5]), *row[6:]))
        if rows:
            yield _table(rows, schema)

    def select(self, ids: Iterable[CocoId]) -> list[dict[str, Any]]:
        """The records of some masks, as dictionaries, in the order of the ids; of unknown ones there are none."""
        command = _RECORDS.replace(" ORDER BY", " WHERE masks.id = ? ORDER BY")
        rows = [self._database.execute(command, (mask_id,)).fetchone() for mask_id in ids]
        names = record_schema(pa.int64(), pa.int64()).names
        return [dict(zip(names, row, strict=True)) for row in rows if row is not None]

    def _id_type(self, table: str) -> pa.DataType:
        kinds = {kind for (kind,) in self._database.execute(f"SELECT DISTINCT typeof(id) FROM {table}")} - {"null"}
        if kinds == {"integer", "text"}:
            came = f"{self.name}: some ids of {table} are numbers and others strings"
            raise DataError(explain(came, "ids of one kind", "number them anew; results are kept by id"))
        return pa.string() if kinds == {"text"} else pa.int64()

    def _insert(self, kind: str, record_id: CocoId | None, command: str, values: tuple[Any, ...]) -> int:
        try:
            return int(self._database.execute(command, values).lastrowid or 0)
        except sqlite3.IntegrityError as error:
            came, mend = f"{self.name}: the {kind} id {record_id!r} occurs twice", "number them anew"
            raise DataError(explain(came, "unique ids, by which results are kept", mend)) from error
        except (OverflowError, UnicodeEncodeError) as error:
            came = f"{self.name}: the {kind} id {describe(record_id)} can't be kept ({error})"
            raise DataError(explain(came, "whole numbers of 64 bits, or strings")) from error


class IndexedImages(Mapping[CocoId, CocoImage]):
    """The images of an index by id, for reading masks against."""

    def __init__(self, index: MaskIndex) -> None:
        self._index = index
        self._last: tuple[object, tuple[int, CocoImage] | None] = (None, None)

    def __getitem__(self, image_id: CocoId) -> CocoImage:
        return self._found(image_id)[1]

    def __contains__(self, image_id: object) -> bool:
        try:
            self._found(image_id)
        except KeyError:
            return False
        return True

    def __len__(self) -> int:
        return self._index.num_images

    def __iter__(self) -> Iterator[CocoId]:
        return self._index.image_ids()

    def number(self, image_id: object) -> int | None:
        """The number of an image in the index, None where it has none."""
        return self._found(image_id)[0] if image_id in self else None

    def _found(self, image_id: object) -> tuple[int, CocoImage]:
        # masks of one image often come in a row, and each looks it up several times
        if self._last[1] is None or self._last[0] != image_id or type(self._last[0]) is not type(image_id):
            self._last = (image_id, self._index.image(image_id))
        if self._last[1] is None:
            raise KeyError(image_id)
        return self._last[1]


def record_schema(mask_id: pa.DataType, image_id: pa.DataType) -> pa.Schema:
    """What is known of a mask before it is scored.

    ``position`` is its place in the data set; ``height`` and ``width`` are the mask's as the data set states them, and
    null where it does not; one of ``counts`` and ``mask_file`` holds the mask, unless ``error`` says why there is none.
    """
    return pa.schema(
        {
            "position": pa.int64(),
            "id": mask_id,
            "image_id": image_id,
            "image": pa.string(),
            "category": pa.string(),
            "crowd": pa.bool_(),
            "height": pa.int32(),
            "width": pa.int32(),
            "counts": pa.string(),
            "mask_file": pa.string(),
            "error": pa.string(),
        }
    )


def _table(rows: list[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    columns = [pa.array(values, type=field.type) for values, field in zip(zip(*rows, strict=True), schema, strict=True)]
    return pa.table(columns, schema=schema)
