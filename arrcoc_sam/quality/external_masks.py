"""The external masks that a caller wants scored: checked against the images before any work is done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from arrcoc_sam.errors import InputError, ShapeError, describe, explain
from arrcoc_sam.inputs import as_masks
from arrcoc_sam.prompts.prompt_inputs import checked_image_index
from arrcoc_sam.quality.thresholds import Threshold, binarize, check_soft

__all__ = ["ExternalMasks", "MasksInput"]

MasksInput: TypeAlias = Tensor | np.ndarray | Sequence[Tensor | np.ndarray]
"""(K, H, W), or a list of (H, W) of any sizes."""


@dataclass(frozen=True, eq=False)
class ExternalMasks:
    """K masks, each about one of several images; soft ones are thresholded when a chunk of them is asked for.

    Attributes:
        masks: K tensors (H, W), bool, or floats with a threshold; views of what the caller gave where possible.
        image_index: (K,) int64 on the CPU.
        threshold: What soft masks are cut at; None for bool masks.
        mass_share: For the threshold "mass".
        device: Where the caller's masks lie.
    """

    masks: tuple[Tensor, ...]
    image_index: Int64[Tensor, " K"]
    threshold: Threshold | None
    mass_share: float
    device: torch.device

    @classmethod
    def of(
        cls,
        masks: MasksInput,
        image_index: Any,
        sizes_hw: Sequence[tuple[int, int]],
        *,
        threshold: Threshold | None,
        mass_share: float,
    ) -> ExternalMasks:
        """Check what a caller gave.

        Args:
            masks: (K, H, W), or a list of (H, W).
            image_index: (K,), one number for all, or None with one image.
            sizes_hw: Height and width of each image.
            threshold: Of soft masks; None where the masks are bool.
            mass_share: For the threshold "mass".

        Raises:
            ShapeError: No masks, other axes, or a mask of another size than its image.
            InputError: No image, masks of other dtypes, or an ``image_index`` that is missing or names no image.
        """
        if not sizes_hw:
            raise InputError(explain("no images", "at least one"))
        given = _as_tensors(masks, threshold)
        if image_index is None and len(sizes_hw) > 1:
            came = f"image_index=None with {len(sizes_hw)} images"
            raise InputError(
                explain(came, "the image of each mask, (K,)", "image_index=range(K) for one mask an image")
            )
        if isinstance(image_index, range):
            image_index = list(image_index)
        index = checked_image_index(image_index, len(given), torch.device("cpu"))
        if int(index.max()) >= len(sizes_hw):
            came = f"image_index {int(index.max())} with {len(sizes_hw)} image{'s' if len(sizes_hw) > 1 else ''}"
            raise InputError(explain(came, f"0 to {len(sizes_hw) - 1}"))
        for position, (mask, image) in enumerate(zip(given, index.tolist(), strict=True)):
            if tuple(mask.shape) != tuple(sizes_hw[image]):
                (height, width), (rows, columns) = sizes_hw[image], mask.shape
                came = f"mask {position} has {rows} rows and {columns} columns, image {image} has {height} and {width}"
                mend = "transpose it" if (rows, columns) == (width, height) else "bring it to the image's size"
                raise ShapeError(explain(came, "a mask of its original image's size", mend))
        return cls(given, index, threshold, mass_share, given[0].device)

    def __len__(self) -> int:
        return len(self.masks)

    def chunks(self, pixels: int, most: int) -> Iterator[tuple[Int64[Tensor, " k"], Bool[Tensor, "k H W"]]]:
        """The masks in stacks of one size.

        Args:
            pixels: The most pixels of a stack of more than one mask.
            most: The most masks of a stack.

        Yields:
            Which masks they are, on the CPU, and the bool masks. Every mask comes once, sizes in order of their first
            mask.
        """
        by_size: dict[tuple[int, ...], list[int]] = {}
        for position, mask in enumerate(self.masks):
            by_size.setdefault(tuple(mask.shape), []).append(position)
        for (height, width), positions in by_size.items():
            step = max(1, min(most, pixels // (height * width)))
            for start in range(0, len(positions), step):
                chosen = positions[start : start + step]
                stack = torch.stack([self.masks[position] for position in chosen])
                if self.threshold is not None:
                    stack = binarize(stack, self.threshold, mass_share=self.mass_share)
                yield torch.tensor(chosen), stack


def _as_tensors(masks: MasksInput, threshold: Threshold | None) -> tuple[Tensor, ...]:
    def checked(value: Tensor | np.ndarray, name: str, rank: int) -> Tensor:
        if threshold is not None:
            tensor = check_soft(value, threshold, name=name)
        else:
            soft = "float" in str(getattr(value, "dtype", ""))  # the message on whole numbers promises no floats
            tensor = as_masks(value, name=name, soft=soft)
            if tensor.dtype != torch.bool:
                mend = 'threshold them, or give the estimator a threshold: "otsu", "mean", "mass" or a number'
                raise InputError(explain(f"{name} is {describe(tensor)}", "bool masks", mend))
        if tensor.ndim != rank:
            way: str | None = None
            if rank == 3 and tensor.ndim == 2:
                way = f"{name}[None]"
            elif rank == 3 and tensor.ndim == 4:
                alone = f"without the channel axis: {name}[:, 0]"
                way = alone if tensor.shape[1] == 1 else f"one mask a row, each with the index of its image: {name}[0]"
            raise ShapeError(explain(f"{name} is {describe(value)}", "(K, H, W), or a list of (H, W)", way))
        return tensor

    if isinstance(masks, (Tensor, np.ndarray)):
        tensors = tuple(checked(masks, "masks", 3).unbind())
    elif isinstance(masks, (list, tuple)):
        tensors = tuple(checked(mask, f"masks[{position}]", 2) for position, mask in enumerate(masks))
    else:
        raise InputError(explain(f"masks is {describe(masks)}", "(K, H, W), or a list of (H, W)"))
    if not tensors:
        raise ShapeError(explain(f"masks is {describe(masks)}", "at least one mask"))
    return tensors
