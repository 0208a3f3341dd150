"""How masks become prompts: an interior point, a tight box, low-resolution logits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor

from arrcoc_sam.errors import InputError, ShapeError, UnknownNameError, describe, explain
from arrcoc_sam.geometry import ImageTransform
from arrcoc_sam.inputs import as_masks
from arrcoc_sam.masks import mask_boxes
from arrcoc_sam.masks.components import largest_interior_point

__all__ = [
    "PROMPT_KINDS",
    "MaskPromptParts",
    "PromptFrame",
    "mask_prompt_logits",
    "mask_prompt_parts",
    "mask_prompt_shares",
]

PROMPT_KINDS = ("mask", "point", "box", "mask+point", "mask+box", "mask+point+box")
"""What of a mask can become a prompt."""


@runtime_checkable
class PromptFrame(Protocol):
    """What is asked of a segmenter, to make prompts for it."""

    @property
    def mask_input_size(self) -> tuple[int, int]:
        """Rows and columns of a mask prompt."""
        ...

    @property
    def mask_logit_scale(self) -> float:
        """The logit, say 10, that stands for certainty in a mask prompt."""
        ...

    def transform_for(self, original_hw: tuple[int, int]) -> ImageTransform:
        """The map from an image of this size to the model's frame."""
        ...


class MaskPromptParts(NamedTuple):
    """The parts of K prompts, in the order in which :class:`~arrcoc_sam.prompts.Prompts` takes them."""

    points_xy: Float64[Tensor, "K 1 2"] | None
    labels: Int64[Tensor, "K 1"] | None
    boxes_xyxy: Float64[Tensor, "K 4"] | None
    mask_logits: Float32[Tensor, "K h w"] | None


def mask_prompt_logits(
    masks: Bool[Tensor, "K H W"] | np.ndarray,
    transform: ImageTransform,
    size_hw: tuple[int, int],
    *,
    logit_scale: float = 10.0,
) -> Float32[Tensor, "K h w"]:
    """Masks of the original image as a segmenter's mask prompts.

    Each cell of the low-resolution frame holds the share c of it that the mask covers, by exact area, mapped linearly
    to logits: scale · (2 c - 1), so that a full cell is +scale, an empty one (and padding) -scale, and the mask's
    outline stays at 0.

    Args:
        masks: (K, H, W) bool, at the original image's size.
        transform: The map from the original image to the segmenter's frame.
        size_hw: Rows and columns of the prompt.
        logit_scale: The logit of certainty. SAM's own masks run to about ±7 to ±10.

    Returns:
        (K, h, w) float32 in [-scale, scale].

    Raises:
        InputError: A scale that is not finite and positive.
    """
    if not 0 < logit_scale < float("inf"):
        raise InputError(explain(f"logit_scale={logit_scale}", "a finite number above 0"))
    return (2 * transform.masks_to_grid(as_masks(masks), size_hw) - 1) * logit_scale


def mask_prompt_shares(logits: Float32[Tensor, "K h w"], *, logit_scale: float = 10.0) -> Float32[Tensor, "K h w"]:
    """The share of each cell that the masks cover, from :func:`mask_prompt_logits` of the same scale."""
    return (logits / logit_scale + 1) / 2


def mask_prompt_parts(
    masks: Bool[Tensor, "K H W"] | np.ndarray | Sequence[Bool[Tensor, "_ _"] | np.ndarray],
    segmenter: PromptFrame,
    kind: str,
    *,
    logit_scale: float | None = None,
) -> MaskPromptParts:
    """What :meth:`arrcoc_sam.prompts.Prompts.from_masks` makes its prompts of; see there."""
    if kind not in PROMPT_KINDS:
        raise UnknownNameError(explain(f"kind={kind!r}", f"one of {', '.join(PROMPT_KINDS)}"))
    asked_of: object = segmenter
    if not isinstance(asked_of, PromptFrame):
        mend = 'what load_segmenter answers, such as load_segmenter("tiny")'
        raise InputError(explain(f"segmenter is {describe(asked_of)}", "the segmenter that is asked", mend))
    stacks = _stacks(masks)
    asked = kind.split("+")
    points = labels = boxes = logits = None
    if "point" in asked:
        points = torch.cat([largest_interior_point(stack) for stack in stacks])[:, None]
        labels = torch.where(points.isnan().any(-1), -1, 1)
    if "box" in asked:
        boxes = torch.cat([mask_boxes(stack) for stack in stacks])
    if "mask" in asked:
        scale = segmenter.mask_logit_scale if logit_scale is None else logit_scale
        frames = {hw: segmenter.transform_for(hw) for hw in {_hw(stack) for stack in stacks}}
        size = segmenter.mask_input_size
        logits = torch.cat([mask_prompt_logits(stack, frames[_hw(stack)], size, logit_scale=scale) for stack in stacks])
    return MaskPromptParts(points, labels, boxes, logits)


def _hw(values: Tensor) -> tuple[int, int]:
    return values.shape[-2], values.shape[-1]


def _stacks(masks: Tensor | np.ndarray | Sequence[Tensor | np.ndarray]) -> list[Bool[Tensor, "_ _ _"]]:
    """Masks as stacks of one size each, in order."""
    if isinstance(masks, (Tensor, np.ndarray)):
        stacks = [as_masks(masks, min_rank=3)]
    elif not isinstance(masks, Iterable):
        raise InputError(explain(f"masks is {describe(masks)}", "(K, H, W), or a list of (H, W)"))
    else:
        stacks = [as_masks(mask, name=f"masks[{i}]")[None] for i, mask in enumerate(masks)]
    if not stacks or any(stack.ndim != 3 for stack in stacks) or len(stacks[0]) == 0:
        came = describe(masks) if not stacks else describe(stacks[0])
        raise ShapeError(explain(f"masks is {came}", "(K, H, W) with K >= 1, or a list of (H, W)"))
    return stacks
