"""Weights in files and in models: reading, headers, hashes.

Weights are read without unpickling code (``weights_only=True``, or safetensors), and a file that is not what it should
be says so in one line.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from arrcoc_sam.errors import CheckpointError, describe, explain, first_line

__all__ = [
    "as_bytes",
    "header_of",
    "load_weights",
    "read_weights",
    "require_file",
    "taught_prompt",
    "weights_hash",
]

_SCALE = ".scale_of_bytes"


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name from a ``.safetensors`` file or a PyTorch ``.pth`` / ``.pt`` file, on the CPU.

    No code of the file is run. A PyTorch file may hold the state dict itself, or hold it under ``model`` or
    ``state_dict``, as training loops write it.

    Args:
        path: The file.

    Returns:
        The state dict; what :func:`as_bytes` stored is float32 again.

    Raises:
        CheckpointError: The file is missing, empty, truncated, needs code to be run, or holds something else.
    """
    file = Path(path).expanduser()
    require_file(file, mend="give the path of a checkpoint")
    mend = "copy or download it again, and compare its SHA-256 with the publisher's"
    try:
        if file.suffix.lower() == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(file)
        else:
            # Files of PyTorch >= 1.6 are mapped, so that a large one is not in memory twice.
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            explain(
                f"{file} is damaged, or would run code of its own to be read, which is never done here",
                "a state dict of tensors (.pth or .safetensors)",
                mend,
            )
        ) from error
    except Exception as error:  # torch and safetensors raise a dozen kinds on damaged files
        came = f"{file} can't be read as weights ({first_line(error)})"
        raise CheckpointError(explain(came, "a whole .pth or .safetensors file", mend)) from error
    for key in ("model", "state_dict"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(explain(f"{file} holds {type(state).__name__}, not weights", "a state dict of tensors"))
    return _from_bytes(state, file)


def as_bytes(weights: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """Weights for a file, some of them in a byte a number: int8, and beside them a scale for each row.

    Args:
        weights: The state dict.
        names: Which; matrices or kernels of floats, whose first dimension is the row.

    Returns:
        What :func:`read_weights` reads back, rounded to 1/254 of the largest number of each row.
    """
    stored = dict(weights)
    for name in names:
        rows = weights[name].detach().float().flatten(1)
        scale = rows.abs().amax(dim=1) / 127
        stored[name] = (rows / scale.clamp(min=1e-30)[:, None]).round().to(torch.int8).reshape(weights[name].shape)
        stored[name + _SCALE] = scale
    return stored


def _from_bytes(state: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """The state dict with the scales that :func:`as_bytes` stored multiplied in."""
    weights = dict(state)
    for name, value in state.items():
        scale = weights.pop(name + _SCALE, None)
        if scale is None:
            continue
        if value.dtype != torch.int8 or scale.shape != value.shape[:1]:
            came = f"{file} holds {name} as {describe(value)}, and for its scales {describe(scale)}"
            raise CheckpointError(explain(came, "int8, and a scale for each row", "copy or download it again"))
        weights[name] = value * scale.reshape(-1, *[1] * (value.ndim - 1))
    return weights


def header_of(path: str | Path) -> dict[str, str]:
    """The texts in the header of a .safetensors file that can be read; none of any other file."""
    file = Path(path).expanduser()
    if file.suffix.lower() != ".safetensors":
        return {}
    from safetensors import safe_open

    with safe_open(file, "pt") as weights:
        return dict(weights.metadata() or {})


def taught_prompt(header: Mapping[str, str]) -> str | None:
    """How weights of ``train iou-head`` are shown the mask that their head judges; None of all others."""
    if "judges" in header or "run" not in header:
        return header.get("judges")
    try:  # before the header said so itself, the record of the run did
        return str(json.loads(header["run"])["transfer"]["prompt"])
    except (ValueError, KeyError, TypeError):
        return None


def load_weights(
    model: nn.Module,
    path: str | Path,
    *,
    name: str,
    rename: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None = None,
) -> None:
    """Read weights from a file into a model, every tensor or none.

    Args:
        model: The model; its tensors are overwritten in place. A model on the meta device gets tensors of its own on
            the CPU, which saves drawing random weights first.
        path: A file for :func:`read_weights`.
        name: What the model is called in the error message.
        rename: Gives the file's tensors the model's names, where these differ.

    Raises:
        CheckpointError: As for :func:`read_weights`, or the tensors are those of another architecture.
    """
    state, wanted = read_weights(path), model.state_dict()
    state = state if rename is None else rename(state)
    missing = [key for key in wanted if key not in state]
    extra = [key for key in state if key not in wanted]
    other = [key for key in wanted if key in state and state[key].shape != wanted[key].shape]
    counted = [
        key for key in wanted if key in state and wanted[key].is_floating_point() != state[key].is_floating_point()
    ]
    if counted and not (missing or extra or other):
        came = f"{path} holds {counted[0]} as {state[counted[0]].dtype}"
        raise CheckpointError(explain(came, f"{wanted[counted[0]].dtype}", "copy or download it again"))
    if missing or extra or other:
        details = [f"{len(missing)} tensors missing, {len(extra)} unknown, {len(other)} of another shape"]
        if other:
            details.append(f"{other[0]} is {tuple(state[other[0]].shape)} in place of {tuple(wanted[other[0]].shape)}")
        elif missing or extra:
            details.append(f"{(missing or extra)[0]} for one")
        raise CheckpointError(
            explain(
                f"{path} holds weights of another architecture ({'; '.join(details)})",
                f"the {len(wanted)} tensors of {name}",
                "give the file that belongs to this segmenter, or name the segmenter that belongs to this file",
            )
        )
    # Copies, so that no parameter stays mapped to the file.
    state = {key: state[key].to(wanted[key].dtype, copy=True) for key in wanted}
    model.load_state_dict(state, assign=True)


def weights_hash(model: nn.Module, *, frame_hw: tuple[int, int]) -> str:
    """SHA-256 over a model's weights and the size of its frame, whatever file they came from.

    Args:
        model: The model.
        frame_hw: The size of its frame, which the same weights may be used with several of.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> weights_hash(layer, frame_hw=(8, 8)) == weights_hash(layer, frame_hw=(8, 16))
        False
    """
    digest = hashlib.sha256(f"frame {frame_hw[0]} {frame_hw[1]}".encode())
    for key, value in sorted(model.state_dict().items()):
        tensor = value.detach().cpu().contiguous()
        digest.update(f"\n{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def require_file(file: Path, *, mend: str) -> None:
    """Refuse what can't be a file of weights.

    Raises:
        CheckpointError: The file is missing or empty.
    """
    if not file.is_file():
        raise CheckpointError(explain(f"{file} does not exist or is no file", "a file of weights", mend))
    if file.stat().st_size == 0:
        raise CheckpointError(explain(f"{file} is empty (0 bytes)", "a file of weights", mend))
