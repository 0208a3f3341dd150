"""What a scene is painted on: pixels and nodes so far, and the annotation that is left of them in the end."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["MAX_NODES", "Canvas", "Patch", "Window", "annotate", "cropped"]

MAX_NODES = 60
"""A scene has no more nodes than this (their indices fit a byte, with room)."""

Window = tuple[slice, slice]
"""Rows and columns of an image."""


@dataclass
class Canvas:
    """What is painted so far.

    Attributes:
        image: (S, S, 3) RGB, about in [0, 1].
        labels: (S, S) the node that was painted last at each pixel, plus one.
        parents: Of each node; -1 for wholes.
        levels: Of each node.
    """

    image: NDArray[np.floating]
    labels: NDArray[np.uint8]
    parents: list[int] = field(default_factory=list)
    levels: list[int] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Side in pixels."""
        return int(self.labels.shape[0])

    def add_node(self, parent: int, level: int, patch: Patch) -> int:
        """Note a node where the patch is more than half covered; answers its number."""
        node = len(self.parents)
        self.parents.append(parent)
        self.levels.append(level)
        self.labels[patch.window][patch.coverage > 0.5] = node + 1
        return node


@dataclass(frozen=True)
class Patch:
    """Coverage in [0, 1] inside a window; none outside of it. More than one half is inside."""

    window: Window
    coverage: NDArray[np.float64]


def cropped(patch: Patch, window: Window) -> NDArray[np.float64]:
    """A patch's coverage, cropped or padded with zeros to another window."""
    result = np.zeros((window[0].stop - window[0].start, window[1].stop - window[1].start))
    rows = slice(max(window[0].start, patch.window[0].start), min(window[0].stop, patch.window[0].stop))
    columns = slice(max(window[1].start, patch.window[1].start), min(window[1].stop, patch.window[1].stop))
    if rows.start < rows.stop and columns.start < columns.stop:
        top, left = patch.window[0].start, patch.window[1].start
        source = patch.coverage[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        result[
            rows.start - window[0].start : rows.stop - window[0].start,
            columns.start - window[1].start : columns.stop - window[1].start,
        ] = source
    return result


def annotate(
    canvas: Canvas, *, min_area: float, max_share: float, promote: bool = False
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """Drops nodes that are too small, or hardly less than their parent; their pixels fall to the parent.

    Args:
        canvas: What was painted.
        min_area: Smallest node, as a share of the image: smaller ones are painted but not annotated.
        max_share: Largest share of its parent: a child that shows more of it is no level of its own.
        promote: What lies in such a child becomes its parent's own, and is not dropped with it.

    Returns:
        Labels, parents and levels of :class:`~arrcoc_sam.scenes.scene.Scene`.
    """
    labels, parents, levels = canvas.labels, np.array(canvas.parents, np.int64), np.array(canvas.levels, np.int64)
    least = min_area * labels.size
    while len(parents):
        areas = _areas(labels, parents)
        parent_areas = np.where(parents >= 0, areas[parents], np.iinfo(np.int64).max)
        dropped = (areas < least) | (areas > max_share * parent_areas)
        if not dropped.any():
            break
        # one at a time, the deepest first: dropping a child changes no area of its ancestors
        node = int(np.flatnonzero(dropped)[np.argmax(levels[dropped])])
        if promote and areas[node] >= least:
            parents, levels = _promoted(node, parents, levels)
        labels, parents, levels = _without(node, labels, parents, levels)
    return labels, parents, levels


def _areas(labels: NDArray[np.uint8], parents: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pixels of each node, its descendants included."""
    areas = np.bincount(labels.ravel(), minlength=len(parents) + 1)[1:]
    for node in range(len(parents) - 1, -1, -1):  # children come after their parents
        if parents[node] >= 0:
            areas[parents[node]] += areas[node]
    return np.asarray(areas)


def _promoted(
    node: int, parents: NDArray[np.int64], levels: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Parents and levels where the children of a node are children of its parent."""
    below = np.zeros(len(parents), bool)
    for index, parent in enumerate(parents):  # parents come first
        below[index] = parent == node or (parent >= 0 and below[parent])
    return np.where(parents == node, parents[node], parents), levels - below


def _without(
    node: int, labels: NDArray[np.uint8], parents: NDArray[np.int64], levels: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """The annotation without a node and its descendants."""
    gone = np.zeros(len(parents), bool)
    for index in range(len(parents)):  # parents come first
        gone[index] = index == node or (parents[index] >= 0 and gone[parents[index]])
    index_after = np.cumsum(~gone)
    heir = parents[node]
    lookup = np.zeros(len(parents) + 1, np.uint8)
    lookup[1:] = np.where(gone, 0 if heir < 0 else index_after[heir], index_after)
    kept_parents = parents[~gone]
    kept_parents = np.where(kept_parents >= 0, index_after[kept_parents] - 1, -1)
    return lookup[labels], kept_parents, levels[~gone]
