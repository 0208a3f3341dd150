"""Logs of a run: a CSV file always, TensorBoard where it is wanted; both go on where a killed run left off."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from arrcoc_sam.errors import MissingExtraError, OutputError, explain
from arrcoc_sam.report.writing import write_text

__all__ = ["TrainingLog", "last_row"]

_NAME = "log.csv"


class TrainingLog:
    """Rows of figures by step.

    Attributes:
        last_step: That of the last row; 0 while there is none.

    Args:
        folder: Where ``log.csv`` and TensorBoard's ``tensorboard`` go.
        first_step: Steps done already: what a killed run logged after its last checkpoint is dropped.
        tensorboard: Write for TensorBoard as well.

    Raises:
        MissingExtraError: TensorBoard is wanted and not installed.
    """

    def __init__(self, folder: Path, *, first_step: int = 0, tensorboard: bool = False) -> None:
        self._path = folder / _NAME
        self.last_step = 0
        self._writer: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise MissingExtraError.of("tensorboard", "train") from error
            self._writer = SummaryWriter(folder / "tensorboard", purge_step=first_step + 1)
        if self._path.is_file():
            header, *rows = self._path.read_text(encoding="utf-8").splitlines() or [""]
            whole = [row for row in rows if row.count(",") == header.count(",")]  # a kill may cut the last one off
            kept = [row for row in whole if int(row.split(",", 1)[0]) <= first_step]
            if kept:
                write_text(self._path, "\n".join([header, *kept]) + "\n")
                self.last_step = int(kept[-1].split(",", 1)[0])
            else:
                self._path.unlink()

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Append one row.

        Args:
            step: Steps done.
            row: Figures by name, the same names every time.

        Raises:
            OutputError: It can't be written.
        """
        new = not self._path.is_file()
        try:
            with self._path.open("a", newline="", encoding="utf-8") as file:
                writer = csv.writer(file, lineterminator="\n")
                if new:
                    writer.writerow(["step", *row])
                writer.writerow([step, *(f"{value:.6g}" for value in row.values())])
        except OSError as error:
            came = f"{self._path} can't be written ({error.strerror or error})"
            raise OutputError(explain(came, "room for a row", "free some of the disk")) from error
        self.last_step = step
        if self._writer is not None:
            for name, value in row.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """End TensorBoard's file."""
        if self._writer is not None:
            self._writer.close()


def last_row(folder: Path) -> dict[str, float]:
    """The last figures in the log of a run, by name; none where somebody took the log away.

    Args:
        folder: Of the log.
    """
    if not (folder / _NAME).is_file():
        return {}
    with (folder / _NAME).open(newline="", encoding="utf-8") as file:
        *_, row = csv.DictReader(file)
    return {name: float(value) for name, value in row.items() if name != "step"}
