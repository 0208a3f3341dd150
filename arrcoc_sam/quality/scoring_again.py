"""What an earlier run could not score, tried again where it can be read by now.

Parts are scored again as a whole, so that scores are those of a run in which nothing was ever amiss. A part whose
faults all stand is left as it is, and what a segmenter answered with NaN is not asked about twice.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from arrcoc_sam.quality.scoring import MaskScorer, score_schema
from arrcoc_sam.quality.scoring_run import Progress, ScoringRun, read_part, write_part

__all__ = ["drop_mended", "reopen"]

_ROWS = 4096


def drop_mended(run: ScoringRun, scorer: MaskScorer) -> None:
    """Forget the scores of those parts that lack a mask which can be read by now.

    Args:
        run: Prepared.
        scorer: Knows what can be read.
    """
    for number in sorted(set(run.parts()) - set(run.missing())):
        scores = run.scores_of(number)
        if scores["error"].null_count < len(scores):
            records = read_part(run.work, number).to_pylist()
            errors = scores["error"].to_pylist()
            if _faults(scorer, records, errors) is None:
                run.forget(number)


def reopen(run: ScoringRun, scorer: MaskScorer, progress: Progress | None = None) -> bool:
    """Take a table that is there apart into its parts, without those that lack a mask which can be read by now.

    Args:
        run: With its table there.
        scorer: Knows what can be read.
        progress: Called with stage, done, total.

    Returns:
        Whether the run is to go on: something can be read now, or an earlier call was stopped on the way.

    Raises:
        DataError: The data set can't be read.
        OutputError: There is no room to list it.
    """
    begun = run.reopened
    if not begun:
        if not _lacks_some(run):
            return False
        run.begin_again()
    run.prepare(progress)
    drop_mended(run, scorer)
    table, unanswered = _Rows(run), _unanswered(run, scorer)
    missing = set(run.missing())
    for number in run.parts():
        records = read_part(run.work, number)
        scores = table.scores_of(records)
        if scores is None:
            return begun and not missing
        if number not in missing:
            continue
        rows = records.to_pylist()
        errors = [
            scorer.nan_fault if error is not None and str(row["id"]) in unanswered else error
            for row, error in zip(rows, scores["error"].to_pylist(), strict=True)
        ]
        faults = _faults(scorer, rows, errors)
        if faults is not None:
            place = scores.schema.get_field_index("error")
            listed = pa.array(faults, pa.string())
            write_part(run.work, number, scores.set_column(place, scores.schema.field(place), listed))
    return table.at_end and (begun or bool(run.missing()))


def _faults(
    scorer: MaskScorer, records: Sequence[Mapping[str, Any]], errors: Sequence[str | None]
) -> list[str | None] | None:
    """What is wrong with each record now, of those that have an error; None where one of them can be scored by now."""
    failed = [row for row, error in enumerate(errors) if error is not None]
    faults: list[str | None] = [None] * len(records)
    for row, fault in zip(failed, scorer.faults([records[row] for row in failed]), strict=True):
        if fault is None and errors[row] != scorer.nan_fault:
            return None
        faults[row] = errors[row] if fault is None else fault
    return faults


class _Rows:
    """The rows of a table of scores, taken part by part: they come in the order of the list."""

    def __init__(self, run: ScoringRun) -> None:
        file = pq.ParquetFile(run.out)
        self._batches = file.iter_batches(_ROWS)
        self._held: pa.Table = file.schema_arrow.empty_table()

    @property
    def at_end(self) -> bool:
        """Whether all rows were taken."""
        return self._held.num_rows == 0 and next(self._batches, None) is None

    def scores_of(self, records: pa.Table) -> pa.Table | None:
        """Scores of a part, with an error where there are none; None where the table is of another list."""
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
        schema = score_schema(records.schema)
        columns = [
            records[name] if name in records.column_names else taken[name] for name in schema.names if name != "error"
        ]
        error = pa.array([None if there else "" for there in rows.is_valid().to_pylist()], pa.string())
        return pa.table([*columns, error], schema=schema)


def _lacks_some(run: ScoringRun) -> bool:
    """Whether there are masks without a score, as far as manifest and errors say."""
    try:
        return int(json.loads(run.manifest_path.read_text(encoding="utf-8"))["num_errors"]) > 0
    except (OSError, ValueError, KeyError, TypeError):
        return run.errors_path.exists()


def _unanswered(run: ScoringRun, scorer: MaskScorer) -> set[str]:
    """Ids of the masks that were answered with NaN."""
    if not run.errors_path.exists():
        return set()
    with run.errors_path.open(newline="", encoding="utf-8") as listed:
        return {row["id"] for row in csv.DictReader(listed) if row["error"] == scorer.nan_fault}
