"""Attention sources: image -> AttentionMaps."""

from arrcoc_sam.attention.files import ArrayAttention, CallableAttention, read_attention
from arrcoc_sam.attention.maps import AttentionMaps, AttentionSource, ImageLike, PointsLike
from arrcoc_sam.attention.relevance import RelevanceAttention

__all__ = [
    "ArrayAttention",
    "AttentionMaps",
    "AttentionSource",
    "CallableAttention",
    "ImageLike",
    "PointsLike",
    "RelevanceAttention",
    "read_attention",
]
