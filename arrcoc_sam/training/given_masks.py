"""Masks of somebody else's making as first prompts: a target made wrong, and the point that is asked with it.

SAM has seen masks only as its own last answer. Who scores foreign masks asks with others: too large, torn, moved,
merged with a neighbour. Here a segmenter learns what was meant by them, and its IoU head how sure it can be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from numpy import ndarray
from torch import Tensor

from arrcoc_sam.geometry import ImageTransform
from arrcoc_sam.masks.components import largest_interior_point
from arrcoc_sam.prompts.mask_prompts import mask_prompt_logits
from arrcoc_sam.quality.degradations import degrade, mask_context

__all__ = ["GivenMasks", "draw_given_masks"]


class GivenMasks(NamedTuple):
    """The first prompts of K targets that a mask stands for.

    Attributes:
        given: (K,) whether there is one; where not, the other two are 0.
        logits: (K, g, g), the mask prompt.
        points_xy: (K, 2), in the model's frame: the middle of the mask's inside, which need not lie in the target.
    """

    given: Bool[Tensor, " K"]
    logits: Float[Tensor, "K g g"]
    points_xy: Float[Tensor, "K 2"]


def draw_given_masks(
    masks: Bool[ndarray, "N H W"],
    targets: Int64[ndarray, " K"],
    donors: Callable[[], Sequence[Bool[ndarray, "_h _w"]]],
    sides: tuple[int, int],
    rng: np.random.Generator,
    *,
    share: float,
    most: int | None = None,
) -> GivenMasks:
    """Draws for some targets of an image a mask that means them.

    It is the target as it is, or made wrong in one of the ways that its surroundings allow, each with equal chance and
    a severity uniform in (0, 1], as calibrations of external masks are made. Images that are much larger than the
    model's frame are worked at about its size.

    Args:
        masks: Of the image, as it is shown; none that is a target is empty.
        targets: (K,) numbers of those that are targets.
        donors: Gives masks of another image, none empty; asked only where they may be needed.
        sides: Of the model's frame in pixels, and g, that of a mask prompt.
        rng: The chance.
        share: Chance of each target to be stood for by a mask.
        most: Only the first so many targets; None: all.
    """
    given = rng.random(len(targets)) < share
    given[most if most is not None else len(targets) :] = False
    frame, grid = sides
    step = max(1, max(masks.shape[1:]) // frame)
    reduced = masks[:, step // 2 :: step, step // 2 :: step]
    given &= reduced[targets].any(axis=(1, 2))
    logits, points = torch.zeros(len(targets), grid, grid), torch.zeros(len(targets), 2)
    if given.any():
        others = donors()
        made = torch.from_numpy(np.stack([_made_wrong(reduced, int(target), others, rng) for target in targets[given]]))
        transform = ImageTransform.letterbox((reduced.shape[1], reduced.shape[2]), frame)
        rows = torch.from_numpy(given)
        logits[rows] = mask_prompt_logits(made, transform, (grid, grid))
        points[rows] = (largest_interior_point(made) * torch.tensor(transform.scale_xy)).float()
    return GivenMasks(torch.from_numpy(given), logits, points)


def _made_wrong(
    masks: ndarray, target: int, donors: Sequence[ndarray], rng: np.random.Generator
) -> Bool[ndarray, "H W"]:
    context = mask_context(masks, target, donors)
    kinds = (None, *context.kinds)
    kind = kinds[int(rng.integers(len(kinds)))]
    if kind is None:
        clean: ndarray = masks[target]
        return clean
    severity, seed = 1.0 - float(rng.random()), int(rng.integers(1 << 31))
    return degrade(masks[target], kind, severity, context=context, seed=seed)
