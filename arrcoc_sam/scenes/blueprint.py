"""Objects as blueprints: a tree of pieces, each with a shape or made up of its children."""

from __future__ import annotations

from dataclasses import dataclass, field

from arrcoc_sam.scenes.shapes import Shape

__all__ = ["Blueprint", "Piece"]


@dataclass(frozen=True)
class Piece:
    """A whole, part or subpart of an object.

    Attributes:
        shape: What it covers, inside of its parent where that has a shape; None: what its children cover.
        parent: Number of the piece that it lies in; -1 for the whole.
        look: Pieces of one look are of one colour and texture.
    """

    shape: Shape | None
    parent: int
    look: str


@dataclass
class Blueprint:
    """An object in its own coordinates, about in [-1, 1], y downwards.

    Attributes:
        pieces: The whole first; parents before their children, what lies behind before what lies in front.
        upright: Whether it stands on its feet: it is hardly rotated then.
    """

    pieces: list[Piece] = field(default_factory=list)
    upright: bool = True

    def add(self, shape: Shape | None, parent: int = -1, look: str = "base") -> int:
        """Append a piece; answers its number."""
        self.pieces.append(Piece(shape, parent, look))
        return len(self.pieces) - 1
