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
level, a map without mass, a constant map or level where a variance is divided by. Sums are accumulated in float64;
the answer has the attention's dtype (float32 at least) and device.

The area of a level alone moves these values even for attention that knows no levels (mass always favours the whole):
compare them with a null (:mod:`arrcoc_sam.granularity.nulls`) before any claim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from arrcoc_sam.errors import InputError, ShapeError, UnknownNameError, describe, explain
from arrcoc_sam.granularity.moments import CONSTANT_VARIANCE, Moments, grid_moments
from arrcoc_sam.granularity.regions import Regions, checked_masks

__all__ = [
    "METRICS",
    "evaluate",
    "information_gain",
    "log_lift",
    "mass_accuracy",
    "pearson",
    "shell_contrast",
]

Attention: TypeAlias = Float[Tensor, "N h w"] | Float[Tensor, "N K h w"]
Masks: TypeAlias = Bool[Tensor, "K 3 H W"] | Float[Tensor, "K 3 H W"]
Distinct: TypeAlias = Bool[Tensor, "K 3"] | None
Valid: TypeAlias = Float[Tensor, "h w"] | None
Resolution: TypeAlias = Literal["grid", "image"]


def shell_contrast(
    attention: Attention,
    masks: Masks,
    *,
    resolution: Resolution = "grid",
    valid: Valid = None,
    distinct: Distinct = None,
    smoothing: float = 0.01,
) -> Float[Tensor, "N K 3"]:
    """Log ratio of the attention's density in a level's shell to that in the shell around it: the headline metric.

    whole: ln(d_{W∖P} / d_B); part: ln(d_{P∖S} / d_{W∖P}); subpart: ln(d_S / d_{P∖S}), with d_R the density over a
    region R and B what is outside the whole. A level that is not distinct is skipped: shells run between consecutive
    distinct levels. Attention that fills one level evenly is positive at that level and 0 at the levels inside it.

    Args:
        attention: Attention, >= 0.
        masks: Whole, part, subpart.
        resolution: "grid" or "image".
        valid: Cell weights.
        distinct: Which levels count.
        smoothing: Added to every density, in units of the mean density, so that empty shells stay finite.

    Returns:
        Nats, in ±ln(1 + max density / smoothing); NaN where the shell or the one around it has no area.

    Raises:
        ShapeError: Shapes that do not agree.
        InputError: Negative or non-finite attention, masks of another dtype, a negative smoothing.

    Example:
        >>> attention = torch.tensor([[[1.0, 1.0, 4.0, 4.0]]])
        >>> masks = torch.tensor([[0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]]).bool().view(1, 3, 1, 4)
        >>> [round(v, 3) for v in shell_contrast(attention, masks, smoothing=0).flatten().tolist()]  # ln 4 at the part
        [0.0, 1.386, 0.0]
    """
    if not smoothing >= 0:
        raise InputError(explain(f"smoothing is {smoothing}", "a number >= 0"))
    moments = _moments(attention, masks, resolution, valid, distinct)
    return _like(attention, _shell_contrast(moments, smoothing))


def pearson(
    attention: Attention,
    masks: Masks,
    *,
    resolution: Resolution = "grid",
    valid: Valid = None,
    distinct: Distinct = None,
) -> Float[Tensor, "N K 3"]:
    """Pearson's correlation of attention and level over cells (or pixels).

    Args:
        attention: Attention, >= 0.
        masks: Whole, part, subpart.
        resolution: "grid" or "image".
        valid: Cell weights.
        distinct: Which levels count.

    Returns:
        In [-1, 1]; NaN where the map or the level is constant (to a relative 1e-6, which is float32's rounding).

    Raises:
        ShapeError: Shapes that do not agree.
        InputError: Negative or non-finite attention, masks of another dtype.
    """
    return _like(attention, _pearson(_moments(attention, masks, resolution, valid, distinct)))


def information_gain(
    attention: Attention,
    masks: Masks,
    *,
    resolution: Resolution = "grid",
    valid: Valid = None,
    distinct: Distinct = None,
) -> Float[Tensor, "N K 3"]:
    """Signed divergence of the share of attention in a level from the level's share of the area.

    sgn(p − a)·[p ln(p/a) + (1−p) ln((1−p)/(1−a))]: the Kullback-Leibler divergence of Bernoulli(p) from Bernoulli(a),
    negative where the level gets less than its area.

    Args:
        attention: Attention, >= 0.
        masks: Whole, part, subpart.
        resolution: "grid" or "image".
        valid: Cell weights.
        distinct: Which levels count.

    Returns:
        Nats, in [ln(1 − a), −ln a]; NaN where the level is empty.

    Raises:
        ShapeError: Shapes that do not agree.
        InputError: Negative or non-finite attention, masks of another dtype.
    """
    return _like(attention, _information_gain(_moments(attention, masks, resolution, valid, distinct)))


def mass_accuracy(
    attention: Attention,
    masks: Masks,
    *,
    resolution: Resolution = "grid",
    valid: Valid = None,
    distinct: Distinct = None,
) -> Float[Tensor, "N K 3"]:
    """p, the share of the attention inside the level (relevance mass accuracy). It always favours the whole.

    Args:
        attention: Attention, >= 0.
        masks: Whole, part, subpart.
        resolution: "grid" or "image".
        valid: Cell weights.
        distinct: Which levels count.

    Returns:
        In [0, 1]; NaN where the level is empty.

    Raises:
        ShapeError: Shapes that do not agree.
        InputError: Negative or non-finite attention, masks of another dtype.

    Reference:
        Arras, Osman, Samek: CLEVR-XAI, Information Fusion 2022; ``RelevanceMassAccuracy`` in Quantus.
    """
    return _like(attention, _mass_accuracy(_moments(attention, masks, resolution, valid, distinct)))


