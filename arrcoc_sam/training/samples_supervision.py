"""Which of three masks teaches which level, and how much: the hierarchy, and the baselines that it is judged against.

Also multi-mask augmentation: one annotation becomes up to three, one a level, drawn in proportion to confidence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from numpy import ndarray
from torch import Tensor

from arrcoc_sam.errors import InputError, ShapeError, UnknownNameError, describe, explain
from arrcoc_sam.losses.levels import level_weights

__all__ = [
    "SUPERVISIONS",
    "Annotations",
    "MaskTriple",
    "Supervision",
    "SupervisionName",
    "Teaching",
    "area_quantile_bounds",
    "draw_levels",
    "multimask_annotations",
    "supervision",
]

SupervisionName: TypeAlias = Literal["hierarchy", "flat", "token_order", "permuted", "area_quantiles"]
SUPERVISIONS: Final = ("hierarchy", "flat", "token_order", "permuted", "area_quantiles")
"""hierarchy: whole, part, subpart by area and nesting; what is not distinct and nested teaches nothing.

flat: the mask of the highest score teaches all levels. token_order: the decoder's tokens 1, 2, 3 teach whole, part,
subpart as they come. permuted: the masks in an order drawn for each picture. area_quantiles: a mask teaches the level
whose range of areas, fixed over the training set, it falls into.
"""


@dataclass(frozen=True, eq=False)
class MaskTriple:
    """What is known of a click's three masks, in the order whole, part, subpart.

    Attributes:
        score: (3,) predicted IoU, raw.
        token_index: (3,) the decoder's token of each.
        distinct: (3,) whether each differs from the one above.
        counted: (3,) whether each is distinct and nested (``MaskHierarchy.counted``).
        area_share: (3,) of the picture, in [0, 1].
        key: Of the picture: what is drawn at random is drawn by it.
    """

    score: Float[ndarray, " 3"]
    token_index: Int64[ndarray, " 3"]
    distinct: Bool[ndarray, " 3"]
    counted: Bool[ndarray, " 3"]
    area_share: Float[ndarray, " 3"]
    key: int


@dataclass(frozen=True, eq=False)
class Teaching:
    """Which mask each level learns from.

    Attributes:
        mask: (3,) its place among the click's masks; where the level does not count, any.
        confidence: (3,) its score.
        valid: (3,) whether the level learns from this click at all.
    """

    mask: Int64[ndarray, " 3"]
    confidence: Float[ndarray, " 3"]
    valid: Bool[ndarray, " 3"]


Supervision: TypeAlias = Callable[[MaskTriple], Teaching]


def supervision(
    name: SupervisionName = "hierarchy",
    *,
    weighted: bool = True,
    area_bounds: tuple[float, float] | None = None,
    seed: int = 0,
) -> Supervision:
    """How levels are taught.

    Args:
        name: One of :data:`SUPERVISIONS`.
        weighted: Keep the scores as confidence; otherwise every level that counts weighs 1.
        area_bounds: For "area_quantiles": the area share above which a mask teaches the part, and the whole.
        seed: For "permuted".

    Raises:
        UnknownNameError: No such name.
        InputError: "area_quantiles" without bounds, or bounds that fall.

    Example:
        >>> triple = MaskTriple(np.array([0.9, 0.7, 0.8]), np.array([3, 1, 2]), distinct=np.array([True, True, True]),
        ...                     counted=np.array([True, True, False]), area_share=np.array([0.5, 0.2, 0.18]), key=0)
        >>> taught = supervision("hierarchy")(triple)
        >>> taught.mask, taught.valid
        (array([0, 1, 2]), array([ True,  True, False]))
        >>> supervision("token_order")(triple).mask
        array([1, 2, 0])
    """
    if name not in SUPERVISIONS:
        raise UnknownNameError(explain(f"no supervision is called {name!r}", f"one of {', '.join(SUPERVISIONS)}"))
    if (name == "area_quantiles") != (area_bounds is not None):
        raise InputError(explain(f"supervision {name!r} with area_bounds={area_bounds}", "bounds for 'area_quantiles'"))
    if area_bounds is not None and not 0 <= area_bounds[0] <= area_bounds[1] <= 1:
        raise InputError(explain(f"area_bounds={area_bounds}", "two ascending shares in [0, 1]"))

    return _Teach(name, weighted, area_bounds, seed)


@dataclass(frozen=True)
class _Teach:
    """What :func:`supervision` answers; a class, so that data-loading workers can be sent one."""

    name: str
    weighted: bool
    area_bounds: tuple[float, float] | None
    seed: int

    def __call__(self, triple: MaskTriple) -> Teaching:
        count = np.ones(3, dtype=bool)
        if self.name == "hierarchy":
            mask, count = np.arange(3), triple.counted
        elif self.name == "flat":
            mask = np.full(3, np.argmax(triple.score))
        elif self.name == "token_order":
            mask = np.argsort(triple.token_index)
        elif self.name == "permuted":
            mask = np.random.default_rng([self.seed, triple.key]).permutation(3)
        else:
            mask, count = _by_area(triple, self.area_bounds or (0.0, 1.0))
        confidence = triple.score[mask]
        return Teaching(mask, confidence if self.weighted else np.where(count, 1.0, confidence), count)


def _by_area(triple: MaskTriple, bounds: tuple[float, float]) -> tuple[Int64[ndarray, " 3"], Bool[ndarray, " 3"]]:
    """Of the masks in a level's range of areas the one of the highest score."""
    level = 2 - np.searchsorted(bounds, triple.area_share)
    mask, count = np.zeros(3, dtype=np.int64), np.zeros(3, dtype=bool)
    for number in range(3):
        found = np.flatnonzero(level == number)
        if len(found):
            mask[number], count[number] = found[np.argmax(triple.score[found])], True
    return mask, count


