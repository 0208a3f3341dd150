"""What callers pass as masks, coordinates, sizes and devices, as torch has it; or the error that says what is wrong."""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Shaped
from torch import Tensor

from arrcoc_sam.errors import DataError, InputError, ShapeError, describe, explain, first_line

__all__ = [
    "Coordinates",
    "RecordKind",
    "Rows",
    "as_coordinates",
    "as_count",
    "as_masks",
    "as_numbers",
    "as_records",
    "as_size",
    "choose_device",
    "kept_rows",
    "parsed_json",
]

Coordinates: TypeAlias = Tensor | np.ndarray | Sequence[Any]
"""Points or boxes as a caller has them: a tensor, an array or nested lists; the last axis is 2 or 4 long."""

Rows: TypeAlias = int | np.integer | slice | Sequence[int] | Sequence[bool] | Tensor | np.ndarray
"""An index of rows, as tensors take it."""

RecordKind: TypeAlias = Literal["any", "whole number", "whole number or null", "finite number", "finite number or null"]
"""What a field of a record holds."""


def as_masks(
    masks: Tensor | np.ndarray, *, name: str = "masks", soft: bool = False, min_rank: int = 2
) -> Bool[Tensor, "*N H W"] | Float[Tensor, "*N H W"]:
    """Masks as a tensor, without a copy where possible.

    Bool masks come back with bytes of 0 and 1, as they are counted by: those that Pillow makes of an image of mode "1"
    have bytes of 255, in tensors made of them too.

    Args:
        masks: Bool masks (…, H, W); with ``soft`` also floats in [0, 1].
        name: The argument's name in the error message.
        soft: Whether float masks are accepted.
        min_rank: The least number of axes, H and W included.

    Returns:
        The masks as a tensor, bool or floating point, on their device.

    Raises:
        ShapeError: Fewer axes than ``min_rank``, or H or W is 0.
        InputError: Another dtype, or neither a tensor nor an array.

    Example:
        >>> as_masks(np.ones((2, 3), dtype=bool)).shape
        torch.Size([2, 3])
    """
    expected = "bool masks" + (" or soft masks of floats in [0, 1]" if soft else "") + " of shape (…, H, W)"
    given: object = masks
    if isinstance(given, np.ndarray):
        if given.dtype != np.bool_ and not (soft and given.dtype in (np.float16, np.float32, np.float64)):
            raise InputError(explain(f"{name} is {describe(given)}", expected, _cut(given, name)))
        # from_numpy takes neither negative strides nor, without a warning, read-only memory
        given = torch.from_numpy(
            given if given.flags.writeable and min(given.strides, default=0) >= 0 else given.copy()
        )
    if not isinstance(given, Tensor):
        mend = "pass a tensor or a numpy array"
        if isinstance(given, Mapping) and "counts" in given:
            mend = f"draw the run lengths: arrcoc_sam.masks.decode_rle({name})"
        elif isinstance(given, Mapping) and "segmentation" in given:
            mend = f'{name}["segmentation"]'
        raise InputError(explain(f"{name} is {describe(given)}", expected, mend))
    if given.dtype != torch.bool and not (soft and given.is_floating_point()):
        raise InputError(explain(f"{name} is {describe(given)}", expected, _cut(given, name)))
    if given.ndim < min_rank or 0 in given.shape[-2:]:
        missing = f"{name}[None]" if given.ndim == min_rank - 1 else None
        expected = f"at least {min_rank} axes, the last two (H, W) >= 1"
        raise ShapeError(explain(f"{name} is {describe(given)}", expected, missing))
    return _of_ones(given) if given.dtype == torch.bool else given


def _cut(given: Tensor | np.ndarray, name: str) -> str:
    """How bool masks are made of others."""
    mend = f"threshold it, for example {name} > 0"
    if given.ndim == 2 and "int" in str(given.dtype):  # perhaps as scikit-image's label answers it
        mend += f"; a map of labels: {name} == labels[:, None, None]"
    return mend


def _of_ones(masks: Bool[Tensor, "*N H W"]) -> Bool[Tensor, "*N H W"]:
    """The same masks, every True a byte of 1."""
    # To look would take a wait for the device, which is longer than a copy, and break a compiled graph.
    if masks.device.type != "cpu" or torch.compiler.is_compiling():
        return masks.view(torch.uint8) != 0
    if masks.numel() == 0 or int(masks.view(torch.uint8).amax()) <= 1:
        return masks
    return masks.view(torch.uint8) != 0


