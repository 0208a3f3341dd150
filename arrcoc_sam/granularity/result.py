"""What an analysis of one image answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Float64, UInt8
from torch import Tensor

from arrcoc_sam.attention.maps import AttentionMaps
from arrcoc_sam.hierarchy import MaskHierarchy
from arrcoc_sam.hierarchy.levels import LEVELS

if TYPE_CHECKING:
    from arrcoc_sam.report.figures import Figure

__all__ = ["ABSTAIN", "GranularityResult"]

ABSTAIN = "abstain"
"""What stands in ``best_match`` where no level can be named."""


@dataclass(frozen=True, eq=False)
class GranularityResult:
    """N attention maps against the three levels of K prompts on one image.

    Attributes:
        image: The image that was analysed, RGB.
        points_xy: The prompts, pixel indices (x, y); None where a hierarchy was given without points.
        hierarchy: Whole, part and subpart as they came, at the image's size.
        maps: The attention maps.
        masks: The levels as they were measured: clipped to true sets, P := P∩W, S := S∩P, (K, 3, H, W).
        metrics: Metric values by name, each (N, K, 3), NaN where not defined.
        best_match: Name of the level that the attention matches best, or "abstain", (N, K).
        measurable: Whether the triple is valid and its levels can be told apart on the maps' grid, (K,).
        grid_area: Share of the frame that the model sees covered by each level, (K, 3): the a of the metrics; NaN where
            not distinct. Where the model crops, it is not the share of the image.
        sink_mass: Share of the attention held by the top 1 % of the cells outside the whole, (N, K).
        calibrated: Whether ``best_match`` stands on a comparison with other images' attention.
        z: Calibrated shell contrast, in null standard deviations, (N, K, 3); None when not calibrated.
        p_value: One-sided p of each level, adjusted for the three (max-T), (N, K, 3); None when not calibrated.
    """

    image: UInt8[np.ndarray, "H W 3"]
    points_xy: Float64[Tensor, "K 2"] | None
    hierarchy: MaskHierarchy
    maps: AttentionMaps
    masks: Bool[Tensor, "K 3 H W"]
    metrics: dict[str, Float[Tensor, "N K 3"]]
    best_match: np.ndarray
    measurable: Bool[Tensor, " K"]
    grid_area: Float[Tensor, "K 3"]
    sink_mass: Float[Tensor, "N K"]
    calibrated: bool = False
    z: Float[Tensor, "N K 3"] | None = field(default=None)
    p_value: Float[Tensor, "N K 3"] | None = field(default=None)

    @property
    def scores(self) -> Float[Tensor, "K 3"]:
        """Predicted IoU of whole, part, subpart; NaN for masks that people drew (``human_hierarchies``)."""
        return self.hierarchy.scores

    @property
    def correlations(self) -> Float[Tensor, "N K 3"]:
        """Pearson's correlation of each map with each level."""
        return self.metrics["pearson"]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the N maps."""
        return self.maps.names

    def __repr__(self) -> str:
        """Sizes, and how many answers name a level, instead of all the numbers."""
        height, width = self.image.shape[:2]
        named = int((self.best_match != ABSTAIN).sum())
        kind = "calibrated" if self.calibrated else "not calibrated"
        return (
            f"GranularityResult({len(self.maps)} maps x {len(self.masks)} prompts, {named} of {self.best_match.size} "
            f"matched a level, {kind}; {height} x {width} pixels; metrics {', '.join(self.metrics)})"
        )

    def to_frame(self) -> pd.DataFrame:
        """One row a map, prompt and level: metrics, area and score of the level, flags, and the verdict."""
        num_maps, num_prompts = len(self.maps), len(self.masks)
        shape = (num_maps, num_prompts, len(LEVELS))

        def column(values: Tensor | np.ndarray, axes: str) -> np.ndarray:
            array = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
            index = tuple(slice(None) if axis in axes else None for axis in "nkl")
            return np.broadcast_to(array[index], shape).reshape(-1)

        areas = self.masks.flatten(2).sum(2) / self.masks[0, 0].numel()
        columns = {
            "map": column(np.array(self.names, dtype=object), "n"),
            "prompt": column(np.arange(num_prompts), "k"),
            "level": column(np.array(LEVELS, dtype=object), "l"),
        }
        if self.points_xy is not None:
            columns |= {"x": column(self.points_xy[:, 0], "k"), "y": column(self.points_xy[:, 1], "k")}
        columns |= {name: column(values, "nkl") for name, values in self.metrics.items()}
        columns |= {
            "area_share": column(areas, "kl"),
            "grid_area": column(self.grid_area, "kl"),
            "score": column(self.scores, "kl"),
            "distinct": column(self.hierarchy.distinct, "kl"),
            "measurable": column(self.measurable, "k"),
            "best_match": column(self.best_match, "nk"),
            "calibrated": np.full(num_maps * num_prompts * len(LEVELS), self.calibrated),
            "sink_mass": column(self.sink_mass, "nk"),
        }
        if self.maps.prefix_mass is not None:
            columns["prefix_mass"] = column(self.maps.prefix_mass, "nk" if self.maps.prefix_mass.ndim == 2 else "n")
        if self.z is not None and self.p_value is not None:
            columns |= {"z": column(self.z, "nkl"), "p_value": column(self.p_value, "nkl")}
        return pd.DataFrame(columns)

    def plot(self, maps: int | str | Sequence[int | str] | None = None, **options: Any) -> Figure:
        """The image with its levels outlined, maps over it, and bars a level.

        Args:
            maps: Which, by number or name; the first nine by default.
            **options: Of :func:`arrcoc_sam.report.plot_granularity`.

        Raises:
            InputError: A map or a prompt that there is not.
        """
        from arrcoc_sam.report.plots import plot_granularity

        figure: Figure = plot_granularity(self, maps=maps, **options)
        return figure

    def to_html(self, path: str | Path, *, command: str | None = None) -> Path:
        """Write one self-contained page about this result.

        Args:
            path: The file to write.
            command: The command line that made it, to be quoted in the page.

        Returns:
            The path.
        """
        from arrcoc_sam.report.html import granularity_report

        granularity_report([self], path, command=command)
        return Path(path)


def top_levels(values: Float[Tensor, "N K 3"], answered: Bool[Tensor, "N K"] | Bool[Tensor, " K"]) -> np.ndarray:
    """Names of the levels with the largest value, (N, K), "abstain" where not ``answered`` or where nothing is defined.

    Args:
        values: What the levels are ranked by; NaN never wins.
        answered: Where a level may be named.
    """
    defined = ~values.isnan()
    winners = values.masked_fill(~defined, -torch.inf).argmax(-1)
    answered = answered & defined.any(-1)
    numbers = torch.where(answered, winners, len(LEVELS)).cpu().numpy()
    names: np.ndarray = np.array([*LEVELS, ABSTAIN], dtype=object)[numbers]
    return names
