"""What goes to the terminal: notices, tables and progress on stderr, results on stdout."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

__all__ = [
    "Advance",
    "err",
    "note",
    "noted",
    "out",
    "print_json",
    "print_notes",
    "print_table",
    "progress",
    "tracked",
]

Item = TypeVar("Item")


_notes: list[str] = []


class Advance(Protocol):
    """Says that so much more is done."""

    def __call__(self, amount: int = 1) -> None:
        """Advance by ``amount``."""
        ...


def out() -> Console:
    """The console of results."""
    return Console(highlight=False)


def err() -> Console:
    """The console of everything else."""
    return Console(stderr=True, highlight=False)


def note(text: str) -> None:
    """Say this on stderr at once; elsewhere than on the way out of an interrupted command use :func:`noted`."""
    err().print(f"note: {text}", soft_wrap=True, markup=False)


def noted(text: str) -> None:
    """Say this on stderr once long work begins or the command has succeeded: an error is one line and stands alone."""
    _notes.append(text)


def print_notes(*, succeeded: bool) -> None:
    """Write what was noted, if the command has succeeded, and forget it."""
    for text in _notes if succeeded else ():
        note(text)
    _notes.clear()


def print_json(record: Any) -> None:
    """Write one JSON document to stdout, and nothing else."""
    from arrcoc_sam.report.json_text import json_document  # reports know torch, which help has to do without

    sys.stdout.write(json_document(record))


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, to: Console, right: Sequence[str] = ()
) -> None:
    """Write a table; no cell is cut off, however narrow the terminal is.

    Args:
        title: Above it.
        columns: Heads.
        rows: Cells, as plain text.
        to: The console.
        right: Heads of columns of numbers.
    """
    table = Table(
        title=escape(title),
        title_justify="left",
        title_style="bold",
        header_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    for column in columns:
        table.add_column(escape(column), justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    to.print(table)


@contextmanager
def progress(description: str, *, total: int | None) -> Iterator[Advance]:
    """A progress bar on stderr; none where stderr is no terminal.

    Args:
        description: What is going on.
        total: How much there is to do; None where nobody knows.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    print_notes(succeeded=True)  # what was asked for is sound, and may take long
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = err()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(description, total=total)

        def advance(amount: int = 1) -> None:
            bar.advance(task, amount)

        yield advance


def tracked(items: Sequence[Item], description: str) -> Iterator[Item]:
    """The items one by one, with a bar that counts them."""
    with progress(description, total=len(items)) as advance:
        for item in items:
            yield item
            advance()
