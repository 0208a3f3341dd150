"""What makes an estimator, in words that can be sent to another machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from arrcoc_sam.errors import InputError, explain
from arrcoc_sam.quality.estimator import MaskQualityEstimator
from arrcoc_sam.segmenters import load_segmenter
from arrcoc_sam.segmenters.base import Multimask

__all__ = ["DTYPES", "EstimatorSpec"]

DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""What encoder and transformer may compute in."""


@dataclass(frozen=True)
class EstimatorSpec:
    """A mask quality estimator as plain values; :meth:`build` makes it where it is needed.

    Attributes:
        segmenter: A name for :func:`~arrcoc_sam.segmenters.load_segmenter`.
        checkpoint: A file of weights; None for the published one.
        device: "auto", "cpu", "cuda" or "mps".
        dtype: One of :data:`DTYPES`.
        protocol: How a mask is turned into a prompt.
        multimask: Which tokens are decoded.
        components: Whether components are scored apart.
        calibration: A file of a calibration, or "embedded"; None for bounds.
    """

    segmenter: str = "tiny"
    checkpoint: str | None = None
    device: str = "auto"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    protocol: str = "mask+point"
    multimask: Multimask = "all"
    components: bool = False
    calibration: str | None = None

    def build(self) -> MaskQualityEstimator:
        """The estimator.

        Raises:
            ArrcocSamError: Weights or calibration can't be had, or do not belong together.
        """
        if self.dtype not in DTYPES:
            raise InputError(explain(f"dtype={self.dtype!r}", f"one of {', '.join(DTYPES)}"))
        checkpoint = None if self.checkpoint is None else Path(self.checkpoint)
        segmenter = load_segmenter(self.segmenter, checkpoint, self.device, DTYPES[self.dtype])
        return MaskQualityEstimator(
            segmenter,
            self.protocol,
            self.multimask,
            self.calibration,
            components=self.components,
            keep_masks=False,
        )
