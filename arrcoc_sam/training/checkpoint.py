"""Checkpoints of a run: written whole or not at all, and resumed only by the run that they belong to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from arrcoc_sam.errors import TrainingError, explain, first_line
from arrcoc_sam.report.writing import saving

__all__ = ["load_parts", "load_state", "save_bad_batch", "save_state", "save_weights"]


def save_state(path: Path, *, settings: Mapping[str, Any], step: int, parts: Mapping[str, Any]) -> None:
    """Writes a checkpoint, in the place of the last one.

    Args:
        path: The file.
        settings: What the run was started with, as JSON takes it; compared when it is resumed.
        step: Steps done.
        parts: State dicts by name.

    Raises:
        OutputError: It can't be written.
    """
    with saving(path) as temporary:
        torch.save({"settings": json.dumps(settings), "step": step, **parts}, temporary)


def load_state(
    path: Path, *, settings: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> dict[str, Any] | None:
    """Reads a checkpoint, on the CPU; None where there is none.

    Args:
        path: The file.
        settings: What this run was started with.
        defaults: What settings are taken to be that the checkpoint does not name.

    Returns:
        ``step`` and the parts.

    Raises:
        TrainingError: It can't be read, or belongs to a run of other settings; the message says which.
    """
    if not path.is_file():
        return None
    mend = "name another folder, or delete this one"
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        theirs = json.loads(state.pop("settings"))
    except Exception as error:  # torch raises a dozen kinds on damaged files
        came = f"{path} can't be read ({first_line(error)})"
        raise TrainingError(explain(came, "a checkpoint of this run", mend)) from error
    ours = json.loads(json.dumps(settings))
    theirs = _completed(theirs, json.loads(json.dumps(defaults or {})))
    if theirs != ours:
        came = f"{path} belongs to a run of another configuration ({_difference(theirs, ours)})"
        raise TrainingError(explain(came, "the configuration it was started with", mend))
    return state


def load_parts(path: Path, state: Mapping[str, Any], parts: Mapping[str, Any]) -> None:
    """Puts the states of a checkpoint into model, moving average and optimizer.

    Args:
        path: What messages call the checkpoint.
        state: From :func:`load_state`.
        parts: What has a ``load_state_dict``, by name.

    Raises:
        TrainingError: A state is of something else: another architecture, other parameters that are trained.
    """
    for name, part in parts.items():
        try:
            part.load_state_dict(state[name])
        except (RuntimeError, ValueError, KeyError) as error:
            words = " ".join(str(error).split())
            came = f"{path} holds a state of another {name} ({words if len(words) <= 240 else words[:239] + '…'})"
            mend = "name another folder, or delete this one"
            raise TrainingError(explain(came, f"that of the {name} it was started with", mend)) from error


def save_bad_batch(path: Path, batches: Sequence[Mapping[str, Any]], *, step: int) -> None:
    """Writes the batches of a step whose loss is not finite, to be looked at.

    Args:
        path: The file.
        batches: One for each accumulation step, as fields by name.
        step: Counted from 0.

    Raises:
        OutputError: It can't be written.
    """
    with saving(path) as temporary:
        torch.save({"step": step, "batches": [dict(batch) for batch in batches]}, temporary)


def save_weights(path: Path, model: nn.Module, metadata: Mapping[str, str]) -> None:
    """Writes weights for ``load_segmenter(…, checkpoint=path)``, with what they come from in the file's header.

    Args:
        path: A .safetensors file.
        model: The model.
        metadata: Texts by name.

    Raises:
        OutputError: It can't be written.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with saving(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt", **metadata})


def _completed(given: Any, defaults: Any) -> Any:
    """Settings with those of the defaults that they lack, in every table that they have."""
    if not (isinstance(given, dict) and isinstance(defaults, dict)):
        return given
    named = {name: _completed(value, defaults.get(name)) for name, value in given.items()}
    return {name: value for name, value in defaults.items() if name not in given} | named


def _difference(theirs: Any, ours: Any, place: str = "") -> str:
    """The first setting that differs."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for name in [*theirs, *(name for name in ours if name not in theirs)]:
            if name not in theirs or name not in ours or theirs[name] != ours[name]:
                return _difference(theirs.get(name), ours.get(name), f"{place}.{name}" if place else name)
    return f"{place or 'settings'} was {theirs!r}, and is {ours!r}"
