"""The command line that is running, as a record of where its results come from."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["current_command", "recorded"]

_words: ContextVar[tuple[str, ...]] = ContextVar("words", default=())


@contextmanager
def recorded(words: Sequence[str]) -> Iterator[None]:
    """Inside, :func:`current_command` is ``arrcoc-sam`` with these words."""
    token = _words.set(tuple(words))
    try:
        yield
    finally:
        _words.reset(token)


def current_command() -> str:
    """The command line, quoted for a shell.

    Example:
        >>> with recorded(["segment", "my cat.jpg"]):
        ...     current_command()
        "arrcoc-sam segment 'my cat.jpg'"
    """
    return shlex.join(["arrcoc-sam", *_words.get()])
