"""Tracking that goes on where it broke off: rows as they are found, and what the model remembers, on disk.

A folder holds ``rows.jsonl``, which only grows, and ``state.pt``: how many steps are done, how long the rows were then,
and the session's memories, which do not grow with the clip. The state is replaced in one rename, after the rows are on
disk; what a killed run wrote beyond its last state is cut off when the next one goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from arrcoc_sam.errors import DataError, explain
from arrcoc_sam.inputs import as_count
from arrcoc_sam.report.writing import saving
from arrcoc_sam.segmenters.video.frames import Clip
from arrcoc_sam.segmenters.video.prompts import VideoPrompt
from arrcoc_sam.segmenters.video.tracks import ObjectFrame

__all__ = ["TrackingCheckpoints", "TrackingState", "tracking_key"]


class TrackingState(NamedTuple):
    """Where a run stood.

    Attributes:
        done: Steps that are finished.
        memory: The tracker's own state: numbers, strings and tensors.
        rows: All rows so far.
    """

    done: int
    memory: dict[str, Any]
    rows: list[ObjectFrame]


class TrackingCheckpoints:
    """Writes and finds the state of one run.

    Args:
        folder: Of this run alone; made when the first state is saved, and taken away with it where it holds no more.
        every: Steps between two states.

    Attributes:
        resumed: Steps that were found done.

    Raises:
        InputError: ``every`` is below 1, or no whole number.
    """

    def __init__(self, folder: str | Path, *, every: int = 50) -> None:
        self._folder, self.every = Path(folder), as_count(every, "every")
        self._rows, self._state = self._folder / "rows.jsonl", self._folder / "state.pt"
        self._pending: list[ObjectFrame] = []
        self._length = self.resumed = 0

    def resume(self, key: str) -> TrackingState | None:
        """The last state of a run of this key; None, and nothing left, where there is none or it is damaged.

        Raises:
            DataError: The folder holds the state of another run.
        """
        try:
            state = torch.load(self._state, map_location="cpu", weights_only=True)
            if state["key"] != key:
                came = f"{self._folder} holds a run of other prompts, clip, weights, precision or libraries"
                mend = "name another folder (--out), or delete this one to start anew"
                raise DataError(explain(came, "one of this run", mend))
            text = self._rows.read_bytes()[: state["length"]]
            if len(text) != state["length"]:
                raise ValueError("rows are missing")
            rows = [ObjectFrame(**json.loads(line)) for line in text.splitlines()]
        except DataError:
            raise
        except Exception:  # no file, or a damaged one: torch raises what it likes
            self.clear()
            return None
        os.truncate(self._rows, state["length"])
        self._length, self.resumed = state["length"], state["done"]
        return TrackingState(state["done"], state["memory"], rows)

    def add(self, row: ObjectFrame) -> None:
        """A row that was found."""
        self._pending.append(row)

    def save(self, key: str, done: int, memory: dict[str, Any]) -> None:
        """Put the rows on disk, and then the state.

        Raises:
            OutputError: Nothing can be written there.
        """
        lines = "".join(json.dumps(asdict(row)) + "\n" for row in self._pending).encode()
        length = self._length + len(lines)
        with saving(self._state) as temporary:
            with self._rows.open("ab") as file:
                file.truncate(self._length)  # what a save that failed left behind
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
            torch.save({"key": key, "done": done, "length": length, "memory": memory}, temporary)
        self._length = length
        self._pending.clear()

    def clear(self) -> None:
        """Take the run's files away, and the folder if nothing else is in it."""
        with suppress(OSError):  # it holds other files, or is not there; what can't be written is said by save
            for file in (self._state, self._rows, *self._folder.glob(".state-*.pt")):  # the last: left by a kill
                file.unlink(missing_ok=True)
            self._folder.rmdir()
        self._pending.clear()
        self._length = 0


def tracking_key(clip: Clip, prompts: Sequence[VideoPrompt], *facts: str) -> str:
    """SHA-256 of what a run depends on: the clip's size, length and prompted frames, the prompts, and other facts."""
    digest = hashlib.sha256(json.dumps([clip.size_hw, len(clip), *facts]).encode())
    for prompt in prompts:
        given = None if prompt.mask is not None else prompt.prompts
        asked = [] if given is None else [given.points_xy, given.labels, given.boxes_xyxy]
        numbers = [None if value is None else value.tolist() for value in asked]
        digest.update(json.dumps([prompt.frame, prompt.object_id, prompt.kind, numbers]).encode())
        if prompt.mask is not None:
            digest.update(np.packbits(torch.as_tensor(prompt.mask).cpu().numpy()).tobytes())
        digest.update(np.ascontiguousarray(clip[prompt.frame]).tobytes())
    return digest.hexdigest()
