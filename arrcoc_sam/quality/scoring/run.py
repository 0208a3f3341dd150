"""A data set scored into one table, in a way that survives being killed at any moment.

Beside the table that is to come lies a folder of work: the plan, which says what the scores depend on; the masks as
numbered Parquet files of whole images (``records``); and for each of them, once it is done, the file of scores of the
same number. Each file is written under another name and renamed, so a file that is there is whole, and what is not
there is still to be done: nothing is done twice, nothing is left out, whoever does it. At the end the files become one
table, and the folder goes.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from arrcoc_sam.datasets.mask_index import MaskIndex
from arrcoc_sam.datasets.mask_sets import MaskSet
from arrcoc_sam.errors import DataError, InputError, OutputError, explain
from arrcoc_sam.quality.scoring.plan import PLAN_KEY, require_same_plan
from arrcoc_sam.quality.scoring.scorer import score_schema
from arrcoc_sam.report.writing import refuse_overwriting, replacing, write_text

__all__ = ["Progress", "ScoringRun", "read_part", "scores_path", "working", "write_part"]

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with the name of a stage, how much of it is done, and of how much."""

_REOPENED = "reopened"
_ERROR_COLUMNS = ("id", "image_id", "image", "error", "category")


class ScoringRun:
    """The folder of work of one table of scores. Use it as a context: it keeps other processes out.

    Args:
        dataset: What is scored.
        out: The table to be made; ends in ``.parquet``.
        plan: What the scores depend on, of :func:`~arrcoc_sam.quality.scoring.plan.scoring_plan`.

    Raises:
        InputError: ``out`` has another ending.
        OutputError: The data set itself, or a table or a folder of another plan is in the way, another process works
            here, or nothing can be written.
    """

    def __init__(self, dataset: MaskSet, out: str | os.PathLike[str], plan: Mapping[str, Any]) -> None:
        self.dataset, self.out = dataset, Path(out).expanduser()
        self.plan: dict[str, Any] = json.loads(json.dumps(plan))
        if self.out.suffix.lower() != ".parquet":
            raise InputError(explain(f"the table {self.out}", "a name that ends in .parquet"))
        if (
            dataset.path.is_dir()
            and dataset.format == "parquet"
            and self.out.parent.resolve() == dataset.path.resolve()
        ):
            expected = "a table outside, or it would be taken for a part of it"
            raise InputError(explain(f"the table {self.out} in the folder of the data set", expected))
        self.work = self.out.with_name(f"{self.out.name}.work")
        refuse_overwriting([self.out, self.errors_path, self.manifest_path, self.work], [dataset.path])
        self._check_out()
        try:
            self.work.mkdir(parents=True, exist_ok=True)
            (self.work / "scores").mkdir(exist_ok=True)
            self._lock = FileLock(self.work / "lock", timeout=0)
            self._lock.acquire()
        except Timeout as error:
            raise OutputError(explain(f"another process writes {self.out}", "one at a time", "wait for it")) from error
        except OSError as error:
            came = f"{self.work} can't be written ({error.strerror or error})"
            raise OutputError(explain(came, "a folder to write to", "name another one")) from error
        try:
            self._check_plan()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> ScoringRun:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes in."""
        self._lock.release()

    @property
    def done(self) -> bool:
        """Whether the table is there, whole, and of this plan."""
        return self.out.exists()

    def prepare(self, progress: Progress | None = None) -> None:
        """List the masks and cut them into parts, unless that was done before.

        Raises:
            DataError: The data set can't be read, has no masks, or ids repeat.
            OutputError: There is no room to list it.
        """
        records = self.work / "records"
        if records.exists():
            return
        draft = self.work / "records.draft"
        try:
            with working(self.work):
                for leftover in (self.work / "index.sqlite", draft):
                    if leftover.is_dir():
                        shutil.rmtree(leftover)
                    leftover.unlink(missing_ok=True)
                draft.mkdir()
                with MaskIndex(self.work / "index.sqlite", name=str(self.dataset.path)) as index:
                    self.dataset.fill(index)
                    if not (total := len(index)):
                        raise DataError(explain(f"{self.dataset.path} has no masks", "at least one"))
                    written = 0
                    for number, part in enumerate(index.parts(self.plan["part_masks"])):
                        pq.write_table(part, draft / _name(number))
                        written += len(part)
                        if progress is not None:
                            progress("Listing", written, total)
                (self.work / "index.sqlite").unlink()
                draft.rename(records)
        except DataError:
            shutil.rmtree(self.work, ignore_errors=True)  # nothing of it could be of use
            raise

    def parts(self) -> list[int]:
        """The numbers of all parts."""
        return list(range(sum(1 for _ in (self.work / "records").glob("*.parquet"))))

    def missing(self) -> list[int]:
        """The numbers of the parts that are still to be scored; what a crash left behind is cleared away."""
        for leftover in (self.work / "scores").glob(".*"):
            leftover.unlink()
        return [number for number in self.parts() if not self._has(number)]

    def num_masks(self, parts: list[int]) -> int:
        """How many masks some parts have."""
        return sum(int(pq.read_metadata(self.work / "records" / _name(number)).num_rows) for number in parts)

    def finish(self, manifest: Mapping[str, Any]) -> tuple[int, int]:
        """Make one table of all parts, a table of errors and a manifest, and remove the folder of work.

        Args:
            manifest: What is said of the run besides the plan.

        Returns:
            The number of masks, and of those that could not be scored.

        Raises:
            OutputError: They can't be written; the same run finishes later.
        """
        parts = self.parts()
        schema = score_schema(pq.read_schema(self.work / "records" / _name(0)))
        kept = pa.schema([field for field in schema if field.name != "error"])
        kept = kept.with_metadata({PLAN_KEY: json.dumps(self.plan).encode()})
        num_masks = num_errors = 0
        with replacing(self.out) as table, replacing(self.errors_path) as errors:
            with pq.ParquetWriter(table, kept) as writer, errors.open("w", newline="", encoding="utf-8") as listed:
                rows = csv.writer(listed)
                rows.writerow(_ERROR_COLUMNS)
                for number in parts:
                    scores = self.scores_of(number)
                    failed = scores["error"].is_valid()
                    for row in scores.filter(failed).select(_ERROR_COLUMNS).to_pylist():
                        rows.writerow([row[name] for name in _ERROR_COLUMNS])
                        num_errors += 1
                    num_masks += len(scores)
                    writer.write_table(scores.filter(scores["error"].is_null()).drop_columns("error").cast(kept))
            self._write_manifest(manifest, num_masks, num_errors)
        if not num_errors:
            self.errors_path.unlink()
        self.clear()
        return num_masks, num_errors

    def keep_manifest(self, manifest: Mapping[str, Any]) -> tuple[int, int]:
        """See that a table that is done has its manifest, and answer what :meth:`finish` did: by it, where it is there.

        Args:
            manifest: What is said of the run besides the plan, where there is none.

        Raises:
            OutputError: It can't be written.
        """
        if self.manifest_path.exists():
            try:
                found = json.loads(self.manifest_path.read_text(encoding="utf-8"))
                return int(found["num_masks"]), int(found["num_errors"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                came = f"{self.manifest_path} is no manifest of scores"
                raise OutputError(explain(came, "what was written beside the table", "remove it")) from error
        num_errors = 0
        if self.errors_path.exists():
            with self.errors_path.open(newline="", encoding="utf-8") as listed:
                num_errors = max(0, sum(1 for _ in csv.reader(listed)) - 1)  # less its head
            if not num_errors:
                self.errors_path.unlink()  # a kill came between table and manifest
        num_masks = int(pq.read_metadata(self.out).num_rows) + num_errors
        self._write_manifest(manifest, num_masks, num_errors)
        return num_masks, num_errors

    def _write_manifest(self, manifest: Mapping[str, Any], num_masks: int, num_errors: int) -> None:
        counts = {"num_masks": num_masks, "num_scored": num_masks - num_errors, "num_errors": num_errors}
        document = {**counts, "plan": self.plan, **manifest}
        write_text(self.manifest_path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")

    @property
    def reopened(self) -> bool:
        """Whether a table that is there is being made anew, in parts that are in the folder of work."""
        return (self.work / _REOPENED).exists()

    def begin_again(self) -> None:
        """Be about to list and score anew beside a table that is there; what a run left in the folder of work goes.

        Raises:
            OutputError: The folder of work can't be written.
        """
        with working(self.work):
            for name in ("records", "scores", "earlier"):
                shutil.rmtree(self.work / name, ignore_errors=True)
            (self.work / "scores").mkdir(exist_ok=True)
            (self.work / _REOPENED).touch()

    def scores_of(self, number: int) -> pa.Table:
        """The scores of a part that is there."""
        return pq.read_table(scores_path(self.work, number))

    def clear(self) -> None:
        """Remove the folder of work; it is of no use once the table is there."""
        (self.work / _REOPENED).unlink(missing_ok=True)  # first: half a folder must not be taken for parts
        shutil.rmtree(self.work, ignore_errors=True)

    @property
    def folders(self) -> tuple[Path, Path | None]:
        """Where images and mask files are, the same from every machine and working directory."""
        masks = self.dataset.masks
        return self.dataset.images.absolute(), None if masks is None else masks.absolute()

    @property
    def errors_path(self) -> Path:
        """Where the table of errors goes."""
        return self.out.with_name(f"{self.out.stem}.errors.csv")

    @property
    def manifest_path(self) -> Path:
        """Where the manifest goes."""
        return self.out.with_name(f"{self.out.stem}.manifest.json")

    def _has(self, number: int) -> bool:
        """Whether a part is scored. A file that a power failure cut off is removed."""
        path = scores_path(self.work, number)
        if not path.exists():
            return False
        try:
            if pq.read_metadata(path).num_rows == self.num_masks([number]):
                return True
        except (OSError, pa.ArrowException):
            pass
        path.unlink()
        return False

    def _check_out(self) -> None:
        if not self.out.exists():
            return
        try:
            found = json.loads((pq.read_schema(self.out).metadata or {})[PLAN_KEY])
        except (OSError, pa.ArrowException, KeyError, ValueError) as error:
            came = f"{self.out} exists and is no table of scores"
            raise OutputError(explain(came, "a new name", "choose another one")) from error
        require_same_plan(found, self.plan, f"{self.out} holds scores")

    def _check_plan(self) -> None:
        path = self.work / "plan.json"
        if not path.exists():
            write_text(path, json.dumps(self.plan, indent=1) + "\n")
            return
        require_same_plan(json.loads(path.read_text(encoding="utf-8")), self.plan, f"{self.work} is of a run")


def write_part(work: Path, number: int, scores: pa.Table) -> None:
    """Keep the scores of a part in a folder of work, whole or not at all.

    Raises:
        OutputError: They can't be written.
    """
    with replacing(scores_path(work, number)) as temporary:
        pq.write_table(scores, temporary)


def read_part(work: Path, number: int) -> pa.Table:
    """The masks of a part of a folder of work."""
    return pq.read_table(work / "records" / _name(number))


def scores_path(work: Path, number: int, folder: str = "scores") -> Path:
    """Where the scores of a part lie in a folder of work: those of now, or of another ``folder``."""
    return work / folder / _name(number)


@contextmanager
def working(work: Path) -> Iterator[None]:
    """Around whatever writes to a folder of work.

    Raises:
        OutputError: It can't be written.
    """
    try:
        yield
    except OutputError:
        raise
    except (OSError, sqlite3.OperationalError) as error:
        came = f"{work} can't be written ({getattr(error, 'strerror', None) or error})"
        raise OutputError(explain(came, "room and permission", "the same command goes on from here")) from error


def _name(number: int) -> str:
    return f"{number:07d}.parquet"
