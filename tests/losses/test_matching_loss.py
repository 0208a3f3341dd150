"""The loss of masks that share the targets of one prompt."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch import Tensor

from arrcoc_sam.errors import InputError, ShapeError
from arrcoc_sam.losses import functional as LF


def an_answer(batch: int = 5, masks: int = 3, targets: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(batch, masks, 9, 7, generator=generator) * 2
    wanted = torch.rand(batch, targets, 9, 7, generator=generator) > 0.5
    return logits, wanted, torch.rand(batch, targets, generator=generator)


def test_one_target_is_the_minimum_over_masks() -> None:
    logits, targets, _ = an_answer(targets=1)
    loss, matched = LF.matched_masks_loss(logits, targets, torch.ones(5, 1))
    expected, winner = LF.min_over_masks_loss(logits, targets[:, 0])
    torch.testing.assert_close(loss, expected)
    assert torch.equal(matched[:, 0], winner)


@pytest.mark.parametrize(("masks", "targets"), [(3, 3), (3, 2), (4, 3)])
def test_the_cheapest_of_all_assignments(masks: int, targets: int) -> None:
    logits, wanted, weights = an_answer(masks=masks, targets=targets)
    loss, matched = LF.matched_masks_loss(logits, wanted, weights, focal_weight=3.0)
    pairs = logits[:, :, None].expand(-1, -1, targets, -1, -1)
    each = LF.focal_dice_loss(pairs, wanted[:, None].expand_as(pairs), focal_weight=3.0, reduction="none")
    for prompt in range(len(logits)):
        costs = {
            order: sum(each[prompt, mask, a] * weights[prompt, a] for a, mask in enumerate(order))
            for order in permutations(range(masks), targets)
        }
        best = min(costs, key=lambda order: float(costs[order]))
        assert tuple(matched[prompt].tolist()) == best
        torch.testing.assert_close(loss[prompt], costs[best])


def test_two_targets_never_share_a_mask() -> None:
    """One mask is right for both; the second target has to take another."""
    target = torch.zeros(4, 4, dtype=torch.bool)
    target[:2] = True
    logits = torch.stack([target * 10.0 - 5.0, torch.zeros(4, 4)])[None]
    _, matched = LF.matched_masks_loss(logits, torch.stack([target, target])[None], torch.tensor([[0.6, 0.4]]))
    assert matched.tolist() == [[0, 1]]


def test_gradient_goes_through_the_matched_masks_alone() -> None:
    logits, targets, _ = an_answer(targets=2)
    logits.requires_grad_()
    weights = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.2, 0.8], [0.0, 1.0], [0.0, 0.0]])
    loss, matched = LF.matched_masks_loss(logits, targets, weights)
    loss.sum().backward()
    assert logits.grad is not None
    learned = logits.grad.flatten(2).abs().sum(dim=2) > 0
    for prompt, masks in enumerate(matched.tolist()):
        assert set(learned[prompt].nonzero()[:, 0].tolist()) == set(masks) - {-1}
    assert loss[4] == 0.0


def test_padding_does_not_count() -> None:
    logits, targets, weights = an_answer()
    weights[:, 2] = 0.0
    loss, matched = LF.matched_masks_loss(logits, targets, weights)
    assert (matched[:, 2] == -1).all()
    targets[:, 2] = ~targets[:, 2]
    torch.testing.assert_close(LF.matched_masks_loss(logits, targets, weights)[0], loss)


def test_no_prompt() -> None:
    logits, targets, weights = an_answer()
    loss, matched = LF.matched_masks_loss(logits[:0], targets[:0], weights[:0])
    assert (loss.shape, matched.shape) == ((0,), (0, 3))


def test_errors(as_at_run_time: None) -> None:
    logits, targets, weights = an_answer()
    with pytest.raises(ShapeError, match="a mask for each"):
        LF.matched_masks_loss(logits[:, :2], targets, weights)
    with pytest.raises(ShapeError, match="1 to 6 masks"):
        LF.matched_masks_loss(logits.repeat(1, 3, 1, 1), targets, weights)
    with pytest.raises(ShapeError, match="targets has shape"):
        LF.matched_masks_loss(logits, targets[:, :2], weights)
    with pytest.raises(InputError, match="weights is"):
        LF.matched_masks_loss(logits, targets, torch.ones(5, 3, dtype=torch.int64))
    with pytest.raises(InputError, match="at least 0"):
        LF.matched_masks_loss(logits, targets, weights - 1.0)
