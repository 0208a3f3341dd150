"""One click on nested objects, and more: how well a segmenter answers, and whether its IoU head knows.

For every annotated node of every image one click is drawn uniformly in it and three masks are asked for. *Oracle* is
the best IoU of the three with that node, *automatic* the IoU of the one with the highest predicted IoU. One click on
nested objects is ambiguous by nature, no head can know which level was meant: so selection counts as right when the
chosen mask fits *any* annotated node under the click about as well as the best of the three does. Then the prediction
is corrected, click after click, the previous logits fed back, and judged against the node itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float64, Int, UInt8
from numpy import ndarray
from torch import Tensor

from arrcoc_sam.errors import InputError, explain
from arrcoc_sam.masks import pairwise_iou
from arrcoc_sam.prompts import Prompts
from arrcoc_sam.prompts.clicks import sample_error_clicks
from arrcoc_sam.scenes.scene import LEVEL_NAMES
from arrcoc_sam.segmenters.base import Segmenter
from arrcoc_sam.segmenters.embedding import ImageEmbedding

__all__ = ["AnnotatedImage", "ClickReport", "click_image", "evaluate_clicks", "summarize_clicks"]

ANY_NODE_TOLERANCE = 0.05
"""How far below the best of the three a chosen mask may be and still count as right, by whichever node under the click
each fits best.

