"""Prompts: what a promptable segmenter is asked, many at a time; point grids, clicks, and how masks become prompts."""

from arrcoc_sam.prompts.clicks import grid_points_xy, point_grid, sample_error_clicks
from arrcoc_sam.prompts.mask_prompts import PROMPT_KINDS, PromptFrame, mask_prompt_logits
from arrcoc_sam.prompts.prompts import Prompts, PromptSignature

__all__ = [
    "PROMPT_KINDS",
    "PromptFrame",
    "PromptSignature",
    "Prompts",
    "grid_points_xy",
    "mask_prompt_logits",
    "point_grid",
    "sample_error_clicks",
]
