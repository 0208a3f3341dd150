"""The reliability diagram of predicted IoU: what a bin of predictions came to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from arrcoc_sam.errors import InputError, explain

if TYPE_CHECKING:
    from arrcoc_sam.report.figures import Figure

__all__ = ["plot_reliability"]

_COLUMNS = ("predicted_low", "predicted_high", "count", "predicted", "actual", "actual_low", "actual_high")


def plot_reliability(table: pd.DataFrame, *, ece: float | None = None, title: str | None = None) -> Figure:
    """Mean actual against mean predicted IoU, bin by bin, beside the diagonal of a perfect head.

    Horizontal bars span a bin's predictions, vertical ones the interval of its mean actual IoU, where there is one.

    Args:
        table: ``reliability`` of an IoU head's report.
        ece: Expected calibration error, for the legend.
        title: Above the diagram.

    Returns:
        The figure; save it with ``figure.savefig(path)``.

    Raises:
        InputError: A column is missing, or there is no row.
    """
    from arrcoc_sam.report.figures import Figure

    missing = [name for name in _COLUMNS if name not in table]
    if missing or table.empty:
        came = f"a table without {', '.join(missing)}" if missing else "a table without rows"
        raise InputError(explain(came, "the reliability table of an IoU head's report"))
    figure = Figure(figsize=(4.6, 4.6), layout="constrained", dpi=110)
    panel = figure.subplots()
    panel.plot([0, 1], [0, 1], color="#777777", linewidth=1.0, linestyle=(0, (4, 3)), label="predicted = actual")
    predicted, actual = table["predicted"].to_numpy(), table["actual"].to_numpy()
    low, high = table["actual_low"].to_numpy(), table["actual_high"].to_numpy()
    label = f"{len(table)} bins, {int(table['count'].sum()):,} masks"
    panel.errorbar(
        predicted,
        actual,
        xerr=(predicted - table["predicted_low"], table["predicted_high"] - predicted),
        fmt="o",
        markersize=5,
        color="#0072B2",
        ecolor="#9CC7E2",
        elinewidth=1.2,
        label=label if ece is None else f"{label}\ncalibration error {ece:.3f}",
    )
    panel.vlines(predicted, low, high, color="#0072B2", linewidth=1.4)
    ends = [table["predicted_low"].min(), table["predicted_high"].max()]
    panel.set_xlim(min(-0.03, ends[0] - 0.03), max(1.03, ends[1] + 0.03))  # raw predictions leave [0, 1]
    panel.set_ylim(-0.03, 1.03)
    panel.set_xlabel("predicted IoU (bin mean and range)")
    panel.set_ylabel("actual IoU (bin mean and interval)")
    panel.grid(color="#E4E4E4", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.legend(loc="upper left", frameon=False, fontsize=8.5)
    panel.spines[["top", "right"]].set_visible(False)
    if title:
        panel.set_title(title, fontsize=10.5)
    return figure
