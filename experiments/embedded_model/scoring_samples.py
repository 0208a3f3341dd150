"""What the networks that correct the predicted IoU see of a prompt, and what they shall say of it.

The masks no longer change then, so each prompt is decoded once, and what is seen of it (the geometry of its masks, and
what the head says) is kept: a prompt costs next to nothing as often as it is shown. In a phase of training it costs an
image.
"""

from __future__ import annotations

import hashlib
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ceilings import clicks
from numpy import ndarray
from parts import in_parts
from phases import FRAME, SIDES
from torch import Tensor

import arrcoc_sam as aa
from arrcoc_sam.masks import mask_boxes, pairwise_iou
from arrcoc_sam.prompts import sample_error_clicks
from arrcoc_sam.quality import AnnotatedImage
from arrcoc_sam.quality.calibration_samples import degrade_masks
from arrcoc_sam.scenes import TEST_V1, Scene, generate_scene
from arrcoc_sam.segmenters.mask_scoring import MaskScoring, mask_geometry
from arrcoc_sam.segmenters.tiny import set_image_size
from arrcoc_sam.segmenters.weights import read_weights
from arrcoc_sam.training.recipe import ClickRecipe

SCENES = {
    "plain": range(30_000, 33_500),
    "rich": range(1_008_000, 1_008_450),
    "natural": range(1_207_000, 1_207_450),
}
"""Seeds of scenes that the masks were not trained on."""

CORRECTED, LAST_CLICK = 2, 5
"""Every so many scenes clicks go on, up to so many."""

GIVEN = 0.25
"""Share of the nodes that a mask of somebody else's stands for, too."""

RECIPE = ClickRecipe()
"""How boxes are asked."""


class Seen(NamedTuple):
    """Prompts, what is seen of each, and what is true of its masks: IoU with the node that is meant, and others."""

    geometry: ndarray
    predicted_iou: ndarray
    expected_iou: ndarray
    nearest_iou: ndarray
    """IoU with the node under the click that each mask fits best."""


def all_seen(weights: Path) -> dict[str, Seen]:
    """What these weights answer to every scene, by network; kept beside them for the next time."""
    asked = hashlib.sha256(Path(__file__).read_bytes() + repr((SIDES, FRAME)).encode())
    for name, value in sorted(read_weights(weights).items()):  # a file's header has no order
        asked.update(name.encode() + value.numpy().tobytes())
    folder = weights.with_name(f"{weights.stem}-seen-{asked.hexdigest()[:12]}")
    scenes = [(style, seed) for style, seeds in SCENES.items() for seed in seeds]
    columns = in_parts(partial(see, weights), scenes, folder, size=50)
    return {name: Seen(*(columns[f"{name}/{field}"] for field in Seen._fields)) for name in ("single", "several")}


@torch.no_grad()
def see(weights: Path, scene: tuple[str, int]) -> dict[str, ndarray]:
    """A prompt for each node of a scene, for some of them foreign masks, too, and in some scenes further clicks.

    Returns:
        Fields of :class:`Seen`, one row a prompt, as ``network/field``.
    """
    style, seed = scene
    drawn, rng = generate_scene(seed, SIDES.get(style, TEST_V1.size), style=style), np.random.default_rng(seed)
    segmenter = uncorrected(weights)
    embedding = segmenter.encode(drawn.image)
    first, chosen = clicks_and_boxes(segmenter, embedding, drawn, rng)
    seen = {"several": [first], "single": []}
    some = rng.random(len(drawn.masks)) < GIVEN
    if some.any():
        given = foreign_masks(segmenter, embedding, drawn, some)
        for name, part in given.items():
            seen[name].append(part)
    if seed % CORRECTED == 0 and len(chosen.nodes):
        seen["single"] += corrections(segmenter, embedding, chosen)
    width = mask_geometry(torch.zeros(1, 1, 1, 1)).shape[1]
    nothing = Seen(*(np.zeros((0, size), np.float32) for size in (width, 1, 1, 1)))
    return {
        f"{name}/{field}": np.concatenate(column)
        for name, parts in seen.items()
        for field, column in zip(Seen._fields, zip(*(parts or [nothing]), strict=True), strict=True)
    }


def seen_of(logits: Tensor, predicted_iou: Tensor, expected: Tensor, nearest: Tensor) -> Seen:
    columns = mask_geometry(logits), predicted_iou, expected, nearest
    return Seen(*(values.float().numpy() for values in columns))  # tensors would travel by open files


class Chosen(NamedTuple):
    """Clicks that go on: in which node, where, and the mask that is corrected."""

    nodes: Tensor
    points: Tensor
    shown: Tensor
    logits: Tensor


