"""Small pieces of HTML. Whatever comes from outside is escaped here, and nowhere is text pasted in unescaped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import NewType

__all__ = ["Html", "chip", "element", "join", "number", "table", "text"]

Html = NewType("Html", str)
"""A string that is markup already."""


def text(value: object) -> Html:
    """Any value as text: escaped, quotes too.

    Example:
        >>> text('<b> & "c"')
        '&lt;b&gt; &amp; &quot;c&quot;'
    """
    return Html(escape(str(value), quote=True))


def join(parts: Iterable[Html], between: str = "") -> Html:
    """Pieces one after the other."""
    return Html(between.join(parts))


def element(name: str, content: Html | Iterable[Html] = Html(""), **attributes: object) -> Html:
    """An element with its content; attribute values are escaped, None leaves one out, ``_`` in a name becomes ``-``.

    Example:
        >>> element("p", text("1 < 2"), class_="note", title=None)
        '<p class="note">1 &lt; 2</p>'
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    inner = content if isinstance(content, str) else join(content)
    return Html(f"<{name}{written}>{inner}</{name}>")


def number(value: float, digits: int = 3, *, percent: bool = False) -> Html:
    """A number for a table; NaN is a dash that says so to a screen reader.

    Example:
        >>> number(0.12345), number(-2.0, 1), number(0.5, percent=True)
        ('0.123', '−2.0', '50.0 %')
    """
    if math.isnan(value):
        return Html('<span class="nan" title="not defined" aria-label="not defined">–</span>')
    if math.isinf(value):
        return Html("∞" if value > 0 else "−∞")
    written = f"{100 * value:.1f} %" if percent else f"{value:.{digits}f}"
    # A minus that rounds to zero is noise.
    if float(written.split(" ", maxsplit=1)[0]) == 0:
        written = written.removeprefix("-")
    return Html(written.replace("-", "−"))


def chip(label: str, kind: str) -> Html:
    """A small label, coloured by ``kind``: a level's name, "abstain", "warn" or "plain"."""
    return element("span", text(label), class_=f"chip {kind}")


def table(
    caption: str, columns: Sequence[str], rows: Iterable[Sequence[Html]], *, headers: int = 1, class_: str = ""
) -> Html:
    """A table in a frame that scrolls sideways where it is too wide.

    Args:
        caption: What it shows.
        columns: Heads of the columns.
        rows: Cells.
        headers: How many cells at the beginning of a row are heads of it.
        class_: More CSS classes of the table.
    """
    kinds = ("left" if i < headers else None for i in range(len(columns)))
    head = element(
        "tr", (element("th", text(c), scope="col", class_=kind) for c, kind in zip(columns, kinds, strict=True))
    )
    body = (
        element(
            "tr",
            (element("th", cell, scope="row") if i < headers else element("td", cell) for i, cell in enumerate(row)),
        )
        for row in rows
    )
    inner = join([element("caption", text(caption)), element("thead", head), element("tbody", body)])
    # A region that scrolls has to be reachable by keyboard.
    return element(
        "div",
        element("table", inner, class_=class_ or None),
        class_="scroll",
        tabindex=0,
        role="region",
        aria_label=caption,
    )
