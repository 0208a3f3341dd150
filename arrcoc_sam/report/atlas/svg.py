"""Tables of layers by heads as SVG: one cell a map, its words at hand when pointed at; colours follow the page's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from arrcoc_sam.report.atlas.tables import laid_out
from arrcoc_sam.report.markup import Html, element, join, text
from arrcoc_sam.report.results import ABSTAIN

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CONTRAST_COLORMAP", "Scale", "cell_map", "interval_bar", "level_map", "scale_key", "value_map"]

CONTRAST_COLORMAP = "BrBG"
"""Brown to green: safe for colour-blind readers, and neither is the colour of a level."""

_CELL = 24.0
_GAP = 2.0
_HEAD = 18.0
_LETTER = 7.0


@dataclass(frozen=True)
class Scale:
    """Colours for numbers.

    Attributes:
        low: The number at its beginning.
        high: The number at its end.
        colormap: A matplotlib colour map.
        unit: What the numbers are.
    """

    low: float
    high: float
    colormap: str
    unit: str

    def colours(self, values: np.ndarray) -> list[str]:
        """A colour for each number, "" for NaN; beyond the ends, that of the end."""
        from matplotlib import colormaps
        from matplotlib.colors import to_hex

        shares = np.clip((values - self.low) / (self.high - self.low), 0, 1)
        colours = colormaps[self.colormap](np.nan_to_num(shares))
        return ["" if np.isnan(value) else to_hex(colour) for value, colour in zip(values, colours, strict=True)]


def level_map(maps: pd.DataFrame, *, label: str) -> Html:
    """The level claimed of each map: coloured and lettered W, P or S; hatched where nothing is claimed.

    Args:
        maps: Rows of one group.
        label: What it shows, in words.
    """
    cells = {}
    rows, columns, places = laid_out(maps)
    names, levels, reasons = (maps[key].astype(str).tolist() for key in ("map", "level", "reason"))
    for place, index in places.items():
        words = f"{names[index]}: {levels[index]}" + (f", {reasons[index]}" if reasons[index] else "")
        letter = "" if levels[index] == ABSTAIN else levels[index][0].upper()
        cells[place] = _cell(place, words, class_=levels[index], letter=letter)
    return cell_map(rows, columns, cells, label=label)


def value_map(maps: pd.DataFrame, values: np.ndarray, scale: Scale, *, label: str) -> Html:
    """A number of each map as a colour; hatched where it is not defined.

    Args:
        maps: Rows of one group.
        values: One number a row.
        scale: Its colours.
        label: What it shows, in words.
    """
    rows, columns, places = laid_out(maps)
    names, colours = maps["map"].astype(str).tolist(), scale.colours(values)
    cells = {}
    for place, index in places.items():
        value = "not defined" if np.isnan(values[index]) else f"{values[index]:.3g} {scale.unit}"
        fill = colours[index] or None
        cells[place] = _cell(place, f"{names[index]}: {value}", class_="value" if fill else ABSTAIN, fill=fill)
    return cell_map(rows, columns, cells, label=label)


def cell_map(rows: Sequence[str], columns: Sequence[str], cells: Mapping[tuple[int, int], Html], *, label: str) -> Html:
    """Cells with the names of their rows and columns; names are left out where there is no room for all."""
    left = max(len(name) for name in rows) * _LETTER + 12
    words = [element("title", text(label))]
    step = max(1, math.ceil(max(len(name) for name in columns) * 8 / (_CELL + _GAP)))
    for number, name in list(enumerate(columns))[::step]:
        words.append(_word(left + number * (_CELL + _GAP) + _CELL / 2, _HEAD - 6, name, "middle"))
    for number, name in enumerate(rows):
        words.append(_word(left - 6, _HEAD + number * (_CELL + _GAP) + _CELL / 2 + 3.5, name, "end"))
    width = left + len(columns) * (_CELL + _GAP) + max(0, len(columns[-1]) * 8 - _CELL) / 2
    height = _HEAD + len(rows) * (_CELL + _GAP)
    return element(
        "svg",
        [*words, element("g", cells.values(), transform=f"translate({left:g} {_HEAD:g})")],
        viewBox=f"0 0 {width:g} {height:g}",
        style=f"width:{width:g}px",
        role="img",
        class_="cellmap",
    )


def scale_key(scale: Scale) -> Html:
    """A bar of a scale's colours with the numbers at its ends."""
    stops = ",".join(scale.colours(np.linspace(scale.low, scale.high, 9)))
    bar = element("span", class_="scale", style=f"background:linear-gradient(90deg,{stops})")
    ends = [f"{value:.3g}".replace("-", "−") for value in (scale.low, scale.high)]
    return element("span", [text(ends[0]), bar, text(f"{ends[1]} {scale.unit}")])


def interval_bar(value: float, low: float, high: float, ends: tuple[float, float], *, kind: str) -> Html:
    """A number with its interval as a mark on a line, with a mark where 0 is.

    Args:
        value: The number.
        low: Where the interval begins.
        high: Where it ends.
        ends: Both ends of the line; what lies beyond is cut.
        kind: A level or "abstain", for the colour.
    """

    def place(at: float) -> float:
        return 100 * (min(max(at, ends[0]), ends[1]) - ends[0]) / (ends[1] - ends[0])

    marks = [element("b", class_="zero", style=f"left:{place(0.0):.1f}%")]
    if np.isfinite([value, low, high]).all():
        marks.append(element("i", style=f"left:{place(low):.1f}%;width:{place(high) - place(low):.1f}%"))
        marks.append(element("b", class_="dot", style=f"left:{place(value):.1f}%"))
    return element("span", marks, class_=f"interval {kind}", aria_hidden="true")


def _cell(place: tuple[int, int], words: str, *, class_: str, letter: str = "", fill: str | None = None) -> Html:
    x, y = place[1] * (_CELL + _GAP), place[0] * (_CELL + _GAP)
    parts = [
        element("title", text(words)),
        element(
            "rect",
            x=f"{x:g}",
            y=f"{y:g}",
            width=f"{_CELL:g}",
            height=f"{_CELL:g}",
            rx=2,
            style=None if fill is None else f"fill:{fill}",
        ),
    ]
    if class_ == ABSTAIN:
        half, end = _CELL / 2, _CELL
        strokes = [(0.0, half, half, 0.0), (0.0, end, end, 0.0), (half, end, end, half)]
        lines = "".join(f"M{x + a:g} {y + b:g}L{x + c:g} {y + d:g}" for a, b, c, d in strokes)
        parts.append(element("path", d=lines))
    if letter:
        parts.append(_word(x + _CELL / 2, y + _CELL / 2 + 4, letter, "middle"))
    return element("g", parts, class_=class_)


def _word(x: float, y: float, word: str, anchor: str) -> Html:
    return element("text", join([text(word)]), x=f"{x:g}", y=f"{y:g}", text_anchor=anchor)
