"""Measure, filter and train attention with SAM's whole / part / subpart masks and predicted IoU.

The public names, listed. They are imported when first used, so that ``import arrcoc_sam`` and the command line's help
cost nothing, and nothing optional is ever needed to import the package:

>>> import arrcoc_sam as aa
>>> "tiny" in aa.list_segmenters()
True
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from arrcoc_sam._version import __version__

if TYPE_CHECKING:
    from arrcoc_sam import (
        attention,
        datasets,
        errors,
        granularity,
        losses,
        quality,
        report,
        scenes,
        segmenters,
        training,
    )
    from arrcoc_sam.attention import (
        ArrayAttention,
        AttentionMaps,
        CallableAttention,
        RelevanceAttention,
        ViTAttention,
    )
    from arrcoc_sam.candidates import MaskCandidates, ensemble, select
    from arrcoc_sam.errors import ArrcocSamError
    from arrcoc_sam.geometry import ImageTransform
    from arrcoc_sam.granularity import GranularityAnalyzer, GranularityResult
    from arrcoc_sam.hierarchy import MaskForest, MaskHierarchy
    from arrcoc_sam.images import load_image
    from arrcoc_sam.losses import FocalDiceLoss, HierarchicalAttentionLoss, MultiMaskLoss
    from arrcoc_sam.prompts import Prompts
    from arrcoc_sam.quality import MaskQuality, MaskQualityEstimator
    from arrcoc_sam.segmenters import list_segmenters, load_segmenter
    from arrcoc_sam.segmenters.base import Segmenter
    from arrcoc_sam.segmenters.embedding import ImageEmbedding
    from arrcoc_sam.segmenters.everything.generator import AutomaticMaskGenerator
    from arrcoc_sam.segmenters.interactive import InteractiveSession
    from arrcoc_sam.segmenters.video.prompts import VideoPrompt
    from arrcoc_sam.segmenters.video.segmenter import load_video_segmenter
    from arrcoc_sam.segmenters.video.tracks import VideoTracks
    from arrcoc_sam.selection import Selection

__all__ = [
    "ArrayAttention",
    "ArrcocSamError",
    "AttentionMaps",
    "AutomaticMaskGenerator",
    "CallableAttention",
    "FocalDiceLoss",
    "GranularityAnalyzer",
    "GranularityResult",
    "HierarchicalAttentionLoss",
    "ImageEmbedding",
    "ImageTransform",
    "InteractiveSession",
    "MaskCandidates",
    "MaskForest",
    "MaskHierarchy",
    "MaskQuality",
    "MaskQualityEstimator",
    "MultiMaskLoss",
    "Prompts",
    "RelevanceAttention",
    "Segmenter",
    "Selection",
    "ViTAttention",
    "VideoPrompt",
    "VideoTracks",
    "__version__",
    "attention",
    "datasets",
    "ensemble",
    "errors",
    "granularity",
    "list_segmenters",
    "load_image",
    "load_segmenter",
    "load_video_segmenter",
    "losses",
    "quality",
    "report",
    "scenes",
    "segmenters",
    "select",
    "training",
]

_SUBPACKAGES = {
    "attention",
    "datasets",
    "errors",
    "granularity",
    "losses",
    "quality",
    "report",
    "scenes",
    "segmenters",
    "training",
}
_HOMES = {
    "ArrayAttention": "attention",
    "ArrcocSamError": "errors",
    "AttentionMaps": "attention",
    "AutomaticMaskGenerator": "segmenters.everything.generator",
    "CallableAttention": "attention",
    "FocalDiceLoss": "losses",
    "GranularityAnalyzer": "granularity",
    "GranularityResult": "granularity",
    "HierarchicalAttentionLoss": "losses",
    "ImageEmbedding": "segmenters.embedding",
    "ImageTransform": "geometry",
    "InteractiveSession": "segmenters.interactive",
    "MaskCandidates": "candidates",
    "MaskForest": "hierarchy",
    "MaskHierarchy": "hierarchy",
    "MaskQuality": "quality",
    "MaskQualityEstimator": "quality",
    "MultiMaskLoss": "losses",
    "Prompts": "prompts",
    "RelevanceAttention": "attention",
    "Segmenter": "segmenters.base",
    "Selection": "selection",
    "VideoPrompt": "segmenters.video.prompts",
    "VideoTracks": "segmenters.video.tracks",
    "ViTAttention": "attention",
    "ensemble": "candidates",
    "list_segmenters": "segmenters",
    "load_image": "images",
    "load_segmenter": "segmenters",
    "load_video_segmenter": "segmenters.video.segmenter",
    "select": "candidates",
}


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return import_module(f"{__name__}.{name}")
    if name in _HOMES:
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
