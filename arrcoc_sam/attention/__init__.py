"""Attention sources: image -> AttentionMaps."""

from arrcoc_sam.attention.capture import AttentionCall, AttentionCapture, attention_rows
from arrcoc_sam.attention.files import ArrayAttention, CallableAttention, read_attention
from arrcoc_sam.attention.maps import AttentionMaps, AttentionSource, ImageLike, PointsLike
from arrcoc_sam.attention.relevance import RelevanceAttention
from arrcoc_sam.attention.sources import load_attention
from arrcoc_sam.attention.vit import ViTAttention

__all__ = [
    "ArrayAttention",
    "AttentionCall",
    "AttentionCapture",
    "AttentionMaps",
    "AttentionSource",
    "CallableAttention",
    "ImageLike",
    "PointsLike",
    "RelevanceAttention",
    "ViTAttention",
    "attention_rows",
    "load_attention",
    "read_attention",
]
