"""The automatic mode: all masks of an image, from a grid of clicks, without a prompt.

Three masks answer each click of a grid, and what is good, stable and no duplicate stays. segment-anything brings every
candidate to the image's size before it judges it. Here candidates are judged as the decoder gives them, best first; one
is upscaled, window by window, only when neither its score nor a better mask has ruled it out by then.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torchvision.ops import nms

from arrcoc_sam.errors import InputError, describe, explain
from arrcoc_sam.images import ImageInput, load_image
from arrcoc_sam.inputs import as_coordinates, as_count
from arrcoc_sam.masks import areas, decode_rle, encode_rle, mask_boxes
from arrcoc_sam.prompts import grid_points_xy
from arrcoc_sam.segmenters.base import Segmenter
from arrcoc_sam.segmenters.decoder_path import published_decoder
from arrcoc_sam.segmenters.everything.candidates import CandidateDecoder, Candidates
from arrcoc_sam.segmenters.everything.crops import Crop, crop_layers, is_cut_off
from arrcoc_sam.segmenters.everything.masks import AutomaticMasks, MaskRecord
from arrcoc_sam.segmenters.everything.overlap import box_iou
from arrcoc_sam.segmenters.everything.regions import without_small_regions
from arrcoc_sam.segmenters.everything.windows import MeasuredMask, WindowUpscaler
from arrcoc_sam.segmenters.sam import SamSegmenter

__all__ = ["AutomaticMaskGenerator"]

# What a candidate's stability may gain by upscaling. Measured: 0.06 at most of 1,296 masks, 0.025 of larger ones.
_STABILITY_GAIN = 0.1
_CLICKS_AT_ONCE_CPU, _CLICKS_AT_ONCE_GPU = 16, 256


@dataclass(frozen=True, eq=False)
class AutomaticMaskGenerator:
    """All masks of an image.

    Attributes:
        segmenter: Answers the clicks.
        points_per_side: Clicks along each side of the image.
        min_predicted_iou: Candidates have to be predicted better than this; 0 keeps all.
        min_stability: Candidates have to be at least so stable; 0 keeps all.
        stability_offset: δ of the stability.
        box_nms_iou: Of masks of a crop whose boxes overlap more than this the best predicted one stays.
        num_crop_layers: Layers of crops that are segmented besides the whole image; layer i has (2^i)² crops.
        crop_nms_iou: Of masks of different crops that overlap more than this those of the smaller crop stay.
        crop_overlap: By how much of the shorter side crops of the first layer overlap.
        crop_points_downscale: Layer i has points_per_side / this^i clicks along a side.
        point_grids: In place of ``points_per_side``: for each layer (n, 2) clicks in the unit square.
        min_region_area: Holes and islands of fewer pixels are removed; 0 leaves them.
        exact: Upscale every candidate that is predicted well enough, by segment-anything's own operations and decoder,
            for the masks of ``SamAutomaticMaskGenerator`` but for pixels within rounding of a threshold. Otherwise a
            few masks near a threshold may differ.

    Example:
        >>> from arrcoc_sam.segmenters import load_segmenter
        >>> generator = AutomaticMaskGenerator(load_segmenter("tiny"), points_per_side=2)
        >>> found = generator.generate(np.zeros((60, 80, 3), dtype=np.uint8))
        >>> len(found.records) == len(found)
        True

    Reference:
        ``SamAutomaticMaskGenerator`` of segment-anything, whose defaults these are (but for ``min_region_area``, 0
        there). Masks without a pixel are left out here.
    """

    segmenter: Segmenter
    points_per_side: int = 32
    min_predicted_iou: float = 0.88
    min_stability: float = 0.95
    stability_offset: float = 1.0
    box_nms_iou: float = 0.7
    num_crop_layers: int = 0
    crop_nms_iou: float = 0.7
    crop_overlap: float = 512 / 1500
    crop_points_downscale: int = 1
    point_grids: Sequence[Float[Tensor, "_ 2"] | np.ndarray] | None = field(default=None, repr=False)
    min_region_area: int = 100
    exact: bool = False

    def __post_init__(self) -> None:
        given: object = self.segmenter
        if not callable(getattr(given, "decode", None)):
            mend = f"load_segmenter({given!r})" if isinstance(given, str) else 'make one with load_segmenter("tiny")'
            raise InputError(explain(f"segmenter is {describe(given)}", "a segmenter", mend))
        for name, least in (("points_per_side", 1), ("crop_points_downscale", 1), ("num_crop_layers", 0)):
            as_count(getattr(self, name), name, least=least)
        crop_layers((8, 8), self.num_crop_layers, self.crop_overlap)
        bounds: dict[str, tuple[Any, float, float]] = {
            "stability_offset": (self.stability_offset, 0, np.inf),
            "min_stability": (self.min_stability, 0, 1),
            "box_nms_iou": (self.box_nms_iou, 0, 1),
            "crop_nms_iou": (self.crop_nms_iou, 0, 1),
            "min_region_area": (self.min_region_area, 0, np.inf),
        }
        for name, (value, low, high) in bounds.items():
            if not isinstance(value, Real) or not low <= float(value) <= high:
                expected = f"{low} to {high}" if high < np.inf else f"at least {low}"
                raise InputError(explain(f"{name}={value!r}", expected))
        least_iou: Any = self.min_predicted_iou
        if not isinstance(least_iou, Real) or not np.isfinite(float(least_iou)):
            raise InputError(explain(f"min_predicted_iou={least_iou!r}", "a number"))
        if self.point_grids is None:
            return
        if len(self.point_grids) <= self.num_crop_layers:
            came = f"{len(self.point_grids)} point_grids for {self.num_crop_layers} layers of crops"
            raise InputError(explain(came, f"{self.num_crop_layers + 1}, one for the whole image and one a layer"))
        for layer, grid in enumerate(self.point_grids):
            points = as_coordinates(grid, 2, f"point_grids[{layer}]")
            if points.ndim != 2 or not len(points) or not bool(((points >= 0) & (points <= 1)).all()):
                raise InputError(explain(f"point_grids[{layer}]", "(n, 2) points of the unit square, at least one"))

    @torch.no_grad()
    def generate(self, image: ImageInput, *, on_progress: Callable[[int, int], None] | None = None) -> AutomaticMasks:
        """Find the masks of one image.

        Args:
            image: A path, a PIL image or an H×W×3 uint8 array.
            on_progress: Called with how many clicks are answered, and of how many.

        Returns:
            The masks; none where nothing passes the thresholds.

        Raises:
            ImageReadError: A file is missing or no image.
            InputError: An image, or a crop of it, that is too small for the segmenter.
        """
        pixels = load_image(image)
        size_hw = (pixels.shape[0], pixels.shape[1])
        crops = crop_layers(size_hw, self.num_crop_layers, self.crop_overlap)
        for crop in crops:
            self.segmenter.transform_for(crop.size_hw)  # before any work
        clicks = [self._clicks(crop) for crop in crops]
        total, done = sum(len(points) for points in clicks), 0
        records: list[MaskRecord] = []
        for crop, points in zip(crops, clicks, strict=True):

            def tell(answered: int, before: int = done) -> None:
                if on_progress is not None:
                    on_progress(before + answered, total)

            records += self._masks_of_crop(pixels, crop, points, tell)
            done += len(points)
        if len(crops) > 1 and records:
            scores = torch.tensor([1 / (record["crop_box"][2] * record["crop_box"][3]) for record in records])
            records = [records[index] for index in nms(_boxes(records), scores, self.crop_nms_iou).tolist()]
        if self.min_region_area > 0 and records:
            records = self._cleaned(records)
        return AutomaticMasks(size_hw, tuple(records))

    def _clicks(self, crop: Crop) -> Float[Tensor, "n 2"]:
        """The clicks of a crop, in its own pixels."""
        if self.point_grids is None:
            per_side = int(self.points_per_side / self.crop_points_downscale**crop.layer)
            return grid_points_xy(max(1, per_side), crop.size_hw)
        points = as_coordinates(self.point_grids[crop.layer], 2, "point_grids").cpu()
        height, width = crop.size_hw
        return torch.minimum(points * points.new_tensor((width, height)), points.new_tensor((width - 1, height - 1)))

    def _masks_of_crop(
        self,
        pixels: UInt8[np.ndarray, "H W 3"],
        crop: Crop,
        points_xy: Float[Tensor, "n 2"],
        tell: Callable[[int], None],
    ) -> list[MaskRecord]:
        """The masks of a crop, duplicates removed, as records of the image."""
        x0, y0, x1, y1 = crop.box_xyxy
        size_hw = (pixels.shape[0], pixels.shape[1])
        decoder = CandidateDecoder.of(
            self._exact_or_fast_segmenter(),
            np.ascontiguousarray(pixels[y0:y1, x0:x1]),
            min_predicted_iou=self.min_predicted_iou,
            min_stability=0.0 if self.exact else max(0.0, self.min_stability - _STABILITY_GAIN),
            stability_offset=self.stability_offset,
        )
        at_once = _CLICKS_AT_ONCE_CPU if self.segmenter.device.type == "cpu" else _CLICKS_AT_ONCE_GPU
        parts: list[Candidates] = []
        for start in range(0, len(points_xy), at_once):
            parts.append(decoder.answer(points_xy[start : start + at_once]))
            tell(min(start + at_once, len(points_xy)))
        candidates = Candidates.cat(parts)
        measure = _Measure(candidates, decoder.upscaler, exact=self.exact)
        return [
            _record(mask, float(candidates.scores[index]), candidates.points_xy[index], crop, size_hw)
            for index, mask in self._kept(candidates, measure, crop, size_hw)
        ]

    def _exact_or_fast_segmenter(self) -> Segmenter:
        """The segmenter; for exact masks with segment-anything's own decoder."""
        if not self.exact or not isinstance(self.segmenter, SamSegmenter):
            return self.segmenter
        _ = self.segmenter.checkpoint_hash  # worked out once, not by every copy
        segmenter = copy.copy(self.segmenter)
        segmenter.decoder_path = published_decoder
        return segmenter

    def _kept(
        self,
        candidates: Candidates,
        measured: Callable[[int], MeasuredMask | None],
        crop: Crop,
        size_hw: tuple[int, int],
    ) -> Iterator[tuple[int, MeasuredMask]]:
        """Greedy suppression. A candidate is upscaled when its turn comes, unless it has lost by then."""
        x0, y0 = crop.box_xyxy[:2]
        kept = np.zeros((0, 4), dtype=np.float32)
        for index in candidates.best_first():
            if not self.exact and (candidates.boxes.least_iou(index, kept) > self.box_nms_iou).any():
                continue
            mask = measured(index)
            if mask is None or (self.min_stability > 0 and not mask.stability >= self.min_stability):
                continue
            if is_cut_off(mask.box_xyxy + np.array((x0, y0, x0, y0)), crop, size_hw):
                continue
            if (box_iou(mask.box_xyxy, kept) > self.box_nms_iou).any():
                continue
            kept = np.concatenate((kept, mask.box_xyxy[None]))
            yield index, mask

    def _cleaned(self, records: Sequence[MaskRecord]) -> list[MaskRecord]:
        """Without small regions, and without the duplicates that this makes; untouched masks are preferred."""
        cleaned, untouched = [], []
        for record in records:
            mask, changed = without_small_regions(decode_rle(record["segmentation"]).numpy(), self.min_region_area)
            cleaned.append(_redrawn(record, mask) if changed else record)
            untouched.append(float(not changed))
        threshold = max(self.box_nms_iou, self.crop_nms_iou)
        return [cleaned[index] for index in nms(_boxes(cleaned), torch.tensor(untouched), threshold).tolist()]