``selection_accuracy`` of :class:`~arrcoc_sam.quality.iou_head.IoUHeadReport` is stricter: within .01, by the node that
was meant (:data:`~arrcoc_sam.quality.head_metrics.TARGET_TOLERANCE`).
"""


@dataclass(frozen=True)
class AnnotatedImage:
    """An image with the masks of its nodes.

    Attributes:
        name: What the table calls it.
        image: (H, W, 3) uint8 RGB.
        masks: (n, H, W) bool, none empty.
        levels: (n,) 0 whole, 1 part, 2 subpart.
    """

    name: str
    image: UInt8[ndarray, "H W 3"]
    masks: Bool[ndarray, "n H W"]
    levels: Int[ndarray, " n"]


@dataclass(frozen=True)
class ClickReport:
    """Figures over all nodes of a set of images.

    Attributes:
        nodes: One row a node: image, level, area, click, the three IoUs and predictions, and those of later clicks.
        summary: Named figures; every one a float, except the counts.
    """

    nodes: pd.DataFrame
    summary: dict[str, Any]


def evaluate_clicks(
    segmenter: Segmenter, images: Iterable[AnnotatedImage], *, clicks: Sequence[int] = (1, 3), seed: int = 0
) -> ClickReport:
    """Runs the protocol over images.

    Args:
        segmenter: What is judged.
        images: Annotated images, streamed.
        clicks: After how many clicks to judge, ascending; 1 is always there.
        seed: Of the clicks; each image has its own stream, so that a subset gives the same rows.

    Returns:
        Table and summary.

    Raises:
        InputError: No image, or ``clicks`` not ascending from 1.
    """
    if list(clicks) != sorted(set(clicks)) or not clicks or clicks[0] != 1:
        raise InputError(explain(f"clicks = {clicks!r}", "ascending whole numbers that begin with 1"))
    frames = [click_image(segmenter, image, clicks=clicks, seed=seed) for image in images]
    if not frames:
        raise InputError(explain("images is empty", "at least one annotated image"))
    nodes = pd.concat(frames, ignore_index=True)
    return ClickReport(nodes, summarize_clicks(nodes))


@torch.no_grad()
def click_image(
    segmenter: Segmenter, annotated: AnnotatedImage, *, clicks: Sequence[int] = (1, 3), seed: int = 0
) -> pd.DataFrame:
    """The rows of one image; see :func:`evaluate_clicks`."""
    rng = np.random.default_rng([seed, *annotated.name.encode()])
    nodes = torch.from_numpy(np.ascontiguousarray(annotated.masks))
    points = np.stack([_uniform_pixel(mask, rng) for mask in annotated.masks])
    embedding = segmenter.encode(annotated.image)
    prompts = Prompts(points_xy=points[:, None].astype(np.float64), labels=np.ones((len(points), 1), np.int64))
    candidates = segmenter.decode(embedding, prompts, multimask=True)
    masks = candidates.masks().cpu()
    per_node = pairwise_iou(masks, nodes.expand(len(nodes), -1, -1, -1))  # (K, 3, n)
    under_click = torch.stack([nodes[:, y, x] for x, y in points])  # (K, n)
    target = torch.arange(len(nodes))
    iou = per_node[target, :, target].nan_to_num(0.0)
    best_under_click = per_node.nan_to_num(0.0).masked_fill(~under_click[:, None], 0.0).amax(dim=-1)
    columns: dict[str, Any] = {
        "image": annotated.name,
        "level": [LEVEL_NAMES[level] for level in annotated.levels],
        "area": nodes.flatten(1).float().mean(dim=1).numpy(),
        "x": points[:, 0],
        "y": points[:, 1],
        "distinct": candidates.hierarchy().distinct.all(dim=1).cpu().numpy(),
    }
    predicted = candidates.predicted_iou.float().cpu()
    for index in range(predicted.shape[1]):
        columns[f"iou_{index + 1}"] = iou[:, index].numpy()
        columns[f"predicted_{index + 1}"] = predicted[:, index].numpy()
        columns[f"any_iou_{index + 1}"] = best_under_click[:, index].numpy()
    chosen = predicted.argmax(dim=1)
    logits, shown = candidates.logits[target, chosen.to(candidates.logits.device)], masks[target, chosen]
    columns |= _corrected(segmenter, embedding, nodes, points.astype(np.float64), shown, logits, clicks)
    return pd.DataFrame(columns)


def _corrected(
    segmenter: Segmenter,
    embedding: ImageEmbedding,
    nodes: Tensor,
    clicks_xy: Float64[ndarray, "K 2"],
    shown: Tensor,
    logits: Tensor,
    clicks: Sequence[int],
) -> dict[str, Any]:
    """IoU and prediction after further clicks, each in the middle of the larger error."""
    columns: dict[str, Any] = {}
    points, labels = torch.from_numpy(clicks_xy[:, None]), torch.ones(len(nodes), 1, dtype=torch.int64)
    for count in range(2, clicks[-1] + 1):
        new_points, new_labels = sample_error_clicks(shown, nodes, strategy="center")
        points = torch.cat([points, new_points[:, None].nan_to_num(0.0)], dim=1)
        labels = torch.cat([labels, new_labels[:, None]], dim=1)
        candidates = segmenter.decode(
            embedding, Prompts(points_xy=points, labels=labels, mask_logits=logits), multimask=False
        )
        shown, logits = candidates.masks()[:, 0].cpu(), candidates.logits[:, 0]
        if count in clicks:
            iou = pairwise_iou(shown[:, None], nodes[:, None])[:, 0, 0].nan_to_num(0.0)
            predicted = candidates.predicted_iou[:, 0].float().cpu()
            columns[f"iou_after_{count}"], columns[f"predicted_after_{count}"] = iou.numpy(), predicted.numpy()
    return columns


def _uniform_pixel(mask: Bool[ndarray, "H W"], rng: np.random.Generator) -> Int[ndarray, " 2"]:
    place = np.flatnonzero(mask)
    if not len(place):
        raise InputError(explain("an annotated mask is empty", "masks with at least one pixel"))
    y, x = divmod(int(place[int(rng.integers(len(place)))]), mask.shape[1])
    return np.array([x, y])


def summarize_clicks(nodes: pd.DataFrame) -> dict[str, Any]:
    """The figures of the protocol from its table.

    Returns:
        ``num_nodes``; ``oracle_iou`` and ``automatic_iou`` after one click (means over nodes), each also by level as
        ``oracle_iou/whole`` …; ``pearson`` and ``mae`` of predicted IoU against the IoU with the target over all
        candidates; ``selection_accuracy``, the share of prompts whose mask of the highest predicted IoU fits any node
        under the click within :data:`ANY_NODE_TOLERANCE` of the best of the three (not that of
        :class:`~arrcoc_sam.quality.iou_head.IoUHeadReport`); ``distinct_share`` of prompts whose three masks are
        distinct; and for later clicks k ``iou_after_k``, ``pearson_after_k``, ``mae_after_k``.
    """
    iou, predicted, any_iou = (
        nodes[[f"{name}_{index}" for index in (1, 2, 3)]].to_numpy(np.float64)
        for name in ("iou", "predicted", "any_iou")
    )
    rows = np.arange(len(nodes))
    chosen = predicted.argmax(axis=1)
    best, automatic = iou.max(axis=1), iou[rows, chosen]
    summary: dict[str, Any] = {
        "num_nodes": len(nodes),
        "num_images": int(nodes["image"].nunique()),
        "oracle_iou": float(best.mean()),
        "automatic_iou": float(automatic.mean()),
    }
    for name in LEVEL_NAMES:
        at_level = (nodes["level"] == name).to_numpy()
        if at_level.any():
            summary[f"oracle_iou/{name}"] = float(best[at_level].mean())
            summary[f"automatic_iou/{name}"] = float(automatic[at_level].mean())
    summary["pearson"] = _pearson(predicted.ravel(), iou.ravel())
    summary["mae"] = float(np.abs(predicted - iou).mean())
    right = any_iou[rows, chosen] >= any_iou.max(axis=1) - ANY_NODE_TOLERANCE
    summary["selection_accuracy"] = float(right.mean())
    summary["distinct_share"] = float(nodes["distinct"].mean())
    for column in nodes.columns:
        if column.startswith("iou_after_"):
            count = column.removeprefix("iou_after_")
            after, guess = nodes[column].to_numpy(np.float64), nodes[f"predicted_after_{count}"].to_numpy(np.float64)
            summary[f"iou_after_{count}"] = float(after.mean())
            summary[f"pearson_after_{count}"] = _pearson(guess, after)
            summary[f"mae_after_{count}"] = float(np.abs(guess - after).mean())
    return summary


def _pearson(a: ndarray, b: ndarray) -> float:
    """Pearson's correlation; NaN when either is constant."""
    if a.std() == 0 or b.std() == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])
