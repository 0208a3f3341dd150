"""ImageEmbedding: what a segmenter's encoder makes of images, once, for any number of prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from arrcoc_sam.errors import EmbeddingMismatchError, InputError, ShapeError, explain, listed
from arrcoc_sam.geometry import ImageTransform
from arrcoc_sam.inputs import Rows, kept_rows

__all__ = ["ImageEmbedding"]


@dataclass(frozen=True, eq=False)
class ImageEmbedding:
    """Features of N images, which may differ in size, and what is needed to prompt for masks in them.

    Attributes:
        features: Tensors by name, each with one row an image. What they are is the segmenter's business; SAM 1 has
            one, ``image`` (N, C, h, w), float32.
        transforms: For each image, the map to the model's frame.
        checkpoint_hash: Of the segmenter that made it; another one refuses it.
    """

    features: Mapping[str, Tensor]
    transforms: tuple[ImageTransform, ...]
    checkpoint_hash: str

    def __post_init__(self) -> None:
        for name, values in self.features.items():
            if len(values) != len(self.transforms):
                came = f"feature {name!r} of {len(values)} images with {len(self.transforms)} transforms"
                raise ShapeError(explain(came, "one row an image"))

    def __len__(self) -> int:
        return len(self.transforms)

    def __repr__(self) -> str:
        """Names and sizes instead of all the numbers."""
        shapes = ", ".join(f"{name} {tuple(values.shape)}" for name, values in self.features.items())
        sizes = listed([f"{height} x {width}" for height, width in self.sizes_hw])
        return f"ImageEmbedding({len(self)} images: {sizes}; {shapes}; checkpoint {self.checkpoint_hash})"

    def __getitem__(self, index: Rows) -> ImageEmbedding:
        """Some of the images; an integer gives an embedding of one image."""
        rows = kept_rows(index, len(self), "image")
        if isinstance(rows, slice):
            features = {name: values[rows] for name, values in self.features.items()}
            return replace(self, features=features, transforms=self.transforms[rows])
        images = torch.arange(len(self))[rows if isinstance(rows, Tensor) else list(rows)]
        features = {name: values[images.to(values.device)] for name, values in self.features.items()}
        return replace(self, features=features, transforms=tuple(self.transforms[image] for image in images.tolist()))

    def __iter__(self) -> Iterator[ImageEmbedding]:
        return (self[index] for index in range(len(self)))

    @property
    def sizes_hw(self) -> tuple[tuple[int, int], ...]:
        """Height and width of each original image."""
        return tuple(transform.original_hw for transform in self.transforms)

    def to(self, device: torch.device | str) -> ImageEmbedding:
        """The embedding on another device; decoding takes what it needs from wherever it lies."""
        return replace(self, features={name: values.to(device) for name, values in self.features.items()})

    @classmethod
    def cat(cls, embeddings: Sequence[ImageEmbedding]) -> ImageEmbedding:
        """One embedding of the images of several.

        Raises:
            InputError: There is nothing to join.
            EmbeddingMismatchError: They come from different segmenters.
        """
        if not embeddings:
            raise InputError(explain("no embeddings", "at least one to join"))
        if len({embedding.checkpoint_hash for embedding in embeddings}) > 1:
            raise EmbeddingMismatchError(explain("embeddings of different segmenters", "of one and the same"))
        names = embeddings[0].features
        return cls(
            features={name: torch.cat([embedding.features[name] for embedding in embeddings]) for name in names},
            transforms=tuple(transform for embedding in embeddings for transform in embedding.transforms),
            checkpoint_hash=embeddings[0].checkpoint_hash,
        )
