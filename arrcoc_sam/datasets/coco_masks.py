"""A COCO file as a data set of masks to be scored and filtered, streamed both ways."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from arrcoc_sam.datasets.coco_json import packed
from arrcoc_sam.datasets.coco_records import read_annotation, read_image
from arrcoc_sam.datasets.faults import CocoId
from arrcoc_sam.datasets.ids import as_id
from arrcoc_sam.datasets.json_stream import stream_json
from arrcoc_sam.datasets.mask_index import IndexedImages, MaskEntry, MaskIndex
from arrcoc_sam.datasets.mask_sets import Changes, files_digest
from arrcoc_sam.errors import DataError, describe, explain
from arrcoc_sam.hierarchy.levels import LEVELS
from arrcoc_sam.report.writing import replacing

__all__ = ["CocoMasks"]


class CocoMasks:
    """Masks of a COCO file: polygons, run lengths of both kinds, crowds; empty masks are masks like others.

    Attributes:
        path: The JSON file.
        images: The folder that file names are relative to.
        masks: None.
    """

    format = "coco"
    masks: Path | None = None

    def __init__(self, path: str | os.PathLike[str], *, images: str | os.PathLike[str] | None = None) -> None:
        self.path = Path(path)
        self.images = self.path.parent if images is None else Path(images)

    def digest(self) -> str:
        """SHA-256 of the file."""
        return files_digest(self.path, [self.path])

    def fill(self, index: MaskIndex) -> None:
        """List images and masks.

        Raises:
            DataError: The file is no COCO file, or ids repeat.
        """
        unusable: dict[CocoId, str] = {}
        categories: dict[CocoId, str] = {}
        seen: set[str] = set()
        annotations_first = False
        for key, value in self._lists():
            seen.add(key)
            if key == "images":
                for record in value:
                    self._add_image(record, index, unusable)
            elif key == "categories":
                named = ((_id_of(record), record) for record in value)
                categories = {key: str(record.get("name", key)) for key, record in named if key is not None}
            elif {"images", "categories"} <= seen:
                self._add_masks(value, index, unusable, categories)
            else:
                annotations_first = True
        for name in ("images", "annotations"):
            if name not in seen:
                expected = "COCO's lists 'images' and 'annotations'"
                raise DataError(explain(f"{self.path} has no list {name!r}", expected, "is it a COCO file?"))
        if annotations_first:  # once more, now that it is known what they are about
            for key, value in self._lists():
                if key == "annotations":
                    self._add_masks(value, index, unusable, categories)

    def rewrite(self, target: Path, changes: Changes) -> None:
        """Write the file again; what is not about masks stays as it is, hierarchies of lost masks go with them.

        An annotation without an id has no score. It stays where masks of no id are kept and its image stays.

        Raises:
            DataError: It can't be read.
            OutputError: ``target`` can't be written.
        """
        with (
            replacing(target) as temporary,
            # half a character can't be UTF-8; its escape is what JSON has for it
            temporary.open("w", encoding="utf-8", errors="backslashreplace") as out,
        ):
            out.write("{")
            for number, (key, value) in enumerate(stream_json(self.path)):
                out.write(f"{',' if number else ''}\n{json.dumps(key)}: ")
                if isinstance(value, Iterator):
                    _write_list(_changed(key, value, changes), out)
                else:
                    json.dump(value, out, ensure_ascii=False)
            out.write("\n}\n")

    def _lists(self) -> Iterator[tuple[str, Iterator[Any]]]:
        for key, value in stream_json(self.path, object_hook=packed):
            if key not in ("images", "annotations", "categories"):
                continue
            if value is None and key == "categories":
                continue
            if not isinstance(value, Iterator):
                came = f"{key!r} of {self.path} is {describe(value)}"
                raise DataError(explain(came, "COCO's lists 'images' and 'annotations'", "is it a COCO file?"))
            yield key, value

    def _add_image(self, record: Any, index: MaskIndex, unusable: dict[CocoId, str]) -> None:
        image_id = _id_of(record)
        if image_id is None:
            return  # nothing can be about it; masks that mean it will say so
        try:
            image = read_image(image_id, record)
            image.file_name.encode()
        except DataError as error:
            unusable[image_id] = f"image {image_id!r}: {error}"
        except UnicodeEncodeError:
            came = f"file_name is {describe(record['file_name'])}, which holds half a character"
            unusable[image_id] = f"image {image_id!r}: {explain(came, 'text', 'rename the picture')}"
        else:
            index.add_image(image.id, image.file_name, image.size_hw)

    def _add_masks(
        self,
        records: Iterator[Any],
        index: MaskIndex,
        unusable: Mapping[CocoId, str],
        categories: Mapping[CocoId, str],
    ) -> None:
        images = IndexedImages(index)
        for position, record in enumerate(records):
            index.add(_entry(position, record, images, unusable, categories))


def _entry(
    position: int,
    record: Any,
    images: IndexedImages,
    unusable: Mapping[CocoId, str],
    categories: Mapping[CocoId, str],
) -> MaskEntry:
    mask_id = _id_of(record)
    image_id = as_id(record.get("image_id")) if isinstance(record, Mapping) else None
    number = images.number(image_id)
    if mask_id is None:
        came = f"its id is {describe(record.get('id'))}" if isinstance(record, Mapping) else f"it is {describe(record)}"
        words = explain(came, "a record with a whole number as 'id'")
        return MaskEntry(None, number, error=f"annotation number {position + 1}: {words}")
    category = as_id(record.get("category_id"))
    name = None if category is None else categories.get(category, str(category))
    if image_id is not None and image_id in unusable:
        return MaskEntry(mask_id, None, name, error=unusable[image_id])
    try:
        mask = read_annotation(mask_id, record, images, categories, allow_empty=True)
    except DataError as error:
        return MaskEntry(mask_id, number, name, error=str(error))
    return MaskEntry(mask_id, number, name, mask.crowd, mask.size_hw, mask.counts)


def _id_of(record: Any) -> CocoId | None:
    return as_id(record.get("id")) if isinstance(record, Mapping) else None


def _changed(key: str, records: Iterator[Any], changes: Changes) -> Iterator[Any]:
    for record in records:
        record_id = _id_of(record)
        if record_id is None:
            if key != "annotations" or _keeps_nameless(record, changes):
                yield record
        elif key == "images":
            if changes.keeps_image(record_id):
                yield record
        elif key == "annotations":
            if changes.keeps(record_id):
                yield {**record, **changes.fields(record_id)}
        elif key == "hierarchies":
            levels = [as_id(record.get(level)) for level in LEVELS]
            if all(changes.keeps(level) for level in levels if level is not None):
                yield record
        else:
            yield record


def _keeps_nameless(record: Any, changes: Changes) -> bool:
    """Whether an annotation without an id stays: with its image, whose id it may lack too."""
    image_id = as_id(record.get("image_id")) if isinstance(record, Mapping) else None
    return changes.keeps(None) and (image_id is None or changes.keeps_image(image_id))


def _write_list(records: Iterator[Any], out: TextIO) -> None:
    out.write("[")
    for number, record in enumerate(records):
        out.write(",\n " if number else "\n ")
        json.dump(record, out, ensure_ascii=False)
    out.write("\n]")
