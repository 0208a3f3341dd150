"""The training curve, and what the model answers on scenes that it never saw."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from phases import PHASES

import arrcoc_sam as aa
from arrcoc_sam.masks import pairwise_iou
from arrcoc_sam.report.panels import mark_point, outline_masks, show_image
from arrcoc_sam.scenes import TEST_V1, Scene

HERE = Path(__file__).parent


IMAGES = 16
"""Of a step, in all phases but that of a GPU."""

LABELS = {
    "mask_loss": "20 focal + Dice",
    "iou_loss": "IoU head, squared error",
    "oracle_iou": "first prompt, best of three",
    "final_iou": "last prompt, token 0",
}


def draw_figures() -> None:
    """The training curve, and what the model answers on scenes it never saw."""
    (HERE / "figures").mkdir(exist_ok=True)
    logs = [training_log(number) for number in range(1 + max(PHASES))]
    starts = np.cumsum([0, *(log["step"].iloc[-1] for log in logs[:-1])])
    log = pd.concat([part.assign(step=part["step"] + start) for part, start in zip(logs, starts, strict=True)])
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, names in ((left, ("mask_loss", "iou_loss")), (right, ("oracle_iou", "final_iou"))):
        for name, color in zip(names, ("#00204d", "#c8a300"), strict=True):
            axes.plot(log["step"], log[name], color=color, alpha=0.15, linewidth=0.8)
            axes.plot(log["step"], log[name].rolling(15, min_periods=1).mean(), color=color, label=LABELS[name])
        for boundary in starts[1:]:
            axes.axvline(boundary, color="0.6", linestyle=":", linewidth=1)
        axes.set_xlabel(f"step ({IMAGES} images); dotted: a new phase")
        axes.legend(frameon=False)
    left.set_yscale("log")
    left.set_ylabel("training loss")
    right.set_ylabel("IoU on training batches")
    right.set_ylim(0, 1)
    figure.savefig(HERE / "figures" / "training.png", dpi=110)
    samples().savefig(HERE / "figures" / "samples.png", dpi=80)


def training_log(number: int) -> pd.DataFrame:
    """The log of a phase, its steps those of 16 images."""
    log = pd.read_csv(HERE / f"training_phase{number}.csv")
    images = PHASES[number].training.stages[0].num_images if number in PHASES else IMAGES
    return log.assign(step=log["step"] * images / IMAGES)


def samples(count: int = 6) -> Figure:
    """One click on the first scenes of the test split: the annotated chain under it, and the model's three masks."""
    segmenter = aa.load_segmenter("tiny", device="cpu")
    figure = Figure(figsize=(2.4 * count, 5.2), layout="constrained")
    axes = figure.subplots(2, count)
    for column, (scene, chain) in zip(range(count), subpart_scenes(), strict=False):
        x, y = scene.sample_point(int(chain[2]), np.random.default_rng(0))
        candidates = segmenter.decode(segmenter.encode(scene.image), aa.Prompts(points_xy=[[[x, y]]], labels=[[1]]))
        truth = scene.masks[chain]
        hierarchy = candidates.hierarchy()
        best = pairwise_iou(candidates.masks(), torch.from_numpy(truth)[None])[0].amax(dim=0)
        for row, shown in enumerate((truth, hierarchy.masks[0].numpy())):
            panel = axes[row, column]
            show_image(panel, scene.image)
            outline_masks(panel, shown)
            mark_point(panel, (x, y))
        axes[1, column].set_title(" · ".join(f"{value:.2f}" for value in best), fontsize=9)
    axes[0, 0].set_title("annotated", fontsize=9, loc="left")
    figure.suptitle("One click: annotated (above), the embedded model's three masks (below) with the best IoU by level")
    return figure


def subpart_scenes() -> Iterator[tuple[Scene, np.ndarray]]:
    """Scenes of the test split with a subpart, and the chain of the largest: whole, part, subpart."""
    for scene in TEST_V1:
        chains = scene.triples()
        if len(chains):
            yield scene, chains[scene.masks[chains[:, 2]].sum(axis=(1, 2)).argmax()]
