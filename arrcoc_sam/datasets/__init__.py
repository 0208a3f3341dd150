"""Data sets of images with masks that somebody else made."""

from arrcoc_sam.datasets.coco import CocoDataset, human_hierarchies
from arrcoc_sam.datasets.coco_records import CocoAnnotation, CocoHierarchy, CocoImage
from arrcoc_sam.datasets.faults import Fault

__all__ = ["CocoAnnotation", "CocoDataset", "CocoHierarchy", "CocoImage", "Fault", "human_hierarchies"]
