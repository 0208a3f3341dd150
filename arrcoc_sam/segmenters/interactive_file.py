"""The file of an interactive session: every step and its logits, and what image and weights they belong to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from arrcoc_sam._version import __version__
from arrcoc_sam.candidates import MaskCandidates
from arrcoc_sam.errors import DataError, explain
from arrcoc_sam.geometry import ImageTransform
from arrcoc_sam.report.writing import saving
from arrcoc_sam.segmenters.interactive_step import InteractiveStep

__all__ = ["no_session", "read_session", "restored_step", "write_session"]

_FORMAT = "arrcoc_sam.InteractiveSession/1"
_OF_A_STEP = ("action", "points_xy", "labels", "box_xyxy", "token", "ambiguous")


def write_session(path: Path, steps: Sequence[InteractiveStep], facts: Mapping[str, Any]) -> None:
    """Write a session, whole or not at all (safetensors).

    Args:
        path: The file.
        steps: All steps.
        facts: What they belong to, as JSON takes it.

    Raises:
        OutputError: The file can't be written.
    """
    tensors: dict[str, Tensor] = {}
    for number, step in enumerate(steps):
        tensors[f"{number}.logits"] = step.decoded.logits[0].cpu().clone()
        tensors[f"{number}.predicted_iou"] = step.decoded.predicted_iou[0].cpu().clone()
        if step.decoded.object_score is not None:
            tensors[f"{number}.object_score"] = step.decoded.object_score.cpu().clone()
    asked = [{key: getattr(step, key) for key in _OF_A_STEP} for step in steps]
    state = {"format": _FORMAT, "version": __version__, **facts, "steps": asked}
    with saving(path) as temporary:
        save_file(tensors, temporary, metadata={"state": json.dumps(state)})


def read_session(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What :func:`write_session` wrote: facts and "steps", and the tensors.

    Raises:
        DataError: The file is missing, or no session.
    """
    try:
        with safe_open(path, framework="pt") as file:
            state = json.loads((file.metadata() or {})["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise DataError(explain(f"there is no file {path}", "a session saved with InteractiveSession.save")) from error
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise no_session(path) from error
    if not isinstance(state, dict) or state.get("format") != _FORMAT or not _is_whole(state):
        raise no_session(path)
    return state, tensors


def _is_whole(state: Mapping[str, Any]) -> bool:
    """Whether all facts of a session are there, each of its kind."""
    hashes = all(isinstance(state.get(key), str) for key in ("segmenter", "checkpoint_hash", "image_hash"))
    size = state.get("size_hw")
    return hashes and isinstance(size, list) and len(size) == 2 and isinstance(state.get("steps"), list)


def restored_step(
    number: int,
    step: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    transforms: tuple[ImageTransform, ...],
    device: torch.device,
) -> InteractiveStep:
    """One step of a file.

    Args:
        number: Which.
        step: Its entry in the file's "steps".
        tensors: Of the file.
        transforms: Of the image's embedding.
        device: Where its tensors go.

    Raises:
        KeyError: Something is missing.
        TypeError: Something is of another kind.
        ValueError: Something has another value, or clicks and labels differ in number.
    """
    _check_step(step)
    score = tensors.get(f"{number}.object_score")
    decoded = MaskCandidates(
        logits=tensors[f"{number}.logits"][None].to(device),
        predicted_iou=tensors[f"{number}.predicted_iou"][None].to(device),
        token_index=torch.arange(4, device=device),
        image_index=torch.zeros(1, dtype=torch.int64, device=device),
        transforms=transforms,
        object_score=None if score is None else score.to(device),
    )
    return InteractiveStep(
        action=step["action"],
        points_xy=tuple((x, y) for x, y in step["points_xy"]),
        labels=tuple(step["labels"]),
        box_xyxy=None if step["box_xyxy"] is None else tuple(step["box_xyxy"]),
        decoded=decoded,
        token=step["token"],
        ambiguous=step["ambiguous"],
    )


def _check_step(step: Mapping[str, Any]) -> None:
    points, labels, box, token = (step[key] for key in ("points_xy", "labels", "box_xyxy", "token"))
    if len(points) != len(labels) or any(label not in (0, 1) for label in labels):
        raise ValueError(f"{len(points)} clicks with the labels {labels}")
    if not points and box is None:
        raise ValueError("neither a click nor a box")
    if box is not None and len(box) != 4:
        raise ValueError(f"a box of {len(box)} numbers")
    if token not in range(4) or step["ambiguous"] not in (True, False):
        raise ValueError(f"token {token}, ambiguous {step['ambiguous']}")


def no_session(path: Path) -> DataError:
    """The error of a file that is none."""
    return DataError(explain(f"{path} is no session, or a damaged one", "a file that InteractiveSession.save wrote"))
