"""Work on thousands of scenes by one process a core, kept part by part: what was stopped goes on where it was."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy import ndarray

from arrcoc_sam.processes import end_with_parent


def in_parts(
    work: Callable[[Any], Mapping[str, ndarray]], items: Sequence[Any], folder: Path, *, size: int
) -> dict[str, ndarray]:
    """The rows of all items, one item after the other; those of so many of them are a file in the folder.

    The folder's name has to tell what is asked, since what lies in it is not asked again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = {begin: items[begin : begin + size] for begin in range(0, len(items), size)}
    files = {begin: folder / f"{begin:06d}-{begin + len(part):06d}.npz" for begin, part in parts.items()}
    began = perf_counter()
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), start_worker) as pool:
        asked = [pool.submit(_do, work, parts[begin], file) for begin, file in files.items() if not file.is_file()]
        try:
            for count, done in enumerate(as_completed(asked), 1):
                done.result()
                left = (perf_counter() - began) * (len(asked) / count - 1) / 60
                print(f"{folder.name}: {len(files) - len(asked) + count} of {len(files)} parts, {left:.0f} min left")
        except BaseException:
            for each in asked:
                each.cancel()  # what is not begun yet
            raise
    found = [dict(np.load(file)) for file in files.values()]
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


def start_worker() -> None:
    """One thread a process: several small models side by side are faster than one on all cores."""
    torch.set_num_threads(1)
    end_with_parent()


def _do(work: Callable[[Any], Mapping[str, ndarray]], items: Sequence[Any], file: Path) -> None:
    """A part, into a file of its own."""
    rows = [work(item) for item in items]
    temporary = file.with_suffix(f".{os.getpid()}.tmp.npz")
    np.savez(temporary, **{name: np.concatenate([row[name] for row in rows]) for name in rows[0]})
    temporary.replace(file)
