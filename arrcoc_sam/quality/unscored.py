"""The masks of a data set that a table of scores does not have, and why."""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from arrcoc_sam.datasets.mask_index import MaskIndex
from arrcoc_sam.datasets.mask_sets import MaskSet
from arrcoc_sam.errors import OutputError, explain
from arrcoc_sam.quality.score_table import read_scores

__all__ = ["NOT_RECORDED", "all_are_listed", "listed_errors", "listed_masks", "unscored_masks"]

NOT_RECORDED = "(not recorded)"
"""The class of masks in a table of errors from before such tables had classes."""

_COLUMNS = ["id", "image_id", "image", "category", "error"]
_ROWS = 4096


def listed_errors(scored: Path, *, most: int | None = None) -> pd.DataFrame:
    """The masks that the table of errors beside a table of scores has; none where there is no such table.

    Args:
        scored: The table of scores; ids have the types that they have there.
        most: No more of them than the first so many are read.

    Returns:
        ``id``, ``image_id``, ``image``, ``category``, which is :data:`NOT_RECORDED` where the table has no classes, and
        ``error``.
    """
    path = scored.with_name(f"{scored.stem}.errors.csv")
    if not path.exists():
        return pd.DataFrame({name: pd.Series([], dtype=object) for name in _COLUMNS})
    found = pd.read_csv(path, dtype=str, keep_default_na=False, nrows=most)  # "000139" and "NA" are names
    schema = pq.read_schema(scored)
    for name in ("id", "image_id"):
        known = found[name].where(found[name] != "")
        found[name] = known.astype("Int64") if pa.types.is_integer(schema.field(name).type) else known
    if "category" not in found:
        return found.assign(category=NOT_RECORDED)[_COLUMNS]
    return found.assign(category=found["category"].where(found["category"] != ""))[_COLUMNS]


def all_are_listed(scored: Path, num_masks: int) -> bool:
    """Whether scores and errors are of ``num_masks`` together, by the manifest beside them; False where there is none.

    Args:
        scored: The table of scores.
        num_masks: Of the table and of the table of errors.
    """
    try:
        manifest = json.loads(scored.with_name(f"{scored.stem}.manifest.json").read_text(encoding="utf-8"))
        return bool(manifest["num_masks"] == num_masks)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def unscored_masks(scored: Path, dataset: MaskSet, beside: Path | None) -> pd.DataFrame:
    """The masks of a data set that a table of scores does not have, found by listing the data set.

    Args:
        scored: The table of scores.
        dataset: What was scored.
        beside: The folder that it is listed in, as for :func:`listed_masks`.

    Returns:
        As :func:`listed_errors`, with the reason that is listed there, or that the data set gives.

    Raises:
        DataError: The table or the data set can't be read.
        OutputError: There is no room to list it.
    """
    known = pd.Index(read_scores(scored, ["id"])["id"]).unique()  # hashed once, not once a part
    errors = listed_errors(scored)
    reasons = dict(zip(errors["id"], errors["error"], strict=True))
    words = explain(f"it has no score in {scored.name}", "a score, or an error beside it", "score it again")
    rows = []
    with listed_masks(dataset, beside, mend="make room") as index:
        for part in index.parts(_ROWS):
            missing = part["id"].is_null().to_numpy()
            missing[~missing] = known.get_indexer(part["id"].drop_null().to_numpy()) < 0
            rows += part.filter(pa.array(missing)).select(_COLUMNS).to_pylist()
    for row in rows:
        row["error"] = reasons.get(row["id"]) or row["error"] or words
    return pd.DataFrame(rows, columns=_COLUMNS, dtype=object)


@contextmanager
def listed_masks(dataset: MaskSet, beside: Path | None, *, mend: str) -> Iterator[MaskIndex]:
    """A data set's masks, listed in a temporary file.

    Args:
        dataset: What is listed.
        beside: The folder that the file goes to; None for the system's.
        mend: What is advised where there is no room.

    Raises:
        DataError: The data set can't be read.
        OutputError: There is no room or no permission.
    """
    try:
        with (
            tempfile.TemporaryDirectory(prefix=".masks-", dir=beside) as folder,
            MaskIndex(Path(folder) / "index", name=str(dataset.path)) as index,
        ):
            dataset.fill(index)
            yield index
    except (OSError, sqlite3.OperationalError) as error:
        if isinstance(error, OutputError):
            raise
        came = f"the masks can't be listed in {beside or tempfile.gettempdir()}"
        came += f" ({getattr(error, 'strerror', None) or error})"
        raise OutputError(explain(came, "room and permission", mend)) from error
