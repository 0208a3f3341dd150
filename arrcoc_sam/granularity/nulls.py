"""What attention would score if it knew nothing of this image: random derangements of the images, and toroidal shifts.

The null of record is *other images*: V[j, i] is the metric of image j's attention against image i's masks, and a draw
is a random derangement σ, the mean over i of V[σ(i), i]. It keeps whatever attention prefers in any image (a centre
prior, a sink) and breaks only the tie to this one. Toroidal shifts move each map over its own image; they break a
centre prior too, so they are shown beside and claim nothing. Shuffling pixels is not offered: it breaks smoothness,
and rejects attention that knows nothing but the centre almost always.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from arrcoc_sam.errors import InputError, ShapeError, describe, explain
from arrcoc_sam.granularity.regions import accumulator

__all__ = [
    "MIN_DRAWS",
    "matched_mean",
    "null_means",
    "random_derangements",
    "random_shifts",
    "required_draws",
    "toroidal",
]

MIN_DRAWS = 9_999


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
        # float64: ties between float32 numbers would prefer some permutations.
        keys = torch.rand(int(missing * 2.8) + 8, num, generator=generator, dtype=torch.float64, device=device)
        drawn = keys.argsort(dim=1)
        drawn = drawn[(drawn != fixed).all(1)][:missing]
        kept.append(drawn)
        missing -= len(drawn)
    return torch.cat(kept)


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


def null_means(
    values: Float[Tensor, "n n *tests"], assignments: Int64[Tensor, "draws n"]
) -> Float64[Tensor, " draws *tests"]:
    """The mean over images i of V[σ(i), i] for every assignment σ and every test at once.

    The tests of one pair (j, i) lie side by side in memory, so a draw adds n rows: all heads and levels together.

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
    counted = finite.any(0)  # (n, tests): images that have the level
    broken = (counted & ~finite.all(0)).any(0)
    table = torch.where(finite, table, 0.0).reshape(num * num, -1)
    rows = assignments.to(table.device) * num + torch.arange(num, device=table.device)
    sums = torch.nn.functional.embedding_bag(rows, table, mode="sum")
    means = sums / counted.sum(0)  # 0/0 where no image has the level
    return means.masked_fill(broken, torch.nan).reshape(len(assignments), *tests)


def random_shifts(
    num: int, grid_hw: tuple[int, int], num_draws: int, *, generator: torch.Generator | None = None
) -> Int64[Tensor, "draws num"]:
    """A random shift for every image in every draw, as a row-major index into the grid; never the shift by nothing."""
    device = torch.device("cpu") if generator is None else generator.device
    cells = grid_hw[0] * grid_hw[1]
    if cells < 2:
        raise InputError(explain(f"a grid of {grid_hw}", "at least 2 cells, to shift attention over"))
    return torch.randint(1, cells, (num_draws, num), generator=generator, device=device)


def toroidal(attention: Float[Tensor, "N h w"], shells: Float[Tensor, "K 3 h w"]) -> Float[Tensor, "h w N K 3"]:
    """Attention in each shell for every toroidal shift of the map, by the convolution theorem.

    Args:
        attention: Mass per cell.
        shells: Share of each cell in the shell of whole, part, subpart.

    Returns:
        At [dy, dx]: Σ of the map rolled down by dy and right by dx, over each shell; float64.
    """
    dtype = accumulator(attention.device)
    maps, parts = torch.fft.rfft2(attention.to(dtype)), torch.fft.rfft2(shells.to(dtype))
    spectrum = torch.einsum("nyx,ksyx->yxnks", maps.conj(), parts)
    moved: Tensor = torch.fft.irfft2(spectrum, s=attention.shape[-2:], dim=(0, 1))
    return moved.clamp(min=0.0)
