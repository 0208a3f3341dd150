"""One pure function per metric of attention granularity, batched over N maps x K prompts x 3 levels.

Every function takes attention (N, h, w), or (N, K, h, w) where it depends on the prompt, and masks (K, 3, H, W) of
whole, part and subpart over the same frame, and answers (N, K, 3). With A the attention and M a level over cells,
p = Σ A·M / Σ A is the share of the attention inside the level, a = mean M its share of the area.

Options that all share:

- ``resolution``: "grid" (the default) averages the masks by area to the attention's own grid; "image" answers as if
  the maps had been upsampled bilinearly (``align_corners=False``) to the masks' size. The two differ by what
  upsampling blurs.
- ``valid``: share of each cell that the image covers, (h, w), the weight of the cell in every mean; 0 is padding.
  Attention is mass per cell. Grid only.
- ``distinct``: (K, 3), False for levels that repeat the one above; they are NaN.

Masks are clipped to true sets (P := P∩W, S := S∩P) at their own resolution first. Undefined values are NaN: an empty
level, a map without mass, a constant map or level where a variance is divided by. Metrics of ranks take values that
differ by less than a millionth of the mean density as equal: float32 tells no more. Sums are accumulated in float64;
the answer has the attention's dtype (float32 at least) and device.

The area of a level alone moves these values even for attention that knows no levels (mass always favours the whole):
compare them with a null (:mod:`arrcoc_sam.granularity.nulls`) before any claim.
"""

from __future__ import annotations

from collections.abc import Sequence

from arrcoc_sam.errors import InputError, ShapeError, UnknownNameError, describe, explain
from arrcoc_sam.granularity.arguments import Attention, Values, check_attention, like
from arrcoc_sam.granularity.moment_metrics import (
    OF_MOMENTS,
    attention_iou,
    information_gain,
    log_lift,
    mass_accuracy,
    pearson,
    shell_contrast,
)
from arrcoc_sam.granularity.moments import grid_moments
from arrcoc_sam.granularity.rank_kernels import OF_RANKS
from arrcoc_sam.granularity.rank_metrics import (
    auc,
    normalized_ap,
    pointing_game,
    rank_accuracy,
    shuffled_auc,
    spearman,
)
from arrcoc_sam.granularity.ranks import grid_ranked
from arrcoc_sam.granularity.regions import Regions
from arrcoc_sam.granularity.transport import grid_transport, sliced_wasserstein

__all__ = [
    "METRICS",
    "attention_iou",
    "auc",
    "check_names",
    "evaluate",
    "information_gain",
    "log_lift",
    "mass_accuracy",
    "normalized_ap",
    "pearson",
    "pointing_game",
    "rank_accuracy",
    "shell_contrast",
    "shuffled_auc",
    "sliced_wasserstein",
    "spearman",
]

METRICS: tuple[str, ...] = (*OF_MOMENTS, *OF_RANKS, "sliced_wasserstein")
"""The names of all metrics that need nothing but attention and masks."""


def evaluate(names: Sequence[str], attention: Attention, regions: Regions) -> dict[str, Values]:
    """Several metrics on the grid at once, sharing what they have in common.

    Args:
        names: Metrics by name, of :data:`METRICS`.
        attention: Attention, >= 0, on the regions' grid.
        regions: Levels already on the grid.

    Returns:
        (N, K, 3) by name, in the attention's dtype.

    Raises:
        UnknownNameError: A name that is not among the metrics.
        ShapeError: Attention on another grid or for another number of prompts.
        InputError: Negative or non-finite attention.
    """
    check_names(names)
    check_attention(attention, len(regions))
    if tuple(attention.shape[-2:]) != regions.grid_hw:
        raise ShapeError(explain(f"attention is {describe(attention)}", f"maps on the masks' grid {regions.grid_hw}"))
    values: dict[str, Values] = {}
    if any(name in OF_MOMENTS for name in names):
        moments = grid_moments(attention, regions)
        values |= {name: OF_MOMENTS[name](moments) for name in names if name in OF_MOMENTS}
    ranked = [name for name in names if name in OF_RANKS]
    if ranked:
        values |= dict(zip(ranked, grid_ranked([OF_RANKS[name] for name in ranked], attention, regions), strict=True))
    if "sliced_wasserstein" in names:
        values["sliced_wasserstein"] = grid_transport(attention, regions)
    return {name: like(attention, values[name]) for name in names}


def check_names(names: Sequence[str]) -> None:
    """Refuse names that no metric has.

    Raises:
        UnknownNameError: The first such name, with those that exist.
        InputError: One name in place of a list.
    """
    if isinstance(names, str):
        raise InputError(explain(f"metrics is {names!r}", "a list of names", f"[{names!r}]"))
    for name in names:
        if name not in METRICS:
            raise UnknownNameError(explain(f"no metric is called {name!r}", f"one of {', '.join(METRICS)}"))