def clicks_and_boxes(
    segmenter: aa.Segmenter, embedding: Any, drawn: Scene, rng: np.random.Generator
) -> tuple[Seen, Chosen]:
    """One click in each node of a scene, as the protocol draws them, or its box, which can mean nothing else."""
    nodes, chance, places = clicks(drawn)
    boxed = torch.from_numpy(rng.random(len(nodes)) < RECIPE.box_probability)
    prompts = aa.Prompts(
        points_xy=places[:, None].astype(np.float64),
        labels=torch.where(boxed, -1, 1)[:, None],
        boxes_xyxy=noisy_boxes(nodes, rng).masked_fill(~boxed[:, None], torch.nan),
    )
    chance = torch.where(boxed[:, None], torch.eye(len(nodes)), chance)
    candidates = segmenter.decode(embedding, prompts, multimask=True)
    masks = candidates.masks()
    each = pairwise_iou(masks, nodes.expand(len(nodes), -1, -1, -1)).nan_to_num(0.0)
    expected = (each * chance[:, None]).sum(dim=2)
    nearest = each.masked_fill(chance[:, None] == 0, 0.0).amax(dim=2)
    rows = (~boxed).nonzero()[:, 0]
    best = expected[rows].argmax(dim=1)  # about what the protocol shows, once the head is good
    points = torch.from_numpy(places[:, None].astype(np.float64))
    chosen = Chosen(nodes[rows], points[rows], masks[rows, best], candidates.logits[rows, best])
    return seen_of(candidates.logits, candidates.predicted_iou, expected, nearest), chosen


def corrections(segmenter: aa.Segmenter, embedding: Any, chosen: Chosen) -> list[Seen]:
    """Further clicks in the middle of what is wrong, answered by one mask."""
    nodes, points, shown, logits = chosen
    labels = torch.ones(len(nodes), 1, dtype=torch.int64)
    seen = []
    for _ in range(LAST_CLICK - 1):
        places, kinds = sample_error_clicks(shown, nodes, strategy="center")
        points = torch.cat([points, places[:, None].nan_to_num(0.0)], dim=1)
        labels = torch.cat([labels, kinds[:, None]], dim=1)
        prompts = aa.Prompts(points_xy=points, labels=labels, mask_logits=logits)
        candidates = segmenter.decode(embedding, prompts, multimask=False)
        shown, logits = candidates.masks()[:, 0], candidates.logits[:, 0]
        iou = pairwise_iou(shown[:, None], nodes[:, None])[:, 0].nan_to_num(0.0)
        seen.append(seen_of(candidates.logits, candidates.predicted_iou, iou, iou))
    return seen


def foreign_masks(segmenter: aa.Segmenter, embedding: Any, drawn: Scene, some: ndarray) -> dict[str, Seen]:
    """Masks that are right, or wrong in one of the ways that the scene allows, each asked with a point inside."""
    annotated = AnnotatedImage(f"{drawn.version}-{drawn.seed}", drawn.image, drawn.masks, drawn.levels)
    made = degrade_masks(annotated).masks[some]
    nodes = torch.from_numpy(np.ascontiguousarray(drawn.masks[some]))
    candidates = segmenter.decode(embedding, aa.Prompts.from_masks(made, segmenter, "mask+point"), multimask="all")
    iou = pairwise_iou(candidates.masks(), nodes[:, None])[:, :, 0].nan_to_num(0.0)
    tokens = {"single": slice(0, 1), "several": slice(1, None)}
    return {
        name: seen_of(candidates.logits[:, at], candidates.predicted_iou[:, at], iou[:, at], iou[:, at])
        for name, at in tokens.items()
    }


def noisy_boxes(nodes: Tensor, rng: np.random.Generator) -> Tensor:
    """Boxes whose corners moved as in training."""
    boxes, frame = mask_boxes(nodes), nodes.shape[-1]
    noise = (
        torch.from_numpy(rng.normal(size=boxes.shape)) * RECIPE.box_noise * (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    )
    limit = RECIPE.box_noise_limit * frame
    return (boxes + noise.clamp(-limit, limit)).clamp(0, frame - 1)


@cache
def uncorrected(weights: Path) -> aa.Segmenter:
    """The segmenter at its size, with the head's own predictions."""
    segmenter: Any = aa.load_segmenter("tiny", checkpoint=weights, device="cpu")
    set_image_size(segmenter.model, FRAME)
    scoring = segmenter.model.mask_decoder.mask_scoring
    for name, count in (("single", 1), ("several", segmenter.model.mask_decoder.num_multimask_outputs)):
        scoring[name] = MaskScoring(count).eval()
    return segmenter
