"""Figures of an atlas: layers by heads, heads that stand out, controls and thresholds."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from arrcoc_sam.hierarchy.levels import LEVELS
from arrcoc_sam.report.atlas.svg import CONTRAST_COLORMAP
from arrcoc_sam.report.atlas.tables import (
    KINDS,
    AtlasLike,
    best_heads,
    calibrated_title,
    claim_counts,
    columns_of,
    contrast_limit,
    groups,
    image_count,
    laid_out,
    makes_claims,
    of_group,
    threshold_names,
)
from arrcoc_sam.report.labels import ATTENTION_COLORMAP, LEVEL_STYLES
from arrcoc_sam.report.results import ABSTAIN

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

    from arrcoc_sam.report.figures import Figure

__all__ = ["atlas_figures", "plot_balance", "plot_best_heads", "plot_contrast", "plot_levels", "plot_masses"]

_CELL_INCHES = 0.27
_ABSTAIN_GREY = "#ECEBE7"
_HATCH_GREY = "#9A9A9A"
_INK = "#333333"


def atlas_figures(result: AtlasLike) -> dict[str, Figure]:
    """All figures of an atlas by name; those of claims only where there are images enough for claims."""
    figures = {"contrast": plot_contrast(result), "best-heads": plot_best_heads(result)}
    figures["masses"] = plot_masses(result)
    if makes_claims(result):
        figures = {"levels": plot_levels(result), **figures, "balance": plot_balance(result)}
    return figures


def plot_levels(result: AtlasLike) -> Figure:
    """The level claimed of each head, controls with more than one map beside; hatched where nothing is claimed."""
    from matplotlib.patches import Patch

    shown = [group for group in groups(result) if len(of_group(result, group)) > 1] or groups(result)[:1]
    figure, panels = _panels([of_group(result, group) for group in shown])
    for number, (panel, group) in enumerate(zip(panels, shown, strict=True)):
        maps = of_group(result, group)
        _draw_levels(panel, maps)
        abstained = 100 * float((maps["level"] == ABSTAIN).mean())
        name = textwrap.fill("model" if number == 0 else f"control: {group}", _letters(maps))
        panel.set_title(f"{name}\n{abstained:.0f} % abstain", fontsize=9)
    handles = [Patch(color=LEVEL_STYLES[level].fill, label=f"{level[0].upper()}: {level}") for level in LEVELS]
    handles.append(Patch(**_hatched(), label="abstain"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=8.5)
    figure.suptitle(f"Level claimed, {image_count(result)} images", fontsize=11, fontweight="bold")
    return figure


def plot_contrast(result: AtlasLike) -> Figure:
    """Calibrated scores of the three levels, in null standard deviations, on one scale around 0."""
    judged = of_group(result, groups(result)[0])
    limit = contrast_limit(judged)
    figure, panels = _panels([judged] * len(LEVELS))
    for panel, level in zip(panels, LEVELS, strict=True):
        values = judged[f"z_{level}"].to_numpy(dtype=float)
        drawn = _draw_values(panel, judged, values, (-limit, limit), CONTRAST_COLORMAP)
        panel.set_title(level, fontsize=9.5)
    bar = figure.colorbar(drawn, ax=panels, fraction=0.02, pad=0.01, aspect=25)
    bar.set_label("calibrated score z, null sd", fontsize=8.5)
    bar.ax.tick_params(labelsize=8)
    claim = "" if makes_claims(result) else " (no claim: too few)"
    title = f"{calibrated_title(result)}\n{image_count(result)} images{claim}"  # in one line some are too wide
    figure.suptitle(title, fontsize=11, fontweight="bold")
    return figure


def plot_masses(result: AtlasLike) -> Figure:
    """Share of the attention on prefix tokens and on sinks; what is not defined is left out."""
    judged = of_group(result, groups(result)[0])
    found = {"prefix mass": "prefix_mass", "sink mass": "sink_mass"}
    shown = {name: judged[column].to_numpy(dtype=float) for name, column in found.items()}
    shown = {name: values for name, values in shown.items() if np.isfinite(values).any()}
    figure, panels = _panels([judged] * max(1, len(shown)), beside=0.75)
    if not shown:
        panels[0].set_axis_off()
        panels[0].set_title("neither prefix nor sink mass is defined", fontsize=9.5)
    for panel, (name, values) in zip(panels, shown.items(), strict=False):
        drawn = _draw_values(panel, judged, values, (0.0, max(0.01, float(np.nanmax(values)))), ATTENTION_COLORMAP)
        panel.set_title(name, fontsize=9.5)
        bar = figure.colorbar(drawn, ax=panel, fraction=0.05, pad=0.03)
        bar.set_label("share of the attention", fontsize=8)
        bar.ax.tick_params(labelsize=7.5)
    return figure


def plot_best_heads(result: AtlasLike, *, count: int = 6) -> Figure:
    """Heads that one half of the images chose for each level, with the lead that the other half gives them."""
    figure = _figure(7.0, 1.6 + 0.25 * count * len(LEVELS))
    panel = figure.subplots()
    judged = of_group(result, groups(result)[0])
    names, row = [], 0
    for level in LEVELS:
        for _, head in best_heads(judged, level, count).iterrows():
            claimed = head["level"] == level
            colour = LEVEL_STYLES[level].fill
            panel.plot([head["gap_low"], head["gap_high"]], [row, row], color=colour, linewidth=2.2, alpha=0.75)
            face = colour if claimed else "white"
            panel.plot(head["gap"], row, marker="o", markersize=6, markerfacecolor=face, markeredgecolor=colour)
            names.append(f"{head['map']}  {level}")
            row += 1
    panel.axvline(0.0, color=_INK, linewidth=0.8)
    panel.set_yticks(range(len(names)), labels=names)
    panel.set_ylim(max(len(names), 1) - 0.4, -0.6)
    panel.tick_params(labelsize=8)
    confidence = 100 * float(result.info.get("confidence", 0.95))
    panel.set_xlabel(f"lead over the other two levels, null sd, with {confidence:g} % interval", fontsize=8.5)
    panel.set_title(
        "Chosen on one half of the images, reported on the other\n(filled: claimed; open: abstains)", fontsize=9.5
    )
    panel.grid(axis="x", color="#d8d8d8", linewidth=0.6)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)
    return figure


def plot_balance(result: AtlasLike) -> Figure:
    """Shares of maps by what is claimed of them: the model beside its controls, and under other thresholds."""
    groups_of = {("model" if n == 0 else g): of_group(result, g) for n, g in enumerate(groups(result))}
    by_group = {f"{name} ({len(maps)})": _shares(maps) for name, maps in groups_of.items()}
    by_threshold = {
        name: {kind: float(row[f"share_{kind}"]) for kind in KINDS}
        for name, (_, row) in zip(threshold_names(result.ablation), result.ablation.iterrows(), strict=True)
    }
    rows = len(by_group) + len(by_threshold)
    figure = _figure(7.0, 2.0 + 0.3 * rows)
    upper, lower = figure.subplots(2, 1, height_ratios=[len(by_group), len(by_threshold)], sharex=True)
    _draw_stacks(upper, by_group, "Model and controls (number of maps)")
    _draw_stacks(lower, by_threshold, "Model, other thresholds for levels")
    lower.set_xlabel("share of the maps", fontsize=8.5)
    handles, labels = upper.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8.5)
    return figure


def _shares(maps: pd.DataFrame) -> dict[str, float]:
    return {kind: count / len(maps) for kind, count in claim_counts(maps).items()}


def _draw_stacks(panel: Axes, stacks: dict[str, dict[str, float]], title: str) -> None:
    rows = np.arange(len(stacks))
    left = np.zeros(len(stacks))
    for kind in KINDS:
        widths = np.nan_to_num([shares[kind] for shares in stacks.values()])
        style: dict[str, Any] = {"color": LEVEL_STYLES[kind].fill} if kind in LEVEL_STYLES else _hatched()
        panel.barh(rows, widths, 0.7, left=left, label=kind, **style)
        left += widths
    panel.set_yticks(rows, labels=list(stacks))
    panel.set_ylim(len(stacks) - 0.5, -0.5)
    panel.set_xlim(0, 1)
    panel.set_title(title, fontsize=9.5, loc="left")
    panel.tick_params(labelsize=8)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)


def _hatched() -> dict[str, Any]:
    return {"facecolor": _ABSTAIN_GREY, "edgecolor": _HATCH_GREY, "hatch": "////", "linewidth": 0.0}


def _draw_levels(panel: Axes, maps: pd.DataFrame) -> None:
    from matplotlib.patches import Rectangle

    rows, columns, places = laid_out(maps)
    levels = maps["level"].astype(str).tolist()
    for (row, column), index in places.items():
        corner = column - 0.46, row - 0.46
        if levels[index] == ABSTAIN:
            panel.add_patch(Rectangle(corner, 0.92, 0.92, **_hatched()))
            continue
        panel.add_patch(Rectangle(corner, 0.92, 0.92, facecolor=LEVEL_STYLES[levels[index]].fill, linewidth=0.0))
        letter = levels[index][0].upper()
        panel.text(column, row, letter, ha="center", va="center", color="white", fontsize=7.5, fontweight="bold")
    _name_cells(panel, rows, columns)


def _draw_values(
    panel: Axes, maps: pd.DataFrame, values: np.ndarray, ends: tuple[float, float], colormap: str
) -> AxesImage:
    rows, columns, places = laid_out(maps)
    values = np.ma.masked_invalid(columns_of(values, places, (len(rows), len(columns))))
    panel.set_facecolor(_ABSTAIN_GREY)
    panel.patch.set(hatch="////", edgecolor=_HATCH_GREY, linewidth=0.0)
    drawn = panel.imshow(values, cmap=colormap, vmin=ends[0], vmax=ends[1], interpolation="nearest")
    _name_cells(panel, rows, columns)
    return drawn


def _name_cells(panel: Axes, rows: list[str], columns: list[str]) -> None:
    """Names of layers and heads, as many as there is room for."""
    step = max(1, -(-max(len(name) for name in columns) // 4))
    if len(columns) > 16:
        step = max(step, 2)
    panel.set_xticks(range(0, len(columns), step), labels=columns[::step])
    panel.set_yticks(range(len(rows)), labels=rows)
    panel.tick_params(labelsize=6.5, length=0)
    panel.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
    panel.set_aspect("equal")
    for spine in panel.spines.values():
        spine.set_visible(False)


def _panel_inches(maps: pd.DataFrame) -> float:
    """Width of a panel with the names of its rows; wide enough for a title, too."""
    rows, columns, _ = laid_out(maps)
    return max(len(columns), 4) * _CELL_INCHES + 0.4 + 0.07 * max(len(name) for name in rows)


def _letters(maps: pd.DataFrame) -> int:
    """How many letters of a title a panel has room for."""
    return int(9 * _panel_inches(maps))


def _panels(groups_of_maps: list[pd.DataFrame], *, beside: float = 0.0) -> tuple[Figure, list[Axes]]:
    """A row of panels, each wide enough for its heads and so many inches beside them."""
    widths = [_panel_inches(maps) + beside for maps in groups_of_maps]
    height = max(len(laid_out(maps)[0]) for maps in groups_of_maps) * _CELL_INCHES
    # Tables of a few heads still need room for the words about them.
    width, room = (sum(widths) + 0.2, 0.6) if beside else (max(sum(widths) + 1.1, 4.4), 1.6)
    figure = _figure(width, max(height + room, 2.8))
    panels = figure.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0]
    return figure, list(panels)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    from arrcoc_sam.report.figures import Figure

    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06), dpi=130)
