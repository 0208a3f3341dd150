"""Levels: the whole, part and subpart of a prompt, and all nested masks of an image.

Works on tensors and knows nothing of images or models.
"""

from arrcoc_sam.hierarchy.levels import LEVELS
from arrcoc_sam.hierarchy.mask_forest import MaskForest
from arrcoc_sam.hierarchy.mask_hierarchy import MaskHierarchy

__all__ = ["LEVELS", "MaskForest", "MaskHierarchy"]
