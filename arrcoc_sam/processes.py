"""Processes that work for another one."""

from __future__ import annotations

import os
from multiprocessing import parent_process
from threading import Thread

__all__ = ["end_with_parent"]


def end_with_parent() -> None:
    """Lets this process end when the one that started it does, however that ended; for the workers of a pool.

    A worker waits for its next task at a queue that it holds open itself, so that after a ``kill -9`` of the process
    that fills it, it would wait for ever. In a process that no other one of :mod:`multiprocessing` started it does
    nothing. A child that the parent forked by itself counts as the parent for as long as it lives.
    """
    Thread(target=_watch, name="end_with_parent", daemon=True).start()


def _watch() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
