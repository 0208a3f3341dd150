"""The work behind the page: levels of a click with attention over them, and scores of a mask."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, UInt8

from arrcoc_sam.attention import AttentionSource, load_attention
from arrcoc_sam.errors import (
    InputError,
    ShapeError,
    UnknownNameError,
    describe,
    explain,
)
from arrcoc_sam.granularity import GranularityAnalyzer
from arrcoc_sam.hierarchy.levels import LEVELS
from arrcoc_sam.images import load_image
from arrcoc_sam.inputs import as_coordinates, as_masks
from arrcoc_sam.prompts import Prompts
from arrcoc_sam.quality import MaskQualityEstimator, QualityCalibration, fitting_calibration
from arrcoc_sam.report.panels import outline_masks, show_image
from arrcoc_sam.segmenters.base import Segmenter
from arrcoc_sam.segmenters.embedding import ImageEmbedding

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["LEVEL_COLUMNS", "SCORE_COLUMNS", "Desk"]

LEVEL_COLUMNS = ("level", "predicted IoU", "share of the image", "distinct")
"""Of the table that :meth:`Desk.levels` answers."""

SCORE_COLUMNS = ("score", "value")
"""Of the table that :meth:`Desk.score` answers."""

_EMBEDDINGS = 4
"""Pictures whose embedding is kept, so that the next click is instant."""

_SOURCES = 4
"""Attention sources that are kept, models and all."""

_SCORES = {
    "quality": "quality",
    "quality_kind": "kind",
    "lower_bound": "lower bound",
    "upper_bound": "upper bound",
    "predicted_iou": "predicted IoU",
    "alignment_iou": "IoU with the closest answer",
    "stability": "stability",
}


class Desk:
    """A segmenter at work for a page: pictures are encoded once, attention sources made once, one visitor at a time.

    Args:
        segmenter: Who answers clicks and judges masks.
        attention: Sources on offer, by name; the first one is chosen at first.
        only_these: No others; without it a visitor may name any transformer.
        calibration: Of masks' scores; by default the embedded model's for the embedded model, and none for others.
        random_weights: Transformers are asked with random weights: a control, and all that there is without a network.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        *,
        attention: Sequence[str] = ("relevance",),
        only_these: bool = False,
        calibration: QualityCalibration | None = None,
        random_weights: bool = False,
    ) -> None:
        if isinstance(attention, str):
            came = f"attention is {attention!r}"
            raise InputError(explain(came, "a list of names", f"[{attention!r}]"))
        if not attention:
            raise InputError(explain("no attention source", "at least one, such as relevance"))
        self.segmenter, self.attention, self.only_these = segmenter, tuple(attention), only_these
        self.estimator = MaskQualityEstimator(segmenter, calibration=calibration or fitting_calibration(segmenter))
        self._random_weights = random_weights
        self._embeddings: dict[str, ImageEmbedding] = {}
        self._sources: dict[str, AttentionSource] = {}
        self._lock = threading.Lock()  # visitors come at once; what a model remembers of a call is its own

    @torch.no_grad()
    def levels(
        self, image: UInt8[np.ndarray, "H W 3"], point_xy: Sequence[float | int], attention: str
    ) -> tuple[Figure, pd.DataFrame]:
        """What a click means, and where attention lies in it.

        Args:
            image: RGB.
            point_xy: The click, in pixels.
            attention: A source by name: "relevance", "timm:…" or "hf:…".

        Returns:
            The figure of the analysis; one row a level: predicted IoU, share of the image, whether it is distinct.

        Raises:
            ArrcocSamError: No image, no click or one beside the image, or no such source.
        """
        with self._lock:
            return self._levels(image, point_xy, attention)

    @torch.no_grad()
    def _levels(
        self, image: UInt8[np.ndarray, "H W 3"], point_xy: Sequence[float | int], attention: str
    ) -> tuple[Figure, pd.DataFrame]:
        point = as_coordinates(point_xy, 2, "point_xy")
        if point.ndim != 1:
            raise ShapeError(explain(f"point_xy is {describe(point)}", "one point, (x, y)"))
        prompts = Prompts(points_xy=point[None, None], labels=[[1]])
        image = load_image(image)  # a grey one becomes RGB
        hierarchy = self.segmenter.decode(self._embedding(image), prompts).hierarchy()
        analyzer = GranularityAnalyzer(self.segmenter, self._source(attention))
        result = analyzer.analyze(image, prompts.points_xy[:, 0], hierarchy=hierarchy)  # type: ignore[index]
        table = pd.DataFrame(
            {
                LEVEL_COLUMNS[0]: LEVELS,
                LEVEL_COLUMNS[1]: hierarchy.scores[0].double().cpu().numpy().round(3),
                LEVEL_COLUMNS[2]: (hierarchy.areas[0].double() / image[..., 0].size).cpu().numpy().round(4),
                LEVEL_COLUMNS[3]: np.where(hierarchy.distinct[0].cpu().numpy(), "yes", "no, as the level above"),
            }
        )
        return result.plot(), table

    @torch.no_grad()
    def score(self, image: UInt8[np.ndarray, "H W 3"], mask: Bool[np.ndarray, "H W"]) -> tuple[Figure, pd.DataFrame]:
        """How good a mask is.

        Args:
            image: RGB.
            mask: Of the image's size.

        Returns:
            The mask beside the segmenter's closest answer; one row a score.

        Raises:
            ShapeError: Another size.
            InputError: An empty mask, or something else in place of mask or image.
        """
        image = load_image(image)
        mask = as_masks(mask, name="mask").cpu().numpy()
        if mask.shape != image.shape[:2]:
            raise ShapeError(
                explain(f"the mask is {describe(mask)}", f"{image.shape[0]} rows, {image.shape[1]} columns")
            )
        if not mask.any():
            raise InputError(
                explain("an empty mask", "at least one pixel", "paint on the object, or give a mask's file")
            )
        with self._lock:
            quality = self.estimator.estimate(self._embedding(image), mask[None])
        row = quality.to_frame().iloc[0]
        values = {words: row[name] for name, words in _SCORES.items()}
        if np.isfinite(row["interval_low"]):
            interval = f"{row['interval_low']:.3f} to {row['interval_high']:.3f}"
            values = {"quality": values["quality"], "its interval": interval} | values
        shown = [value if isinstance(value, str) else f"{value:.3f}" for value in values.values()]
        closest = quality.best_sam_masks[0]
        table = pd.DataFrame({SCORE_COLUMNS[0]: list(values), SCORE_COLUMNS[1]: shown})
        return _compared(image, mask, np.asarray(closest)), table

    def _embedding(self, image: UInt8[np.ndarray, "H W 3"]) -> ImageEmbedding:
        key = hashlib.sha256(np.ascontiguousarray(image).tobytes() + str(image.shape).encode()).hexdigest()
        found = self._embeddings.pop(key, None)
        self._embeddings[key] = self.segmenter.encode(image) if found is None else found
        while len(self._embeddings) > _EMBEDDINGS:
            del self._embeddings[next(iter(self._embeddings))]
        return self._embeddings[key]

    def _source(self, name: str) -> AttentionSource:
        asked: object = name
        if not isinstance(asked, str):
            raise InputError(explain(f"attention is {describe(asked)}", "the name of a source, such as 'relevance'"))
        if name not in self.attention and (self.only_these or not name.startswith(("timm:", "hf:"))):
            others = "" if self.only_these else ", timm:MODEL or hf:MODEL"
            raise UnknownNameError(explain(f"no attention is called {name!r}", f"{', '.join(self.attention)}{others}"))
        if name not in self._sources:
            while len(self._sources) >= _SOURCES:
                del self._sources[next(iter(self._sources))]
            options: dict[str, Any] = {}
            if name.startswith(("timm:", "hf:")):
                options = {"pretrained": not self._random_weights, "heads": "mean"}
            self._sources[name] = load_attention(name, **options)
        return self._sources[name]


def _compared(image: np.ndarray, mask: np.ndarray, closest: np.ndarray) -> Figure:
    """A mask, and the segmenter's closest answer, each outlined on the picture."""
    from matplotlib.figure import Figure

    height, width = mask.shape
    figure = Figure(figsize=(8.0, min(8.0, 4.2 * height / width + 0.4)), layout="constrained", dpi=110)
    for panel, (words, shown) in zip(
        figure.subplots(1, 2), (("the mask", mask), ("the segmenter's closest answer", closest)), strict=True
    ):
        show_image(panel, image)
        outline_masks(panel, np.stack([shown, np.zeros_like(shown), np.zeros_like(shown)]))
        panel.set_title(words, fontsize=10)
    return figure
