"""Metrics that are sums of products: attention inside a level against the level's area.

See :mod:`arrcoc_sam.granularity.metrics` for what the arguments mean and what is NaN.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from arrcoc_sam.errors import InputError, explain
from arrcoc_sam.granularity.adjoint import image_moments
from arrcoc_sam.granularity.arguments import (
    Attention,
    Distinct,
    Masks,
    Resolution,
    Valid,
    Values,
    check_arguments,
    like,
)
from arrcoc_sam.granularity.moments import CONSTANT_VARIANCE, Moments, grid_moments
from arrcoc_sam.granularity.regions import EMPTY_SHARE, Regions

__all__ = [
    "OF_MOMENTS",
    "attention_iou",
    "information_gain",
    "log_lift",
    "mass_accuracy",
    "pearson",
    "shell_contrast",
]


def shell_contrast(
    attention: Attention,
    masks: Masks,
    *,
    resolution: Resolution = "grid",
    valid: Valid = None,
    distinct: Distinct = None,
    smoothing: float = 0.01,
) -> Values:
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
        >>> [round(v, 3) for v in shell_contrast(attention, masks, smoothing=0.0).flatten().tolist()]  # ln 4
        [0.0, 1.386, 0.0]
    """
    if not smoothing >= 0:
        raise InputError(explain(f"smoothing is {smoothing}", "a number >= 0"))
    moments = _moments(attention, masks, resolution, valid, distinct)
    return like(attention, _shell_contrast(moments, smoothing))


def pearson(
    attention: Attention,
    masks: Masks,
    *,
    resolution: Resolution = "grid",
    valid: Valid = None,
    distinct: Distinct = None,
) -> Values:
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
    return like(attention, _pearson(_moments(attention, masks, resolution, valid, distinct)))


def information_gain(
    attention: Attention,
    masks: Masks,
    *,
    resolution: Resolution = "grid",
    valid: Valid = None,
    distinct: Distinct = None,
) -> Values:
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
    return like(attention, _information_gain(_moments(attention, masks, resolution, valid, distinct)))


def mass_accuracy(
    attention: Attention,
    masks: Masks,
    *,
    resolution: Resolution = "grid",
    valid: Valid = None,
    distinct: Distinct = None,
) -> Values:
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
    return like(attention, _mass_accuracy(_moments(attention, masks, resolution, valid, distinct)))


def log_lift(
    attention: Attention,
    masks: Masks,
    *,
    resolution: Resolution = "grid",
    valid: Valid = None,
    distinct: Distinct = None,
) -> Values:
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
    return like(attention, _log_lift(_moments(attention, masks, resolution, valid, distinct)))


def attention_iou(
    attention: Attention,
    masks: Masks,
    *,
    resolution: Resolution = "grid",
    valid: Valid = None,
    distinct: Distinct = None,
) -> Values:
    """Soft overlap of two distributions, Σ Â·M̂ / Σ ((Â + M̂) / 2)², both scaled to sum 1. Biased by area.

    Args:
        attention: Attention, >= 0.
        masks: Whole, part, subpart.
        resolution: "grid" or "image".
        valid: Cell weights.
        distinct: Which levels count.

    Returns:
        In [0, 1], 1 where the attention is even on the level and 0 elsewhere; NaN where the level is empty.

    Raises:
        ShapeError: Shapes that do not agree.
        InputError: Negative or non-finite attention, masks of another dtype.
    """
    return like(attention, _attention_iou(_moments(attention, masks, resolution, valid, distinct)))


def _shell_contrast(moments: Moments, smoothing: float = 0.01) -> Values:
    inside, around = moments.shell_densities()
    return moments.only_defined((inside + smoothing).log() - (around + smoothing).log())


def _pearson(moments: Moments) -> Values:
    # Density over its mean has mean 1, so its covariance with a level is p − a.
    variance = moments.attention_variance[..., None] * moments.level_variance
    constant = (moments.attention_variance[..., None] < CONSTANT_VARIANCE) | (
        moments.level_variance < CONSTANT_VARIANCE
    )
    correlation = (moments.level_share - moments.level_area) / variance.sqrt()
    return moments.only_defined(correlation.clamp(-1, 1).masked_fill(constant, torch.nan))


def _information_gain(moments: Moments) -> Values:
    inside, area = moments.level_share, moments.level_area
    # A level that is everything gains nothing, 0·ln(0/0) := 0, though rounding leaves something of 1 − p.
    everything = 1 - area < EMPTY_SHARE
    outside, rest = (1 - inside).masked_fill(everything, 0.0), (1 - area).masked_fill(everything, 1.0)
    divergence = torch.xlogy(inside, inside / area)
    divergence = divergence + torch.where(outside > 0, torch.xlogy(outside, outside / rest), 0.0)
    return moments.only_defined((inside - area).sign() * divergence.clamp(min=0))


def _mass_accuracy(moments: Moments) -> Values:
    return moments.only_defined(moments.level_share)


def _log_lift(moments: Moments) -> Values:
    return moments.only_defined((moments.level_share / moments.level_area).log())


def _attention_iou(moments: Moments) -> Values:
    area = moments.level_area
    # In units of 1 / total area: ∫â² = 1 + variance, ∫m̂² = E M² / a², ∫â·m̂ = p / a.
    squares = 1 + moments.attention_variance[..., None] + (moments.level_variance + area**2) / area**2
    product = moments.level_share / area
    return moments.only_defined(4 * product / (squares + 2 * product))


OF_MOMENTS: dict[str, Callable[[Moments], Values]] = {
    "shell_contrast": _shell_contrast,
    "information_gain": _information_gain,
    "log_lift": _log_lift,
    "mass_accuracy": _mass_accuracy,
    "pearson": _pearson,
    "attention_iou": _attention_iou,
}
"""The metrics of this module as functions of moments, by name."""


def _moments(attention: Attention, masks: Masks, resolution: Resolution, valid: Valid, distinct: Distinct) -> Moments:
    check_arguments(attention, masks, resolution, valid)
    if resolution == "image":
        return image_moments(attention, masks, distinct=distinct)
    grid_hw = (int(attention.shape[-2]), int(attention.shape[-1]))
    return grid_moments(attention, Regions.from_masks(masks, grid_hw, valid=valid, distinct=distinct))
