"""Frozen sets of scenes that figures are quoted on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from arrcoc_sam.errors import DataError, explain
from arrcoc_sam.scenes.generator import STYLES, generate_scene, style_of_version
from arrcoc_sam.scenes.scene import Scene

__all__ = ["TEST_V1", "TEST_V2", "TRAIN_SEEDS", "VALIDATION_SEEDS", "SceneSplit", "digest"]

TRAIN_SEEDS = range(5_000_000)
"""Seeds that training may draw."""

VALIDATION_SEEDS = range(5_000_000, 9_000_000)
"""Seeds that choices (stopping, calibration) may be made on."""


@dataclass(frozen=True)
class SceneSplit:
    """Scenes fixed by generator version, seeds, size, and a digest of what they must be.

    Attributes:
        name: What reports call it.
        version: The generator's version that it was frozen with.
        seeds: One scene each.
        size: Side of the images in pixels.
        sha256: :func:`digest` of all scenes.
        sha256_head: :func:`digest` of the first 20, for a quick check.
    """

    name: str
    version: int
    seeds: range
    size: int
    sha256: str
    sha256_head: str

    def __len__(self) -> int:
        """Number of scenes."""
        return len(self.seeds)

    def __getitem__(self, index: int) -> Scene:
        """Scene number ``index``, drawn now.

        Raises:
            DataError: The installed generator does not draw the split's version.
        """
        style = style_of_version(self.version)
        if style is None:
            drawn = ", ".join(map(str, STYLES.values()))
            came = f"{self.name} was frozen with generator version {self.version}; this one draws {drawn}"
            raise DataError(explain(came, mend="use the package version that froze it, or a newer split"))
        return generate_scene(self.seeds[index], self.size, style=style)

    def __iter__(self) -> Iterator[Scene]:
        """All scenes, drawn one by one."""
        return (self[index] for index in range(len(self)))


def digest(scenes: Iterable[Scene]) -> str:
    """SHA-256 over images and masks: pixels, then the packed bits of every mask, scene by scene."""
    total = hashlib.sha256()
    for scene in scenes:
        total.update(scene.image.tobytes())
        total.update(np.packbits(scene.masks).tobytes())
    return total.hexdigest()


TEST_V1 = SceneSplit(
    name="scenes-test-v1",
    version=1,
    seeds=range(9_000_000, 9_000_600),
    size=256,
    sha256="97a2067173a662e9f8dcd7ec29d63bf2f14a24bcffd6bbb37e65993fe3554dc5",
    sha256_head="da8e572c1e3d927a0fc2abc7753ccc623b1955a3e05d0a022a601622c2e9447f",
)
"""600 scenes of generator version 1; every figure of the embedded model is quoted on it."""

TEST_V2 = SceneSplit(
    name="scenes-test-v2",
    version=2,
    seeds=range(9_200_000, 9_200_600),
    size=256,
    sha256="4fe70b2305c8824ffc10d689d9e1efcd6e69ef8b9f197f648cac922a34be17be",
    sha256_head="6cf43873d92bd98b70906a3bde0fd9b5c0e4cb4fcf1db7ec8019d43cc81ba5fb",
)
"""600 rich scenes, generator version 2. Their textures are pieces of the same photographs as in training."""