class _Measure:
    """Masks at the image's size: one when its turn comes, or, of exact ones, with the two that come next."""

    def __init__(self, candidates: Candidates, upscaler: WindowUpscaler, *, exact: bool) -> None:
        self._windows, self._upscaler, self._exact = candidates.windows, upscaler, exact
        self._order = candidates.best_first()
        self._next: dict[int, MeasuredMask | None] = {}

    def __call__(self, index: int) -> MeasuredMask | None:
        if not self._exact:
            return self._upscaler.measure(self._windows[index])
        if index not in self._next:
            place = self._order.index(index)
            some = self._order[place : place + 3]
            self._next = dict(
                zip(some, self._upscaler.measure_exactly([self._windows[each] for each in some]), strict=True)
            )
        return self._next.pop(index)


def _record(
    mask: MeasuredMask, score: float, point_xy: Float[np.ndarray, " 2"], crop: Crop, size_hw: tuple[int, int]
) -> MaskRecord:
    """A mask of a crop as a record of the image."""
    x0, y0 = crop.box_xyxy[:2]
    left, top, right, bottom = (int(side) for side in mask.box_xyxy)
    return MaskRecord(
        segmentation=encode_rle(mask.drawn(size_hw, (x0, y0))),
        area=int(areas(mask.pixels)),
        bbox=[left + x0, top + y0, right - left, bottom - top],
        predicted_iou=score,
        point_coords=[[float(point_xy[0]) + x0, float(point_xy[1]) + y0]],
        stability_score=mask.stability,
        crop_box=[x0, y0, crop.size_hw[1], crop.size_hw[0]],
    )


def _boxes(records: Sequence[MaskRecord]) -> Float[Tensor, "n 4"]:
    boxes = torch.tensor([record["bbox"] for record in records], dtype=torch.float32)
    return torch.cat((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), dim=1)


def _redrawn(record: MaskRecord, mask: Bool[np.ndarray, "H W"]) -> MaskRecord:
    """A record of another mask."""
    left, top, right, bottom = (int(side) for side in mask_boxes(mask).tolist())
    return {
        **record,
        "segmentation": encode_rle(mask),
        "area": int(mask.sum()),
        "bbox": [left, top, right - left, bottom - top],
    }
