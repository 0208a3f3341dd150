"""Attention maps on a grid, and what makes them.

An :class:`AttentionMaps` is what every attention source answers: N named maps on one token grid, each a distribution
over the grid's cells, with the transform that says where the grid lies on the original image.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Shaped
from PIL import Image
from torch import Tensor

from arrcoc_sam.errors import InputError, ShapeError, UnknownNameError, describe, explain, listed
from arrcoc_sam.geometry import ImageTransform
from arrcoc_sam.inputs import as_numbers

__all__ = ["AttentionMaps", "AttentionSource", "ImageLike", "PointsLike", "as_points"]

ImageLike: TypeAlias = str | Path | Image.Image | np.ndarray
PointsLike: TypeAlias = Tensor | np.ndarray | Sequence[Sequence[float | int]]
Index: TypeAlias = int | np.integer | str | slice | Sequence[int] | Sequence[str] | np.ndarray | Tensor

# How far a sum in float32 may be from 1.
_ROUNDING = 1e-3


@runtime_checkable
class AttentionSource(Protocol):
    """Anything that answers attention maps for an image: ``maps = source(image, points_xy=None)``.

    ``points_xy`` (K, 2) are pixel indices in the original image, (x, y), 0 = the centre of the first pixel. A source
    whose maps depend on the prompt answers values of shape (N, K, h, w) when points are given; any other ignores them
    and answers (N, h, w).
    """

    def __call__(self, image: ImageLike, points_xy: PointsLike | None = None) -> AttentionMaps:
        """Attention over ``image``, given K prompt points or none."""
        ...


@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """N attention maps on one grid, each of them summing to 1 over the grid's valid cells.

    A value is the attention *mass* in a cell, so the density in a cell that the image covers in part is ``values /
    valid``. Build it with :meth:`from_values`, which normalises; the plain constructor refuses what is no such
    distribution.

    Attributes:
        values: Mass per cell, >= 0, float32, (N, h, w), or (N, K, h, w) when the maps depend on K prompts; 0 where
            ``valid`` is 0.
        names: One unique name for each of the N maps.
        valid: Share of each cell that the image covers, (h, w), in [0, 1]: 1 inside, 0 on padding.
        transform: From the original image to the model's frame, which the grid divides into h x w equal cells.
        prefix_mass: Share of the attention that went to prefix tokens (class token, registers) before normalisation,
            (N,) or (N, K), in [0, 1]; None where there are no such tokens to speak of.

    Example:
        >>> import torch
        >>> from arrcoc_sam.geometry import ImageTransform
        >>> maps = AttentionMaps.from_values(
        ...     torch.tensor([[[1.0, 3.0]], [[2.0, 2.0]]]), names=["a", "b"], transform=ImageTransform.identity((1, 2))
        ... )
        >>> maps["a"].values
        tensor([[[0.2500, 0.7500]]])
        >>> maps[1].names
        ('b',)
    """

    values: Float[Tensor, "N h w"] | Float[Tensor, "N K h w"]
    names: tuple[str, ...]
    valid: Float[Tensor, "h w"]
    transform: ImageTransform
    prefix_mass: Float[Tensor, " N"] | Float[Tensor, "N K"] | None = None

    def __post_init__(self) -> None:
        if self.values.ndim not in (3, 4) or 0 in self.values.shape:
            raise ShapeError(
                explain(f"the attention is {describe(self.values)}", "non-empty (N, h, w) or (N, K, h, w)")
            )
        if len(self.names) != len(self.values):
            raise ShapeError(
                explain(f"{len(self.names)} names came with {len(self.values)} attention maps", "one name a map")
            )
        if len(set(self.names)) != len(self.names):
            twice = next(name for name in self.names if self.names.count(name) > 1)
            raise InputError(
                explain(f"the map name {twice!r} occurs twice", "unique names", "rename one: maps.prefixed('a/')")
            )
        if self.valid.shape != self.values.shape[-2:]:
            raise ShapeError(
                explain(f"valid has shape {tuple(self.valid.shape)}", f"the grid's {tuple(self.values.shape[-2:])}")
            )
        if self.prefix_mass is not None and self.prefix_mass.shape != self.values.shape[:-2]:
            raise ShapeError(
                explain(
                    f"prefix_mass has shape {tuple(self.prefix_mass.shape)}",
                    f"the maps' {tuple(self.values.shape[:-2])}",
                )
            )
        self._check_values()

    def _check_values(self) -> None:
        mend = "build them with AttentionMaps.from_values, which normalises"
        if self.values.dtype != torch.float32 or not isinstance(self.valid, Tensor):
            came = f"the attention is {describe(self.values)} and valid is {describe(self.valid)}"
            raise InputError(explain(came, "float32 tensors", mend))
        values, valid = self.values.detach(), self.valid.detach()
        if not ((valid >= 0) & (valid <= 1 + _ROUNDING)).all():
            raise InputError(explain("valid holds NaN or values beside [0, 1]", "the share that the image covers"))
        mass = torch.where(valid > 0, values, 0.0).sum((-2, -1))
        even = ((mass - 1).abs() <= _ROUNDING) & (values >= 0).flatten(-2).all(-1)
        _refuse(~even.reshape(len(values), -1).all(1), self.names, "is no distribution", "values >= 0, sum 1", mend)

    @classmethod
    def from_values(
        cls,
        values: Shaped[Tensor, ...] | Shaped[np.ndarray, ...],
        *,
        transform: ImageTransform,
        names: Sequence[str] | None = None,
        valid: Shaped[Tensor, ...] | Shaped[np.ndarray, ...] | None = None,
        prefix_mass: Float[Tensor, ...] | Float[np.ndarray, ...] | None = None,
    ) -> AttentionMaps:
        """Check maps and normalise each to sum 1 over the valid cells; gradients flow through.

        Args:
            values: Attention mass per cell, >= 0, any floating or integer dtype, (N, h, w) or (N, K, h, w).
            transform: From the original image to the frame that the grid divides.
            names: One name a map; "map0", "map1", … when not given.
            valid: Cell weights (h, w); the share of each cell that the image covers when not given.
            prefix_mass: Share of attention on prefix tokens, (N,) or (N, K).

        Returns:
            The maps, in float32, on the device of ``values``.

        Raises:
            ShapeError: Wrong rank, or another number of names than of maps.
            InputError: NaN, infinite or negative values, or a map without any mass on valid cells; the message names
                the map. Cell weights beside [0, 1].
        """
        values = as_numbers(values, "values", "(N, h, w) or (N, K, h, w)")
        if values.ndim not in (3, 4) or 0 in values.shape:
            raise ShapeError(
                explain(
                    f"the attention is {describe(values)}",
                    "non-empty maps of shape (N, h, w), or (N, K, h, w) for K prompts",
                    "add the axis of the maps: values[None]" if values.ndim == 2 else None,
                )
            )
        if values.is_complex():
            raise InputError(explain(f"the attention is {describe(values)}", "real numbers"))
        names = tuple(f"map{i}" for i in range(len(values))) if names is None else tuple(names)
        if len(names) != len(values):
            raise ShapeError(explain(f"{len(names)} names came with {len(values)} attention maps", "one name a map"))
        grid_hw = (int(values.shape[-2]), int(values.shape[-1]))
        weights = transform.grid_valid(grid_hw) if valid is None else valid
        weights = as_numbers(weights, "valid", "(h, w)", values.device).to(torch.float32)
        if weights.shape != values.shape[-2:]:
            raise ShapeError(explain(f"valid has shape {tuple(weights.shape)}", f"the grid's {grid_hw}"))

        values = values.to(torch.float32)
        _refuse(~torch.isfinite(values).flatten(1).all(1), names, "holds NaN or infinite values", "finite values")
        _refuse((values < 0).flatten(1).any(1), names, "holds negative values", "values >= 0")
        values = torch.where(weights > 0, values, 0.0)
        # Scaled by the largest cell first, so that neither subnormal nor enormous maps lose their sum.
        peak = values.detach().amax((-2, -1), keepdim=True)
        _refuse((peak == 0).flatten(1).any(1), names, "is zero on all valid cells", "some attention on the image")
        values = values / peak
        values = values / values.sum((-2, -1), keepdim=True)
        if prefix_mass is not None:
            prefix_mass = as_numbers(prefix_mass, "prefix_mass", "(N,) or (N, K)", values.device).to(torch.float32)
        return cls(values=values, names=names, valid=weights, transform=transform, prefix_mass=prefix_mass)

    @property
    def grid_hw(self) -> tuple[int, int]:
        """Rows and columns of the grid."""
        return int(self.values.shape[-2]), int(self.values.shape[-1])

    @property
    def num_prompts(self) -> int | None:
        """K where the maps depend on the prompt, else None."""
        return int(self.values.shape[1]) if self.values.ndim == 4 else None

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[AttentionMaps]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: Index) -> AttentionMaps:
        """The maps picked by number, name, slice, a sequence of those or of N bools; for one still (1, …)."""
        numbers = self._numbers(index)
        return replace(
            self,
            values=self.values[numbers],
            names=tuple(self.names[i] for i in numbers),
            prefix_mass=None if self.prefix_mass is None else self.prefix_mass[numbers],
        )

    def _numbers(self, index: Index) -> list[int]:
        given: Any = index.tolist() if isinstance(index, (np.ndarray, Tensor)) else index
        if isinstance(given, slice):
            numbers = list(range(len(self)))[given]
        elif isinstance(given, str) or not isinstance(given, Iterable):
            numbers = [self._number(given)]
        else:
            several = list(given)
            if several and all(isinstance(picked, (bool, np.bool_)) for picked in several):
                if len(several) != len(self):
                    raise ShapeError(explain(f"the index is {len(several)} bools", f"one for each of {len(self)} maps"))
                several = [number for number, picked in enumerate(several) if picked]
            numbers = [self._number(one) for one in several]
        if not numbers:
            raise InputError(explain("the index picks no attention map", f"some of {len(self)} maps"))
        return numbers

    def _number(self, index: object) -> int:
        if isinstance(index, str):
            if index not in self.names:
                raise UnknownNameError(explain(f"no attention map is called {index!r}", f"one of {listed(self.names)}"))
            return self.names.index(index)
        try:
            number = operator.index(index)  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            raise InputError(explain(f"the index of a map is {describe(index)}", "a number or a name")) from error
        if not -len(self) <= number < len(self):
            # IndexError is what ends Python's own iteration and what a user of sequences expects.
            raise IndexError(explain(f"attention map {number} was asked for", f"one of {len(self)}"))
        return number % len(self)

    @classmethod
    def cat(cls, parts: Sequence[AttentionMaps]) -> AttentionMaps:
        """The maps of several sources on one grid, one after the other.

        Where some depend on K prompts and others do not, the latter are repeated for each prompt. Prefix masses are
        kept where all the parts have them.

        Raises:
            InputError: No part at all, or a name that occurs twice.
            ShapeError: Different grids, transforms, cell weights or numbers of prompts.
        """
        if not parts:
            raise InputError(explain("no attention maps were given to join", "at least one AttentionMaps"))
        first = parts[0]
        prompts = {part.num_prompts for part in parts} - {None}
        if len(prompts) > 1:
            raise ShapeError(
                explain(f"maps for {listed(sorted(prompts, key=int))} prompts can't be joined", "equal numbers")
            )
        for part in parts[1:]:
            same_frame = part.transform == first.transform and part.grid_hw == first.grid_hw
            if not (same_frame and torch.equal(part.valid, first.valid)):
                came = f"{first.names[0]!r} lies on {first.grid_hw} cells and {part.names[0]!r} on {part.grid_hw}"
                mend = "analyse the sources one at a time"
                raise ShapeError(explain(came, "one grid, transform and cell weights", mend))
        count = next(iter(prompts), None)
        expanded = [part._for_prompts(count) for part in parts]
        masses = [part.prefix_mass for part in expanded if part.prefix_mass is not None]
        return replace(
            first,
            values=torch.cat([part.values for part in expanded]),
            names=tuple(name for part in expanded for name in part.names),
            prefix_mass=torch.cat(masses) if len(masses) == len(expanded) else None,
        )

    def _for_prompts(self, count: int | None) -> AttentionMaps:
        if count is None or self.values.ndim == 4:
            return self
        mass = None if self.prefix_mass is None else self.prefix_mass[:, None].expand(-1, count)
        return replace(self, values=self.values[:, None].expand(-1, count, -1, -1), prefix_mass=mass)

    def prefixed(self, prefix: str) -> AttentionMaps:
        """The same maps, every name with ``prefix`` before it: what makes names unique before :meth:`cat`."""
        return replace(self, names=tuple(prefix + name for name in self.names))

    def to(self, device: torch.device | str) -> AttentionMaps:
        """The maps with their tensors on ``device``."""
        mass = None if self.prefix_mass is None else self.prefix_mass.to(device)
        return replace(self, values=self.values.to(device), valid=self.valid.to(device), prefix_mass=mass)

    def detach(self) -> AttentionMaps:
        """The maps cut from the graph that made them."""
        mass = None if self.prefix_mass is None else self.prefix_mass.detach()
        return replace(self, values=self.values.detach(), prefix_mass=mass)

    def to_image(self, mode: Literal["nearest", "bilinear"] = "nearest") -> Float[Tensor, "... H W"]:
        """The maps at the original image's size, (N, H, W) or (N, K, H, W): for pictures, never for metrics.

        Drawn is the attention's density, ``values / valid``, so that cells that the image covers in part do not look
        fainter; 0 where the model did not look (cropped away).
        """
        density = torch.where(self.valid > 0, self.values / self.valid.clamp(min=torch.finfo(torch.float32).tiny), 0.0)
        return self.transform.grid_to_image(density, mode=mode)

    def __repr__(self) -> str:
        """Names and sizes instead of all the numbers."""
        prompts = "" if self.num_prompts is None else f", {self.num_prompts} prompts"
        rows, columns = self.grid_hw
        return f"AttentionMaps({len(self)} maps: {listed(self.names)}{prompts}; {rows} x {columns} cells)"


def as_points(points_xy: PointsLike, image_hw: tuple[int, ...]) -> Float64[Tensor, "K 2"]:
    """Prompt points as a float64 (K, 2) tensor on the CPU, every one inside the image.

    Args:
        points_xy: (K, 2), pixel indices (x, y) in the original image, inside [-0.5, W - 0.5] x [-0.5, H - 0.5].
        image_hw: Height and width of the original image.

    Raises:
        ShapeError: Not (K, 2) with K >= 1.
        InputError: A point that is not finite or lies outside the image.
    """
    try:
        array = points_xy.detach().cpu().numpy() if isinstance(points_xy, Tensor) else np.asarray(points_xy)
    except ValueError as error:
        raise ShapeError(explain(f"points_xy is {describe(points_xy)}", "numbers (K, 2), K >= 1")) from error
    if array.ndim != 2 or array.shape[1] != 2 or len(array) == 0 or array.dtype.kind not in "iuf":
        mend = "a single point is [[x, y]]"
        raise ShapeError(explain(f"points_xy is {describe(array)}", "numbers (K, 2), K >= 1", mend))
    points = torch.from_numpy(array.astype(np.float64))
    height, width = image_hw
    inside = (points >= -0.5) & (points <= torch.tensor([width - 0.5, height - 0.5], dtype=torch.float64))
    if not inside.all():
        x, y = points[~inside.all(1)][0].tolist()
        expected = f"0 <= x <= {width - 1} and 0 <= y <= {height - 1}"
        raise InputError(explain(f"the point ({x:g}, {y:g}) lies outside the image", expected))
    return points


def _refuse(bad: Bool[Tensor, " N"], names: Sequence[str], came: str, expected: str, mend: str | None = None) -> None:
    if bad.any():
        raise InputError(explain(f"the attention map {names[int(bad.int().argmax())]!r} {came}", expected, mend))
