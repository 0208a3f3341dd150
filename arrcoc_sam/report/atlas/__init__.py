"""The page, figures and tables of an atlas."""

from arrcoc_sam.report.atlas.page import atlas_report
from arrcoc_sam.report.atlas.plots import atlas_figures

__all__ = ["atlas_figures", "atlas_report"]
