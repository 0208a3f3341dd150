"""Trains the embedded model on one GPU for so many seconds, on scenes that processes draw meanwhile.

python experiments/embedded_model/device_training.py --initial FILE    # 485 seconds; run.py train --phase 26

The schedule follows the clock: a GPU is lent by it, and how many steps it took is seen afterwards. What is written is
small enough to carry: ``trained.safetensors``, the moving average, once a minute and in the end, its matrices in half
precision; and ``log.csv``. The predicted IoU is fitted afterwards, by ``run.py ship --trained FILE``.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from device_scenes import DeviceScenes, Look
from phases import PHASES
from shipping import half
from training import save_model

from arrcoc_sam.segmenters.tiny import build_tiny, set_image_size
from arrcoc_sam.segmenters.weights import load_weights
from arrcoc_sam.training.distributed import SingleDevice
from arrcoc_sam.training.logs import TrainingLog
from arrcoc_sam.training.segmenter import SegmenterTraining
from arrcoc_sam.training.segmenter_run import SegmenterRun

ROOT = Path(__file__).parents[2]

PHASE = PHASES[26]

LOG_EVERY, TELL_EVERY = 20, 200
"""Steps between rows of the log, and between lines on the screen."""


def train(out: Path, *, initial: Path, device: str, workers: int, seconds: float, first: int = 4000) -> None:
    """Trains, and writes weights and log into a folder.

    Args:
        out: The folder.
        initial: Weights to begin with.
        device: Where it is trained.
        workers: Processes that draw scenes.
        seconds: How long, from the first step on.
        first: Scenes to wait for before that.
    """
    out.mkdir(parents=True, exist_ok=True)
    (stage,) = PHASE.training.stages
    model: Any = build_tiny()
    load_weights(model, initial, name="the embedded model")
    set_image_size(model, stage.image_size)
    model.to(device)
    target = out / "trained.safetensors"
    scenes = DeviceScenes(PHASE.seeds, PHASE.shares, device, workers=workers, first=first)
    try:
        run = SegmenterRun(PHASE.training, model, SingleDevice(device), out, origin={})
        train_for(run, scenes, seconds=seconds, keep=lambda kept: save_model(kept, target, shorten=half))
    finally:  # what waits to be drawn would be drawn
        scenes.close()
    save_model(run.ship(), target, shorten=half)


def train_for(
    run: SegmenterRun,
    scenes: DeviceScenes,
    *,
    seconds: float,
    keep: Callable[[Any], None],
    keep_every: float = 60.0,
) -> None:
    """So many seconds of steps; the moving average is kept meanwhile.

    Args:
        run: Of one stage, whose steps only say how fine the schedule is.
        scenes: What it is trained on.
        seconds: From now.
        keep: Writes weights.
        keep_every: Seconds between.
    """
    config = run.config
    (stage,) = config.stages
    log, look = TrainingLog(run.folder), look_of(config)
    generator = torch.Generator(scenes.device).manual_seed(config.seed)
    began = kept = time.monotonic()
    steps = 0
    while (elapsed := time.monotonic() - began) < seconds:
        run.step = min(int(elapsed / seconds * stage.steps), stage.steps - 1)
        figures = run.take_step([scenes.draw(look, generator)])
        steps += 1
        if steps % LOG_EVERY == 0:
            row = {name: float(value) for name, value in figures.items()}
            elapsed = time.monotonic() - began
            row |= {"rate": config.rate_at(run.step - 1), "images_per_second": steps * stage.num_images / elapsed}
            log.write(steps, row)
            if steps % TELL_EVERY == 0:
                told = " ".join(f"{name}={value:.3g}" for name, value in row.items())
                print(f"step {steps}, {elapsed:.0f} s, {len(scenes)} scenes: {told}", flush=True)
        if time.monotonic() - kept > keep_every:
            with run.as_shipped() as shipped:
                keep(shipped)
            kept = time.monotonic()
    log.close()
    print(f"{steps} steps of {stage.num_images} images in {time.monotonic() - began:.0f} s", flush=True)


def look_of(config: SegmenterTraining) -> Look:
    """What the batches of a training look like."""
    (stage,) = config.stages
    recipe, augmentation = config.recipe, config.augmentation
    return Look(
        num_images=stage.num_images,
        num_targets=stage.num_targets,
        image_size=stage.image_size,
        num_clicks=recipe.total_rounds - 1,
        given=min(1.0, recipe.given_mask_probability * (recipe.decoded_targets or 1)),
        crop_probability=augmentation.crop_probability,
        smallest_crop=augmentation.smallest_crop,
    )


def default_workers() -> int:
    """Five of eight cores draw: with 15 of 16, the GPU waited half of the time for the process that trains."""
    return max(1, 5 * (os.cpu_count() or 1) // 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "embedded_model" / "device")
    parser.add_argument("--initial", type=Path, required=True, help="weights to begin with")
    parser.add_argument("--seconds", type=float, default=PHASE.seconds, help="of training")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--workers", type=int, default=default_workers(), help="processes that draw scenes")
    parser.add_argument("--first", type=int, default=4000, help="scenes to wait for")
    arguments = parser.parse_args()
    train(**vars(arguments))


if __name__ == "__main__":
    main()
