"""Masks to runs and runs to COCO's string, a stack at a time, without a transposed copy of the masks.

COCO counts runs down the columns, while masks lie in memory row by row. The ends of the runs are few, so they are found
where the masks lie: eight pixels packed into a byte, each row XORed with the row above it, and only the words that are
not zero looked at. Their places, sorted by column, are the ends of the runs. Masks that are small or mostly edges go to
pycocotools, which is faster there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pycocotools.mask
from jaxtyping import Bool, Int64

__all__ = ["coco_strings", "mask_runs"]

_PIXELS_AT_ONCE = 1 << 22
# Where pycocotools is faster: masks below so many pixels, and those of which more than this share of words changes.
_LEAST_PIXELS = 1 << 17
_DENSE = 0.25
_WORD = 64


def coco_strings(masks: Bool[np.ndarray, "K H W"]) -> Iterator[str]:
    """COCO's compressed run lengths of masks, the bytes of pycocotools.

    Args:
        masks: (K, H, W), in any memory order.

    Yields:
        One string a mask.

    Example:
        >>> list(coco_strings(np.array([[[False, True], [False, True]]])))
        ['22']
    """
    height, width = masks.shape[1:]
    step = max(1, _PIXELS_AT_ONCE // (height * width))
    for start in range(0, len(masks), step):
        some = masks[start : start + step]
        changed = _changed(some) if height * width >= _LEAST_PIXELS else None
        if changed is None or np.count_nonzero(changed) > _DENSE * changed.size:
            records: Any = pycocotools.mask.encode(_by_columns(some))  # type: ignore[no-untyped-call]
            yield from (record["counts"].decode("ascii") for record in records)
        else:
            yield from _spelled(*_runs(changed, height, width))


def mask_runs(
    masks: Bool[np.ndarray, "K H W"],
) -> tuple[Int64[np.ndarray, " runs"], Int64[np.ndarray, " K"]]:
    """Runs of background and mask by turns, down the columns, of all masks one after the other.

    Args:
        masks: (K, H, W).

    Returns:
        The runs, of which each mask's first is background (0 long where its first pixel is set) and which add up to
        H · W a mask; and how many runs each mask has.

    Example:
        >>> mask_runs(np.array([[[True, False], [True, True]]]))
        (array([0, 2, 1, 1]), array([4]))
    """
    return _runs(_changed(masks), masks.shape[1], masks.shape[2])


def _by_columns(masks: Bool[np.ndarray, "K H W"]) -> np.ndarray:
    """(H, W, K) bytes, down the columns of each mask in memory, as pycocotools takes them."""
    return np.asfortranarray(masks.transpose(1, 2, 0).view(np.uint8))


def _changed(masks: Bool[np.ndarray, "K H W"]) -> np.ndarray:
    """Pixels that differ from the one before, down the columns, packed into words along the rows."""
    count, _, width = masks.shape
    packed = _packed(masks)
    # Changes down each column; the first pixel of a column follows the last one of the column before.
    changed = np.empty_like(packed)
    np.bitwise_xor(packed[:, 1:], packed[:, :-1], out=changed[:, 1:])
    wrapped = np.zeros((count, 1, width), dtype=bool)
    wrapped[:, 0, 1:] = masks[:, -1, :-1]
    np.bitwise_xor(packed[:, :1], _packed(wrapped), out=changed[:, :1])
    return changed


def _runs(changed: np.ndarray, height: int, width: int) -> tuple[Int64[np.ndarray, " runs"], Int64[np.ndarray, " K"]]:
    """The runs between the changes."""
    count, pixels = len(changed), height * width
    words = changed.reshape(-1)
    places = np.flatnonzero(words)
    bits = np.unpackbits(words[places].view(np.uint8).reshape(-1, 8), axis=1)
    at, bit = np.divmod(np.flatnonzero(bits), _WORD)
    row, word = np.divmod(places[at], changed.shape[2])
    mask, row = np.divmod(row, height)
    ends = mask * pixels + (word * _WORD + bit) * height + row
    ends.sort()

    # Between each mask's ends go its beginning and its end, which is where the next one begins.
    lengths = np.bincount(mask, minlength=count) + 1
    bounds = np.insert(ends, np.searchsorted(ends, np.arange(1, count) * pixels), np.arange(1, count) * pixels)
    return np.diff(bounds, prepend=0, append=count * pixels), lengths


def _packed(masks: Bool[np.ndarray, "K H W"]) -> np.ndarray:
    """Rows of pixels as rows of 64-bit words, filled up with zeros."""
    count, height, width = masks.shape
    words = -(-width // _WORD)
    if width % _WORD == 0:
        return np.packbits(masks, axis=-1).view(np.uint64)
    packed = np.zeros((count, height, words * (_WORD // 8)), dtype=np.uint8)
    packed[..., : -(-width // 8)] = np.packbits(masks, axis=-1)
    return packed.view(np.uint64)


def _spelled(runs: Int64[np.ndarray, " runs"], lengths: Int64[np.ndarray, " K"]) -> Iterator[str]:
    """Each mask's runs in COCO's coding.

    From a mask's fourth run on the difference to the one before last is stored. A number becomes characters of five
    bits each, low ones first, as few as keep its sign; the sixth bit says whether more follow; 48 makes it a character.
    """
    first = np.concatenate(([0], np.cumsum(lengths)[:-1]))
    numbers = runs.copy()
    numbers[2:] -= runs[:-2]
    heads = (first[:, None] + np.arange(3))[np.arange(3) < lengths[:, None]]
    numbers[heads] = runs[heads]

    size = np.where(numbers < 0, ~numbers, numbers)
    digits = np.ones(len(numbers), dtype=np.int64)
    while (longer := size >= np.int64(16) << 5 * (digits - 1)).any():
        digits += longer
    stops = np.cumsum(digits)
    characters = np.empty(int(stops[-1]), dtype=np.uint8)
    for digit in range(int(digits.max())):
        has = np.flatnonzero(digits > digit)
        more = np.where(digits[has] > digit + 1, 32, 0)
        characters[stops[has] - digits[has] + digit] = ((numbers[has] >> 5 * digit) & 31) + more + 48
    text = characters.tobytes().decode("ascii")
    ends = stops[first + lengths - 1].tolist()
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        yield text[start:end]
