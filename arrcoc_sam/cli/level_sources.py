"""Where the levels come from that attention is measured against: a segmenter at clicks, or people who drew them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float64, UInt8
from torch import Tensor

from arrcoc_sam.cli.analysis_inputs import ClickPlan
from arrcoc_sam.cli.granularity_run import find_levels
from arrcoc_sam.cli.options import check_segmenter, open_segmenter
from arrcoc_sam.cli.skipped import record_faults
from arrcoc_sam.datasets import CocoDataset, human_hierarchies
from arrcoc_sam.errors import DataError, explain
from arrcoc_sam.hierarchy import MaskHierarchy
from arrcoc_sam.prompts import Prompts
from arrcoc_sam.report import Provenance

if TYPE_CHECKING:
    from arrcoc_sam.segmenters.base import Segmenter

__all__ = ["AnsweredLevels", "HumanLevels", "LevelFinder", "LevelsAtClicks"]


@dataclass(frozen=True)
class LevelsAtClicks:
    """Levels at the clicks of one image.

    Attributes:
        points_xy: The clicks, (K, 2).
        hierarchy: Whole, part and subpart.
        mask_scores: What else is known of the masks, (K, 3) each.
    """

    points_xy: Float64[Tensor, "K 2"]
    hierarchy: MaskHierarchy
    mask_scores: Mapping[str, Float[Tensor, "K 3"]] = field(default_factory=dict)


@runtime_checkable
class LevelFinder(Protocol):
    """Anything that knows levels of an image."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the report."""
        ...

    @property
    def faults(self) -> tuple[tuple[str, str], ...]:
        """What was left out of the file that the levels come from, and why."""
        ...

    def check(self, path: Path, size_hw: tuple[int, int]) -> Float64[Tensor, "K 2"]:
        """The clicks in an image, before any work; raises where there can be no levels."""
        ...

    def on(self, path: Path, pixels: UInt8[np.ndarray, "H W 3"]) -> LevelsAtClicks:
        """The levels of an image."""
        ...

    def provenance(self, rest: Provenance) -> Provenance:
        """Where the levels come from, beside the rest of what made a result."""
        ...


class AnsweredLevels:
    """Three nested masks that a segmenter finds at each click; it is loaded when it is first needed.

    Args:
        name: The segmenter.
        checkpoint: Its weights, the published ones by default.
        device: Where it runs.
        clicks: Where to click.

    Raises:
        UnknownNameError: There is no such segmenter.
    """

    notes: tuple[str, ...] = ()
    faults: tuple[tuple[str, str], ...] = ()

    def __init__(self, name: str, checkpoint: Path | None, device: str, clicks: ClickPlan) -> None:
        check_segmenter(name)
        self._load = (name, checkpoint, device)
        self.clicks = clicks

    @cached_property
    def segmenter(self) -> Segmenter:
        """The segmenter itself."""
        return open_segmenter(*self._load)

    def check(self, path: Path, size_hw: tuple[int, int]) -> Float64[Tensor, "K 2"]:
        """The clicks.

        Raises:
            InputError: One of them lies outside the image.
        """
        del path  # the same clicks in every image
        return self.clicks.on(size_hw)

    def on(self, path: Path, pixels: UInt8[np.ndarray, "H W 3"]) -> LevelsAtClicks:
        """What the segmenter answers, with the masks' stability."""
        points = self.check(path, (pixels.shape[0], pixels.shape[1]))
        found = find_levels(self.segmenter, pixels, Prompts(points_xy=points[:, None]))
        return LevelsAtClicks(points, found.hierarchy, {"stability": found.stability})

    def provenance(self, rest: Provenance) -> Provenance:
        """The segmenter, its weights and its device."""
        return replace(
            rest,
            segmenter=self.segmenter.name,
            checkpoint_hash=self.segmenter.checkpoint_hash,
            device=str(self.segmenter.device),
        )


class HumanLevels:
    """Nested masks of a COCO file, each with its click.

    Args:
        file: The JSON file; the images are found in it by their names (:meth:`CocoDataset.find`).

    Raises:
        DataError: It can't be read. Records of it that can't be used are left out and listed in ``faults``.
    """

    def __init__(self, file: Path) -> None:
        self.dataset = CocoDataset.read(file, strict=False)

    @property
    def notes(self) -> tuple[str, ...]:
        """That no segmenter had a hand in this."""
        return (f"Here they are masks that people drew, from {self.dataset.path.name}; no segmenter was used.",)

    @property
    def faults(self) -> tuple[tuple[str, str], ...]:
        """Its records that can't be used, under the name of the file."""
        return record_faults(self.dataset)

    def check(self, path: Path, size_hw: tuple[int, int]) -> Float64[Tensor, "K 2"]:
        """The clicks of the nested masks.

        Raises:
            DataError: There are none, or they were drawn on a picture of another size.
        """
        return self._found(path, size_hw)[1]

    def on(self, path: Path, pixels: UInt8[np.ndarray, "H W 3"]) -> LevelsAtClicks:
        """What people drew; no model predicted an IoU, so scores are NaN."""
        hierarchy, points = self._found(path, (pixels.shape[0], pixels.shape[1]))
        return LevelsAtClicks(points, hierarchy)

    def provenance(self, rest: Provenance) -> Provenance:
        """The file, where the segmenter would stand."""
        return replace(rest, segmenter=f"none (human masks of {self.dataset.path})")

    def _found(self, path: Path, size_hw: tuple[int, int]) -> tuple[MaskHierarchy, Float64[Tensor, "K 2"]]:
        found = human_hierarchies(self.dataset, path, image_hw=size_hw)
        if found is None:
            came = f"{self.dataset.path} has no nested masks on {path}"
            if self.faults:
                first = self.faults[0][1].rstrip(".")
                came += f" ({len(self.faults)} of its records can't be used, the first: {first})"
            mend = "check 'file_name' in the file: it has to be how the image's path ends"
            raise DataError(explain(came, "at least one mask inside another", mend))
        return found
