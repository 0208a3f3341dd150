"""Supervise attention that a model has already: chosen heads of its layers, each taught one level.

The softmax is read while the model runs (:mod:`arrcoc_sam.attention.capture`), with its graph, so that
:func:`arrcoc_sam.losses.functional.attention_mass_loss` trains the very weights that the model attends with. Nothing is
added to the model, and what it answers does not change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import index
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from arrcoc_sam.attention import ViTAttention
from arrcoc_sam.errors import InputError, ShapeError, describe, explain
from arrcoc_sam.geometry import ImageTransform
from arrcoc_sam.hierarchy.levels import LEVELS
from arrcoc_sam.losses import functional as LF

__all__ = ["SupervisedHeads"]


class SupervisedHeads(nn.Module):
    """A vision transformer whose chosen heads are taught whole, part and subpart.

    Args:
        model: A timm or transformers vision transformer, or its name; see :class:`arrcoc_sam.attention.ViTAttention`.
        heads: For each level by name, (layer, head) pairs; negative numbers count from the end. A level's attention is
            the mean over its heads.
        query: Whose attention: "point" that of the patch under each image's click, "cls" the class token's, "mean" the
            mean over all patches.
        **options: Of ``ViTAttention``.

    Attributes:
        model: The transformer; its parameters are this module's.

    Raises:
        InputError: Levels that are not whole, part and subpart, a level without a head, heads that are no pairs.
        UnknownNameError: No such layer, head or query.
        UnsupportedModelError: A family whose attention can't be read exactly.

    Example:
        >>> heads = SupervisedHeads("timm:test_vit", {"whole": [(0, 0)], "part": [(0, 1)], "subpart": [(1, 0)]},
        ...                         query="cls", pretrained=False, options={"img_size": 32})
        >>> attention, output = heads(torch.randn(2, 3, 32, 32))
        >>> attention.shape, output.shape
        (torch.Size([2, 3, 2, 2]), torch.Size([2, 1000]))
    """

    def __init__(
        self,
        model: str | nn.Module,
        heads: Mapping[str, Sequence[tuple[int, int]]],
        *,
        query: str = "point",
        **options: Any,
    ) -> None:
        super().__init__()
        expected = f"at least one (layer, head) for each of {', '.join(LEVELS)}, in order"
        try:
            chosen = {level: [(index(layer), index(head)) for layer, head in pairs] for level, pairs in heads.items()}
        except (AttributeError, TypeError, ValueError) as error:
            raise InputError(explain(f"heads is {describe(heads)}", expected)) from error
        if tuple(chosen) != LEVELS or not all(chosen.values()):
            came = f"heads for {list(chosen)}, {[len(pairs) for pairs in chosen.values()]} of them"
            raise InputError(explain(came, expected))
        layers = sorted({layer for pairs in chosen.values() for layer, _ in pairs})
        numbers = sorted({head for pairs in chosen.values() for _, head in pairs})
        options = {"framing": "squash", **options}
        self._source = ViTAttention(
            model,
            layers=layers,
            heads=numbers,
            query=query,  # type: ignore[arg-type]
            differentiable=True,
            **options,
        )
        self.model = self._source.model
        depth, width = len(self._source.layout.blocks), self._source.layout.num_heads
        self._names = [
            [f"L{layer % depth:02d}.H{head % width:02d}" for layer, head in pairs] for pairs in chosen.values()
        ]
        self._frame_hw: tuple[int, int] | None = None

    def forward(
        self, pixels: Float[Tensor, "B 3 H W"], points_xy: Float[Tensor, "B 2"] | None = None
    ) -> tuple[Float[Tensor, "B 3 h w"], Any]:
        """Attention of every level, with gradients, and what the model answers besides.

        Args:
            pixels: Images as the model takes them: normalised, at its size.
            points_xy: For query "point": a click an image, pixel indices of the input.

        Returns:
            What the softmax gives the patches, ≥ 0 (what is missing to 1 goes to the prefix tokens), and the output.

        Raises:
            ShapeError: Clicks that are not one an image.
            InputError: A click outside the input, or on what is left over at its edge and no patch sees; query "point"
                without clicks; pixels that are no floats.
        """
        if not pixels.is_floating_point():
            raise InputError(explain(f"pixels is {describe(pixels)}", "floats, normalised as the model takes them"))
        frame_hw = self._frame_hw = (int(pixels.shape[-2]), int(pixels.shape[-1]))
        cells = None
        if self._source.query == "point":
            if points_xy is None:
                raise InputError(explain("no points were given", "points_xy (B, 2) for query='point'"))
            if tuple(points_xy.shape) != (len(pixels), 2):
                raise ShapeError(explain(f"points_xy is {describe(points_xy)}", f"({len(pixels)}, 2)"))
            onto = self._source.onto_patches(ImageTransform.identity(frame_hw))
            cells = onto.cells_at(points_xy.detach().cpu().double(), self._source.layout.grid_hw(frame_hw))
            cells = cells.to(pixels.device)
        with self._source.watch(frame_hw, cells) as attention:
            output = self._source.layout.run(pixels)
        values = attention.values
        if cells is not None:
            # Every image was asked for every click; its own is on the diagonal.
            each = torch.arange(len(pixels), device=values.device)
            values = values[each, :, each]
        place = {name: number for number, name in enumerate(attention.names)}
        levels = [values[:, [place[name] for name in names]].mean(1) for names in self._names]
        stacked = torch.stack(levels, dim=1)
        stacked._frame_hw = frame_hw  # type: ignore[attr-defined]  # for its loss, whatever is worked through before
        return stacked, output

    def loss(
        self,
        attention: Float[Tensor, "B 3 h w"],
        targets: Float[Tensor, "B 3 H W"] | Bool[Tensor, "B 3 H W"],
        confidence: Float[Tensor, "B 3"],
        *,
        valid: Bool[Tensor, "B 3"] | None = None,
        normalizer: float | Float[Tensor, ""] | None = None,
        frame_hw: tuple[int, int] | None = None,
    ) -> Float[Tensor, ""]:
        """:func:`~arrcoc_sam.losses.functional.attention_mass_loss` of the levels, weighted by confidence.

        Where the input is no multiple of the patch, the masks are cropped or padded as it is.

        Args:
            attention: As :meth:`forward` answers it.
            targets: Over the input, at any resolution.
            confidence: Raw.
            valid: Levels that count; all by default.
            normalizer: What the mean divides by instead.
            frame_hw: Height and width of the input, pixels; by default those that :meth:`forward` answered for with
                ``attention``. Of a tensor that was made from its answer (cut, cast, gathered) those of the last forward
                pass: to be passed where other sizes are worked through before the loss.

        Raises:
            ShapeError: Shapes that do not agree; attention of another grid than the input's.
            InputError: A dtype, device or number that can't be worked with.
        """
        if frame_hw is None:
            frame_hw = getattr(attention, "_frame_hw", self._frame_hw)
        if frame_hw is not None:
            targets = self._on_patches(targets, frame_hw, (attention.shape[-2], attention.shape[-1]))
        return LF.attention_mass_loss(attention, targets, confidence, valid=valid, normalizer=normalizer)

    def _on_patches(
        self,
        targets: Float[Tensor, "B 3 H W"] | Bool[Tensor, "B 3 H W"],
        frame_hw: tuple[int, int],
        grid: tuple[int, int],
    ) -> Float[Tensor, "B 3 _ _"] | Bool[Tensor, "B 3 _ _"]:
        """Masks averaged over the patches; as they are where the patches cover the input."""
        if self._source.layout.grid_hw(frame_hw) != grid:
            came = f"attention on {grid} patches for an input of {frame_hw}"
            raise ShapeError(explain(came, f"{self._source.layout.grid_hw(frame_hw)}", "pass frame_hw"))
        if self._source.onto_patches(ImageTransform.identity(frame_hw)).frame_hw == frame_hw:
            return targets
        drawn_hw = (targets.shape[-2], targets.shape[-1])
        return self._source.onto_patches(ImageTransform.squash(drawn_hw, frame_hw)).masks_to_grid(targets, grid)
