"""The modules are the functions with options held."""

from __future__ import annotations

import pytest
import torch

import arrcoc_sam.losses as losses
from arrcoc_sam.errors import InputError, UnknownNameError
from arrcoc_sam.losses import FocalDiceLoss, HierarchicalAttentionLoss, MultiMaskLoss, arguments
from arrcoc_sam.losses import functional as LF

OPTIONS = {"focal_weight": 2.0, "dice_weight": 0.5, "alpha": None, "gamma": 1.0, "smooth": 2.0, "backend": "eager"}


def test_public_names():
    assert sorted(losses.__all__) == ["FocalDiceLoss", "HierarchicalAttentionLoss", "MultiMaskLoss", "functional"]
    assert sorted(LF.__all__) == [
        "MultiMaskTerms",
        "attention_mass_loss",
        "dice_loss",
        "focal_dice_loss",
        "hierarchical_focal_dice_loss",
        "iou_prediction_loss",
        "level_weights",
        "matched_masks_loss",
        "min_over_masks_loss",
        "multimask_loss",
        "sigmoid_focal_loss",
    ]


def test_focal_dice():
    logits, targets = torch.randn(2, 3, 5, 5), torch.rand(2, 3, 5, 5)
    loss = FocalDiceLoss(reduction="none", **OPTIONS)(logits, targets)
    assert torch.equal(loss, LF.focal_dice_loss(logits, targets, reduction="none", **OPTIONS))
    assert torch.equal(FocalDiceLoss()(logits, targets), LF.focal_dice_loss(logits, targets))


def test_multimask():
    logits, target, ious = torch.randn(2, 3, 5, 5), torch.rand(2, 5, 5) > 0.5, torch.rand(2, 3)
    terms = MultiMaskLoss(iou_weight=2.0, iou_kind="l1", iou_supervise="winner", **OPTIONS)(logits, target, ious)
    expected = LF.multimask_loss(logits, target, ious, iou_weight=2.0, iou_kind="l1", iou_supervise="winner", **OPTIONS)
    assert {name: value.tolist() for name, value in terms.items()} == {k: v.tolist() for k, v in expected.items()}


def test_hierarchical():
    levels = [torch.randn(2, side, side) for side in (3, 6, 12)]
    masks, confidence = torch.rand(2, 3, 24, 24) > 0.5, torch.rand(2, 3)
    valid = torch.tensor([[True, True, False], [True, False, False]])
    for options in ({}, {"normalize": False}, {"reduction": "none"}):
        loss = HierarchicalAttentionLoss(**options, **OPTIONS)(levels, masks, confidence, valid=valid)
        expected = LF.hierarchical_focal_dice_loss(levels, masks, confidence, valid=valid, **options, **OPTIONS)
        assert torch.equal(loss, expected)
    loss = HierarchicalAttentionLoss()(levels, masks, confidence, normalizer=torch.tensor(3.0))
    assert torch.equal(loss, LF.hierarchical_focal_dice_loss(levels, masks, confidence, normalizer=3.0))


@pytest.mark.usefixtures("as_at_run_time")
def test_float_targets_out_of_their_range(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(arguments._Looks, "left", 3)
    logits, masks = torch.zeros(2, 3, 4, 4), torch.rand(2, 3, 4, 4) > 0.5
    bytes_, weights = masks * 255.0, torch.ones(2, 3)
    for _ in range(3):  # as often as they come
        for call in (
            lambda: LF.focal_dice_loss(logits, bytes_),
            lambda: LF.dice_loss(logits, bytes_),
            lambda: LF.min_over_masks_loss(logits, bytes_[:, 0]),
            lambda: LF.matched_masks_loss(logits, bytes_, weights),
            lambda: LF.hierarchical_focal_dice_loss(logits, bytes_, weights),
            lambda: LF.attention_mass_loss(logits, bytes_, weights),
        ):
            with pytest.raises(InputError, match=r"reach from 0 to 255; expected floats in \[0, 1\]"):
                call()
    with pytest.raises(InputError, match="reach from -1 to 1"):
        LF.dice_loss(logits, masks * 2.0 - 1)
    # neither is a fault: what does not count, values that are not there, overshoot, functorch
    valid = torch.tensor([True, False])
    LF.hierarchical_focal_dice_loss(logits, torch.cat([masks[:1] * 1.0, bytes_[1:]]), weights, valid=valid)
    LF.hierarchical_focal_dice_loss(logits, masks.float().where(weights[..., None, None] > 1, -1.0), 0 * weights)
    torch.vmap(lambda x, t: LF.dice_loss(x, t))(logits, bytes_)
    LF.dice_loss(logits.to("meta"), bytes_.to("meta"))
    LF.dice_loss(logits, masks * 1.05)
    assert not arguments._Looks.left
    LF.dice_loss(logits, bytes_)  # nobody looks any more


@pytest.mark.usefixtures("as_at_run_time")
def test_options_are_checked_when_the_module_is_made():
    with pytest.raises(InputError, match="alpha"):
        FocalDiceLoss(alpha=2.0)
    with pytest.raises(UnknownNameError, match="reduction"):
        HierarchicalAttentionLoss(reduction="batch")
    with pytest.raises(UnknownNameError, match="iou_kind"):
        MultiMaskLoss(iou_kind="huber")
    with pytest.raises(UnknownNameError, match="backend"):
        MultiMaskLoss(backend="cpp")
    with pytest.raises(TypeError, match=r"FocalDiceLoss has no option 'colour'; expected one of reduction, .* backend"):
        FocalDiceLoss(colour="red")
    with pytest.raises(TypeError, match=r"MultiMaskLoss has no option 'iou_weigth'.*'iou_weight', if that is meant"):
        MultiMaskLoss(iou_weigth=2.0)
    with pytest.raises(TypeError, match=r"HierarchicalAttentionLoss has no option 'normalizer'.*to the call"):
        HierarchicalAttentionLoss(normalizer=3.0)


def test_modules_hold_no_state_and_print_their_options():
    module = MultiMaskLoss(iou_kind="l1", gamma=1.0)
    assert not list(module.parameters())
    assert not module.state_dict()
    assert repr(module) == "MultiMaskLoss(iou_weight=1.0, iou_kind='l1', iou_supervise='all', gamma=1.0)"
