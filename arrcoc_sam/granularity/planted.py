"""Attention made to order: planted at a known level, or knowing nothing, in the ways that real attention knows nothing.

All maps are positive and on a grid; their scale does not matter.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from arrcoc_sam.errors import UnknownNameError, explain

__all__ = ["IGNORANT", "Ignorance", "centre_prior", "ignorant", "planted", "sinks", "smooth_noise"]

Ignorance: TypeAlias = Literal["smooth random", "jittered centre", "sinks"]

IGNORANT: tuple[Ignorance, ...] = get_args(Ignorance)
"""Kinds of attention that know nothing of the image."""


def smooth_noise(
    num: int,
    grid_hw: tuple[int, int],
    *,
    generator: torch.Generator | None = None,
    smoothness: float = 0.08,
    roughness: float = 0.6,
) -> Float[Tensor, "num h w"]:
    """Log-normal random fields, smooth over a share of the grid, the same everywhere on average.

    Args:
        num: How many.
        grid_hw: Rows and columns.
        generator: The seed.
        smoothness: Standard deviation of the smoothing kernel, as a share of the side.
        roughness: Standard deviation of the logarithm.
    """
    noise = torch.randn(num, *grid_hw, generator=generator)
    spectrum = torch.fft.rfft2(noise)
    # exp(−2π²σ²f²) is the transform of a Gaussian of sd σ; frequencies count cycles over the side.
    down = torch.fft.fftfreq(grid_hw[0]) * grid_hw[0]
    right = torch.fft.rfftfreq(grid_hw[1]) * grid_hw[1]
    kernel = torch.exp(-2 * (torch.pi * smoothness) ** 2 * (down[:, None] ** 2 + right**2))
    field: Tensor = torch.fft.irfft2(spectrum * kernel, s=grid_hw)
    # By Parseval the variance is the kernel's energy, each column of the half spectrum standing for two but the first.
    energy = torch.fft.irfft2(kernel**2, s=grid_hw)[0, 0]
    return torch.exp(field * (roughness / energy.sqrt()))


def centre_prior(
    num: int,
    grid_hw: tuple[int, int],
    *,
    generator: torch.Generator | None = None,
    jitter: float = 0.08,
    width: float = 0.22,
) -> Float[Tensor, "num h w"]:
    """Gaussians near the middle of the grid, moved a little from map to map.

    Args:
        num: How many.
        grid_hw: Rows and columns.
        generator: The seed.
        jitter: Standard deviation of the centre, as a share of the side; 0 for the control that never moves.
        width: Standard deviation of the Gaussian, as a share of the side.
    """
    centre = 0.5 + jitter * torch.randn(num, 2, generator=generator)
    y = ((torch.arange(grid_hw[0]) + 0.5) / grid_hw[0] - centre[:, :1]) ** 2
    x = ((torch.arange(grid_hw[1]) + 0.5) / grid_hw[1] - centre[:, 1:]) ** 2
    return torch.exp(-(y[:, :, None] + x[:, None, :]) / (2 * width**2))


def sinks(
    num: int,
    grid_hw: tuple[int, int],
    *,
    generator: torch.Generator | None = None,
    share_of_cells: float = 0.02,
    share_of_mass: float = 0.5,
) -> Float[Tensor, "num h w"]:
    """Smooth noise in which a few cells, wherever they are, hold much of the mass.

    Args:
        num: How many.
        grid_hw: Rows and columns.
        generator: The seed.
        share_of_cells: How many cells are sinks, at least one.
        share_of_mass: What they hold together.

    Reference:
        T. Darcet, M. Oquab, J. Mairal, P. Bojanowski: Vision Transformers Need Registers, ICLR 2024.
    """
    maps = smooth_noise(num, grid_hw, generator=generator).flatten(1)
    count = max(1, round(share_of_cells * maps.shape[1]))
    cells = torch.rand(maps.shape, generator=generator).topk(count, dim=1).indices
    extra = maps.sum(1, keepdim=True) * share_of_mass / (1 - share_of_mass) / count
    return maps.scatter_add(1, cells, extra.expand(-1, count)).reshape(num, *grid_hw)


def ignorant(
    kind: Ignorance, num: int, grid_hw: tuple[int, int], *, generator: torch.Generator | None = None
) -> Float[Tensor, "num h w"]:
    """Attention of a kind that knows nothing of the image.

    Raises:
        UnknownNameError: A kind that is not in :data:`IGNORANT`.
    """
    if kind == "smooth random":
        return smooth_noise(num, grid_hw, generator=generator)
    if kind == "jittered centre":
        return centre_prior(num, grid_hw, generator=generator)
    if kind == "sinks":
        return sinks(num, grid_hw, generator=generator)
    raise UnknownNameError(explain(f"no attention of kind {kind!r}", f"one of {', '.join(IGNORANT)}"))


def planted(
    level: Float[Tensor, "num h w"], *, gain: float, generator: torch.Generator | None = None
) -> Float[Tensor, "num h w"]:
    """Smooth noise that is denser on a level by a factor 1 + gain, evenly.

    Args:
        level: Share of each cell that belongs to the level.
        gain: How much denser, > 0.
        generator: The seed of the noise.
    """
    noise = smooth_noise(len(level), (int(level.shape[1]), int(level.shape[2])), generator=generator)
    return noise * (1 + gain * level.to(noise))
