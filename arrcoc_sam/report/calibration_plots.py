"""Figures of a calibration: reliability before and after, and ways of asking compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from arrcoc_sam.errors import InputError, explain

if TYPE_CHECKING:
    from arrcoc_sam.report.figures import Figure

__all__ = ["plot_calibration", "plot_protocols"]

_BEFORE, _AFTER = "#D55E00", "#0072B2"


def plot_calibration(tables: Mapping[str, pd.DataFrame], errors: Mapping[str, float]) -> Figure:
    """Mean actual against mean estimated IoU, bin by bin, one panel an estimate.

    Args:
        tables: ``reliability`` of reports, by the names of the estimates.
        errors: Expected calibration errors, by the same names.

    Raises:
        InputError: No table.
    """
    from arrcoc_sam.report.figures import Figure

    if not tables:
        raise InputError(explain("no reliability table", "at least one"))
    figure = Figure(figsize=(3.6 * len(tables) + 0.4, 3.9), layout="constrained", dpi=110)
    panels = figure.subplots(1, len(tables), sharey=True, squeeze=False)[0]
    for position, (panel, (name, table)) in enumerate(zip(panels, tables.items(), strict=True)):
        color = _BEFORE if position == 0 else _AFTER
        panel.plot([0, 1], [0, 1], color="#777777", linewidth=1.0, linestyle=(0, (4, 3)))
        panel.vlines(table["predicted"], table["actual_low"], table["actual_high"], color=color, linewidth=1.4)
        panel.plot(table["predicted"], table["actual"], "o", color=color, markersize=5)
        panel.set_title(f"{name}: calibration error {errors[name]:.3f}", fontsize=10)
        panel.set_xlim(-0.03, 1.03)
        panel.set_ylim(-0.03, 1.03)
        panel.set_xlabel("estimated IoU (bin mean)")
        _clean(panel)
    panels[0].set_ylabel("actual IoU (bin mean and interval)")
    return figure


def plot_protocols(table: pd.DataFrame) -> Figure:
    """Rank correlation of the bound with the actual IoU, with intervals, one row a way of asking, the best on top."""
    from arrcoc_sam.report.figures import Figure

    if table.empty:
        raise InputError(explain("a table without rows", "the table of compare_protocols"))
    figure = Figure(figsize=(6.4, 0.42 * len(table) + 1.2), layout="constrained", dpi=110)
    panel = figure.subplots()
    rows = range(len(table))
    panel.hlines(rows, table["spearman_low"], table["spearman_high"], color="#9CC7E2", linewidth=4)
    panel.plot(table["spearman"], rows, "o", color=_AFTER)
    labels = [f"{row['protocol']}, tokens {row['tokens']}" for row in table.to_dict("records")]
    panel.set_yticks(list(rows), labels)
    panel.invert_yaxis()
    panel.set_xlabel("Spearman's correlation of the lower bound with the actual IoU")
    _clean(panel)
    return figure


def _clean(panel: Any) -> None:
    panel.grid(color="#E4E4E4", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
