"""Pure operations on masks, batched, in torch: measures, averages over a grid, pieces, run lengths.

A mask is a bool tensor (…, H, W); numpy arrays are accepted everywhere. Nothing here knows about images, models or
levels.
"""

from arrcoc_sam.masks.averaging import area_average, overlap_matrix
from arrcoc_sam.masks.components import connected_components, inscribed_circle, largest_interior_point
from arrcoc_sam.masks.measures import (
    areas,
    containment,
    mask_boxes,
    mask_iou,
    pairwise_containment,
    pairwise_intersection,
    pairwise_iou,
    stability_score,
)
from arrcoc_sam.masks.rle import RLE, decode_rle, encode_rle, rle_areas

__all__ = [
    "RLE",
    "area_average",
    "areas",
    "connected_components",
    "containment",
    "decode_rle",
    "encode_rle",
    "inscribed_circle",
    "largest_interior_point",
    "mask_boxes",
    "mask_iou",
    "overlap_matrix",
    "pairwise_containment",
    "pairwise_intersection",
    "pairwise_iou",
    "rle_areas",
    "stability_score",
]
