"""What figures and pages read from a result, so that this package needs nothing that computes one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Float64, UInt8
from torch import Tensor

from arrcoc_sam.attention.maps import AttentionMaps
from arrcoc_sam.hierarchy import MaskHierarchy

__all__ = ["ABSTAIN", "GranularityLike"]

ABSTAIN = "abstain"
"""What stands in ``best_match`` where no level can be named."""


@runtime_checkable
class GranularityLike(Protocol):
    """N attention maps against the three levels of K prompts on one image.

    :class:`arrcoc_sam.granularity.GranularityResult` is one; its documentation says what the parts mean.
    """

    @property
    def image(self) -> UInt8[np.ndarray, "H W 3"]:
        """RGB."""
        ...

    @property
    def points_xy(self) -> Float64[Tensor, "K 2"] | None:
        """The clicks, pixel indices (x, y); None where there were none."""
        ...

    @property
    def hierarchy(self) -> MaskHierarchy:
        """Levels as they came, with scores."""
        ...

    @property
    def maps(self) -> AttentionMaps:
        """The attention maps."""
        ...

    @property
    def masks(self) -> Bool[Tensor, "K 3 H W"]:
        """Levels as they were measured, clipped to true sets."""
        ...

    @property
    def metrics(self) -> Mapping[str, Float[Tensor, "N K 3"]]:
        """Values by the metric's name."""
        ...

    @property
    def best_match(self) -> np.ndarray:
        """Names of levels or :data:`ABSTAIN`, (N, K)."""
        ...

    @property
    def measurable(self) -> Bool[Tensor, " K"]:
        """Whether the maps' grid can tell the levels apart."""
        ...

    @property
    def sink_mass(self) -> Float[Tensor, "N K"]:
        """Share of attention in the top 1 % of cells outside the whole."""
        ...

    @property
    def calibrated(self) -> bool:
        """Whether ``best_match`` stands on a comparison with other images."""
        ...

    @property
    def z(self) -> Float[Tensor, "N K 3"] | None:
        """Calibrated shell contrast; None when not calibrated."""
        ...

    @property
    def p_value(self) -> Float[Tensor, "N K 3"] | None:
        """Adjusted for the three levels; None when not calibrated."""
        ...
