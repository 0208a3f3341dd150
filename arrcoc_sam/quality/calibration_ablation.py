"""Which way of asking about a mask tells most: protocols and tokens compared on the same degraded masks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import pandas as pd
from jaxtyping import Float64
from numpy import ndarray

from arrcoc_sam.errors import UnknownNameError, explain
from arrcoc_sam.prompts import PROMPT_KINDS
from arrcoc_sam.quality.calibration import scores_of
from arrcoc_sam.quality.calibration_curves import BoundCurve
from arrcoc_sam.quality.calibration_fit import bound_figures, judge
from arrcoc_sam.quality.estimator import MaskQualityEstimator
from arrcoc_sam.quality.head_metrics import drawn_images, head_metrics
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


def compare_protocols(
    samples: Mapping[str, pd.DataFrame], *, default: str = "mask+point, all", seed: int = 0, num_bootstrap: int = 200
) -> pd.DataFrame:
    """One row a way of asking, the highest correlation first.

    That order is selected on the samples that it is judged on: the first of several that are equally good looks better
    than it is. What a way gains over the default is told by ``gain_low`` and ``gain_high``, of draws that both share.

    Args:
        samples: Of :func:`~arrcoc_sam.quality.calibration_samples.calibration_samples`, by the names of
            :func:`protocol_estimators`; all of the same masks.
        default: The way that others are compared with, by its name.
        seed: Of the halves of the images and of the bootstrap.
        num_bootstrap: Draws of images.

    Returns:
        ``protocol``, ``tokens``, ``num_masks``; ``spearman`` of the lower bound with the actual IoU, with the ends of
        its interval; ``gain``, how much higher it is than that of the default way, with the ends of the paired interval
        (all 95 %, NaN with one image); ``mae`` of an isotonic curve fitted on one half of the images, on the other; the
        share of actual IoUs ``inside`` the bounds, and their mean ``width``.

    Raises:
        UnknownNameError: No samples of the default way.
    """
    if default not in samples:
        raise UnknownNameError(explain(f"default={default!r} without samples", f"those of one of {', '.join(samples)}"))
    masks = {name: table[table["area_share"] > 0] for name, table in samples.items()}
    draws = {name: _drawn_spearman(scored, seed, num_bootstrap) for name, scored in masks.items()}
    usual = judge(masks[default]["lower_bound"], masks[default], num_bootstrap=0).spearman
    rows = []
    for name, scored in masks.items():
        spearman = judge(scored["lower_bound"], scored, num_bootstrap=0).spearman
        low, high = _ends(draws[name])
        gain_low, gain_high = _ends(draws[name] - draws[default])
        protocol, tokens = name.split(", ")
        bounds = bound_figures(scored)
        rows.append(
            {
                "protocol": protocol,
                "tokens": tokens,
                "num_masks": len(scored),
                "spearman": spearman,
                "spearman_low": low,
                "spearman_high": high,
                "gain": spearman - usual,
                "gain_low": gain_low,
                "gain_high": gain_high,
                "mae": _crossed_error(scored, seed),
                "inside": bounds["inside"],
                "width": bounds["width"],
            }
        )
    return pd.DataFrame(rows).sort_values("spearman", ascending=False, ignore_index=True)


def _drawn_spearman(samples: pd.DataFrame, seed: int, num_bootstrap: int) -> Float64[ndarray, " B"]:
    """Of the lower bound with the actual IoU in draws of images, which depend on the images and the seed alone."""
    images, names = pd.factorize(samples["image"], sort=True)
    draws = drawn_images(np.random.default_rng(seed), len(names), num_bootstrap if len(names) > 1 else 0)
    bound, actual = (samples[[name]].to_numpy(np.float64) for name in ("lower_bound", "actual_iou"))
    return head_metrics(bound, actual, images.astype(np.int64), draws)["spearman"]


def _ends(draws: Float64[ndarray, " B"]) -> tuple[float, float]:
    """Percentiles of 95 % over the draws that are defined."""
    defined = draws[~np.isnan(draws)]
    low, high = np.quantile(defined, (0.025, 0.975)) if len(defined) else (np.nan, np.nan)
    return float(low), float(high)


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
