"""The automatic mode: ours and SamAutomaticMaskGenerator's, interleaved; each in a process of its own.

    python benchmarks/everything.py                     measures, prints the table, writes results/everything.json
    python benchmarks/everything.py --quick             8 clicks a side, 1 round; nothing is written
    python benchmarks/table.py                          puts the table into benchmarks/README.md

The work: one picture, a grid of clicks, thresholds at which at least 50 masks survive, the same for both. Every run is
a fresh process. Its memory is the peak of what is resident while the picture is worked on, counted anew once the model
is loaded: whole, and less what the process held before. Rounds alternate between ours, ours exact and the peer, in a
new order each. Masks are compared in the same run: the share, of either's masks, that the other has at an IoU of .99 or
more. Linux only.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
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
from arrcoc_sam.segmenters.everything.generator import AutomaticMaskGenerator
from arrcoc_sam.segmenters.sam import SamSegmenter

RESULTS = Path(__file__).parent / "results" / "everything.json"
BARS = {"seconds": 2.0, "mib": 2.0, "matched": 0.99, "masks": 50}
MEASURES = ("seconds", "cpu_seconds", "mib", "whole_mib")
KINDS = ("fast", "exact", "peer")
# Random weights: scores are alike and masks reach over the whole image, so thresholds are set for 50 masks and more.
MODELS: dict[str, dict[str, Any]] = {
    "tiny": {"pred_iou_thresh": 0.25, "stability_score_thresh": 0.5, "box_nms_thresh": 0.9},
    "vit_b": {"stability_score_thresh": 0.5, "stability_score_offset": 0.02, "box_nms_thresh": 1.0, "share": 0.1},
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


def resident(name: str) -> float:
    """MiB: "VmRSS", what is resident, or "VmHWM", its peak."""
    return int(Path("/proc/self/status").read_text().partition(f"{name}:")[2].split()[0]) / 1024


def work(task: dict[str, Any]) -> dict[str, Any]:
    """One run in this process: seconds, MiB and records."""
    torch.set_num_threads(task["threads"])
    segmenter = load(task["model"])
    image = np.asarray(Image.open(task["image"]).convert("RGB"))
    options, side = task["options"], task["points_per_side"]
    _ = segmenter.checkpoint_hash  # once a model
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew: loading may have had a higher one
    before, begin, cpu = resident("VmRSS"), time.perf_counter(), time.process_time()
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
        "cpu_seconds": time.process_time() - cpu,
        "mib": resident("VmHWM") - before,
        "whole_mib": resident("VmHWM"),
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
        **{name: {kind: summary([run[name] for run in runs[kind]]) for kind in KINDS} for name in MEASURES},
        **{
            kind: {
                name: summary([peer[name] / own[name] for own, peer in zip(runs[kind], runs["peer"], strict=True)])
                for name in MEASURES
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
        "many times as much the peer takes, of time, of the processor's time, of memory on top of the loaded model, "
        f"and of the whole process's memory: median of {measured['rounds']} interleaved rounds. Bars: ≥ 2 × as fast, "
        "at most half the memory on top of the model, ≥ 99 % of the masks (exact: all), at least 50 masks."
        + (" A quick try, not for the record." if measured["quick"] else ""),
        "",
        "| × ours, time | × ours, CPU | × ours, memory | × ours, whole | model | mode | clicks | masks | matched "
        "| ours, s | peer, s | ours, MiB | peer, MiB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in measured["results"]:
        for kind in KINDS[:2]:
            cells = [
                *(f"**{row[kind][name]['median']:.1f}**" for name in MEASURES),
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


def missed(row: dict[str, Any], *, quick: bool) -> list[str]:
    """The bars that a model's numbers miss; a quick try has few masks."""
    said = [] if quick or row["masks"] >= BARS["masks"] else [f"{row['model']}: {row['masks']} masks"]
    for kind in KINDS[:2]:
        least = {**BARS, "matched": 1.0} if kind == "exact" else BARS
        reached = {name: row[kind][name]["median"] for name in ("seconds", "mib")} | {"matched": row[kind]["matched"]}
        for name, value in reached.items():
            if value < least[name]:
                said.append(f"{row['model']}, {kind}: {name} {value:.4g}, not {least[name]:g}")
    return said


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path, nargs="?", help="a photograph; a procedural scene by default")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--points-per-side", type=int, default=32)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="8 clicks a side, 1 round; nothing is written")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where every number goes")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        print(json.dumps(work(json.loads(arguments.task))))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        image, name = arguments.image, "procedural scene 0" if arguments.image is None else arguments.image.name
        if image is None:
            image = Path(folder) / "scene.png"
            Image.fromarray(generate_scene(0, size=640).image).save(image)
        measured = measure(arguments, image, name)
    print(tables(measured))
    if not arguments.quick:
        arguments.json.parent.mkdir(exist_ok=True)
        arguments.json.write_text(json.dumps(measured, indent=1) + "\n")
    said = [message for row in measured["results"] for message in missed(row, quick=arguments.quick)]
    for message in said:
        print(f"bar missed: {message}", file=sys.stderr)
    return 1 if said else 0


def measure(arguments: argparse.Namespace, image: Path, name: str) -> dict[str, Any]:
    """All numbers."""
    side, rounds = (8, 1) if arguments.quick else (arguments.points_per_side, arguments.rounds)
    return {
        "machine": machine(("arrcoc-sam", "torch", "numpy", "segment-anything")),
        "quick": arguments.quick,
        "rounds": rounds,
        "threads": arguments.threads,
        "image": name,
        "results": [race(model, image, side, rounds, arguments.threads) for model in arguments.models],
    }


if __name__ == "__main__":
    sys.exit(main())
