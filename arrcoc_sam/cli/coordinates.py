"""Points, boxes and lists as they are typed."""

from __future__ import annotations

from collections.abc import Sequence

from arrcoc_sam.errors import InputError, explain

__all__ = ["parse_box", "parse_integers", "parse_labelled_point", "parse_point"]


def parse_point(text: str) -> tuple[float, float]:
    """``x,y`` in pixels.

    Raises:
        InputError: Something else.

    Example:
        >>> parse_point("120,80.5")
        (120.0, 80.5)
    """
    values = _numbers(text)
    if values is None or len(values) != 2:
        raise InputError(explain(f"the point {text!r}", "x,y in pixels, such as 120,80"))
    return values[0], values[1]


def parse_labelled_point(text: str) -> tuple[float, float, int]:
    """``x,y`` or ``x,y,label``, 1 for the foreground and 0 for the background.

    Raises:
        InputError: Something else.

    Example:
        >>> parse_labelled_point("120,80"), parse_labelled_point("5,6,0")
        ((120.0, 80.0, 1), (5.0, 6.0, 0))
    """
    values = _numbers(text)
    if values is None or len(values) not in (2, 3) or (len(values) == 3 and values[2] not in (0.0, 1.0)):
        expected = "x,y in pixels, or x,y,1 (foreground) or x,y,0 (background)"
        raise InputError(explain(f"the point {text!r}", expected))
    return values[0], values[1], int(values[2]) if len(values) == 3 else 1


def parse_box(text: str) -> tuple[float, float, float, float]:
    """``x0,y0,x1,y1`` in pixels.

    Raises:
        InputError: Something else, or a box whose end lies before its beginning.
    """
    values = _numbers(text)
    if values is None or len(values) != 4 or values[2] < values[0] or values[3] < values[1]:
        raise InputError(explain(f"the box {text!r}", "x0,y0,x1,y1 in pixels with x0 <= x1 and y0 <= y1"))
    return values[0], values[1], values[2], values[3]


def parse_integers(text: str, name: str) -> list[int]:
    """Whole numbers with commas between them.

    Raises:
        InputError: Something else.

    Example:
        >>> parse_integers("0,5,-1", "--layers")
        [0, 5, -1]
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(
            explain(f"{name} {text!r}", "whole numbers with commas between them, such as 0,5,-1")
        ) from error


def _numbers(text: str) -> Sequence[float] | None:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        return None
    return values if all(abs(value) < 1e9 for value in values) else None
