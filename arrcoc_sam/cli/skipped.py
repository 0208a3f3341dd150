"""What a command could not use of its inputs and left out: one name and one form in the JSON of all commands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from arrcoc_sam.datasets import CocoDataset

__all__ = ["BAD_FILES", "MOST_LISTED", "masks_left_out", "record_faults", "skipped_json"]

BAD_FILES = 3
"""Exit code when some of the inputs were left out."""

MOST_LISTED = 1000
"""Masks of a data set that JSON lists; tables of errors have all."""


def skipped_json(
    rows: Sequence[tuple[str, str] | tuple[str, str, Any]], *, number: int | None = None
) -> dict[str, Any]:
    """The fields of a JSON document that say what was left out, and why.

    Args:
        rows: The file, or the picture of the mask, the reason, and of a mask its id.
        number: How many there are, where ``rows`` are only the first of them.

    Example:
        >>> skipped_json([("a.png", "a.png does not exist")])
        {'num_skipped': 1, 'skipped': [{'file': 'a.png', 'reason': 'a.png does not exist'}]}
    """
    names = ("file", "reason", "id")
    listed = [dict(zip(names, (row[0], " ".join(row[1].split()), *row[2:]), strict=False)) for row in rows]
    return {"num_skipped": len(rows) if number is None else number, "skipped": listed}


def record_faults(dataset: CocoDataset) -> tuple[tuple[str, str], ...]:
    """The file, and what is wrong with a record of it, for each that was left out."""
    file = str(dataset.path)
    return tuple((file, fault.message.removeprefix(f"{file}: ")) for fault in dataset.faults)


def masks_left_out(unscored: pd.DataFrame, dataset: str) -> list[tuple[str, str, Any]]:
    """Picture, reason and id of masks without a score.

    Args:
        unscored: As of :func:`~arrcoc_sam.quality.unscored.listed_errors`.
        dataset: Stands for the picture of masks that have none.
    """
    ids = [None if pd.isna(mask_id) else mask_id for mask_id in unscored["id"].astype(object)]
    names = [dataset if pd.isna(image) or image == "" else str(image) for image in unscored["image"]]
    plain = (mask_id.item() if isinstance(mask_id, np.generic) else mask_id for mask_id in ids)  # what JSON knows
    return list(zip(names, unscored["error"].astype(str), plain, strict=True))
