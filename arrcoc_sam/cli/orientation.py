"""What is said of pictures that are shown otherwise than they are stored, by the orientation of their EXIF data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from arrcoc_sam.cli.console import noted
from arrcoc_sam.images import is_turned

__all__ = ["note_orientation", "note_turned", "orientation_note"]


def orientation_note(paths: Iterable[Path], what: str, *, in_place: bool = False) -> str | None:
    """A sentence about images that are shown otherwise than they are stored; None where there are none.

    Args:
        paths: The images.
        what: What has to lie on them as they are shown, in the plural.
        in_place: Whether others are told by their size.
    """
    return _note_of([path for path in paths if is_turned(path, in_place=in_place)], what, in_place=in_place)


def note_orientation(paths: Iterable[Path], what: str, *, in_place: bool = False) -> None:
    """Note on stderr what :func:`orientation_note` says, once for all images."""
    note = orientation_note(paths, what, in_place=in_place)
    if note is not None:
        noted(note)


def note_turned(turned: Sequence[Path], what: str) -> None:
    """Note the same of images that are known to be turned at the same size: no header is read again."""
    note = _note_of(turned, what, in_place=True)
    if note is not None:
        noted(note)


def _note_of(turned: Sequence[Path], what: str, *, in_place: bool) -> str | None:
    if not turned:
        return None
    return (
        f"{len(turned)} of the images, {turned[0]} first, have an EXIF orientation"
        f"{' that keeps their size' if in_place else ''}, which was applied: {what} have to be of the picture as it is "
        "shown, not as it is stored"
    )
