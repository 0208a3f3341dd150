"""CocoDataset: images and masks of a COCO file, and the nested masks among them as hierarchies."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from jaxtyping import Bool, Float64, UInt8
from torch import Tensor

from arrcoc_sam.datasets.chains import nested_chains
from arrcoc_sam.datasets.coco_json import read_coco_json
from arrcoc_sam.datasets.coco_records import (
    CocoAnnotation,
    CocoHierarchy,
    CocoImage,
    read_annotations,
    read_categories,
    read_hierarchies,
    read_images,
)
from arrcoc_sam.datasets.faults import CocoId, Fault, FaultLog
from arrcoc_sam.errors import DataError, explain
from arrcoc_sam.hierarchy import MaskHierarchy
from arrcoc_sam.hierarchy.levels import LEVELS, clip_levels
from arrcoc_sam.image_files import find_by_path_end
from arrcoc_sam.images import ImageHeader, load_image, read_header
from arrcoc_sam.masks.components import largest_interior_point

__all__ = ["CocoDataset", "human_hierarchies"]


@dataclass(frozen=True, eq=False)
class CocoDataset:
    """Images with masks, read from COCO's JSON; made by :meth:`read`.

    **Nested masks.** COCO has no field for a part of an object, so a file may have one more list, ``"hierarchies"``::

        {"id": 1, "image_id": 7, "whole": 31, "part": 32, "subpart": 35, "point": [120, 84]}

    ``whole``, ``part`` and ``subpart`` are ids of annotations of the image; ``subpart`` may be null, and so may
    ``point``, the click (x, y) in pixel indices that lies on all of them. In a file without that list, hierarchies are
    found by containment (:func:`arrcoc_sam.datasets.chains.nested_chains`); crowd annotations take no part in it.

    Attributes:
        path: The JSON file.
        folder: What file names are relative to.
        images: In the order of the file.
        annotations: In the order of the file.
        categories: Names of the classes by id.
        declared: The file's own hierarchies; None where it has no such list.
        faults: What was left out, when not read strictly.
    """

    path: Path
    folder: Path
    images: tuple[CocoImage, ...]
    annotations: tuple[CocoAnnotation, ...]
    categories: Mapping[CocoId, str]
    declared: tuple[CocoHierarchy, ...] | None = None
    faults: tuple[Fault, ...] = field(default=(), repr=False)

    @classmethod
    def read(
        cls, path: str | os.PathLike[str], *, images: str | os.PathLike[str] | None = None, strict: bool = True
    ) -> CocoDataset:
        """Read and check a file. Masks are kept as compressed run lengths and decoded when asked for.

        Args:
            path: The JSON file: polygons, compressed and uncompressed run lengths, crowds.
            images: The folder that file names are relative to, every one of which must then exist. By default the
                JSON's own, and nobody looks whether the pictures are there.
            strict: Raise at the first record that can't be used. Otherwise it is left out and listed in ``faults``; an
                image's annotations go with it.

        Returns:
            The data set.

        Raises:
            DataError: The file can't be read or is no COCO file; ids repeat; when strict, a picture is missing, an
                annotation is about an unknown image or of an unknown category, its run lengths have another size than
                the image or do not add up, its mask has no pixel, or a hierarchy is inconsistent. The message names
                the file and the record.
        """
        path = Path(path)
        lists = read_coco_json(path)
        log = FaultLog(str(path), strict=strict)
        named = read_images(lists["images"], log)
        folder = path.parent if images is None else Path(images)
        if images is not None:
            _check_pictures(named, folder, log)
        missing = log.ids("image")
        known = {record_id: image for record_id, image in named.items() if record_id not in missing}
        categories = read_categories(lists.get("categories", []), log)
        annotations = read_annotations(lists["annotations"], known, categories, log)
        declared = None
        if "hierarchies" in lists:
            declared = tuple(read_hierarchies(lists["hierarchies"], known, annotations, log).values())
        return cls(
            path,
            folder,
            tuple(known.values()),
            tuple(annotations.values()),
            categories,
            declared,
            tuple(log.faults),
        )

    def __repr__(self) -> str:
        return f"CocoDataset({self.path.name!r}: {len(self.images)} images, {len(self.annotations)} masks)"

    def __len__(self) -> int:
        """The number of images."""
        return len(self.images)

    def image(self, image_id: CocoId) -> CocoImage:
        """The image of an id.

        Raises:
            DataError: There is none.
        """
        if image_id not in self._images_by_id:
            raise DataError(explain(f"{self.path} has no image {image_id!r}", f"one of its {len(self)} ids"))
        return self._images_by_id[image_id]

    def find(self, image_path: str | os.PathLike[str]) -> CocoImage | None:
        """The image whose ``file_name`` ends a path, compared by whole folders and names; None where there is none.

        Of several (``1.jpg`` and ``a/1.jpg`` for ``/data/a/1.jpg``) the longest is meant.

        Raises:
            DataError: Several images have this very file name.
        """
        found = find_by_path_end(Path(image_path).absolute(), self._images_by_parts.get) or []
        if len(found) > 1:
            came = f"{self.path} has {len(found)} images with the file name {found[0].file_name!r}"
            raise DataError(explain(came, "one", "remove the others, or tell them apart by their folders"))
        return found[0] if found else None

    def load_image(self, image: CocoImage) -> UInt8[np.ndarray, "H W 3"]:
        """The picture, upright.

        Raises:
            ImageReadError: It can't be read.
            DataError: It has another size than the file says.
        """
        pixels = load_image(self.folder / image.file_name)
        _check_size(self.path, image, (pixels.shape[0], pixels.shape[1]))
        return pixels

    def check_header(self, image: CocoImage) -> ImageHeader | None:
        """Compare the picture's size with the file's, without decoding the picture; one that can't be read passes.

        Returns:
            The picture's header; None where it can't be read.

        Raises:
            DataError: It has another size than the file says.
        """
        header = read_header(self.folder / image.file_name)
        if header is not None and header.size_hw == image.size_hw[::-1] != image.size_hw:
            self.load_image(image)  # a PNG may say after its pixels that it lies on its side
        elif header is not None:
            _check_size(self.path, image, header.size_hw)
        return header

    def annotations_of(self, image: CocoImage) -> tuple[CocoAnnotation, ...]:
        """The annotations of an image, crowds included, in the order of the file."""
        return tuple(self._annotations_by_image.get(image.id, ()))

    def masks(self, image: CocoImage) -> Bool[Tensor, "N H W"]:
        """The masks of an image, decoded now, in the order of :meth:`annotations_of`."""
        return _stacked(self.annotations_of(image), image)

    def hierarchies(self, image: CocoImage) -> tuple[MaskHierarchy, Float64[Tensor, "K 2"]] | None:
        """The nested masks of an image as they were drawn, with a click for each triple.

        Args:
            image: One of ``images``.

        Returns:
            K triples and their clicks (x, y); None where the image has no nested masks. ``token_index`` counts among
            :meth:`annotations_of`. Declared ones come in the order of the file; a pair's subpart repeats its part and
            is not distinct.

        Raises:
            DataError: A declared triple's masks have no pixel in common, or its point is not on all of them.
        """
        annotations = self.annotations_of(image)
        if self.declared is None:
            positions = [i for i, annotation in enumerate(annotations) if not annotation.crowd]
            masks = _stacked([annotations[i] for i in positions], image)
            chains, points = nested_chains(masks)
            if len(chains) == 0:
                return None
            return MaskHierarchy.from_masks(masks[chains], token_index=torch.tensor(positions)[chains]), points
        triples = self._declared_by_image.get(image.id, ())
        if not triples:
            return None
        position_of = {annotation.id: i for i, annotation in enumerate(annotations)}
        tokens = torch.tensor([[position_of[level] for level in triple.levels] for triple in triples])
        used, rows = torch.unique(tokens, return_inverse=True)
        masks = _stacked([annotations[i] for i in used.tolist()], image)[rows]
        clicks = [self._click(triple, chain) for triple, chain in zip(triples, masks, strict=True)]
        return MaskHierarchy.from_masks(masks, token_index=tokens), torch.stack(clicks)

    def _click(self, triple: CocoHierarchy, masks: Bool[Tensor, "3 H W"]) -> Float64[Tensor, " 2"]:
        """The triple's own point, or the deepest pixel of what its masks have in common."""
        common, place = clip_levels(masks[None])[0, -1], f"{self.path}: hierarchy {triple.id!r}"
        if not bool(common.any()):
            raise DataError(f"{place}: {explain('its masks have no pixel in common', 'masks inside one another')}")
        if triple.point_xy is None:
            return largest_interior_point(common)
        column, row = (min(int(v + 0.5), side - 1) for v, side in zip(triple.point_xy, common.T.shape, strict=True))
        if not bool(common[row, column]):
            outside = [level for level, mask in zip(LEVELS, masks, strict=True) if not bool(mask[row, column])]
            came = f"its point {list(triple.point_xy)} is not on the {' and the '.join(outside)}"
            raise DataError(f"{place}: {explain(came, 'a pixel of all its masks', 'move it, or leave it out')}")
        return torch.tensor(triple.point_xy, dtype=torch.float64)

    @cached_property
    def _images_by_id(self) -> dict[CocoId, CocoImage]:
        return {image.id: image for image in self.images}

    @cached_property
    def _images_by_parts(self) -> dict[tuple[str, ...], list[CocoImage]]:
        named: dict[tuple[str, ...], list[CocoImage]] = {}
        for image in self.images:
            named.setdefault(PurePosixPath(image.file_name).parts, []).append(image)
        return named

    @cached_property
    def _annotations_by_image(self) -> dict[CocoId, list[CocoAnnotation]]:
        grouped: dict[CocoId, list[CocoAnnotation]] = {}
        for annotation in self.annotations:
            grouped.setdefault(annotation.image_id, []).append(annotation)
        return grouped

    @cached_property
    def _declared_by_image(self) -> dict[CocoId, list[CocoHierarchy]]:
        grouped: dict[CocoId, list[CocoHierarchy]] = {}
        for triple in self.declared or ():
            grouped.setdefault(triple.image_id, []).append(triple)
        return grouped


