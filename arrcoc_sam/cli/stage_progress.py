"""Progress of work that has several stages and says itself how far each of them is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from arrcoc_sam.cli.console import err, print_notes

__all__ = ["stage_progress"]


@contextmanager
def stage_progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr for each stage that has begun and not ended; none where stderr is no terminal.

    Notes come with the first stage that has something to say: what was asked for is sound by then.

    Yields:
        To be called with the name of a stage, how much of it is done, and of how much.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = err()
    tasks: dict[str, TaskID] = {}
    bars = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    with ExitStack() as shown:

        def report(stage: str, done: int, total: int) -> None:
            if not tasks:
                print_notes(succeeded=True)
                shown.enter_context(bars)
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total, visible=done < total)

        yield report
