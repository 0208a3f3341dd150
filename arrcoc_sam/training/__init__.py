"""Training loops: attention under a segmenter's hierarchy, the segmenter itself, the IoU head.

The public names, listed; they are imported when first used:

>>> from arrcoc_sam import training
>>> training.AttentionTraining().levels
(8, 12, 16)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arrcoc_sam.training.attention.evaluation import LevelReport, evaluate_levels, measurable_samples
    from arrcoc_sam.training.attention.feed import HeldSamples
    from arrcoc_sam.training.attention.heads import SupervisedHeads
    from arrcoc_sam.training.attention.model import MultiScaleAttention, attention_of_logits
    from arrcoc_sam.training.attention.settings import AttentionTraining
    from arrcoc_sam.training.attention.trainer import load_attention_model, train_attention
    from arrcoc_sam.training.augmentation import Augmentation
    from arrcoc_sam.training.cache.build import CacheReport, build_cache
    from arrcoc_sam.training.cache.dataset import HierarchyCache, HierarchyDataset, HierarchyStream
    from arrcoc_sam.training.cache.grids import rle_to_grid
    from arrcoc_sam.training.cache.prompts import GridPrompts, PointPrompts, TruthPrompts
    from arrcoc_sam.training.cache.sources import SegmenterLevels, TruthLevels
    from arrcoc_sam.training.granularity_control import blend_levels
    from arrcoc_sam.training.interactive import interactive_loss
    from arrcoc_sam.training.iou_transfer.transfer import ScoredImage, TransferSettings, transfer_iou_head
    from arrcoc_sam.training.recipe import SAM1_RECIPE, SAM2_RECIPE, ClickRecipe
    from arrcoc_sam.training.samples import AttentionBatch, AttentionSample, collate_samples, flip_sample
    from arrcoc_sam.training.samples_scenes import prepare_scenes
    from arrcoc_sam.training.samples_supervision import SUPERVISIONS, draw_levels, multimask_annotations, supervision
    from arrcoc_sam.training.segmenter import train_segmenter
    from arrcoc_sam.training.settings import SegmenterTraining, Stage, Validation
    from arrcoc_sam.training.sources import (
        CocoSource,
        MaskedImage,
        MaskSetSource,
        MixedSource,
        SceneSource,
        TripleSource,
    )

__all__ = [
    "SAM1_RECIPE",
    "SAM2_RECIPE",
    "SUPERVISIONS",
    "AttentionBatch",
    "AttentionSample",
    "AttentionTraining",
    "Augmentation",
    "CacheReport",
    "ClickRecipe",
    "CocoSource",
    "GridPrompts",
    "HeldSamples",
    "HierarchyCache",
    "HierarchyDataset",
    "HierarchyStream",
    "LevelReport",
    "MaskSetSource",
    "MaskedImage",
    "MixedSource",
    "MultiScaleAttention",
    "PointPrompts",
    "SceneSource",
    "ScoredImage",
    "SegmenterLevels",
    "SegmenterTraining",
    "Stage",
    "SupervisedHeads",
    "TransferSettings",
    "TripleSource",
    "TruthLevels",
    "TruthPrompts",
    "Validation",
    "attention_of_logits",
    "blend_levels",
    "build_cache",
    "collate_samples",
    "draw_levels",
    "evaluate_levels",
    "flip_sample",
    "interactive_loss",
    "load_attention_model",
    "measurable_samples",
    "multimask_annotations",
    "prepare_scenes",
    "rle_to_grid",
    "supervision",
    "train_attention",
    "train_segmenter",
    "transfer_iou_head",
]

_NAMES = {
    "attention.model": ("MultiScaleAttention", "attention_of_logits"),
    "attention.evaluation": ("LevelReport", "evaluate_levels", "measurable_samples"),
    "attention.feed": ("HeldSamples",),
    "attention.heads": ("SupervisedHeads",),
    "attention.settings": ("AttentionTraining",),
    "attention.trainer": ("load_attention_model", "train_attention"),
    "augmentation": ("Augmentation",),
    "cache.build": ("CacheReport", "build_cache"),
    "cache.dataset": ("HierarchyCache", "HierarchyDataset", "HierarchyStream"),
    "cache.grids": ("rle_to_grid",),
    "cache.prompts": ("GridPrompts", "PointPrompts", "TruthPrompts"),
    "cache.sources": ("SegmenterLevels", "TruthLevels"),
    "granularity_control": ("blend_levels",),
    "interactive": ("interactive_loss",),
    "iou_transfer.transfer": ("ScoredImage", "TransferSettings", "transfer_iou_head"),
    "recipe": ("SAM1_RECIPE", "SAM2_RECIPE", "ClickRecipe"),
    "samples": ("AttentionBatch", "AttentionSample", "collate_samples", "flip_sample"),
    "samples_scenes": ("prepare_scenes",),
    "samples_supervision": ("SUPERVISIONS", "draw_levels", "multimask_annotations", "supervision"),
    "segmenter": ("train_segmenter",),
    "settings": ("SegmenterTraining", "Stage", "Validation"),
    "sources": ("CocoSource", "MaskSetSource", "MaskedImage", "MixedSource", "SceneSource", "TripleSource"),
}
_HOMES = {name: home for home, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
