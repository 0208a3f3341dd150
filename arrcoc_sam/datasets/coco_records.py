"""What a COCO file holds, record by record: images, classes, annotations, hierarchies; checked as they are read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool
from torch import Tensor

from arrcoc_sam.datasets.faults import CocoId, FaultLog
from arrcoc_sam.datasets.ids import as_id, as_whole, other_kind
from arrcoc_sam.datasets.segmentations import segmentation_to_rle
from arrcoc_sam.errors import DataError, describe, explain
from arrcoc_sam.hierarchy.levels import LEVELS
from arrcoc_sam.masks.rle import RLE, decode_rle

__all__ = [
    "CocoAnnotation",
    "CocoHierarchy",
    "CocoImage",
    "read_annotation",
    "read_annotations",
    "read_categories",
    "read_hierarchies",
    "read_image",
    "read_images",
]


@dataclass(frozen=True, slots=True)
class CocoImage:
    """One image of the file.

    Attributes:
        id: Its id.
        file_name: Path of the picture, relative to the folder of images, with forward slashes.
        size_hw: Height and width in pixels.
    """

    id: CocoId
    file_name: str
    size_hw: tuple[int, int]


@dataclass(frozen=True, slots=True)
class CocoAnnotation:
    """One mask of an image, kept as compressed run lengths until it is asked for.

    Attributes:
        id: Its id.
        image_id: The image that it is about.
        category_id: Its class, None where the file gives none.
        crowd: Whether it covers a group of objects (``iscrowd``).
        size_hw: The image's height and width.
        counts: COCO's compressed run lengths; of polygons, those of their union as pycocotools draws it.
        area: Pixels, counted from the mask and not taken from the file; at least 1.
    """

    id: CocoId
    image_id: CocoId
    category_id: CocoId | None
    crowd: bool
    size_hw: tuple[int, int]
    counts: str
    area: int

    @property
    def rle(self) -> RLE:
        """The mask in COCO's compressed form, ready for JSON."""
        return {"size": list(self.size_hw), "counts": self.counts}

    def mask(self) -> Bool[Tensor, "H W"]:
        """The mask, decoded now."""
        return decode_rle(self.rle)


@dataclass(frozen=True, slots=True)
class CocoHierarchy:
    """A whole, its part and the part's subpart, as ids of annotations of one image.

    Attributes:
        id: Its id.
        image_id: The image.
        whole: The outermost mask.
        part: The mask within.
        subpart: The innermost mask, None where there are two levels only.
        point_xy: A pixel (x, y) on all of them, the click that means them; None to have it chosen.
    """

    id: CocoId
    image_id: CocoId
    whole: CocoId
    part: CocoId
    subpart: CocoId | None
    point_xy: tuple[float, float] | None

    @property
    def levels(self) -> tuple[CocoId, CocoId, CocoId]:
        """Three annotations from the outside in; of two levels the inner one is repeated."""
        return self.whole, self.part, self.part if self.subpart is None else self.subpart


def read_images(records: Sequence[Any], log: FaultLog) -> dict[CocoId, CocoImage]:
    """The images by id.

    Raises:
        DataError: Ids that repeat; when strict, the first record that can't be used.
    """
    images: dict[CocoId, CocoImage] = {}
    for place, record_id, record in _identified("image", records, log):
        try:
            images[record_id] = read_image(record_id, record)
        except DataError as error:
            log.add("image", record_id, place, str(error))
    return images


def read_image(record_id: CocoId, record: Mapping[str, Any]) -> CocoImage:
    """One image.

    Raises:
        DataError: It has no file name or no size.
    """
    name, height, width = record.get("file_name"), as_whole(record.get("height")), as_whole(record.get("width"))
    if not isinstance(name, str) or not name.strip():
        raise DataError(explain(f"file_name is {describe(name)}", "the picture's path"))
    if height is None or width is None or min(height, width) < 1:
        came = f"height is {describe(record.get('height'))} and width is {describe(record.get('width'))}"
        raise DataError(explain(came, "whole numbers of pixels, at least 1"))
    return CocoImage(record_id, name.replace("\\", "/"), (height, width))


def read_categories(records: Sequence[Any], log: FaultLog) -> dict[CocoId, str]:
    """Names of the classes by id.

    Raises:
        DataError: Ids that repeat; when strict, a record without an id.
    """
    return {
        record_id: str(record.get("name", record_id)) for _, record_id, record in _identified("category", records, log)
    }


def read_annotations(
    records: Sequence[Any],
    images: Mapping[CocoId, CocoImage],
    categories: Mapping[CocoId, str],
    log: FaultLog,
) -> dict[CocoId, CocoAnnotation]:
    """The annotations by id, their masks checked and compressed.

    Args:
        records: As they stand in the file.
        images: Images that they may be about.
        categories: Classes that they may be of; any where there are none.
        log: Where faults go; annotations of images that have one go without another word.

    Raises:
        DataError: Ids that repeat; when strict, the first record that can't be used.
    """
    dropped = log.ids("image")
    annotations: dict[CocoId, CocoAnnotation] = {}
    for place, record_id, record in _identified("annotation", records, log):
        if as_id(record.get("image_id")) in dropped:
            continue
        try:
            annotations[record_id] = read_annotation(record_id, record, images, categories)
        except DataError as error:
            log.add("annotation", record_id, place, str(error))
    return annotations


