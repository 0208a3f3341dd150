"""Clicks that correct a mask, one after the other: ours and segment-anything's own predictor, interleaved.

    python benchmarks/clicks.py            measures, prints the tables, writes results/clicks.json
    python benchmarks/clicks.py --quick    1 round; nothing is written
    python benchmarks/table.py             puts the tables into benchmarks/README.md

What an annotator's next click costs: the logits of the mask so far and all clicks up to now are the prompt, one mask at
the size of the image, 768 × 1024, is the answer. SAM ViT-B has its true architecture and random weights, on which time
does not depend; its embedding is random. A round runs every contestant in an order that is shuffled anew; a ratio is
that of one round, and the table gives the median over rounds and the extremes. In one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scoring import build_model, machine, race, ratios
from segment_anything import SamPredictor
from segment_anything.modeling import Sam
from torch import Tensor

import arrcoc_sam as aa
from arrcoc_sam.segmenters.sam import SamSegmenter

RESULTS = Path(__file__).parent / "results" / "clicks.json"
CLICKS = (1, 3, 8, 20)
SIZE_HW = (768, 1024)
NUM_MASKS = 16


class Work:
    """A model, an embedded image, and masks of it that are corrected."""

    def __init__(self, model: Sam) -> None:
        """Encode a picture."""
        rng = np.random.default_rng(0)
        self.ours = SamSegmenter(model, name="ours")
        image = rng.integers(0, 255, (*SIZE_HW, 3), dtype=np.uint8)
        self.predictor = SamPredictor(model)
        self.embedding = self.ours.encode(image)
        self.predictor.original_size = SIZE_HW
        self.predictor.input_size = self.predictor.transform.get_preprocess_shape(*SIZE_HW, self.ours.image_size)
        self.predictor.features, self.predictor.is_image_set = self.embedding.features["image"], True
        self.points = rng.uniform(0, SIZE_HW[0] - 1, (NUM_MASKS, max(CLICKS), 2))
        self.labels = rng.integers(0, 2, (NUM_MASKS, max(CLICKS)))
        self.logits = rng.normal(0, 5, (NUM_MASKS, *self.ours.mask_input_size)).astype(np.float32)

    def decode(self, masks: int, clicks: int) -> Tensor:
        """By this package."""
        prompts = aa.Prompts(
            points_xy=self.points[:masks, :clicks],
            labels=self.labels[:masks, :clicks],
            mask_logits=self.logits[:masks],
        )
        candidates = self.ours.decode(self.embedding, prompts, multimask=False)
        candidates.masks()
        return candidates.predicted_iou

    def predict(self, masks: int, clicks: int) -> Tensor:
        """By segment-anything's predictor, mask by mask."""
        found = [
            self.predictor.predict(
                self.points[row, :clicks],
                self.labels[row, :clicks],
                mask_input=self.logits[row : row + 1],
                multimask_output=False,
            )[1]
            for row in range(masks)
        ]
        return torch.from_numpy(np.stack(found))

    def predict_torch(self, masks: int, clicks: int) -> Tensor:
        """By segment-anything's predictor, all masks in one batch."""
        points = self.predictor.transform.apply_coords(self.points[:masks, :clicks], SIZE_HW)
        _, found, _ = self.predictor.predict_torch(
            torch.from_numpy(points).float(),
            torch.from_numpy(self.labels[:masks, :clicks]),
            mask_input=torch.from_numpy(self.logits[:masks, None]),
            multimask_output=False,
        )
        return found


def contestants(work: Work, clicks: int) -> dict[str, Callable[[], Tensor]]:
    """Every way to correct one mask, and many."""
    return {
        "predictor, one": partial(work.predict, 1, clicks),
        "ours, one": partial(work.decode, 1, clicks),
        "predictor, many": partial(work.predict, NUM_MASKS, clicks),
        "batch, many": partial(work.predict_torch, NUM_MASKS, clicks),
        "ours, many": partial(work.decode, NUM_MASKS, clicks),
    }


def measure(rounds: int) -> dict[str, Any]:
    """All numbers."""
    torch.set_num_threads(1)
    tiny: Any = aa.load_segmenter("tiny", device="cpu")
    results = []
    for name, model in (("SAM ViT-B", build_model()), (f"tiny, {tiny.image_size} px", tiny.model)):
        work = Work(model)
        for clicks in CLICKS:
            runners = contestants(work, clicks)
            race({which: runners[which] for which in ("predictor, one", "ours, one")}, 1)  # warm
            seconds: dict[str, list[float]] = {}
            apart = 0.0
            for kind in ("one", "many"):
                some = {which: run for which, run in runners.items() if which.endswith(kind)}
                taken, differences = race(some, rounds)
                seconds, apart = seconds | taken, max(apart, *differences.values())
            results.append({"model": name, "clicks": clicks, "seconds": seconds, "difference": apart})
    return {"machine": machine(), "rounds": rounds, "num_masks": NUM_MASKS, "size_hw": SIZE_HW, "results": results}


def tables(measured: dict[str, Any]) -> str:
    """The numbers as Markdown."""
    at, count = measured["machine"], measured["num_masks"]
    height, width = measured["size_hw"]
    versions = ", ".join(f"{name} {number.partition('+')[0]}" for name, number in at["versions"].items())
    lines = [
        f"The mask so far and clicks as prompt, one mask of {height} × {width} as answer, float32, one thread; "
        f"{at['cpu']} ({at['cpu_capability']}), {at['date']}; medians of {measured['rounds']} interleaved rounds, and "
        f"the extremes of the ratios. One: an annotator's next click. Many: {count} masks, for which the predictor is "
        f"a loop, and its `predict_torch` one batch. Versions: {versions}.",
        "",
        "| model | clicks | ours, one, ms | predictor × ours | ours, many, ms a mask | predictor × ours | "
        "predict_torch × ours | largest difference of IoU |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for result in measured["results"]:
        seconds = result["seconds"]
        one, many = (1e3 * statistics.median(seconds[name]) for name in ("ours, one", "ours, many"))
        found = [
            "**{:.2f}** ({:.2f} – {:.2f})".format(*ratios(seconds[ours], seconds[peer]))
            for ours, peer in (
                ("ours, one", "predictor, one"),
                ("ours, many", "predictor, many"),
                ("ours, many", "batch, many"),
            )
        ]
        lines.append(
            f"| {result['model']} | {result['clicks']} | {one:.1f} | {found[0]} | {many / count:.1f} | {found[1]} | "
            f"{found[2]} | {result['difference']:.1e} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="1 round; nothing is written")
    arguments = parser.parse_args()
    measured = measure(1 if arguments.quick else arguments.rounds)
    print(tables(measured))
    if not arguments.quick:
        RESULTS.write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main()
