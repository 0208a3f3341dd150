"""Bars of a page, in plain markup: they follow its colours, scale with its text and can be printed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from arrcoc_sam.hierarchy.levels import LEVELS
from arrcoc_sam.report.labels import AREA_BOUND, metric_label
from arrcoc_sam.report.markup import Html, element, number, text

__all__ = ["bar", "bar_block", "bar_scale", "metric_bars"]


def bar_scale(values: Float[Tensor, "N K 3"]) -> tuple[float, float]:
    """Both ends of a metric's bars, the same for all maps and prompts, so that bars compare. 0 is always within.

    Example:
        >>> bar_scale(torch.tensor([[[0.5, float("nan"), -0.25]]]))
        (-0.25, 0.5)
    """
    finite = values.detach()[torch.isfinite(values)].double()
    if not len(finite):
        return 0.0, 1.0
    low, high = min(0.0, float(finite.min())), max(0.0, float(finite.max()))
    return (low, high) if high > low else (0.0, 1.0)


def metric_bars(metric: str, values: Sequence[float], scale: tuple[float, float], areas: Sequence[float]) -> Html:
    """A metric of one map at three levels.

    Args:
        metric: Its name.
        values: Whole, part, subpart.
        scale: What :func:`bar_scale` gave.
        areas: Share of each level in the area, marked where the metric is to be read against it.
    """
    label = metric_label(metric)
    if metric not in AREA_BOUND:
        return bar_block(label.title, label.unit, values, scale)
    return bar_block(label.title, label.unit, values, (scale[0], max(scale[1], *areas)), areas)


def bar_block(
    title: str,
    unit: str,
    values: Sequence[float],
    scale: tuple[float, float],
    ticks: Sequence[float] | None = None,
) -> Html:
    """Three bars, one a level, with their values in figures.

    Args:
        title: Above them.
        unit: Beside the title.
        values: Whole, part, subpart; NaN has no bar.
        scale: Both ends; a value beyond is drawn up to the end.
        ticks: A mark on each.
    """
    name = element("p", [element("strong", text(title)), element("span", text(unit))], class_="name")
    marks = [None] * len(LEVELS) if ticks is None else ticks
    rows = [
        bar(level, value, scale, kind=level, tick=tick)
        for level, value, tick in zip(LEVELS, values, marks, strict=True)
    ]
    return element("div", [name, *rows], class_="metric")


def bar(
    name: str,
    value: float,
    scale: tuple[float, float],
    *,
    kind: str,
    tick: float | None = None,
    span: tuple[float, float] | None = None,
) -> Html:
    """One bar with its value in figures.

    Args:
        name: Left of it.
        value: NaN has no bar.
        scale: Both ends; a value beyond is drawn up to the end.
        kind: The level whose colour it has.
        tick: A mark on it.
        span: Both ends of an interval around the value, drawn as a thin line.
    """
    low, high = scale

    def place(at: float) -> float:
        return 100 * (min(max(at, low), high) - low) / (high - low)

    marks = []
    if math.isfinite(value):
        start, end = sorted((place(0.0), place(value)))
        marks.append(element("i", style=f"left:{start:.1f}%;width:{end - start:.1f}%"))
    if span is not None:
        start, end = place(span[0]), place(span[1])
        marks.append(element("b", class_="span", style=f"left:{start:.1f}%;width:{end - start:.1f}%"))
    if low < 0:
        marks.append(element("b", class_="zero", style=f"left:{place(0.0):.1f}%"))
    if tick is not None:
        marks.append(element("b", class_="tick", style=f"left:{place(tick):.1f}%"))
    track = element("span", marks, class_="track", aria_hidden="true")
    cells = [element("span", text(name)), track, element("span", number(value), class_="value")]
    return element("div", cells, class_=f"bar {kind}")
