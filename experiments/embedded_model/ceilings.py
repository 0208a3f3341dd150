"""What a perfect IoU head could make of the model's masks, and of perfect ones; and what the resolution does.

uv run python experiments/embedded_model/ceilings.py                  # ceilings.json, about three minutes on one core
uv run python experiments/embedded_model/ceilings.py --weights FILE   # of weights that do not ship yet; only shown

One click is ambiguous: a node of the chain under it is meant with a chance that falls with its area, as the protocol
draws clicks. A head that knew all of that could predict for each mask the expected IoU, and no more. It is asked here
in the place of the model's own head; on the model's masks at several sizes of the frame; and on the true masks of the
nodes under the click, where a prompt with fewer than three nodes leaves masks over: not counted, a repetition of the
likeliest node, or empty.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from rich.progress import track
from torch import Tensor

import arrcoc_sam as aa
from arrcoc_sam.masks import pairwise_iou
from arrcoc_sam.quality.click_protocol import ANY_NODE_TOLERANCE
from arrcoc_sam.scenes import TEST_V1, VALIDATION_SEEDS, Scene, generate_scene
from arrcoc_sam.segmenters.tiny import set_image_size

HERE = Path(__file__).parent
SEEDS = range(VALIDATION_SEEDS.start + 100_000, VALIDATION_SEEDS.start + 100_060)
SIZES = (320, 352, 384, 416, 448)
NUM_MASKS = 3


def main() -> None:
    """Every figure, into ceilings.json where they are of the shipped weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="whose figures; those that ship by default")
    weights = parser.parse_args().weights
    scenes = [generate_scene(seed, TEST_V1.size) for seed in SEEDS]
    segmenter: Any = aa.load_segmenter("tiny", checkpoint=weights, device="cpu")
    found: dict[str, Any] = {
        "scenes": len(scenes),
        "prompts": sum(len(scene.masks) for scene in scenes),
        "checkpoint_hash": segmenter.checkpoint_hash,
        "perfect masks": perfect(scenes),
    }
    for size in SIZES:
        set_image_size(segmenter.model, size)
        parts = [asked(segmenter, scene) for scene in track(scenes, f"{size} px")]
        iou, any_iou, expected, predicted = (np.concatenate(column) for column in zip(*parts, strict=True))
        found[f"frame of {size} px"] = {
            "oracle": rounded(iou.max(axis=1).mean()),
            "the model's head": figures(predicted, iou, any_iou),
            "expected IoU": figures(expected, iou, any_iou),
        }
    if weights is None:
        (HERE / "ceilings.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


def clicks(scene: Scene) -> tuple[Tensor, Tensor, ndarray]:
    """Masks (n, H, W), the chance (n, n) that a click in one node means another, and the clicks (n, 2), one a node."""
    rng = np.random.default_rng(scene.seed)
    nodes = torch.from_numpy(np.ascontiguousarray(scene.masks))
    pixels = [np.argwhere(mask) for mask in scene.masks]
    places = np.stack([some[rng.integers(len(some)), ::-1] for some in pixels])
    under = torch.stack([nodes[:, y, x] for x, y in places])
    chance = under / nodes.flatten(1).sum(dim=1)
    return nodes, chance / chance.sum(dim=1, keepdim=True), places


@torch.no_grad()
def asked(segmenter: aa.Segmenter, scene: Scene) -> tuple[ndarray, ...]:
    """IoU with the target, the best IoU with a node under the click, expected and predicted IoU: (n, 3) each."""
    nodes, chance, places = clicks(scene)
    prompts = aa.Prompts(points_xy=places[:, None].astype(np.float64), labels=np.ones((len(nodes), 1), np.int64))
    candidates = segmenter.decode(segmenter.encode(scene.image), prompts, multimask=True)
    each = pairwise_iou(candidates.masks(), nodes.expand(len(nodes), -1, -1, -1)).nan_to_num(0.0)
    return (*judged(each, chance), candidates.predicted_iou.double().numpy())


def judged(each: Tensor, chance: Tensor) -> tuple[ndarray, ndarray, ndarray]:
    """The first three of :func:`asked`, of the IoU (n, 3, n) of masks with nodes."""
    target = torch.arange(len(each))
    any_iou = each.masked_fill(chance[:, None] == 0, 0.0).amax(dim=2)
    expected = (each.double() * chance[:, None]).sum(dim=2)
    return each[target, :, target].double().numpy(), any_iou.double().numpy(), expected.numpy()


def perfect(scenes: list[Scene]) -> dict[str, Any]:
    """Figures of true masks with their expected IoU, by what the masks are that are left over."""
    kinds: dict[str, list[tuple[ndarray, ...]]] = {"left out": [], "the likeliest again": [], "empty": []}
    nodes_under: list[ndarray] = []
    for scene in scenes:
        nodes, chance, _ = clicks(scene)
        between = torch.cat([pairwise_iou(nodes, nodes), torch.zeros(1, len(nodes))])  # the last: an empty mask
        known = torch.nn.functional.pad(chance, (0, NUM_MASKS))  # a scene may have fewer nodes than there are masks
        order, empty = known.argsort(dim=1, descending=True, stable=True)[:, :NUM_MASKS], len(nodes)
        spare = known.gather(1, order) == 0
        nodes_under.append((~spare).sum(dim=1).numpy())
        for kind, instead in (("left out", empty), ("the likeliest again", order[:, :1]), ("empty", empty)):
            chosen = torch.where(spare, torch.as_tensor(instead), order)
            weight = (~spare if kind == "left out" else torch.ones_like(spare)).numpy()
            kinds[kind].append((*judged(between[chosen], chance), weight))
    results: dict[str, Any] = {
        f"prompts with {count} nodes": rounded((np.concatenate(nodes_under) == count).mean())
        for count in range(1, NUM_MASKS + 1)
    }
    for kind, parts in kinds.items():
        iou, any_iou, expected, counted = (np.concatenate(column) for column in zip(*parts, strict=True))
        results[f"spare masks {kind}"] = figures(expected, iou, any_iou, counted)
    return results


def figures(score: ndarray, iou: ndarray, any_iou: ndarray, counted: ndarray | None = None) -> dict[str, float]:
    """What choosing by a score gives, and its correlation with the IoU."""
    rows, chosen = np.arange(len(iou)), score.argmax(axis=1)
    some = np.ones(score.shape, dtype=bool) if counted is None else counted
    return {
        "automatic": rounded(iou[rows, chosen].mean()),
        "selection": rounded((any_iou[rows, chosen] >= any_iou.max(axis=1) - ANY_NODE_TOLERANCE).mean()),
        "pearson": rounded(np.corrcoef(score[some], iou[some])[0, 1]),
    }


def rounded(value: Any) -> float:
    return round(float(value), 4)


if __name__ == "__main__":
    main()
