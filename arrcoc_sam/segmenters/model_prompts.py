"""Prompts on their way into a model: checked against the images, and in the model's own coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from arrcoc_sam.errors import InputError, explain
from arrcoc_sam.geometry import ImageTransform
from arrcoc_sam.prompts import Prompts

__all__ = ["ModelPrompts", "check_image_index", "check_inside"]


@dataclass(frozen=True, eq=False)
class ModelPrompts:
    """k prompts of one signature in the model's own convention, on its device.

    Attributes:
        points_xy: (k, n, 2) float32, original pixel indices times the frame's scale (SAM's x · new/old), without the
            half pixel that prompt encoders add; or None.
        labels: (k, n) int64, 1 foreground, 0 background; None without points.
        boxes_xyxy: (k, 4) float32, in the same convention; or None.
        mask_logits: (k, 1, h, w) float32, or None.
    """

    points_xy: Float[Tensor, "k n 2"] | None
    labels: Int[Tensor, "k n"] | None
    boxes_xyxy: Float[Tensor, "k 4"] | None
    mask_logits: Float[Tensor, "k 1 h w"] | None

    @classmethod
    def of(cls, prompts: Prompts, transforms: Sequence[ImageTransform], device: torch.device) -> ModelPrompts:
        """Scaled in float64, as segment-anything's reference code does, and only then rounded to float32.

        Args:
            prompts: Of one signature, with nothing absent (``Prompts.groups``).
            transforms: For each image that ``image_index`` counts.
            device: The model's.
        """
        scales = torch.tensor([transform.scale_xy for transform in transforms], dtype=torch.float64)
        scale = scales.to(prompts.device)[prompts.image_index]
        points, boxes, logits = prompts.points_xy, prompts.boxes_xyxy, prompts.mask_logits
        return cls(
            points_xy=None if points is None else (points * scale[:, None]).float().to(device),
            labels=None if prompts.labels is None else prompts.labels.to(device),
            boxes_xyxy=None if boxes is None else (boxes * scale.repeat(1, 2)).float().to(device),
            mask_logits=None if logits is None else logits[:, None].float().to(device),
        )


def check_image_index(prompts: Prompts, num_images: int) -> None:
    """See that every prompt is about an image that is there.

    Raises:
        InputError: One is not.
    """
    last = int(prompts.image_index.max()) if len(prompts) else 0
    if last >= num_images:
        came = f"image_index {last} with {num_images} embedded image{'s' if num_images > 1 else ''}"
        raise InputError(explain(came, f"0 to {num_images - 1}"))


def check_inside(prompts: Prompts, sizes_hw: Sequence[tuple[int, int]]) -> None:
    """See that points lie in their image and boxes overlap it.

    An image reaches half a pixel beyond its outermost pixels' centres, from -0.5 to W - 0.5.

    Args:
        prompts: The prompts.
        sizes_hw: Height and width of each image.

    Raises:
        InputError: One does not; the message names it and the image's size.
    """
    sizes = torch.tensor([(width, height) for height, width in sizes_hw], dtype=torch.float64)
    sizes_xy = sizes.to(prompts.device)[prompts.image_index]
    if prompts.points_xy is not None and prompts.labels is not None:
        inside = (prompts.points_xy >= -0.5) & (prompts.points_xy <= sizes_xy[:, None] - 0.5)
        outside = ((prompts.labels >= 0) & ~inside.all(-1)).nonzero()
        if len(outside):
            prompt, point = outside[0].tolist()
            x, y = prompts.points_xy[prompt, point].tolist()
            raise _outside(f"the point (x, y) = ({x:g}, {y:g})", prompt, prompts, sizes_hw)
    if prompts.boxes_xyxy is not None:
        low, high = prompts.boxes_xyxy[:, :2], prompts.boxes_xyxy[:, 2:]
        beside = ((high < -0.5) | (low > sizes_xy - 0.5)).any(-1).nonzero()  # NaN, no box, compares as False
        if len(beside):
            prompt = int(beside[0, 0])
            box = ", ".join(f"{value:g}" for value in prompts.boxes_xyxy[prompt].tolist())
            raise _outside(f"the box (x0, y0, x1, y1) = ({box})", prompt, prompts, sizes_hw)


def _outside(what: str, prompt: int, prompts: Prompts, sizes_hw: Sequence[tuple[int, int]]) -> InputError:
    image = int(prompts.image_index[prompt])
    height, width = sizes_hw[image]
    return InputError(
        explain(
            f"{what} of prompt {prompt} lies outside image {image} of width {width} and height {height}",
            "pixel indices of the original image, x to the right and y down",
            "swap x and y if they are the wrong way round",
        )
    )
