"""Batches of images, target masks and first clicks, drawn from scenes with augmentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from arrcoc_sam.scenes.scene import Scene, node_masks

__all__ = ["SceneBatch", "SceneCollection", "sample_scene_batch"]


@runtime_checkable
class SceneCollection(Protocol):
    """A sized, indexable collection of scenes of one size."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Scene: ...


@dataclass(frozen=True)
class SceneBatch:
    """B images with P target masks each.

    Attributes:
        images: (B, 3, S, S) float32 RGB in [0, 255], S the model's frame.
        targets: (B, P, g, g) float32 in [0, 1]: coverage of each cell of the decoder's low resolution.
        points_xy: (B, P, 2) float32, a pixel of each target in the model's frame, zero-based indices.
        boxes_xyxy: (B, P, 4) float32, the tight box of each target in the model's frame.
    """

    images: Float[Tensor, "B 3 S S"]
    targets: Float[Tensor, "B P g g"]
    points_xy: Float[Tensor, "B P 2"]
    boxes_xyxy: Float[Tensor, "B P 4"]


def sample_scene_batch(
    scenes: SceneCollection,
    rng: np.random.Generator,
    *,
    num_images: int,
    num_targets: int,
    image_size: int,
    mask_size: int,
    crop_probability: float = 0.5,
    smallest_crop: float = 0.6,
) -> SceneBatch:
    """Draws scenes, crops and flips them, and draws target nodes and a uniform click in each.

    Nodes are drawn uniformly, so that clicks follow the measure: one click, uniform in a node, for every node alike. A
    crop has one side for the whole batch (one resize), its place differs. Nodes that a crop leaves fewer than four
    low-resolution cells of are not drawn.

    Args:
        scenes: What to draw from.
        rng: Source of randomness.
        num_images: B.
        num_targets: P.
        image_size: S, side of the model's frame in pixels.
        mask_size: g, side of the decoder's low-resolution masks.
        crop_probability: Share of the batches that are cropped.
        smallest_crop: Side of the smallest crop, as a share of the scene's.
    """
    size = scenes[0].size_hw[0]
    side = size
    if rng.random() < crop_probability:
        side = int(rng.uniform(smallest_crop, 1.0) * size)
    least = 4 * (side / mask_size) ** 2
    images: list[Tensor] = []
    masks: list[NDArray[np.bool_]] = []
    while len(images) < num_images:
        scene = scenes[int(rng.integers(len(scenes)))]
        top, left = rng.integers(0, size - side + 1, 2)
        image = scene.image[top : top + side, left : left + side]
        nodes = node_masks(scene.labels[top : top + side, left : left + side], scene.parents)
        visible = np.flatnonzero(nodes.sum(axis=(1, 2)) >= least)
        if not len(visible):
            continue
        chosen = rng.choice(visible, num_targets, replace=len(visible) < num_targets)
        image, target = _turn(image, nodes[chosen], turns=int(rng.integers(4)), flip=bool(rng.random() < 0.5))
        images.append(_recolor(torch.from_numpy(image).permute(2, 0, 1).float(), rng))
        masks.append(target)
    full = torch.from_numpy(np.stack(masks))
    points, boxes = _click_and_box(full, rng)
    scale = image_size / side
    shrunk = F.interpolate(torch.stack(images), size=(image_size, image_size), mode="bilinear", antialias=True)
    coverage = F.interpolate(full.float(), size=(mask_size, mask_size), mode="bilinear", antialias=True)
    return SceneBatch(
        shrunk.round(), coverage.clamp(0.0, 1.0), (points + 0.5) * scale - 0.5, (boxes + 0.5) * scale - 0.5
    )


def _turn(
    image: NDArray[np.uint8], masks: NDArray[np.bool_], *, turns: int, flip: bool
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """One of the eight symmetries of the square."""
    image, masks = np.rot90(image, turns, axes=(0, 1)), np.rot90(masks, turns, axes=(1, 2))
    if flip:
        image, masks = image[:, ::-1], masks[:, :, ::-1]
    return np.ascontiguousarray(image), np.ascontiguousarray(masks)


def _recolor(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Channels permuted, and half of the time gain and offset a channel."""
    image = image[torch.from_numpy(rng.permutation(3))]
    if rng.random() < 0.5:
        gain = torch.from_numpy(rng.uniform(0.7, 1.3, (3, 1, 1))).float()
        offset = torch.from_numpy(rng.uniform(-25.0, 25.0, (3, 1, 1))).float()
        image = (image * gain + offset).clamp(0.0, 255.0)
    return image


def _click_and_box(masks: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A uniform pixel of each mask and its tight box, (B, P, 2) and (B, P, 4)."""
    num_images, num_targets, height, width = masks.shape
    flat = masks.flatten(2)
    counts = flat.sum(dim=-1)
    rank = (torch.from_numpy(rng.random((num_images, num_targets))) * counts).long() + 1
    # the first place where the running count of mask pixels reaches the drawn rank
    place = torch.searchsorted(flat.cumsum(dim=-1, dtype=torch.int32), rank[..., None].int()).squeeze(-1)
    points = torch.stack([place % width, place // width], dim=-1).float()
    columns, rows = masks.any(dim=-2), masks.any(dim=-1)
    boxes = torch.stack(
        [
            columns.int().argmax(dim=-1),
            rows.int().argmax(dim=-1),
            width - 1 - columns.flip(-1).int().argmax(dim=-1),
            height - 1 - rows.flip(-1).int().argmax(dim=-1),
        ],
        dim=-1,
    ).float()
    return points, boxes
