"""How far two hierarchies lead to the same answer about the same attention. Pure functions on arrays.

Answers are numbers: 0 whole, 1 part, 2 subpart, 3 abstain. Intervals resample whole images, so that several triples of
one image stay together.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from arrcoc_sam.granularity.inference import bootstrap_counts
from arrcoc_sam.granularity.result import ABSTAIN
from arrcoc_sam.hierarchy.levels import LEVELS

ANSWERS = (*LEVELS, ABSTAIN)
_ABSTAIN = len(LEVELS)


def agreement(
    ours: np.ndarray,
    theirs: np.ndarray,
    our_contrasts: np.ndarray,
    their_contrasts: np.ndarray,
    images: np.ndarray,
    *,
    draws: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Everything that is reported about one attention map and two hierarchies.

    Args:
        ours: Answers by the first hierarchy (human masks), (n,).
        theirs: Answers by the second, (n,).
        our_contrasts: Shell contrasts by the first, (n, 3), NaN where a level is not distinct.
        their_contrasts: Shell contrasts by the second, (n, 3).
        images: Which image each triple is of, (n,), any labels.
        draws: Bootstrap resamples of images.
        seed: Of the bootstrap.

    Returns:
        Counts, the confusion matrix (rows ours), and [value, low, high] of the share of equal answers and Cohen's
        kappa where both answer, of the shares of abstentions, and of the rank correlation of each level's contrasts.
    """
    _, groups = np.unique(images, return_inverse=True)
    num_images = int(groups.max()) + 1
    counts = bootstrap_counts(num_images, draws, generator=torch.Generator().manual_seed(seed)).numpy()
    weights = np.concatenate([np.ones((1, num_images)), counts])  # the sample itself first
    tables = np.zeros((num_images, len(ANSWERS), len(ANSWERS)))
    np.add.at(tables, (groups, ours, theirs), 1)
    resampled = np.tensordot(weights, tables, axes=1)
    total = resampled.sum((-2, -1))
    figures = {
        "equal": equal_share(resampled),
        "kappa": cohen_kappa(resampled),
        "abstain": resampled[:, _ABSTAIN].sum(-1) / total,
        "abstain_other": resampled[:, :, _ABSTAIN].sum(-1) / total,
    }
    ranks = {
        level: rank_correlation(our_contrasts[:, i], their_contrasts[:, i], weights[:, groups])
        for i, level in enumerate(LEVELS)
    }
    return {
        "triples": len(ours),
        "images": num_images,
        "confusion": tables.sum(0).astype(int).tolist(),
        "both_answer": int(tables[:, :_ABSTAIN, :_ABSTAIN].sum()),
        **{name: interval(values, num_images) for name, values in figures.items()},
        "spearman": {level: interval(values, num_images) for level, values in ranks.items()},
    }


def equal_share(tables: np.ndarray) -> np.ndarray:
    """Share of equal answers among those where both answer, of confusion matrices (..., 4, 4); NaN without any."""
    answered = tables[..., :_ABSTAIN, :_ABSTAIN]
    return _share(np.trace(answered, axis1=-2, axis2=-1), answered.sum((-2, -1)))


def cohen_kappa(tables: np.ndarray) -> np.ndarray:
    """Cohen's kappa over whole, part and subpart where both answer, of confusion matrices (..., 4, 4).

    1 is full agreement, 0 what two hierarchies with these frequencies of answers would have by chance; NaN where chance
    alone is full agreement (both always give the same one answer).

    Reference:
        J. Cohen: A coefficient of agreement for nominal scales, Educational and Psychological Measurement 20, 1960.
    """
    answered = tables[..., :_ABSTAIN, :_ABSTAIN]
    total = answered.sum((-2, -1))
    observed = _share(np.trace(answered, axis1=-2, axis2=-1), total)
    chance = _share((answered.sum(-1) * answered.sum(-2)).sum(-1), total**2)
    return _share(observed - chance, 1 - chance)


def rank_correlation(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Spearman's correlation of a and b (n,) in each of the resamples that ``weights`` (draws, n) counts out.

    Pairs with a NaN are left out; NaN where a resample has no two different values.
    """
    both = np.isfinite(a) & np.isfinite(b)
    a, b, weights = a[both], b[both], weights[:, both]
    x, y = _ranks(a, weights), _ranks(b, weights)
    total = weights.sum(1, keepdims=True)
    x, y = (
        x - _share((x * weights).sum(1, keepdims=True), total),
        y - _share((y * weights).sum(1, keepdims=True), total),
    )
    spread = np.sqrt((x**2 * weights).sum(1) * (y**2 * weights).sum(1))
    return _share((x * y * weights).sum(1), spread)


def interval(values: np.ndarray, num_images: int) -> list[float | None]:
    """The first value with the 95 % percentile interval of the others; None for what is not defined.

    Resamples in which the figure is not defined are left out. One image has no interval: every resample is itself.
    """
    drawn = values[1:][np.isfinite(values[1:])] if num_images > 1 else np.array([])
    bounds = np.quantile(drawn, [0.025, 0.975]) if len(drawn) else np.array([np.nan, np.nan])
    return [round(float(v), 4) if np.isfinite(v) else None for v in (values[0], *bounds)]


def _ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Middle ranks of values (n,), each there ``weights`` (draws, n) times."""
    order, groups = np.unique(values, return_inverse=True)
    sizes = np.zeros((len(weights), len(order)))
    np.add.at(sizes.T, groups, weights.T)
    return (sizes.cumsum(1) - (sizes - 1) / 2)[:, groups]


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, NaN where whole is 0."""
    return np.divide(part, whole, out=np.full(np.broadcast(part, whole).shape, np.nan), where=whole > 1e-12)
