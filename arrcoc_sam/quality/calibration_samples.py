"""What a calibration is fitted on: true masks made wrong in known ways, scored, with their actual IoU."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool
from numpy import ndarray

from arrcoc_sam.errors import InputError, explain
from arrcoc_sam.masks import mask_iou, pairwise_iou
from arrcoc_sam.quality.click_protocol import AnnotatedImage
from arrcoc_sam.quality.degradations import DEGRADATIONS, degrade, mask_context
from arrcoc_sam.quality.estimator import MaskQualityEstimator

__all__ = ["CLEAN", "DegradedImage", "calibration_samples", "degrade_masks"]

CLEAN = "none"
"""The kind of masks that are left as they were."""

_NUM_DONORS = 24


@dataclass(frozen=True, eq=False)
class DegradedImage:
    """Masks of one image, some made wrong.

    Attributes:
        masks: (K, H, W) bool, none empty.
        table: One row a mask: ``image``, ``node`` (index of the true mask), ``level``, ``kind``, ``severity`` (0 for
            clean ones), ``actual_iou`` with the true mask, ``nearest_iou`` with whichever true mask of the image is
            nearest: all that image and mask alone could tell.
    """

    masks: Bool[ndarray, "K H W"]
    table: pd.DataFrame


def degrade_masks(
    annotated: AnnotatedImage, *, donors: Sequence[ndarray] = (), per_mask: int = 1, seed: int = 0
) -> DegradedImage:
    """Each true mask of an image ``per_mask`` times: left clean, or made wrong in a way that its context allows.

    Clean and each kind have equal chances, severities are uniform in (0, 1].

    Args:
        annotated: Image and true masks.
        donors: Masks of other images, for "paste".
        per_mask: Samples of each true mask.
        seed: Each image has its own stream.
    """
    stream = zlib.crc32(annotated.name.encode())
    rng = np.random.default_rng([seed, stream])
    masks, rows = [], []
    for node, truth in enumerate(annotated.masks):
        context = mask_context(annotated.masks, node, donors)
        for sample in range(per_mask):
            kind = (CLEAN, *context.kinds)[int(rng.integers(1 + len(context.kinds)))]
            severity = 0.0 if kind == CLEAN else 1.0 - float(rng.random())
            mask = truth
            if kind in DEGRADATIONS:
                mask = degrade(truth, kind, severity, context=context, seed=[seed, stream, node, sample])
            masks.append(mask)
            rows.append(
                {
                    "image": annotated.name,
                    "node": node,
                    "level": int(annotated.levels[node]),
                    "kind": kind,
                    "severity": severity,
                    "actual_iou": float((mask & truth).sum() / (mask | truth).sum()),
                }
            )
    made = np.stack(masks)
    nearest = pairwise_iou(made, annotated.masks).amax(dim=1).double().numpy()
    return DegradedImage(made, pd.DataFrame(rows).assign(nearest_iou=nearest))


@torch.no_grad()
def calibration_samples(
    estimators: Mapping[str, MaskQualityEstimator],
    images: Iterable[AnnotatedImage],
    *,
    per_mask: int = 1,
    seed: int = 0,
    progress: Callable[[], None] | None = None,
) -> dict[str, pd.DataFrame]:
    """Degraded masks of many images, scored by several estimators of one segmenter, each image encoded once.

    Args:
        estimators: By name, without calibration.
        images: Annotated images, streamed; names differ. The masks of the last ones seen are pasted into the next.
        per_mask: Samples of each true mask.
        seed: Of the degradations.
        progress: Called after each image.

    Returns:
        For each estimator one row a mask: the columns of :class:`DegradedImage` and of :meth:`MaskQuality.to_frame`;
        and, of estimators that keep the closest candidates, ``oracle_iou``, the candidate's IoU with the true mask:
        what the head should have predicted.

    Raises:
        InputError: No estimator, estimators of several segmenters or with a calibration, or no image.
    """
    segmenters = {id(estimator.segmenter): estimator.segmenter for estimator in estimators.values()}
    if len(segmenters) != 1 or any(estimator.calibration is not None for estimator in estimators.values()):
        came = f"{len(estimators)} estimators of {len(segmenters)} segmenters"
        raise InputError(explain(came, "estimators of one segmenter, without calibration"))
    (segmenter,) = segmenters.values()
    donors: deque[ndarray] = deque(maxlen=_NUM_DONORS)
    parts: dict[str, list[pd.DataFrame]] = {name: [] for name in estimators}
    for annotated in images:
        if len(annotated.masks):
            degraded = degrade_masks(annotated, donors=tuple(donors), per_mask=per_mask, seed=seed)
            embedding = segmenter.encode(annotated.image)
            for name, estimator in estimators.items():
                quality = estimator.estimate(embedding, degraded.masks)
                frame = pd.concat([degraded.table, quality.to_frame()], axis=1)
                if len(quality.best_sam_masks):
                    truths = torch.from_numpy(annotated.masks)[frame["node"].tolist()]
                    closest = zip(quality.best_sam_masks, truths, strict=True)
                    frame["oracle_iou"] = [float(mask_iou(mask, truth)) for mask, truth in closest]
                parts[name].append(frame)
            donors.extend(annotated.masks)
        if progress is not None:
            progress()
    if not all(parts.values()):
        raise InputError(explain("no image with a mask", "at least one annotated image"))
    return {name: pd.concat(frames, ignore_index=True) for name, frames in parts.items()}
