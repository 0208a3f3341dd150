"""Job 1: at which granularity does attention work, and with what confidence.

:mod:`~arrcoc_sam.granularity.metrics` holds one pure function per metric; :class:`GranularityAnalyzer` runs them on an
image.
"""

from arrcoc_sam.granularity import metrics
from arrcoc_sam.granularity.analysis import GranularityAnalyzer
from arrcoc_sam.granularity.result import GranularityResult

__all__ = ["GranularityAnalyzer", "GranularityResult", "metrics"]
