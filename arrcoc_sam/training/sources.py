"""What training draws its targets from: scenes, COCO files, folders, nested triples, and mixtures of them.

A source is indexed by image. It reads nothing but what is asked for, and is the same whatever was read before, so that
batches can be drawn by any number of processes and again after a kill.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int64, UInt8
from numpy import ndarray

from arrcoc_sam.datasets import CocoDataset, CocoImage
from arrcoc_sam.datasets.folder import read_mask_file
from arrcoc_sam.datasets.mask_index import MaskIndex
from arrcoc_sam.datasets.mask_sets import MaskSet
from arrcoc_sam.errors import DataError, InputError, explain
from arrcoc_sam.images import header_size, load_image, read_header
from arrcoc_sam.masks.rle import decode_rle
from arrcoc_sam.scenes.scene import Scene

__all__ = [
    "CocoSource",
    "MaskSetSource",
    "MaskSource",
    "MaskedImage",
    "MixedSource",
    "SceneCollection",
    "SceneSource",
    "TripleSource",
]

ReadMasks = Callable[[Int64[ndarray, " n"]], Bool[ndarray, "n H W"]]


@dataclass(frozen=True, eq=False)
class MaskedImage:
    """An image, and its masks when they are asked for.

    Attributes:
        name: What messages call it.
        image: (H, W, 3) uint8 RGB.
        num_masks: How many there are.
        read_masks: Some of them by number, (n, H, W) bool.
        read_click_regions: For the same numbers, where a click means the mask, inside it; None: anywhere in it.
    """

    name: str
    image: UInt8[ndarray, "H W 3"]
    num_masks: int
    read_masks: ReadMasks
    read_click_regions: ReadMasks | None = None


@runtime_checkable
class MaskSource(Protocol):
    """Images with masks, by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> MaskedImage: ...


