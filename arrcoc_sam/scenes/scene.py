"""A generated image with its exact hierarchy of masks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int, UInt8
from numpy import ndarray

__all__ = ["LEVEL_NAMES", "Scene"]

LEVEL_NAMES = ("whole", "part", "subpart")
"""Names of the levels 0, 1, 2 of a node."""


@dataclass(frozen=True)
class Scene:
    """An image whose every pixel knows the object, part and subpart that it shows.

    Nodes are visible regions: what another object hides is not in the mask. A part lies inside its whole and a subpart
    inside its part, exactly.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) the innermost node + 1 at each pixel, 0 on the background.
        parents: (n,) index of the node that a node lies in, -1 for wholes; parents come before their children.
        levels: (n,) 0 whole, 1 part, 2 subpart.
        seed: The seed that made it.
        version: The generator's version.
    """

    image: UInt8[ndarray, "H W 3"]
    labels: UInt8[ndarray, "H W"]
    parents: Int[ndarray, " n"]
    levels: Int[ndarray, " n"]
    seed: int
    version: int

    def __len__(self) -> int:
        """Number of nodes."""
        return len(self.parents)

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the image in pixels."""
        height, width = self.labels.shape
        return int(height), int(width)

    @cached_property
    def masks(self) -> Bool[ndarray, "n H W"]:
        """(n, H, W) bool, the visible region of each node, its descendants included."""
        return node_masks(self.labels, self.parents)

    def triples(self) -> Int[ndarray, "K 3"]:
        """(K, 3) node indices (whole, part, subpart) of every subpart's chain."""
        subparts = np.flatnonzero(self.levels == 2)
        parts = self.parents[subparts]
        return np.stack([self.parents[parts], parts, subparts], axis=1) if len(subparts) else np.zeros((0, 3), np.int64)

    def triple_masks(self) -> Bool[ndarray, "K 3 H W"]:
        """(K, 3, H, W) bool: the masks of :meth:`triples`."""
        return np.asarray(self.masks[self.triples()])

    def sample_point(self, node: int, rng: np.random.Generator) -> tuple[int, int]:
        """A pixel (x, y) drawn uniformly from a node's visible region."""
        rows, columns = np.nonzero(self.masks[node])
        pick = int(rng.integers(len(rows)))
        return int(columns[pick]), int(rows[pick])


def node_masks(labels: UInt8[ndarray, "H W"], parents: Int[ndarray, " n"]) -> Bool[ndarray, "n H W"]:
    """Masks of all nodes from a map of innermost nodes (see :class:`Scene`)."""
    count = len(parents)
    inside = np.zeros((count, count + 1), dtype=bool)  # inside[a, b + 1]: node b lies in node a, or is it
    for node in range(count):
        ancestor = node
        while ancestor >= 0:
            inside[ancestor, node + 1] = True
            ancestor = int(parents[ancestor])
    return np.asarray(inside[:, labels])
