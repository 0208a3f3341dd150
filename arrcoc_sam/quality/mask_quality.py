"""MaskQuality: what is known about K external masks, and the masks that a segmenter would have made instead."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, Protocol, TypeAlias, overload, runtime_checkable

import pandas as pd
from jaxtyping import Bool, Float, Int
from torch import Tensor

from arrcoc_sam.errors import InputError, explain
from arrcoc_sam.masks.rle import RLE, decode_rle

__all__ = ["CalibratedQuality", "EncodedMasks", "MaskQuality", "QualityCalibration", "QualityKind", "calibrated"]

QualityKind: TypeAlias = Literal["bound", "calibrated"]
"""Whether ``quality`` is the lower bound or a calibrated estimate. The two are never mixed."""


class EncodedMasks(Sequence[Tensor]):
    """Masks of any sizes, kept as run lengths and drawn one by one as they are asked for.

    Attributes:
        rles: COCO run lengths, one dictionary a mask.

    Example:
        >>> masks = EncodedMasks([{"size": [2, 2], "counts": "22"}])
        >>> len(masks), masks[0].tolist()
        (1, [[False, True], [False, True]])
    """

    def __init__(self, rles: Sequence[RLE]) -> None:
        self.rles = tuple(rles)

    def __len__(self) -> int:
        return len(self.rles)

    @overload
    def __getitem__(self, index: int) -> Bool[Tensor, "H W"]: ...
    @overload
    def __getitem__(self, index: slice) -> EncodedMasks: ...
    def __getitem__(self, index: int | slice) -> Bool[Tensor, "H W"] | EncodedMasks:
        """One mask (H, W) bool, or some of them, still encoded."""
        return EncodedMasks(self.rles[index]) if isinstance(index, slice) else decode_rle(self.rles[index])

    def __iter__(self) -> Iterator[Bool[Tensor, "H W"]]:
        return (decode_rle(rle) for rle in self.rles)

    def __repr__(self) -> str:
        return f"EncodedMasks({len(self)} masks)"


@dataclass(frozen=True, eq=False)
class MaskQuality:
    """Scores of K external masks; every tensor has one entry a mask, on the masks' device.

    Attributes:
        quality: (K,) what to filter on: ``lower_bound``, or a calibration's estimate of the mask's IoU.
        quality_kind: Which of the two it is.
        lower_bound: (K,) in [0, 1], see :func:`~arrcoc_sam.quality.bounds.jaccard_bounds`.
        upper_bound: (K,) in [0, 1].
        interval_low: (K,) lower end of the calibration's interval; NaN without calibration.
        interval_high: (K,) upper end.
        predicted_iou: (K,) the head's IoU of the closest candidate, clamped to [0, 1]; NaN for an empty mask.
        alignment_iou: (K,) IoU of the mask with the closest candidate.
        stability: (K,) of that candidate; NaN where it has no pixels.
        soft_iou: (K,) in [0, 1], IoU of the mask with the decoder's probabilities, the largest over all candidates; 0
            for an empty mask. It knows how sure the decoder is of each pixel, and is no bound.
        token_index: (K,) int64, the decoder's token behind that candidate; -1 for an empty mask.
        area_share: (K,) of the image that the mask covers, in [0, 1].
        num_components: (K,) int64, the components that were scored apart; 1 where the mask was scored whole.
        best_sam_masks: The closest candidates at the original sizes, drawn one by one; empty when they were not kept.
        object_score: (K,) of models that have one, above 0 where they see an object.
    """

    quality: Float[Tensor, " K"]
    quality_kind: QualityKind
    lower_bound: Float[Tensor, " K"]
    upper_bound: Float[Tensor, " K"]
    interval_low: Float[Tensor, " K"]
    interval_high: Float[Tensor, " K"]
    predicted_iou: Float[Tensor, " K"]
    alignment_iou: Float[Tensor, " K"]
    stability: Float[Tensor, " K"]
    soft_iou: Float[Tensor, " K"]
    token_index: Int[Tensor, " K"]
    area_share: Float[Tensor, " K"]
    num_components: Int[Tensor, " K"]
    best_sam_masks: EncodedMasks
    object_score: Float[Tensor, " K"] | None = None

    def __len__(self) -> int:
        return len(self.quality)

    def to_frame(self) -> pd.DataFrame:
        """One row a mask, one column a field; without the masks."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "best_sam_masks"}
        columns = {name: value.cpu().numpy() if isinstance(value, Tensor) else value for name, value in values.items()}
        return pd.DataFrame({name: value for name, value in columns.items() if value is not None})


@dataclass(frozen=True, eq=False)
class CalibratedQuality:
    """What a calibration makes of K scores.

    Attributes:
        quality: (K,) estimates of the masks' IoU, in [0, 1].
        interval_low: (K,) lower ends of their intervals.
        interval_high: (K,) upper ends.
    """

    quality: Float[Tensor, " K"]
    interval_low: Float[Tensor, " K"]
    interval_high: Float[Tensor, " K"]


@runtime_checkable
class QualityCalibration(Protocol):
    """Turns bounds into estimates; fitted for the scores of one checkpoint under one protocol."""

    @property
    def checkpoint_hash(self) -> str:
        """Of the segmenter whose scores it was fitted on."""
        ...

    @property
    def protocol(self) -> str:
        """How the masks were asked for."""
        ...

    @property
    def multimask(self) -> bool | Literal["all"]:
        """Which tokens were decoded."""
        ...

    @property
    def components(self) -> bool:
        """Whether components were scored apart."""
        ...

    def apply(self, bounds: MaskQuality) -> CalibratedQuality:
        """Estimates for scores of the kind "bound"."""
        ...


def calibrated(bounds: MaskQuality, calibration: QualityCalibration) -> MaskQuality:
    """The same scores with a calibration's estimate in the place of the bound.

    Raises:
        InputError: They are calibrated already.
    """
    if bounds.quality_kind != "bound":
        raise InputError(explain("scores that are calibrated already", "scores of the kind 'bound'"))
    estimate = calibration.apply(bounds)
    return replace(
        bounds,
        quality=estimate.quality,
        quality_kind="calibrated",
        interval_low=estimate.interval_low,
        interval_high=estimate.interval_high,
    )
