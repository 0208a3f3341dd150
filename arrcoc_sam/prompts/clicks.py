"""Where to click: regular grids of points, and clicks on what a prediction got wrong."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from arrcoc_sam.errors import InputError, ShapeError, UnknownNameError, describe, explain
from arrcoc_sam.inputs import as_masks, as_size
from arrcoc_sam.masks.components import inscribed_circle

__all__ = ["grid_points_xy", "point_grid", "sample_error_clicks"]


def point_grid(n_per_side: int) -> Float64[Tensor, "K 2"]:
    """A regular grid of points in the unit square, row by row.

    Args:
        n_per_side: Points along each side.

    Returns:
        (n², 2) float64, (x, y) in (0, 1): (i + 0.5) / n.

    Raises:
        InputError: Less than one point.

    Reference:
        ``build_point_grid`` of segment-anything's automatic mode.

    Example:
        >>> point_grid(2).tolist()
        [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    """
    if isinstance(n_per_side, bool) or not isinstance(n_per_side, int) or n_per_side < 1:
        raise InputError(explain(f"n_per_side={n_per_side!r}", "a whole number of at least 1"))
    side = (torch.arange(n_per_side, dtype=torch.float64) + 0.5) / n_per_side
    return torch.cartesian_prod(side, side).flip(-1) if n_per_side > 1 else side.new_full((1, 2), 0.5)


def grid_points_xy(n_per_side: int, size_hw: tuple[int, int]) -> Float64[Tensor, "K 2"]:
    """:func:`point_grid` in the pixels of an image, as segment-anything's automatic mode puts it there.

    That is x = W · (i + 0.5) / n as a pixel index, half a pixel right of and below the geometric place. Kept, so that
    automatic masks can be compared; on images narrower than 2 n pixels held inside the image.

    Args:
        n_per_side: Points along each side.
        size_hw: Height and width of the image.

    Returns:
        (n², 2) pixel indices (x, y), float64.
    """
    height, width = as_size(size_hw, "size_hw")
    points = point_grid(n_per_side)
    return torch.minimum(points * points.new_tensor((width, height)), points.new_tensor((width - 1, height - 1)))


def sample_error_clicks(
    predicted: Bool[Tensor, "K H W"] | np.ndarray,
    target: Bool[Tensor, "K H W"] | np.ndarray,
    *,
    generator: torch.Generator | None = None,
    chance: Float[Tensor, " K"] | None = None,
    strategy: Literal["uniform", "center"] = "uniform",
) -> tuple[Float64[Tensor, "K 2"], Int64[Tensor, " K"]]:
    """One corrective click for each prediction, in the region where it is wrong.

    Args:
        predicted: (K, H, W) bool.
        target: (K, H, W) bool.
        generator: Source of chance for "uniform"; torch's default one if None.
        chance: Numbers in [0, 1) in place of a generator, drawn beforehand, so that a click does not depend on which
            others are drawn with it.
        strategy: "uniform" takes any wrong pixel with equal chance (training); "center" the middle of the larger of
            the two kinds of error, missed or too much, by the distance transform (evaluation; no chance in it).

    Returns:
        Points (K, 2), (x, y) pixel indices, float64, and labels (K,) int64: 1 where the target was missed, 0 where
        too much was predicted, -1 (with a NaN point) where nothing is wrong, which :class:`~arrcoc_sam.prompts.Prompts`
        reads as no click.

    Raises:
        ShapeError: The two are not (K, H, W) of one shape.
        InputError: Not bool; threshold logits first.
        UnknownNameError: Another strategy.

    Reference:
        Kirillov et al. 2023, Segment Anything, appendix A (training: uniform in the error region); Ravi et al. 2024,
        SAM 2 (evaluation: centre of the error region).
    """
    if strategy not in ("uniform", "center"):
        raise UnknownNameError(explain(f"strategy={strategy!r}", "'uniform' or 'center'"))
    given, wanted = as_masks(predicted, name="predicted", min_rank=3), as_masks(target, name="target", min_rank=3)
    if given.ndim != 3 or given.shape != wanted.shape:
        came = f"predicted is {describe(given)}, target is {describe(wanted)}"
        raise ShapeError(explain(came, "both (K, H, W) of one shape"))
    if strategy == "center":
        return _centre_of_error(given, wanted)
    points, found = _uniform_pixels(given ^ wanted, generator, chance)
    column, row = points.unbind(-1)
    labels = wanted[torch.arange(len(wanted), device=wanted.device), row, column].long()
    return (
        torch.where(found[:, None], points.double(), torch.nan),
        torch.where(found, labels, -1),
    )


def _uniform_pixels(
    masks: Bool[Tensor, "K H W"], generator: torch.Generator | None, chance: Float[Tensor, " K"] | None = None
) -> tuple[Int64[Tensor, "K 2"], Bool[Tensor, " K"]]:
    """A pixel (x, y) of each mask with equal chance, and whether there is one.

    The r-th pixel of a mask by two searches in running counts, down the rows and then along one: no list of pixels,
    and none of the limits of ``torch.multinomial``.
    """
    if chance is None:
        device = generator.device if generator is not None else masks.device
        chance = torch.rand(len(masks), generator=generator, dtype=torch.float64, device=device)
    chance = chance.to(masks.device, torch.float64)
    per_row = masks.sum(-1, dtype=torch.int32).long().cumsum(-1)
    total = per_row[:, -1:]
    wanted = (chance[:, None] * total).long().clamp_max((total - 1).clamp_min(0))
    row = torch.searchsorted(per_row, wanted, right=True).clamp_max(masks.shape[1] - 1)
    before = torch.where(row > 0, per_row.gather(1, (row - 1).clamp_min(0)), 0)
    along = masks[torch.arange(len(masks), device=masks.device), row[:, 0]].long().cumsum(-1)
    column = torch.searchsorted(along, wanted - before, right=True).clamp_max(masks.shape[2] - 1)
    return torch.cat((column, row), dim=-1), total[:, 0] > 0


def _centre_of_error(
    predicted: Bool[Tensor, "K H W"], target: Bool[Tensor, "K H W"]
) -> tuple[Float64[Tensor, "K 2"], Int64[Tensor, " K"]]:
    missed, missed_radius = inscribed_circle(target & ~predicted)
    surplus, surplus_radius = inscribed_circle(predicted & ~target)
    is_missed = missed_radius > surplus_radius
    labels = torch.where(torch.maximum(missed_radius, surplus_radius) > 0, is_missed.long(), -1)
    return torch.where(is_missed[:, None], missed, surplus), labels
