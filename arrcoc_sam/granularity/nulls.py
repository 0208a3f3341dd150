"""What attention would score if it knew nothing of this image: other images' attention, and its own shifted.

The null of record is *other images*: V[j, i] is the metric of image j's attention against image i's masks, and a draw
is the mean over i of V[σ(i), i] for a random σ. It keeps whatever attention prefers in any image (a centre prior, a
sink) and breaks only the tie to this one. Two kinds of σ serve two ends:

- *derangements* (σ(i) ≠ i), the reference of calibrated scores: no matched pair leaks into mean and sd;
- *permutations*, for p-values. If attention knows nothing of its image, the matched pairs are one permutation among
  equals, which makes the test exact. They are not one derangement among equals: against derangements, attention that
  knows nothing is rejected at α = .05 in 5.9 % (smooth random) and 5.7 % (jittered centre) of 10,000 trials of 30
  scenes, both above .05 by the exact interval; against permutations in 4.8 % and 4.8 %.

Toroidal shifts move each map over its own image; they break a centre prior too, so they are shown beside and claim
nothing. Shuffling pixels breaks smoothness as well, and rejects attention that knows nothing but the centre almost
always; only :mod:`arrcoc_sam.granularity.validation` does it, to show that it would be caught.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from arrcoc_sam.errors import InputError, ShapeError, UnknownNameError, describe, explain
from arrcoc_sam.granularity.moment_metrics import OF_MOMENTS
from arrcoc_sam.granularity.moments import grid_moments, moments_of_shares
from arrcoc_sam.granularity.regions import Regions, accumulator

__all__ = [
    "MIN_DRAWS",
    "matched_mean",
    "measured_images",
    "null_means",
    "random_derangements",
    "random_permutations",
    "required_draws",
    "toroidal_values",
]

MIN_DRAWS = 9_999

# A row of as many float32 fills a few cache lines, and tables of hundreds of images stay near the caches.
_TESTS_AT_ONCE = 48


def required_draws(num_tests: int, false_discovery_rate: float = 0.05) -> int:
    """Draws of a null that ``num_tests`` tests at a false discovery rate need: max(9,999, 10·m/q).

    With fewer, the smallest p there is can't pass Benjamini-Hochberg.

    Example:
        >>> required_draws(1), required_draws(144)
        (9999, 28800)
    """
    return max(MIN_DRAWS, math.ceil(10 * num_tests / false_discovery_rate))


def random_derangements(
    num: int, num_draws: int, *, generator: torch.Generator | None = None
) -> Int64[Tensor, "draws num"]:
    """Permutations without a fixed point, each of them equally likely.

    Drawn by rejection: a random permutation is a derangement with probability 1/e.

    Args:
        num: Number of images, at least 2.
        num_draws: How many to draw, with replacement.
        generator: The seed; its device is where they are made.

    Returns:
        σ, (draws, num), with σ(i) ≠ i.

    Raises:
        InputError: Fewer than two images.
    """
    if num < 2:
        raise InputError(explain(f"{num} image(s)", "at least 2, to compare with another image's attention"))
    device = torch.device("cpu") if generator is None else generator.device
    fixed = torch.arange(num, device=device)
    kept = [fixed.new_empty((0, num))]
    missing = num_draws
    while missing > 0:
        drawn = random_permutations(num, int(missing * 2.8) + 8, generator=generator)
        drawn = drawn[(drawn != fixed).all(1)][:missing]
        kept.append(drawn)
        missing -= len(drawn)
    return torch.cat(kept)


def random_permutations(
    num: int, num_draws: int, *, generator: torch.Generator | None = None
) -> Int64[Tensor, "draws num"]:
    """Permutations, each of them equally likely.

    Args:
        num: Number of images.
        num_draws: How many to draw, with replacement.
        generator: The seed; its device is where they are made.
    """
    device = torch.device("cpu") if generator is None else generator.device
    # float64: ties between float32 numbers would prefer some permutations.
    return torch.rand(num_draws, num, generator=generator, dtype=torch.float64, device=device).argsort(dim=1)


def matched_mean(values: Float[Tensor, "n n *tests"]) -> Float64[Tensor, "*tests"]:
    """The statistic T: the mean over images i of V[i, i].

    Args:
        values: V[j, i], the metric of image j's attention on image i's masks. Image i is left out of a test where its
            whole column is NaN (it has no such level).

    Returns:
        NaN where no image is left, or where a value is not finite though the image counts.
    """
    matched = torch.arange(len(values), device=values.device)[None]
    return null_means(values, matched)[0]


def measured_images(values: Float[Tensor, "n n *tests"]) -> Bool[Tensor, " n *tests"]:
    """Which images i count in a test: those whose column V[:, i] is not NaN throughout."""
    return ~values.isnan().all(0)


def null_means(
    values: Float[Tensor, "n n *tests"], assignments: Int64[Tensor, "draws n"]
) -> Float64[Tensor, " draws *tests"]:
    """The mean over images i of V[σ(i), i] for every assignment σ and every test at once.

    The tests of one pair (j, i) lie side by side in memory, so a draw adds n rows: many heads and levels together.

    Args:
        values: V[j, i], the metric of image j's attention on image i's masks, for any tests (heads, levels). Image i
            is left out of a test where its whole column is NaN.
        assignments: σ, such as :func:`random_derangements`.

    Returns:
        (draws, tests), float64; NaN as in :func:`matched_mean`.

    Raises:
        ShapeError: V is not square, or σ is for another number of images.
    """
    if values.ndim < 2 or values.shape[0] != values.shape[1] or assignments.shape[-1] != len(values):
        raise ShapeError(
            explain(
                f"values is {describe(values)} for assignments of {assignments.shape[-1]}", "V (n, n, …) of n images"
            )
        )
    num, tests = len(values), values.shape[2:]
    table = values.reshape(num, num, -1).to(accumulator(values.device))
    finite = table.isfinite()
    counted = measured_images(table)
    broken = (counted & ~finite.all(0)).any(0)
    table = torch.where(finite, table, 0.0)
    # Every draw takes one value of each column, so column means can be added back afterwards: what is left fits
    # float32, whose gathers are twenty times as fast.
    centre = table.mean(0)
    table = (table - centre).to(torch.float32).reshape(num * num, -1)
    rows = assignments.to(table.device) * num + torch.arange(num, device=table.device)
    sums = [
        torch.nn.functional.embedding_bag(rows, tests_at_once.contiguous(), mode="sum")
        for tests_at_once in torch.split(table, _TESTS_AT_ONCE, dim=1)
    ]
    means = (torch.cat(sums, dim=1) + centre.sum(0)) / counted.sum(0)  # 0/0 where no image has the level
    return means.masked_fill(broken, torch.nan).reshape(len(assignments), *tests)


def toroidal_values(name: str, attention: Float[Tensor, "N h w"], regions: Regions) -> Float64[Tensor, "S N K 3"]:
    """A metric for every toroidal shift of every map within the rectangle that the image covers.

    Args:
        name: A metric that is made of moments (all but those of ranks and transport).
        attention: Mass per cell.
        regions: Levels on the same grid; cells weigh 0 or, within a rectangle, all the same.

    Returns:
        One row a shift, in row-major order of (down, right); the first is the map where it is.

    Raises:
        UnknownNameError: Another metric.
    """
    if name not in OF_MOMENTS:
        raise UnknownNameError(explain(f"no toroidal null for {name!r}", f"one of {', '.join(OF_MOMENTS)}"))
    rows, columns = ((regions.valid > 0).any(axis).nonzero()[:, 0] for axis in (1, 0))
    window = (..., slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
    inside = replace(regions, shells=regions.shells[window], valid=regions.valid[window])
    maps = attention[window].to(accumulator(attention.device))
    maps = maps / maps.sum((-2, -1), keepdim=True)
    # Σ over g of a(g − s) · m(g) for all s is a correlation: one product in the frequency domain.
    spectrum = torch.einsum("nyx,klyx->yxnkl", torch.fft.rfft2(maps).conj(), torch.fft.rfft2(inside.shells.to(maps)))
    shares = torch.fft.irfft2(spectrum, s=maps.shape[-2:], dim=(0, 1)).clamp(min=0).flatten(0, 1)
    # Shifting changes where a map's mass is, not how it varies.
    variance = grid_moments(maps, inside).attention_variance.repeat(len(shares), 1)
    return OF_MOMENTS[name](moments_of_shares(shares.flatten(0, 1), inside, variance)).reshape(shares.shape)
