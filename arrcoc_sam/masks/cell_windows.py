"""The pixels under the cells of a grid, one axis at a time, and sums over them.

Along an axis a cell covers a run of whole pixels and, at either end, a part of one more. So its sum is the sum of the
run plus two weighted pixels. For bool masks the run is added as bytes, never turned into floats: what makes averages
of many large masks cheap (a fifth of a millisecond for a megapixel).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from arrcoc_sam.errors import InputError, explain

__all__ = ["CellWindows", "average_over_windows"]

# Numbers worked on at a time; on the CPU 4 MB of floats, so that they stay in the caches.
_CHUNK_CPU = 1 << 20
_CHUNK_GPU = 1 << 26
# Under this share of a cell, an overlap is rounding.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class CellWindows:
    """Where each of C cells lies on the pixels of one axis.

    Attributes:
        first: (C,) the pixel that the cell begins in the middle of, …
        first_weight: … and its weight; 0 where the cell begins at an edge between pixels.
        start: (C,) the first whole pixel, …
        stop: … and the one after the last; equal where there is none.
        whole_weight: (C,) the weight of each whole pixel.
        last: (C,) the pixel that the cell ends in the middle of, …
        last_weight: … and its weight.
    """

    first: Int64[Tensor, " C"]
    first_weight: Float64[Tensor, " C"]
    start: Int64[Tensor, " C"]
    stop: Int64[Tensor, " C"]
    whole_weight: Float64[Tensor, " C"]
    last: Int64[Tensor, " C"]
    last_weight: Float64[Tensor, " C"]

    @classmethod
    def of(
        cls,
        num_pixels: int,
        num_cells: int,
        *,
        start: float = 0.0,
        stop: float | None = None,
        valid: tuple[float, float] | None = None,
    ) -> CellWindows:
        """The windows of cells that divide [start, stop] evenly; pixel i is the interval [i, i + 1].

        Args:
            num_pixels: Number of pixels.
            num_cells: Number of cells.
            start: Where the first cell begins, in pixels; may be negative.
            stop: Where the last cell ends; ``num_pixels`` by default.
            valid: The interval of pixels that count; all of them by default.

        Returns:
            The windows, each weight being the share of the cell that the pixel covers.

        Raises:
            InputError: No pixel, no cell, or an empty interval.
        """
        end = float(num_pixels) if stop is None else float(stop)
        if num_pixels < 1 or num_cells < 1 or not end > start:
            came = f"{num_pixels} pixels, {num_cells} cells, start={start}, stop={end}"
            raise InputError(explain(came, "at least one pixel and one cell, and start < stop"))
        low_valid, high_valid = (0.0, float(num_pixels)) if valid is None else valid
        per_cell = (end - start) / num_cells
        # Edges by one multiplication each, not by adding up steps: the last one is `end` exactly.
        edges = start + (end - start) * (torch.arange(num_cells + 1, dtype=torch.float64) / num_cells)
        edges = edges.clamp(max(low_valid, 0.0), min(high_valid, float(num_pixels)))
        edges = torch.where((edges - edges.round()).abs() < _ROUNDING * per_cell, edges.round(), edges)
        low, high = edges[:-1], edges[1:]
        begin, finish = low.ceil(), high.floor()
        within = begin > finish  # the cell lies within one pixel
        first_weight = torch.where(within, high - low, begin - low) / per_cell
        last_weight = torch.where(within, 0.0, high - finish) / per_cell
        return cls(
            first=low.floor().long().clamp_max(num_pixels - 1),
            first_weight=torch.where(first_weight > _ROUNDING, first_weight, 0.0),
            start=begin.long(),
            stop=torch.maximum(begin, finish).long(),
            whole_weight=torch.full_like(low, 1 / per_cell),
            last=finish.long().clamp_max(num_pixels - 1),
            last_weight=torch.where(last_weight > _ROUNDING, last_weight, 0.0),
        )

    def __len__(self) -> int:
        return len(self.first)

    @property
    def share(self) -> Float64[Tensor, " C"]:
        """(C,) the share of each cell that lies on valid pixels."""
        return self.first_weight + (self.stop - self.start) * self.whole_weight + self.last_weight

    def normalised(self) -> CellWindows:
        """The same windows, weights divided by the covered share: means over what is covered, 0 where nothing is."""
        share = self.share
        factor = torch.where(share > 0, 1 / share.clamp_min(_ROUNDING), 0.0)
        return replace(
            self,
            first_weight=self.first_weight * factor,
            whole_weight=self.whole_weight * factor,
            last_weight=self.last_weight * factor,
        )

    def sums(self, values: Bool[Tensor, "N P Q"] | Float[Tensor, "N P Q"]) -> Float[Tensor, "N C Q"]:
        """Weighted sums over the windows, along the middle axis.

        Args:
            values: (N, P, Q), P being the pixels of this axis; bool or float.

        Returns:
            (N, C, Q) float32; float64 for float64 values.
        """
        dtype = torch.float64 if values.dtype == torch.float64 else torch.float32
        values = values.view(torch.uint8) if values.dtype == torch.bool else values.to(dtype)
        result = self._whole(values, dtype) * self._column(self.whole_weight, values.device, dtype)
        for pixel, weight in ((self.first, self.first_weight), (self.last, self.last_weight)):
            if bool(weight.any()):
                parts = values.index_select(1, pixel.to(values.device)).to(dtype)
                result = result + parts * self._column(weight, values.device, dtype)
        return result

    def _column(self, weight: Float64[Tensor, " C"], device: torch.device, dtype: torch.dtype) -> Float[Tensor, "C 1"]:
        return weight.to(device=device, dtype=dtype)[:, None]

    def _whole(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """Unweighted sums over the whole pixels of each window; bytes are added as bytes."""
        length = self.stop - self.start
        longest = int(length.max())
        if len(self) <= longest or longest > 255:  # few long windows: one after the other
            edges = zip(self.start.tolist(), self.stop.tolist(), strict=True)
            return torch.stack([_sum(values[:, a:b], dtype) for a, b in edges], dim=1)
        total = values.new_zeros(values.shape[0], len(self), values.shape[2])
        for step in range(longest):  # many short ones: their first pixels, their second, …
            reached = (step < length).to(device=values.device, dtype=values.dtype)[:, None]
            pixel = (self.start + step).clamp_max(values.shape[1] - 1).to(values.device)
            total = total + values.index_select(1, pixel) * reached
        return total.to(dtype)


def _sum(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum over the middle axis; of bytes that are 0 or 1 in runs of 255, which a byte still counts."""
    if values.dtype != torch.uint8:
        return values.sum(1)
    runs = [values[:, a : a + 255].sum(1, dtype=torch.uint8).to(dtype) for a in range(0, max(1, values.shape[1]), 255)]
    return torch.stack(runs).sum(0) if len(runs) != 1 else runs[0]


def average_over_windows(
    masks: Bool[Tensor, "*N H W"] | Float[Tensor, "*N H W"], rows: CellWindows, columns: CellWindows
) -> Float[Tensor, "*N h w"]:
    """Weighted sums of masks over the cells of a grid, in chunks that stay in the processor's caches.

    Args:
        masks: (…, H, W), bool or float.
        rows: The windows of the h rows of cells.
        columns: The windows of the w columns of cells.

    Returns:
        (…, h, w) float32; float64 for float64 masks. Differentiable in soft masks.
    """
    *batch, height, width = masks.shape
    flat = masks.reshape(-1, height, width)
    budget = _CHUNK_CPU if masks.device.type == "cpu" else _CHUNK_GPU
    group = max(1, budget // (width * (len(rows) if masks.dtype == torch.bool else height)))
    averages = [
        columns.sums(rows.sums(flat[first : first + group]).mT.contiguous()).mT
        for first in range(0, max(1, len(flat)), group)
    ]
    return torch.cat(averages).reshape(*batch, len(rows), len(columns))