def human_hierarchies(
    coco: CocoDataset | str | os.PathLike[str],
    image_path: str | os.PathLike[str],
    *,
    image_hw: tuple[int, int] | None = None,
) -> tuple[MaskHierarchy, Float64[Tensor, "K 2"]] | None:
    """Levels that people drew on an image, to be analysed in place of a segmenter's.

    Args:
        coco: A data set, or the JSON file (a data set that is read once serves many images).
        image_path: The picture; found in the data set by its name and folders (:meth:`CocoDataset.find`).
        image_hw: The picture's height and width, to be compared with what the file says.

    Returns:
        The triples and their clicks, as :meth:`CocoDataset.hierarchies`, but with NaN as scores: no model predicted an
        IoU. None where the file does not know the picture, or knows no nested masks on it.

    Raises:
        DataError: The file or one of its triples is inconsistent, or the picture has another size.
    """
    dataset = coco if isinstance(coco, CocoDataset) else CocoDataset.read(coco)
    image = dataset.find(image_path)
    if image is None:
        return None
    if image_hw is not None:
        _check_size(dataset.path, image, image_hw)
    found = dataset.hierarchies(image)
    if found is None:
        return None
    hierarchy, points = found
    return replace(hierarchy, scores=torch.full_like(hierarchy.scores, torch.nan)), points


def _check_pictures(images: Mapping[CocoId, CocoImage], folder: Path, log: FaultLog) -> None:
    for image in images.values():
        if not (folder / image.file_name).is_file():
            words = explain(f"{folder / image.file_name} does not exist", "a file", "check the folder of images")
            log.add("image", image.id, f"image {image.id!r}", words)


def _check_size(path: Path, image: CocoImage, image_hw: tuple[int, int]) -> None:
    if image_hw != image.size_hw:
        came = f"{path}: image {image.id!r} has height {image.size_hw[0]} and width {image.size_hw[1]}"
        mend = "correct them, or bring the masks to the picture's size"
        if image_hw == image.size_hw[::-1]:
            came += ", as if drawn on the picture before its EXIF orientation"
            mend = "turn the masks upright with the picture, or take the orientation out of its EXIF data"
        raise DataError(explain(came, f"those of {image.file_name}, upright: {image_hw[0]} and {image_hw[1]}", mend))


def _stacked(annotations: Sequence[CocoAnnotation], image: CocoImage) -> Bool[Tensor, "N H W"]:
    masks = [annotation.mask() for annotation in annotations]
    return torch.stack(masks) if masks else torch.zeros(0, *image.size_hw, dtype=torch.bool)
