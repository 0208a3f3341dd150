"""The method's own error rates: attention planted at known levels in generated scenes, through the whole protocol.

Three questions. *Does it find what is there?* Heads whose attention is denser on the whole, the part or the subpart of
an object, against what is claimed of them: a confusion matrix. *Does it find what is not there?* Attention that knows
nothing of the image (smooth random, centred, with sinks), and how often the test rejects: its size, with an exact
interval. *Would it notice a bad null?* The same harness on a test by pixel shuffling has to convict it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from arrcoc_sam.errors import InputError, explain
from arrcoc_sam.granularity.claims import MIN_IMAGES, make_claims
from arrcoc_sam.granularity.metrics import METRICS, evaluate
from arrcoc_sam.granularity.planted import IGNORANT, ignorant, planted
from arrcoc_sam.granularity.regions import Regions
from arrcoc_sam.granularity.result import ABSTAIN
from arrcoc_sam.granularity.trials import HEADLINE, NULLS, Progress, false_positive_rates
from arrcoc_sam.hierarchy import MaskHierarchy
from arrcoc_sam.hierarchy.levels import LEVELS
from arrcoc_sam.scenes import generate_scene

__all__ = ["VERDICT_TRIALS", "ValidationReport", "balanced_accuracy", "scene_regions", "validate"]

VERDICT_TRIALS = 10_000
"""With fewer trials a test that is somewhat too large is hardly ever convicted, so that not to be says little."""

# Scenes of this package's validation range, far from the seeds that anything is trained or tested on.
_FIRST_SEED = 8_000_000
# Maps whose values on all images are computed at a time.
_MAPS_AT_ONCE = 16


@dataclass(frozen=True)
class ValidationReport:
    """Error rates of the protocol.

    Attributes:
        confusion: Heads by what was planted (rows) and what was claimed (columns whole, part, subpart, abstain).
        by_gain: One row a planted level and gain: heads, right, wrong, abstained: the power of the protocol.
        balanced_accuracy: Mean over planted levels of the share claimed rightly, an abstention counting as wrong.
        balanced_accuracy_answered: The same among the heads that do not abstain.
        abstained: Share of planted heads of which nothing is claimed.
        false_claims: Share of heads that know nothing of which something is claimed.
        sizes: One row a kind of ignorant attention and null: trials, rejections at alpha, their rate, its exact
            interval, and whether the null is convicted (the lower limit above alpha).
        single_image: One row a metric: how often its largest value names the planted level of a single image, and how
            often it names each level where nothing is planted.
        num_images: Images behind a claim.
        alpha: Level of the tests.
        seed: Of everything.
    """

    confusion: pd.DataFrame
    by_gain: pd.DataFrame
    balanced_accuracy: float
    balanced_accuracy_answered: float
    abstained: float
    false_claims: float
    sizes: pd.DataFrame
    single_image: pd.DataFrame
    num_images: int
    alpha: float
    seed: int

    @property
    def passed(self) -> bool:
        """No kind of ignorant attention convicts the null of record, and pixel shuffling is convicted.

        Of a report that is not :attr:`conclusive` this is no verdict.
        """
        own = self.sizes[self.sizes["null"] == NULLS[0]]
        shuffled = self.sizes[self.sizes["null"] == NULLS[2]]
        return not own["convicted"].any() and bool(shuffled["convicted"].any())

    @property
    def num_trials(self) -> int:
        """Trials behind the size of the null of record, of each kind of ignorant attention."""
        return int(self.sizes.loc[self.sizes["null"] == NULLS[0], "trials"].min())

    @property
    def conclusive(self) -> bool:
        """Whether there are trials enough for a verdict, :data:`VERDICT_TRIALS`."""
        return self.num_trials >= VERDICT_TRIALS


def validate(
    *,
    num_images: int = 100,
    num_heads: int = 20,
    gains: tuple[float, ...] = (0.5, 1.0, 2.0),
    num_trials: int = 1_000,
    grid_hw: tuple[int, int] = (32, 32),
    alpha: float = 0.05,
    seed: int = 0,
    progress: Progress | None = None,
) -> ValidationReport:
    """Plant attention, run the protocol, and count its errors.

    Args:
        num_images: Generated scenes behind each claim, at least 30.
        num_heads: Heads a level and gain, and a kind of ignorant attention and gain.
        gains: How much denser than elsewhere attention is on the planted level, > 0.
        num_trials: Trials behind the size of the test with other images' attention; 10,000 for a verdict. The nulls
            that are there to be convicted get a twentieth.
        grid_hw: The attention's grid.
        alpha: Level of the tests, and the false discovery rate of the claims.
        seed: Of scenes, attention and protocol.
        progress: Called as the work goes on.

    Returns:
        The report.

    Raises:
        InputError: Fewer than 30 images, nothing to count, or gains that plant nothing.
    """
    if not all(math.isfinite(gain) and gain > 0 for gain in gains):
        raise InputError(explain(f"gains={gains}", "finite numbers > 0: how much denser the planted level is"))
    if num_images < MIN_IMAGES or num_heads < 1 or num_trials < 10 or not gains or not 0 < alpha < 1:
        came = f"num_images={num_images}, num_heads={num_heads}, num_trials={num_trials}, gains={gains}, alpha={alpha}"
        raise InputError(explain(came, "at least 30 images, 1 head, 10 trials, 1 gain, alpha in (0, 1)"))
    generator = torch.Generator().manual_seed(seed)
    regions = scene_regions(num_images, grid_hw, seed=seed, progress=progress)
    planted_at, planted_gain, maps = _heads(regions, num_heads, gains, generator)
    claims = make_claims(_matrix(maps, regions), false_discovery_rate=alpha, seed=seed)
    confusion = _confusion(planted_at, claims.level.tolist())
    answered = confusion.loc[list(LEVELS)].drop(columns=ABSTAIN)
    nothing = confusion.drop(index=list(LEVELS))
    return ValidationReport(
        confusion=confusion,
        by_gain=_by_gain(planted_at, planted_gain, claims.level.tolist()),
        balanced_accuracy=balanced_accuracy(confusion.loc[list(LEVELS)]),
        balanced_accuracy_answered=balanced_accuracy(answered),
        abstained=float(confusion.loc[list(LEVELS), ABSTAIN].sum() / confusion.loc[list(LEVELS)].to_numpy().sum()),
        false_claims=float(1 - nothing[ABSTAIN].sum() / nothing.to_numpy().sum()),
        sizes=false_positive_rates(regions, num_trials=num_trials, alpha=alpha, seed=seed + 1, progress=progress),
        single_image=_single_image(regions, planted_at, maps),
        num_images=num_images,
        alpha=alpha,
        seed=seed,
    )


def scene_regions(
    num_images: int, grid_hw: tuple[int, int], *, size: int = 128, seed: int = 0, progress: Progress | None = None
) -> Regions:
    """Levels of one object a scene, of as many generated scenes as have one that the grid can measure.

    Args:
        num_images: How many.
        grid_hw: The grid.
        size: Side of the scenes in pixels.
        seed: Of scenes and of the choice among a scene's objects.
        progress: Called as scenes are drawn.

    Returns:
        The regions, one triple an image.
    """
    generator = torch.Generator().manual_seed(seed)
    found: list[Regions] = []
    number = _FIRST_SEED + 100_000 * (seed % 9)
    while len(found) < num_images:
        scene = generate_scene(number, size)
        number += 1
        if len(scene.triples()) == 0:
            continue
        hierarchy = MaskHierarchy.from_masks(torch.from_numpy(scene.triple_masks()))
        regions = Regions.from_masks(hierarchy.masks, grid_hw, distinct=hierarchy.distinct)
        candidates = (regions.measurable(hierarchy.valid) & hierarchy.distinct.all(1)).nonzero()[:, 0]
        if len(candidates) == 0:
            continue
        chosen = candidates[torch.randint(len(candidates), (1,), generator=generator)]
        found.append(regions[chosen])
        if progress is not None:
            progress("scenes", len(found), num_images)
    return Regions.cat(found)


def balanced_accuracy(confusion: pd.DataFrame) -> float:
    """Mean over rows of the share on the diagonal, of rows and columns of the same names (further columns are wrong).

    NaN where a row is empty.
    """
    totals = confusion.sum(axis=1).replace(0, math.nan)  # 0/0 would warn
    shares = [confusion.loc[name, name] / totals[name] for name in confusion.index]
    return float(sum(shares) / len(shares))


def _heads(
    regions: Regions, num_heads: int, gains: tuple[float, ...], generator: torch.Generator
) -> tuple[list[str], list[float], Float[Tensor, "heads n h w"]]:
    """Heads planted at each level with each gain, then as many of each ignorant kind (of gain 0)."""
    levels = regions.levels
    names, strengths, maps = [], [], []
    for number, name in enumerate(LEVELS):
        for gain in gains:
            for _ in range(num_heads):
                names.append(name)
                strengths.append(gain)
                maps.append(planted(levels[:, number], gain=gain, generator=generator))
    for kind in IGNORANT:
        for _ in range(num_heads * len(gains)):
            names.append(kind)
            strengths.append(0.0)
            maps.append(ignorant(kind, len(regions), regions.grid_hw, generator=generator))
    return names, strengths, torch.stack(maps)


def _matrix(maps: Float[Tensor, "heads n h w"], regions: Regions) -> Float[Tensor, "n n heads 3"]:
    """V[j, i] of every head."""
    values = [
        evaluate([HEADLINE], some.flatten(0, 1), regions)[HEADLINE].reshape(len(some), *[len(regions)] * 2, 3)
        for some in torch.split(maps, _MAPS_AT_ONCE)
    ]
    return torch.cat(values).movedim(0, 2)


def _confusion(planted_at: list[str], claimed: list[str]) -> pd.DataFrame:
    counts = pd.crosstab(pd.Series(planted_at, name="planted"), pd.Series(claimed, name="claimed"))
    return counts.reindex(index=[*LEVELS, *IGNORANT], columns=[*LEVELS, ABSTAIN], fill_value=0)


def _by_gain(planted_at: list[str], gains: list[float], claimed: list[str]) -> pd.DataFrame:
    table = pd.DataFrame({"level": planted_at, "gain": gains, "claimed": claimed})
    table = table[table["level"].isin(LEVELS)]
    table["level"] = pd.Categorical(table["level"], LEVELS, ordered=True)
    table["right"] = table["claimed"] == table["level"].astype(str)
    table["abstained"] = table["claimed"] == ABSTAIN
    table["wrong"] = ~table["right"] & ~table["abstained"]
    groups = table.groupby(["gain", "level"], observed=True)
    counts = groups[["right", "wrong", "abstained"]].sum()
    counts.insert(0, "heads", groups.size())
    return counts.reset_index()


def _single_image(regions: Regions, planted_at: list[str], maps: Float[Tensor, "heads n h w"]) -> pd.DataFrame:
    """What each metric says of one image at a time, with neither null nor abstention."""
    truth = pd.Series(planted_at)
    rows = []
    for name in METRICS:
        values = evaluate([name], maps, regions)[name]
        values = -values if name == "sliced_wasserstein" else values  # the one where lower is better
        called = values.masked_fill(values.isnan(), -torch.inf).argmax(-1).numpy()
        right = [(called[truth == level] == number).mean() for number, level in enumerate(LEVELS)]
        ignorant_calls = called[truth.isin(IGNORANT)]
        rows.append(
            {
                "metric": name,
                "balanced_accuracy": sum(right) / len(right),
                **{f"{level}_of_nothing": (ignorant_calls == number).mean() for number, level in enumerate(LEVELS)},
            }
        )
    return pd.DataFrame(rows)
