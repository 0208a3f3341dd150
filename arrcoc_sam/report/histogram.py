"""Histograms of a page, in plain SVG: what stays and what goes, one on top of the other."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from arrcoc_sam.report.markup import Html, element, join, text

__all__ = ["DROPPED", "KEPT", "histogram", "histogram_key"]

KEPT, DROPPED = "#0072B2", "#D55E00"
"""Colours of what stays and what goes; told apart by those with a colour vision deficiency, too."""

_WIDTH, _HEIGHT, _FOOT, _HEAD, _SIDE = 360.0, 120.0, 34.0, 18.0, 8.0


def histogram(
    kept: Float[np.ndarray, " n"],
    dropped: Float[np.ndarray, " m"],
    *,
    title: str,
    unit: str,
    limit: float | None = None,
    num_bins: int = 25,
) -> Html:
    """How values in [0, 1] are spread, what goes on top of what stays.

    Args:
        kept: Values of what stays; NaN is counted below the axis.
        dropped: Values of what goes.
        title: Above it.
        unit: What the axis is.
        limit: A threshold to be marked.
        num_bins: Bars.
    """
    edges = np.linspace(0, 1, num_bins + 1)
    undefined = int(np.isnan(kept).sum() + np.isnan(dropped).sum())
    counts = [np.histogram(np.clip(v[~np.isnan(v)], 0, 1), edges)[0] for v in (kept, dropped)]
    top = max(1, int((counts[0] + counts[1]).max()))
    bars = []
    step = _WIDTH / num_bins
    for place, (low, high) in enumerate(zip(*counts, strict=True)):
        words = f"{edges[place]:.2f} to {edges[place + 1]:.2f}: {low:,} kept, {high:,} dropped"
        heights = _HEIGHT * low / top, _HEIGHT * high / top
        x, base = _SIDE + place * step, _HEAD + _HEIGHT
        rects = [
            _rect(x, base - heights[0], step, heights[0], KEPT),
            _rect(x, base - heights[0] - heights[1], step, heights[1], DROPPED),
        ]
        bars.append(element("g", [element("title", text(words)), *rects]))
    axis = [element("path", d=f"M{_SIDE:g} {_HEAD + _HEIGHT:g}h{_WIDTH:g}", stroke="currentColor", stroke_opacity=0.5)]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        anchor = "start" if tick == 0 else "end" if tick == 1 else "middle"
        axis.append(_word(_SIDE + tick * _WIDTH, _HEAD + _HEIGHT + 14, f"{tick:g}", anchor))
    missing = f"; {undefined:,} without a value are not shown" if undefined else ""
    axis.append(
        _word(_SIDE + _WIDTH / 2, _HEAD + _HEIGHT + 29, f"{unit} (highest bar: {top:,} masks{missing})", "middle")
    )
    if limit is not None:
        x = _SIDE + limit * _WIDTH
        line = f"M{x:g} {_HEAD - 4:g}v{_HEIGHT + 4:g}"
        axis.append(element("path", d=line, stroke="currentColor", stroke_dasharray="4 3"))
    size = f"0 0 {_WIDTH + 2 * _SIDE:g} {_HEAD + _HEIGHT + _FOOT:g}"
    label = element("title", text(f"{title}, {len(kept):,} masks kept and {len(dropped):,} dropped"))
    drawn = element(
        "svg", [label, *bars, *axis], viewBox=size, role="img", style="width:100%;max-width:30rem;font-size:11px"
    )
    return element("figure", [element("figcaption", element("strong", text(title))), drawn], style="margin:.6rem 0")


def histogram_key() -> Html:
    """Which colour is which."""
    entries = []
    for words, colour in (("kept", KEPT), ("dropped", DROPPED)):
        swatch = element("rect", width=14, height=14, rx=2, fill=colour)
        sample = element("svg", swatch, viewBox="0 0 14 14", style="width:.9rem;height:.9rem", aria_hidden="true")
        entries.append(element("span", [sample, text(words)]))
    return element("div", join(entries), class_="key")


def _rect(x: float, y: float, width: float, height: float, fill: str) -> Html:
    if height <= 0:
        return Html("")
    return element(
        "rect", x=f"{x + 0.5:.2f}", y=f"{y:.2f}", width=f"{width - 1:.2f}", height=f"{height:.2f}", fill=fill
    )


def _word(x: float, y: float, word: str, anchor: str) -> Html:
    return element("text", text(word), x=f"{x:g}", y=f"{y:g}", text_anchor=anchor, fill="currentColor")
