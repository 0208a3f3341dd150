"""What an earlier run could not score, tried again where it can be read by now.

Parts are scored again as a whole, so that scores are those of a run in which nothing was ever amiss. The scores that a
part has are set aside, not given up, and come back where those of now lack any of them. A part whose faults all stand
is left as it is, and what a segmenter answered with NaN is not asked about twice.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from arrcoc_sam.errors import OutputError
from arrcoc_sam.quality.scoring.run import Progress, ScoringRun, read_part, scores_path, working, write_part
from arrcoc_sam.quality.scoring.scorer import MaskScorer, score_schema

__all__ = ["reopen", "set_aside", "settle"]

_ROWS = 4096
_STAGE = "Trying again"


def set_aside(run: ScoringRun, scorer: MaskScorer, held: dict[int, str], progress: Progress | None = None) -> bool:
    """Set the scores of those parts aside that lack a mask which can be read by now, and would lose none.

    Args:
        run: Prepared, with nothing set aside (:func:`settle`).
        scorer: Knows what can be read.
        held: Is given, by the number of each part that would lose a mask, the first image that is gone.
        progress: Called with stage, done, total.

    Returns:
        Whether there is such a part.

    Raises:
        OutputError: The folder of work can't be written.
    """
    numbers = sorted(set(run.parts()) - set(run.missing()))
    found = False
    for done, number in enumerate(numbers, 1):
        scores = run.scores_of(number)
        if scores["error"].null_count < len(scores):
            records = read_part(run.work, number).to_pylist()
            errors: list[str | None] = scores["error"].to_pylist()
            if _is_mended(scorer, records, errors):
                gone = _first_fault(scorer, [row for row, error in zip(records, errors, strict=True) if error is None])
                if gone is not None:
                    held[number] = gone
                else:
                    with working(run.work):
                        (run.work / "earlier").mkdir(exist_ok=True)
                        scores_path(run.work, number).replace(scores_path(run.work, number, "earlier"))
                    found = True
        if progress is not None:
            progress(_STAGE, done, len(numbers))
    return found


def settle(run: ScoringRun, held: dict[int, str]) -> None:
    """Of each part that was set aside, keep the scores of now, or those of before where any of them would be lost.

    Args:
        run: Prepared.
        held: Is given, by the number of each part that would lose a mask, the first image of which one has none now.

    Raises:
        OutputError: The folder of work can't be written.
    """
    missing = set(run.missing())
    for number in run.parts():
        earlier = scores_path(run.work, number, "earlier")
        if not earlier.exists():
            continue
        lost = None
        if number not in missing:
            was, now = pq.read_table(earlier, columns=["image", "error"]), run.scores_of(number)
            gone = was.filter(pc.and_(was["error"].is_null(), now["error"].is_valid()))
            lost = str(gone["image"][0]) if len(gone) else None
        with working(run.work):
            if number in missing or lost is not None:
                earlier.replace(scores_path(run.work, number))
            else:
                earlier.unlink()
        if lost is not None:
            held[number] = lost


def reopen(run: ScoringRun, scorer: MaskScorer, held: dict[int, str], progress: Progress | None = None) -> bool:
    """Take a table that is there apart into its parts, where a picture that it lacks can be read by now.

    The table itself stays as it is; :meth:`ScoringRun.finish` replaces it.

    Args:
        run: With its table there.
        scorer: Knows what can be read.
        held: As for :func:`set_aside`.
        progress: Called with stage, done, total.

    Returns:
        Whether the run is to go on: a part is to be scored anew, or an earlier call was stopped on the way.

    Raises:
        DataError: The data set can't be read.
        OutputError: There is no room to list it.
    """
    begun = run.reopened
    if not begun:
        if not _can_read_one(run, scorer, progress):
            return False
        run.begin_again()
    run.prepare(progress)
    settle(run, held)
    if not _take_apart(run, progress):
        return False
    return set_aside(run, scorer, held, progress) or begun


def _can_read_one(run: ScoringRun, scorer: MaskScorer, progress: Progress | None) -> bool:
    """Whether one of the pictures that could not be read, by the table of errors, can be read by now."""
    images: dict[str, None] = {}
    try:
        with run.errors_path.open(newline="", encoding="utf-8") as listed:
            for row in csv.DictReader(listed):
                if scorer.could_not_read(row["image"], row["error"]):
                    images[row["image"]] = None
    except (OSError, ValueError, KeyError, TypeError, csv.Error):  # not there, or not what was written
        return False
    for done, image in enumerate(images, 1):
        if scorer.can_read(image):
            return True
        if progress is not None:
            progress(_STAGE, done, len(images))
    return False


def _take_apart(run: ScoringRun, progress: Progress | None) -> bool:
    """Write the parts of a table that are not there yet; whether it is all of this list, as is its table of errors."""
    missing = set(run.missing())
    if not missing:
        return True
    numbers = run.parts()
    try:
        with _rows(run) as table:
            for number in numbers:
                scores = table.scores_of(read_part(run.work, number))
                if scores is None:
                    return False
                if number in missing:
                    write_part(run.work, number, scores)
                if progress is not None:
                    progress("Taking apart", number + 1, len(numbers))
            return table.is_spent()
    except OutputError:
        raise
    except (OSError, ValueError, KeyError, csv.Error, pa.ArrowException):  # one of them is not what was written
        return False


def _is_mended(scorer: MaskScorer, records: Sequence[Mapping[str, Any]], errors: Sequence[str | None]) -> bool:
    """Whether one of the records that have an error can be scored by now."""
    failed = [row for row, error in enumerate(errors) if error not in (None, scorer.nan_fault)]
    return any(fault is None for fault in scorer.faults([records[row] for row in failed]))


def _first_fault(scorer: MaskScorer, records: Sequence[Mapping[str, Any]]) -> str | None:
    """The image of the first record that can't be scored now."""
    faults = zip(records, scorer.faults(records), strict=True)
    return next((str(row["image"]) for row, fault in faults if fault is not None), None)


