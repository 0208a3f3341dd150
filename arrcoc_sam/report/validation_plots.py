"""The figure of a validation: what was claimed of what was planted, and how often tests reject what knows nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import pandas as pd

from arrcoc_sam.hierarchy.levels import LEVELS
from arrcoc_sam.report.labels import ATTENTION_COLORMAP

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from arrcoc_sam.report.figures import Figure

__all__ = ["ValidationLike", "plot_validation"]

_INK = "#333333"
_WITHIN, _CONVICTED = "#0072B2", "#C25100"


@runtime_checkable
class ValidationLike(Protocol):
    """Error rates; :class:`arrcoc_sam.granularity.validation.ValidationReport` has them."""

    @property
    def confusion(self) -> pd.DataFrame:
        """Heads by what was planted (rows) and claimed (columns)."""
        ...

    @property
    def sizes(self) -> pd.DataFrame:
        """One row a null and kind of ignorant attention."""
        ...

    @property
    def alpha(self) -> float:
        """Level of the tests."""
        ...


def plot_validation(report: ValidationLike) -> Figure:
    """The confusion matrix beside the false-positive rates with their exact limits."""
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    from arrcoc_sam.report.figures import Figure

    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
    figure = Figure(figsize=(12.4, 4.2), layout=layout, dpi=130)
    left, right = figure.subplots(1, 2, width_ratios=[1.0, 1.35])
    _draw_confusion(left, report.confusion)
    _draw_sizes(right, report.sizes, report.alpha)
    return figure


def _draw_confusion(panel: Axes, confusion: pd.DataFrame) -> None:
    counts = confusion.to_numpy(dtype=float)
    shares = counts / counts.sum(1, keepdims=True)
    panel.imshow(shares, cmap=ATTENTION_COLORMAP, vmin=0, vmax=1, aspect="auto")
    for (row, column), share in np.ndenumerate(shares):
        colour = "white" if share < 0.5 else "black"
        words = f"{100 * share:.0f} %\n{counts[row, column]:.0f}"
        panel.text(column, row, words, ha="center", va="center", fontsize=8, color=colour)
    panel.set_xticks(range(confusion.shape[1]), labels=[str(name) for name in confusion.columns])
    panel.set_yticks(range(len(confusion)), labels=[str(name) for name in confusion.index])
    panel.axhline(len(LEVELS) - 0.5, color="white", linewidth=2.5)
    panel.set_xlabel("claimed", fontsize=9)
    panel.set_ylabel("planted", fontsize=9)
    panel.set_title("Heads: share of the row, and number", fontsize=10)
    panel.tick_params(labelsize=8.5, length=0)
    for spine in panel.spines.values():
        spine.set_visible(False)


def _draw_sizes(panel: Axes, sizes: pd.DataFrame, alpha: float) -> None:
    rows = sizes.to_dict("records")
    for place, row in enumerate(rows):
        colour = _CONVICTED if row["convicted"] else _WITHIN
        panel.plot([100 * row["low"], 100 * row["high"]], [place, place], color=colour, linewidth=2.4)
        marker = "D" if row["convicted"] else "o"
        panel.plot(100 * row["rate"], place, marker=marker, markersize=6, color=colour)
    panel.axvline(100 * alpha, color=_INK, linewidth=1.0, linestyle="--")
    panel.set_xscale("symlog", linthresh=10)
    panel.set_xlim(0, 108)
    ticks = [0, 2, 5, 10, 20, 50, 100]
    panel.set_xticks(ticks, labels=[str(tick) for tick in ticks])
    panel.set_xticks([], minor=True)
    panel.set_yticks(range(len(rows)), labels=[f"{row['attention']}\nagainst {row['null']}" for row in rows])
    panel.set_ylim(len(rows) - 0.5, -0.5)
    panel.set_xlabel(f"rejections of attention that knows nothing, % (dashed: α = {100 * alpha:g} %)", fontsize=9)
    panel.set_title("False positives with 99 % limits (diamonds: convicted)", fontsize=10)
    panel.tick_params(labelsize=8)
    panel.grid(axis="x", color="#d8d8d8", linewidth=0.6)
    panel.set_axisbelow(True)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)
