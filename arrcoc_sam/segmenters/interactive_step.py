"""InteractiveStep: one answer of an interactive session."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from arrcoc_sam.candidates import MaskCandidates
from arrcoc_sam.hierarchy import MaskHierarchy

__all__ = ["InteractiveStep"]


@dataclass(frozen=True, eq=False)
class InteractiveStep:
    """One answer of a session.

    Attributes:
        action: What was asked: "prompt", "refine" or "choose".
        points_xy: All clicks so far, ((x, y), …), pixel indices.
        labels: Their labels: 1 foreground, 0 background.
        box_xyxy: The box, or None.
        decoded: All four of the decoder's tokens (K = 1, M = 4).
        token: The token whose mask this step stands for and that is fed back to the next.
        ambiguous: Whether this is the first prompt, which three masks answer.
    """

    action: str
    points_xy: tuple[tuple[float, float], ...]
    labels: tuple[int, ...]
    box_xyxy: tuple[float, float, float, float] | None
    decoded: MaskCandidates
    token: int
    ambiguous: bool

    def __repr__(self) -> str:
        """What was asked, and how sure the answer is, instead of all the numbers."""
        asked = f"{len(self.points_xy)} points" + ("" if self.box_xyxy is None else " and a box")
        return f"InteractiveStep({self.action} of {asked}; token {self.token}, predicted IoU {self.predicted_iou:.2f})"

    @property
    def candidates(self) -> MaskCandidates:
        """The answer proper: three masks to the first prompt, one after."""
        return self.decoded.for_tokens((1, 2, 3) if self.ambiguous else (0,))

    @property
    def levels(self) -> MaskHierarchy:
        """Whole, part and subpart as the decoder sees them now, from tokens 1-3."""
        return self.decoded.hierarchy()

    @property
    def mask(self) -> Bool[Tensor, "H W"]:
        """The step's mask at the image's size."""
        return self.decoded.for_tokens((self.token,)).masks()[0, 0]

    @property
    def predicted_iou(self) -> float:
        """Of that mask, raw."""
        return float(self.decoded.for_tokens((self.token,)).predicted_iou)

    @property
    def logits(self) -> Float[Tensor, "h w"]:
        """Of that mask, low resolution: what the next step is given."""
        return self.decoded.for_tokens((self.token,)).logits[0, 0]
