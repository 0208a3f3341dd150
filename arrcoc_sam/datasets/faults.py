"""What is wrong with the records of a data set: raised at once, or collected for an error table."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

from arrcoc_sam.errors import DataError

__all__ = ["CocoId", "Fault", "FaultLog", "commonest"]

CocoId: TypeAlias = int | str
"""COCO's ids are whole numbers; strings are taken as well."""

_NAMES = re.compile(r"(?<!\S)'[^']*'|\S*[/\\]\S*|\S+\.\w+|\d+")
_COMPARED = 300
"""Characters of a message: a name without an end would be searched in the square of its length."""


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


def commonest(messages: Iterable[str]) -> str | None:
    """The first of the messages that most are like, but for paths, quoted names and numbers; None of none.

    What they are about is all that is left out: the mend and what was expected would make a summary long.

    Example:
        >>> commonest(["a/1.png does not exist; expected a file.", "2 pixels.", "a/2.png does not exist; expected it."])
        'a/1.png does not exist'
    """
    counts: Counter[str] = Counter()
    firsts: dict[str, str] = {}
    for message in messages:
        words = message.split("; expected ", 1)[0].split(". Mend: ", 1)[0].rstrip(".")
        kind = _NAMES.sub("…", words[:_COMPARED])
        counts[kind] += 1
        firsts.setdefault(kind, words)
    return firsts[counts.most_common(1)[0][0]] if counts else None
