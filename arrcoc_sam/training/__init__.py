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
    from arrcoc_sam.training.attention import MultiScaleAttention, attention_of_logits
    from arrcoc_sam.training.attention_evaluation import LevelReport, evaluate_levels, measurable_samples
    from arrcoc_sam.training.attention_feed import HeldSamples
    from arrcoc_sam.training.attention_heads import SupervisedHeads
    from arrcoc_sam.training.attention_settings import AttentionTraining
    from arrcoc_sam.training.attention_trainer import load_attention_model, train_attention
    from arrcoc_sam.training.augmentation import Augmentation
    from arrcoc_sam.training.cache import CacheReport, build_cache
    from arrcoc_sam.training.cache_dataset import HierarchyCache, HierarchyDataset, HierarchyStream
    from arrcoc_sam.training.cache_grids import rle_to_grid
    from arrcoc_sam.training.cache_prompts import GridPrompts, PointPrompts, TruthPrompts
    from arrcoc_sam.training.cache_sources import SegmenterLevels, TruthLevels
    from arrcoc_sam.training.granularity_control import blend_levels
    from arrcoc_sam.training.interactive import interactive_loss
    from arrcoc_sam.training.iou_transfer import ScoredImage, TransferSettings, transfer_iou_head
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
    "attention": ("MultiScaleAttention", "attention_of_logits"),
    "attention_evaluation": ("LevelReport", "evaluate_levels", "measurable_samples"),
    "attention_feed": ("HeldSamples",),
    "attention_heads": ("SupervisedHeads",),
    "attention_settings": ("AttentionTraining",),
    "attention_trainer": ("load_attention_model", "train_attention"),
    "augmentation": ("Augmentation",),
    "cache": ("CacheReport", "build_cache"),
    "cache_dataset": ("HierarchyCache", "HierarchyDataset", "HierarchyStream"),
    "cache_grids": ("rle_to_grid",),
    "cache_prompts": ("GridPrompts", "PointPrompts", "TruthPrompts"),
    "cache_sources": ("SegmenterLevels", "TruthLevels"),
    "granularity_control": ("blend_levels",),
    "interactive": ("interactive_loss",),
    "iou_transfer": ("ScoredImage", "TransferSettings", "transfer_iou_head"),
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
