"""Batches of images, targets and the chance behind their prompts, each drawn from its place in the run alone.

Nothing here keeps a state: what image ``i`` of step ``s`` shows depends on the seed, s and i. So a batch is the same
however it is split among devices, workers and accumulation steps, and a killed run goes on as if it had not been.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from numpy import ndarray
from PIL import Image
from torch import Tensor

from arrcoc_sam.errors import DataError, ImageReadError, explain
from arrcoc_sam.geometry import ImageTransform
from arrcoc_sam.masks import mask_boxes
from arrcoc_sam.training.augmentation import Augmentation, crop_window, recolored, turned
from arrcoc_sam.training.given_masks import draw_given_masks
from arrcoc_sam.training.sources import MaskedImage, MaskSource

__all__ = ["BatchPlan", "PromptBatch", "draw_batch"]

# Smallest target, in cells of the decoder's low resolution.
_LEAST_CELLS = 4
# Images that may turn out to hold no target that is large enough before a place of the batch is given up.
_ATTEMPTS = 50
# Masks of another image that may be pasted.
_DONORS = 3


@dataclass(frozen=True)
class PromptBatch:
    """B images and K targets in them, each with its first click, its box, and the chance that its prompts depend on.

    Attributes:
        images: (B, 3, S, S) float32 RGB in [0, 255], S the model's frame; padding has the model's mean colour.
        valid: (B, g, g) bool, cells of the decoder's low resolution whose centre shows the image.
        image_index: (K,) the image of each target.
        targets: (K, g, g) float32 in [0, 1]: coverage of each cell; some cell is above one half.
        points_xy: (K, 2) float32, a pixel that means the target, in the model's frame.
        boxes_xyxy: (K, 4) float32, the tight box of each target in the model's frame.
        box_chance: (K,) in [0, 1): whether the first prompt is a box.
        box_shift: (K, 4) standard normal: noise of the box's corners.
        click_chance: (K, R, 4) in [0, 1), for each later round: whether the click is on an error, which one, and where
            in its cell (two numbers).
        pause_chance: In [0, 1), one for the whole step: where the round without a new prompt stands.
        meant: (K, A, g, g) bool, the masks of the image that hold each click, padded with empty ones; None where the
            recipe does not ask for them.
        meant_chance: (K, A), how probable it is that the click means each: they sum to 1.
        given: (K,) whether the first prompt is a mask of somebody else's making; None where the recipe has none.
        given_logits: (K, g, g), that mask as a prompt; 0 where there is none.
        given_xy: (K, 2) float32, the point that is asked with it, in the model's frame.
    """

    images: Float[Tensor, "B 3 S S"]
    valid: Bool[Tensor, "B g g"]
    image_index: Int64[Tensor, " K"]
    targets: Float[Tensor, "K g g"]
    points_xy: Float[Tensor, "K 2"]
    boxes_xyxy: Float[Tensor, "K 4"]
    box_chance: Float[Tensor, " K"]
    box_shift: Float[Tensor, "K 4"]
    click_chance: Float[Tensor, "K R 4"]
    pause_chance: float
    meant: Bool[Tensor, "K A g g"] | None = None
    meant_chance: Float[Tensor, "K A"] | None = None
    given: Bool[Tensor, " K"] | None = None
    given_logits: Float[Tensor, "K g g"] | None = None
    given_xy: Float[Tensor, "K 2"] | None = None

    def __len__(self) -> int:
        """The number of targets, K."""
        return len(self.targets)

    def first_of_each(self, count: int) -> PromptBatch:
        """The batch with the first ``count`` targets of each image; each was drawn alike."""
        starts = torch.searchsorted(self.image_index, self.image_index)
        rows = torch.arange(len(self), device=self.image_index.device) - starts < count
        shared = ("images", "valid", "pause_chance")
        kept = {n: v[rows] if n not in shared and v is not None else v for n, v in self.state().items()}
        return PromptBatch(**kept)

    def to(self, device: torch.device | str) -> PromptBatch:
        """The batch on another device."""
        moved: dict[str, Any] = {
            name: value.to(device) if isinstance(value, Tensor) else value for name, value in self.state().items()
        }
        return PromptBatch(**moved)

    def state(self) -> dict[str, Any]:
        """Its fields by name, as ``torch.save`` takes them and ``torch.load(weights_only=True)`` gives them back."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class BatchPlan:
    """What batches look like; everything that is not chance.

    Attributes:
        image_size: S, side of the model's frame in pixels.
        mask_size: g, side of the decoder's low-resolution masks.
        num_targets: The most targets an image.
        num_clicks: R, rounds after the first.
        largest_target: Targets that cover more of their image than this are not drawn.
        with_meant: Tell for each click which masks it may have meant.
        given_share: Share of targets whose first prompt is a mask of somebody else's making.
        given_targets: Draw such masks for the first so many targets of an image alone; None: for all.
        augmentation: How images are changed.
        padding: RGB in [0, 255]: the model's mean colour, which it normalises to zero.
    """

    image_size: int
    mask_size: int
    num_targets: int
    num_clicks: int = 2
    largest_target: float = 1.0
    with_meant: bool = False
    given_share: float = 0.0
    given_targets: int | None = None
    augmentation: Augmentation = field(default_factory=Augmentation)
    padding: tuple[float, float, float] = (123.675, 116.28, 103.53)


