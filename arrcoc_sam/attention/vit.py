"""The attention of vision transformers as AttentionMaps: any layer and head, exact, on the token grid."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from arrcoc_sam.attention.capture import AttentionCapture
from arrcoc_sam.attention.layouts import TokenLayout, layout_of
from arrcoc_sam.attention.loading import load_vision_transformer
from arrcoc_sam.attention.maps import AttentionMaps, ImageLike, PointsLike, as_points
from arrcoc_sam.attention.preprocess import Framing, Preprocess, timm_preprocess, transformers_preprocess
from arrcoc_sam.attention.reading import POOL, QUERIES, GridReader, Query, on_grid
from arrcoc_sam.errors import InputError, UnknownNameError, explain
from arrcoc_sam.geometry import ImageTransform
from arrcoc_sam.images import load_image
from arrcoc_sam.inputs import as_size

__all__ = ["GridAttention", "ViTAttention"]


class GridAttention:
    """Attention on the token grid, filled when a forward pass inside :meth:`ViTAttention.watch` is over.

    Attributes:
        names: One name a map.
        values: Attention on the patches, as the softmax gave it (what is missing to 1 went to the prefix tokens),
            (B, N, h, w), or (B, N, K, h, w) for K cells.
        prefix_mass: Attention on the prefix tokens, (B, N) or (B, N, K).
    """

    names: tuple[str, ...]
    values: Float[Tensor, "B N h w"] | Float[Tensor, "B N K h w"]
    prefix_mass: Float[Tensor, "B N"] | Float[Tensor, "B N K"]


class ViTAttention:
    """Attention maps of a vision transformer from timm or transformers.

    The weights are those that the model itself uses (float32 softmax of its own queries and keys, whatever kernel and
    dtype it runs in), read without changing its output; see :mod:`arrcoc_sam.attention.capture`. Families whose keys
    are not the patches of the image in row order are refused by name: ``docs/attention_families.md`` lists both.

    Args:
        model: "timm:<name>" or "hf:<repository or folder>", or a module of either library. timm's names take the forms
            that ``timm.create_model`` takes.
        pretrained: Load the published weights; False keeps random ones (a control). Ignored for modules.
        layers: "all", or the numbers of the blocks, negative ones from the end.
        heads: "all", the numbers of the heads, or "mean" for the mean over all heads.
        query: Whose attention: "cls" the class token's; "mean" the mean over all patches'; "point" that of the patch
            under each prompt point, which makes the maps (N, K, h, w); "pool" the latent query's of an attention pool
            (SigLIP, PE), which is one layer of its own and ignores ``layers``.
        rollout: Attention rollout through the blocks up to each of ``layers``: the product of the head means, each
            mixed half and half with the identity. ``heads`` must then be "all" or "mean". With "pool" the pool's
            attention looks through all blocks.
        framing: "model", "squash" or "aspect"; see :data:`arrcoc_sam.attention.preprocess.Framing`.
        image_size: Input size, a side or (height, width); the model's own when None.
        processor: The image processor of a transformers module; loaded along when ``model`` is a name.
        preprocess: A function from the RGB image to (pixels (1, 3, a, b), ImageTransform), in place of the three above.
        differentiable: Keep the graph from the model's parameters to the maps.
        device: Where a model given by name goes: "auto" (CUDA if there is one), or a device. Modules stay.
        options: Further arguments of ``timm.create_model`` or of the transformers model's ``from_pretrained``.

    Raises:
        UnsupportedModelError: The family is refused; the message says why.
        CheckpointError: Weights or configuration can't be had (no network, say).
        MissingExtraError: An "hf:" name without transformers.
        UnknownNameError: No such model, layer, head or query.
        InputError: A combination that makes no sense (no class token, no pool, rollout of single heads); layers, heads
            or an image size that are no whole numbers.

    Example:
        >>> import numpy as np
        >>> source = ViTAttention(
        ...     "timm:vit_tiny_patch16_224", pretrained=False, layers=[-1], options={"depth": 2, "img_size": 64}
        ... )
        >>> maps = source(np.zeros((50, 70, 3), dtype=np.uint8))
        >>> maps.names, maps.grid_hw
        (('L01.H00', 'L01.H01', 'L01.H02'), (4, 4))

    Reference:
        Rollout: S. Abnar, W. Zuidema: Quantifying Attention Flow in Transformers, ACL 2020, section 3.
    """

    def __init__(
        self,
        model: str | nn.Module,
        pretrained: bool = True,
        layers: Literal["all"] | Sequence[int] = "all",
        heads: Literal["all", "mean"] | Sequence[int] = "all",
        query: Query = "cls",
        rollout: bool = False,
        *,
        framing: Framing = "model",
        image_size: int | tuple[int, int] | None = None,
        processor: Any = None,
        preprocess: Preprocess | None = None,
        differentiable: bool = False,
        device: torch.device | str = "auto",
        options: dict[str, Any] | None = None,
    ) -> None:
        if query not in QUERIES:
            raise UnknownNameError(explain(f"query is {query!r}", f"one of {', '.join(map(repr, QUERIES))}"))
        if rollout and not isinstance(heads, str):
            raise InputError(
                explain("rollout of single heads was asked for", "heads='mean'", "rollout mixes all heads")
            )
        size = None
        if image_size is not None:
            sides = image_size if isinstance(image_size, (tuple, list)) else (image_size, image_size)
            size = as_size(sides, "image_size")
        if isinstance(model, str):
            module, processor = load_vision_transformer(
                model,
                pretrained=pretrained,
                image_size=size,
                any_size=framing == "aspect",
                device=device,
                options=options or {},
            )
            label = model
        else:
            module, label = model, type(model).__name__
        self.model = module
        self.layout: TokenLayout = layout_of(module, label=label)
        if query == "cls" and not self.layout.has_class_token:
            mend = "use query='pool'" if self.layout.pool is not None else "use query='mean' or 'point'"
            raise InputError(explain(f"{label} has no class token", "a model with one for query='cls'", mend))
        if query == "pool" and self.layout.pool is None:
            raise InputError(explain(f"{label} has no latent attention pool", "a model with one for query='pool'"))
        self.query: Query = query
        self.rollout = rollout
        self.differentiable = differentiable
        self.layers = _chosen(layers, len(self.layout.blocks), f"layers of {label}", "'all' or their numbers")
        pool_heads = getattr(self.layout.pool, "num_heads", 0)
        num_heads = int(pool_heads) if query == "pool" else self.layout.num_heads
        self.heads = (
            None
            if isinstance(heads, str) and heads == "mean"
            else _chosen(heads, num_heads, f"heads of {label}", "'all', 'mean' or their numbers")
        )
        self.preprocess = preprocess or self._own_preprocess(processor, framing, size)

    def _own_preprocess(self, processor: Any, framing: Framing, size: tuple[int, int] | None) -> Preprocess:
        if self.layout.library == "timm":
            return timm_preprocess(self.model, self.layout, framing=framing, image_size=size)
        if processor is None:
            mend = "processor=AutoImageProcessor.from_pretrained(...), or preprocess="
            raise InputError(explain(f"{self.layout.label} came without an image processor", "the model's own", mend))
        return transformers_preprocess(processor, self.layout, framing=framing, image_size=size)

    def __call__(self, image: ImageLike, points_xy: PointsLike | None = None) -> AttentionMaps:
        """The maps of ``image``; see :class:`arrcoc_sam.attention.AttentionSource`.

        The model runs in evaluation mode and is put back into the mode that it was in.

        Raises:
            InputError: A point outside the image or in a part that the preprocessing crops away; no points for "point".
            AttentionCaptureError: The attention could not be read exactly.
        """
        pixels_rgb = load_image(image)
        points = None if points_xy is None else as_points(points_xy, pixels_rgb.shape[:2])
        if self.query == "point" and points is None:
            raise InputError(explain("no points were given", "points_xy (K, 2) for query='point'"))
        pixels, transform = self.preprocess(pixels_rgb)
        transform = self.onto_patches(transform)
        frame_hw = (int(pixels.shape[-2]), int(pixels.shape[-1]))
        grid_hw = self.layout.grid_hw(frame_hw)
        cells = transform.cells_at(points, grid_hw) if points is not None and self.query == "point" else None

        parameter = next(self.model.parameters())
        pixels = pixels.to(parameter.device, parameter.dtype)
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.set_grad_enabled(self.differentiable), self.watch(frame_hw, cells) as attention:
                self.layout.run(pixels)
        finally:
            self.model.train(was_training)
        return AttentionMaps.from_values(
            attention.values[0], names=attention.names, transform=transform, prefix_mass=attention.prefix_mass[0]
        )

    def onto_patches(self, transform: ImageTransform) -> ImageTransform:
        """The transform to the area that the grid covers: padded as the model pads, or without what no patch sees.

        Args:
            transform: From the image to the model's input.

        Returns:
            From the image to the patches; the same where the input is whole patches.
        """
        frame_hw, patch_hw = transform.frame_hw, self.layout.patch_hw
        rows, columns = self.layout.grid_hw(frame_hw)
        covered = (rows * patch_hw[0], columns * patch_hw[1])
        if covered == frame_hw:
            return transform
        if self.layout.pads:
            return transform.then(ImageTransform.patch_multiple(frame_hw, patch_hw, how="pad"))
        return transform.then(ImageTransform.crop(frame_hw, (0, 0, covered[1], covered[0])))

    @contextmanager
    def watch(self, frame_hw: tuple[int, int], cells: Int64[Tensor, "K 2"] | None = None) -> Iterator[GridAttention]:
        """Read the attention of a forward pass of your own: what supervises a model's attention while it trains.

        Args:
            frame_hw: Height and width of the inputs that the model will get, pixels.
            cells: (row, column) of the patches whose attention is asked for, for query "point".

        Yields:
            A GridAttention that is filled when the block ends, for the whole batch; with gradients if the source is
            ``differentiable``.

        Raises:
            AttentionCaptureError: The model did not run once, or its keys are not the tokens that its layout expects.

        Example:
            >>> source = ViTAttention("timm:vit_tiny_patch16_224", pretrained=False, differentiable=True,
            ...                       layers=[0], options={"depth": 2, "img_size": 32})
            >>> with source.watch((32, 32)) as attention:
            ...     logits = source.model(torch.randn(2, 3, 32, 32))
            >>> attention.values.shape
            torch.Size([2, 3, 2, 2])
        """
        attention = GridAttention()
        layout, grid_hw = self.layout, self.layout.grid_hw(frame_hw)
        modules = self._watched()
        reader = GridReader(
            label=layout.label,
            grid_hw=grid_hw,
            num_prefix=layout.num_prefix,
            query=self.query,
            heads=self.heads,
            rollout_at=self._rolled_out(),
            pool_sees_prefix=layout.pool_sees_prefix,
            cells=cells,
        )
        with AttentionCapture(modules, reader, differentiable=self.differentiable) as capture:
            yield attention
        rows = [capture.results[name] for name in modules]
        names, values, mass = on_grid([part for part in rows if part is not None], grid_hw)
        if self.query != "point":
            values, mass = values[:, :, 0], mass[:, :, 0]
        attention.names, attention.values, attention.prefix_mass = names, values, mass

    def _rolled_out(self) -> frozenset[str] | None:
        """The blocks after which a rollout is read: with a pool, none but the pool itself."""
        if not self.rollout:
            return None
        return frozenset(() if self.query == "pool" else (f"L{layer:02d}" for layer in self.layers))

    def _watched(self) -> dict[str, nn.Module]:
        """The modules whose attention is needed, by name, in the order in which they run."""
        layout = self.layout
        if self.query == "pool":
            blocks: Sequence[int] = range(len(layout.blocks)) if self.rollout else ()
        else:
            blocks = range(max(self.layers) + 1) if self.rollout else sorted(self.layers)
        modules = {f"L{number:02d}": layout.blocks[number] for number in blocks}
        if self.query == "pool" and layout.pool is not None:
            modules[POOL] = layout.pool
        return modules


def _chosen(asked: str | Sequence[int], count: int, what: str, expected: str) -> tuple[int, ...]:
    """The numbers asked for, negative ones counted from the end, in rising order."""
    if isinstance(asked, str):
        if asked != "all":
            raise UnknownNameError(explain(f"{asked!r} was asked for as {what}", expected))
        return tuple(range(count))
    try:
        numbers = [operator.index(number) for number in asked]
    except (TypeError, ValueError) as error:
        mend = f"[{asked}]" if isinstance(asked, int) else None
        raise InputError(explain(f"{asked!r} was asked for as {what}", expected, mend)) from error
    wrong = [number for number in numbers if not -count <= number < count]
    if wrong or not numbers:
        raise UnknownNameError(explain(f"{wrong or 'none'} were asked for as {what}", f"some of 0 to {count - 1}"))
    return tuple(sorted({number % count for number in numbers}))
