"""MaskQualityEstimator: how good masks are that the segmenter did not make, by the masks that it makes of them.

A segmenter's head predicts the IoU of the segmenter's *own* mask with the object meant; it never saw the external one.
So the external mask becomes a prompt, the closest answer is found, and what the head says about the answer bounds, by
the triangle inequality of Jaccard distance, what the mask itself is worth.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal

import torch

from arrcoc_sam.errors import InputError, UnknownNameError, describe, explain
from arrcoc_sam.images import ImageInput, load_image
from arrcoc_sam.masks import areas, encode_rle
from arrcoc_sam.masks.rle import RLE
from arrcoc_sam.prompts import PROMPT_KINDS
from arrcoc_sam.quality.bounds import jaccard_bounds
from arrcoc_sam.quality.calibration import load_calibration
from arrcoc_sam.quality.closest import Asking
from arrcoc_sam.quality.external_masks import ExternalMasks, MasksInput
from arrcoc_sam.quality.mask_quality import EncodedMasks, MaskQuality, QualityCalibration, calibrated
from arrcoc_sam.quality.thresholds import Threshold, check_threshold
from arrcoc_sam.segmenters.base import Multimask, Segmenter
from arrcoc_sam.segmenters.embedding import ImageEmbedding

__all__ = ["MaskQualityEstimator"]

# Pixels of candidate masks at image resolution, and masks, that are held at a time.
_CHUNK_PIXELS_CPU, _CHUNK_PIXELS_GPU = 1 << 25, 1 << 28
_CHUNK_MASKS = 64


class MaskQualityEstimator:
    """Scores external masks with a promptable segmenter.

    What a score can't say: a perfect mask of another object than the one you had in mind is a good mask. Neither image
    nor mask tells the two apart.

    SAM-HQ's head speaks of the SAM part of its masks, so that is what masks are compared with, and what
    ``best_sam_masks`` are.

    Attributes:
        segmenter: Who is asked.
        protocol: How a mask is turned into a prompt.
        multimask: Which tokens are decoded.
        calibration: What turns bounds into estimates, or None.
        components: Whether components are scored apart.

    Example:
        >>> import numpy as np
        >>> from arrcoc_sam.segmenters.sam import SamSegmenter
        >>> from arrcoc_sam.segmenters.tiny import build_tiny
        >>> estimator = MaskQualityEstimator(SamSegmenter(build_tiny(), name="untrained"))
        >>> masks = np.zeros((2, 60, 80), dtype=bool)
        >>> masks[0, 10:30, 20:50] = True
        >>> scores = estimator.estimate(np.zeros((60, 80, 3), dtype=np.uint8), masks)
        >>> len(scores), scores.quality_kind, scores.quality[1].item()  # an empty mask fits no object
        (2, 'bound', 0.0)
    """

    def __init__(
        self,
        segmenter: Segmenter,
        protocol: str = "mask+point",
        multimask: Multimask = "all",
        calibration: QualityCalibration | str | os.PathLike[str] | None = None,
        *,
        components: bool = False,
        threshold: Threshold | None = None,
        mass_share: float = 0.5,
        keep_masks: bool = True,
    ) -> None:
        """Set up the scoring of masks.

        Args:
            segmenter: Who is asked.
            protocol: One of :data:`~arrcoc_sam.prompts.PROMPT_KINDS`; see :meth:`Prompts.from_masks`.
            multimask: "all" four tokens (segment-anything was trained with the single mask's token once a mask is fed,
                and the others are often closer), True for tokens 1-3, False for token 0.
            calibration: Fitted for this segmenter's weights and these options, or the path of its file; None for
                bounds.
            components: Score each connected component of at least 1 % of a mask's area apart. All of a mask's figures
                are then those of its component with the lowest lower bound, which is a lower bound too of the IoU of
                these components together with their objects together.
            threshold: Accept soft masks and attention (floats) instead of bool masks, and cut each so:
                :func:`~arrcoc_sam.quality.thresholds.binarize`.
            mass_share: For the threshold "mass".
            keep_masks: Keep the closest candidates, as run lengths.

        Raises:
            UnknownNameError: No such protocol or threshold.
            InputError: No segmenter, or a name in its place; another ``multimask``; something that is no calibration,
                or one of other weights or options; a segmenter whose head was taught to judge the mask that it is shown
                (``train iou-head``).
            DataError: The calibration's file can't be read.
        """
        if protocol not in PROMPT_KINDS:
            raise UnknownNameError(explain(f"protocol={protocol!r}", f"one of {', '.join(PROMPT_KINDS)}"))
        if not (isinstance(multimask, bool) or multimask == "all"):
            raise InputError(explain(f"multimask={multimask!r}", "True, False or 'all'"))
        if threshold is not None:
            check_threshold(threshold, mass_share)
        given: object = segmenter
        if not callable(getattr(given, "decode", None)):
            mend = f"load_segmenter({given!r})" if isinstance(given, str) else 'make one with load_segmenter("tiny")'
            raise InputError(explain(f"segmenter is {describe(given)}", "a segmenter", mend))
        if segmenter.judges is not None:
            came = f"the IoU head of {segmenter.name} was taught to judge the mask that it is shown"
            mend = f"decode Prompts.from_masks(masks, segmenter, {segmenter.judges!r}) and read predicted_iou"
            raise InputError(explain(came, "a head that speaks of the segmenter's own masks, as bounds need it", mend))
        self.segmenter, self.protocol, self.components = segmenter, protocol, components
        self.multimask: bool | Literal["all"] = multimask
        if isinstance(calibration, (str, os.PathLike)):
            calibration = load_calibration(calibration)
        if calibration is not None:
            self._check_calibration(calibration)
        self.calibration: QualityCalibration | None = calibration
        self._threshold, self._mass_share, self._keep_masks = threshold, mass_share, keep_masks

    @torch.no_grad()
    def estimate(
        self,
        images_or_embedding: ImageEmbedding | ImageInput | Sequence[ImageInput],
        masks: MasksInput,
        *,
        image_index: Any = None,
    ) -> MaskQuality:
        """Score K masks of one image or several.

        Masks go through the segmenter and are compared at the original resolution in chunks, so that memory does not
        grow with K.

        Args:
            images_or_embedding: One image or several (paths, PIL images, arrays), or what the segmenter's ``encode``
                made of them.
            masks: (K, H, W) bool at the image's size, or a list of (H, W), which may be of images of several sizes;
                floats if the estimator has a threshold.
            image_index: (K,) the image of each mask; one number for all; may be left out with one image.

        Returns:
            The scores in the order of the masks. An empty mask overlaps no object, so its quality, alignment, soft IoU
            and both bounds are 0, without asking the segmenter; its predicted IoU and stability are NaN, its token -1.
            A mask that covers the whole image is scored like any other.

        Raises:
            ShapeError: No masks, other axes, or a mask of another size than its image.
            InputError: Masks of another dtype, soft masks without a threshold, or an ``image_index`` that is missing
                or names no image.
            ImageReadError: An image can't be read.
            EmbeddingMismatchError: The embedding is another segmenter's.
        """
        given: Any = images_or_embedding
        if isinstance(given, ImageEmbedding):
            images, sizes_hw = None, given.sizes_hw
        else:
            images = [load_image(image) for image in (given if isinstance(given, (list, tuple)) else [given])]
            sizes_hw = tuple((image.shape[0], image.shape[1]) for image in images)
        external = ExternalMasks.of(
            masks, image_index, sizes_hw, threshold=self._threshold, mass_share=self._mass_share
        )
        embedding = given if images is None else self.segmenter.encode(images)
        bounds = self._score(embedding, external)
        return bounds if self.calibration is None else calibrated(bounds, self.calibration)

    def _score(self, embedding: ImageEmbedding, external: ExternalMasks) -> MaskQuality:
        count = len(external)
        asking = Asking(self.segmenter.scorer, self.protocol, self.multimask, self._keep_masks)
        alignment, predicted, stability, soft, area, score = (torch.full((count,), torch.nan) for _ in range(6))
        token, components = torch.full((count,), -1), torch.ones(count, dtype=torch.int64)
        closest: list[RLE] = [{}] * count
        for rows, stack in external.chunks(self._chunk_pixels(), _CHUNK_MASKS):
            masks = stack.to(self.segmenter.device)
            counts = areas(masks).cpu()
            area[rows] = (counts.double() / masks[0].numel()).float()
            alignment[rows] = soft[rows] = 0.0
            if self._keep_masks:
                for row in rows[counts == 0].tolist():
                    closest[row] = encode_rle(torch.zeros(masks.shape[1:], dtype=torch.bool))
            at = rows[counts > 0]
            if not len(at):
                continue
            some, images = masks[(counts > 0).to(masks.device)], external.image_index[at]
            if self.components:
                found = asking.closest_by_component(embedding, some, images, len(stack))
            else:
                found = asking.closest(embedding, some, images)
            alignment[at], predicted[at] = found.alignment_iou.cpu(), found.predicted_iou.cpu()
            stability[at], soft[at] = found.stability.cpu(), found.soft_iou.cpu()
            token[at], components[at] = found.token_index.cpu(), found.num_components.cpu()
            if found.object_score is not None:
                score[at] = found.object_score.float().cpu()
            for row, rle in zip(at.tolist(), found.rles, strict=False):
                closest[row] = rle
        lower, upper = (bound.masked_fill(area == 0, 0.0) for bound in jaccard_bounds(alignment, predicted))
        device = external.device
        return MaskQuality(
            quality=lower.to(device),
            quality_kind="bound",
            lower_bound=lower.to(device),
            upper_bound=upper.to(device),
            interval_low=torch.full_like(lower, torch.nan, device=device),
            interval_high=torch.full_like(lower, torch.nan, device=device),
            predicted_iou=predicted.to(device),
            alignment_iou=alignment.to(device),
            stability=stability.to(device),
            soft_iou=soft.to(device),
            token_index=token.to(device),
            area_share=area.to(device),
            num_components=components.to(device),
            best_sam_masks=EncodedMasks(closest if self._keep_masks else ()),
            object_score=None if bool(score.isnan().all()) else score.to(device),
        )

    def _chunk_pixels(self) -> int:
        """Pixels of external masks that go through together: each has up to four candidates of its size."""
        budget = _CHUNK_PIXELS_CPU if self.segmenter.device.type == "cpu" else _CHUNK_PIXELS_GPU
        return budget // {False: 1, True: 3, "all": 4}[self.multimask]

    def _check_calibration(self, calibration: object) -> None:
        if not isinstance(calibration, QualityCalibration):
            mend = "load one with arrcoc_sam.quality, or leave it out for bounds"
            raise InputError(explain(f"calibration is {describe(calibration)}", "a calibration with apply()", mend))
        ours = {
            "checkpoint_hash": self.segmenter.checkpoint_hash,
            "protocol": self.protocol,
            "multimask": self.multimask,
            "components": self.components,
        }
        for name, value in ours.items():
            theirs = getattr(calibration, name)
            if theirs != value:
                came = f"a calibration of {name}={theirs!r} for scores of {name}={value!r}"
                mend = "calibrate anew: arrcoc-sam calibrate"
                if name != "checkpoint_hash":
                    option = {"multimask": "tokens"}.get(name, name)
                    mend = f"score with {name}={theirs!r} (--{option}), or {mend}"
                raise InputError(explain(came, "one fitted on the same weights and options", mend))
