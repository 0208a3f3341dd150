"""The automatic mode: ours and SamAutomaticMaskGenerator's, interleaved; each in a process of its own.

    python benchmarks/everything.py                     measures, prints the table, writes results/everything.json
    python benchmarks/everything.py --quick             few clicks, 1 round, the embedded model only; nothing is written
    python benchmarks/table.py                          puts the table into benchmarks/README.md

The work: one photograph, a grid of clicks, thresholds at which at least 50 masks survive. Every run is a fresh process,
whose peak of resident memory is its own; what the process holds with the model loaded and before the image comes is
taken off. Rounds alternate between ours, ours exact and the peer, in a new order each. Masks are compared in the same
run: the share, of either's masks, that the other has at an IoU of .99 or more.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from granularity import machine, summary
from PIL import Image
from segment_anything import SamAutomaticMaskGenerator, build_sam_vit_b

from arrcoc_sam.masks import decode_rle, pairwise_iou
from arrcoc_sam.scenes import generate_scene
from arrcoc_sam.segmenters import load_segmenter
from arrcoc_sam.segmenters.everything import AutomaticMaskGenerator
from arrcoc_sam.segmenters.sam import SamSegmenter

RESULTS = Path(__file__).parent / "results" / "everything.json"
BARS = {"time": 2.0, "memory": 2.0, "matched": 0.99}
KINDS = ("fast", "exact", "peer")
# Random weights: scores are alike and masks reach over the whole image, so thresholds are set for 50 masks and more.
MODELS: dict[str, dict[str, Any]] = {
    "tiny": {"pred_iou_thresh": 0.25, "stability_score_thresh": 0.5, "box_nms_thresh": 0.9},
    "vit_b": {"stability_score_thresh": 0.5, "stability_score_offset": 0.02, "box_nms_thresh": 1.0, "share": 0.05},
}
OURS = {
    "pred_iou_thresh": "min_predicted_iou",
    "stability_score_thresh": "min_stability",
    "stability_score_offset": "stability_offset",
    "box_nms_thresh": "box_nms_iou",
}


def load(model: str) -> SamSegmenter:
    """The embedded model, or ViT-B with random weights of seed 0."""
    if model == "tiny":
        segmenter = load_segmenter("tiny", device="cpu")
        assert isinstance(segmenter, SamSegmenter)
        return segmenter
    torch.manual_seed(0)
    sam = build_sam_vit_b().eval().requires_grad_(False)
    return SamSegmenter(sam, name="random ViT-B")


def resident() -> float:
    """MiB at the peak so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def work(task: dict[str, Any]) -> dict[str, Any]:
    """One run in this process: seconds, MiB and records."""
    torch.set_num_threads(task["threads"])
    segmenter = load(task["model"])
    image = np.asarray(Image.open(task["image"]).convert("RGB"))
    options, side = task["options"], task["points_per_side"]
    _ = segmenter.checkpoint_hash  # once a model
    before, begin = resident(), time.perf_counter()
    if task["kind"] == "peer":
        peer = SamAutomaticMaskGenerator(segmenter.model, points_per_side=side, output_mode="coco_rle", **options)
        records = peer.generate(image)
    else:
        named = {OURS[name]: value for name, value in options.items()}
        ours = AutomaticMaskGenerator(
            segmenter, points_per_side=side, min_region_area=0, exact=task["kind"] == "exact", **named
        )
        records = list(ours.generate(image).records)
    return {
        "seconds": time.perf_counter() - begin,
        "mib": resident() - before,
        "rles": [record["segmentation"] for record in records],
    }


