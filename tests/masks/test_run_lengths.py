"""Run lengths against pycocotools, byte by byte, and against a walk down the columns."""

from __future__ import annotations

from itertools import groupby

import numpy as np
import pytest
from pycocotools import mask as coco

import arrcoc_sam.masks.run_lengths as module
from arrcoc_sam.masks.run_lengths import coco_strings, mask_runs


@pytest.fixture(autouse=True)
def by_our_own_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small and ragged masks would go to pycocotools, and be compared with themselves."""
    monkeypatch.setattr(module, "_LEAST_PIXELS", 0)
    monkeypatch.setattr(module, "_DENSE", 1.0)


# Sides around one word of 64 pixels and one byte, single rows, columns and pixels.
SIZES = [(1, 1), (1, 9), (9, 1), (2, 8), (8, 2), (3, 63), (3, 64), (3, 65), (63, 3), (17, 130), (130, 17), (40, 40)]


def stack(height: int, width: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Empty, full, one pixel, all but one pixel, each corner; then noise of every density and blocks."""
    masks = np.zeros((count, height, width), dtype=bool)
    masks[1] = True
    masks[2, rng.integers(height), rng.integers(width)] = True
    masks[3] = ~masks[2]
    for mask, corner in zip(masks[4:8], ((0, 0), (0, -1), (-1, 0), (-1, -1)), strict=True):
        mask[corner] = True
    for mask in masks[8::2]:
        mask[:] = rng.random((height, width)) < rng.random()
    for mask in masks[9::2]:
        for _ in range(3):
            top, left = rng.integers(height), rng.integers(width)
            mask[top : top + rng.integers(1, 40), left : left + rng.integers(1, 40)] ^= True
    return masks


def theirs(mask: np.ndarray) -> str:
    return coco.encode(np.asfortranarray(mask.view(np.uint8)))["counts"].decode()


@pytest.mark.parametrize("size", SIZES)
def test_ten_thousand_masks_have_the_bytes_of_pycocotools(size: tuple[int, int]) -> None:
    masks = stack(*size, 850, np.random.default_rng(size))  # 12 sizes: 10,200 masks
    assert list(coco_strings(masks)) == [theirs(mask) for mask in masks]


def test_every_mask_of_three_by_three() -> None:
    masks = (np.arange(512)[:, None] >> np.arange(9) & 1).astype(bool).reshape(-1, 3, 3)
    assert list(coco_strings(masks)) == [theirs(mask) for mask in masks]


def test_numbers_of_every_length() -> None:
    """Runs of up to 16 million pixels, and differences as large below zero."""
    masks = np.zeros((3, 4096, 4160), dtype=bool)
    for mask, columns in zip(masks[1:], (1057, 4159), strict=True):
        mask[:, :columns] = True
        mask[7, ::511] ^= True
        mask[5:40, 3] ^= True
    assert list(coco_strings(masks)) == [theirs(mask) for mask in masks]


def test_runs_are_those_of_a_walk_down_the_columns() -> None:
    masks = stack(7, 70, 20, np.random.default_rng(0))
    runs, lengths = mask_runs(masks)
    for mask, found in zip(masks, np.split(runs, np.cumsum(lengths)[:-1]), strict=True):
        walked = [(value, len(list(group))) for value, group in groupby(mask.T.ravel().tolist())]
        expected = ([0] if walked[0][0] else []) + [length for _, length in walked]
        assert found.tolist() == expected


def test_memory_order_and_steps_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = stack(31, 37, 40, np.random.default_rng(0))
    expected = list(coco_strings(masks))
    views = (np.asfortranarray(masks), masks[::-1][::-1], masks.transpose(0, 2, 1).copy().transpose(0, 2, 1))
    assert all(list(coco_strings(view)) == expected for view in views)
    monkeypatch.setattr(module, "_PIXELS_AT_ONCE", 3 * 31 * 37)
    assert list(coco_strings(masks)) == expected
    assert list(coco_strings(masks[:0])) == []


def test_small_and_ragged_masks_go_to_pycocotools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LEAST_PIXELS", 1 << 12)
    monkeypatch.setattr(module, "_DENSE", 0.25)
    asked: list[int] = []
    monkeypatch.setattr(module, "_spelled", lambda runs, lengths: iter([asked.append(len(lengths)) or "ours"]))
    noise = np.random.default_rng(0).random((1, 128, 128)) < 0.5
    small, square = np.ones((1, 32, 32), dtype=bool), np.zeros((1, 128, 128), dtype=bool)
    square[0, 30:60, 30:60] = True
    for masks in (noise, small):
        assert list(coco_strings(masks)) == [theirs(masks[0])]
    assert list(coco_strings(square)) == ["ours"]
    assert asked == [1]