def read_hierarchies(
    records: Sequence[Any],
    images: Mapping[CocoId, CocoImage],
    annotations: Mapping[CocoId, CocoAnnotation],
    log: FaultLog,
) -> dict[CocoId, CocoHierarchy]:
    """The nested triples by id; what needs no pixels is checked.

    Raises:
        DataError: Ids that repeat; when strict, the first record that can't be used.
    """
    dropped = log.ids("image")
    hierarchies: dict[CocoId, CocoHierarchy] = {}
    for place, record_id, record in _identified("hierarchy", records, log):
        if as_id(record.get("image_id")) in dropped:
            continue
        try:
            hierarchies[record_id] = _hierarchy(record_id, record, images, annotations)
        except DataError as error:
            log.add("hierarchy", record_id, place, str(error))
    return hierarchies


def read_annotation(
    record_id: CocoId,
    record: Mapping[str, Any],
    images: Mapping[CocoId, CocoImage],
    categories: Mapping[CocoId, str],
    *,
    allow_empty: bool = False,
) -> CocoAnnotation:
    """One annotation, its mask checked and compressed.

    Args:
        record_id: Its id.
        record: As it stands in the file.
        images: Images that it may be about.
        categories: Classes that it may be of; any where there are none.
        allow_empty: Take a mask without a pixel for a mask.

    Raises:
        DataError: It can't be used.
    """
    image, crowd = _image_of(record, images), record.get("iscrowd")
    given, category = record.get("category_id"), as_id(record.get("category_id"))
    if given is not None and (category is None or (categories and category not in categories)):
        expected = "the id of one of 'categories'" if categories else "a whole number"
        mend = (other_kind(category, categories) or "add the category") if categories else None
        raise DataError(explain(f"it is of category {given!r}", expected, mend))
    crowd = 0 if crowd is None else crowd  # null means what a missing one means
    if crowd not in (0, 1):
        raise DataError(explain(f"iscrowd is {describe(crowd)}", "0 or 1"))
    if (segmentation := record.get("segmentation")) is None:
        came, mend = "it has no segmentation: a box at most", "draw its mask, or leave the annotation out"
        raise DataError(explain(came, "polygons or run lengths", mend))
    rle, area = segmentation_to_rle(segmentation, image.size_hw, allow_empty=allow_empty)
    return CocoAnnotation(record_id, image.id, category, bool(crowd), image.size_hw, rle["counts"], area)


def _hierarchy(
    record_id: CocoId,
    record: Mapping[str, Any],
    images: Mapping[CocoId, CocoImage],
    annotations: Mapping[CocoId, CocoAnnotation],
) -> CocoHierarchy:
    image, point = _image_of(record, images), record.get("point")
    found: list[CocoAnnotation] = []
    for level in LEVELS if record.get("subpart") is not None else LEVELS[:2]:
        annotation_id = as_id(record.get(level))
        if annotation_id is None or annotation_id not in annotations:
            came, mend = f"its {level} is {record.get(level)!r}", other_kind(annotation_id, annotations)
            raise DataError(explain(came, "the id of one of the usable 'annotations'", mend))
        if annotations[annotation_id].image_id != image.id:
            came = f"its {level}, annotation {annotation_id!r}, is of image {annotations[annotation_id].image_id!r}"
            raise DataError(explain(came, f"an annotation of image {image.id!r}"))
        found.append(annotations[annotation_id])
    areas = [annotation.area for annotation in found]
    if sorted(areas, reverse=True) != areas:
        came = f"its masks have {', '.join(map(str, areas))} pixels"
        raise DataError(explain(came, "the whole first, the innermost last", "exchange them"))
    if point is not None:
        height, width = image.size_hw
        if not _is_point(point) or not (-0.5 <= point[0] <= width - 0.5 and -0.5 <= point[1] <= height - 0.5):
            raise DataError(explain(f"its point is {point!r}", f"[x, y] in an image of {width} x {height} pixels"))
        point = (float(point[0]), float(point[1]))
    subpart = found[2].id if len(found) > 2 else None
    return CocoHierarchy(record_id, image.id, found[0].id, found[1].id, subpart, point)


def _image_of(record: Mapping[str, Any], images: Mapping[CocoId, CocoImage]) -> CocoImage:
    image_id = as_id(record.get("image_id"))
    if image_id is None or image_id not in images:
        mend = other_kind(image_id, images) or "add the image"
        raise DataError(explain(f"it is about image {record.get('image_id')!r}", "the id of one of 'images'", mend))
    return images[image_id]


def _identified(kind: str, records: Sequence[Any], log: FaultLog) -> Iterator[tuple[str, CocoId, Mapping[str, Any]]]:
    """Each record with its id and the words that name it."""
    seen: set[CocoId] = set()
    for position, record in enumerate(records):
        named = isinstance(record, Mapping)
        record_id = as_id(record.get("id")) if named else None
        if record_id is None:
            came = f"its id is {describe(record.get('id'))}" if named else f"it is {describe(record)}"
            log.add(kind, None, f"{kind} number {position + 1}", explain(came, "a record with a whole number as 'id'"))
            continue
        if record_id in seen:
            mend = "number them anew; results are kept by id"
            raise log.error(explain(f"the {kind} id {record_id!r} occurs twice", "unique ids", mend))
        seen.add(record_id)
        yield f"{kind} {record_id!r}", record_id, record


def _is_point(value: Any) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) == 2
        and all(isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) for v in value)
    )
