"""A COCO file from disk, with no more of it in memory than is needed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from arrcoc_sam.errors import DataError, explain

__all__ = ["packed", "read_coco_json"]

# Boxes, keypoints, captions and whatever else annotations carry is dropped while the text is being parsed.
_KEPT = ("id", "image_id", "category_id", "iscrowd", "segmentation")


def read_coco_json(path: str | os.PathLike[str]) -> dict[str, list[Any]]:
    """The lists of a COCO file by name, annotations stripped to what masks need and their numbers packed.

    Python's floats and lists take ten times the memory of packed numbers, so polygons and run lengths are packed
    record by record while the file is parsed.

    Args:
        path: A JSON file.

    Returns:
        "images" and "annotations", and "categories" and "hierarchies" if the file has them; not checked any further.

    Raises:
        DataError: The file is missing, empty, no JSON, or no COCO file.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig") as file:
            document = json.load(file, object_hook=packed)
    except FileNotFoundError as error:
        raise DataError(explain(f"{path} does not exist", "a COCO JSON file", "check the path")) from error
    except json.JSONDecodeError as error:
        whole = (
            "it is empty" if path.stat().st_size == 0 else f"{error.msg} in line {error.lineno}, column {error.colno}"
        )
        mend = "fetch or write it again; it may be cut off"
        raise DataError(explain(f"{path} is no JSON: {whole}", "a COCO JSON file", mend)) from error
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(explain(f"{path} can't be read as JSON: {error}", "a COCO JSON file in UTF-8")) from error
    if not isinstance(document, dict):
        mend = "a list of results alone, as COCO's evaluation takes it, lacks the images"
        raise DataError(explain(f"{path} holds a {type(document).__name__}", "a dictionary with 'images'", mend))
    lists: dict[str, list[Any]] = {}
    for name, needed in (("images", True), ("annotations", True), ("categories", False), ("hierarchies", False)):
        value = document.get(name)
        if value is None and not needed:
            continue
        if not isinstance(value, list):
            came = f"{path} has no {name!r}" if name not in document else f"{name!r} of {path} is no list"
            raise DataError(explain(came, "COCO's lists 'images' and 'annotations'", "is it a COCO file?"))
        lists[name] = value
    return lists


def packed(record: dict[str, Any]) -> dict[str, Any]:
    """A record while it is parsed: annotations without what is not needed, their numbers as arrays."""
    if "counts" in record:
        return {**record, "counts": _array(record["counts"])}
    if "segmentation" in record and "image_id" in record:
        kept = {key: record[key] for key in _KEPT if key in record}
        if isinstance(kept["segmentation"], list):
            kept["segmentation"] = [_array(ring) for ring in kept["segmentation"]]
        return kept
    return record


def _array(values: Any) -> Any:
    """A list of numbers as an array; anything else as it came, for the checks to find."""
    if not isinstance(values, list) or not values or not all(type(v) in (int, float) for v in values):
        return values
    try:
        return np.array(values)
    except OverflowError:
        return values
