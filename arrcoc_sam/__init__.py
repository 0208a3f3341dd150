"""arrcoc_sam."""
