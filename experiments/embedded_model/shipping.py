"""Puts the trained weights into the package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phases import FRAME
from scoring import fitted
from scoring_samples import all_seen
from torch import Tensor
from training import save_model

from arrcoc_sam.segmenters.tiny import build_tiny, set_image_size, tiny_weights_path
from arrcoc_sam.segmenters.weights import as_bytes, load_weights


def ship(trained: Path) -> None:
    """Corrects the predicted IoU of trained weights and puts them into the package, most of them in a byte a number."""
    model: Any = build_tiny()
    load_weights(model, trained, name="the embedded model")
    set_image_size(model, FRAME)
    rounded = trained.with_name(f"{trained.stem}-rounded.safetensors")
    save_model(model, rounded, shorten=shortened)
    for name, prompts in all_seen(rounded).items():
        model.mask_decoder.mask_scoring[name].load_state_dict(fitted(prompts).state_dict())
    save_model(model, Path(tiny_weights_path()), shorten=shortened)


def shortened(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights for storage: matrices in a byte a number, those of the predicted IoU in half precision.

    Vectors and the small positional matrix, a phase, stay exact.
    """
    large = [name for name, value in weights.items() if is_large(value)]
    scoring = {name: weights[name].half() for name in large if ".mask_scoring." in name}
    return as_bytes(dict(weights) | scoring, [name for name in large if name not in scoring])


def half(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights small enough to be carried, and good enough to go on from: matrices in half precision."""
    return {name: value.half() if is_large(value) else value for name, value in weights.items()}


def is_large(value: Tensor) -> bool:
    return value.is_floating_point() and value.ndim > 1 and value.numel() > 1024