def draw_batch(source: MaskSource, plan: BatchPlan, *, seed: int, step: int, places: Sequence[int]) -> PromptBatch:
    """Draws some of the images of a step, and targets and first clicks in them.

    Targets are drawn uniformly among the masks of an image, and clicks uniformly in each, so that clicks follow the
    measure: one click, uniform in a mask, for every mask alike. An image that can't be read, or whose masks can't (a
    soft mask, a map of labels), is left out with a warning, and another one drawn in its place.

    Args:
        source: What to draw from, uniformly and with replacement.
        plan: What batches look like.
        seed: Of the run.
        step: Counted from 0.
        places: Which images of the step's global batch.

    Raises:
        ImageReadError: None of 50 images can be read.
        DataError: None of 50 images has masks that can be read, or none a target that is large enough.
    """
    drawn = [_draw_image(source, plan, np.random.default_rng([seed, step, place])) for place in places]
    counts = torch.tensor([len(one.targets) for one in drawn])
    return PromptBatch(
        images=torch.cat([one.images for one in drawn]),
        valid=torch.cat([one.valid for one in drawn]),
        image_index=torch.arange(len(drawn)).repeat_interleave(counts),
        targets=torch.cat([one.targets for one in drawn]),
        points_xy=torch.cat([one.points_xy for one in drawn]),
        boxes_xyxy=torch.cat([one.boxes_xyxy for one in drawn]),
        box_chance=torch.cat([one.box_chance for one in drawn]),
        box_shift=torch.cat([one.box_shift for one in drawn]),
        click_chance=torch.cat([one.click_chance for one in drawn]),
        pause_chance=float(np.random.default_rng([seed, step]).random()),
        meant=_padded([one.meant for one in drawn if one.meant is not None]),
        meant_chance=_padded([one.meant_chance for one in drawn if one.meant_chance is not None]),
        given=_joined([one.given for one in drawn]),
        given_logits=_joined([one.given_logits for one in drawn]),
        given_xy=_joined([one.given_xy for one in drawn]),
    )


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Rows of all parts; None where none was drawn."""
    drawn = [part for part in parts if part is not None]
    return torch.cat(drawn) if drawn else None


def _padded(parts: Sequence[Tensor]) -> Tensor | None:
    """Rows of all parts, their second axis filled up with zeros to the longest; None of none."""
    if not parts:
        return None
    longest = max(part.shape[1] for part in parts)
    missing = [part.new_zeros(len(part), longest - part.shape[1], *part.shape[2:]) for part in parts]
    return torch.cat([torch.cat(both, dim=1) for both in zip(parts, missing, strict=True)])


def _draw_image(source: MaskSource, plan: BatchPlan, rng: np.random.Generator) -> PromptBatch:
    """One image with its targets, as a batch of its own."""
    faults: list[ImageReadError | DataError] = []
    for _ in range(_ATTEMPTS):
        index = int(rng.integers(len(source)))
        try:
            found = _prompted(source[index], plan, rng, partial(_donors, source, index, rng))
        except (ImageReadError, DataError) as error:  # one file of a hundred thousand is no reason to end a run of days
            faults.append(error)
            warnings.warn(f"Left out of training: {error}", stacklevel=2)
            continue
        if found is not None:
            return found
    if len(faults) == _ATTEMPTS:
        raise type(faults[-1])(f"{_ATTEMPTS} images drawn, and none can be read; the last: {faults[-1]}")
    came = f"{_ATTEMPTS} images drawn, none with a target of a usable size"
    if faults:
        came += f" ({len(faults)} of them can't be read; the last: {faults[-1]})"
    expected = f"masks of at least {_LEAST_CELLS} cells of the {plan.mask_size} x {plan.mask_size} logits"
    mend = "raise image_size or largest_target, or leave out small masks"
    raise DataError(explain(came, expected, mend))


def _prompted(
    masked: MaskedImage, plan: BatchPlan, rng: np.random.Generator, donors: Callable[[], list[Bool[ndarray, "h w"]]]
) -> PromptBatch | None:
    """The image augmented, with up to ``num_targets`` of its masks; None where none of those drawn can be used."""
    window = crop_window(masked.image.shape[:2], plan.augmentation, rng)
    turns = int(rng.integers(4)) if plan.augmentation.rotate else 0
    mirrored = plan.augmentation.flip and rng.random() < 0.5
    order = rng.permutation(masked.num_masks)
    # Twice as many as wanted: crops cut masks off.
    count = min(2 * plan.num_targets, len(order))
    if not plan.with_meant and plan.given_share == 0:
        order = order[:count]
    masks = regions = turned(masked.read_masks(order)[:, *window], turns, mirrored)
    if masked.read_click_regions is not None:
        regions = turned(masked.read_click_regions(order)[:, *window], turns, mirrored)
    transform = ImageTransform.letterbox((masks.shape[1], masks.shape[2]), plan.image_size)
    cells = masks.sum(axis=(1, 2)) * (transform.scale_xy[0] * plan.mask_size / plan.image_size) ** 2
    usable = (cells >= _LEAST_CELLS) & (masks.mean(axis=(1, 2)) <= plan.largest_target)
    if not usable[:count].any():
        return None
    coverage = transform.masks_to_grid(torch.from_numpy(masks), (plan.mask_size, plan.mask_size))
    shown = usable & (coverage > 0.5).flatten(1).any(dim=1).numpy() & regions.any(axis=(1, 2))
    kept = np.flatnonzero(shown[:count])[: plan.num_targets]
    if not len(kept):
        return None
    count = len(kept)
    scale = torch.tensor(transform.scale_xy)  # as segmenters carry prompts into the frame
    points = np.stack([_uniform_pixel(region, rng) for region in regions[kept]])
    meant, meant_chance = _meant(coverage > 0.5, shown, regions, points) if plan.with_meant else (None, None)
    boxes = mask_boxes(torch.from_numpy(masks[kept]))
    batch = PromptBatch(
        images=_framed(turned(masked.image[None, *window], turns, mirrored)[0], transform, plan, rng)[None],
        valid=(transform.grid_valid((plan.mask_size, plan.mask_size)) >= 0.5)[None],
        image_index=torch.zeros(count, dtype=torch.int64),
        targets=coverage[torch.from_numpy(kept)],
        points_xy=(torch.from_numpy(points) * scale).float(),
        boxes_xyxy=(boxes * scale.repeat(2)).float(),
        box_chance=torch.from_numpy(rng.random(count, dtype=np.float32)),
        box_shift=torch.from_numpy(rng.standard_normal((count, 4))).float(),
        click_chance=torch.from_numpy(rng.random((count, plan.num_clicks, 4), dtype=np.float32)),
        pause_chance=0.0,
        meant=meant,
        meant_chance=meant_chance,
    )
    if plan.given_share > 0:  # after all other chance, which stays as it is without
        asked = draw_given_masks(
            masks,
            kept,
            donors,
            (plan.image_size, plan.mask_size),
            rng,
            share=plan.given_share,
            most=plan.given_targets,
        )
        batch = replace(batch, given=asked.given, given_logits=asked.logits, given_xy=asked.points_xy)
    return batch


def _donors(source: MaskSource, index: int, rng: np.random.Generator) -> list[Bool[ndarray, "h w"]]:
    """Masks of another image than that one; none where there is no other, or it can't be read."""
    if len(source) == 1:
        return []
    place = (index + 1 + int(rng.integers(len(source) - 1))) % len(source)
    try:
        other = source[place]
        return [mask for mask in other.read_masks(rng.permutation(other.num_masks)[:_DONORS]) if mask.any()]
    except (ImageReadError, DataError):  # the image that asks is whole; this one is told of when it is drawn itself
        return []


