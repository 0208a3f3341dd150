"""The figure of a forest: all masks outlined on the image, and beside it which mask lies in which."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float64, UInt8

from arrcoc_sam.errors import InputError, explain
from arrcoc_sam.hierarchy import MaskForest
from arrcoc_sam.images import ImageInput, load_image
from arrcoc_sam.masks import largest_interior_point
from arrcoc_sam.report.drawing import mask_outlines
from arrcoc_sam.report.panels import show_image

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from arrcoc_sam.report.figures import Figure

__all__ = ["plot_forest"]

_CASING = "#101418"
_COLORMAP = "viridis"
_INCHES = 6.4


def plot_forest(image: ImageInput, forest: MaskForest, *, max_nodes: int = 60, title: str | None = None) -> Figure:
    """Outlines of the masks, coloured by depth and numbered, and the tree of the same numbers.

    In the tree a row is a mask, each below the one that contains it, siblings by size; its dot's area grows with the
    mask's, and beside it stand its number, its share of the image and its score.

    Args:
        image: What the masks are of.
        forest: The masks.
        max_nodes: The largest so many are drawn; the figure says so where there are more.
        title: Above the figure.

    Returns:
        The figure; no state of ``matplotlib.pyplot`` is touched.

    Raises:
        InputError: The image is not of the masks' size, or ``max_nodes`` is below 1.
    """
    from matplotlib import colormaps

    from arrcoc_sam.report.figures import Figure

    pixels = load_image(image)
    if pixels.shape[:2] != tuple(forest.masks.shape[-2:]):
        came = f"an image of height and width {pixels.shape[:2]} with masks of {tuple(forest.masks.shape[-2:])}"
        raise InputError(explain(came, "the image that the masks are of"))
    if max_nodes < 1:
        raise InputError(explain(f"max_nodes={max_nodes}", "at least 1"))
    count = min(len(forest), max_nodes)  # nodes come by size, so that no shown one has a parent that is not
    deepest = int(forest.depth[:count].max()) if count else 0
    colors = colormaps[_COLORMAP](np.linspace(0.95, 0.25, deepest + 1))
    height, width = pixels.shape[:2]
    photo_wide = _INCHES * min(1.4, max(0.7, width / height))
    figure = Figure(figsize=(photo_wide + 4.6, max(_INCHES, 0.2 * count + 1.0)), layout="constrained", dpi=110)
    photo, tree = figure.subplots(1, 2, width_ratios=[photo_wide, 4.6])
    _draw_photo(photo, pixels, forest, count, colors)
    _draw_tree(tree, forest, count, colors)
    shown = f"{count} masks" if count == len(forest) else f"the largest {count} of {len(forest)} masks"
    photo.set_title(f"{shown}, by depth in the tree", fontsize=10)
    tree.set_title("number · share of the image · score", fontsize=10)
    if title:
        figure.suptitle(title, fontsize=13, fontweight="bold")
    return figure


def _draw_photo(
    ax: Axes, pixels: UInt8[np.ndarray, "H W 3"], forest: MaskForest, count: int, colors: Float64[np.ndarray, "D 4"]
) -> None:
    from matplotlib.collections import LineCollection
    from matplotlib.patheffects import withStroke

    show_image(ax, pixels)
    masks = forest.masks[:count].cpu().numpy()
    places = largest_interior_point(masks).numpy() if count else np.zeros((0, 2))
    for node, (mask, (x, y)) in enumerate(zip(masks, places, strict=True)):
        depth = int(forest.depth[node])
        lines = mask_outlines(mask)
        width = max(1.0, 2.2 - 0.4 * depth)
        ax.add_collection(LineCollection(lines, colors=_CASING, linewidths=width + 1.0, alpha=0.6), autolim=False)
        ax.add_collection(LineCollection(lines, colors=[colors[depth]], linewidths=width), autolim=False)
        ax.text(
            x + 0.5,
            y + 0.5,
            str(node),
            color="white",
            fontsize=7,
            ha="center",
            va="center",
            clip_on=True,
            path_effects=[withStroke(linewidth=2, foreground=_CASING)],
        )


def _draw_tree(ax: Axes, forest: MaskForest, count: int, colors: Float64[np.ndarray, "D 4"]) -> None:
    pixels = forest.masks.shape[-2] * forest.masks.shape[-1]
    order = _rows(forest, count)
    row_of = {node: row for row, node in enumerate(order)}
    for node, row in row_of.items():
        depth, parent = int(forest.depth[node]), int(forest.parent[node])
        if parent >= 0:
            corner = ([depth - 1, depth - 1, depth], [row_of[parent], row, row])
            ax.plot(*corner, color="#999999", linewidth=0.9, zorder=1)
        share, score = int(forest.areas[node]) / pixels, float(forest.scores[node])
        ax.scatter(
            [depth], [row], s=14 + 220 * share, color=[colors[depth]], edgecolors=_CASING, linewidths=0.6, zorder=2
        )
        words = f"{node} · {100 * share:.2g} % · " + ("–" if np.isnan(score) else f"{score:.2f}")
        ax.annotate(words, (depth, row), (10, 0), textcoords="offset points", va="center", fontsize=7)
    ax.set(xlim=(-0.4, len(colors) + 1.2), ylim=(max(count, 2) - 0.3, -0.7), yticks=[])
    ax.set_xticks(range(len(colors)))
    ax.set_xlabel("depth")
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)


def _rows(forest: MaskForest, count: int) -> list[int]:
    """Nodes, each followed by all that it contains."""
    waiting = [node for node in forest.roots.tolist() if node < count][::-1]
    order: list[int] = []
    while waiting:
        order.append(waiting.pop())
        waiting += [node for node in forest.children(order[-1]).tolist() if node < count][::-1]
    return order
