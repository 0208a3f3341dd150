"""Where a hierarchy cache clicks: on a grid, at given places, or on masks that are known to be right."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float64
from torch import Tensor

from arrcoc_sam.datasets import CocoDataset
from arrcoc_sam.errors import DataError, InputError, describe, explain, listed
from arrcoc_sam.image_files import find_by_path_end
from arrcoc_sam.images import header_size
from arrcoc_sam.inputs import as_coordinates, as_count
from arrcoc_sam.masks.components import largest_interior_point
from arrcoc_sam.masks.rle import RLE
from arrcoc_sam.prompts import point_grid

__all__ = ["Clicks", "GridPrompts", "PointPrompts", "PromptPlan", "TruthPrompts"]


@dataclass(frozen=True, eq=False)
class Clicks:
    """The clicks of one image.

    Attributes:
        points_xy: (K, 2) pixel indices.
        truth: For clicks made of annotations, the annotated masks, one a click.
    """

    points_xy: Float64[Tensor, "K 2"]
    truth: tuple[RLE, ...] | None = None


@runtime_checkable
class PromptPlan(Protocol):
    """Clicks by image, the same whenever it is asked."""

    def describe(self) -> dict[str, Any]:
        """What makes the clicks, ready for JSON; two plans that differ describe themselves differently."""
        ...

    def on(self, path: Path, size_hw: tuple[int, int]) -> Clicks:
        """The clicks in the image of this file, of this height and width."""
        ...


@dataclass(frozen=True)
class GridPrompts:
    """A regular grid over every image, each click in the middle of its cell.

    Attributes:
        num_per_side: Clicks along each side, 1 to 64.
    """

    num_per_side: int = 8

    def __post_init__(self) -> None:
        """Check the number.

        Raises:
            InputError: It is out of its range, or no whole number.
        """
        if as_count(self.num_per_side, "num_per_side") > 64:
            raise InputError(explain(f"a grid of {self.num_per_side} clicks a side", "1 to 64"))

    def describe(self) -> dict[str, Any]:
        """Kind and density."""
        return {"kind": "grid", "num_per_side": self.num_per_side}

    def on(self, path: Path, size_hw: tuple[int, int]) -> Clicks:
        """The same places in every image."""
        del path
        height, width = size_hw
        return Clicks(point_grid(self.num_per_side) * torch.tensor([width, height], dtype=torch.float64) - 0.5)


@dataclass(frozen=True)
class PointPrompts:
    """Given clicks, looked up by the name of the image's file, which may have folders before it.

    A name is meant for the images whose paths end in it, compared by whole folders; of several names for an image the
    longest is.

    Attributes:
        points_xy: File name to clicks (x, y) in pixel indices; folders may be parted by backslashes, too.
        source: The file that they were read from, named in errors.
    """

    points_xy: Mapping[str, Sequence[tuple[float, float]]] = field(repr=False)
    source: Path | None = None

    def __post_init__(self) -> None:
        """Check that clicks are pairs of finite numbers.

        Raises:
            InputError: No clicks by name, or one that is something else.
        """
        if not isinstance(self.points_xy, Mapping):
            raise InputError(explain(f"points_xy is {describe(self.points_xy)}", '{"image.jpg": [(x, y), …]}'))
        for name, clicks in self.points_xy.items():
            if isinstance(clicks, Sized) and not len(clicks):
                continue
            points = as_coordinates(clicks, 2, f"points_xy[{name!r}]")
            if points.ndim != 2 or not bool(points.isfinite().all()):
                came = f"{'' if self.source is None else f'{self.source}: '}the clicks of {name!r} are {clicks!r}"
                raise InputError(explain(came, "[(x, y), …], finite pixel indices"))

    @classmethod
    def read(cls, path: str | Path) -> PointPrompts:
        """From a JSON file ``{"image.jpg": [[x, y], …], …}``.

        Raises:
            DataError: It can't be read, or holds something else.
        """
        try:
            record = json.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            expected = 'a JSON file {"image.jpg": [[x, y], …]}'
            raise DataError(explain(f"{path} does not exist", expected, "check the path")) from error
        except (OSError, ValueError) as error:
            raise DataError(explain(f"{path} can't be read as JSON: {error}", '{"image.jpg": [[x, y], …]}')) from error
        if not isinstance(record, dict):
            raise DataError(explain(f"{path} holds a {type(record).__name__}", '{"image.jpg": [[x, y], …]}'))
        points = {}
        for name, clicks in record.items():
            try:
                points[name] = [(float(x), float(y)) for x, y in clicks]
            except (TypeError, ValueError) as error:
                raise DataError(explain(f"{path}: the clicks of {name!r} are {clicks!r}", "[[x, y], …]")) from error
        return cls(points, Path(path))

    def describe(self) -> dict[str, Any]:
        """Kind, and a digest of all clicks."""
        text = json.dumps({name: [list(p) for p in points] for name, points in sorted(self.points_xy.items())})
        return {"kind": "points", "sha256": sha256(text.encode()).hexdigest()}

    def on(self, path: Path, size_hw: tuple[int, int]) -> Clicks:
        """The clicks given for this file.

        Raises:
            DataError: There are none.
            InputError: One lies outside the image.
        """
        name = self._name_for(path)
        if name is None:
            raise DataError(explain(f"no clicks are given for {path.name}", "clicks for every image"))
        clicks = self.points_xy[name]
        points = as_coordinates(clicks, 2, "points_xy") if len(clicks) else torch.zeros(0, 2, dtype=torch.float64)
        height, width = size_hw
        outside = ((points < -0.5) | (points > points.new_tensor((width, height)) - 0.5)).any(1)
        if bool(outside.any()):
            x, y = points[outside][0].tolist()
            came = f"the click ({x:g}, {y:g}) on {path.name}"
            came = came if self.source is None else f"{self.source}: {came}"
            raise InputError(explain(came, f"one inside the image, width {width}, height {height}"))
        return Clicks(points)

    def check(self, paths: Sequence[Path]) -> None:
        """Refuse clicks outside their images, or for several images, before anything is built, by the files' headers.

        Images without clicks, where others have some, and files that can't be read are left to the build, which lists
        them.

        Raises:
            DataError: No image has a click.
            InputError: A click lies outside its image, or two images of one name share their clicks.
        """
        images: dict[str, Path] = {}
        for path in paths:
            name = self._name_for(path)
            if name is None:
                continue
            if (other := images.setdefault(name, path)) != path:
                came = f"{other} and {path} share the clicks of {name!r}"
                came = came if self.source is None else f"{self.source}: {came}"
                raise InputError(explain(came, "clicks for each", f"name folders, too: {path.parent.name}/{path.name}"))
            size_hw = header_size(path)
            if size_hw is not None:
                self.on(path, size_hw)
        if not any(self.points_xy[name] for name in images):
            came = f"none of {len(paths)} images has a click in {self.source or 'points_xy'}, which names"
            raise DataError(explain(f"{came} {listed(list(self.points_xy))}", "clicks for one image at least"))

    def _name_for(self, path: Path) -> str | None:
        """The longest name that a path ends in."""
        absolute = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links to other names
        return find_by_path_end(absolute, self._names.get)

    @cached_property
    def _names(self) -> dict[tuple[str, ...], str]:
        """Names by their parts; one with backslashes is read as on Windows too, where it isn't another's."""
        names = {PurePosixPath(name).parts: name for name in reversed(list(self.points_xy))}
        for name in self.points_xy:
            names.setdefault(PureWindowsPath(name).parts, name)
        return names


@dataclass(frozen=True, eq=False)
class TruthPrompts:
    """One click on every annotated mask, on the pixel farthest from its border.

    The annotated mask is kept beside the answer: how well each level agrees with it is in the cache.

    Attributes:
        dataset: The annotations; crowds are left out.
    """

    dataset: CocoDataset

    def describe(self) -> dict[str, Any]:
        """Kind, and a digest of the annotations."""
        text = "".join(f"{a.image_id} {a.id} {a.counts}\n" for a in self.dataset.annotations if not a.crowd)
        return {"kind": "truth", "sha256": sha256(text.encode()).hexdigest()}

    def on(self, path: Path, size_hw: tuple[int, int]) -> Clicks:
        """The clicks of this picture's annotations.

        Raises:
            DataError: The data set does not know the picture, or gives it another size.
        """
        image = self.dataset.find(path)
        if image is None:
            raise DataError(explain(f"{self.dataset.path} has no image {path.name}", "annotations for every image"))
        if image.size_hw != size_hw:
            raise DataError(explain(f"{path.name} has height and width {size_hw}", f"{image.size_hw}, as annotated"))
        annotations = [a for a in self.dataset.annotations_of(image) if not a.crowd]
        points = [largest_interior_point(annotation.mask()) for annotation in annotations]
        empty = torch.zeros(0, 2, dtype=torch.float64)
        return Clicks(torch.stack(points) if points else empty, tuple(annotation.rle for annotation in annotations))
