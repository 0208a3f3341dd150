"""One image of an atlas: its levels at the lattice of points, and the attention of every source on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float64, UInt8
from torch import Tensor

from arrcoc_sam.attention.maps import AttentionMaps, AttentionSource, ImageLike
from arrcoc_sam.errors import DataError, ImageReadError, explain
from arrcoc_sam.granularity.atlas.store import ImageRecord, Levels
from arrcoc_sam.granularity.planted import centre_prior
from arrcoc_sam.granularity.regions import shells_of
from arrcoc_sam.hierarchy import MaskHierarchy
from arrcoc_sam.images import load_image
from arrcoc_sam.masks import pairwise_intersection
from arrcoc_sam.prompts import Prompts
from arrcoc_sam.prompts.clicks import point_grid
from arrcoc_sam.segmenters.base import Segmenter

__all__ = ["CONTROLS", "AtlasReader", "Hierarchies"]

Hierarchies: TypeAlias = Callable[[ImageLike], MaskHierarchy]
"""Levels of an image from elsewhere, such as human masks, at the image's size."""

CONTROLS = ("centred Gaussian", "uniform")
"""Attention that comes with every atlas and must abstain."""


@dataclass(frozen=True)
class AtlasReader:
    """What turns an image into a record.

    Attributes:
        sources: What makes attention, by name.
        segmenter: What finds levels, unless there are hierarchies.
        hierarchies: Levels from elsewhere.
        points_per_side: Points of the lattice a side.
        square: Crop to the central square first.
    """

    sources: Mapping[str, AttentionSource]
    segmenter: Segmenter | None
    hierarchies: Hierarchies | None
    points_per_side: int
    square: bool

    def read(self, image: ImageLike) -> tuple[ImageRecord, dict[str, tuple[str, ...]]]:
        """The record of an image, and the names of its maps by source.

        Raises:
            ImageReadError: The image can't be read, or its levels from elsewhere can't be used.
            DataError: Sources that do not answer one grid, or depend on points where there are none.
        """
        pixels = load_image(image)
        top, left, side_hw = central_square(pixels.shape[:2]) if self.square else (0, 0, pixels.shape[:2])
        window = (slice(top, top + side_hw[0]), slice(left, left + side_hw[1]))
        cropped = np.ascontiguousarray(pixels[window]) if self.square else pixels
        points = (
            lattice((cropped.shape[0], cropped.shape[1]), self.points_per_side) if self.hierarchies is None else None
        )
        maps = {
            name: source(cropped if self.square else image, points).detach() for name, source in self.sources.items()
        }
        first = self._one_grid(maps, None if points is None else len(points))
        if self.hierarchies is not None:
            try:
                masks = self.hierarchies(image).masks[(..., *window)]
            except DataError as error:  # about this image alone: it is left out, and the rest read
                raise ImageReadError(str(error)) from error
            parts = [masks[k : k + 1] for k in range(len(masks))]
        else:
            parts = self._found(cropped, points)
        return self._record(parts, maps, first), {name: each.names for name, each in maps.items()}

    def _found(self, pixels: UInt8[np.ndarray, "H W 3"], points: Float64[Tensor, "K 2"] | None) -> list[Tensor]:
        if self.segmenter is None or points is None:
            raise DataError(explain("neither a segmenter nor hierarchies were given", "one of them"))
        with torch.no_grad():
            embedding = self.segmenter.encode(pixels)
            candidates = self.segmenter.decode(embedding, Prompts(points_xy=points[:, None]))
        # One prompt at a time: three masks at the image's size are as much as has to be in memory.
        return [candidates[k : k + 1].hierarchy().masks for k in range(len(candidates))]

    def _one_grid(self, maps: Mapping[str, AttentionMaps], num_prompts: int | None) -> AttentionMaps:
        first = next(iter(maps.values()))
        for name, each in maps.items():
            if each.grid_hw != first.grid_hw or not torch.equal(each.valid, first.valid):
                raise DataError(explain(f"source {name!r} answers a grid of {each.grid_hw}", f"{first.grid_hw}"))
            if each.num_prompts is not None and num_prompts is None:
                came = f"source {name!r} depends on the prompt, and hierarchies bring no points"
                raise DataError(explain(came, "a source of one map an image", "query='cls' or 'mean'"))
        return first

    def _record(self, masks: list[Tensor], maps: Mapping[str, AttentionMaps], first: AttentionMaps) -> ImageRecord:
        """Levels are sorted by area within each prompt's masks, whatever crop they have been through."""
        rings, intersections = [], []
        for triple in masks:
            levels = MaskHierarchy.from_masks(triple).masks.cpu()
            intersections.append(pairwise_intersection(levels, levels))
            rings.append(first.transform.masks_to_grid(shells_of(levels), first.grid_hw))
        height, width = first.grid_hw
        valid = first.valid.cpu()
        attention = {name: each.values.cpu() for name, each in maps.items()}
        attention[CONTROLS[0]] = centre_prior(1, (height, width), jitter=0.0) * valid
        attention[CONTROLS[1]] = valid[None] / valid.sum()
        prefix = {
            name: (each.prefix_mass.mean(1) if each.prefix_mass.ndim == 2 else each.prefix_mass).cpu()
            for name, each in maps.items()
            if each.prefix_mass is not None
        }
        empty = torch.zeros(0, 3, height, width)
        return ImageRecord(
            levels=Levels(
                rings=torch.cat(rings) if rings else empty,
                intersections=torch.cat(intersections) if intersections else torch.zeros(0, 3, 3, dtype=torch.int64),
                valid=valid,
            ),
            attention=attention,
            prefix_mass=prefix,
        )


def central_square(size_hw: tuple[int, ...]) -> tuple[int, int, tuple[int, int]]:
    """Top, left and size of the largest square in the middle of an image.

    Example:
        >>> central_square((480, 641))
        (0, 80, (480, 480))
    """
    side = min(size_hw)
    return (size_hw[0] - side) // 2, (size_hw[1] - side) // 2, (side, side)


def lattice(size_hw: tuple[int, int], points_per_side: int) -> Float64[Tensor, "K 2"]:
    """Points at the same places of any image, pixel indices (x, y), row by row.

    Example:
        >>> lattice((4, 8), 2).tolist()
        [[1.5, 0.5], [5.5, 0.5], [1.5, 2.5], [5.5, 2.5]]
    """
    # Pixel indices count from the first pixel's centre, half a pixel from the edge.
    return point_grid(points_per_side) * torch.tensor([size_hw[1], size_hw[0]], dtype=torch.float64) - 0.5
