"""A part of a page that shows scored masks of one image: their outlines, quality beside the true IoU, all figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt8

from arrcoc_sam.report.bars import bar
from arrcoc_sam.report.markup import Html, element, number, table, text
from arrcoc_sam.report.svg import mask_outline, panel, photograph, reuse

__all__ = ["ScoredMask", "score_section"]


@dataclass(frozen=True, eq=False)
class ScoredMask:
    """A mask and what is known of it; NaN where something is not defined.

    Attributes:
        name: What was done to it, say.
        mask: Bool, of the image's size.
        quality: A bound or a calibrated estimate, in [0, 1].
        interval: Both ends of a calibration's interval around it.
        bounds: Lower and upper bound.
        predicted_iou: The head's IoU of the closest candidate.
        alignment_iou: IoU with that candidate.
        stability: Of that candidate.
        soft_iou: With the decoder's probabilities.
        true_iou: With the mask that it should be.
    """

    name: str
    mask: Bool[np.ndarray, "H W"]
    quality: float
    interval: tuple[float, float]
    bounds: tuple[float, float]
    predicted_iou: float
    alignment_iou: float
    stability: float
    soft_iou: float
    true_iou: float


def score_section(
    title: str, words: Sequence[str], image: UInt8[np.ndarray, "H W 3"], masks: Sequence[ScoredMask], *, name: str
) -> Html:
    """A card for each mask, and a table.

    Args:
        title: Of the section.
        words: Paragraphs below it.
        image: RGB.
        masks: In the order of the cards.
        name: Of the image within the page; no two parts of a page have the same.
    """
    size_hw = (image.shape[0], image.shape[1])
    cards = []
    for place, scored in enumerate(masks):
        pixels = reuse(name) if place else photograph(image, name=name)
        label = f"{scored.name}: quality {scored.quality:.2f}, true IoU {scored.true_iou:.2f}"
        picture = panel(size_hw, [pixels, mask_outline(scored.mask)], label=label)
        span = None if math.isnan(scored.interval[0]) else scored.interval
        bars = [
            bar("quality", scored.quality, (0.0, 1.0), kind="whole", span=span),
            bar("true IoU", scored.true_iou, (0.0, 1.0), kind="part"),
        ]
        body = [element("h4", text(scored.name)), element("div", bars, class_="metric")]
        cards.append(element("div", [picture, element("div", body, class_="body")], class_="card"))
    parts = [element("h2", text(title)), *(element("p", text(sentence)) for sentence in words)]
    return element("section", [*parts, element("div", cards, class_="cards"), _table(masks)])


def _table(masks: Sequence[ScoredMask]) -> Html:
    scores = ["quality", "interval", "bounds", "alignment", "predicted IoU", "stability", "soft IoU"]
    rows = [
        [
            text(scored.name),
            number(scored.true_iou),
            number(scored.quality),
            _ends(scored.interval),
            _ends(scored.bounds),
            number(scored.alignment_iou),
            number(scored.predicted_iou),
            number(scored.stability),
            number(scored.soft_iou),
        ]
        for scored in masks
    ]
    return table("What quality is made of; a dash where it is not defined", ["mask", "true IoU", *scores], rows)


def _ends(ends: tuple[float, float]) -> Html:
    if math.isnan(ends[0]):
        return number(ends[0])
    return element("span", [number(ends[0], 2), text(" to "), number(ends[1], 2)])