@runtime_checkable
class SceneCollection(Protocol):
    """A sized, indexable collection of scenes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Scene: ...


class SceneSource:
    """Procedural scenes; every node of whatever level is a target."""

    def __init__(self, scenes: SceneCollection) -> None:
        """Wrap a bank, a split or a list of scenes.

        Raises:
            InputError: There is none.
        """
        if len(scenes) == 0:
            raise InputError(explain("no scenes", "at least one"))
        self.scenes = scenes

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> MaskedImage:
        """One scene; its masks are made when they are asked for."""
        scene = self.scenes[index]
        return MaskedImage(f"scene {scene.seed}", scene.image, len(scene), lambda chosen: scene.masks[chosen])


class CocoSource:
    """The instances of a COCO file, crowds left out.

    Args:
        dataset: Read with ``images=``, strictly, so that what is wrong is found before training begins.

    Attributes:
        turned_in_place: The files of those pictures that their EXIF orientation turns at the same size.

    Raises:
        DataError: No mask, or a picture of another size than the file says.
    """

    def __init__(self, dataset: CocoDataset) -> None:
        self.dataset = dataset
        found = [(image, [a for a in dataset.annotations_of(image) if not a.crowd]) for image in dataset.images]
        self._images = [(image, annotations) for image, annotations in found if annotations]
        if not self._images:
            raise DataError(explain(f"{dataset.path} has no mask that is not a crowd", "at least one"))
        self.turned_in_place = _checked(dataset, [image for image, _ in self._images])

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> MaskedImage:
        """One image that has masks.

        Raises:
            ImageReadError: The picture can't be read.
            DataError: It has another size than the file says.
        """
        image, annotations = self._images[index]
        pixels = self.dataset.load_image(image)

        def read(chosen: ndarray) -> ndarray:
            return np.stack([annotations[i].mask().numpy() for i in chosen])

        return MaskedImage(image.file_name, pixels, len(annotations), read)


class TripleSource:
    """Nested triples of a COCO file: whole, part and subpart of one click, each a target of its own.

    The click of a target is drawn from the innermost mask of its triple, so that it means all three: what the prompt
    leaves open is open in training too.

    Args:
        dataset: With declared hierarchies, or masks that lie in one another.

    Attributes:
        turned_in_place: The files of those pictures that their EXIF orientation turns at the same size.

    Raises:
        DataError: No triple, or a picture of another size than the file says.
    """

    def __init__(self, dataset: CocoDataset) -> None:
        self.dataset = dataset
        nested = None if dataset.declared is None else {triple.image_id for triple in dataset.declared}
        self._images = [
            image
            for image in dataset.images
            if (image.id in nested if nested is not None else dataset.hierarchies(image) is not None)
        ]
        if not self._images:
            mend = "use kind = 'coco' for masks that do not nest"
            raise DataError(explain(f"{dataset.path} has no nested masks", "at least one triple", mend))
        self.turned_in_place = _checked(dataset, self._images)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> MaskedImage:
        """One image that has triples.

        Raises:
            ImageReadError: The picture can't be read.
            DataError: It has another size than the file says, or a triple is inconsistent.
        """
        image = self._images[index]
        pixels = self.dataset.load_image(image)
        found = self.dataset.hierarchies(image)
        if found is None:
            raise DataError(explain(f"{image.file_name} has no nested masks", "at least one triple"))
        masks, distinct = found[0].masks.numpy(), found[0].distinct.numpy()
        triple, level = np.nonzero(distinct)
        innermost = np.logical_and.reduce(masks, axis=1)

        def read(chosen: ndarray) -> ndarray:
            return np.asarray(masks[triple[chosen], level[chosen]])

        def regions(chosen: ndarray) -> ndarray:
            return np.asarray(innermost[triple[chosen]])

        return MaskedImage(image.file_name, pixels, len(triple), read, regions)


class MaskSetSource:
    """A folder of images and masks, or Parquet: whatever :func:`arrcoc_sam.datasets.mask_forms.open_masks` opens.

    Args:
        masks: The data set; a mask that it lists as unusable is refused here.

    Attributes:
        turned_in_place: The files of those pictures that their EXIF orientation turns at the same size.

    Raises:
        DataError: No mask, an unusable one, or one of another size than its image.
    """

    def __init__(self, masks: MaskSet) -> None:
        self._set = masks
        rows: dict[str, list[dict[str, Any]]] = {}
        with tempfile.TemporaryDirectory() as folder, MaskIndex(Path(folder) / "index", name=str(masks.path)) as index:
            masks.fill(index)
            for part in index.parts(10_000):
                for row in part.to_pylist():
                    if row["error"] is not None:
                        raise DataError(f"{masks.path}: mask {row['id']!r}: {row['error']}")
                    if not row["crowd"]:
                        rows.setdefault(row["image"], []).append(row)
        if not rows:
            raise DataError(explain(f"{masks.path} has no masks", "at least one"))
        self._images = list(rows.items())
        self.turned_in_place: list[Path] = []
        for name, some in self._images:
            header = read_header(masks.images / name)
            if header is None:
                continue
            for row in some:
                known = row["counts"] is not None
                mask_hw = (row["height"], row["width"]) if known else header_size(self._file(row), upright=False)
                if mask_hw is not None and mask_hw != header.size_hw:
                    pixels = load_image(masks.images / name)  # a PNG may say after its pixels that it lies on its side
                    self._check_size(row, mask_hw, (pixels.shape[0], pixels.shape[1]))
            if header.is_turned(in_place=True):
                self.turned_in_place.append(masks.images / name)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> MaskedImage:
        """One image that has masks.

        Raises:
            ImageReadError: A picture can't be read.
        """
        name, rows = self._images[index]
        pixels = load_image(self._set.images / name)

        def read(chosen: ndarray) -> ndarray:
            return np.stack([self._mask(rows[i], (pixels.shape[0], pixels.shape[1])) for i in chosen])

        return MaskedImage(name, pixels, len(rows), read)

    def _mask(self, row: dict[str, Any], size_hw: tuple[int, int]) -> Bool[ndarray, "H W"]:
        if row["counts"] is not None:
            mask = decode_rle({"size": [row["height"], row["width"]], "counts": row["counts"]})
        else:
            mask = read_mask_file(self._file(row))
        self._check_size(row, (mask.shape[0], mask.shape[1]), size_hw)
        return mask.numpy()

    def _file(self, row: dict[str, Any]) -> Path:
        return Path(os.fspath(self._set.masks or self._set.path), row["mask_file"])

    def _check_size(self, row: dict[str, Any], mask_hw: tuple[int, int], size_hw: tuple[int, int]) -> None:
        if mask_hw != size_hw:
            came = f"{self._set.path}: mask {row['id']!r} has {mask_hw[0]} rows and {mask_hw[1]} columns"
            raise DataError(explain(came, f"those of its image, {size_hw[0]} and {size_hw[1]}"))


class MixedSource:
    """Several sources as one: each is drawn from by its weight, whatever its size.

    Args:
        sources: At least one.
        weights: One positive number each.
    """

    def __init__(self, sources: Sequence[MaskSource], weights: Sequence[float]) -> None:
        if len(sources) == 0 or len(sources) != len(weights) or not all(0 < w < float("inf") for w in weights):
            came = f"{len(sources)} sources with weights {list(weights)}"
            raise InputError(explain(came, "at least one source, and a positive weight for each"))
        self.sources = tuple(sources)
        # Every image occurs at least once, those of small sources with large weights several times.
        longest = max(len(source) / weight for source, weight in zip(sources, weights, strict=True))
        self._counts = [round(longest * weight) for weight in weights]

    @property
    def turned_in_place(self) -> list[Path]:
        """The files of pictures that their EXIF orientation turns at the same size, each once."""
        return list(dict.fromkeys(path for source in self.sources for path in getattr(source, "turned_in_place", ())))

    def __len__(self) -> int:
        return sum(self._counts)

    def __getitem__(self, index: int) -> MaskedImage:
        """An image of the source that the number falls to."""
        for source, count in zip(self.sources, self._counts, strict=True):
            if index < count:
                return source[index % len(source)]
            index -= count
        raise IndexError(index)


def _checked(dataset: CocoDataset, images: Sequence[CocoImage]) -> list[Path]:
    """Compare the sizes of pictures with the file's, and answer those that are turned at the same size."""
    turned = []
    for image in images:
        header = dataset.check_header(image)
        if header is not None and header.is_turned(in_place=True):
            turned.append(dataset.folder / image.file_name)
    return turned
