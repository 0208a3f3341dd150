"""What is wrong with the records of a data set: raised at once, or collected for an error table."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from arrcoc_sam.errors import DataError

__all__ = ["CocoId", "Fault", "FaultLog"]

CocoId: TypeAlias = int | str
"""COCO's ids are whole numbers; strings are taken as well."""


class Fault(NamedTuple):
    """A record that was left out, for an error table.

    Attributes:
        kind: "image", "category", "annotation" or "hierarchy".
        id: The record's id, None where it has none.
        message: What is wrong with it, what was expected, and the mend.
    """

    kind: str
    id: CocoId | None
    message: str


class FaultLog:
    """Raises the first fault, or collects them all.

    Args:
        file: What messages begin with.
        strict: Whether to raise.
    """

    def __init__(self, file: str, *, strict: bool) -> None:
        self.file = file
        self.strict = strict
        self.faults: list[Fault] = []

    def ids(self, kind: str) -> set[CocoId]:
        """Ids of the records of a kind that can't be used."""
        return {fault.id for fault in self.faults if fault.kind == kind and fault.id is not None}

    def error(self, words: str) -> DataError:
        """An error about the file, to be raised."""
        return DataError(f"{self.file}: {words}")

    def add(self, kind: str, record_id: CocoId | None, place: str, words: str) -> None:
        """Note that a record can't be used.

        Raises:
            DataError: When strict.
        """
        message = f"{self.file}: {place}: {words}"
        if self.strict:
            raise DataError(message)
        self.faults.append(Fault(kind, record_id, message))
