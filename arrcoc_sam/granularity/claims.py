"""The protocol of a claim: from V[j, i] of many images to "this head concentrates at this level beyond its prior".

V[j, i] is a metric of image j's attention on image i's masks, averaged over the prompts of image i. Its diagonal is
what was observed, everything off it what the same head scores on images that are not its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from arrcoc_sam.errors import InputError, ShapeError, describe, explain
from arrcoc_sam.granularity.inference import (
    benjamini_hochberg,
    bootstrap_counts,
    bootstrap_gap,
    max_t,
    split_halves,
    standard_scores,
)
from arrcoc_sam.granularity.nulls import (
    matched_mean,
    measured_images,
    null_means,
    random_derangements,
    random_permutations,
    required_draws,
)
from arrcoc_sam.granularity.regions import accumulator
from arrcoc_sam.granularity.result import ABSTAIN
from arrcoc_sam.hierarchy.levels import LEVELS
from arrcoc_sam.inputs import as_count

__all__ = ["MIN_COMPUTED", "MIN_IMAGES", "Claims", "make_claims"]

MIN_IMAGES = 30
"""With fewer images no claim is made, nor of a level that fewer have."""

MIN_COMPUTED = 4
"""With fewer images nothing is computed: there are no two halves to permute."""

# Derangements behind a mean and a standard deviation, which they give to 1.6 %.
_SCORE_DRAWS = 2_000
_RESAMPLES = 2_000
# Elements of V that are converted to float64 at a time.
_CHUNK = 1 << 25


@dataclass(frozen=True)
class Claims:
    """What can be said of N maps (heads) over n images; levels are the last axis.

    Attributes:
        value: The metric, mean over images, (N, 3).
        z: Calibrated score, (value − null mean) / null sd over derangements of all images, (N, 3).
        p_level: Permutation p of each level, adjusted for the three by max-T, (N, 3).
        p_any: p of the largest level, (N,).
        q_value: ``p_any`` after Benjamini-Hochberg over the N maps, (N,).
        selection_z: z on the half of the images that chooses, (N, 3).
        report_z: z on the other half, (N, 3): what to quote of a map that was chosen for its ``selection_z``.
        top: The level with the largest ``selection_z``, (N,).
        gap: z_top − max(z_others) on the reporting half, (N,).
        gap_interval: Its image-clustered bootstrap interval, (N, 2).
        level: Name of the level that is claimed, or "abstain", (N,).
        reason: Why a map abstains, "" where it does not, (N,).
        images: Images on which each level is measured, (N, 3).
        num_images: n.
        num_draws: Permutations behind the p-values.
    """

    value: Float[Tensor, "N 3"]
    z: Float[Tensor, "N 3"]
    p_level: Float[Tensor, "N 3"]
    p_any: Float[Tensor, " N"]
    q_value: Float[Tensor, " N"]
    selection_z: Float[Tensor, "N 3"]
    report_z: Float[Tensor, "N 3"]
    top: Int64[Tensor, " N"]
    gap: Float[Tensor, " N"]
    gap_interval: Float[Tensor, "N 2"]
    level: np.ndarray
    reason: np.ndarray
    images: Int64[Tensor, "N 3"]
    num_images: int
    num_draws: int


def make_claims(
    values: Float[Tensor, "n n N 3"] | np.ndarray,
    *,
    false_discovery_rate: float = 0.05,
    confidence: float = 0.95,
    num_draws: int | None = None,
    seed: int = 0,
) -> Claims:
    """Which maps concentrate at which level beyond their image-independent prior.

    A level is claimed where (1) the largest level stands out from permutations of the images, at a false discovery rate
    over all maps, (2) the level chosen on a random half of the images is above its own null on the other half, and
    (3) the bootstrap interval of its lead over the other two levels, on that other half, lies above 0, and at least 30
    images have it. Where the metric of a level is infinite (the log lift of attention that is 0 throughout it) or
    undefined (attention that is 0 everywhere) there is no mean to compare, and the map abstains.

    Args:
        values: V[j, i]: a metric of image j's attention on image i's masks, for N maps and 3 levels. NaN columns
            where image i has no such level. May be an array on disk: maps are worked through in groups.
        false_discovery_rate: q of the Benjamini-Hochberg procedure over the N maps, in (0, 1).
        confidence: Coverage of the bootstrap interval, in (0, 1).
        num_draws: Permutations; max(9,999, 10·N/q) when not given.
        seed: Of permutations, halves and resamples.

    Returns:
        The claims, on the CPU; everything abstains with fewer than 30 images.

    Raises:
        ShapeError: Not (n, n, N, 3).
        InputError: Fewer than 4 images (no two halves to permute), a rate out of range, or no draw.
    """
    if values.ndim != 4 or values.shape[0] != values.shape[1] or values.shape[3] != 3 or values.shape[2] == 0:
        raise ShapeError(explain(f"values is {describe(values)}", "(n, n, N, 3)"))
    if not (0 < false_discovery_rate < 1 and 0 < confidence < 1):
        came = f"false_discovery_rate={false_discovery_rate}, confidence={confidence}"
        raise InputError(explain(came, "both in (0, 1)"))
    num_images, num_maps = values.shape[0], values.shape[2]
    if num_images < MIN_COMPUTED:
        raise InputError(explain(f"{num_images} images", f"at least {MIN_COMPUTED}, and {MIN_IMAGES} for claims"))
    if num_draws is None:
        num_draws = required_draws(num_maps, false_discovery_rate)
    num_draws = as_count(num_draws, "num_draws")

    generator = torch.Generator().manual_seed(seed)
    permutations = random_permutations(num_images, num_draws, generator=generator)
    selection, report = split_halves(num_images, generator=generator)
    halves = [torch.arange(num_images), selection, report]
    derangements = [random_derangements(len(half), _SCORE_DRAWS, generator=generator) for half in halves]
    counts = bootstrap_counts(len(report), _RESAMPLES, generator=generator)

    size = max(1, _CHUNK // (num_images**2 * 3))
    parts = []
    for start in range(0, num_maps, size):
        chunk = values[:, :, start : start + size]
        # a copy: arrays on disk are not writable, which torch does not know
        chunk = torch.from_numpy(np.array(chunk)) if isinstance(chunk, np.ndarray) else chunk
        parts.append(_claims_of(chunk, permutations, halves, derangements, counts, confidence))
    joined = {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}
    q_value = benjamini_hochberg(joined["p_any"])
    not_finite = joined.pop("not_finite")
    level, reason = _verdict(joined, q_value <= false_discovery_rate, not_finite, num_images)
    return Claims(**joined, q_value=q_value, level=level, reason=reason, num_images=num_images, num_draws=num_draws)


def image_scores(values: Float[Tensor, "n n N 3"], null_sd: Float[Tensor, "N 3"]) -> Float[Tensor, "n N 3"]:
    """Each image's share in z: (V[i, i] − mean over j ≠ i of V[j, i]) / null sd of the mean.

    The mean over j ≠ i is what a derangement gives image i on average.
    """
    matched = values.diagonal(dim1=0, dim2=1).movedim(-1, 0)
    others = (values.sum(0) - matched) / (len(values) - 1)
    return (matched - others) / null_sd


def _claims_of(
    values: Float[Tensor, "n n N 3"],
    permutations: Int64[Tensor, "draws n"],
    halves: list[Int64[Tensor, " _"]],
    derangements: list[Int64[Tensor, "scores _"]],
    counts: Float[Tensor, "resamples images"],
    confidence: float,
) -> dict[str, Tensor]:
    values = values.to(accumulator(values.device))
    observed = matched_mean(values)
    p_level, p_any = max_t(observed, null_means(values, permutations))
    scores = []
    for half, draws in zip(halves, derangements, strict=True):
        part = values[half][:, half]
        null = null_means(part, draws)
        scores.append(standard_scores(matched_mean(part), null))
    top = scores[1].nan_to_num(nan=-torch.inf).argmax(-1)
    # `part` and `null` are those of the reporting half, the last one.
    contributions = image_scores(part, null.std(0).masked_fill(scores[2].isnan(), torch.nan))
    gap, interval = bootstrap_gap(contributions, top, counts.to(contributions), confidence=confidence)
    return {
        "value": observed,
        "z": scores[0],
        "p_level": p_level,
        "p_any": p_any,
        "selection_z": scores[1],
        "report_z": scores[2],
        "top": top,
        "gap": gap,
        "gap_interval": interval,
        "images": measured_images(values).sum(0),
        "not_finite": _not_finite(values),
    }


def _not_finite(values: Float[Tensor, "n n N 3"]) -> Int64[Tensor, " N"]:
    """Images whose attention, or whose masks, whichever are fewer, leave a map's metric infinite or undefined."""
    broken = (measured_images(values) & ~values.isfinite()).any(-1)
    return torch.minimum(broken.any(1).sum(0), broken.any(0).sum(0))


def _verdict(
    found: dict[str, Tensor], discovered: Tensor, not_finite: Tensor, num_images: int
) -> tuple[np.ndarray, np.ndarray]:
    above = found["report_z"].gather(1, found["top"][:, None])[:, 0] > 0
    ahead = found["gap_interval"][:, 0] > 0
    enough = found["images"].gather(1, found["top"][:, None])[:, 0] >= MIN_IMAGES
    reason: np.ndarray = np.select(
        [
            np.full(len(above), num_images < MIN_IMAGES),
            not_finite.numpy() > 0,
            ~discovered.numpy(),
            ~enough.numpy(),
            ~above.numpy(),
            ~ahead.numpy(),
        ],
        [
            f"fewer than {MIN_IMAGES} images",
            [f"the metric is not finite on {count} of {num_images} images" for count in not_finite.tolist()],
            "no level stands out from other images",
            f"fewer than {MIN_IMAGES} images have the chosen level",
            "the chosen level does not stand out on the reporting half",
            "the chosen level is not ahead of the others on the reporting half",
        ],
        default="",
    ).astype(object)
    level = np.where(reason == "", np.array(LEVELS, dtype=object)[found["top"].numpy()], ABSTAIN)
    return level, reason