def area_quantile_bounds(area_share: Float[ndarray, " n"]) -> tuple[float, float]:
    """Terciles of the areas of all masks of a training set, for "area_quantiles".

    Raises:
        InputError: No areas.
    """
    if not len(area_share):
        raise InputError(explain("no areas", "those of at least one mask"))
    low, high = np.quantile(area_share, [1 / 3, 2 / 3])
    return float(low), float(high)


@dataclass(frozen=True, eq=False)
class Annotations:
    """What K annotations became: one row for each level that counts.

    Attributes:
        sample: (A,) the annotation behind each.
        level: (A,) 0 whole, 1 part, 2 subpart.
        weight: (A,) in [0, 1], the confidence in it: what it is drawn in proportion to.
    """

    sample: Int64[Tensor, " A"]
    level: Int64[Tensor, " A"]
    weight: Float[Tensor, " A"]


def multimask_annotations(confidence: Float[Tensor, "K 3"], valid: Bool[Tensor, "K 3"]) -> Annotations:
    """One annotation becomes up to three, by level; ``weight`` goes into a ``WeightedRandomSampler``.

    Args:
        confidence: SAM's predicted IoU, raw.
        valid: Which levels there are.

    Raises:
        ShapeError: Shapes that do not agree.

    Example:
        >>> found = multimask_annotations(torch.tensor([[0.9, 1.2, 0.4]]), torch.tensor([[True, True, False]]))
        >>> found.level.tolist(), found.weight.tolist()
        ([0, 1], [0.8999999761581421, 1.0])
    """
    _check(confidence, valid)
    sample, level = valid.nonzero(as_tuple=True)
    return Annotations(sample, level, level_weights(confidence, valid)[sample, level])


def draw_levels(
    confidence: Float[Tensor, "K 3"], valid: Bool[Tensor, "K 3"], generator: torch.Generator | None = None
) -> Bool[Tensor, "K 3"]:
    """One level of each sample, drawn in proportion to confidence: what counts in this step.

    Drawing levels so and weighing them alike has the gradient of weighing all of them by their share of the sample's
    confidence, in expectation.

    Args:
        confidence: SAM's predicted IoU, raw.
        valid: Which levels there are.
        generator: The seed, on the CPU.

    Returns:
        At most one True a row; none where no level has a positive weight.

    Raises:
        ShapeError: Shapes that do not agree.
    """
    _check(confidence, valid)
    weights = level_weights(confidence, valid).cpu()
    drawn = torch.zeros_like(weights, dtype=torch.bool)
    some = weights.sum(1) > 0
    if bool(some.any()):
        level = torch.multinomial(weights[some], 1, generator=generator)
        drawn[some] = drawn[some].scatter(1, level, torch.ones_like(level, dtype=torch.bool))
    return drawn.to(valid.device)


def _check(confidence: Tensor, valid: Tensor) -> None:
    if confidence.ndim != 2 or confidence.shape != valid.shape:
        raise ShapeError(explain(f"confidence is {describe(confidence)}, valid {describe(valid)}", "(K, 3) both"))
