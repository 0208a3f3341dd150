"""Masks of somebody else's whose true IoU is known: degraded ones, and those of another file."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from arrcoc_sam.datasets import CocoAnnotation, CocoDataset, CocoImage
from arrcoc_sam.errors import DataError, ImageReadError, InputError, explain
from arrcoc_sam.images import is_turned
from arrcoc_sam.masks import pairwise_iou
from arrcoc_sam.quality.degradations import DEGRADATIONS, DegradationKind, degrade, mask_context
from arrcoc_sam.training.iou_transfer.masks import ScoredImage
from arrcoc_sam.training.sources import MaskSource

__all__ = ["DegradedMasks", "MatchedMasks", "held_out_count", "split_images"]


@dataclass(frozen=True)
class DegradedMasks(Sequence[ScoredImage]):
    """Masks of a source made wrong in random ways, to a random degree; the truth is the mask that they were made of.

    Attributes:
        source: True masks.
        masks_per_image: The most true masks an image; each is degraded once.
        kinds: In which ways.
        seed: An image's masks depend on the seed and its number alone.
    """

    source: MaskSource
    masks_per_image: int = 8
    kinds: tuple[DegradationKind, ...] = DEGRADATIONS
    seed: int = 0

    @property
    def turned_in_place(self) -> Sequence[Path]:
        """The files of the source's pictures that their EXIF orientation turns at the same size."""
        found: Sequence[Path] = getattr(self.source, "turned_in_place", ())
        return found

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, number: int) -> ScoredImage:  # type: ignore[override]
        """The degraded masks of one image; none where none can be, or it can't be read (with a warning)."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        rng = np.random.default_rng([self.seed, number])
        try:
            masked = self.source[number]
            masks = masked.read_masks(np.arange(masked.num_masks))
        except (ImageReadError, DataError) as error:
            return _left_out(error)
        try:
            donor = self.source[int(rng.integers(len(self.source)))]
            donors = [mask for mask in donor.read_masks(np.arange(donor.num_masks)) if mask.any()]
        except (ImageReadError, DataError):  # it is told of where it is an image of its own; this one does without
            donors = []
        degraded, true_iou = [], []
        for which in rng.permutation(len(masks))[: self.masks_per_image]:
            if not masks[which].any():
                continue
            context = mask_context(masks, int(which), donors)
            kinds = [kind for kind in self.kinds if kind in context.kinds]
            if not kinds:
                continue
            kind, severity = kinds[int(rng.integers(len(kinds)))], 1.0 - rng.random()
            seed = [self.seed, number, int(which)]
            wrong = degrade(masks[which], kind, severity, context=context, seed=seed)
            degraded.append(wrong)
            true_iou.append((wrong & masks[which]).sum() / (wrong | masks[which]).sum())
        none = np.zeros((0, *masked.image.shape[:2]), dtype=bool)
        found = np.stack(degraded) if degraded else none
        return ScoredImage(masked.name, masked.image, found, np.array(true_iou, dtype=np.float64))


@dataclass(frozen=True)
class MatchedMasks(Sequence[ScoredImage]):
    """Masks of one COCO file judged by those of another: a mask means the true mask that it fits best. No crowds.

    Attributes:
        external: Somebody's masks, of a detector or from attention.
        truth: True masks of the same images, matched by file name.
    """

    external: CocoDataset
    truth: CocoDataset

    def __post_init__(self) -> None:
        """Check that the files are about the same images.

        Raises:
            DataError: No image with masks in both, or sizes that differ.
        """
        if not self._pairs:
            came = f"{self.external.path} and {self.truth.path} share no image with masks"
            raise DataError(explain(came, "the same file names in both"))
        for image, known in self._pairs:
            if image.size_hw != known.size_hw:
                came = f"{image.file_name} has size {image.size_hw} in {self.external.path}"
                raise DataError(explain(came, f"{known.size_hw}, as in {self.truth.path}"))

    @cached_property
    def _pairs(self) -> list[tuple[CocoImage, CocoImage]]:
        known = {image.file_name: image for image in self.truth.images if _objects(self.truth, image)}
        return [
            (image, known[image.file_name])
            for image in self.external.images
            if image.file_name in known and _objects(self.external, image)
        ]

    @property
    def turned_in_place(self) -> Sequence[Path]:
        """The files of the pictures that their EXIF orientation turns at the same size; their headers are read now."""
        paths = [self.external.folder / image.file_name for image, _ in self._pairs]
        return [path for path in paths if is_turned(path, in_place=True)]

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, number: int) -> ScoredImage:  # type: ignore[override]
        """The external masks of one image; none where the picture or a mask can't be read (with a warning)."""
        try:
            return self._scored(*self._pairs[number])
        except (ImageReadError, DataError) as error:
            return _left_out(error)

    def _scored(self, image: CocoImage, known: CocoImage) -> ScoredImage:
        masks, truth = (
            torch.stack([annotation.mask() for annotation in _objects(dataset, which)])
            for dataset, which in ((self.external, image), (self.truth, known))
        )
        iou = pairwise_iou(masks[None], truth[None])[0].amax(dim=1)
        return ScoredImage(image.file_name, self.external.load_image(image), masks.numpy(), iou.double().numpy())


def _left_out(error: ImageReadError | DataError) -> ScoredImage:
    warnings.warn(f"Left out of training: {error}", stacklevel=3)
    return ScoredImage("", np.zeros((1, 1, 3), np.uint8), np.zeros((0, 1, 1), dtype=bool), np.zeros(0))


def _objects(dataset: CocoDataset, image: CocoImage) -> list[CocoAnnotation]:
    return [annotation for annotation in dataset.annotations_of(image) if not annotation.crowd]


@dataclass(frozen=True)
class _Part(Sequence[ScoredImage]):
    """Some of the images, in an order."""

    whole: Sequence[ScoredImage]
    numbers: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: int) -> ScoredImage:  # type: ignore[override]
        return self.whole[self.numbers[place]]


def split_images(
    images: Sequence[ScoredImage], held_out: float, *, seed: int = 0
) -> tuple[Sequence[ScoredImage], Sequence[ScoredImage]]:
    """Images to learn from, and images to judge on, at random.

    Args:
        images: At least two; none is read here.
        held_out: Share of the second part.
        seed: Of the draw.

    Raises:
        InputError: A share that leaves one part empty.
    """
    count = held_out_count(len(images), held_out)
    order = tuple(np.random.default_rng(seed).permutation(len(images)).tolist())
    return _Part(images, order[count:]), _Part(images, order[:count])


def held_out_count(num_images: int, held_out: float) -> int:
    """How many images are judged on.

    Raises:
        InputError: A share that leaves one part empty.
    """
    count = round(held_out * num_images)
    if not 0 < count < num_images:
        came = f"held_out={held_out} of {num_images} images"
        raise InputError(explain(came, "a share that leaves images in both parts"))
    return count
