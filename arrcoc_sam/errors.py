"""Every error that the package raises on purpose.

One base class, so that ``except ArrcocSamError`` catches all of them, and one kind for each thing that a caller
may want to handle apart. Each kind also derives from the built-in that a Python user would expect (``ValueError``,
``LookupError``, ``ImportError``, ``RuntimeError``). A message has three parts: what came, what was expected, and
the mend; :func:`explain` puts them into one line.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

__all__ = [
    "ArrcocSamError",
    "AttentionCaptureError",
    "CheckpointError",
    "DataError",
    "EmbeddingMismatchError",
    "HierarchyError",
    "ImageReadError",
    "ImageTooLargeError",
    "InputError",
    "MissingExtraError",
    "MixedSizesError",
    "OutputError",
    "ShapeError",
    "TrainingError",
    "UnknownNameError",
    "UnsupportedModelError",
    "describe",
    "explain",
    "first_line",
    "listed",
    "near_name",
    "no_room",
    "said",
]


class ArrcocSamError(Exception):
    """Base of all errors of this package."""


class InputError(ArrcocSamError, ValueError):
    """An argument has a value that can't be worked with: a range, a dtype, NaN, an empty input."""


class ShapeError(InputError):
    """An array has the wrong rank or sizes."""


class MixedSizesError(ShapeError):
    """One array was asked for over images of several sizes; stream them instead."""


class HierarchyError(InputError):
    """Masks can't be read as whole, part and subpart (fewer than three, say)."""


class EmbeddingMismatchError(InputError):
    """An image embedding was handed to another segmenter than the one that made it."""


class ImageReadError(InputError):
    """A file is missing, empty, truncated or not an image."""


class ImageTooLargeError(ImageReadError):
    """An image has more pixels than ``max_pixels``."""


class DataError(InputError):
    """A data set, table or mask file is inconsistent with itself or with its images."""


class UnknownNameError(ArrcocSamError, LookupError):
    """A name (segmenter, strategy, metric, protocol, …) is not among those known."""


class CheckpointError(ArrcocSamError, RuntimeError):
    """Weights are missing, truncated, of another architecture, or fail their SHA-256."""


class MissingExtraError(ArrcocSamError, ImportError):
    """An optional dependency is not installed; the message gives the command that installs it."""

    @classmethod
    def of(cls, module: str, extra: str) -> MissingExtraError:
        """The error for a ``module`` that the optional ``extra`` of this package would bring."""
        return cls(
            explain(
                f"{module} is not installed",
                f"the optional dependencies '{extra}'",
                f"install them with: pip install 'arrcoc-sam[{extra}]'",
            )
        )


class AttentionCaptureError(ArrcocSamError, RuntimeError):
    """Attention could not be read from a model exactly, so nothing is returned."""


class UnsupportedModelError(ArrcocSamError, ValueError):
    """A model family whose attention or masks can't be read correctly here; the message names it and says why."""


class TrainingError(ArrcocSamError, RuntimeError):
    """Training can't go on: a loss that is not finite, a run that can't be resumed."""


class OutputError(ArrcocSamError, OSError):
    """A result can't be written: a read-only folder, a full disk, a file that exists."""


def explain(came: str, expected: str | None = None, mend: str | None = None) -> str:
    """One line that says what came, what was expected, and the mend.

    Args:
        came: What was given, with the argument's name.
        expected: What was expected, without a full stop.
        mend: What the caller can do about it.

    Returns:
        The message.

    Example:
        >>> explain("points_xy has shape (3,)", "(K, P, 2)", "add the axes: points_xy[None, None]")
        'points_xy has shape (3,); expected (K, P, 2). Mend: add the axes: points_xy[None, None].'
        >>> explain("no list 'images'", mend="is it a COCO file?")
        "no list 'images'. Mend: is it a COCO file?"
    """
    message = came
    if expected is not None:
        message += f"; expected {expected}"
    message += "."
    if mend is not None:
        message += f" Mend: {mend}{'' if mend.endswith('?') else '.'}"
    return message


def near_name(name: str, known: Iterable[str]) -> str | None:
    """The mend for a name that is not known, where one that is resembles it.

    Example:
        >>> near_name("vit_b", ["sam_vit_h", "sam_vit_b"]), near_name("vit_b", ["tiny"])
        ("'sam_vit_b', if that is meant", None)
    """
    near = get_close_matches(name, list(known), 1, 0.5)
    return f"{near[0]!r}, if that is meant" if near else None


def first_line(error: BaseException, limit: int = 160) -> str:
    r"""What an error of somebody else says, short enough for a message of ours; its kind, where it says nothing.

    Args:
        error: What was raised.
        limit: The most characters.

    Example:
        >>> first_line(ValueError("no such size\nby the way, …")), first_line(AssertionError())
        ('no such size', 'AssertionError')
    """
    words = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return words if len(words) <= limit else words[: limit - 1] + "…"


def said(error: BaseException) -> str:
    """The kind of an error of somebody else, and its first line where it has one.

    Example:
        >>> said(OSError("no such file")), said(OSError())
        ('OSError: no such file', 'OSError')
    """
    kind = type(error).__name__
    return f"{kind}: {first_line(error)}" if str(error).strip() else kind


def no_room(error: OSError) -> bool:
    """Whether a write failed for want of room: a full disk, a quota, a limit of the size of files.

    Example:
        >>> no_room(OSError(errno.ENOSPC, "No space left on device")), no_room(FileNotFoundError())
        (True, False)
    """
    return error.errno in (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))


def describe(value: Any) -> str:
    """A short description of a value for an error message: type, dtype and shape of arrays, the value of scalars.

    Example:
        >>> import torch
        >>> describe(torch.zeros(2, 3))
        'a torch.float32 tensor of shape (2, 3)'
        >>> describe("abc")
        "'abc'"
    """
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None:
        kind = "tensor" if type(value).__module__.startswith("torch") else "array"
        return f"a {dtype} {kind} of shape {tuple(shape)}"
    if shape is not None:  # a table
        return f"a {type(value).__name__} of shape {tuple(shape)}"
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)}"
    text = " ".join(line.strip() for line in repr(value).splitlines())
    return text if len(text) <= 80 else f"{type(value).__name__} {text[:77]}…"


def listed(items: Sequence[Any], most: int = 8) -> str:
    """The first few of many names, for an error message.

    Example:
        >>> listed(["a", "b", "c"], most=2), listed([])
        ('a, b, …', 'none')
    """
    return (", ".join(str(item) for item in items[:most]) or "none") + (", …" if len(items) > most else "")
