"""Training loops: the segmenter itself, attention under its hierarchy, the IoU head."""
