"""Which code evaluates the sums of each mask."""

from __future__ import annotations

from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from arrcoc_sam.losses.arguments import Backend
from arrcoc_sam.losses.sums import MaskSums, mask_sums

__all__ = ["per_mask_sums"]


def per_mask_sums(
    logits: Float[Tensor, "*N H W"],
    targets: Shaped[Tensor, "*N H W"],
    valid: Bool[Tensor, "*N"] | None,
    *,
    alpha: float | None,
    gamma: float,
    backend: Backend,
) -> MaskSums:
    """The sums of each mask by the backend that ``backend`` names."""
    return mask_sums(logits.flatten(-2), targets.flatten(-2), valid, alpha=alpha, gamma=gamma)
