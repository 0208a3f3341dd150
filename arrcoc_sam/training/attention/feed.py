"""The batches of a run of attention training: a step's batch depends on the seed and the step and on nothing else.

So any number of processes and data-loading workers draw the same ones, and a resumed run draws those that it missed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64
from numpy import ndarray
from torch.utils.data import DataLoader, Dataset

from arrcoc_sam.errors import InputError, describe, explain
from arrcoc_sam.training.attention.settings import AttentionTraining
from arrcoc_sam.training.samples import AttentionBatch, AttentionSample, collate_samples, flip_sample
from arrcoc_sam.training.samples_supervision import draw_levels

__all__ = ["HeldSamples", "SampleCollection", "StepSamples", "by_picture", "feed_samples"]


@runtime_checkable
class SampleCollection(Protocol):
    """Samples by number, and the picture of each."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> AttentionSample: ...

    def image_keys(self) -> Int64[ndarray, " n"]:
        """The picture of each sample."""
        ...


class HeldSamples:
    """Samples in memory, for small data that is read many times."""

    def __init__(self, samples: Sequence[AttentionSample]) -> None:
        self.samples = list(samples)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> AttentionSample:
        return self.samples[index]

    def image_keys(self) -> Int64[ndarray, " n"]:
        """The picture of each sample."""
        return np.array([sample.image_key for sample in self.samples], dtype=np.int64)


def by_picture(keys: Int64[ndarray, " n"]) -> tuple[Int64[ndarray, " n"], Int64[ndarray, " _"]]:
    """The samples of every picture, by one sort.

    Args:
        keys: The picture of each sample.

    Returns:
        The samples' numbers, picture after picture by rising key, and where each picture's begin; at the end n.

    Example:
        >>> order, starts = by_picture(np.array([7, 4, 7]))
        >>> order.tolist(), starts.tolist()
        ([1, 0, 2], [0, 1, 3])
    """
    order = np.argsort(keys, kind="stable")
    ranked = keys[order]
    starts = np.flatnonzero(np.diff(ranked, prepend=ranked[:1] - 1))
    return order, np.append(starts, len(keys))


class StepSamples(Dataset[list[AttentionBatch]]):
    """What this process works through in each step: one batch for each part of it.

    Pictures come in an order drawn for each epoch; of each picture up to ``num_queries`` clicks are drawn.

    Args:
        samples: What to draw from.
        settings: Of the run.
        rank: Of this process.
        world_size: How many share a step's pictures.

    Raises:
        InputError: No samples, something else than a collection of them, or pictures that can't be dealt evenly.
    """

    def __init__(
        self, samples: SampleCollection, settings: AttentionTraining, *, rank: int = 0, world_size: int = 1
    ) -> None:
        parts = settings.accumulation * world_size
        if settings.num_images % parts:
            came = f"{settings.num_images} pictures a step for {world_size} processes of {settings.accumulation} parts"
            raise InputError(explain(came, f"a multiple of {parts}"))
        given: object = samples
        if not isinstance(given, SampleCollection):
            mend = "HeldSamples(samples)" if isinstance(given, Sequence) else None
            raise InputError(explain(f"samples is {describe(given)}", "a HierarchyDataset or HeldSamples", mend))
        if len(samples) == 0:
            raise InputError(explain("no samples", "at least one"))
        self._order, self._starts = by_picture(samples.image_keys())
        self._epoch, self._pictures = -1, self._order  # the order of the last epoch that was asked for
        self.samples, self.settings, self.rank, self.world_size = samples, settings, rank, world_size
        self.num_pictures = len(self._starts) - 1

    def check_picture(self) -> None:
        """See that the first sample can be read, and that its picture is of the settings' size.

        Raises:
            InputError: It is of another size, or there is none.
        """
        image, side = self.samples[0].image, self.settings.image_size
        if image is None or tuple(image.shape) != (3, side, side):
            came = f"the image of the first sample is {describe(image)}"
            raise InputError(explain(came, f"(3, {side}, {side})", f"HierarchyDataset(cache, image_size={side}, …)"))

    def __getitem__(self, step: int) -> list[AttentionBatch]:
        parts = self.settings.accumulation
        share = self.settings.num_images // (parts * self.world_size)
        first = self.rank * parts
        return [self._batch(step, range((first + p) * share, (first + p + 1) * share)) for p in range(parts)]

    def _batch(self, step: int, places: range) -> AttentionBatch:
        drawn: list[AttentionSample] = []
        levels: list[torch.Tensor] = []
        for place in places:
            epoch, number = divmod(step * self.settings.num_images + place, self.num_pictures)
            picture = self._shuffled(epoch)[number]
            rng = np.random.default_rng([self.settings.seed, 1, step, place])
            rows = self._order[self._starts[picture] : self._starts[picture + 1]]
            chosen = rng.permutation(rows)[: self.settings.num_queries]
            some = [self.samples[int(row)] for row in chosen]
            if self.settings.flip and rng.random() < 0.5:
                mirrored = None if some[0].image is None else some[0].image.flip(-1)
                some = [replace(flip_sample(sample), image=mirrored) for sample in some]
            generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
            if self.settings.draw_levels:
                confidence, valid = (torch.stack([getattr(s, n) for s in some]) for n in ("confidence", "valid"))
                levels.append(draw_levels(confidence, valid, generator))
            drawn += some
        batch = collate_samples(drawn)
        if not self.settings.draw_levels:
            return batch
        return replace(batch, valid=torch.cat(levels), confidence=torch.ones_like(batch.confidence))

    def _shuffled(self, epoch: int) -> Int64[ndarray, " _"]:
        """The pictures in the order of an epoch, drawn once while it lasts."""
        if epoch != self._epoch:
            rng = np.random.default_rng([self.settings.seed, 0, epoch])
            self._epoch, self._pictures = epoch, rng.permutation(self.num_pictures)
        return self._pictures


def feed_samples(batches: StepSamples, steps: range, *, num_workers: int = 0) -> Iterator[list[AttentionBatch]]:
    """The batches of some steps in order; ``num_workers`` processes draw ahead."""
    if num_workers == 0:
        return (batches[step] for step in steps)
    return iter(DataLoader(batches, batch_size=None, sampler=steps, num_workers=num_workers))
