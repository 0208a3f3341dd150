"""The scores of followed objects over time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from arrcoc_sam.cli.video_overlay import OBJECT_COLOURS
from arrcoc_sam.segmenters.video.tracks import ObjectFrame, VideoTracks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_scores"]

_INK = "#333333"
_PANELS = (
    ("object_score", "object score\n(logit; hidden ≤ 0)"),
    ("predicted_iou", "predicted IoU"),
    ("area_ratio", "area,\nfirst frame = 1"),
)
_DASHES = ("-", "--", "-.", ":")  # lines that fall together stay visible


def plot_scores(tracks: VideoTracks) -> Figure:
    """Object score, predicted IoU and area of each object, frame by frame.

    Frames on which an object is hidden are bars of its colour above the scores; its prompts are dots on the upper edge,
    hollow for masks, which have no scores.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(11, 6.4), layout=ConstrainedLayoutEngine(h_pad=0.05, w_pad=0.08), dpi=130)
    panels = figure.subplots(len(_PANELS), 1, sharex=True)
    for panel, (name, label) in zip(panels, _PANELS, strict=True):
        _draw(panel, tracks, name)
        panel.set_ylabel(label, color=_INK)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    panels[0].axhline(0, color=_INK, linewidth=0.8)
    panels[1].set_ylim(-0.02, 1.02)
    _scale_areas(panels[2], [row.area_ratio for row in tracks.rows])
    _mark_hidden(panels[0], tracks)
    prompted = [row for row in tracks.rows if row.kind != "tracked"]
    for row in prompted:
        _mark_prompt(panels[0], tracks.object_ids.index(row.object_id), row)
    _explain_marks(panels[0], {row.kind == "mask" for row in prompted}, bool(tracks.occlusions()))
    panels[-1].set_xlabel("frame", color=_INK)
    panels[-1].set_xlim(-0.5, tracks.num_frames - 0.5)
    panels[0].legend(loc="lower left", bbox_to_anchor=(0, 1.1), ncols=6, frameon=False, borderaxespad=0)
    return figure


def _draw(panel: Axes, tracks: VideoTracks, name: str) -> None:
    for number, object_id in enumerate(tracks.object_ids):
        colour = OBJECT_COLOURS[number % len(OBJECT_COLOURS)]
        rows = tracks.of(object_id)
        frames, values = [row.frame for row in rows], [float(getattr(row, name)) for row in rows]
        panel.plot(
            frames,
            values,
            color=colour,
            linestyle=_DASHES[number % len(_DASHES)],
            linewidth=1.6,
            marker="." if len(rows) <= 100 else "",
            markersize=4,
            label=f"object {object_id}",
        )


def _scale_areas(panel: Axes, ratios: Sequence[float]) -> None:
    """From 0 to a little above the largest; a word where nobody had a mask to compare with."""
    known = [ratio for ratio in ratios if not math.isnan(ratio)]
    panel.set_ylim(0, 1.08 * max([1.0, *known]))
    if not known:
        panel.text(0.5, 0.5, "no mask on any first frame", ha="center", transform=panel.transAxes, color=_INK)


def _mark_hidden(panel: Axes, tracks: VideoTracks) -> None:
    """A row of bars an object, above the curves."""
    low, high = panel.get_ylim()
    step = 0.05 * (high - low)
    hidden = tracks.occlusions()
    for number, object_id in enumerate(tracks.object_ids):
        spans = [(o.first - 0.5, o.last - o.first + 1.0) for o in hidden if o.object_id == object_id]
        colour = OBJECT_COLOURS[number % len(OBJECT_COLOURS)]
        panel.broken_barh(spans, (high + (number + 0.5) * step, 0.7 * step), facecolors=colour, linewidth=0)
    panel.set_ylim(low, high + (len(tracks.object_ids) + 1.2) * step)


def _explain_marks(panel: Axes, of_masks: set[bool], hidden: bool) -> None:
    words = {False: "● prompt", True: "○ mask prompt"}
    marks = [words[of_mask] for of_mask in sorted(of_masks)] + ["bars: hidden"] * hidden
    panel.annotate("   ".join(marks), (1, 1.1), xycoords="axes fraction", ha="right", va="bottom", color=_INK)


def _mark_prompt(panel: Axes, number: int, row: ObjectFrame) -> None:
    colour = OBJECT_COLOURS[number % len(OBJECT_COLOURS)]
    panel.plot(
        row.frame,
        1.0,
        "o",
        color=colour,
        markerfacecolor="white" if row.kind == "mask" else colour,
        markersize=6,
        transform=panel.get_xaxis_transform(),
        clip_on=False,
        zorder=5,
    )
