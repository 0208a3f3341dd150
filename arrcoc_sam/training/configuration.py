"""Files of settings: TOML read into frozen dataclasses, every key and value checked; and the counts of a run."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from arrcoc_sam.errors import ArrcocSamError, DataError, InputError, explain, near_name

__all__ = ["check_counts", "read_section", "read_toml"]

Section = TypeVar("Section")


def check_counts(least: int, **counts: int | None) -> None:
    """See that numbers of steps or processes are large enough; None is.

    Raises:
        InputError: One is below ``least``.
    """
    for name, value in counts.items():
        if value is not None and value < least:
            raise InputError(explain(f"{name}={value}", f"at least {least}"))


def read_toml(path: str | Path) -> dict[str, Any]:
    """A TOML file as tables.

    Raises:
        DataError: It is missing, or no TOML; the message names line and column.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(explain(f"{path} does not exist", "a TOML file of settings", "check the path")) from error
    except (OSError, ValueError) as error:  # undecodable text and bad TOML are ValueErrors
        raise DataError(explain(f"{path} can't be read as TOML: {error}", "a TOML file of settings")) from error


def read_section(kind: type[Section], table: object, place: str, *, base: Mapping[str, Any] | None = None) -> Section:
    """A dataclass from a table: numbers, texts, flags, choices, lists of them, and tables within.

    Args:
        kind: A dataclass, with type hints that say what each key may be.
        table: What the file has.
        place: What messages call it, the file and the table.
        base: Values for keys that the table lacks, before the dataclass's own defaults; a table within is laid over a
            dataclass here.

    Raises:
        InputError: No table, an unknown or missing key, a value of another type, or one that the dataclass refuses.

    Example:
        >>> from arrcoc_sam.training.settings import Stage
        >>> read_section(Stage, {"image_size": 64, "steps": 10}, "run.toml [stage]").num_images
        16
    """
    if not isinstance(table, Mapping):
        raise InputError(explain(f"{place} is {table!r}", "a table"))
    hints = get_type_hints(kind)
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    values = dict(base or {})
    for name, value in table.items():
        if name not in known:
            expected = f"one of {', '.join(known)}"
            raise InputError(explain(f"{place} has the key {name!r}", expected, near_name(name, known)))
        values[name] = _value(hints[name], value, f"{place}: {name}", values.get(name))
    for name, field in known.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise InputError(explain(f"{place} has no {name!r}", "a value for it"))
    try:
        return kind(**values)
    except ArrcocSamError as error:
        raise type(error)(f"{place}: {error}") from error


def _value(hint: Any, value: Any, place: str, base: Any) -> Any:
    """One value, of the type that a hint says."""
    if is_dataclass(hint) and isinstance(hint, type):
        inherited = {} if base is None else {field.name: getattr(base, field.name) for field in fields(base)}
        return read_section(hint, value, place, base=inherited)
    origin = get_origin(hint)
    if origin is tuple:
        if not isinstance(value, list):
            raise InputError(explain(f"{place} = {value!r}", "a list"))
        (element, *_) = get_args(hint)
        return tuple(_value(element, each, f"{place}[{i}]", None) for i, each in enumerate(value))
    if origin is Literal:
        if value not in get_args(hint):
            raise InputError(explain(f"{place} = {value!r}", f"one of {', '.join(map(repr, get_args(hint)))}"))
        return value
    if origin in (Union, UnionType):
        (inner,) = (each for each in get_args(hint) if each is not type(None))
        return _value(inner, value, place, base)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text in quotes"}
        raise InputError(explain(f"{place} = {value!r}", words.get(hint, str(hint))))
    return value
