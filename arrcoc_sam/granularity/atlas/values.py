"""V[j, i] of an atlas, block by block: memory holds some images' attention and some images' levels at a time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.lib.format import open_memmap
from torch import Tensor

from arrcoc_sam.errors import OutputError, explain, no_room
from arrcoc_sam.granularity.analysis import sink_mass
from arrcoc_sam.granularity.atlas.store import AtlasStore, Thresholds
from arrcoc_sam.granularity.inference import max_t
from arrcoc_sam.granularity.metrics import evaluate
from arrcoc_sam.granularity.nulls import toroidal_values
from arrcoc_sam.granularity.regions import Regions
from arrcoc_sam.granularity.trials import Progress

__all__ = ["matched_values", "mean_areas", "mean_sinks", "toroidal_p", "value_matrix"]

# Images whose attention, and images whose levels, are in memory at a time.
_ATTENTION_BLOCK = 16
_LEVELS_BLOCK = 32
# Maps whose values at all shifts are in memory at a time.
_SHIFTED_MAPS = 16


def value_matrix(
    store: AtlasStore,
    numbers: Sequence[int],
    group: str,
    metric: str,
    path: Path,
    *,
    thresholds: Thresholds,
    progress: Progress | None = None,
) -> Float[np.ndarray, "n n N 3"]:
    """V[j, i] as an array on disk: a metric of image j's attention on image i's levels, mean over i's prompts.

    Args:
        store: Where the images' records are.
        numbers: Images, each of which has a measurable prompt.
        group: The source of the attention.
        metric: The metric.
        path: The .npy file to write.
        thresholds: What levels count.
        progress: Called as blocks are done.

    Returns:
        The array, mapped from disk; columns are NaN where an image has no such level.

    Raises:
        OutputError: There is no room for it; nothing is left there.
    """
    num_maps = len(store.attention(numbers[0], group))
    matrix = _mapped(path, (len(numbers), len(numbers), num_maps, 3))
    for first in range(0, len(numbers), _LEVELS_BLOCK):
        columns = numbers[first : first + _LEVELS_BLOCK]
        regions, owner, prompts = _measurable(store, columns, thresholds)
        for start in range(0, len(numbers), _ATTENTION_BLOCK):
            rows = numbers[start : start + _ATTENTION_BLOCK]
            attention = torch.cat([store.attention(number, group) for number in rows])
            if attention.ndim == 4:  # the same place in another image
                attention = attention[:, prompts]
            values = evaluate([metric], attention, regions)[metric]
            means = _means_by_image(values, owner, len(columns)).reshape(len(rows), num_maps, len(columns), 3)
            matrix[start : start + len(rows), first : first + len(columns)] = means.movedim(1, 2).numpy()
        if progress is not None:
            progress(f"{metric} of {group}", min(first + _LEVELS_BLOCK, len(numbers)), len(numbers))
    matrix.flush()
    return matrix


def _mapped(path: Path, shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """A new array on disk that has all its room from the start: a mapped page that finds none kills the process."""
    try:
        matrix = open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        with path.open("r+b") as file:
            _reserve(file.fileno(), path.stat().st_size)
    except OSError as error:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        came = f"{path} can't be written ({error.strerror or error})"
        expected, mend = "a folder to write to", None
        if no_room(error):
            expected, mend = "room for it", "free some of the disk; the same run goes on"
        raise OutputError(explain(came, expected, mend)) from error
    return matrix


def _reserve(file: int, size: int) -> None:
    """Take the room of a file where the system and its disk can."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file, 0, size)
        except OSError as error:
            if no_room(error):
                raise