@contextmanager
def _rows(run: ScoringRun) -> Iterator[_Rows]:
    with pq.ParquetFile(run.out) as scored, run.errors_path.open(newline="", encoding="utf-8") as listed:
        yield _Rows(scored, csv.DictReader(listed))


class _Rows:
    """The rows of a table of scores and of its errors, taken part by part: both are in the order of the list."""

    def __init__(self, scored: pq.ParquetFile, listed: Iterator[dict[str, str]]) -> None:
        self._batches, self._listed = scored.iter_batches(_ROWS), listed
        self._held: pa.Table = scored.schema_arrow.empty_table()

    def is_spent(self) -> bool:
        """Whether all rows were taken; those that were not are lost."""
        return not len(self._held) and next(self._batches, None) is None and next(self._listed, None) is None

    def scores_of(self, records: pa.Table) -> pa.Table | None:
        """Scores of a part, with an error where there are none; None where the tables are of another list."""
        while len(self._held) < len(records) and (batch := next(self._batches, None)) is not None:
            self._held = pa.concat_tables([self._held, pa.Table.from_batches([batch], self._held.schema)])
        head = self._held.slice(0, len(records))
        here = pc.is_in(head["id"], records["id"].combine_chunks()).to_numpy()
        found = head.slice(0, int(here.sum()))
        rows = pc.index_in(records["id"], found["id"].combine_chunks())
        place = rows.drop_null().to_numpy()
        if not here[: len(found)].all() or not (np.diff(place) > 0).all() or len(place) != len(found):
            return None
        taken = found.take(rows)
        if not taken["image"].drop_null().equals(records.filter(rows.is_valid())["image"].drop_null()):
            return None
        self._held = self._held.slice(len(found))
        errors: list[str | None] = []
        for mask_id, has_scores in zip(records["id"].to_pylist(), rows.is_valid().to_pylist(), strict=True):
            listed = None if has_scores else next(self._listed, {})
            if listed is not None and listed.get("id") != ("" if mask_id is None else str(mask_id)):
                return None
            errors.append(None if listed is None else listed["error"])
        schema = score_schema(records.schema)
        columns = [
            records[name] if name in records.column_names else taken[name] for name in schema.names if name != "error"
        ]
        return pa.table([*columns, pa.array(errors, pa.string())], schema=schema)
