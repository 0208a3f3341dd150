"""Segmenters of transformers: ``loading`` finds a model's family, ``segmenter`` asks it."""
