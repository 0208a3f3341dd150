"""Run lengths of masks in COCO's compressed form, as JSON-ready dictionaries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from arrcoc_sam.errors import DataError, MixedSizesError, ShapeError, describe, explain
from arrcoc_sam.inputs import as_masks
from arrcoc_sam.masks.run_lengths import coco_strings

__all__ = ["RLE", "decode_rle", "encode_rle", "rle_areas", "rle_intersections", "run_lengths"]

RLE: TypeAlias = dict[str, Any]
"""``{"size": [height, width], "counts": str}``, the string being COCO's compressed run lengths, column by column."""


def encode_rle(masks: Bool[Tensor, "*K H W"] | np.ndarray) -> Any:
    """COCO's compressed run lengths of masks.

    Args:
        masks: One mask (H, W) or several (K, H, W), bool.

    Returns:
        One dictionary (:data:`RLE`) for one mask, a list of K for several: ``size`` [H, W] and ``counts`` as a str,
        so that it goes into JSON as it is.

    Raises:
        ShapeError: Other than two or three axes.
        InputError: Another dtype.

    Example:
        >>> encode_rle(torch.tensor([[False, True], [False, True]]))
        {'size': [2, 2], 'counts': '22'}
    """
    given = as_masks(masks)
    if given.ndim > 3:
        raise ShapeError(explain(f"masks is {describe(given)}", "(H, W) or (K, H, W)", "flatten the leading axes"))
    height, width = given.shape[-2:]
    strings = coco_strings(given.reshape(-1, height, width).cpu().numpy())
    records = [{"size": [height, width], "counts": counts} for counts in strings]
    return records[0] if given.ndim == 2 else records


def decode_rle(
    rle: Mapping[str, Any] | Sequence[Mapping[str, Any]],
) -> Bool[Tensor, "*K H W"]:
    """Masks of COCO run lengths, compressed (str or bytes) or not (a list of counts).

    The counts are checked before anything is drawn: pycocotools' own decoder trusts them.

    Args:
        rle: One dictionary with ``size`` and ``counts``, or several of one size.

    Returns:
        (H, W) bool for one, (K, H, W) for several.

    Raises:
        DataError: A key is missing, the size is not two whole numbers, the string is not one that COCO's coding
            yields, or the counts do not add up to height × width.
        MixedSizesError: The sizes of several differ.
        ShapeError: An empty list, whose size nobody knows.
    """
    if isinstance(rle, Mapping):
        return _drawn(rle)
    masks = [_drawn(each) for each in rle]
    if not masks:
        raise ShapeError(explain("an empty list of run lengths", "at least one"))
    sizes = {tuple(mask.shape) for mask in masks}
    if len(sizes) > 1:
        raise MixedSizesError(explain(f"run lengths of sizes {sorted(sizes)}", "one size", "decode them one at a time"))
    return torch.stack(masks)


def rle_areas(rle: Sequence[Mapping[str, Any]]) -> Int64[Tensor, " K"]:
    """The number of pixels of each mask, without decoding it.

    Args:
        rle: Dictionaries with ``size`` and ``counts``.

    Returns:
        (K,) int64.

    Raises:
        DataError: As for :func:`decode_rle`.
    """
    return torch.tensor([int(run_lengths(each)[1][1::2].sum()) for each in rle], dtype=torch.int64)


def rle_intersections(rle: Sequence[Mapping[str, Any]]) -> Int64[Tensor, "K K"]:
    """Pixels in common of every two masks, without decoding them; areas on the diagonal.

    Args:
        rle: Dictionaries with ``size`` and ``counts``, of one size.

    Returns:
        (K, K) int64, what :func:`arrcoc_sam.masks.pairwise_intersection` counts.

    Raises:
        DataError: As for :func:`decode_rle`.
        MixedSizesError: The sizes of several differ.

    Example:
        >>> rle_intersections([{"size": [2, 4], "counts": [0, 6, 2]}, {"size": [2, 4], "counts": [4, 3, 1]}])
        tensor([[6, 2],
                [2, 3]])
    """
    parsed = [run_lengths(each) for each in rle]
    if len({size for size, _ in parsed}) > 1:
        sizes = sorted({size for size, _ in parsed})
        raise MixedSizesError(explain(f"run lengths of sizes {sizes}", "one size", "compare them one at a time"))
    edges, covered = [], []
    for _, runs in parsed:
        lit = runs.copy()
        lit[::2] = 0
        edges.append(np.concatenate(([0], runs.cumsum())))
        covered.append(np.concatenate(([0], lit.cumsum())))  # pixels of the mask before each edge
    common = np.zeros((len(parsed), len(parsed)))
    for i, places in enumerate(edges):
        for j in range(i + 1):
            before = np.interp(places, edges[j], covered[j])  # slopes are 0 and 1: exact
            common[i, j] = common[j, i] = np.diff(before)[1::2].sum()
    return torch.from_numpy(common.astype(np.int64))


