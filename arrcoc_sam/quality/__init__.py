"""Mask quality: how good a segmenter's masks and its own predictions of their IoU are."""

from arrcoc_sam.quality.click_protocol import (
    AnnotatedImage,
    ClickReport,
    click_image,
    evaluate_clicks,
    summarize_clicks,
)

__all__ = ["AnnotatedImage", "ClickReport", "click_image", "evaluate_clicks", "summarize_clicks"]
