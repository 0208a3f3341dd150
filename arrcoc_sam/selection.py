"""Pick one of M candidate masks, or merge them. Pure functions on tensors.

Every strategy gives each candidate a number, and the candidate with the largest is taken. Ties go to the first; NaN
is never taken while another candidate has a number, and where none has one the first is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from arrcoc_sam.errors import HierarchyError, InputError, ShapeError, UnknownNameError, describe, explain
from arrcoc_sam.hierarchy.levels import LEVELS
from arrcoc_sam.inputs import Coordinates, as_masks, as_numbers
from arrcoc_sam.masks import areas, mask_boxes, mask_iou
from arrcoc_sam.prompts.prompt_inputs import checked_boxes

__all__ = [
    "ENSEMBLE_METHODS",
    "STRATEGIES",
    "Selection",
    "check_strategy",
    "choose_mask",
    "ensemble_masks",
    "select_masks",
]


@dataclass(frozen=True, eq=False)
class Selection:
    """One mask a prompt.

    Attributes:
        masks: (K, H, W) bool.
        index: (K,) int64, which of the M candidates it is.
        score: (K,) its predicted IoU, raw; for "oracle" its true IoU with the target.
    """

    masks: Bool[Tensor, "K H W"]
    index: Int[Tensor, " K"]
    score: Float[Tensor, " K"]

    def __len__(self) -> int:
        return len(self.index)


def choose_mask(criterion: Float[Tensor, "K M"]) -> Int[Tensor, " K"]:
    """Index of the largest number of each row: the first of equal ones, NaN last.

    Example:
        >>> nan = float("nan")
        >>> choose_mask(torch.tensor([[0.1, 0.3, 0.3], [nan, -1.0, nan], [nan, nan, nan]]))
        tensor([1, 1, 0])
    """
    return torch.where(criterion.isnan(), -torch.inf, criterion).argmax(-1)


def _filled_areas(masks: Tensor) -> Float[Tensor, "K M"]:
    """Areas in pixels; NaN for empty masks, which no strategy by area takes."""
    pixels = areas(masks).float()
    return torch.where(pixels > 0, pixels, torch.nan)


def _off_ratio(masks: Tensor, ratio: Tensor) -> Float[Tensor, "K M"]:
    height, width = masks.shape[-2:]
    return (_filled_areas(masks) / (height * width) - ratio[:, None]).abs()


def _is_level(masks: Tensor, rank: int) -> Float[Tensor, "K M"]:
    """1 for the mask at this rank by area, 0 for the others."""
    pixels = areas(masks)
    if pixels.shape[-1] < len(LEVELS):
        came = f"{pixels.shape[-1]} candidates a prompt"
        raise HierarchyError(explain(came, f"at least 3 for {LEVELS[rank]!r}", "decode with multimask=True"))
    by_area = pixels.argsort(dim=-1, descending=True, stable=True)
    return torch.zeros(pixels.shape, device=pixels.device).scatter(-1, by_area[:, rank, None], 1.0)


_Criterion: TypeAlias = Callable[[Tensor, Tensor], Tensor]

# strategy -> the argument that it needs, and the number of each candidate from the masks and that argument
# (from the masks and the predicted IoU where it needs none)
_STRATEGIES: Mapping[str, tuple[str | None, _Criterion]] = {
    "automatic": (None, lambda _, predicted_iou: predicted_iou),
    "oracle": ("target", lambda masks, target: mask_iou(masks, target[:, None])),
    "box": ("box_xyxy", lambda masks, box: _box_iou(mask_boxes(masks), box[:, None])),
    "largest": (None, lambda masks, _: _filled_areas(masks)),
    "smallest": (None, lambda masks, _: -_filled_areas(masks)),
    "area_ratio": ("ratio", lambda masks, ratio: -_off_ratio(masks, ratio)),
    "whole": (None, lambda masks, _: _is_level(masks, 0)),
    "part": (None, lambda masks, _: _is_level(masks, 1)),
    "subpart": (None, lambda masks, _: _is_level(masks, 2)),
    "stability": ("stability", lambda _, stability: stability),
}

STRATEGIES = tuple(_STRATEGIES)
"""Names that :func:`select_masks` knows."""

ENSEMBLE_METHODS = ("union", "intersection", "weighted", "voting")
"""Names that :func:`ensemble_masks` knows."""


def check_strategy(strategy: str, arguments: Mapping[str, Any]) -> None:
    """See that a strategy exists and that just its argument was given.

    Args:
        strategy: A name of ``STRATEGIES``.
        arguments: Keyword arguments for :func:`select_masks`; None counts as not given.

    Raises:
        UnknownNameError: No such strategy.
        InputError: Its argument is missing, or another was given.
    """
    if not isinstance(strategy, str) or strategy not in _STRATEGIES:
        raise UnknownNameError(explain(f"no strategy is called {strategy!r}", f"one of {', '.join(STRATEGIES)}"))
    needed, _ = _STRATEGIES[strategy]
    if needed is not None and arguments.get(needed) is None:
        raise InputError(explain(f"strategy {strategy!r} without {needed}", None, f"pass {needed}=…"))
    for name, value in arguments.items():
        if name != needed and value is not None:
            raise InputError(explain(f"strategy {strategy!r} with {name}", f"no {name}, which it does not look at"))


def select_masks(
    masks: Bool[Tensor, "K M H W"],
    predicted_iou: Float[Tensor, "K M"],
    strategy: str,
    *,
    stability: Float[Tensor, "K M"] | None = None,
    target: Bool[Tensor, "K H W"] | Bool[Tensor, "H W"] | np.ndarray | None = None,
    box_xyxy: Coordinates | None = None,
    ratio: float | Float[Tensor, " K"] | Sequence[float] | None = None,
) -> Selection:
    """Pick one mask a prompt.

    ============== ================================================================================= =============
    strategy       takes the mask                                                                    needs
    ============== ================================================================================= =============
    ``automatic``  of the highest predicted IoU
    ``oracle``     of the highest true IoU with the target (for analysis: an upper bound)            ``target``
    ``box``        whose bounding box has the highest IoU with a box                                 ``box_xyxy``
    ``largest``    of the largest area
    ``smallest``   of the smallest area, empty masks left out
    ``area_ratio`` whose share of the image is closest to a ratio, empty masks left out              ``ratio``
    ``whole``      that is first by area
    ``part``       that is second by area, distinct or not (``MaskHierarchy.distinct`` tells)
    ``subpart``    that is third by area, distinct or not
    ``stability``  of the highest stability                                                          ``stability``
    ============== ================================================================================= =============

    Args:
        masks: Candidates at image resolution.
        predicted_iou: Their predicted IoU, raw.
        strategy: A name of ``STRATEGIES``.
        stability: Their stability, in [0, 1].
        target: The mask meant, (H, W) for all prompts or (K, H, W).
        box_xyxy: Boxes in pixel indices, (4,) for all prompts or (K, 4).
        ratio: Share of the image, in [0, 1], one a prompt or one for all.

    Returns:
        The chosen masks; ``score`` is their predicted IoU, for "oracle" the true one.

    Raises:
        UnknownNameError: No such strategy.
        InputError: The strategy's argument is missing, or another's was given.
        ShapeError: Shapes that do not go together.
        HierarchyError: A level was asked for, of fewer than three masks.

    Example:
        >>> masks = torch.tensor([[[[1, 1, 1]], [[1, 1, 0]], [[1, 0, 0]]]]).bool()
        >>> chosen = select_masks(masks, torch.tensor([[0.5, 0.7, 0.9]]), "whole")
        >>> chosen.index, chosen.score
        (tensor([0]), tensor([0.5000]))
    """
    _require_candidates(masks, predicted_iou)
    num_prompts, _, *size_hw = masks.shape
    given = {"stability": stability, "target": target, "box_xyxy": box_xyxy, "ratio": ratio}
    check_strategy(strategy, given)
    argument, criterion = _STRATEGIES[strategy]
    value = predicted_iou
    if argument is not None:
        shape = {"stability": predicted_iou.shape[1:], "target": size_hw, "box_xyxy": (4,)}.get(argument, ())
        value = _for_each(given[argument], num_prompts, tuple(shape), argument, masks.device)
    numbers = criterion(masks, value)
    index = choose_mask(numbers)
    prompts = torch.arange(num_prompts, device=masks.device)
    scores = numbers if strategy == "oracle" else predicted_iou
    return Selection(masks=masks[prompts, index], index=index, score=scores[prompts, index])


def ensemble_masks(
    masks: Bool[Tensor, "K M H W"], predicted_iou: Float[Tensor, "K M"], method: str
) -> Bool[Tensor, "K H W"]:
    """Merge the candidates of each prompt into one mask.

    Args:
        masks: Candidates.
        predicted_iou: Their predicted IoU, raw; only "weighted" looks at it.
        method: "union"; "intersection"; "weighted": softmax of the predicted IoU as weights, pixels of more than half
            the weight (a NaN IoU weighs nothing, all NaN weigh alike); "voting": pixels in more than half of the
            masks.

    Returns:
        (K, H, W) bool.

    Raises:
        UnknownNameError: No such method.
        ShapeError: Shapes that do not go together, or no candidates.

    Example:
        >>> masks = torch.tensor([[[[1, 1, 1]], [[1, 1, 0]], [[1, 0, 0]]]]).bool()
        >>> ensemble_masks(masks, torch.zeros(1, 3), "voting").int()
        tensor([[[1, 1, 0]]], dtype=torch.int32)
    """
    if not isinstance(method, str) or method not in ENSEMBLE_METHODS:
        raise UnknownNameError(
            explain(f"no ensemble method is called {method!r}", f"one of {', '.join(ENSEMBLE_METHODS)}")
        )
    _require_candidates(masks, predicted_iou)
    if method == "union":
        return reduce(torch.logical_or, masks.unbind(1))
    if method == "intersection":
        return reduce(torch.logical_and, masks.unbind(1))
    if method == "voting":
        votes = torch.zeros_like(masks[:, 0], dtype=torch.uint8 if masks.shape[1] < 256 else torch.int32)
        for candidate in masks.unbind(1):
            votes += candidate
        return votes > masks.shape[1] // 2
    known = torch.where(predicted_iou.isnan(), -torch.inf, predicted_iou)
    weights = torch.where(predicted_iou.isnan().all(-1, keepdim=True), 0.0, known).softmax(-1)
    # One candidate at a time: a float copy of all of them would be four times the masks.
    weight = torch.zeros_like(masks[:, 0], dtype=weights.dtype)
    for candidate, share in zip(masks.unbind(1), weights.unbind(1), strict=True):
        weight += candidate * share[:, None, None]
    return weight > 0.5


def _require_candidates(masks: Tensor, predicted_iou: Tensor) -> None:
    if masks.dtype != torch.bool or masks.ndim != 4:
        raise ShapeError(explain(f"masks is {describe(masks)}", "bool masks of shape (K, M, H, W)"))
    if predicted_iou.shape != masks.shape[:2]:
        expected = f"(K, M) = {tuple(masks.shape[:2])}, as masks has it"
        raise ShapeError(explain(f"predicted_iou is {describe(predicted_iou)}", expected))
    if masks.shape[1] == 0:
        raise ShapeError(explain("no candidate masks (M = 0)", "at least one a prompt"))


def _for_each(value: Any, num_prompts: int, shape: tuple[int, ...], name: str, device: torch.device) -> Tensor:
    """One value a prompt, of one for all or of one a prompt."""
    if name == "target":
        given = as_masks(value, name=name).to(device)
    else:
        given = as_numbers(value, name, f"{shape} or {(num_prompts, *shape)}", device)
    if name == "ratio" and not bool(((given >= 0) & (given <= 1)).all()):
        raise InputError(explain(f"ratio is {describe(value)}", "a share of the image in [0, 1]"))
    if tuple(given.shape) == shape:
        given = given.expand(num_prompts, *shape)
    if tuple(given.shape) != (num_prompts, *shape):
        raise ShapeError(explain(f"{name} is {describe(given)}", f"shape {shape} or {(num_prompts, *shape)}"))
    if name == "box_xyxy":
        checked_boxes(given, device, name=name)
        if bool(given.isnan().any()):
            raise InputError(explain(f"box_xyxy is {describe(given)} with NaN", "a box for every prompt"))
    return given


def _box_iou(a: Float[Tensor, "K M 4"], b: Float[Tensor, "K 1 4"]) -> Float[Tensor, "K M"]:
    """IoU of boxes of pixel indices, both ends included: a box of one pixel has area 1. NaN boxes give NaN."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    common = (high - low + 1).clamp_min(0).prod(-1)
    sizes = [(box[..., 2:] - box[..., :2] + 1).prod(-1) for box in (a, b)]
    return common / (sizes[0] + sizes[1] - common)
