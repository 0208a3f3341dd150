"""Models of transformers by the name of a repository or a folder, with one clear error for each way that can fail."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from arrcoc_sam.attention.loading import (
    cache_only_if_unreachable,
    quiet_transformers,
    refuse_missing,
    transformers_source,
)
from arrcoc_sam.errors import CheckpointError, MissingExtraError, UnsupportedModelError, explain, said
from arrcoc_sam.inputs import choose_device
from arrcoc_sam.segmenters.hf.families import FAMILIES, SamFamily, family_of
from arrcoc_sam.segmenters.hf.segmenter import HuggingFaceSegmenter

__all__ = ["PREFIX", "LoadedModel", "load_hf_model", "load_hf_segmenter"]

PREFIX = "hf:"
"""What names of transformers' models begin with."""


@dataclass(frozen=True)
class LoadedModel:
    """A model, and what its repository says about it.

    Attributes:
        model: In evaluation mode, float32, on the CPU, its parameters without gradients.
        family: Which family it is of.
        mean: Of the pixels in [0, 1], or None where the repository names none.
        std: Likewise.
    """

    model: nn.Module
    family: SamFamily
    mean: Sequence[float] | None
    std: Sequence[float] | None


def load_hf_segmenter(
    name: str, *, device: torch.device | str = "auto", dtype: torch.dtype | None = None
) -> HuggingFaceSegmenter:
    """The segmenter of an "hf:" name; see :func:`arrcoc_sam.segmenters.load_segmenter`.

    Raises:
        CheckpointError: No such repository or folder, no configuration in it, no safetensors weights, or not all.
        UnsupportedModelError: A model that is no promptable SAM.
        MissingExtraError: transformers is not installed.
        InputError: A device that is not there, or another dtype.
    """
    target = choose_device(device)  # before a large file is fetched
    loaded = load_hf_model(name)
    return HuggingFaceSegmenter(
        loaded.model, loaded.family, name=name, device=target, dtype=dtype, mean=loaded.mean, std=loaded.std
    )


def load_hf_model(name: str, *, kind: Literal["image", "video"] = "image") -> LoadedModel:
    """A SAM of transformers by its name.

    Args:
        name: "hf:<repository or folder>".
        kind: "video" loads the class that tracks; only some families have one.

    Raises:
        CheckpointError: No such repository or folder, no configuration in it, no safetensors weights, or not all.
        UnsupportedModelError: A model that is no promptable SAM, or none that tracks.
        MissingExtraError: transformers is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError.of("transformers", "hf") from error
    source, local = transformers_source(name)
    with quiet_transformers(), nullcontext() if local else cache_only_if_unreachable():
        try:
            config = transformers.AutoConfig.from_pretrained(source)
        except Exception as error:  # hub, HTTP, file and parse errors have no common base
            raise _unavailable(name, error, "the configuration") from error
        family = family_of(str(config.model_type), model=name)
        class_name = family.image_class if kind == "image" else family.video_class
        if class_name is None:
            others = ", ".join(f.name for f in FAMILIES if f.video_class)
            raise UnsupportedModelError(
                explain(f"{name} is of the family {family.name}, which does not track here", f"one of {others}")
            )
        if kind == "video" and not str(config.model_type).endswith("_video"):
            raise UnsupportedModelError(
                explain(
                    f"{name} is an image model ({config.model_type}), without the memory that tracking needs",
                    f"a video model, such as {PREFIX}{family.example}",
                )
            )
        try:
            # Safetensors only: a pickle would be run.
            model, report = getattr(transformers, class_name).from_pretrained(
                source, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
        except Exception as error:
            raise _unavailable(name, error, "the weights") from error
        refuse_missing(name, class_name, report["missing_keys"])
        mean, std = _normalisation(name, source)
    return LoadedModel(model.eval().requires_grad_(False), family, mean, std)


def _normalisation(name: str, source: str) -> tuple[Sequence[float] | None, Sequence[float] | None]:
    """Mean and standard deviation of the repository's image processor; None where it names none.

    Raises:
        CheckpointError: The processor's file is damaged: other values than the model's would give other masks.
    """
    from transformers.utils import cached_file  # type: ignore[attr-defined]

    settings: dict[str, Any] = {}
    try:
        # What is in both counts as the second has it, as in transformers.
        for file in ("preprocessor_config.json", "processor_config.json"):
            path = cached_file(source, file, _raise_exceptions_for_missing_entries=False)
            if path is not None:
                found = json.loads(Path(path).read_bytes())
                settings |= found.get("image_processor", found)
        return _three(settings, "image_mean"), _three(settings, "image_std", above=0.0)
    except Exception as error:  # as for the configuration; and JSON may be anything
        raise CheckpointError(
            explain(
                f"the preprocessor_config.json of {name} can't be used ({said(error)})",
                "image_mean and image_std of three finite numbers each, the latter above 0, or no such file",
                "fetch the repository anew",
            )
        ) from error


def _three(settings: Mapping[str, Any], field: str, *, above: float = -math.inf) -> Sequence[float] | None:
    """Three finite numbers of a processor's settings; None where they are not there."""
    values = settings.get(field)
    if values is None:
        return None
    red, green, blue = (float(value) for value in values)
    if not all(above < value < math.inf for value in (red, green, blue)):
        raise ValueError(f"{field} is {values}")
    return red, green, blue


def _unavailable(name: str, error: Exception, what: str) -> CheckpointError:
    return CheckpointError(
        explain(
            f"{what} of {name} can't be had ({said(error)})",
            "a repository of the hub or its cached copy, or a local folder, with config.json and safetensors",
            "check the name; without a network, fetch it once on a connected machine and give the folder: hf:/path",
        )
    )