def in_a_process(task: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, __file__, "--task", json.dumps(task)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def score_threshold(model: str, image: Path, side: int, share: float) -> float:
    """The predicted IoU that so large a share of the candidates passes."""
    from arrcoc_sam.prompts import Prompts, grid_points_xy

    segmenter, pixels = load(model), np.asarray(Image.open(image).convert("RGB"))
    with torch.no_grad():
        points = grid_points_xy(min(side, 12), (pixels.shape[0], pixels.shape[1]))
        scores = segmenter.decode(segmenter.encode(pixels), Prompts(points_xy=points[:, None])).predicted_iou
    return float(scores.flatten().quantile(1 - share))


def matched(some: list[Any], others: list[Any]) -> float:
    """Of the masks of either, the share that the other one has."""
    if not some or not others:
        return float(len(some) == len(others))
    iou = pairwise_iou(decode_rle(some), decode_rle(others)) >= 0.99
    return min(iou.any(0).float().mean().item(), iou.any(1).float().mean().item())


def race(model: str, image: Path, side: int, rounds: int, threads: int) -> dict[str, Any]:
    """Times and memory of one model."""
    options = dict(MODELS[model])
    if "share" in options:
        options["pred_iou_thresh"] = score_threshold(model, image, side, options.pop("share"))
    task = {"model": model, "image": str(image), "points_per_side": side, "options": options, "threads": threads}
    runs: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    order = random.Random(0)
    for _ in range(rounds):
        for kind in order.sample(KINDS, len(KINDS)):
            runs[kind].append(in_a_process({**task, "kind": kind}))
            print(f"{model}, {kind}: {runs[kind][-1]['seconds']:.1f} s", file=sys.stderr)
    return {
        "model": model,
        "points_per_side": side,
        "options": options,
        "masks": len(runs["peer"][0]["rles"]),
        "seconds": {kind: summary([run["seconds"] for run in runs[kind]]) for kind in KINDS},
        "mib": {kind: summary([run["mib"] for run in runs[kind]]) for kind in KINDS},
        **{
            kind: {
                what: summary([peer[key] / own[key] for own, peer in zip(runs[kind], runs["peer"], strict=True)])
                for what, key in (("time", "seconds"), ("memory", "mib"))
            }
            | {
                "matched": min(
                    matched(own["rles"], peer["rles"]) for own, peer in zip(runs[kind], runs["peer"], strict=True)
                )
            }
            for kind in KINDS[:2]
        },
    }


def tables(measured: dict[str, Any]) -> str:
    """The numbers as Markdown, the ratio first."""
    at = measured["machine"]
    lines = [
        f"Everything mode against `SamAutomaticMaskGenerator`, image {measured['image']}; {at['cpu']} "
        f"({at['cpu_capability']}), {measured['threads']} threads, {at['date']}. “× ours” is how "
        f"many times as long, and "
        f"as much memory on top of the model, the peer takes: median of {measured['rounds']} interleaved rounds. Bars: "
        "≥ 2 × as fast, at most half the memory, ≥ 99 % of the masks (exact: all)."
        + (" A quick try, not for the record." if measured["quick"] else ""),
        "",
        "| × ours, time | × ours, memory | model | mode | clicks | masks | matched | ours, s | peer, s "
        "| ours, MiB | peer, MiB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in measured["results"]:
        for kind in KINDS[:2]:
            cells = [
                f"**{row[kind]['time']['median']:.1f}**",
                f"**{row[kind]['memory']['median']:.1f}**",
                row["model"],
                kind,
                f"{row['points_per_side']}²",
                str(row["masks"]),
                f"{100 * row[kind]['matched']:.4g} %",
                f"{row['seconds'][kind]['median']:.1f}",
                f"{row['seconds']['peer']['median']:.1f}",
                f"{row['mib'][kind]['median']:.0f}",
                f"{row['mib']['peer']['median']:.0f}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path, nargs="?", help="a photograph; a procedural scene by default")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--points-per-side", type=int, default=32)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="8 clicks a side, 1 round, tiny only; nothing is written")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where every number goes")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        print(json.dumps(work(json.loads(arguments.task))))
        return 0
    image, name = arguments.image, None if arguments.image is None else arguments.image.name
    if image is None:
        name, image = "procedural scene 0", Path(__file__).parent / ".everything-scene.png"
        Image.fromarray(generate_scene(0, size=640).image).save(image)
    models = ["tiny"] if arguments.quick else arguments.models
    side, rounds = (8, 1) if arguments.quick else (arguments.points_per_side, arguments.rounds)
    measured = {
        "machine": machine(("arrcoc-sam", "torch", "numpy", "segment-anything")),
        "quick": arguments.quick,
        "rounds": rounds,
        "threads": arguments.threads,
        "image": name,
        "results": [race(model, image, side, rounds, arguments.threads) for model in models],
    }
    if arguments.image is None:
        image.unlink()
    print(tables(measured))
    if not arguments.quick:
        arguments.json.parent.mkdir(exist_ok=True)
        arguments.json.write_text(json.dumps(measured, indent=1) + "\n")
    wrong = [
        f"{row['model']}, {kind}: {row[kind]['matched']:.4f} of the masks"
        for row in measured["results"]
        for kind, least in (("fast", BARS["matched"]), ("exact", 1.0))
        if row[kind]["matched"] < least
    ]
    for message in wrong:
        print(f"masks differ: {message}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
