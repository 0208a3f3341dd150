"""The atlas: layer x head granularity of a model over many images.

``run`` is where to begin: ``read`` looks at an image, ``build`` at all, ``store`` keeps them, ``judge`` makes claims.
"""

from arrcoc_sam.granularity.atlas.run import ABLATION, AtlasResult, Thresholds, run_atlas

__all__ = ["ABLATION", "AtlasResult", "Thresholds", "run_atlas"]
