"""Soft masks and attention maps made bool, each map by a threshold of its own."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float
from skimage.filters import threshold_otsu
from torch import Tensor

from arrcoc_sam.attention.maps import AttentionMaps
from arrcoc_sam.errors import InputError, UnknownNameError, describe, explain
from arrcoc_sam.inputs import as_masks

__all__ = ["THRESHOLDS", "Threshold", "attention_masks", "binarize", "check_threshold"]

THRESHOLDS = ("otsu", "mean", "mass")
"""Thresholds that a map sets itself."""

Threshold: TypeAlias = Literal["otsu", "mean", "mass"] | float | int
"""A number, or how the map sets it."""


def binarize(
    values: Float[Tensor, "*N H W"] | np.ndarray, threshold: Threshold, *, mass_share: float = 0.5
) -> Bool[Tensor, "*N H W"]:
    """Soft masks as bool ones, each by its own threshold.

    Args:
        values: (…, H, W) finite floats: probabilities, logits, attention.
        threshold: "otsu" splits the map's values into two classes of least variance; "mean" keeps what is above the
            map's mean; "mass" keeps the largest values, ties included, that together hold ``mass_share`` of the map's
            sum, which needs values of at least 0; a number keeps what is above it.
        mass_share: In (0, 1], for "mass".

    Returns:
        (…, H, W) bool, on the values' device. A constant map has no inside: "otsu" and "mean" leave it empty, "mass"
        keeps all of it, or nothing where it is 0 throughout.

    Raises:
        UnknownNameError: No such threshold.
        InputError: Values that are not finite floats, negative ones for "mass", or a share outside (0, 1].
        ShapeError: Fewer than two axes.

    Reference:
        Otsu 1979, A threshold selection method from gray-level histograms (256 bins, as in scikit-image).

    Example:
        >>> binarize(torch.tensor([[1.0, 2.0, 3.0, 6.0]]), "mean").tolist()
        [[False, False, False, True]]
        >>> binarize(torch.tensor([[1.0, 2.0, 3.0, 6.0]]), "mass", mass_share=0.75).tolist()
        [[False, False, True, True]]
    """
    check_threshold(threshold, mass_share)
    soft = check_soft(values, threshold)
    if threshold == "otsu":
        return _above_otsu(soft)
    if threshold == "mean":
        return soft > soft.double().mean((-2, -1), keepdim=True)
    if threshold == "mass":
        return _largest(soft, mass_share)
    return soft > float(threshold)


def attention_masks(
    maps: AttentionMaps, threshold: Threshold = "otsu", *, mass_share: float = 0.5
) -> Bool[Tensor, "N *K H W"]:
    """Attention maps as masks of the original image: brought to its size bilinearly, then :func:`binarize`.

    Args:
        maps: What an attention source answered.
        threshold: As for :func:`binarize`.
        mass_share: As for :func:`binarize`.

    Returns:
        (N, H, W), or (N, K, H, W) of maps that depend on the prompt, at the original image's size.

    Raises:
        UnknownNameError: No such threshold.
        InputError: A share outside (0, 1].
    """
    check_threshold(threshold, mass_share)
    # one map after the other: at image resolution floats take four times the room of the masks
    return torch.stack([binarize(one.to_image("bilinear")[0], threshold, mass_share=mass_share) for one in maps])


def check_threshold(threshold: Threshold, mass_share: float = 0.5) -> None:
    """See that a threshold is known.

    Raises:
        UnknownNameError: A name that is not in :data:`THRESHOLDS`.
        InputError: A number that is not finite, or a share outside (0, 1].
    """
    if isinstance(threshold, str):
        if threshold not in THRESHOLDS:
            raise UnknownNameError(explain(f"threshold={threshold!r}", f"a number or one of {', '.join(THRESHOLDS)}"))
    elif isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not math.isfinite(threshold):
        raise InputError(explain(f"threshold={threshold!r}", f"a finite number or one of {', '.join(THRESHOLDS)}"))
    if not 0 < mass_share <= 1:
        raise InputError(explain(f"mass_share={mass_share}", "a share in (0, 1]"))


def check_soft(
    values: Float[Tensor, "*N H W"] | np.ndarray, threshold: Threshold, *, name: str = "values"
) -> Float[Tensor, "*N H W"]:
    """Soft masks as a tensor, or the error that says why :func:`binarize` can't work with them."""
    soft = as_masks(values, name=name, soft=True)
    if soft.dtype == torch.bool:
        raise InputError(explain(f"{name} is {describe(soft)}", "floats", "leave the threshold out: it is a mask"))
    if not bool(soft.isfinite().all()):
        raise InputError(explain(f"{name} holds NaN or infinite values", "finite floats"))
    if threshold == "mass" and bool((soft < 0).any()):
        raise InputError(
            explain(f"{name} holds negative values", "values of at least 0 for the mass share", "use 'otsu' or 'mean'")
        )
    return soft


def _above_otsu(soft: Float[Tensor, "*N H W"]) -> Bool[Tensor, "*N H W"]:
    flat = soft.reshape(-1, *soft.shape[-2:]).detach()
    cuts = [float(threshold_otsu(one.double().cpu().numpy())) for one in flat]  # type: ignore[no-untyped-call]
    thresholds = torch.tensor(cuts, device=soft.device, dtype=torch.float64)
    return (flat > thresholds[:, None, None]).reshape(soft.shape)


def _largest(soft: Float[Tensor, "*N H W"], share: float) -> Bool[Tensor, "*N H W"]:
    ordered = soft.flatten(-2).sort(dim=-1, descending=True).values
    held = ordered.double().cumsum(-1)
    # the first so many values that hold the share; where rounding of the sums keeps it out of reach, all of them
    last = (held < share * held[..., -1:]).sum(-1, keepdim=True).clamp(max=ordered.shape[-1] - 1)
    return (soft >= ordered.gather(-1, last)[..., None]) & (soft > 0)
