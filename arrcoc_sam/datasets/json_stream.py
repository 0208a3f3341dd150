"""A large JSON document read value by value: files of gigabytes in a few megabytes of memory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from arrcoc_sam.errors import DataError, explain

__all__ = ["stream_json"]

_CHUNK = 1 << 20
_SPACE = " \t\n\r"
_AFTER_A_VALUE = _SPACE + ",]}:"
"""Anything else, or nothing yet: a number may go on."""
_LONGEST_LITERAL = 16
"""An error this near to the end of what was read may be a value that is cut off there."""


def stream_json(
    path: str | os.PathLike[str], *, object_hook: Callable[[dict[str, Any]], Any] | None = None
) -> Iterator[tuple[str, Any]]:
    """The values of a JSON dictionary, one after the other, and lists among them element by element.

    Args:
        path: The file, in UTF-8.
        object_hook: As for ``json.load``, for what lies deeper.

    Yields:
        Key and value in the order of the file. In the place of a list comes an iterator over its elements, to be used
        before the next key is asked for; what is left of it then is skipped.

    Raises:
        DataError: The file is missing, empty, cut off, no JSON, or no dictionary.

    Example:
        >>> path = getfixture("tmp_path") / "a.json"
        >>> _ = path.write_text('{"name": "x", "numbers": [1, 2, 3]}')
        >>> [(key, list(value) if key == "numbers" else value) for key, value in stream_json(path)]
        [('name', 'x'), ('numbers', [1, 2, 3])]
    """
    file = Path(path)
    try:
        with file.open(encoding="utf-8-sig") as text:
            yield from _Reader(text, file, json.JSONDecoder(object_hook=object_hook)).items()
    except FileNotFoundError as error:
        raise DataError(explain(f"{file} does not exist", "a JSON file", "check the path")) from error
    except OSError as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> DataError:
    return DataError(explain(f"{file} can't be read as JSON: {error}", "a JSON file in UTF-8"))


class _Reader:
    """A window on the text that grows until it holds a whole value, and moves on."""

    def __init__(self, text: TextIO, file: Path, decoder: json.JSONDecoder) -> None:
        self._text, self._file, self._decoder = text, file, decoder
        self._window, self._at, self._before, self._ended = "", 0, 0, False

    def items(self) -> Iterator[tuple[str, Any]]:
        if self._next() != "{":
            start = self._window[self._at : self._at + 20]
            came = f"{self._file} begins with {start!r}" if start else f"{self._file} is no JSON: it is empty"
            raise DataError(explain(came, "a JSON dictionary, {…}", "is it the right file?"))
        self._at += 1
        if self._next() == "}":
            return
        while True:
            key = self._value()
            if not isinstance(key, str):
                raise self._fault("a key that is no string")
            self._take(":")
            if self._next() == "[":
                elements = self._elements()
                yield key, elements
                for _ in elements:
                    pass
            else:
                yield key, self._value()
            if self._take(",}") == "}":
                return

    def _elements(self) -> Iterator[Any]:
        self._take("[")
        if self._next() == "]":
            self._at += 1
            return
        while True:
            yield self._value()
            if self._take(",]") == "]":
                return

    def _value(self) -> Any:
        self._next()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._window, self._at)
            except RecursionError as error:
                raise _unreadable(self._file, error) from error
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos >= len(self._window) - _LONGEST_LITERAL
                if self._ended or not cut:
                    raise self._fault(error.msg, error.pos) from error
            else:
                if self._ended or (end < len(self._window) and self._window[end] in _AFTER_A_VALUE):
                    self._at = end
                    return value
            self._grow()

    def _next(self) -> str:
        """The next character that is no space, still to be taken; empty at the end."""
        while True:
            while self._at < len(self._window) and self._window[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._window):
                return self._window[self._at]
            if self._ended:
                return ""
            self._grow()

    def _take(self, allowed: str) -> str:
        found = self._next()
        if not found or found not in allowed:
            raise self._fault(f"{found!r} in place of {' or '.join(map(repr, allowed))}" if found else "it is cut off")
        self._at += 1
        return found

    def _grow(self) -> None:
        rest = self._window[self._at :]
        size = max(_CHUNK, len(rest))  # twice as much each time: a long value is not tried too often
        try:  # here, since elements are read by whoever uses them, beyond the reach of stream_json
            more = self._text.read(size)
        except (OSError, UnicodeDecodeError) as error:
            raise _unreadable(self._file, error) from error
        self._before += self._at
        self._window, self._at, self._ended = rest + more, 0, not more

    def _fault(self, words: str, position: int | None = None) -> DataError:
        place = self._before + (self._at if position is None else position)
        mend = "fetch or write it again; it may be cut off"
        return DataError(explain(f"{self._file} is no JSON: {words}, at character {place}", "whole JSON", mend))