def log_lift(
    attention: Attention,
    masks: Masks,
    *,
    resolution: Resolution = "grid",
    valid: Valid = None,
    distinct: Distinct = None,
) -> Float[Tensor, "N K 3"]:
    """ln(p / a): how much denser than chance the attention is inside the level. Show it with p and a.

    Args:
        attention: Attention, >= 0.
        masks: Whole, part, subpart.
        resolution: "grid" or "image".
        valid: Cell weights.
        distinct: Which levels count.

    Returns:
        Nats, in [−∞, −ln a]: −∞ where a level gets no attention, NaN where the level is empty.

    Raises:
        ShapeError: Shapes that do not agree.
        InputError: Negative or non-finite attention, masks of another dtype.
    """
    return _like(attention, _log_lift(_moments(attention, masks, resolution, valid, distinct)))


def _shell_contrast(moments: Moments, smoothing: float = 0.01) -> Float[Tensor, "N K 3"]:
    inside, around = moments.shell_densities()
    return moments.only_defined((inside + smoothing).log() - (around + smoothing).log())


def _pearson(moments: Moments) -> Float[Tensor, "N K 3"]:
    # Density over its mean has mean 1, so its covariance with a level is p − a.
    variance = moments.attention_variance[..., None] * moments.level_variance
    constant = (moments.attention_variance[..., None] < CONSTANT_VARIANCE) | (
        moments.level_variance < CONSTANT_VARIANCE
    )
    correlation = (moments.level_share - moments.level_area) / variance.sqrt()
    return moments.only_defined(correlation.clamp(-1, 1).masked_fill(constant, torch.nan))


def _information_gain(moments: Moments) -> Float[Tensor, "N K 3"]:
    inside, area = moments.level_share, moments.level_area
    outside, rest = 1 - inside, 1 - area
    # xlogy(0, 0) is 0, so that a level that is everything gains nothing: 0·ln(0/0) := 0.
    divergence = torch.xlogy(inside, inside / area)
    divergence = divergence + torch.where(outside > 0, torch.xlogy(outside, outside / rest), 0.0)
    return moments.only_defined((inside - area).sign() * divergence.clamp(min=0))


def _mass_accuracy(moments: Moments) -> Float[Tensor, "N K 3"]:
    return moments.only_defined(moments.level_share)


def _log_lift(moments: Moments) -> Float[Tensor, "N K 3"]:
    return moments.only_defined((moments.level_share / moments.level_area).log())


_OF_MOMENTS: dict[str, Callable[[Moments], Float[Tensor, "N K 3"]]] = {
    "shell_contrast": _shell_contrast,
    "information_gain": _information_gain,
    "log_lift": _log_lift,
    "mass_accuracy": _mass_accuracy,
    "pearson": _pearson,
}

METRICS: tuple[str, ...] = tuple(_OF_MOMENTS)
"""The names of all metrics that need nothing but attention and masks."""


def evaluate(names: Sequence[str], attention: Attention, regions: Regions) -> dict[str, Float[Tensor, "N K 3"]]:
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
    """
    check_names(names)
    _check_attention(attention, len(regions))
    if tuple(attention.shape[-2:]) != regions.grid_hw:
        raise ShapeError(explain(f"attention is {describe(attention)}", f"maps on the masks' grid {regions.grid_hw}"))
    moments = grid_moments(attention, regions)
    return {name: _like(attention, _OF_MOMENTS[name](moments)) for name in names}


def check_names(names: Sequence[str]) -> None:
    """Refuse names that no metric has.

    Raises:
        UnknownNameError: The first such name, with those that exist.
    """
    for name in names:
        if name not in METRICS:
            raise UnknownNameError(explain(f"no metric is called {name!r}", f"one of {', '.join(METRICS)}"))


def _moments(attention: Attention, masks: Masks, resolution: Resolution, valid: Valid, distinct: Distinct) -> Moments:
    masks = checked_masks(masks)
    _check_attention(attention, len(masks))
    if not (torch.isfinite(attention) & (attention >= 0)).all():
        raise InputError(explain("attention holds negative or non-finite values", "finite values >= 0"))
    if resolution == "grid":
        grid_hw = (int(attention.shape[-2]), int(attention.shape[-1]))
        return grid_moments(attention, Regions.from_masks(masks, grid_hw, valid=valid, distinct=distinct))
    raise InputError(explain(f"resolution is {resolution!r}", "'grid' or 'image'"))


def _check_attention(attention: Attention, num_prompts: int) -> None:
    if attention.ndim not in (3, 4) or 0 in attention.shape or not attention.is_floating_point():
        raise ShapeError(
            explain(
                f"attention is {describe(attention)}",
                "floating maps of shape (N, h, w), or (N, K, h, w) for K prompts",
                "add the axis of the maps: attention[None]" if attention.ndim == 2 else None,
            )
        )
    if attention.ndim == 4 and attention.shape[1] != num_prompts:
        raise ShapeError(explain(f"attention is for {attention.shape[1]} prompts", f"the masks' {num_prompts}"))


def _like(attention: Attention, values: Float[Tensor, "N K 3"]) -> Float[Tensor, "N K 3"]:
    return values.to(torch.promote_types(attention.dtype, torch.float32))
