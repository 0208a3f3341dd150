"""Single panels of a figure, each drawn on an Axes that the caller made: photographs, outlines, maps, bars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, UInt8

from arrcoc_sam.errors import ShapeError, describe, explain
from arrcoc_sam.geometry import ImageTransform
from arrcoc_sam.hierarchy.levels import LEVELS
from arrcoc_sam.report.drawing import LevelOutlines, grid_extent, level_outlines, thumbnail
from arrcoc_sam.report.labels import ATTENTION_COLORMAP, LEVEL_STYLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

__all__ = ["draw_outlines", "level_bars", "mark_point", "outline_masks", "overlay_attention", "show_image"]

_MAX_SIDE = 1024
_CASING = "#101418"
_GREY = "#555555"


def show_image(ax: Axes, image: UInt8[np.ndarray, "H W 3"], *, max_side: int = _MAX_SIDE) -> None:
    """Show an image in its own pixel coordinates (edges: the first pixel covers 0 to 1), reduced if it is large."""
    height, width = image.shape[:2]
    ax.imshow(thumbnail(image, max_side), extent=(0, width, height, 0), interpolation="antialiased")
    ax.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set_visible(False)


def overlay_attention(
    ax: Axes,
    image: UInt8[np.ndarray, "H W 3"],
    density: Float[np.ndarray, "h w"],
    *,
    transform: ImageTransform | None = None,
    opacity: float = 0.62,
    vmax: float | None = None,
    colormap: str = ATTENTION_COLORMAP,
) -> AxesImage:
    """An attention map over its image, cell by cell, where the grid lies.

    Args:
        ax: Where to draw.
        image: RGB.
        density: A value per cell, such as :func:`arrcoc_sam.report.drawing.relative_density`; NaN is left out.
        transform: From the image to the frame that the grid divides; by default the grid covers the image.
        opacity: Of the map, in [0, 1].
        vmax: The value at the top of the colour scale, which begins at 0; the map's largest by default.
        colormap: A matplotlib colour map.

    Returns:
        The drawn map, for a colour bar.
    """
    height, width = image.shape[:2]
    show_image(ax, image)
    left, top, right, bottom = (0, 0, width, height) if transform is None else grid_extent(transform)
    drawn = ax.imshow(
        np.ma.masked_invalid(density),
        extent=(left, right, bottom, top),
        cmap=colormap,
        vmin=0.0,
        vmax=float(np.nanmax(density)) if vmax is None else vmax,
        alpha=opacity,
        interpolation="nearest",
    )
    ax.set(xlim=(0, width), ylim=(height, 0))
    return drawn


def outline_masks(ax: Axes, masks: Bool[np.ndarray, "3 H W"], *, linewidth: float = 1.8) -> None:
    """Outlines of whole, part and subpart over whatever is on the Axes, each in its colour and line style.

    Args:
        ax: Where to draw.
        masks: (3, H, W) bool.
        linewidth: In points; the dark casing is wider by half.

    Raises:
        ShapeError: Not three masks.
    """
    draw_outlines(ax, level_outlines(masks), linewidth=linewidth)


def draw_outlines(ax: Axes, outlines: LevelOutlines, *, linewidth: float = 1.8) -> None:
    """:func:`outline_masks` of outlines that were traced already, for several panels of the same masks."""
    from matplotlib.collections import LineCollection

    for level, lines in outlines.items():
        style = LEVEL_STYLES[level]
        dashes = (0.0, style.dashes) if style.dashes else "solid"
        ax.add_collection(LineCollection(lines, colors=_CASING, linewidths=1.6 * linewidth, alpha=0.75), autolim=False)
        ax.add_collection(
            LineCollection(lines, colors=style.line, linewidths=linewidth, linestyles=[dashes]), autolim=False
        )


def mark_point(ax: Axes, point_xy: Sequence[float]) -> None:
    """A click, given as pixel indices, as a ringed cross that shows on light and dark ground."""
    x, y = point_xy[0] + 0.5, point_xy[1] + 0.5
    ax.plot(x, y, marker="o", markersize=9, markerfacecolor="white", markeredgecolor=_CASING, zorder=5)
    ax.plot(x, y, marker="+", markersize=6, markeredgecolor=_CASING, markeredgewidth=1.5, zorder=6)


def level_bars(
    ax: Axes,
    values: Float[np.ndarray, "N 3"],
    names: Sequence[str],
    *,
    title: str,
    unit: str = "",
    ticks: Float[np.ndarray, " 3"] | None = None,
) -> None:
    """One metric as horizontal bars: a group a map, a bar a level, whole above part above subpart.

    Args:
        ax: Where to draw.
        values: (N, 3); NaN is written as "n/a", infinity by its sign, neither with a bar.
        names: One a map.
        title: Above the panel.
        unit: Below its axis.
        ticks: (3,) values to mark across each level's bars, such as its share of the area.
    """
    if values.ndim != 2 or values.shape != (len(names), len(LEVELS)):
        raise ShapeError(
            explain(f"values is {describe(values)}", f"({len(names)}, 3): one row a name, one column a level")
        )
    height = 0.26
    for column, level in enumerate(LEVELS):
        style = LEVEL_STYLES[level]
        rows = np.arange(len(names)) + (column - 1) * height
        lengths = np.where(np.isfinite(values[:, column]), values[:, column], 0.0)
        ax.barh(rows, lengths, height * 0.88, color=style.fill, label=level)
        for row, value in zip(rows, values[:, column], strict=True):
            if not np.isfinite(value):
                words = "n/a" if np.isnan(value) else "−∞" if value < 0 else "∞"
                ax.annotate(words, (0, row), (3, 0), textcoords="offset points", va="center", fontsize=6.5, color=_GREY)
        if ticks is not None and np.isfinite(ticks[column]):
            ax.vlines([ticks[column]] * len(rows), rows - height / 2, rows + height / 2, color=_CASING, linewidth=1.6)
    ax.axvline(0.0, color=_GREY, linewidth=0.8)
    ax.set_yticks(np.arange(len(names)), labels=list(names))
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_title(title, fontsize=9.5, fontweight="bold")
    ax.set_xlabel(unit, fontsize=8)
    ax.tick_params(labelsize=8)
    ax.grid(axis="x", color="#d8d8d8", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.margins(x=0.08)
    ax.locator_params(axis="x", nbins=4)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