def as_coordinates(values: Coordinates, length: int, name: str) -> Float64[Tensor, "*N last"]:
    """Points or boxes as float64, on their own device.

    Args:
        values: Numbers of shape (…, length).
        length: 2 for points, 4 for boxes.
        name: The argument's name in the error message.

    Returns:
        (…, length) float64.

    Raises:
        ShapeError: The last axis is not ``length`` long.
        InputError: Not numbers, or ragged.
    """
    try:
        array = values if isinstance(values, Tensor) else torch.from_numpy(np.array(values, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise InputError(explain(f"{name} is {describe(values)}", f"numbers of shape (…, {length})")) from error
    if array.ndim < 1 or array.shape[-1] != length:
        raise ShapeError(explain(f"{name} is {describe(array)}", f"(…, {length})"))
    return array.to(torch.float64)


def as_numbers(
    values: Tensor | np.ndarray | Sequence[Any] | float, name: str, axes: str, device: torch.device | None = None
) -> Shaped[Tensor, "*N"]:
    """Numbers as a tensor, their dtype as it came.

    Args:
        values: A tensor, an array, nested lists or a number.
        name: The argument's name in the error message.
        axes: The shape that is wanted, for the message.
        device: Where the tensor is wanted; where it is already when None.

    Raises:
        InputError: Not numbers, or ragged.
    """
    try:
        given = values if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
    except (TypeError, ValueError) as error:
        raise InputError(explain(f"{name} is {describe(values)}", f"numbers of shape {axes}")) from error
    return given if device is None else given.to(device)


def as_size(size_hw: Sequence[int], name: str) -> tuple[int, int]:
    """A size (height, width) as two ints of at least 1.

    Raises:
        InputError: Not two whole numbers, or one below 1.
    """
    try:
        height, width = (operator.index(side) for side in size_hw)
    except (TypeError, ValueError) as error:
        raise InputError(explain(f"{name}={size_hw!r}", "(height, width) in whole pixels")) from error
    if height < 1 or width < 1:
        raise InputError(explain(f"{name}={size_hw!r}", "(height, width) of at least 1 each"))
    return height, width


def as_count(value: object, name: str, *, least: int = 1) -> int:
    """A whole number as an int.

    Args:
        value: An int, or an integer of numpy or torch.
        name: The argument's name in the error message.
        least: The smallest number there may be.

    Raises:
        InputError: No whole number, or a smaller one.
    """
    try:
        count = operator.index(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(explain(f"{name}={value!r}", f"a whole number, at least {least}")) from error
    if count < least or isinstance(value, bool):
        raise InputError(explain(f"{name}={value!r}", f"a whole number, at least {least}"))
    return count


def kept_rows(index: Rows, length: int, what: str) -> slice | Sequence[int] | Sequence[bool] | Tensor | np.ndarray:
    """An index under which the axis stays: one integer, of whatever library, is a slice of length 1.

    Args:
        index: As it was given; what is no single integer comes back as it is.
        length: Of the axis.
        what: A row is, for the error message.

    Raises:
        IndexError: An integer out of range.

    Example:
        >>> kept_rows(-1, 3, "prompt"), kept_rows(torch.tensor(0), 3, "prompt"), kept_rows([2, 0], 3, "prompt")
        (slice(2, 3, None), slice(0, 1, None), [2, 0])
    """
    if isinstance(index, (slice, list, tuple)) or (isinstance(index, (Tensor, np.ndarray)) and index.ndim > 0):
        return index
    row = operator.index(index)  # type: ignore[arg-type]
    if not -length <= row < length:
        raise IndexError(f"{what} {row} of {length}")
    return slice(row % length, row % length + 1)


def choose_device(device: torch.device | str) -> torch.device:
    """The device meant: "auto" is CUDA's where there is one, and else the CPU.

    Apple's GPU has to be named: it has no float64, in which sizes and coordinates are counted, and is not tested.

    Raises:
        InputError: No such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, TypeError) as error:
        known = str(device).partition(":")[0] in ("cpu", "cuda", "mps")  # else torch's answer is a list of all types
        came = f"device={device!r}" + (f" ({first_line(error)})" if known else "")
        raise InputError(explain(came, '"auto", "cpu", "cuda" or "mps"')) from error
    return chosen


def parsed_json(text: str | bytes, name: str) -> Any:
    """What a JSON text says.

    Raises:
        DataError: It is none.
    """
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(explain(f"{name} is no JSON ({first_line(error)})", "JSON text")) from error


def as_records(given: object, kinds: Mapping[str, RecordKind], name: str) -> list[dict[str, Any]]:
    """Records of a JSON document whose fields hold what they should.

    Args:
        given: What was parsed.
        kinds: The fields that each record has, and what is in them; "any" is not looked at.
        name: What the message calls the records.

    Raises:
        DataError: No list of dictionaries, a field is missing, or it holds something else.
    """
    if not isinstance(given, list):
        raise DataError(explain(f"{name} are {describe(given)}", "a list of records"))
    for number, record in enumerate(given):
        if not isinstance(record, dict):
            raise DataError(explain(f"number {number} of {name} is {describe(record)}", "a dictionary"))
        missing = [field for field in kinds if field not in record]
        if missing:
            came = f"number {number} of {name} lacks {', '.join(missing)}"
            raise DataError(explain(came, f"the fields {', '.join(kinds)}"))
        for field, kind in kinds.items():
            if not _is_of(record[field], kind):
                came = f"{field} of number {number} of {name} is {describe(record[field])}"
                raise DataError(explain(came, f"a {kind}"))
    return given


def _is_of(value: object, kind: RecordKind) -> bool:
    if kind == "any" or (value is None and kind.endswith("or null")):
        return True
    whole = type(value) is int  # a bool is none
    return whole or (kind.startswith("finite number") and isinstance(value, float) and math.isfinite(value))
