"""What attention is trained on: an image, a click, a target a level, and the confidence in each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from arrcoc_sam.errors import DataError, InputError, ShapeError, describe, explain

__all__ = ["AttentionBatch", "AttentionSample", "collate_samples", "flip_sample"]


@dataclass(frozen=True, eq=False)
class AttentionSample:
    """One click and what attention at each level should cover.

    Attributes:
        image: (3, S, S) uint8 RGB, the whole picture resized to a square; None where only targets are read.
        image_key: The same for samples of the same picture, so that a batch holds it once.
        point_xy: (2,) the click, pixel indices of the S × S frame (of the original picture without an image).
        targets: (L, h, w) in [0, 1]: share of each cell that the level's mask covers.
        confidence: (L,) SAM's predicted IoU, raw.
        valid: (L,) which levels count.
    """

    image: UInt8[Tensor, "3 S S"] | None
    image_key: int
    point_xy: Float[Tensor, " 2"]
    targets: Float[Tensor, "L h w"]
    confidence: Float[Tensor, " L"]
    valid: Bool[Tensor, " L"]


@dataclass(frozen=True, eq=False)
class AttentionBatch:
    """K samples of B pictures.

    Attributes:
        images: (B, 3, S, S) uint8; B = 0 where only targets were read.
        image_index: (K,) the picture of each sample.
        points_xy: (K, 2) pixel indices of the frame.
        targets: (K, L, h, w).
        confidence: (K, L).
        valid: (K, L).
    """

    images: UInt8[Tensor, "B 3 S S"]
    image_index: Int64[Tensor, " K"]
    points_xy: Float[Tensor, "K 2"]
    targets: Float[Tensor, "K L h w"]
    confidence: Float[Tensor, "K L"]
    valid: Bool[Tensor, "K L"]

    def __len__(self) -> int:
        return len(self.points_xy)

    def to(self, device: torch.device | str) -> AttentionBatch:
        """The batch on another device."""
        return AttentionBatch(
            *(getattr(self, name).to(device, non_blocking=True) for name in self.__dataclass_fields__)
        )

    def state(self) -> dict[str, Tensor]:
        """Its fields by name, as ``torch.save`` takes them and ``torch.load(weights_only=True)`` gives them back."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def pin_memory(self) -> AttentionBatch:
        """The batch in memory that copies to a GPU without waiting; what ``DataLoader`` calls."""
        return AttentionBatch(*(getattr(self, name).pin_memory() for name in self.__dataclass_fields__))


def collate_samples(samples: Sequence[AttentionSample]) -> AttentionBatch:
    """One batch of samples; a picture that several share is in it once.

    Raises:
        InputError: No samples, or some with pictures and some without.
        ShapeError: Pictures or targets of several sizes.
        DataError: A confidence of a level that counts is not a number.
    """
    if not samples:
        raise InputError(explain("no samples", "at least one"))
    pictures: dict[tuple[int, int], UInt8[Tensor, "3 S S"]] = {}
    places: list[int] = []
    with_image = [sample.image is not None for sample in samples]
    if any(with_image) != all(with_image):
        raise InputError(explain(f"{sum(with_image)} of {len(samples)} samples with a picture", "all of them, or none"))
    for sample in samples:
        if sample.image is not None:
            # Flipped and unflipped views of a picture are two pictures.
            key = (sample.image_key, sample.image.data_ptr())
            pictures.setdefault(key, sample.image)
            places.append(list(pictures).index(key))
    shapes = {tuple(sample.targets.shape) for sample in samples} | set()
    frames = {tuple(picture.shape) for picture in pictures.values()}
    if len(shapes) > 1 or len(frames) > 1:
        raise ShapeError(explain(f"targets of shapes {sorted(shapes)}, pictures of {sorted(frames)}", "one shape each"))
    confidence = torch.stack([sample.confidence for sample in samples])
    valid = torch.stack([sample.valid for sample in samples])
    if not bool(confidence[valid].isfinite().all()):
        raise DataError(
            explain(
                f"a confidence is {confidence[valid][~confidence[valid].isfinite()][0].item()} in a level that counts",
                "finite numbers",
                "mark such levels invalid, or leave them out when the cache is built",
            )
        )
    empty = torch.zeros(0, 3, 1, 1, dtype=torch.uint8)
    return AttentionBatch(
        images=torch.stack(list(pictures.values())) if pictures else empty,
        image_index=torch.tensor(places if places else [0] * len(samples)),
        points_xy=torch.stack([sample.point_xy for sample in samples]),
        targets=torch.stack([sample.targets for sample in samples]),
        confidence=confidence,
        valid=valid,
    )


def flip_sample(sample: AttentionSample) -> AttentionSample:
    """The mirror image, left and right exchanged: picture, click and targets.

    Raises:
        ShapeError: The sample has no picture, so that the width of its frame is not known.
    """
    if sample.image is None:
        raise ShapeError(explain(f"image is {describe(sample.image)}", "a picture to flip"))
    point = sample.point_xy.clone()
    point[0] = sample.image.shape[-1] - 1 - point[0]
    return replace(sample, image=sample.image.flip(-1), point_xy=point, targets=sample.targets.flip(-1))
