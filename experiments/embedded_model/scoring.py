"""Fits the network that corrects the predicted IoU of the three masks of a first prompt, once the masks are there.

The masks no longer change then, so each click is decoded once, and what the network sees of it (the geometry of the
three masks, and what the head says) is kept: a click costs next to nothing as often as it is shown. In a phase of
training it costs an image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ceilings import clicks
from numpy import ndarray
from torch import Tensor

import arrcoc_sam as aa
from arrcoc_sam.masks import mask_boxes, pairwise_iou
from arrcoc_sam.quality.click_protocol import ANY_NODE_TOLERANCE
from arrcoc_sam.scenes import TEST_V1, generate_scene
from arrcoc_sam.segmenters.mask_scoring import MaskScoring, mask_geometry
from arrcoc_sam.segmenters.tiny import set_image_size
from arrcoc_sam.training.recipe import ClickRecipe

FRAME = 320
"""Side of the frame that the model ships with: objects are seen larger than in most of training."""

SCENES = {
    "plain": range(30_000, 37_200),
    "rich": range(1_008_000, 1_009_800),
    "lifelike": range(1_112_000, 1_112_900),
}
"""Seeds of scenes that the masks were not trained on."""

RECIPE = ClickRecipe()
"""How boxes are asked."""

EPOCHS, CLICKS_A_STEP, RATE, WEIGHT_DECAY = 40, 128, 2e-3, 1e-2

REGRET_WEIGHT, MISS_WEIGHT, CHOICE_TEMPERATURE = 0.1, 0.05, 0.05
"""Weights, beside the squared error, of the IoU that is lost by choosing a mask by what is said of it, and of the
chance that another mask fits what is under the click better; and how much higher, in IoU, what is said of one mask has
to be than of another for it to be chosen by odds of e to 1."""


class Seen(NamedTuple):
    """Clicks, what the network sees of each, and what it shall say."""

    geometry: ndarray
    predicted_iou: ndarray
    expected_iou: ndarray
    nearest_iou: ndarray
    """IoU with the node under the click that each mask fits best."""


def start_worker() -> None:
    """One thread a process: several small models side by side are faster than one on all cores."""
    torch.set_num_threads(1)


def fit_scoring(weights: Path, pool: Executor, progress: Callable[[int, int], None]) -> MaskScoring:
    """A new network for the three masks of a first prompt, fitted to what these weights answer."""
    return fitted(all_seen(weights, pool, progress))


def all_seen(weights: Path, pool: Executor, progress: Callable[[int, int], None]) -> Seen:
    """What these weights answer to every scene; kept beside them for the next time."""
    plan = f"{FRAME} {SCENES} {RECIPE}".encode() + weights.read_bytes()
    kept = weights.with_name(f"{weights.stem}-seen-{hashlib.sha256(plan).hexdigest()[:12]}.npz")
    if not kept.is_file():
        seeds = [(style, seed) for style, range_ in SCENES.items() for seed in range_]
        parts = []
        for part in pool.map(partial(see, weights), seeds, chunksize=20):
            parts.append(part)
            progress(len(parts), len(seeds))
        temporary = kept.with_suffix(".tmp.npz")
        np.savez(temporary, **{name: np.concatenate([getattr(part, name) for part in parts]) for name in Seen._fields})
        temporary.replace(kept)
    with np.load(kept) as arrays:
        return Seen(*(arrays[name] for name in Seen._fields))


def fitted(seen: Seen, seed: int = 0, miss_weight: float = MISS_WEIGHT) -> MaskScoring:
    """A network whose squared error is small, and what is lost by choosing the mask that it says is best."""
    torch.manual_seed(seed)
    geometry, predicted_iou, expected_iou, nearest_iou = (torch.from_numpy(values) for values in seen)
    network = MaskScoring(seen.expected_iou.shape[1])
    total = EPOCHS * (len(seen.expected_iou) // CLICKS_A_STEP)
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=total)
    for rows in batches(len(seen.expected_iou)):
        said = network(geometry[rows], predicted_iou[rows])
        wanted = expected_iou[rows]
        loss = (said - wanted).square().mean() + REGRET_WEIGHT * regret(said, wanted)
        loss = loss + miss_weight * miss(said, nearest_iou[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def regret(said: Tensor, expected_iou: Tensor) -> Tensor:
    """The mean IoU by which the best of the masks is better than one chosen by what is said of them."""
    chosen = (said / CHOICE_TEMPERATURE).softmax(dim=1)
    return (expected_iou.amax(dim=1) - torch.linalg.vecdot(chosen, expected_iou)).mean()


def miss(said: Tensor, nearest_iou: Tensor) -> Tensor:
    """The chance that a mask chosen by what is said counts as wrong in the protocol's selection accuracy."""
    wrong = nearest_iou < nearest_iou.amax(dim=1, keepdim=True) - ANY_NODE_TOLERANCE
    return torch.linalg.vecdot((said / CHOICE_TEMPERATURE).softmax(dim=1), wrong.to(said.dtype)).mean()


def batches(count: int) -> Iterator[Tensor]:
    """Rows, shuffled, each once an epoch but for those that fill no batch."""
    for _ in range(EPOCHS):
        yield from torch.randperm(count)[: count - count % CLICKS_A_STEP].split(CLICKS_A_STEP)


@torch.no_grad()
def see(weights: Path, scene: tuple[str, int]) -> Seen:
    """One click in each node of a scene, as the protocol draws them, or its box, which can mean nothing else."""
    style, seed = scene
    drawn = generate_scene(seed, TEST_V1.size, style=style)
    nodes, chance, places = clicks(drawn)
    rng = np.random.default_rng(seed)
    boxed = torch.from_numpy(rng.random(len(nodes)) < RECIPE.box_probability)
    prompts = aa.Prompts(
        points_xy=places[:, None].astype(np.float64),
        labels=torch.where(boxed, -1, 1)[:, None],
        boxes_xyxy=noisy_boxes(nodes, rng).masked_fill(~boxed[:, None], torch.nan),
    )
    chance = torch.where(boxed[:, None], torch.eye(len(nodes)), chance)
    segmenter = uncorrected(weights)
    candidates = segmenter.decode(segmenter.encode(drawn.image), prompts, multimask=True)
    each = pairwise_iou(candidates.masks(), nodes.expand(len(nodes), -1, -1, -1)).nan_to_num(0.0)
    expected = (each * chance[:, None]).sum(dim=2)
    nearest = each.masked_fill(chance[:, None] == 0, 0.0).amax(dim=2)
    seen = mask_geometry(candidates.logits), candidates.predicted_iou.float(), expected.float(), nearest.float()
    return Seen(*(values.numpy() for values in seen))  # tensors would travel by open files


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
    decoder = segmenter.model.mask_decoder
    decoder.mask_scoring["several"] = MaskScoring(decoder.num_multimask_outputs).eval()
    return segmenter
