"""What ``analyze`` is told: clicks, attention, files; checked before any work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float64
from torch import Tensor

from arrcoc_sam.attention.maps import as_points
from arrcoc_sam.cli.console import noted
from arrcoc_sam.cli.coordinates import parse_integers, parse_point
from arrcoc_sam.errors import ArrcocSamError, InputError, explain
from arrcoc_sam.image_files import find_images
from arrcoc_sam.prompts import point_grid

if TYPE_CHECKING:
    from arrcoc_sam.attention import AttentionSource

__all__ = ["AttentionOptions", "ClickPlan", "Inputs", "about", "refuse_shared_maps"]


@dataclass(frozen=True)
class ClickPlan:
    """Where to click in an image: the same places in each, a grid over it, or its centre.

    Attributes:
        points_xy: Pixel indices; none for a grid.
        num_per_side: Clicks along each side of the grid.
    """

    points_xy: tuple[tuple[float, float], ...] = ()
    num_per_side: int = 1

    @classmethod
    def parse(cls, points: Sequence[str], grid: int | None) -> ClickPlan:
        """From what was typed.

        Raises:
            InputError: Points that are none, points and a grid, a grid of less than one or more than 32 a side.
        """
        if points and grid is not None:
            raise InputError(explain("both --points and --grid", "one of them"))
        if grid is not None and not 1 <= grid <= 32:
            raise InputError(explain(f"--grid {grid}", "1 to 32 clicks a side"))
        return cls(tuple(parse_point(text) for text in points), grid or 1)

    def on(self, size_hw: tuple[int, int]) -> Float64[Tensor, "K 2"]:
        """The clicks in an image of this height and width.

        Raises:
            InputError: One of them lies outside.
        """
        if self.points_xy:
            return as_points(self.points_xy, size_hw)
        height, width = size_hw
        return point_grid(self.num_per_side) * torch.tensor([width, height], dtype=torch.float64) - 0.5


@dataclass(frozen=True)
class AttentionOptions:
    """An attention source by name, with the options that go with its kind.

    Attributes:
        name: "relevance", "timm:…", "hf:…", a file or a folder.
        query: Whose attention, of a transformer; its own default when None.
        layers: Numbers with commas between them; all when None.
        heads: Numbers with commas between them, or "mean"; all when None.
        random_weights: A transformer without its weights.
        key: The array in files that may hold several.
        seed: Of random weights.
        device: Where a transformer goes.
        further: Arguments of a transformer's ``ViTAttention`` besides.
        option: What the command calls the source.
    """

    name: str
    query: str | None = None
    layers: str | None = None
    heads: str | None = None
    random_weights: bool = False
    key: str | None = None
    seed: int = 0
    device: str = "auto"
    further: Mapping[str, Any] = field(default_factory=dict)
    option: str = "--attention"

    def load(self) -> AttentionSource:
        """The source.

        Raises:
            InputError: An option of another kind of source, or an array that is no attention.
            UnknownNameError: There is no such source.
        """
        from arrcoc_sam.attention import load_attention

        transformer = self.name.startswith(("timm:", "hf:"))
        given = {
            "--query": self.query is not None,
            "--layers": self.layers is not None,
            "--heads": self.heads is not None,
            "--random-weights": self.random_weights,
        }
        misplaced = [option for option, was_given in given.items() if was_given]
        if misplaced and not transformer:
            raise InputError(explain(f"{misplaced[0]} with {self.option} {self.name}", "a transformer, timm:… or hf:…"))
        if self.key is not None and (transformer or self.name == "relevance"):
            raise InputError(explain(f"--key with {self.option} {self.name}", "an .npz or .safetensors file"))
        if not transformer:
            return load_attention(self.name, **({} if self.key is None else {"key": self.key}))
        options: dict[str, Any] = {"pretrained": not self.random_weights, "device": self.device, **self.further}
        if self.query is not None:
            options["query"] = self.query
        if self.layers is not None:
            options["layers"] = parse_integers(self.layers, "--layers")
        if self.heads is not None:
            options["heads"] = self.heads if self.heads in ("all", "mean") else parse_integers(self.heads, "--heads")
        torch.manual_seed(self.seed)
        return load_attention(self.name, **options)

    def note_control(self) -> None:
        """Say that what follows is about no trained model, where it is about none."""
        if self.random_weights:
            noted("random weights: a control, which says nothing about the trained model")

    def describe(self) -> str:
        """The source in words."""
        return f"{self.name} with random weights (a control)" if self.random_weights else self.name


@dataclass(frozen=True)
class Inputs:
    """Image files, and which of them were named outright rather than found in a folder or by a glob.

    A file that was named has to be good; one that was found may be left out.
    """

    paths: tuple[Path, ...]
    named: frozenset[Path]

    @classmethod
    def find(cls, names: Sequence[str], *, recursive: bool = False) -> Inputs:
        """The files that names stand for.

        Raises:
            ImageReadError: A name that does not exist, a folder or glob without an image.
        """
        paths = find_images(names, recursive=recursive)
        named = {path.resolve() for path in (Path(name).expanduser() for name in names) if path.is_file()}
        return cls(tuple(paths), frozenset(path for path in paths if path.resolve() in named))


@contextmanager
def about(path: Path) -> Iterator[None]:
    """Errors inside name the file that they are about."""
    try:
        yield
    except ArrcocSamError as error:
        if str(path) in str(error):
            raise
        raise type(error)(f"{path}: {error}") from error


def refuse_shared_maps(source: AttentionSource, paths: Iterable[Path]) -> None:
    """Refuse images of one name, in several folders, whose attention would be read from one file.

    Args:
        source: Of any kind; only a folder of arrays is asked.
        paths: All images that it will be asked about.

    Raises:
        InputError: Two of them share a file.
    """
    from arrcoc_sam.attention import ArrayAttention

    if not isinstance(source, ArrayAttention):
        return
    namesakes: dict[str, dict[Path, Path]] = {}
    for path in paths:
        namesakes.setdefault(path.stem, {}).setdefault(path.resolve(), path)
    for alike in (found.values() for found in namesakes.values() if len(found) > 1):
        first: dict[Path, Path] = {}
        for path in alike:
            try:
                file = source.file_of(path)
            except InputError:  # an image without a file of its own is refused or listed in its turn
                continue
            if file is None:
                return
            other = first.setdefault(file, path)
            if other.parent != path.parent:
                came = f"{other} and {path} share the attention file {file}"
                mend = f"put each image's into a folder as its own: {path.parent.name}/{file.name}"
                raise InputError(explain(came, "a file for each", mend))
