"""What the losses accept, checked before any work: each error names the argument, what came, and the mend.

Only shapes, dtypes, devices and plain numbers are looked at in every training step: to look at the values of tensors
would wait for the GPU. The first few batches of float targets of a process are looked at, for masks of 0 and 255 or of
labels, and the first few of attention, for logits in the place of distributions; none where there is no value to see
(compiled, traced, captured in a CUDA graph, inside ``vmap``).
(:mod:`arrcoc_sam.losses.matching`, which has to wait for which targets there are, looks at their weights besides.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Bool
from torch import Tensor

from arrcoc_sam.errors import InputError, ShapeError, UnknownNameError, describe, explain

__all__ = [
    "BACKENDS",
    "REDUCTIONS",
    "Backend",
    "FocalDiceOptions",
    "Reduction",
    "check_choice",
    "check_distributions",
    "check_focal_dice",
    "check_logits",
    "check_masks",
    "check_number",
    "check_range",
    "check_same_device",
]

Reduction: TypeAlias = Literal["none", "mean", "sum"]
Backend: TypeAlias = Literal["auto", "eager", "compiled", "triton"]
REDUCTIONS: Final = ("none", "mean", "sum")
BACKENDS: Final = ("auto", "eager", "compiled", "triton")

_MASK_DTYPES: Final = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class _Looks:
    """How many tensors of float targets, and batches of attention, are still to be looked at."""

    left = 8
    attention_left = 8


class FocalDiceOptions(NamedTuple):
    """The numbers of the mixed loss, checked; see :func:`arrcoc_sam.losses.functional.focal_dice_loss`."""

    focal_weight: float
    dice_weight: float
    alpha: float | None
    gamma: float
    smooth: float
    backend: Backend


def check_focal_dice(
    *,
    focal_weight: float = 1.0,
    dice_weight: float = 1.0,
    alpha: float | None = None,
    gamma: float = 2.0,
    smooth: float = 1.0,
    backend: Backend = "eager",
) -> FocalDiceOptions:
    """The options as one value, or the error that says which of them is out of its range."""
    check_number(focal_weight, "focal_weight")
    check_number(dice_weight, "dice_weight")
    check_number(gamma, "gamma")
    check_number(smooth, "smooth")
    if alpha is not None:
        check_number(alpha, "alpha", high=1.0, mend="pass alpha=None for no class weight")
    check_choice(backend, "backend", BACKENDS)
    return FocalDiceOptions(focal_weight, dice_weight, alpha, gamma, smooth, backend)


def check_number(value: float, name: str, *, high: float = math.inf, mend: str | None = None) -> None:
    """A finite Python number in [0, high]."""
    expected = "a finite number >= 0" if high == math.inf else f"a number in [0, {high:g}]"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(explain(f"{name} is {describe(value)}", expected, mend))
    if not (0 <= value <= high and value < math.inf):
        raise InputError(explain(f"{name} is {value}", expected, mend))


def check_choice(value: str, name: str, choices: tuple[str, ...]) -> None:
    """One of a few names."""
    if value not in choices:
        raise UnknownNameError(explain(f"{name} is {describe(value)}", "one of " + ", ".join(map(repr, choices))))


def check_logits(logits: Tensor, name: str = "logits", *, axes: str = "(…, H, W)", rank: int | None = None) -> None:
    """A floating-point tensor of at least two axes, or exactly ``rank``, the last two not empty."""
    if not isinstance(logits, Tensor):
        raise InputError(explain(f"{name} is {describe(logits)}", f"a tensor {axes}", "convert it: torch.as_tensor"))
    if not logits.is_floating_point():
        raise InputError(explain(f"{name} is {describe(logits)}", "floating-point numbers", f"pass {name}.float()"))
    if logits.ndim < 2 or (rank is not None and logits.ndim != rank) or 0 in logits.shape[-2:]:
        channel = rank is not None and logits.ndim == rank + 1 and logits.shape[1] == 1
        mend = f"without the channel axis: {name}.squeeze(1)" if channel else None
        raise ShapeError(explain(f"{name} is {describe(logits)}", f"{axes} with H and W >= 1", mend))


def check_masks(targets: Tensor, shape: tuple[int, ...], name: str = "targets", *, of: str = "logits") -> None:
    """Masks, hard or soft, of a given shape."""
    if not isinstance(targets, Tensor):
        raise InputError(explain(f"{name} is {describe(targets)}", "a tensor", "convert it: torch.as_tensor"))
    if not targets.is_floating_point() and targets.dtype not in _MASK_DTYPES:
        raise InputError(explain(f"{name} is {describe(targets)}", "bool, integers, or floats in [0, 1]"))
    if tuple(targets.shape) != shape:
        mend = None
        if (*targets.shape[:1], 1, *targets.shape[1:]) == shape:
            mend = f"{of}.squeeze(1), or {name}.unsqueeze(1)"
        elif targets.ndim >= 2 and tuple(targets.shape[-2:]) != shape[-2:]:
            mend = "bring both to one size, for example with arrcoc_sam.masks.area_average"
        raise ShapeError(explain(f"{name} has shape {tuple(targets.shape)}", f"{shape}, as {of} has it", mend))


def check_range(
    targets: Tensor, name: str = "targets", *, valid: Tensor | None = None, weights: Tensor | None = None
) -> None:
    """Soft masks that lie in [0, 1], or a little beside it as resizing leaves them; of the first batches alone.

    What lies a little beside is clamped where the losses are evaluated.

    Args:
        targets: Checked in all else.
        name: What messages call them.
        valid: Of the first axes: what is not valid may hold anything.
        weights: Of the first axes too: so may what weighs nothing.
    """
    if not _Looks.left or not targets.is_floating_point() or not _has_values(targets):
        return
    try:
        shown = targets.detach()
        if weights is not None:
            shown = torch.where((weights > 0)[..., None, None], shown, 0)
        if valid is not None:
            shown = shown[valid]
        low, high = (float(value) for value in shown.aminmax())
    except RuntimeError:  # none at all, or none that can be seen here
        return
    if low <= -1 or high >= 2:
        mend = "pass masks as bool (masks > 0), or divide those of 0 and 255 by 255"
        raise InputError(explain(f"{name} reach from {low:g} to {high:g}", "floats in [0, 1]", mend))
    _Looks.left -= 1


def check_distributions(levels: Sequence[Tensor], counted: Bool[Tensor, "B L"], name: str) -> None:
    """Attention of at least 0 whose cells add up to 1 at most, give or take what half precision does to a sum.

    Args:
        levels: L tensors (B, h, w).
        counted: What else there is may hold anything.
        name: What messages call them.
    """
    if not _Looks.attention_left or not all(map(_has_values, levels)):
        return
    try:
        for index, level in enumerate(levels):
            shown = level.detach()[counted[:, index]].flatten(1)
            if not len(shown):
                continue
            low, most = float(shown.amin()), float(shown.sum(-1, dtype=torch.float32).amax())
            if low < -0.01 or most > 1.05:
                came = f"{name}[{index}] has cells down to {low:g}, and sums over the cells up to {most:g}"
                mend = "pass probabilities: logits.flatten(-2).softmax(-1).view_as(logits)"
                raise InputError(explain(came, "cells >= 0 with a sum of at most 1", mend))
    except RuntimeError:  # none that can be seen here
        return
    _Looks.attention_left -= 1


def _has_values(tensor: Tensor) -> bool:
    """Whether there may be values to look at: neither traced, captured, fake, nor spread over devices."""
    if torch.compiler.is_compiling() or type(tensor) not in (Tensor, torch.nn.Parameter):
        return False
    return not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())


def check_same_device(first: Tensor, second: Tensor, names: tuple[str, str]) -> None:
    """Two tensors on one device."""
    if first.device != second.device:
        came = f"{names[0]} is on {first.device}, {names[1]} on {second.device}"
        raise InputError(explain(came, "both on one device", f"{names[1]}.to({names[0]}.device)"))
