"""True masks of COCO-format data sets, image by image; what can't be read is listed and left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from arrcoc_sam.cli.skipped import record_faults
from arrcoc_sam.datasets import CocoDataset
from arrcoc_sam.datasets.faults import CocoId
from arrcoc_sam.errors import ArrcocSamError, DataError, explain
from arrcoc_sam.masks import pairwise_containment
from arrcoc_sam.quality import AnnotatedImage

__all__ = ["TruthImages"]

_INSIDE = 0.9


class Headers(NamedTuple):
    """What the headers of annotated pictures say.

    Attributes:
        masks_by_image: The number of masks of objects of each image that has some.
        turned_in_place: The pictures that their EXIF orientation turns at the same size.
    """

    masks_by_image: list[int]
    turned_in_place: list[Path]


@dataclass
class TruthImages:
    """Annotated images of a COCO file. Crowds are left out: they are no object.

    Attributes:
        dataset: The file, read leniently.
        faults: File and reason of each record or picture that was left out; grows while images are read.
        fits: Raises an ArrcocSamError for a size (height, width) that the segmenter can't take.
    """

    dataset: CocoDataset
    faults: list[tuple[str, str]] = field(default_factory=list)
    fits: Callable[[tuple[int, int]], object] | None = None

    @classmethod
    def read(cls, path: Path, images: Path | None) -> TruthImages:
        """Read and check the file.

        Raises:
            DataError: It can't be read, or holds no usable mask.
        """
        dataset = CocoDataset.read(path, images=images, strict=False)
        if all(annotation.crowd for annotation in dataset.annotations):
            came = f"{path} has no usable mask"
            if dataset.faults:
                came += f" ({len(dataset.faults)} faults, the first: {dataset.faults[0].message})"
            raise DataError(explain(came, "annotations with segmentations, and their images (--images)"))
        return cls(dataset, list(record_faults(dataset)))

    @property
    def words(self) -> list[str]:
        """A sentence for each fault, which names the file."""
        return [reason if file in reason else f"{file}: {reason}" for file, reason in self.faults]

    @property
    def num_masks(self) -> int:
        """Masks of objects in the file."""
        return sum(not annotation.crowd for annotation in self.dataset.annotations)

    @property
    def num_images(self) -> int:
        """Images with masks of objects."""
        return len(self._annotated)

    @property
    def paths(self) -> list[Path]:
        """The files of the images with masks of objects."""
        annotated = self._annotated
        return [self.dataset.folder / image.file_name for image in self.dataset.images if image.id in annotated]

    @property
    def _annotated(self) -> set[CocoId]:
        return {annotation.image_id for annotation in self.dataset.annotations if not annotation.crowd}

    def read_headers(self) -> Headers:
        """What pictures say before they are decoded.

        Images whose picture is missing, or has another size by its header, are left out, as they will be.
        """
        headers = Headers([], [])
        for image in self.dataset.images:
            objects = sum(not annotation.crowd for annotation in self.dataset.annotations_of(image))
            if not objects or not (self.dataset.folder / image.file_name).is_file():
                continue
            try:
                header = self.dataset.check_header(image)
            except ArrcocSamError:
                continue
            headers.masks_by_image.append(objects)
            if header is not None and header.is_turned(in_place=True):
                headers.turned_in_place.append(self.dataset.folder / image.file_name)
        return headers

    def __len__(self) -> int:
        """Images that have annotations or not."""
        return len(self.dataset)

    def __iter__(self) -> Iterator[AnnotatedImage]:
        """The images with a mask. A mask's level is how many others it lies inside of, 2 at most."""
        for image in self.dataset.images:
            annotations = self.dataset.annotations_of(image)
            kept = [position for position, annotation in enumerate(annotations) if not annotation.crowd]
            if not kept:
                continue
            try:
                pixels = self.dataset.load_image(image)
                if self.fits is not None:
                    self.fits((pixels.shape[0], pixels.shape[1]))
            except ArrcocSamError as error:
                self.faults.append((image.file_name, str(error)))
                continue
            masks = self.dataset.masks(image)[kept].cpu().numpy()
            inside = pairwise_containment(masks, masks).numpy()
            depth = ((inside >= _INSIDE) & (inside.T <= _INSIDE)).sum(axis=1)
            yield AnnotatedImage(str(image.id), pixels, masks, np.minimum(depth, 2))
