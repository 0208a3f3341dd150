"""From results to figures and pages.

:func:`~arrcoc_sam.report.plots.plot_granularity` draws a figure, :func:`~arrcoc_sam.report.html.granularity_report`
writes a self-contained page; :mod:`~arrcoc_sam.report.panels` holds the single panels, for figures of your own.
"""

from arrcoc_sam.report.html import GranularityPage, ReportItem, granularity_report
from arrcoc_sam.report.panels import level_bars, mark_point, outline_masks, overlay_attention, show_image
from arrcoc_sam.report.plots import plot_granularity
from arrcoc_sam.report.provenance import Provenance
from arrcoc_sam.report.reliability import plot_reliability

__all__ = [
    "GranularityPage",
    "Provenance",
    "ReportItem",
    "granularity_report",
    "level_bars",
    "mark_point",
    "outline_masks",
    "overlay_attention",
    "plot_granularity",
    "plot_reliability",
    "show_image",
]
