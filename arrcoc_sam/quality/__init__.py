"""Mask quality: how good a segmenter's masks and its own predictions of their IoU are, and masks that it did not make.

:class:`MaskQualityEstimator` scores external masks, :func:`score_masks` those of a whole data set, and
:func:`filter_masks` keeps those that meet :class:`KeepRules`; :func:`evaluate_iou_head` judges predicted IoU.
"""

from arrcoc_sam.quality.bounds import jaccard_bounds
from arrcoc_sam.quality.calibration import (
    FittedCalibration,
    embedded_calibration_path,
    fitting_calibration,
    load_calibration,
)
from arrcoc_sam.quality.calibration_fit import CalibrationFit, fit_calibration
from arrcoc_sam.quality.calibration_samples import calibration_samples
from arrcoc_sam.quality.click_protocol import (
    AnnotatedImage,
    ClickReport,
    click_image,
    evaluate_clicks,
    summarize_clicks,
)
from arrcoc_sam.quality.degradations import DEGRADATIONS, MaskContext, degrade, mask_context
from arrcoc_sam.quality.estimator import MaskQualityEstimator
from arrcoc_sam.quality.filter_run import FilterSummary, filter_masks
from arrcoc_sam.quality.filtering import Judgement, KeepRules, judge
from arrcoc_sam.quality.iou_head import IoUHeadReport, evaluate_iou_head
from arrcoc_sam.quality.mask_quality import CalibratedQuality, EncodedMasks, MaskQuality, QualityCalibration
from arrcoc_sam.quality.score_table import read_scores
from arrcoc_sam.quality.scoring.local import ScoringSummary, score_masks
from arrcoc_sam.quality.scoring.spec import EstimatorSpec
from arrcoc_sam.quality.thresholds import THRESHOLDS, attention_masks, binarize

__all__ = [
    "DEGRADATIONS",
    "THRESHOLDS",
    "AnnotatedImage",
    "CalibratedQuality",
    "CalibrationFit",
    "ClickReport",
    "EncodedMasks",
    "EstimatorSpec",
    "FilterSummary",
    "FittedCalibration",
    "IoUHeadReport",
    "Judgement",
    "KeepRules",
    "MaskContext",
    "MaskQuality",
    "MaskQualityEstimator",
    "QualityCalibration",
    "ScoringSummary",
    "attention_masks",
    "binarize",
    "calibration_samples",
    "click_image",
    "degrade",
    "embedded_calibration_path",
    "evaluate_clicks",
    "evaluate_iou_head",
    "filter_masks",
    "fit_calibration",
    "fitting_calibration",
    "jaccard_bounds",
    "judge",
    "load_calibration",
    "mask_context",
    "read_scores",
    "score_masks",
    "summarize_clicks",
]
