"""Figures that a notebook shows, whether or not ``matplotlib.pyplot`` is in use there."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import matplotlib.figure

__all__ = ["Figure"]


class Figure(matplotlib.figure.Figure):
    """A figure of no backend, as matplotlib's own: saved by ``savefig``, and a picture at the end of a notebook's cell.

    Arguments are those of ``matplotlib.figure.Figure``.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)

    def _repr_png_(self) -> bytes:
        picture = BytesIO()
        self.savefig(picture, format="png")
        return picture.getvalue()
