"""What tracking found: one row an object and frame, when it was hidden, and the way to Parquet and back."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from jaxtyping import Bool
from torch import Tensor

from arrcoc_sam.errors import DataError, InputError, explain
from arrcoc_sam.masks.rle import RLE, decode_rle
from arrcoc_sam.report.writing import replacing

__all__ = ["ABSTAIN", "ObjectFrame", "Occlusion", "VideoTracks", "level_by_area"]

ABSTAIN = "abstain"
"""The level of an object whose first frame has no valid levels, and of an empty mask."""

_METADATA = b"arrcoc_sam"


@dataclass(frozen=True)
class ObjectFrame:
    """An object on a frame.

    Attributes:
        object_id: Of its prompts.
        frame: Index, from 0.
        time_s: Seconds from the first frame; NaN where nothing says it.
        kind: How it was found: "click", "box", "click+box", "mask" or "tracked".
        visible: Whether the object score is above 0; of a mask prompt, whether the mask has a pixel.
        object_score: The logit; NaN of a mask prompt, for which the model has none.
        predicted_iou: Of the mask that was chosen, as the decoder gives it, also where the object is hidden; NaN of a
            mask prompt: transformers reports 1 there, which no head has said.
        area: Pixels of the mask.
        area_ratio: The area over that on the object's first prompted frame; NaN where that one is empty.
        level: "whole", "part", "subpart" or "abstain"; see :func:`level_by_area`.
        segmentation: The mask, COCO's run lengths at the frame's size.
    """

    object_id: int
    frame: int
    time_s: float
    kind: str
    visible: bool
    object_score: float
    predicted_iou: float
    area: int
    area_ratio: float
    level: str
    segmentation: RLE


@dataclass(frozen=True)
class Occlusion:
    """A run of frames on which an object is hidden, both ends included."""

    object_id: int
    first: int
    last: int


@dataclass(frozen=True, eq=False)
class VideoTracks:
    """Rows of all objects, by object and frame.

    Attributes:
        rows: Sorted.
        size_hw: Height and width of the frames.
        num_frames: Of the clip.
        frame_rate: Frames per second, or None.
        metadata: Where the rows come from, JSON-ready; goes into the file.
    """

    rows: tuple[ObjectFrame, ...]
    size_hw: tuple[int, int]
    num_frames: int
    frame_rate: float | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def object_ids(self) -> tuple[int, ...]:
        """The objects, ascending."""
        return tuple(sorted({row.object_id for row in self.rows}))

    @cached_property
    def _by_object(self) -> dict[int, tuple[ObjectFrame, ...]]:
        return {name: tuple(row for row in self.rows if row.object_id == name) for name in self.object_ids}

    @cached_property
    def _by_frame(self) -> dict[int, list[ObjectFrame]]:
        frames: dict[int, list[ObjectFrame]] = {}
        for row in self.rows:
            frames.setdefault(row.frame, []).append(row)
        return frames

    def of(self, object_id: int) -> tuple[ObjectFrame, ...]:
        """The rows of one object, by frame.

        Raises:
            InputError: There is no such object.
        """
        if object_id not in self._by_object:
            raise InputError(explain(f"object {object_id}", f"one of {list(self.object_ids)}"))
        return self._by_object[object_id]

    def on(self, frame: int) -> list[ObjectFrame]:
        """The rows of one frame, by object; none where nothing was followed there."""
        return self._by_frame.get(frame, [])

    def masks(self, object_id: int) -> Iterator[tuple[int, Bool[Tensor, "H W"]]]:
        """Frame and mask of one object, one after another."""
        return ((row.frame, decode_rle(row.segmentation)) for row in self.of(object_id))

    def occlusions(self) -> list[Occlusion]:
        """When each object is hidden.

        Example:
            >>> rle = {"size": [1, 1], "counts": "1"}
            >>> seen = [True, False, False, True]
            >>> rows = [
            ...     ObjectFrame(1, i, 0.0, "tracked", v, 0.0, 0.0, 0, 0.0, ABSTAIN, rle) for i, v in enumerate(seen)
            ... ]
            >>> VideoTracks(tuple(rows), (1, 1), 4).occlusions()
            [Occlusion(object_id=1, first=1, last=2)]
        """
        found: list[Occlusion] = []
        for name in self.object_ids:
            start: int | None = None
            previous = -1
            for row in self.of(name):
                if start is not None and (row.visible or row.frame != previous + 1):
                    found.append(Occlusion(name, start, previous))
                    start = None
                if not row.visible and start is None:
                    start = row.frame
                previous = row.frame
            if start is not None:
                found.append(Occlusion(name, start, previous))
        return found

    def to_frame(self) -> pd.DataFrame:
        """A table with the attributes of :class:`ObjectFrame` as columns."""
        return pd.DataFrame([asdict(row) for row in self.rows])

    def to_parquet(self, path: str | Path) -> Path:
        """Write the rows, whole or not at all; ``metadata`` and the clip's facts go into the file's own metadata."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        facts = {
            "size_hw": list(self.size_hw),
            "num_frames": self.num_frames,
            "frame_rate": self.frame_rate,
            **self.metadata,
        }
        table = pa.Table.from_pylist([asdict(row) for row in self.rows], schema=_schema())
        table = table.replace_schema_metadata({_METADATA: json.dumps(facts).encode()})
        with replacing(path) as temporary:
            pq.write_table(table, temporary, compression="zstd")
        return Path(path)

    @classmethod
    def from_parquet(cls, path: str | Path) -> VideoTracks:
        """Read what :meth:`to_parquet` wrote.

        Raises:
            DataError: Another file.
        """
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(path)
            facts = json.loads((table.schema.metadata or {})[_METADATA])
            rows = tuple(ObjectFrame(**record) for record in table.to_pylist())
            height, width = facts.pop("size_hw")
            return cls(rows, (int(height), int(width)), int(facts.pop("num_frames")), facts.pop("frame_rate"), facts)
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise DataError(explain(f"{path} can't be read as tracks ({error})", "a file of VideoTracks")) from error


def level_by_area(area: int, areas: Sequence[tuple[str, int]]) -> str:
    """The level whose area on the first frame is nearest, by ratio.

    An object that is followed as a part and comes out as large as the whole has most likely been confused with it. A
    camera that moves closer changes areas too: read the level beside ``area_ratio``.

    Args:
        area: Pixels of the mask.
        areas: Distinct levels of the prompt on the object's first frame, with their pixels; empty where the triple of
            masks is not valid.

    Returns:
        The level's name, or "abstain" for an empty mask or where there are no levels.

    Example:
        >>> level_by_area(90, [("whole", 400), ("part", 100)])
        'part'
    """
    if area <= 0 or not areas:
        return ABSTAIN
    return min(areas, key=lambda level: abs(math.log(area / max(level[1], 1))))[0]


def _schema() -> Any:
    import pyarrow as pa

    return pa.schema(
        [
            ("object_id", pa.int64()),
            ("frame", pa.int64()),
            ("time_s", pa.float64()),
            ("kind", pa.string()),
            ("visible", pa.bool_()),
            ("object_score", pa.float32()),
            ("predicted_iou", pa.float32()),
            ("area", pa.int64()),
            ("area_ratio", pa.float64()),
            ("level", pa.string()),
            ("segmentation", pa.struct([("size", pa.list_(pa.int64())), ("counts", pa.string())])),
        ]
    )
