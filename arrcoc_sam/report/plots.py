"""The figure of one result: the image with its levels outlined, each map over it, bars a level and metric."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from arrcoc_sam.errors import InputError, explain
from arrcoc_sam.hierarchy.levels import LEVELS
from arrcoc_sam.report.drawing import display_peak, level_array, level_outlines, level_shares, relative_density
from arrcoc_sam.report.labels import AREA_BOUND, LEVEL_STYLES, metric_label
from arrcoc_sam.report.panels import draw_outlines, level_bars, mark_point, overlay_attention, show_image
from arrcoc_sam.report.results import ABSTAIN, GranularityLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

    from arrcoc_sam.report.figures import Figure

__all__ = ["plot_granularity"]

_PANELS_A_ROW = 5
_PANEL_INCHES = 2.5


def plot_granularity(
    result: GranularityLike,
    *,
    maps: int | str | Sequence[int | str] | None = None,
    prompts: int | Sequence[int] | None = None,
    max_maps: int = 9,
    title: str | None = None,
) -> Figure:
    """The image with the click and its three masks, each attention map over it, and bars a level and metric.

    No state of ``matplotlib.pyplot`` is touched; save the figure with ``figure.savefig(path)``.

    Args:
        result: What an analysis answered.
        maps: Which of the maps to draw, by number (negative ones from the end) or name; the first ``max_maps`` by
            default.
        prompts: Which of the K prompts to show, one below the other; the first four by default.
        max_maps: At most so many maps are drawn; the figure says so where there are more.
        title: Above the figure.

    Returns:
        The figure.

    Raises:
        InputError: No prompt, or one that there is not; no map, or one that there is not; ``max_maps`` below 1.
    """
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    from arrcoc_sam.report.figures import Figure

    num_prompts = len(result.masks)
    asked: int | Sequence[int] = range(min(num_prompts, 4)) if prompts is None else prompts
    chosen = [int(asked)] if isinstance(asked, (int, np.integer)) else list(asked)
    if not chosen or not all(0 <= k < num_prompts for k in chosen):
        raise InputError(explain(f"prompts={prompts!r}", f"some of 0 … {num_prompts - 1}"))
    if max_maps < 1:
        raise InputError(explain(f"max_maps={max_maps}", "at least 1"))

    drawn = _chosen_maps(result, maps)[:max_maps]
    num_maps = len(drawn)
    rows = -(-(1 + num_maps) // _PANELS_A_ROW)
    height, width = result.image.shape[:2]
    # Panels keep the image's aspect ratio, within reason, so that little paper is left blank.
    images_high = rows * (_PANEL_INCHES * min(max(height / width, 0.5), 1.6) + 0.4)
    bars_high = 0.9 + 0.42 * num_maps
    block_high = images_high + bars_high + 0.75
    figure = Figure(
        figsize=(_PANELS_A_ROW * _PANEL_INCHES + 1.2, len(chosen) * block_high + (0.5 if title else 0.1)),
        layout=ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.07),  # inches: no label touches the edge
        dpi=110,
    )
    if title:
        figure.suptitle(title, fontsize=13, fontweight="bold")
    blocks = figure.subfigures(len(chosen), 1, squeeze=False)[:, 0]
    for block, prompt in zip(blocks, chosen, strict=True):
        upper, lower = block.subfigures(2, 1, height_ratios=[images_high + 0.65, bars_high])
        _draw_panels(upper, result, prompt, drawn, rows)
        _draw_bars(lower, result, prompt, drawn)
    return figure


def _chosen_maps(result: GranularityLike, maps: int | str | Sequence[int | str] | None) -> list[int]:
    """Numbers of the maps that were asked for."""
    names = list(result.maps.names)
    if maps is None:
        return list(range(len(names)))
    asked: list[int | str] = [maps] if isinstance(maps, (int, str, np.integer)) else list(maps)
    numbers = [names.index(one) if isinstance(one, str) and one in names else one for one in asked]
    if not numbers or not all(
        isinstance(one, (int, np.integer)) and -len(names) <= one < len(names) for one in numbers
    ):
        expected = f"some of 0 … {len(names) - 1}, or names such as {names[0]!r}"
        raise InputError(explain(f"maps={asked!r}", expected))
    return [int(one) % len(names) for one in numbers]


def _draw_panels(figure: SubFigure, result: GranularityLike, prompt: int, maps: Sequence[int], rows: int) -> None:
    panels = figure.subplots(rows, _PANELS_A_ROW, squeeze=False).ravel()
    outlines = level_outlines(level_array(result.masks, prompt))
    show_image(panels[0], result.image)
    panels[0].set_title(_click(result, prompt), fontsize=9.5)
    drawn = None
    for panel, index in zip(panels[1:], maps, strict=False):
        density = relative_density(result.maps, index, prompt)
        top = display_peak(density)
        drawn = overlay_attention(panel, result.image, density, transform=result.maps.transform, vmax=top)
        name = textwrap.shorten(result.maps.names[index], 26, placeholder="…")
        panel.set_title(f"{name} (scale to {top:.2g} ×)\n{_verdict(result, index, prompt)}", fontsize=9.5)
    for panel in panels[: 1 + len(maps)]:
        draw_outlines(panel, outlines)
        if result.points_xy is not None:
            mark_point(panel, result.points_xy[prompt].tolist())
    for panel in panels[1 + len(maps) :]:
        panel.set_axis_off()
    if drawn is not None:
        bar = figure.colorbar(drawn, ax=list(panels), fraction=0.02, pad=0.01, aspect=25)
        # Each map has a scale of its own, whose top its title gives.
        bar.set_ticks([0.0, drawn.get_clim()[1]], labels=["0", "top"])
        bar.set_label("density, × uniform", fontsize=8, labelpad=-8)
        bar.ax.tick_params(labelsize=8)
    _legend(figure)


def _draw_bars(figure: SubFigure, result: GranularityLike, prompt: int, maps: Sequence[int]) -> None:
    panels: Sequence[Axes] = figure.subplots(1, len(result.metrics), sharey=True, squeeze=False)[0]
    names = [textwrap.shorten(result.maps.names[index], 28, placeholder="…") for index in maps]
    shares = level_shares(result.maps, result.masks, prompt)
    for panel, (name, values) in zip(panels, result.metrics.items(), strict=True):
        label = metric_label(name)
        level_bars(
            panel,
            values[list(maps), prompt].detach().cpu().double().numpy(),
            names,
            title=label.title,
            unit=label.unit,
            ticks=shares if name in AREA_BOUND else None,
        )
        if panel is not panels[0]:
            panel.tick_params(left=False, labelleft=False)
    if len(maps) < len(result.maps):
        first = "the first " if list(maps) == list(range(len(maps))) else ""
        figure.supxlabel(f"{first}{len(maps)} of {len(result.maps)} maps", fontsize=8)


def _click(result: GranularityLike, prompt: int) -> str:
    if result.points_xy is None:
        return f"levels of prompt {prompt + 1}"
    x, y = result.points_xy[prompt].tolist()
    return f"click at ({x:.4g}, {y:.4g}) px\nand its three masks"


def _verdict(result: GranularityLike, index: int, prompt: int) -> str:
    match = str(result.best_match[index, prompt])
    if match != ABSTAIN:
        return f"→ {match}"
    return "→ abstain" if bool(result.measurable[prompt]) else "→ abstain (not measurable)"


def _legend(figure: SubFigure) -> None:
    from matplotlib import patheffects
    from matplotlib.legend_handler import HandlerTuple
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = []  # matplotlib's annotation knows no tuples of artists
    for level in LEVELS:
        style = LEVEL_STYLES[level]
        line = Line2D([], [], color=style.line, linewidth=2.4)
        if style.dashes:
            line.set_linestyle((0.0, style.dashes))
        line.set_path_effects([patheffects.withStroke(linewidth=4.2, foreground="#101418")])
        handles.append((line, Patch(color=style.fill)))  # as over the images, and as in the bars
    figure.legend(
        handles,
        [f"{level} ({LEVEL_STYLES[level].words})" for level in LEVELS],
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize=9,
        handlelength=6.0,
        handler_map={tuple: HandlerTuple(ndivide=None, pad=0.6)},
    )
