"""Prompts of a clip, from options and from a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from arrcoc_sam.cli.coordinates import parse_box, parse_labelled_point
from arrcoc_sam.errors import InputError, explain
from arrcoc_sam.images import load_image
from arrcoc_sam.segmenters.video.prompts import VideoPrompt

__all__ = ["prompts_of_file", "prompts_of_options"]

_KEYS = ("frame", "object", "points", "labels", "box", "mask")
_FORM = 'a list such as [{"frame": 0, "object": 1, "points": [[120, 80]]}], with points, labels, box or mask'


def prompts_of_options(points: Sequence[str], box: str | None, mask: Path | None, frame: int) -> list[VideoPrompt]:
    """The one prompt that ``--point``, ``--box`` and ``--mask`` make; none where none of them is given.

    Raises:
        InputError: Values that can't be read.
    """
    if not points and box is None and mask is None:
        return []
    clicks = [parse_labelled_point(text) for text in points]
    return [
        VideoPrompt(
            frame,
            points_xy=[click[:2] for click in clicks] if clicks else None,
            labels=[click[2] for click in clicks] if clicks else None,
            box_xyxy=None if box is None else parse_box(box),
            mask=None if mask is None else _read_mask(mask),
        )
    ]


def prompts_of_file(path: Path) -> list[VideoPrompt]:
    """The prompts of a JSON file; pictures of masks are named relative to it.

    Raises:
        InputError: No such file, or something else in it.
    """
    try:
        records = json.loads(path.expanduser().read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(explain(f"{path} does not exist", _FORM, "check the path")) from error
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise InputError(explain(f"{path} can't be read as JSON ({error})", _FORM)) from error
    if not isinstance(records, list) or not records or not all(isinstance(record, dict) for record in records):
        raise InputError(explain(f"{path} holds no list of prompts", _FORM))
    return [_prompt(record, position, path) for position, record in enumerate(records)]


def _prompt(record: dict[str, Any], position: int, path: Path) -> VideoPrompt:
    where = f"prompt {position} of {path}"
    unknown = sorted(set(record) - set(_KEYS))
    if unknown:
        raise InputError(explain(f"{where} has {', '.join(map(repr, unknown))}", f"only {', '.join(_KEYS)}"))
    number = record.get("object", 1)
    mask = record.get("mask")
    try:
        return VideoPrompt(
            record.get("frame", 0),
            number,
            points_xy=record.get("points"),
            labels=_labels(record.get("labels")),
            box_xyxy=record.get("box"),
            mask=None if mask is None else _read_mask(path.parent / str(mask)),
        )
    except (InputError, TypeError, ValueError) as error:
        raise InputError(f"{where} (object {number}, frame {record.get('frame', 0)}): {error}") from error


def _labels(labels: Any) -> Any:
    """Labels of a file: a point that is absent has no use there."""
    for label in labels if isinstance(labels, list) else ():
        if label not in (0, 1):
            raise InputError(explain(f"the label {label!r}", "1 (foreground) or 0 (background)"))
    return labels


def _read_mask(path: Path) -> Bool[np.ndarray, "H W"]:
    """A picture of a mask, as pixels above half intensity.

    Raises:
        InputError: It has none: a picture of 0 and 1, most likely.
        ImageReadError: It can't be read.
    """
    grey: np.ndarray = load_image(path).mean(axis=2)
    mask: np.ndarray = grey > 127.5
    if not mask.any():
        came = f"the mask {path} has no pixel above half intensity, {grey.max():g} at most"
        raise InputError(explain(came, "the object brighter than 127", "write it as 255 on 0"))
    return mask
