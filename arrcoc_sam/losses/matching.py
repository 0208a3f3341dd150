"""The loss of masks that answer an ambiguous prompt together: all that it may mean is learned, each by one mask."""

from __future__ import annotations

from itertools import permutations
from typing import Final

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from arrcoc_sam.errors import InputError, ShapeError, describe, explain
from arrcoc_sam.losses.arguments import (
    Backend,
    check_focal_dice,
    check_logits,
    check_masks,
    check_range,
    check_same_device,
)
from arrcoc_sam.losses.focal_dice import per_mask_focal_dice

__all__ = ["matched_masks_loss"]

_MOST_MASKS: Final = 6  # every assignment is tried: 720 of them


def matched_masks_loss(
    logits: Float[Tensor, "B M H W"],
    targets: Shaped[Tensor, "B A H W"],
    weights: Float[Tensor, "B A"],
    *,
    focal_weight: float = 20.0,
    dice_weight: float = 1.0,
    alpha: float | None = 0.25,
    gamma: float = 2.0,
    smooth: float = 1.0,
    backend: Backend = "auto",
) -> tuple[Float[Tensor, " B"], Int64[Tensor, "B A"]]:
    """The mixed losses of all targets of a prompt, each with a mask of its own, by the cheapest assignment.

    With one target it is :func:`min_over_masks_loss`. With the whole, the part and the subpart under a click, weighted
    by how probable the click means each, it is the mean of that loss over what the click may have meant, but that no
    mask can serve two targets: three times the gradient from one answer, and masks that differ.

    It waits for the GPU once: the targets that are there are picked out, so that padding costs no work.

    Args:
        logits: (B, M, H, W), M candidate masks of each of B prompts; 1 to 6.
        targets: (B, A, H, W) bool, integers (not 0: the mask), or floats in [0, 1]; A ≤ M. Constant.
        weights: (B, A), finite, ≥ 0. A target of weight 0 is not there: padding.
        focal_weight: See :func:`arrcoc_sam.losses.functional.focal_dice_loss`, as for the following.
        dice_weight: Weight of Dice.
        alpha: Weight of the foreground in the focal loss; None: no class weight.
        gamma: Focusing exponent of the focal loss.
        smooth: Added to numerator and denominator of Dice.
        backend: "auto", "eager", "compiled" or "triton".

    Returns:
        The weighted sum of losses (B,), and which mask each target was assigned to (B, A); -1 where there is no target.

    Raises:
        InputError: A dtype, device or number that can't be worked with.
        ShapeError: Axes or sizes that do not agree, more targets than masks, more than 6 masks.
        UnknownNameError: An unknown backend.

    Reference:
        Kirillov et al. 2023, "Segment Anything", section 3, for one target; the assignment is that of Carion et al.
        2020, "End-to-End Object Detection with Transformers", equation 1.

    Example:
        >>> import torch
        >>> small = torch.zeros(4, 4, dtype=torch.bool)
        >>> small[:2, :2] = True
        >>> logits = torch.stack([torch.full((4, 4), 5.0), small * 10.0 - 5.0])[None]
        >>> targets = torch.stack([small, torch.ones_like(small)])[None]
        >>> matched_masks_loss(logits, targets, torch.tensor([[0.5, 0.5]]))[1]
        tensor([[1, 0]])
    """
    options = check_focal_dice(
        focal_weight=focal_weight,
        dice_weight=dice_weight,
        alpha=alpha,
        gamma=gamma,
        smooth=smooth,
        backend=backend,
    )
    _check(logits, targets, weights)
    prompts, wanted = (weights > 0).nonzero(as_tuple=True)  # (n,) pairs that count
    there = targets[prompts, wanted]
    with torch.no_grad():
        given = logits.detach()[prompts]
        each = per_mask_focal_dice(given, there.unsqueeze(1).expand(given.shape), options=options)
        costs = each.new_zeros(*weights.shape, logits.shape[1])
        costs[prompts, wanted] = each * weights[prompts, wanted].to(each.dtype).unsqueeze(1)
        assigned = _cheapest(costs)
    chosen = logits[prompts, assigned[prompts, wanted]]
    losses = per_mask_focal_dice(chosen, there, options=options)
    total = losses.new_zeros(len(logits)).index_add(0, prompts, losses * weights[prompts, wanted].to(losses.dtype))
    return total, torch.where(weights > 0, assigned, -1)


def _cheapest(costs: Float[Tensor, "B A M"]) -> Int64[Tensor, "B A"]:
    """For each prompt, the masks of its targets, all different, of the least total cost."""
    _, count, masks = costs.shape
    orders = torch.tensor(list(permutations(range(masks), count)), device=costs.device).reshape(-1, count)  # (p, A)
    totals = costs[:, torch.arange(count, device=costs.device), orders].sum(dim=2)  # (B, p)
    return orders[totals.argmin(dim=1)]


def _check(logits: Tensor, targets: Tensor, weights: Tensor) -> None:
    check_logits(logits, axes="(B, M, H, W)", rank=4)
    batch, num_masks, height, width = logits.shape
    if not 1 <= num_masks <= _MOST_MASKS:
        raise ShapeError(explain(f"logits is {describe(logits)}", f"1 to {_MOST_MASKS} masks a prompt"))
    if not isinstance(weights, Tensor) or not weights.is_floating_point() or weights.ndim != 2:
        raise InputError(explain(f"weights is {describe(weights)}", "floats (B, A)"))
    num_targets = weights.shape[1]
    if len(weights) != batch or num_targets > num_masks:
        came = f"weights has shape {tuple(weights.shape)} for logits of {tuple(logits.shape)}"
        mend = "keep the most probable targets"
        raise ShapeError(explain(came, f"({batch}, A) with A of at most {num_masks}: a mask for each", mend))
    check_masks(targets, (batch, num_targets, height, width), "targets")
    check_same_device(logits, targets, ("logits", "targets"))
    check_range(targets)
    check_same_device(logits, weights, ("logits", "weights"))
    # A NaN or a negative weight would drop its target without a word. The GPU is waited for here, or at nonzero().
    if not bool((torch.isfinite(weights) & (weights >= 0)).all()):
        raise InputError(explain("weights with a negative or non-finite number", "finite numbers of at least 0"))