def _drawn(rle: Mapping[str, Any]) -> Bool[Tensor, "H W"]:
    (height, width), runs = run_lengths(rle)
    values = np.zeros(len(runs), dtype=bool)
    values[1::2] = True
    return torch.from_numpy(np.ascontiguousarray(np.repeat(values, runs).reshape(width, height).T))


def run_lengths(rle: Mapping[str, Any]) -> tuple[tuple[int, int], np.ndarray]:
    """Size and runs of one mask, which begin with a run of background and add up to the size.

    Args:
        rle: A dictionary with ``size`` and ``counts``.

    Returns:
        (height, width), and the lengths of the runs in column-major order, int64.

    Raises:
        DataError: As for :func:`decode_rle`.

    Example:
        >>> run_lengths({"size": [2, 2], "counts": "22"})
        ((2, 2), array([2, 2]))
    """
    if not isinstance(rle, Mapping) or "size" not in rle or "counts" not in rle:
        raise DataError(explain(f"a run-length mask is {describe(rle)}", "a dictionary with 'size' and 'counts'"))
    size, counts = rle["size"], rle["counts"]
    try:
        height, width = (int(side) for side in size)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(explain(f"the size of a run-length mask is {size!r}", "[height, width]")) from error
    if height < 1 or width < 1 or [height, width] != list(size):
        expected = "[height, width], whole numbers of at least 1"
        raise DataError(explain(f"the size of a run-length mask is {size!r}", expected))
    if isinstance(counts, (str, bytes)):
        runs = _parse(counts.encode("utf-8", "surrogatepass") if isinstance(counts, str) else counts)
    else:
        try:
            given = np.asarray(counts).reshape(-1)
            runs = given.astype(np.int64)
            whole = given.dtype.kind in "iuf" and bool((given == runs).all())
        except (TypeError, ValueError, OverflowError, RuntimeWarning) as error:
            raise DataError(explain(f"the counts are {describe(counts)}", "a string or a list of counts")) from error
        if not whole:
            raise DataError(explain(f"the counts are {describe(counts)}", "a string or a list of whole numbers"))
    if ((runs < 0) | (runs > height * width)).any():  # the latter could make the sum wrap around
        raise DataError(
            explain(
                "the counts of a run-length mask have negative runs or larger ones than the mask", "0 to its pixels"
            )
        )
    if int(runs.sum()) != height * width:
        raise DataError(
            explain(
                f"the counts of a run-length mask add up to {int(runs.sum())}",
                f"{height} x {width} = {height * width} pixels",
                "check that size is [height, width] and that the string is complete",
            )
        )
    return (height, width), runs


def _parse(text: bytes) -> np.ndarray:
    """The runs in COCO's string.

    Each character holds five bits, low ones first, and whether more follow; the last one's top bit is the sign. From
    the fourth number on the difference to the one before last is stored.
    """
    codes = np.frombuffer(text, dtype=np.uint8).astype(np.int64) - 48
    if len(codes) == 0 or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise DataError(explain("the counts of a run-length mask are no COCO string", "characters from '0' to 'o'"))
    ends = np.flatnonzero((codes & 32) == 0)
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > 12:
        raise DataError(explain("the counts of a run-length mask are no COCO string", "numbers of at most 60 bits"))
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    numbers = np.add.reduceat((codes & 31) << shifts, starts)
    numbers -= np.where(codes[ends] & 16, np.int64(1) << (5 * lengths), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers
