"""From a statistic and its null to a verdict: calibrated scores, p-values, false discoveries, abstention.

Shapes: levels are the last axis (3), the tests (maps, heads) are the axes before it, and draws of a null come first.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from arrcoc_sam.errors import InputError, ShapeError, describe, explain

__all__ = [
    "DEGENERATE_SPREAD",
    "ROUNDING",
    "benjamini_hochberg",
    "bootstrap_counts",
    "bootstrap_gap",
    "max_t",
    "split_halves",
    "standard_scores",
]

DEGENERATE_SPREAD = 1e-6
"""A null whose sd is below this share of max(|mean|, 1) is a constant: there is nothing to compare with."""

ROUNDING = 1e-5
"""Values that are nearer than this, in standard deviations of the null, tie: float32 sums tell no more."""


def standard_scores(
    observed: Float[Tensor, "*tests 3"], null: Float[Tensor, " draws *tests 3"]
) -> Float[Tensor, "*tests 3"]:
    """Calibrated scores z = (value − null mean) / null sd.

    Args:
        observed: The statistic of the matched pairs.
        null: The same statistic of draws under the null.

    Returns:
        z, NaN where the null is constant (see :data:`DEGENERATE_SPREAD`) or undefined.

    Raises:
        ShapeError: Shapes that do not agree.
        InputError: Fewer than 2 draws.
    """
    _check_null(observed, null)
    mean, sd = null.mean(0), null.std(0)
    return ((observed - mean) / sd).masked_fill(_constant(observed, mean, sd), torch.nan)


def max_t(
    observed: Float[Tensor, "*tests 3"], null: Float[Tensor, " draws *tests 3"]
) -> tuple[Float[Tensor, "*tests 3"], Float[Tensor, "*tests"]]:
    """One-sided permutation p-values, jointly over the three levels.

    Levels are standardised within the set of all draws and the observed value, the maximum over levels is taken in
    each, and p is the share of the set whose maximum is at least the observed one, so p ≥ 1 / (draws + 1).

    Args:
        observed: The statistic of the matched pairs.
        null: The same statistic of draws under the null.

    Returns:
        p of each level adjusted for the three, and p of the largest level: whether any stands out. Both are 1 where
        the null is constant or undefined (for the second: at all levels).

    Raises:
        ShapeError: Shapes that do not agree.
        InputError: Fewer than 2 draws.

    Reference:
        P. H. Westfall, S. S. Young: Resampling-Based Multiple Testing, 1993 (single-step max-T).

    Example:
        >>> observed = torch.tensor([9.0, 1.0, 0.0])
        >>> null = torch.arange(99.0)[:, None].expand(99, 3) / 33
        >>> p_level, p_any = max_t(observed, null)
        >>> [round(v, 2) for v in p_level.tolist()], round(p_any.item(), 2)
        ([0.01, 0.69, 1.0], 0.01)
    """
    _check_null(observed, null)
    together = torch.cat([null, observed[None]])
    count = len(together)
    constant = _constant(observed, null.mean(0), null.std(0))
    standard = (together - together.mean(0)) / together.std(0, correction=0)
    standard = standard.masked_fill(constant, -torch.inf)
    highest = standard.amax(-1)
    reached = highest + ROUNDING
    p_level = torch.stack([(reached >= standard[-1, ..., level]).sum(0) for level in range(3)], dim=-1) / count
    p_any = (reached >= highest[-1]).sum(0) / count
    return p_level.masked_fill(constant, 1.0).to(null), p_any.masked_fill(constant.all(-1), 1.0).to(null)


def benjamini_hochberg(p_values: Float[Tensor, "*tests"]) -> Float[Tensor, "*tests"]:
    """Adjusted p-values (q): rejecting q ≤ f keeps the false discovery rate at f.

    Reference:
        Y. Benjamini, Y. Hochberg: Controlling the False Discovery Rate, JRSS B 57, 1995.

    Example:
        >>> benjamini_hochberg(torch.tensor([0.01, 0.04, 0.03, 0.5]))
        tensor([0.0400, 0.0533, 0.0533, 0.5000])
    """
    from scipy.stats import false_discovery_control

    if p_values.numel() == 0:
        return p_values.clone()
    flat = p_values.detach().cpu().double().numpy().ravel()
    adjusted: np.ndarray = false_discovery_control(flat, method="bh")
    return torch.from_numpy(adjusted).to(p_values).reshape(p_values.shape)


def split_halves(
    num: int, *, generator: torch.Generator | None = None
) -> tuple[Int64[Tensor, " selection"], Int64[Tensor, " report"]]:
    """Images dealt at random to a half that chooses and a half that reports, each in ascending order."""
    order = torch.randperm(num, generator=generator)
    return order[: num // 2].sort().values, order[num // 2 :].sort().values


def bootstrap_counts(
    num: int, num_draws: int, *, generator: torch.Generator | None = None
) -> Float[Tensor, "draws num"]:
    """How often each of ``num`` images occurs in each resample of as many, with replacement."""
    drawn = torch.randint(num, (num_draws, num), generator=generator)
    counts = torch.zeros(num_draws, num, dtype=torch.float64)
    return counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))


def bootstrap_gap(
    scores: Float[Tensor, "n tests 3"],
    top: Int64[Tensor, " tests"],
    counts: Float[Tensor, "draws n"],
    *,
    confidence: float = 0.95,
) -> tuple[Float[Tensor, " tests"], Float[Tensor, "tests 2"]]:
    """How far the level that was chosen elsewhere lies above the best of the others, with its bootstrap interval.

    Whole images are resampled, so that several prompts of one image stay together. The identity of the top level is
    given and stays fixed: chosen anew in every resample, the gap could never be below 0, and nobody would abstain.

    Args:
        scores: Each image's contribution to z, (value − expected) / null sd of the mean, NaN where it has no such
            level; z of a sample is the mean over its images.
        top: The level chosen on other images, per test.
        counts: Resamples, from :func:`bootstrap_counts`.
        confidence: Coverage of the two-sided percentile interval.

    Returns:
        The gap z_top − max(z_others) and its interval. Levels without any score are not among the others; NaN where the
        top has none, or there is no other.
    """
    num, tests = len(scores), scores.shape[1]
    present = scores.isfinite()
    flat = torch.where(present, scores, 0.0).to(counts.dtype).reshape(num, -1)
    weights = present.reshape(num, -1).to(counts.dtype)

    def gaps(weighting: Float[Tensor, "draws n"]) -> Float[Tensor, "draws tests"]:
        z = ((weighting @ flat) / (weighting @ weights)).reshape(-1, tests, 3)
        own = z.gather(2, top.expand(len(z), -1)[..., None])[..., 0]
        others = z.scatter(2, top.expand(len(z), -1)[..., None], -torch.inf)
        return own - others.masked_fill(others.isnan(), -torch.inf).amax(2)

    tail = (1 - confidence) / 2
    gap = gaps(torch.ones_like(counts[:1]))[0]
    defined = gap.isfinite()
    # A resample may miss every image that has a level; such draws say nothing.
    drawn = gaps(counts)
    drawn = torch.where(drawn.isfinite(), drawn, torch.nan)
    quantiles = torch.tensor([tail, 1 - tail], dtype=drawn.dtype, device=drawn.device)
    interval = drawn.nanquantile(quantiles, dim=0).T.masked_fill(~defined[:, None], torch.nan)
    return gap.masked_fill(~defined, torch.nan), interval


def _check_null(observed: Float[Tensor, "*tests 3"], null: Float[Tensor, " draws *tests 3"]) -> None:
    if null.shape[1:] != observed.shape or observed.shape[-1:] != (3,):
        raise ShapeError(explain(f"null is {describe(null)}", f"(draws, {', '.join(map(str, observed.shape))})"))
    if len(null) < 2:
        raise InputError(explain(f"{len(null)} draws of the null", "at least 2"))


def _constant(observed: Tensor, mean: Tensor, sd: Tensor) -> Bool[Tensor, "*tests 3"]:
    """Where there is nothing to compare with; NaN anywhere counts as such."""
    return ~(sd >= DEGENERATE_SPREAD * mean.abs().clamp(min=1)) | ~observed.isfinite()
