"""Losses: masks against logits, levels of attention against SAM's hierarchy, predicted IoUs against actual ones.

:mod:`~arrcoc_sam.losses.functional` holds the functions, :mod:`~arrcoc_sam.losses.modules` the modules over them,
:mod:`~arrcoc_sam.losses.fused` says which code runs them.
"""

from arrcoc_sam.losses import functional
from arrcoc_sam.losses.modules import FocalDiceLoss, HierarchicalAttentionLoss, MultiMaskLoss

__all__ = ["FocalDiceLoss", "HierarchicalAttentionLoss", "MultiMaskLoss", "functional"]