def _meant(
    cells: Bool[Tensor, "N g g"],
    shown: Bool[ndarray, " N"],
    regions: Bool[ndarray, "N H W"],
    points: Int64[ndarray, "K 2"],
) -> tuple[Bool[Tensor, "K A g g"], Float[Tensor, "K A"]]:
    """For each click the masks that it may have meant, most probable first, and how probable each one is.

    Targets are drawn alike and a click uniformly in its region, so that given the click the chance of a mask is as one
    over its region's area.
    """
    under = regions[:, points[:, 1], points[:, 0]].T / np.maximum(regions.sum(axis=(1, 2)), 1) * shown
    chance = torch.from_numpy(under / under.sum(axis=1, keepdims=True)).float()
    chance, order = chance.sort(dim=1, descending=True)
    longest = int((chance > 0).sum(dim=1).max())
    return cells[order[:, :longest]], chance[:, :longest].contiguous()


def _framed(
    image: UInt8[ndarray, "H W 3"], transform: ImageTransform, plan: BatchPlan, rng: np.random.Generator
) -> Float[Tensor, "3 S S"]:
    """Resized as the segmenter does, recoloured and padded."""
    height, width = transform.resized_hw
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(resized, dtype=np.float32)
    if plan.augmentation.recolor:
        pixels = recolored(pixels, rng)
    frame = np.empty((plan.image_size, plan.image_size, 3), dtype=np.float32)
    frame[:] = plan.padding
    frame[:height, :width] = pixels
    return torch.from_numpy(frame).permute(2, 0, 1).contiguous()


def _uniform_pixel(region: Bool[ndarray, "H W"], rng: np.random.Generator) -> Int64[ndarray, " 2"]:
    """A pixel (x, y) of the region, each with equal chance."""
    places = np.flatnonzero(region)
    row, column = divmod(int(places[int(rng.integers(len(places)))]), region.shape[1])
    return np.array([column, row])
