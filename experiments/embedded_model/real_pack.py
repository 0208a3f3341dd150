"""The shipped weights on human triples of real photographs, beside a disc that knows only the size."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import arrcoc_sam as aa
from arrcoc_sam.masks import pairwise_iou
from arrcoc_sam.masks.rle import decode_rle
from arrcoc_sam.scenes import LEVEL_NAMES

ROOT = Path(__file__).parents[2]


def real_pack(segmenter: aa.Segmenter, pack: Path) -> dict[str, Any]:
    """Oracle and automatic IoU of one click on human triples, by source and level, beside a disc of the true area."""
    manifest = json.loads((pack / "manifest.json").read_text())
    images = {image["id"]: image for image in manifest["images"]}
    masks = {mask["id"]: mask for mask in manifest["masks"]}
    rows = []
    for triple in (t for t in manifest["triples"] if t["levels"] == 3):
        image = images[triple["image_id"]]
        truth = torch.stack([decode_rle(masks[triple["masks"][level]]["segmentation"]) for level in LEVEL_NAMES])
        embedding = segmenter.encode(pack / image["file"])
        prompts = aa.Prompts(points_xy=[[triple["point"]]], labels=[[1]])
        candidates = segmenter.decode(embedding, prompts)
        iou = pairwise_iou(candidates.masks(), truth[None])[0].nan_to_num(0.0)
        chosen = int(candidates.predicted_iou[0].argmax())
        for index, level in enumerate(LEVEL_NAMES):
            rows.append(
                {
                    "source": image["source"],
                    "level": level,
                    "oracle": float(iou[:, index].max()),
                    "automatic": float(iou[chosen, index]),
                    "disc": disc_iou(truth[index].numpy(), triple["point"]),
                }
            )
    table = pd.DataFrame(rows)
    means = table.groupby(["source", "level"])[["oracle", "automatic", "disc"]].mean().round(4)
    return {
        source: {"triples": int((table["source"] == source).sum() // 3)}
        | {level: means.loc[(source, level)].to_dict() for level in LEVEL_NAMES}
        for source in sorted(table["source"].unique())
    }


def disc_iou(mask: np.ndarray, point: list[float]) -> float:
    """IoU of a mask with a disc of its area around a point: what knowing the size alone gives."""
    y, x = np.mgrid[: mask.shape[0], : mask.shape[1]]
    disc = (x - point[0]) ** 2 + (y - point[1]) ** 2 <= mask.sum() / np.pi
    return float((disc & mask).sum() / (disc | mask).sum())


def data_folder() -> Path:
    """The evaluation data that lies beside a checkout, or where ARRCOC_SAM_DATA says."""
    return Path(os.environ.get("ARRCOC_SAM_DATA", ROOT.parent / "shared" / "data"))
