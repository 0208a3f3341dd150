"""Prompts: what a promptable segmenter is asked, many at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor

from arrcoc_sam.errors import InputError, ShapeError, describe, explain
from arrcoc_sam.prompts.mask_prompts import PromptFrame, mask_prompt_parts
from arrcoc_sam.prompts.prompt_inputs import (
    ArrayLike,
    checked_boxes,
    checked_image_index,
    checked_logits,
    checked_points,
    first_few,
)

__all__ = ["PromptSignature", "Prompts"]


class PromptSignature(NamedTuple):
    """What a prompt is made of; prompts of one signature go through a model as one batch, without padding."""

    num_points: int
    has_box: bool
    has_mask: bool


@dataclass(frozen=True, init=False, eq=False, repr=False)
class Prompts:
    """K prompts, each of points, a box, a mask, or several of these, on any of the encoded images.

    Attributes:
        points_xy: (K, P, 2) float64 pixel indices (x, y) of the original image, or None.
        labels: (K, P) int64: 1 foreground, 0 background, -1 absent (its coordinates mean nothing); None without points.
        boxes_xyxy: (K, 4) float64 pixel indices of the original image, a NaN row = no box; or None.
        mask_logits: (K, h, w) float32 in the segmenter's low-resolution frame, a NaN map = none; or None.
        image_index: (K,) int64, which of the encoded images each prompt is about.

    All of them lie on one device: that of the first tensor among those given.

    Example:
        >>> prompts = Prompts(points_xy=[[[20, 10]], [[5, 5]]], labels=[[1], [1]])
        >>> prompts
        Prompts(points_xy (2, 1, 2), labels (2, 1), image_index (2,), on cpu)
        >>> prompts[1].points_xy.tolist(), prompts.signatures()[1]
        ([[[5.0, 5.0]]], PromptSignature(num_points=1, has_box=False, has_mask=False))
    """

    points_xy: Float64[Tensor, "K P 2"] | None
    labels: Int64[Tensor, "K P"] | None
    boxes_xyxy: Float64[Tensor, "K 4"] | None
    mask_logits: Float32[Tensor, "K h w"] | None
    image_index: Int64[Tensor, " K"]

    def __init__(
        self,
        points_xy: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        boxes_xyxy: ArrayLike | None = None,
        mask_logits: ArrayLike | None = None,
        image_index: ArrayLike | int | None = None,
    ) -> None:
        """Check and keep the prompts.

        Args:
            points_xy: (K, P, 2).
            labels: (K, P); all foreground by default.
            boxes_xyxy: (K, 4).
            mask_logits: (K, h, w); gradients flow through.
            image_index: (K,), or one number for all; 0 by default.

        Raises:
            ShapeError: Wrong axes, or different numbers of prompts.
            InputError: None of points, boxes and masks; a prompt with none of them; labels other than 1, 0, -1; a
                point, box or map that is neither finite nor absent; a box with x1 < x0 or y1 < y0; a negative index.
        """
        given = (points_xy, boxes_xyxy, mask_logits)
        device = next((v.device for v in (*given, labels, image_index) if isinstance(v, Tensor)), torch.device("cpu"))
        points, marks = checked_points(points_xy, labels, device)
        boxes = checked_boxes(boxes_xyxy, device)
        logits = checked_logits(mask_logits, device)
        counts = {
            name: len(values)
            for name, values in (("points_xy", points), ("boxes_xyxy", boxes), ("mask_logits", logits))
            if values is not None
        }
        if not counts or 0 in counts.values():
            raise InputError(explain("no prompt", "at least one, of points_xy, boxes_xyxy or mask_logits"))
        if len(set(counts.values())) > 1:
            came = ", ".join(f"{count} {name}" for name, count in counts.items())
            raise ShapeError(explain(came, "the same number of prompts in each", "fill up with NaN rows or labels -1"))
        index = checked_image_index(image_index, next(iter(counts.values())), device)
        self._set(points, marks, boxes, logits, index)
        absent = ~(self.num_points.bool() | self.has_box | self.has_mask)
        if bool(absent.any()):
            raise InputError(
                explain(
                    f"the prompts {first_few(absent)} have no point, no box and no mask",
                    "at least one of them in each",
                    "leave these prompts out",
                )
            )

    def _set(self, *values: Tensor | None) -> None:
        for field, value in zip(fields(self), values, strict=True):
            object.__setattr__(self, field.name, value)

    @classmethod
    def _unchecked(cls, *values: Tensor | None) -> Prompts:
        """Prompts of values that are known to be right, for parts and unions of checked ones."""
        made = object.__new__(cls)
        made._set(*values)
        return made

    def _values(self) -> list[Tensor | None]:
        return [getattr(self, field.name) for field in fields(self)]

    @classmethod
    def from_masks(
        cls,
        masks: Bool[Tensor, "K H W"] | np.ndarray | Sequence[Bool[Tensor, "_ _"] | np.ndarray],
        segmenter: PromptFrame,
        kind: str = "mask+point",
        *,
        image_index: ArrayLike | int | None = None,
        logit_scale: float | None = None,
    ) -> Prompts:
        """Prompts that ask a segmenter for the objects of these masks.

        Args:
            masks: (K, H, W) bool at the original image's size, or a list of (H, W) of any sizes.
            segmenter: Whoever is asked; gives the frame, size and scale of a mask prompt.
            kind: One of :data:`PROMPT_KINDS`. The point is the mask's innermost pixel
                (:func:`~arrcoc_sam.masks.largest_interior_point`), the box its tight box, the mask prompt
                :func:`mask_prompt_logits`.
            image_index: (K,), or one number for all; 0 by default.
            logit_scale: The logit of certainty; the segmenter's own by default.

        Returns:
            K prompts on the masks' device. An empty mask has no point and no box.

        Raises:
            UnknownNameError: Another kind.
            ShapeError: Masks of the wrong axes, or none.
            InputError: Not bool, or an empty mask where the kind has no mask in it.
        """
        return cls(*mask_prompt_parts(masks, segmenter, kind, logit_scale=logit_scale), image_index)

    @classmethod
    def cat(cls, prompts: Iterable[Prompts]) -> Prompts:
        """One batch of several. What some lack is filled up as absent; image indices are kept as they are.

        Args:
            prompts: At least one batch, all on one device.

        Returns:
            The prompts in order.

        Raises:
            InputError: Nothing to join.
            ShapeError: Mask prompts of different resolutions.
        """
        batches = list(prompts)
        if not batches:
            raise InputError(explain("no prompts to join", "at least one batch"))
        num_points = max((b.points_xy.shape[1] for b in batches if b.points_xy is not None), default=0)
        sizes = sorted({_hw(b.mask_logits) for b in batches if b.mask_logits is not None})
        if len(sizes) > 1:
            raise ShapeError(explain(f"mask prompts of sizes {sizes}", "one size", "join prompts of one segmenter"))
        some_points = any(b.points_xy is not None for b in batches)
        some_boxes = any(b.boxes_xyxy is not None for b in batches)
        return cls._unchecked(
            torch.cat([_filled(b, b.points_xy, (num_points, 2), torch.nan, torch.float64) for b in batches])
            if some_points
            else None,
            torch.cat([_filled(b, b.labels, (num_points,), -1, torch.int64) for b in batches]) if some_points else None,
            torch.cat([_filled(b, b.boxes_xyxy, (4,), torch.nan, torch.float64) for b in batches])
            if some_boxes
            else None,
            torch.cat([_filled(b, b.mask_logits, sizes[0], torch.nan, torch.float32) for b in batches])
            if sizes
            else None,
            torch.cat([b.image_index for b in batches]),
        )

    # --- what is there ------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.image_index)

    def __repr__(self) -> str:
        names = zip([field.name for field in fields(self)], self._values(), strict=True)
        shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in names if value is not None)
        return f"Prompts({shapes}, on {self.device})"

    @property
    def device(self) -> torch.device:
        """Where the prompts lie."""
        return self.image_index.device

    @property
    def num_points(self) -> Int64[Tensor, " K"]:
        """(K,) int64, the number of points of each prompt that are present."""
        return torch.zeros_like(self.image_index) if self.labels is None else (self.labels >= 0).sum(-1)

    @property
    def has_box(self) -> Bool[Tensor, " K"]:
        """(K,) bool, whether each prompt has a box."""
        nobody = torch.zeros_like(self.image_index, dtype=torch.bool)
        return nobody if self.boxes_xyxy is None else ~self.boxes_xyxy[:, 0].isnan()

    @property
    def has_mask(self) -> Bool[Tensor, " K"]:
        """(K,) bool, whether each prompt has a mask."""
        nobody = torch.zeros_like(self.image_index, dtype=torch.bool)
        return nobody if self.mask_logits is None else ~self.mask_logits[:, 0, 0].isnan()

    def signatures(self) -> list[PromptSignature]:
        """What each prompt is made of."""
        columns = (self.num_points.tolist(), self.has_box.tolist(), self.has_mask.tolist())
        return [PromptSignature(*row) for row in zip(*columns, strict=True)]

    def groups(self) -> Iterator[tuple[PromptSignature, Int64[Tensor, " k"], Prompts]]:
        """The prompts by signature, with nothing absent left in them.

        Yields:
            The signature, the indices (k,) of its prompts in this batch, ascending, and these prompts: points
            (k, num_points, 2) in their order with labels 0 and 1 only, or None; boxes and masks without NaN, or None.
            Signatures come in the order of their first prompt.
        """
        members: dict[PromptSignature, list[int]] = {}
        for position, signature in enumerate(self.signatures()):
            members.setdefault(signature, []).append(position)
        for signature, positions in members.items():
            index = torch.tensor(positions, device=self.device)
            points, labels, boxes, logits, image_index = self[index]._values()
            if signature.num_points == 0:
                points = labels = None
            elif points is not None and labels is not None:
                present = labels >= 0
                points = points[present].reshape(len(index), signature.num_points, 2)
                labels = labels[present].reshape(len(index), signature.num_points)
            boxes = boxes if signature.has_box else None
            logits = logits if signature.has_mask else None
            yield signature, index, self._unchecked(points, labels, boxes, logits, image_index)

    # --- parts --------------------------------------------------------------------------------------------------

    def __getitem__(
        self, index: int | np.integer | slice | Sequence[int] | Sequence[bool] | Tensor | np.ndarray
    ) -> Prompts:
        """Some of the prompts, always as a batch: an int gives a batch of one."""
        chosen: slice | Tensor
        if isinstance(index, slice):
            chosen = index
        else:
            chosen = torch.as_tensor(index, device=self.device)
            if chosen.ndim > 1 or (chosen.is_floating_point() and chosen.numel()):
                raise InputError(explain(f"an index is {describe(index)}", "an int, a slice, a list of ints or bools"))
            if chosen.dtype != torch.bool:
                chosen = chosen.long()
            elif chosen.shape != (len(self),):
                raise ShapeError(explain(f"a bool index is {describe(chosen)}", f"({len(self)},), one for each prompt"))
            if chosen.ndim == 0:
                chosen = chosen[None]
        return self._unchecked(*(None if value is None else value[chosen] for value in self._values()))

    def __iter__(self) -> Iterator[Prompts]:
        return (self[position] for position in range(len(self)))

    def to(self, device: torch.device | str) -> Prompts:
        """The prompts on another device."""
        return self._unchecked(*(None if value is None else value.to(device) for value in self._values()))


def _hw(values: Tensor) -> tuple[int, int]:
    return values.shape[-2], values.shape[-1]


def _filled(
    batch: Prompts, values: Tensor | None, shape: tuple[int, ...], absent: float | int, dtype: torch.dtype
) -> Tensor:
    """A batch's values at the given shape, filled up with what means absent."""
    full = torch.full((len(batch), *shape), absent, dtype=dtype, device=batch.device)
    if values is not None:
        full[:, : values.shape[1]] = values
    return full
