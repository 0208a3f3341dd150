"""One image through the main job, as ``analyze`` and ``demo`` do it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor

from arrcoc_sam.attention import AttentionMaps, CallableAttention
from arrcoc_sam.candidates import MaskCandidates
from arrcoc_sam.granularity import GranularityAnalyzer, GranularityResult
from arrcoc_sam.hierarchy import MaskHierarchy
from arrcoc_sam.hierarchy.levels import LEVELS
from arrcoc_sam.prompts import Prompts
from arrcoc_sam.report import ReportItem

if TYPE_CHECKING:
    from arrcoc_sam.segmenters.base import Segmenter

__all__ = ["Analysed", "LevelScores", "analyze_image", "find_levels"]


@dataclass(frozen=True)
class LevelScores:
    """Levels of K prompts, with the stability that a hierarchy does not carry.

    Attributes:
        hierarchy: Whole, part and subpart.
        stability: Of each level's mask, (K, 3).
    """

    hierarchy: MaskHierarchy
    stability: Float[Tensor, "K 3"]

    @classmethod
    def of(cls, candidates: MaskCandidates) -> LevelScores:
        """The levels among the masks of tokens 1 to 3."""
        hierarchy = candidates.hierarchy()
        return cls(hierarchy, candidates.stability_of(hierarchy))


def find_levels(segmenter: Segmenter, image: UInt8[np.ndarray, "H W 3"], prompts: Prompts) -> LevelScores:
    """The three levels that a segmenter answers each prompt with."""
    with torch.no_grad():
        return LevelScores.of(segmenter.decode(segmenter.encode(image), prompts))


def analyze_image(
    image: UInt8[np.ndarray, "H W 3"],
    points_xy: Float64[Tensor, "K 2"],
    maps: AttentionMaps,
    hierarchy: MaskHierarchy,
    *,
    metrics: Sequence[str] | None = None,
    reference: Sequence[AttentionMaps] | None = None,
) -> GranularityResult:
    """Maps that were made already against levels that were found already."""
    analyzer = GranularityAnalyzer(None, CallableAttention(lambda _: maps), metrics)
    return analyzer.analyze(image, points_xy, hierarchy=hierarchy, reference=reference)


@dataclass(frozen=True)
class Analysed:
    """A result with what a run knows besides.

    Attributes:
        name: What the image is called.
        result: The analysis.
        mask_scores: Of the three masks, (K, 3) each: "stability", where a model made them, and others.
        note: A sentence for the report.
        prompt_names: One a prompt, for the report.
    """

    name: str
    result: GranularityResult
    mask_scores: Mapping[str, Float[Tensor, "K 3"]] = field(default_factory=dict)
    note: str | None = None
    prompt_names: tuple[str, ...] | None = None

    def item(self) -> ReportItem:
        """For a page."""
        return ReportItem(self.result, self.name, self.note, self.mask_scores, self.prompt_names)

    def frame(self) -> pd.DataFrame:
        """The result's table, the image's name before it and the scores of the masks after it."""
        frame = self.result.to_frame()
        frame.insert(0, "image", self.name)
        level = np.tile(np.arange(len(LEVELS)), len(frame) // len(LEVELS))
        for name, values in self.mask_scores.items():
            frame[name.replace(" ", "_")] = values.detach().cpu().double().numpy()[frame["prompt"].to_numpy(), level]
        return frame
