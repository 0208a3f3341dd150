"""One knob from subpart to whole: levels chosen by name, or blended by a number in [0, 1].

Levels are made nested first (each at least as likely everywhere as the ones within), and the logits are interpolated
between neighbours. So every cell's logit, and with it the attended area, can only grow with granularity, whatever the
model has learnt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from arrcoc_sam.errors import InputError, ShapeError, UnknownNameError, describe, explain
from arrcoc_sam.hierarchy.levels import LEVELS
from arrcoc_sam.inputs import as_numbers

__all__ = ["Granularity", "blend_levels", "granularity_of"]

Granularity: TypeAlias = str | float | Float[Tensor, " K"]
"""A level's name; a number in [0, 1], 0 the innermost level and 1 the whole; or one number a query."""


def granularity_of(level: str, num_levels: int = 3) -> float:
    """The number that stands for a level.

    Raises:
        UnknownNameError: No such level.

    Example:
        >>> [granularity_of(level) for level in ("whole", "part", "subpart")]
        [1.0, 0.5, 0.0]
    """
    if num_levels != len(LEVELS) or level not in LEVELS:
        came = f"granularity {level!r} of {num_levels} levels"
        raise UnknownNameError(explain(came, f"one of {', '.join(LEVELS)} of three, or a number in [0, 1]"))
    return 1.0 - LEVELS.index(level) / (len(LEVELS) - 1)


def blend_levels(
    logits: Sequence[Float[Tensor, "K _ _"]], granularity: Granularity, *, nested: bool = True
) -> Float[Tensor, "K h w"]:
    """Logits between levels, on the finest grid.

    Args:
        logits: L levels, whole first, each on its own grid.
        granularity: Where between the innermost level (0) and the whole (1).
        nested: Raise each level to the ones within where it is below them, so that the area grows with granularity.
            Otherwise levels are blended as they are.

    Returns:
        (K, h, w) of the last level's grid. Differentiable.

    Raises:
        ShapeError: No levels, or of several numbers of queries; neither one number nor one a query.
        InputError: A number outside [0, 1], or none.
        UnknownNameError: No such level.

    Example:
        >>> whole, subpart = torch.tensor([[[2.0, 2.0]]]), torch.tensor([[[2.0, -2.0]]])
        >>> blend_levels([whole, subpart], 0.5)
        tensor([[[2., 0.]]])
    """
    if not logits or len({len(level) for level in logits}) > 1 or any(level.ndim != 3 for level in logits):
        raise ShapeError(explain(f"logits is {[describe(level) for level in logits]}", "L levels (K, h, w)"))
    number = granularity_of(granularity, len(logits)) if isinstance(granularity, str) else granularity
    place = as_numbers(number, "granularity", "(K,)", logits[-1].device).to(logits[-1].dtype)
    if place.ndim > 1 or place.numel() not in (1, len(logits[-1])):
        raise ShapeError(explain(f"granularity is {describe(place)}", f"one number, or ({len(logits[-1])},)"))
    place = place.expand(len(logits[-1]))
    if not bool(((place >= 0) & (place <= 1)).all()):
        raise InputError(explain(f"granularity={granularity}", "numbers in [0, 1]: 0 innermost, 1 whole"))
    size = logits[-1].shape[-2:]
    levels = [
        each if each.shape[-2:] == size else F.interpolate(each[:, None], size, mode="bilinear")[:, 0]
        for each in reversed(logits)  # from the inside out
    ]
    if nested:
        for outer in range(1, len(levels)):
            levels[outer] = torch.maximum(levels[outer], levels[outer - 1])
    stack = torch.stack(levels)
    step = place * (len(levels) - 1)
    below = step.floor().clamp_max(max(len(levels) - 2, 0)).long()
    share = (step - below)[:, None, None]
    queries = torch.arange(len(place), device=place.device)
    inner, outer_level = stack[below, queries], stack[(below + 1).clamp_max(len(levels) - 1), queries]
    # The sum of two products is not monotone in float arithmetic; this form is, for outer >= inner.
    return inner + share * (outer_level - inner)
