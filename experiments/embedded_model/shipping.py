"""Puts the trained weights into the package."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from scoring import fitted
from scoring_samples import FRAME, all_seen, start_worker
from training import save_model

from arrcoc_sam.segmenters.tiny import build_tiny, set_image_size, tiny_weights_path
from arrcoc_sam.segmenters.weights import load_weights


def ship(trained: Path) -> None:
    """Corrects the predicted IoU of trained weights and puts them into the package, in half precision."""
    model: Any = build_tiny()
    load_weights(model, trained, name="the embedded model")
    set_image_size(model, FRAME)
    with Progress() as progress, ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), start_worker) as pool:
        task = progress.add_task("scenes for the predicted IoU", total=1.0)
        seen = all_seen(trained, pool, lambda done, total: progress.update(task, completed=done / total))
    for name, prompts in seen.items():
        model.mask_decoder.mask_scoring[name].load_state_dict(fitted(prompts).state_dict())
    save_model(model, Path(tiny_weights_path()), shorten=half)


def half(value: torch.Tensor) -> torch.Tensor:
    """Matrices in half precision for storage; vectors and the small positional matrix, a phase, stay exact."""
    return value.half() if value.is_floating_point() and value.ndim > 1 and value.numel() > 1024 else value
