"""What an atlas keeps of every image, on disk: so that memory does not grow with the images, and a killed run resumes.

One file an image, written whole or not at all: the levels on the grid, how they relate at the image's resolution, and
the attention of every source. A plan beside them says which run they belong to.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from arrcoc_sam.errors import DataError, OutputError, explain
from arrcoc_sam.granularity.regions import Regions
from arrcoc_sam.hierarchy.levels import DISTINCT_IOU, MIN_CELLS, NESTED_SHARE, relate_levels
from arrcoc_sam.report.writing import saving, write_text

__all__ = ["AtlasStore", "ImageRecord", "Levels", "Thresholds"]

_LEVELS = ("rings", "intersections", "valid")
_ATTENTION = "attention/"
_PREFIX = "prefix/"


@dataclass(frozen=True)
class Thresholds:
    """What makes levels distinct, nested and measurable; see :mod:`arrcoc_sam.hierarchy.levels`."""

    distinct_iou: float = DISTINCT_IOU
    nested_share: float = NESTED_SHARE
    min_cells: float = MIN_CELLS


@dataclass(frozen=True)
class Levels:
    """The levels of one image of an atlas, before any threshold.

    Attributes:
        rings: Share of each cell in whole∖part, part∖subpart, subpart of K prompts, whether distinct or not,
            (K, 3, h, w).
        intersections: Pixels in common of every two levels, (K, 3, 3).
        valid: Cell weights, (h, w).
    """

    rings: Float[Tensor, "K 3 h w"]
    intersections: Int64[Tensor, "K 3 3"]
    valid: Float[Tensor, "h w"]

    def regions(self, thresholds: Thresholds) -> tuple[Regions, Bool[Tensor, " K"]]:
        """The levels under these thresholds, and which prompts the grid can measure."""
        relations = relate_levels(
            self.intersections, distinct_iou=thresholds.distinct_iou, nested_share=thresholds.nested_share
        )
        regions = Regions(_joined(self.rings, relations.distinct), self.valid, relations.distinct)
        return regions, regions.measurable(relations.valid, min_cells=thresholds.min_cells)


@dataclass(frozen=True)
class ImageRecord:
    """All that an atlas keeps of one image.

    Attributes:
        levels: What attention is measured against.
        attention: Maps by source, each (N, h, w) or (N, K, h, w).
        prefix_mass: Share of attention on prefix tokens by source, mean over prompts, (N,), where there are any.
    """

    levels: Levels
    attention: dict[str, Tensor]
    prefix_mass: dict[str, Tensor]


class AtlasStore:
    """A folder of image records that belong to one plan.

    Args:
        folder: Made if it does not exist.
        plan: What the run depends on, ready for JSON. A folder of another plan is refused.

    Raises:
        OutputError: The folder belongs to another plan, or can't be written.
    """

    def __init__(self, folder: str | Path, plan: dict[str, Any]) -> None:
        self.folder = Path(folder).expanduser()
        self._valid: Tensor | None = None
        path = self.folder / "plan.json"
        wanted = json.loads(json.dumps(plan))
        try:
            (self.folder / "images").mkdir(parents=True, exist_ok=True)
            if path.exists():
                found = json.loads(path.read_text())
                # what an older version did not record is not compared
                if differing := sorted(key for key, value in found.items() if value != wanted.get(key)):
                    came = f"{self.folder} holds an atlas of other {', '.join(differing)}"
                    raise OutputError(explain(came, "the same run, to go on with", "choose another folder"))
            else:
                write_text(path, json.dumps(wanted, indent=1))
        except (OSError, ValueError) as error:
            if isinstance(error, OutputError):
                raise
            raise OutputError(explain(f"{self.folder}: {error}", "a folder to write an atlas to")) from error

    def absolute(self) -> AtlasStore:
        """The same records, for a process that works in another folder."""
        other = copy(self)
        other.folder = self.folder.absolute()
        return other

    def __contains__(self, number: int) -> bool:
        """Whether image ``number`` has its record."""
        return self._path(number).exists()

    def keep_names(self, names: dict[str, tuple[str, ...]], image: str) -> None:
        """Remember the maps' names by source, or refuse those of an image that has others.

        Raises:
            DataError: Not the names of the images before.
        """
        known = self.map_names()
        if known and known != names:
            differing = next(group for group in names if known.get(group) != names[group])
            came = f"source {differing!r} answers {len(names[differing])} maps on {image}, of other names than before"
            raise DataError(explain(came, f"{len(known.get(differing, ()))} of the same names on every image"))
        if not known:
            write_text(self.folder / "maps.json", json.dumps(names, indent=1))

    def map_names(self) -> dict[str, tuple[str, ...]]:
        """Names of the maps by source; empty before the first image."""
        path = self.folder / "maps.json"
        return {k: tuple(v) for k, v in json.loads(path.read_text()).items()} if path.exists() else {}

    def write(self, number: int, record: ImageRecord) -> None:
        """Keep a record.

        Raises:
            OutputError: It can't be written.
        """
        tensors: dict[str, Tensor] = {name: getattr(record.levels, name) for name in _LEVELS}
        tensors |= {_ATTENTION + name: values for name, values in record.attention.items()}
        tensors |= {_PREFIX + name: values for name, values in record.prefix_mass.items()}
        with saving(self._path(number)) as draft:
            save_file({name: values.detach().cpu().contiguous() for name, values in tensors.items()}, draft)

    def write_fault(self, number: int, reason: str) -> None:
        """Remember why an image has no record."""
        write_text(self._fault_path(number), reason)

    def fault(self, number: int) -> str | None:
        """Why an image has no record, if anybody has tried."""
        path = self._fault_path(number)
        return path.read_text(encoding="utf-8") if path.exists() else None

    def forget_faults(self) -> None:
        """Let images that could not be read be tried again."""
        for path in (self.folder / "images").glob("*.error.txt"):
            path.unlink(missing_ok=True)

    def grid(self) -> Float[Tensor, "h w"] | None:
        """Cell weights of some record, which are those of all; None before the first.

        Raises:
            OutputError: The record is damaged.
        """
        if self._valid is None:
            some = min((path.stem for path in (self.folder / "images").glob("[!.]*.safetensors")), default=None)
            self._valid = None if some is None else self._read(int(some), ("valid",))[0]
        return self._valid

    def levels(self, number: int) -> Levels:
        """The levels of an image, without reading its attention.

        Raises:
            OutputError: The record is missing or damaged.
        """
        return Levels(**dict(zip(_LEVELS, self._read(number, _LEVELS), strict=True)))

    def attention(self, number: int, group: str) -> Tensor:
        """The maps of one source on an image, (N, h, w) or (N, K, h, w).

        Raises:
            OutputError: The record is missing or damaged.
        """
        return self._read(number, (_ATTENTION + group,))[0]

    def prefix_mass(self, number: int, group: str) -> Tensor | None:
        """The share of attention on prefix tokens, (N,), or None where the source has none to speak of.

        Raises:
            OutputError: The record is missing or damaged.
        """
        found = self._read(number, (_PREFIX + group,), missing_ok=True)
        return found[0] if found else None

    def _read(self, number: int, names: Sequence[str], *, missing_ok: bool = False) -> list[Tensor]:
        try:
            with safe_open(str(self._path(number)), framework="pt") as record:
                kept = set(record.keys())
                return [record.get_tensor(name) for name in names if not missing_ok or name in kept]
        except (OSError, SafetensorError) as error:
            came = f"{self._path(number)} can't be read: {error}"
            raise OutputError(explain(came, "a record of this atlas", "delete it and run again")) from error

    def _path(self, number: int) -> Path:
        return self.folder / "images" / f"{number:06d}.safetensors"

    def _fault_path(self, number: int) -> Path:
        return self.folder / "images" / f"{number:06d}.error.txt"


def _joined(rings: Float[Tensor, "K 3 h w"], distinct: Bool[Tensor, "K 3"]) -> Float[Tensor, "K 3 h w"]:
    """Shells of the distinct levels: the rings of what is not distinct belong to the next level outwards."""
    outer, middle, inner = rings.unbind(1)
    part, subpart = (flags[:, None, None] for flags in distinct[:, 1:].unbind(1))
    nothing = torch.zeros_like(inner)
    inner_of_part = torch.where(subpart, nothing, inner)
    return torch.stack(
        [
            outer + torch.where(part, nothing, middle + inner_of_part),
            torch.where(part, middle + inner_of_part, nothing),
            torch.where(subpart, inner, nothing),
        ],
        dim=1,
    )
