"""Fits the networks that correct the predicted IoU, once the masks are there: for three masks, and for token 0."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from scoring_samples import Seen
from torch import Tensor

from arrcoc_sam.quality.click_protocol import ANY_NODE_TOLERANCE
from arrcoc_sam.segmenters.mask_scoring import MaskScoring

EPOCHS, PROMPTS_A_STEP, RATE, WEIGHT_DECAY = 80, 128, 2e-3, 1e-2

REGRET_WEIGHT, MISS_WEIGHT, CHOICE_TEMPERATURE = 0.1, 0.15, 0.03
"""Weights, beside the squared error, of the IoU that is lost by choosing a mask by what is said of it, and of the
chance that another mask fits what is under the click better; and how much higher, in IoU, what is said of one mask has
to be than of another for it to be chosen by odds of e to 1."""


def fitted(seen: Seen, seed: int = 0, miss_weight: float = MISS_WEIGHT) -> MaskScoring:
    """A network whose squared error is small, and what is lost by choosing the mask that it says is best."""
    torch.manual_seed(seed)
    geometry, predicted_iou, expected_iou, nearest_iou = (torch.from_numpy(values) for values in seen)
    network = MaskScoring(seen.expected_iou.shape[1])
    total = EPOCHS * (len(seen.expected_iou) // PROMPTS_A_STEP)
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=total)
    for rows in batches(len(seen.expected_iou)):
        said = network(geometry[rows], predicted_iou[rows])
        wanted = expected_iou[rows]
        loss = (said - wanted).square().mean() + REGRET_WEIGHT * regret(said, wanted)
        loss = loss + miss_weight * miss(said, nearest_iou[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def regret(said: Tensor, expected_iou: Tensor) -> Tensor:
    """The mean IoU by which the best of the masks is better than one chosen by what is said of them; 0 for one mask."""
    chosen = (said / CHOICE_TEMPERATURE).softmax(dim=1)
    return (expected_iou.amax(dim=1) - torch.linalg.vecdot(chosen, expected_iou)).mean()


def miss(said: Tensor, nearest_iou: Tensor) -> Tensor:
    """The chance that a mask chosen by what is said counts as wrong in the protocol's selection accuracy."""
    wrong = nearest_iou < nearest_iou.amax(dim=1, keepdim=True) - ANY_NODE_TOLERANCE
    return torch.linalg.vecdot((said / CHOICE_TEMPERATURE).softmax(dim=1), wrong.to(said.dtype)).mean()


def batches(count: int) -> Iterator[Tensor]:
    """Rows, shuffled, each once an epoch but for those that fill no batch."""
    for _ in range(EPOCHS):
        yield from torch.randperm(count)[: count - count % PROMPTS_A_STEP].split(PROMPTS_A_STEP)
