"""The size of a test: how often it rejects for attention that knows nothing of the image.

The same harness judges the null that claims stand on and two that they do not, and has to convict the worst of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import pandas as pd
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from arrcoc_sam.granularity.inference import max_t
from arrcoc_sam.granularity.moment_metrics import OF_MOMENTS
from arrcoc_sam.granularity.moments import moments_of_shares
from arrcoc_sam.granularity.nulls import matched_mean, null_means, random_permutations
from arrcoc_sam.granularity.planted import IGNORANT, ignorant
from arrcoc_sam.granularity.regions import Regions

__all__ = ["NULLS", "Progress", "clopper_pearson", "false_positive_rates"]

NULLS = ("other images", "toroidal shifts", "pixel shuffling")
"""Nulls that the harness can judge; the first is the one that claims stand on."""

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with what is done, how much of it, and of how much."""

HEADLINE = "shell_contrast"
_TRIALS_AT_ONCE = 50
# Draws of the nulls that move each map within its image: each is as large as the attention. A batch shares them.
_MOVES = 199


def clopper_pearson(successes: int, trials: int, *, confidence: float = 0.99) -> tuple[float, float]:
    """Exact one-sided limits of a rate, below and above, each of this confidence.

    Example:
        >>> [round(limit, 4) for limit in clopper_pearson(500, 10_000)]
        [0.0451, 0.0553]
    """
    from scipy.stats import beta

    low = 0.0 if successes == 0 else float(beta.ppf(1 - confidence, successes, trials - successes + 1))
    high = 1.0 if successes == trials else float(beta.ppf(confidence, successes + 1, trials - successes))
    return low, high


def false_positive_rates(
    regions: Regions,
    *,
    num_trials: int = 10_000,
    images_a_trial: int = 30,
    num_draws: int = 999,
    alpha: float = 0.05,
    seed: int = 0,
    nulls: tuple[str, ...] = NULLS,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """How often the test of a map rejects at ``alpha`` when the map knows nothing, for each null.

    A trial draws images from ``regions``, fresh attention for each, and asks whether any level stands out.

    Args:
        regions: One triple an image, the pool that trials draw from.
        num_trials: Trials with other images' attention as the null; a twentieth for the other nulls, which cost more.
        images_a_trial: Images behind a test.
        num_draws: Draws of the null.
        alpha: Level of the test.
        seed: Of everything.
        nulls: Which of :data:`NULLS` to judge.
        progress: Called as trials are done.

    Returns:
        Columns attention, null, trials, rejected, rate, low, high (99 % Clopper-Pearson limits), convicted (the lower
        limit is above alpha).
    """
    rows = []
    for null in nulls:
        trials = num_trials if null == NULLS[0] else min(num_trials, max(num_trials // 20, 40))
        for kind in IGNORANT:
            generator = torch.Generator().manual_seed(seed)
            rejected = 0
            for start in range(0, trials, _TRIALS_AT_ONCE):
                count = min(_TRIALS_AT_ONCE, trials - start)
                chosen = torch.rand(count, len(regions), generator=generator).argsort(1)[:, :images_a_trial]
                maps = ignorant(kind, chosen.numel(), regions.grid_hw, generator=generator)
                maps = maps.reshape(*chosen.shape, -1)
                if null == NULLS[0]:
                    p = _against_other_images(regions, chosen, maps, num_draws, generator)
                else:
                    p = _against_moved_maps(regions, chosen, maps, null, generator)
                rejected += int((p <= alpha).sum())
                if progress is not None:
                    progress(f"{kind} against {null}", start + count, trials)
            low, high = clopper_pearson(rejected, trials)
            rows.append((kind, null, trials, rejected, rejected / trials, low, high, low > alpha))
    columns = ["attention", "null", "trials", "rejected", "rate", "low", "high", "convicted"]
    return pd.DataFrame(rows, columns=columns)


def _against_other_images(
    regions: Regions,
    chosen: Int64[Tensor, "T n"],
    maps: Float[Tensor, "T n G"],
    num_draws: int,
    generator: torch.Generator,
) -> Float[Tensor, " T"]:
    """P of every trial, from V[j, i] of its own images and permutations of its own: trials share nothing."""
    trials, images = chosen.shape
    shells = regions.shells.flatten(2)[chosen]
    shares = torch.einsum("tjg,tilg->jtil", maps / maps.sum(-1, keepdim=True), shells).double()
    moments = moments_of_shares(shares.flatten(1, 2), regions[chosen.flatten()])
    values = OF_MOMENTS[HEADLINE](moments).reshape(images, trials, images, 3)
    null = [
        null_means(values[:, t], random_permutations(images, num_draws, generator=generator)) for t in range(trials)
    ]
    return max_t(matched_mean(values.movedim(1, 2)), torch.stack(null, dim=1))[1]


def _against_moved_maps(
    regions: Regions,
    chosen: Int64[Tensor, "T n"],
    maps: Float[Tensor, "T n G"],
    null: str,
    generator: torch.Generator,
) -> Float[Tensor, " T"]:
    """P of every trial when its maps are shuffled or shifted over their own images."""
    cells = maps.shape[-1]
    if null == NULLS[1]:
        height, width = regions.grid_hw
        down, right = (
            torch.randint(side, (_MOVES, chosen.shape[1], 1), generator=generator) for side in (height, width)
        )
        place = torch.arange(cells)
        index = (place // width - down) % height * width + (place % width - right) % width
    else:
        index = torch.rand(_MOVES, chosen.shape[1], cells, generator=generator).argsort(-1)
    found = []
    for images, own in zip(chosen, maps / maps.sum(-1, keepdim=True), strict=True):
        moved = torch.cat([own[None], own.expand(_MOVES, -1, -1).gather(2, index)])
        shares = torch.einsum("mig,ilg->mil", moved, regions.shells[images].flatten(2))
        means = OF_MOMENTS[HEADLINE](moments_of_shares(shares, regions[images])).nanmean(1)
        found.append(max_t(means[0], means[1:])[1])
    return torch.stack(found)
