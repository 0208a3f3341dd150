"""Moments at image resolution without upsampling a single map.

Bilinear upsampling U is linear and separable, so ⟨U a, m⟩ = ⟨a, Uᵀ m⟩ with Uᵀ m = Uyᵀ m Ux: each mask is carried down
to the grid once, and all maps against all masks are one matrix product. Likewise Σ U a = uyᵀ A ux, with u the column
sums of U, and ‖U a‖² = ⟨A, Gy A Gx⟩ with G = UᵀU.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from arrcoc_sam.granularity.moments import Moments, with_background
from arrcoc_sam.granularity.regions import Masks, accumulator, checked_masks, levels_from_shells, shells_of
from arrcoc_sam.masks.averaging import separable_average

__all__ = ["image_moments", "upsampling_matrix"]


def upsampling_matrix(num_in: int, num_out: int) -> Float64[Tensor, "num_out num_in"]:
    """Bilinear resizing along one axis as a matrix, ``align_corners=False``; its rows sum to 1.

    Example:
        >>> upsampling_matrix(2, 4)
        tensor([[1.0000, 0.0000],
                [0.7500, 0.2500],
                [0.2500, 0.7500],
                [0.0000, 1.0000]], dtype=torch.float64)
    """
    basis = torch.eye(num_in, dtype=torch.float64)[None]
    resized = torch.nn.functional.interpolate(basis, size=num_out, mode="linear", align_corners=False)
    return resized[0].T.contiguous()


def image_moments(
    attention: Float[Tensor, "N h w"] | Float[Tensor, "N K h w"],
    masks: Masks,
    *,
    distinct: Bool[Tensor, "K 3"] | None = None,
) -> Moments:
    """Moments over pixels of maps as if they had been upsampled bilinearly to the masks' size.

    Args:
        attention: N maps, or N maps for each of the K prompts; >= 0, any scale.
        masks: Whole, part, subpart over the same frame.
        distinct: Which levels count; all when not given.

    Returns:
        Moments in float64, the way of the masks to the grid included.

    Raises:
        ShapeError: Shapes that do not agree.
    """
    masks = checked_masks(masks)
    dtype = accumulator(attention.device)
    (grid_h, grid_w), (height, width) = attention.shape[-2:], masks.shape[-2:]
    rows = upsampling_matrix(grid_h, height)
    columns = upsampling_matrix(grid_w, width)
    num_pixels = height * width

    reduced, square_means = [], []
    for k in range(len(masks)):  # one triple at a time stays in the caches
        shells = shells_of(masks[k : k + 1], None if distinct is None else distinct[k : k + 1])
        reduced.append(separable_average(shells, rows.T, columns.T))
        if masks.dtype != torch.bool:
            square_means.append(shells.to(dtype).flip(1).cumsum(1).flip(1).square().mean((-2, -1)))
    down = torch.cat(reduced).to(dtype).flatten(-2)
    # Rows of U sum to 1, so that the sum over the grid of Uᵀ m is the number of pixels in m.
    area = down.sum(-1) / num_pixels
    level_area = levels_from_shells(area)
    # The mean square of a set is its area.
    square_mean = torch.cat(square_means) if square_means else level_area

    rows, columns = rows.to(attention.device, dtype), columns.to(attention.device, dtype)
    maps = attention.to(dtype)
    total = torch.einsum("...hw,h,w->...", maps, rows.sum(0), columns.sum(0))
    centred = maps / (total / num_pixels)[..., None, None] - 1
    variance = (centred * ((rows.T @ rows) @ centred @ (columns.T @ columns))).sum((-2, -1)) / num_pixels
    product = "ng,ksg->nks" if attention.ndim == 3 else "nkg,ksg->nks"
    share = torch.einsum(product, maps.flatten(-2) / total[..., None], down)
    ones = torch.ones(masks.shape[:2], dtype=torch.bool, device=masks.device)
    return Moments(
        share=with_background(share),
        area=with_background(area),
        attention_variance=variance[:, None] if attention.ndim == 3 else variance,
        level_variance=(square_mean - level_area**2).clamp(min=0),
        distinct=ones if distinct is None else distinct.to(masks.device),
    )
