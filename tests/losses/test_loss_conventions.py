"""Other libraries' losses: equal to ours on hard targets, and the table of where they are not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from arrcoc_sam.losses import functional as LF

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import loss_conventions  # noqa: E402
from loss_peers import peers, sam2_dice  # noqa: E402

PEERS = {peer.name: peer for peer in peers()}


def hard_case(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(5, 23, 31, generator=generator) * 3, (torch.rand(5, 23, 31, generator=generator) > 0.6).float()


def test_every_peer_is_installed():
    assert {peer.distribution for peer in PEERS.values()} == {
        "torchvision",
        "transformers",
        "monai",
        "segmentation-models-pytorch",
        "kornia",
    }


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", PEERS)
def test_focal_on_hard_targets(name, seed):
    logits, targets = hard_case(seed)
    theirs = PEERS[name].focal(logits, targets)
    assert LF.sigmoid_focal_loss(logits, targets.bool()).item() == pytest.approx(theirs.item(), rel=2e-6)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", [name for name in PEERS if name != "kornia"])  # kornia's is over classes
def test_dice_on_hard_targets(name, seed):
    logits, targets = hard_case(seed)
    theirs = PEERS[name].dice(logits, targets)
    assert LF.dice_loss(logits, targets.bool()).item() == pytest.approx(theirs.item(), rel=2e-6)


@pytest.mark.parametrize("name", ["torchvision + SAM 2's Dice", "transformers (DETR)"])
def test_values_and_gradients_on_soft_targets(name):
    logits, _ = hard_case(2)
    targets = torch.rand(logits.shape, generator=torch.Generator().manual_seed(3))
    gradients = []
    for loss in (PEERS[name].focal_dice, lambda x, t: LF.focal_dice_loss(x, t, backend="eager")):
        x = logits.clone().requires_grad_()
        loss(x, targets).backward()
        gradients.append(x.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(sam2_dice(logits, targets), LF.dice_loss(logits, targets))


def test_the_table_in_the_documentation_is_what_is_measured():
    document = loss_conventions.DOCUMENT.read_text()
    if loss_conventions.versions(peers()) not in document:
        pytest.skip("measured with other versions; python benchmarks/loss_conventions.py --write")
    assert loss_conventions.table() in document


def test_ours_is_right_where_peers_are_not():
    rows = [line.split("|") for line in loss_conventions.table().splitlines() if line.startswith("| ")]
    ours = next(row for row in rows if row[1].strip() == "arrcoc_sam")
    cells = [cell.strip() for cell in ours[2:10]]
    assert cells == ["equal", "equal", "finite", "equal", "equal", "equal", "equal", "2.27e-05"]
