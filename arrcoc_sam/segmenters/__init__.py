"""Segmenters: image and prompts to candidate masks. Models are built, and their libraries imported, when asked for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from arrcoc_sam.errors import InputError, UnknownNameError, describe, explain, near_name

if TYPE_CHECKING:
    from arrcoc_sam.segmenters.base import Segmenter

__all__ = ["list_segmenters", "load_segmenter"]

_SAM_BUILDERS = {
    "sam_vit_b": "build_sam_vit_b",
    "sam_vit_l": "build_sam_vit_l",
    "sam_vit_h": "build_sam_vit_h",
}


def list_segmenters() -> list[str]:
    """Names that :func:`load_segmenter` knows, the embedded model first.

    Example:
        >>> list_segmenters()
        ['tiny', 'sam_vit_b', 'sam_vit_l', 'sam_vit_h', 'mobile_sam']
    """
    return ["tiny", *_SAM_BUILDERS, "mobile_sam"]


def load_segmenter(
    name: str,
    checkpoint: str | Path | None = None,
    device: torch.device | str = "auto",
    dtype: torch.dtype | None = None,
) -> Segmenter:
    """A segmenter by name, in eval mode and frozen (``requires_grad`` False).

    Args:
        name: "tiny", the embedded demonstration model; "sam_vit_b", "sam_vit_l", "sam_vit_h", "mobile_sam"; or
            "hf:" and a repository of the Hugging Face hub or a local folder, with a model of one of the families in
            ``docs/hf_families.md``.
        checkpoint: A file of weights (.pth or .safetensors). By default the published one, fetched on first use,
            verified and cached; of "tiny" the one that ships in the package. A .safetensors file for "tiny" is used at
            the size that its header names (``image_size``). Not for "hf:" names.
        device: "auto" takes a GPU where there is one.
        dtype: ``torch.bfloat16`` or ``torch.float16`` for autocast of encoder and transformer; prompts, logits and
            predicted IoU stay float32.

    Returns:
        The segmenter.

    Raises:
        UnknownNameError: No segmenter has this name.
        UnsupportedModelError: A Hugging Face model that is no promptable SAM.
        CheckpointError: The weights are missing, damaged, or of another architecture.
        MissingExtraError: An "hf:" name without transformers.
        InputError: A path or a model in place of the name, a device that is not there, another dtype, or a checkpoint
            beside an "hf:" name.
    """
    given: object = name
    if not isinstance(given, str):
        mend = "load_segmenter(architecture, checkpoint=…) for weights of your own"
        raise InputError(explain(f"name is {describe(given)}", "a name, one of list_segmenters()", mend))
    if checkpoint is not None and not isinstance(checkpoint, (str, os.PathLike)):
        raise InputError(explain(f"checkpoint is {describe(checkpoint)}", "the path of a file of weights, or None"))
    if name.startswith("hf:"):
        if checkpoint is not None:
            came = f"checkpoint={str(checkpoint)!r} beside {name!r}"
            raise InputError(explain(came, "no checkpoint: the repository or folder holds the weights"))
        from arrcoc_sam.segmenters.hf.loading import load_hf_segmenter

        return load_hf_segmenter(name, device=device, dtype=dtype)
    if name not in list_segmenters():
        expected = f"one of {', '.join(list_segmenters())}, or hf:<repository or folder>"
        raise UnknownNameError(explain(f"no segmenter is called {name!r}", expected, _meant(name)))
    # segment-anything takes a while to import
    import segment_anything

    from arrcoc_sam.inputs import choose_device
    from arrcoc_sam.segmenters.checkpoints import fetch
    from arrcoc_sam.segmenters.mobile_sam import build_mobile_sam, rename_mobile_sam
    from arrcoc_sam.segmenters.sam import SamSegmenter
    from arrcoc_sam.segmenters.tiny import build_tiny, set_image_size, tiny_weights_path, trained_image_size
    from arrcoc_sam.segmenters.weights import header_of, load_weights, taught_prompt

    target = choose_device(device)  # before a large file is fetched
    if checkpoint is None:
        checkpoint = tiny_weights_path() if name == "tiny" else fetch(name)
    rename = None
    if name == "mobile_sam":  # has buffers that no checkpoint holds, hence not on the meta device
        with torch.random.fork_rng(devices=[]):
            model, rename = build_mobile_sam(), rename_mobile_sam
    else:
        with torch.device("meta"):  # random weights would be drawn only to be overwritten
            model = build_tiny() if name == "tiny" else getattr(segment_anything, _SAM_BUILDERS[name])()
    load_weights(model, checkpoint, name=name, rename=rename)
    if name == "tiny":
        set_image_size(model, trained_image_size(checkpoint))
    segmenter = SamSegmenter(model.eval().requires_grad_(False), name=name, device=target, dtype=dtype)
    segmenter.judges = taught_prompt(header_of(checkpoint))
    return segmenter


def _meant(name: str) -> str | None:
    """What somebody may have meant by a name that is nobody's."""
    if name.endswith((".pth", ".pt", ".safetensors")):
        return f"for weights of your own: load_segmenter(architecture, checkpoint={name!r})"
    return f"'hf:{name}', if that is meant" if "/" in name else near_name(name, list_segmenters())
