"""Ids and whole numbers as files have them: pandas writes whole numbers as floats once a single one is missing."""

from __future__ import annotations

from collections.abc import Container

from arrcoc_sam.datasets.faults import CocoId

__all__ = ["as_id", "as_whole", "other_kind"]

_EXACT = 2**53
"""From here on floats skip whole numbers: two ids may be written as one."""


def as_whole(value: object) -> int | None:
    """A whole number, also one that is written as a float; None for anything else.

    Example:
        >>> as_whole(7), as_whole(7.0), as_whole(7.5), as_whole(True), as_whole("7")
        (7, 7, None, None, None)
    """
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def as_id(value: object) -> CocoId | None:
    """An id: a whole number, also one that is written as a float, or a string; None for anything else."""
    return value if isinstance(value, str) else as_whole(value)


def other_kind(given: CocoId | None, known: Container[object]) -> str | None:
    """The mend for an id that is not known as it is, but as a string for a number, or the other way round.

    Example:
        >>> other_kind("1", {1, 2}), other_kind("3", {1, 2})
        ('ids are strings here and numbers there: write both alike', None)
    """
    try:
        other = int(given) if isinstance(given, str) else str(given)
    except ValueError:  # no number
        return None
    if given is None or other not in known:
        return None
    here, there = ("strings", "numbers") if isinstance(given, str) else ("numbers", "strings")
    return f"ids are {here} here and {there} there: write both alike"