def matched_values(
    store: AtlasStore, numbers: Sequence[int], group: str, metrics: Sequence[str], *, thresholds: Thresholds
) -> dict[str, Float[Tensor, "N 3"]]:
    """Means over images of several metrics of each image's own attention.

    NaN where no image has the level; −inf of a logarithm where an image has it and its attention is 0 throughout it.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, Tensor] = {}
    for number in numbers:
        regions, _, prompts = _measurable(store, [number], thresholds)
        attention = store.attention(number, group)
        own = attention[:, prompts] if attention.ndim == 4 else attention
        for name, values in evaluate(metrics, own, regions).items():
            mean = values.double().nanmean(1)
            defined = ~mean.isnan()
            sums[name] = sums.get(name, 0) + torch.where(defined, mean, 0.0)
            counts[name] = counts.get(name, 0) + defined
    return {name: sums[name] / counts[name] for name in metrics}


def mean_areas(store: AtlasStore, numbers: Sequence[int], *, thresholds: Thresholds) -> Float[Tensor, " 3"]:
    """Mean over images of the share of the frame that each level covers; NaN where no image has the level."""
    found = [_measurable(store, [number], thresholds)[0].areas.nanmean(0) for number in numbers]
    return torch.stack(found).nanmean(0)


def mean_sinks(store: AtlasStore, numbers: Sequence[int], group: str, *, thresholds: Thresholds) -> Float[Tensor, " N"]:
    """Mean over images of the share of the attention that the top 1 % of cells outside the whole hold."""
    found = []
    for number in numbers:
        regions, _, prompts = _measurable(store, [number], thresholds)
        attention = store.attention(number, group)
        own = attention[:, prompts] if attention.ndim == 4 else attention
        found.append(sink_mass(own, regions).nanmean(1))
    return torch.stack(found).nanmean(0)


def toroidal_p(
    store: AtlasStore,
    numbers: Sequence[int],
    group: str,
    metric: str,
    *,
    thresholds: Thresholds,
    num_draws: int = 999,
    seed: int = 0,
    progress: Progress | None = None,
) -> Float[Tensor, " N"]:
    """P of the largest level against toroidal shifts of each image's own attention: a secondary null, for comparison.

    It breaks a centre prior along with the tie to the image, and so rejects too often; no claim stands on it.
    """
    generator = torch.Generator().manual_seed(seed)
    sums: Tensor | None = None
    counts: Tensor | None = None
    for done, number in enumerate(numbers):
        regions, _, prompts = _measurable(store, [number], thresholds)
        attention = store.attention(number, group)
        table = torch.cat(
            [_shifted(metric, some, regions, prompts) for some in torch.split(attention, _SHIFTED_MAPS)], 1
        )
        drawn = torch.randint(len(table), (num_draws,), generator=generator)
        values = torch.cat([table[:1], table[drawn]])
        defined = ~values.isnan()
        values = torch.where(defined, values, 0.0)
        sums, counts = (values, defined.int()) if sums is None or counts is None else (sums + values, counts + defined)
        if progress is not None:
            progress(f"shifts of {group}", done + 1, len(numbers))
    if sums is None or counts is None:
        return torch.empty(0)
    means = sums / counts
    return max_t(means[0], means[1:])[1]


def _shifted(metric: str, attention: Tensor, regions: Regions, prompts: Tensor) -> Float[Tensor, "S N 3"]:
    """Values at every shift, mean over prompts."""
    if attention.ndim == 3:
        return toroidal_values(metric, attention, regions).nanmean(2)
    each = [
        toroidal_values(metric, attention[:, int(place)], regions[torch.tensor([k])])
        for k, place in enumerate(prompts.tolist())
    ]
    return torch.cat(each, dim=2).nanmean(2)


def _measurable(store: AtlasStore, numbers: Sequence[int], thresholds: Thresholds) -> tuple[Regions, Tensor, Tensor]:
    """The measurable levels of some images together, whose they are (0, 1, … in this list), and their prompts."""
    found, owner, prompts = [], [], []
    for place, number in enumerate(numbers):
        regions, measurable = store.levels(number).regions(thresholds)
        index = measurable.nonzero()[:, 0]
        found.append(regions[index])
        owner.append(torch.full_like(index, place))
        prompts.append(index)
    return Regions.cat(found), torch.cat(owner), torch.cat(prompts)


def _means_by_image(values: Float[Tensor, "N K 3"], owner: Tensor, num_images: int) -> Float[Tensor, "N n 3"]:
    """Means over the prompts of each image that have the level; NaN where none has."""
    missing = values.isnan()
    sums = values.new_zeros(len(values), num_images, 3).index_add_(1, owner, torch.where(missing, 0.0, values))
    counts = values.new_zeros(len(values), num_images, 3).index_add_(1, owner, (~missing).to(values))
    return sums / counts
