"""Which way of asking about a mask tells most: protocols and tokens compared on the same degraded masks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import pandas as pd

from arrcoc_sam.prompts import PROMPT_KINDS
from arrcoc_sam.quality.calibration import scores_of
from arrcoc_sam.quality.calibration_curves import BoundCurve
from arrcoc_sam.quality.calibration_fit import bound_figures, judge
from arrcoc_sam.quality.estimator import MaskQualityEstimator
from arrcoc_sam.segmenters.base import Segmenter

__all__ = ["compare_protocols", "protocol_estimators"]


def protocol_estimators(
    segmenter: Segmenter, *, default: str = "mask+point", components: bool = False
) -> dict[str, MaskQualityEstimator]:
    """An estimator of each protocol with all four tokens, and of the default one with token 0 and with tokens 1-3."""
    make = partial(MaskQualityEstimator, segmenter, components=components, keep_masks=False)
    made = {f"{kind}, all": make(kind) for kind in PROMPT_KINDS}
    made[f"{default}, 0"] = make(default, False)
    made[f"{default}, 1-3"] = make(default, True)
    return made


def compare_protocols(samples: Mapping[str, pd.DataFrame], *, seed: int = 0) -> pd.DataFrame:
    """One row a way of asking, the best first.

    Args:
        samples: Of :func:`~arrcoc_sam.quality.calibration_samples.calibration_samples`, by the names of
            :func:`protocol_estimators`.
        seed: Of the halves of the images and of the bootstrap.

    Returns:
        ``protocol``, ``tokens``, ``num_masks``; ``spearman`` of the lower bound with the actual IoU, with the ends of
        its interval; ``mae`` of an isotonic curve fitted on one half of the images, on the other; the share of actual
        IoUs ``inside`` the bounds, and their mean ``width``.
    """
    rows = []
    for name, table in samples.items():
        scored = table[table["area_share"] > 0]
        report = judge(scored["lower_bound"], scored, seed=seed)
        protocol, tokens = name.split(", ")
        bounds = bound_figures(scored)
        rows.append(
            {
                "protocol": protocol,
                "tokens": tokens,
                "num_masks": len(scored),
                "spearman": report.spearman,
                "spearman_low": report.intervals["spearman"][0],
                "spearman_high": report.intervals["spearman"][1],
                "mae": _crossed_error(scored, seed),
                "inside": bounds["inside"],
                "width": bounds["width"],
            }
        )
    return pd.DataFrame(rows).sort_values("spearman", ascending=False, ignore_index=True)


def _crossed_error(samples: pd.DataFrame, seed: int) -> float:
    """Mean absolute error of isotonic curves, each on the half of the images that it was not fitted on."""
    images = np.array(sorted(samples["image"].unique()), dtype=object)
    first = set(np.random.default_rng(seed).permutation(images)[: len(images) // 2])
    inside = samples["image"].isin(first)
    halves = [part for part in (samples[inside], samples[~inside]) if len(part)]
    if len(halves) < 2:
        return float("nan")
    errors = []
    for own, other in (halves, halves[::-1]):
        curve = BoundCurve.fit(scores_of(own), own["actual_iou"].to_numpy(np.float64))
        errors.append(np.abs(curve.predict(scores_of(other)) - other["actual_iou"].to_numpy(np.float64)))
    return float(np.concatenate(errors).mean())
