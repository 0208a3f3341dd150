"""MaskCandidates: what a decoder answers to K prompts, and the way from its low-resolution logits to masks.

Logits stay at the decoder's resolution until a mask is asked for; long runs stream with ``iter_masks``. From here
candidates go on to :mod:`arrcoc_sam.hierarchy` and :mod:`arrcoc_sam.selection`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from arrcoc_sam.errors import HierarchyError, InputError, MixedSizesError, ShapeError, describe, explain
from arrcoc_sam.geometry import ImageTransform
from arrcoc_sam.hierarchy import MaskHierarchy
from arrcoc_sam.hierarchy.levels import DISTINCT_IOU, LEVELS, NESTED_SHARE
from arrcoc_sam.inputs import Rows, as_count, as_size, kept_rows
from arrcoc_sam.masks import stability_score
from arrcoc_sam.selection import Selection, check_strategy, choose_mask, ensemble_masks, select_masks
from arrcoc_sam.upscaling import upscale

__all__ = ["MaskCandidates", "ensemble", "select"]

# Floats that a step of upscaling may hold, on the CPU (16 MB: the C library's allocator reuses it) and elsewhere.
_STEP_CPU = 1 << 22
_STEP_GPU = 1 << 27


@dataclass(frozen=True, eq=False)
class MaskCandidates:
    """M candidate masks for each of K prompts, which may be about different images.

    Attributes:
        logits: (K, M, h, w) low-resolution logits over the model's whole frame, padding included.
        predicted_iou: (K, M) raw, as the model gives it: SAM 1's runs below 0 and above 1.
        token_index: (M,) int64, the decoder's mask token behind each candidate: 0 for the single mask, 1-3 for the
            three of an ambiguous prompt. Their order says nothing about levels.
        image_index: (K,) int64, which image each prompt is about.
        transforms: For each image, the map to the model's frame.
        object_score: (K,), above 0 where the object is visible; None of models that have no such head.
        stability: (K, M) in [0, 1], counted when it is first asked for.
        sizes_hw: (K, 2) int64, height and width of each prompt's image.
    """

    logits: Float[Tensor, "K M h w"]
    predicted_iou: Float[Tensor, "K M"]
    token_index: Int[Tensor, " M"]
    image_index: Int[Tensor, " K"]
    transforms: tuple[ImageTransform, ...]
    object_score: Float[Tensor, " K"] | None = None

    def __post_init__(self) -> None:
        if self.logits.ndim != 4:
            raise ShapeError(explain(f"logits is {describe(self.logits)}", "(K, M, h, w)"))
        num_prompts, num_masks = self.logits.shape[:2]
        expected = {
            "predicted_iou": (num_prompts, num_masks),
            "token_index": (num_masks,),
            "image_index": (num_prompts,),
        }
        for name, shape in expected.items():
            if tuple(getattr(self, name).shape) != shape:
                raise ShapeError(
                    explain(f"{name} is {describe(getattr(self, name))}", f"shape {shape}, as logits has it")
                )

    def __len__(self) -> int:
        return len(self.logits)

    def __repr__(self) -> str:
        """Sizes instead of all the numbers."""
        tokens = ", ".join(str(token) for token in self.token_index.tolist())
        height, width = self.logits.shape[-2:]
        return (
            f"MaskCandidates({len(self)} prompts x {self.logits.shape[1]} masks, tokens {tokens}; "
            f"{height} x {width} logits, {len(self.transforms)} images, on {self.logits.device})"
        )

    def __getitem__(self, index: Rows) -> MaskCandidates:
        """The candidates of some prompts; an integer keeps the axis K, of length 1."""
        rows = kept_rows(index, len(self), "prompt")
        return replace(
            self,
            logits=self.logits[rows],
            predicted_iou=self.predicted_iou[rows],
            image_index=self.image_index[rows],
            object_score=None if self.object_score is None else self.object_score[rows],
        )

    def __iter__(self) -> Iterator[MaskCandidates]:
        return (self[index] for index in range(len(self)))

    def for_image(self, image: int) -> MaskCandidates:
        """The candidates of the prompts about one image, in their order.

        Raises:
            InputError: There is no such image.
        """
        number = as_count(image, "image", least=0)
        if number >= len(self.transforms):
            raise InputError(explain(f"image {image} of {len(self.transforms)}", f"0 to {len(self.transforms) - 1}"))
        chosen = self[self.image_index == number]
        # without a prompt nothing else says how large the image is
        return chosen if len(chosen) else replace(chosen, transforms=(self.transforms[number],))

    def for_tokens(self, tokens: Sequence[int]) -> MaskCandidates:
        """The candidates of some of the decoder's tokens, in the order given.

        Raises:
            InputError: A token that was not decoded.
        """
        came = self.token_index.tolist()
        missing = [token for token in tokens if token not in came]
        if missing:
            raise InputError(
                explain(f"tokens {missing} of candidates of tokens {came}", None, 'decode with multimask="all"')
            )
        columns = [came.index(token) for token in tokens]
        return replace(
            self,
            logits=self.logits[:, columns],
            predicted_iou=self.predicted_iou[:, columns],
            token_index=self.token_index[columns],
        )

    @property
    def sizes_hw(self) -> Int[Tensor, "K 2"]:
        """Height and width of each prompt's original image."""
        sizes = torch.tensor([transform.original_hw for transform in self.transforms]).reshape(-1, 2)
        return sizes.to(self.image_index.device)[self.image_index]

    @cached_property
    def stability(self) -> Float[Tensor, "K M"]:
        """Stability of each mask: area(logits > 1) / area(logits > -1), in [0, 1]; NaN where both are 0.

        Counted at low resolution, without the padding. (segment-anything's automatic mode counts the same thing on
        upscaled masks.)
        """
        size = self.logits.shape[-2:]
        stability = self.predicted_iou.new_empty(self.predicted_iou.shape, dtype=torch.float32)
        for rows, transform in self._by_transform():
            shown = (transform.grid_valid((size[0], size[1])) >= 0.5).to(self.logits.device)
            stability[rows] = stability_score(self.logits[rows].detach().masked_fill(~shown, -torch.inf))
        return stability

    @torch.no_grad()
    def masks(self, size: tuple[int, int] | None = None, threshold: float = 0.0) -> Bool[Tensor, "K M H W"]:
        """All masks at once; see :func:`upscale`.

        Args:
            size: (H, W) of the result; by default the original size that the prompts have in common.
            threshold: Of the logits.

        Returns:
            (K, M, H, W) bool.

        Raises:
            MixedSizesError: Without ``size``, of images of several sizes.
        """
        size_hw = self._common_size() if size is None else as_size(size, "size")
        masks = torch.empty((*self.logits.shape[:2], *size_hw), dtype=torch.bool, device=self.logits.device)
        for rows, transform in self._by_transform():
            for step in torch.split(rows, self._step(transform, size_hw)):
                masks[step] = upscale(self.logits[step], transform, size_hw=size_hw) > threshold
        return masks

    def iter_masks(
        self, *, chunk_size: int = 16, threshold: float = 0.0
    ) -> Iterator[tuple[int, Bool[Tensor, "M H W"]]]:
        """The masks of one prompt after another, each at its own original size; only a chunk is in memory.

        Args:
            chunk_size: Prompts that are upscaled together.
            threshold: Of the logits.

        Yields:
            The prompt's index and its (M, H, W) bool masks.

        Raises:
            InputError: A chunk size under 1.
        """
        return self._chunks(as_count(chunk_size, "chunk_size"), threshold)

    def hierarchy(
        self, *, threshold: float = 0.0, distinct_iou: float = DISTINCT_IOU, nested_share: float = NESTED_SHARE
    ) -> MaskHierarchy:
        """Whole, part and subpart of each prompt, from tokens 1-3, at the original size.

        Args:
            threshold: Of the logits.
            distinct_iou: The largest IoU with the level above at which a level counts as distinct.
            nested_share: The least share inside the level above at which a level counts as nested.

        Raises:
            HierarchyError: Tokens 1-3 were not all decoded.
            MixedSizesError: Images of several sizes.
        """
        three = self._multimask_tokens("to read whole, part and subpart")
        return MaskHierarchy.from_masks(
            three.masks(threshold=threshold),
            three.predicted_iou,
            three.token_index,
            distinct_iou=distinct_iou,
            nested_share=nested_share,
        )

    def stability_of(self, hierarchy: MaskHierarchy) -> Float[Tensor, "K 3"]:
        """Stability of each level's mask.

        Args:
            hierarchy: What :meth:`hierarchy` read from these candidates.
        """
        columns = (hierarchy.token_index[..., None] == self.token_index).int().argmax(-1)
        return self.stability.gather(1, columns)

    def to(self, device: torch.device | str) -> MaskCandidates:
        """The candidates on another device."""
        return replace(
            self,
            logits=self.logits.to(device),
            predicted_iou=self.predicted_iou.to(device),
            token_index=self.token_index.to(device),
            image_index=self.image_index.to(device),
            object_score=None if self.object_score is None else self.object_score.to(device),
        )

    def _chunks(self, chunk_size: int, threshold: float) -> Iterator[tuple[int, Bool[Tensor, "M H W"]]]:
        for start in range(0, len(self), chunk_size):
            chunk = self[start : start + chunk_size]
            masks: dict[int, Tensor] = {}
            for rows, transform in chunk._by_transform():
                at_one_size = chunk[rows].masks(transform.original_hw, threshold)
                masks.update(zip(rows.tolist(), at_one_size, strict=True))
            for row in range(len(chunk)):
                yield start + row, masks.pop(row)

    def _by_transform(self) -> Iterator[tuple[Int[Tensor, " k"], ImageTransform]]:
        """Prompts whose images go the same way into the model's frame."""
        images: dict[ImageTransform, list[int]] = {}
        for image, transform in enumerate(self.transforms):
            images.setdefault(transform, []).append(image)
        for transform, alike in images.items():
            rows = torch.isin(self.image_index, torch.tensor(alike, device=self.image_index.device)).nonzero()[:, 0]
            if len(rows):
                yield rows, transform

    def _common_size(self) -> tuple[int, int]:
        used = sorted(set(self.image_index.tolist())) or range(len(self.transforms))
        sizes = sorted({self.transforms[image].original_hw for image in used})
        if len(sizes) != 1:
            raise MixedSizesError(
                explain(
                    f"the prompts are about images of {len(sizes)} sizes {sizes[:4]}",
                    "one size for one array",
                    "stream them with iter_masks(), take one image with for_image(), or name a size",
                )
            )
        return sizes[0]

    def _step(self, transform: ImageTransform, size_hw: tuple[int, int]) -> int:
        """How many prompts to upscale at a time."""
        pixels = max(transform.frame_hw[0] * transform.frame_hw[1], size_hw[0] * size_hw[1])
        budget = _STEP_CPU if self.logits.device.type == "cpu" else _STEP_GPU
        return max(1, budget // (max(1, self.logits.shape[1]) * pixels))

    def _multimask_tokens(self, purpose: str) -> MaskCandidates:
        tokens = [token for token in self.token_index.tolist() if token > 0]
        if len(tokens) < len(LEVELS):
            came = f"candidates of tokens {self.token_index.tolist()}"
            raise HierarchyError(explain(came, f"tokens 1, 2 and 3 {purpose}", "decode with multimask=True"))
        return self.for_tokens(tokens)


def select(candidates: MaskCandidates, strategy: str, *, threshold: float = 0.0, **arguments: Any) -> Selection:
    """Pick one mask a prompt.

    Args:
        candidates: What a decoder answered. "whole", "part" and "subpart" look at tokens 1-3 only, the other
            strategies at all that were decoded.
        strategy: "automatic" or "stability", of the highest predicted IoU or stability; "whole", "part", "subpart",
            by area; "largest", "smallest", "area_ratio"; "box"; or "oracle". What each takes:
            :func:`arrcoc_sam.selection.select_masks`.
        threshold: Of the logits.
        **arguments: What the strategy needs: ``target=``, ``box_xyxy=`` or ``ratio=``.

    Returns:
        Masks at the original size; ``index`` counts candidates as they are in ``candidates``.

    Raises:
        MixedSizesError: Images of several sizes.
        InputError: As :func:`arrcoc_sam.selection.select_masks`, and its other errors.
    """
    _require_candidates(candidates, "select_masks(masks, predicted_iou, strategy)")
    if strategy == "stability":
        arguments = {**arguments, "stability": candidates.stability}
    check_strategy(strategy, arguments)  # before anything is upscaled
    if strategy in ("automatic", "stability") and candidates.logits.shape[1]:
        return _without_looking(candidates, arguments.get("stability", candidates.predicted_iou), threshold)
    among = candidates._multimask_tokens(f"for {strategy!r}") if strategy in LEVELS else candidates
    selection = select_masks(among.masks(threshold=threshold), among.predicted_iou, strategy, **arguments)
    tokens = among.token_index[selection.index]
    return replace(selection, index=(candidates.token_index == tokens[:, None]).int().argmax(-1))


def ensemble(candidates: MaskCandidates, method: str, *, threshold: float = 0.0) -> Bool[Tensor, "K H W"]:
    """Merge each prompt's candidates into one mask.

    Args:
        candidates: What a decoder answered; all that was decoded is merged.
        method: "union"; "intersection"; "weighted", pixels of more than half the weight, the softmax of the predicted
            IoU; or "voting", pixels in more than half of the masks (:func:`arrcoc_sam.selection.ensemble_masks`).
        threshold: Of the logits.

    Returns:
        (K, H, W) bool, at the original size.

    Raises:
        MixedSizesError: Images of several sizes.
        UnknownNameError: No such method.
    """
    _require_candidates(candidates, "ensemble_masks(masks, predicted_iou, method)")
    return ensemble_masks(candidates.masks(threshold=threshold), candidates.predicted_iou, method)


def _without_looking(candidates: MaskCandidates, numbers: Float[Tensor, "K M"], threshold: float) -> Selection:
    """The candidates of the largest numbers: a choice for which no other mask has to be upscaled."""
    index = choose_mask(numbers)
    prompts = torch.arange(len(index), device=index.device)
    logits, score = candidates.logits[prompts, index], candidates.predicted_iou[prompts, index]
    chosen = replace(
        candidates, logits=logits[:, None], predicted_iou=score[:, None], token_index=candidates.token_index[:1]
    )
    return Selection(masks=chosen.masks(threshold=threshold)[:, 0], index=index, score=score)


def _require_candidates(given: object, of_masks: str) -> None:
    if not isinstance(given, MaskCandidates):
        came = f"candidates is {describe(given)}"
        raise InputError(explain(came, "what decode answers", f"of masks: arrcoc_sam.selection.{of_masks}"))
