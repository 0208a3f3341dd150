"""Every figure of the shipped weights, into results.json."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
import torch
from parts import in_parts
from phases import BEFORE, CLICKS, PHASES, SHIPPED, Phase
from real_pack import data_folder, real_pack
from scoring_samples import SCENES

import arrcoc_sam as aa
from arrcoc_sam.quality import AnnotatedImage, click_image, summarize_clicks
from arrcoc_sam.scenes import TEST_V1, TEST_V2, SceneSplit, generate_scene
from arrcoc_sam.segmenters.tiny import tiny_weights_path

HERE = Path(__file__).parent
SPLITS = (TEST_V1, TEST_V2)


def evaluate(out: Path) -> dict[str, Any]:
    """Every figure of the shipped weights: test splits v1 and v2, the real pack, time a prompt.

    The protocol's rows lie in ``out``, by weights and split.
    """
    segmenter = aa.load_segmenter("tiny", device="cpu")
    seconds, summaries = rounded(timing(segmenter)), {}
    for split in SPLITS:
        asked = "-".join(map(str, CLICKS))
        folder = out / f"{split.name}-clicks-{asked}-{segmenter.checkpoint_hash[:12]}"
        rows = in_parts(partial(click_scene, split), range(len(split)), folder, size=10)
        summaries[split.name] = rounded(summarize_clicks(pd.DataFrame(rows)))
    results = {
        "splits": {split.name: {"sha256": split.sha256, "clicks_seed": 0} for split in SPLITS},
        **summaries,
        "seconds": seconds,
        "parameters": sum(p.numel() for p in segmenter.model.parameters()),
        "bytes": Path(tiny_weights_path()).stat().st_size,
        "checkpoint_hash": segmenter.checkpoint_hash,
        "image_size": segmenter.image_size,
        "scoring": ends(SCENES),
        "before": BEFORE,
        "averaged": {str(which): share for which, share in SHIPPED.items()},
        "phases": {str(number): recorded(phase) for number, phase in PHASES.items()},
        "versions": {"arrcoc_sam": aa.__version__, "torch": torch.__version__, "numpy": np.__version__},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, no GPU",
        "commit": commit(),
    }
    pack = data_folder() / "nested-masks"
    if pack.is_dir():
        results["nested-masks"] = real_pack(segmenter, pack)
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    return results


@cache
def worker_segmenter() -> aa.Segmenter:
    return aa.load_segmenter("tiny", device="cpu")


def click_scene(split: SceneSplit, index: int) -> dict[str, np.ndarray]:
    """The protocol's rows of one scene of a test split, by column."""
    scene = split[index]
    image = AnnotatedImage(f"{split.name}-{index}", scene.image, scene.masks, scene.levels)
    rows = click_image(worker_segmenter(), image, clicks=CLICKS, seed=0)
    return {name: np.array(values.tolist()) for name, values in rows.items()}


def timing(segmenter: aa.Segmenter) -> dict[str, float]:
    """Median seconds of one encode and of one click with masks at the original size, all cores."""
    image = generate_scene(0).image
    encodes, clicks = [], []
    for _ in range(15):
        began = perf_counter()
        embedding = segmenter.encode(image)
        encoded = perf_counter()
        with torch.no_grad():
            segmenter.decode(embedding, aa.Prompts(points_xy=[[[100, 100]]], labels=[[1]])).masks()
        encodes.append(encoded - began)
        clicks.append(perf_counter() - encoded)
    return {"encode": float(np.median(encodes)), "click": float(np.median(clicks))}


def rounded(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in figures.items()}


def recorded(phase: Phase) -> dict[str, Any]:
    """A phase as JSON takes it."""
    return asdict(phase) | {"seeds": ends(phase.seeds), "begins": {str(k): v for k, v in phase.begins.items()}}


def ends(seeds: Mapping[str, range]) -> dict[str, list[int]]:
    """First seed and the one after the last, by style."""
    return {style: [each.start, each.stop] for style, each in seeds.items()}


def commit() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
