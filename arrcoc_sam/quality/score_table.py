"""A table of scores as it is read again: by filters, by reports, and by what writes scores beside masks."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from arrcoc_sam.datasets.faults import CocoId
from arrcoc_sam.errors import DataError, explain, first_line
from arrcoc_sam.quality.scoring.plan import PLAN_KEY

__all__ = ["WRITTEN_FIELDS", "ScoredChanges", "read_plan", "read_scores"]

WRITTEN_FIELDS = (
    "quality",
    "quality_kind",
    "lower_bound",
    "upper_bound",
    "interval_low",
    "interval_high",
    "predicted_iou",
    "alignment_iou",
    "stability",
    "soft_iou",
)
"""What is written beside a mask, each name after ``sam_``."""


def read_plan(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a table of scores depends on.

    Raises:
        DataError: It can't be read, or is no table of scores.
    """
    try:
        plan: dict[str, Any] = json.loads((pq.read_schema(Path(path)).metadata or {})[PLAN_KEY])
    except FileNotFoundError as error:
        raise DataError(explain(f"{path} does not exist", "a table of scores", "make it: arrcoc-sam score")) from error
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        came = f"{path} is no table of scores"
        raise DataError(explain(came, "what arrcoc-sam score wrote", "score the data set first")) from error
    return plan


def read_scores(path: str | os.PathLike[str], columns: Sequence[str] | None = None) -> pd.DataFrame:
    """A table of scores, or some columns of it.

    Raises:
        DataError: It can't be read, or is no table of scores.
    """
    read_plan(path)
    try:
        frame: pd.DataFrame = pq.read_table(Path(path), columns=columns).to_pandas()
    except (OSError, ValueError, pa.ArrowException) as error:  # a damaged page shows when it is read
        came, mend = f"{path} can't be read ({first_line(error)})", "remove it, and score the data set again"
        raise DataError(explain(came, "a whole table of scores", mend)) from error
    return frame


class ScoredChanges:
    """A data set as it is, with scores beside its masks; or the masks among them that stay.

    A table of an earlier version of this package may lack some scores; they are not written then.

    Args:
        scores: The table of scores.
        kept: Ids of masks that stay; None for all.
        keep_unscored: Whether masks stay that the table does not have, those without an id among them.
        lost_images: Ids of images that go.
        with_scores: Whether scores are written beside the masks.
    """

    def __init__(
        self,
        scores: str | os.PathLike[str],
        *,
        kept: pd.Index | None = None,
        keep_unscored: bool = False,
        lost_images: pd.Index | None = None,
        with_scores: bool = True,
    ) -> None:
        self._kept, self._lost_images = kept, lost_images
        types = pq.read_schema(Path(scores))
        fields = [name for name in WRITTEN_FIELDS if with_scores and name in types.names]
        self.field_types = pa.schema([(f"sam_{name}", types.field(name).type) for name in fields])
        frame = read_scores(scores, ["id", *fields]) if with_scores or keep_unscored else None
        self._keep_unscored = keep_unscored
        self._rows = None if frame is None else pd.Index(frame["id"])
        self._columns = [] if frame is None else [frame[name].to_numpy() for name in fields]

    def keeps(self, mask_id: CocoId | None) -> bool:
        """Whether a mask stays."""
        if self._kept is None or mask_id in self._kept:
            return True
        return self._keep_unscored and self._rows is not None and mask_id not in self._rows

    def keeps_image(self, image_id: CocoId) -> bool:
        """Whether an image stays."""
        return self._lost_images is None or image_id not in self._lost_images

    def fields(self, mask_id: CocoId | None) -> Mapping[str, Any]:
        """A mask's scores; None where it has none."""
        if self._rows is None or not len(self.field_types):
            return {}
        names = self.field_types.names
        if mask_id not in self._rows:
            return dict.fromkeys(names)
        row = self._rows.get_loc(mask_id)
        return {name: _plain(column[row]) for name, column in zip(names, self._columns, strict=True)}


def _plain(value: Any) -> Any:
    """A value for JSON: NaN is null, and a float has the digits that it has as float32."""
    if isinstance(value, (float, np.floating)):
        return None if np.isnan(value) else float(str(np.float32(value)))
    return value
