"""MultiScaleAttention: a backbone with one light attention head a level, coarse for the whole, fine for the subpart.

Every head asks the same question, "what belongs to the thing at this point, at my level?", at its own resolution. Its
logits are supervised by :class:`arrcoc_sam.losses.HierarchicalAttentionLoss`; normalised to sum 1 they are attention
that :mod:`arrcoc_sam.granularity` measures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Literal, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from numpy import ndarray
from torch import Tensor, nn

from arrcoc_sam.attention import CallableAttention
from arrcoc_sam.errors import InputError, ShapeError, UnknownNameError, describe, explain
from arrcoc_sam.hierarchy.levels import LEVELS
from arrcoc_sam.training.attention.features import BatchNorm, FeatureMaps
from arrcoc_sam.training.granularity_control import Granularity, blend_levels
from arrcoc_sam.training.samples_pictures import to_frame

__all__ = ["QUERY_KINDS", "MultiScaleAttention", "QueryKind", "attention_of_logits"]

QueryKind: TypeAlias = Literal["point", "vector"]
QUERY_KINDS: Final = ("point", "vector")

_FREQUENCIES = 6


class MultiScaleAttention(nn.Module):
    """Attention at several levels, conditioned on a point of the image or on a vector.

    The backbone's maps are brought to one width and added at each level's grid, averaged down or interpolated up. A
    *point* query is the finest level's feature at the point; a *vector* query is given. Each head reads its own level,
    compares every cell with what the query is about, adds, for a point, where the cell lies relative to it, and mixes
    neighbours twice.

    Args:
        backbone: A timm name, "segmenter:" and a segmenter's, or a module; see
            :class:`arrcoc_sam.training.attention.features.FeatureMaps`.
        levels: Rows (= columns) of each level's grid, coarse to fine: one number a level.
        image_size: Side of the square images, pixels.
        query: "point" or "vector".
        query_dim: Length of a query vector.
        width: Channels of the pyramid and the heads.
        pretrained: Load timm's published weights.
        batch_norm: What becomes of batch normalisation in the backbone.
        frozen: The backbone is not trained, and answers for each image once.

    Attributes:
        grids: Rows of each level's grid.
        num_levels: L.

    Raises:
        InputError: No level, grids that do not grow, a width that is not positive.
        UnknownNameError: An unknown query, or timm has no such model.
        UnsupportedModelError: A backbone without spatial features.

    Example:
        >>> model = MultiScaleAttention("test_vit", (4, 8, 16), image_size=64, width=16)
        >>> logits = model(torch.zeros(1, 3, 64, 64), torch.tensor([[10.0, 20.0], [40.0, 8.0]]), torch.tensor([0, 0]))
        >>> [tuple(level.shape) for level in logits]
        [(2, 4, 4), (2, 8, 8), (2, 16, 16)]
    """

    def __init__(
        self,
        backbone: str | nn.Module,
        levels: Sequence[int] = (8, 16, 32),
        *,
        image_size: int = 64,
        query: QueryKind = "point",
        query_dim: int | None = None,
        width: int = 32,
        pretrained: bool = False,
        batch_norm: BatchNorm = "frozen",
        frozen: bool = False,
    ) -> None:
        super().__init__()
        grids = tuple(int(rows) for rows in levels)
        if not grids or min(grids) < 1 or list(grids) != sorted(grids) or width < 1:
            raise InputError(explain(f"levels={grids}, width={width}", "grids from coarse to fine, a positive width"))
        if query not in QUERY_KINDS:
            raise UnknownNameError(explain(f"query={query!r}", f"one of {', '.join(QUERY_KINDS)}"))
        if (query == "vector") != (query_dim is not None):
            raise InputError(explain(f"query={query!r} with query_dim={query_dim}", "a length for 'vector' only"))
        self.grids, self.num_levels, self.query, self.image_size = grids, len(grids), query, image_size
        self.features = FeatureMaps(
            backbone, image_size=image_size, pretrained=pretrained, batch_norm=batch_norm, frozen=frozen
        )
        self.lateral = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in self.features.channels)
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.query_projection = nn.Sequential(
            nn.Linear(width if query_dim is None else query_dim, width), nn.GELU(), nn.Linear(width, width)
        )
        self.heads = nn.ModuleList(_Head(width, relative=query == "point") for _ in grids)

    def encode(self, images: Tensor) -> list[Float[Tensor, "B width _ _"]]:
        """Features at each level's grid, for any number of queries.

        Args:
            images: (B, 3, S, S), uint8 or floats in [0, 1].

        Raises:
            ShapeError: Images of another size.
        """
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, self.image_size, self.image_size):
            raise ShapeError(explain(f"images is {describe(images)}", f"(B, 3, {self.image_size}, {self.image_size})"))
        maps = self.features(images)
        laterals = [project(each) for project, each in zip(self.lateral, maps, strict=True)]
        pixels = images.to(laterals[0].dtype) / (255 if images.dtype == torch.uint8 else 1)
        pyramid: list[Tensor] = []
        for rows in self.grids:
            level: Tensor = self.stem(F.adaptive_avg_pool2d(pixels - 0.5, rows))
            for lateral in laterals:
                level = level + _resized(lateral, rows)
            pyramid.append(level)
        return pyramid

    def attend(
        self,
        pyramid: Sequence[Float[Tensor, "B width _ _"]],
        queries: Float[Tensor, "K _"],
        image_index: Int64[Tensor, " K"] | None = None,
    ) -> list[Float[Tensor, "K _ _"]]:
        """The heads' answers to K queries about encoded images.

        Args:
            pyramid: From :meth:`encode`.
            queries: (K, 2) points in pixel indices of the images, or (K, D) vectors.
            image_index: The image of each query; by default query k is about image k.

        Returns:
            L tensors of logits (K, h_l, h_l), coarse to fine.

        Raises:
            ShapeError: Queries of another length, or as many as images are needed.
            InputError: A point outside the image or not finite; an image that there is not.
        """
        expected = 2 if self.query == "point" else self.query_projection[0].in_features
        if queries.ndim != 2 or queries.shape[1] != expected:
            raise ShapeError(explain(f"queries is {describe(queries)}", f"(K, {expected}) for query={self.query!r}"))
        index = torch.arange(len(queries), device=queries.device) if image_index is None else image_index
        if len(index) != len(queries) or (image_index is None and len(queries) != len(pyramid[0])):
            came = f"{len(queries)} queries about {len(pyramid[0])} images"
            raise ShapeError(explain(came, "one each, or image_index (K,)"))
        if not bool(((index >= 0) & (index < len(pyramid[0]))).all()):
            came = f"image_index from {int(index.min())} to {int(index.max())}"
            raise InputError(explain(came, f"0 to {len(pyramid[0]) - 1}, the images' numbers"))
        relative: Tensor | None = None
        vectors, places = queries, None
        if self.query == "point":
            relative = (queries + 0.5) / self.image_size
            inside = ((relative >= 0) & (relative <= 1)).all(1)  # NaN isn't
            if not bool(inside.all()):
                came = f"a point of {queries[~inside][0].tolist()}"
                raise InputError(explain(came, f"pixel indices of images of {self.image_size} pixels"))
            places = (relative * 2 - 1)[:, None, None].to(pyramid[-1].dtype)
            vectors = _read(pyramid[-1][index], places)[:, :, 0, 0]
        embedded = self.query_projection(vectors)
        logits = []
        for head, level in zip(self.heads, pyramid, strict=True):
            own = level[index]
            reference = embedded[..., None, None] if places is None else _read(own, places)
            logits.append(head(own, embedded, reference, relative))
        return logits

    def forward(
        self, images: Tensor, queries: Float[Tensor, "K _"], image_index: Int64[Tensor, " K"] | None = None
    ) -> list[Float[Tensor, "K _ _"]]:
        """Logits of every level; see :meth:`encode` and :meth:`attend`."""
        return self.attend(self.encode(images), queries, image_index)

    @torch.no_grad()
    def at_granularity(
        self,
        images: Tensor,
        queries: Float[Tensor, "K _"],
        granularity: Granularity,
        image_index: Int64[Tensor, " K"] | None = None,
    ) -> Float[Tensor, "K h h"]:
        """Logits of one level, or of a blend, on the finest grid; the attended area grows with granularity.

        Args:
            images: As for :meth:`forward`.
            queries: As for :meth:`forward`.
            granularity: A level's name, or a number in [0, 1]: 0 subpart, 1 whole; or one number a query.
            image_index: As for :meth:`forward`.
        """
        return blend_levels(self.forward(images, queries, image_index), granularity)

    def as_source(self) -> CallableAttention:
        """The model as an attention source for ``GranularityAnalyzer``: one map a level, on the finest grid.

        Raises:
            InputError: The model's queries are vectors, which no click has.
        """
        if self.query != "point":
            raise InputError(explain(f"a model of query={self.query!r} as an attention source", "query='point'"))
        names = LEVELS if self.num_levels == len(LEVELS) else [f"level{i}" for i in range(self.num_levels)]
        return CallableAttention(self._maps_of, names=list(names), takes_points=True)

    @torch.no_grad()
    def _maps_of(self, image: UInt8[ndarray, "H W 3"], points_xy: Tensor | None) -> Tensor:
        if points_xy is None:
            raise InputError(explain("no points were given", "points_xy (K, 2)"))
        device = next(self.parameters()).device
        scale = self.image_size / torch.tensor([image.shape[1], image.shape[0]], dtype=torch.float64)
        points = ((points_xy + 0.5) * scale - 0.5).float().to(device)
        was_training = self.training
        self.eval()
        pyramid = self.encode(to_frame(image, self.image_size)[None].to(device))
        logits = self.attend(pyramid, points, torch.zeros(len(points), dtype=torch.long, device=device))
        self.train(was_training)
        rows = self.grids[-1]
        return torch.stack([attention_of_logits(_resized(each[:, None], rows)[:, 0]) for each in logits])


def attention_of_logits(logits: Float[Tensor, "*K h w"]) -> Float[Tensor, "*K h w"]:
    """Sigmoid logits as attention: non-negative, sum 1 over the cells, float32."""
    probability = logits.float().sigmoid().clamp_min(torch.finfo(torch.float32).tiny)
    return probability / probability.sum((-2, -1), keepdim=True)


class _Head(nn.Module):
    """Additive attention with two rounds of neighbours."""

    def __init__(self, width: int, *, relative: bool) -> None:
        super().__init__()
        self.key = nn.Conv2d(width, width, 1)
        self.compare = nn.Conv2d(width, width, 1)
        self.scale_and_shift = nn.Linear(width, 2 * width)
        self.place = nn.Linear(4 * _FREQUENCIES + 3, width) if relative else None
        self.mix = nn.ModuleList(_Mix(width) for _ in range(2))
        self.logit = nn.Conv2d(width, 1, 1)
        nn.init.constant_(self.logit.bias, -2.0)  # type: ignore[arg-type]  # a level covers a tenth of the image or so

    def forward(
        self,
        features: Float[Tensor, "K C h w"],
        query: Float[Tensor, "K C"],
        reference: Float[Tensor, "K C 1 1"],
        relative: Float[Tensor, "K 2"] | None,
    ) -> Float[Tensor, "K h w"]:
        scale, shift = self.scale_and_shift(query).chunk(2, dim=1)
        keys = self.key(features)
        # How a cell differs from what the query is about: what tells the same thing from its surroundings.
        hidden = self.compare((keys - self.key(reference)).abs())
        hidden = hidden + keys * scale[..., None, None] + shift[..., None, None]
        if self.place is not None and relative is not None:
            hidden = hidden + self.place(_places(relative, features.shape[-1]).to(hidden.dtype)).permute(0, 3, 1, 2)
        for mix in self.mix:
            hidden = mix(hidden)
        logits: Tensor = self.logit(hidden)
        return logits[:, 0]


class _Mix(nn.Module):
    """A residual block: a depthwise convolution over 5 × 5 cells, then one over channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.norm = nn.GroupNorm(1, width)
        self.channel = nn.Conv2d(width, width, 1)

    def forward(self, hidden: Float[Tensor, "K C h w"]) -> Float[Tensor, "K C h w"]:
        mixed: Tensor = self.channel(F.gelu(self.norm(self.spatial(hidden))))
        return hidden + mixed


def _places(point: Float[Tensor, "K 2"], rows: int) -> Float[Tensor, "K h w F"]:
    """Where each cell lies relative to the point: sines, cosines, offsets and distance."""
    centres = (torch.arange(rows, device=point.device, dtype=point.dtype) + 0.5) / rows
    dx = centres[None, None, :] - point[:, 0, None, None]
    dy = centres[None, :, None] - point[:, 1, None, None]
    offset = torch.stack((dx.expand(-1, rows, -1), dy.expand(-1, -1, rows)), dim=-1)
    angles = offset[..., None] * (math.pi * 2.0 ** torch.arange(_FREQUENCIES, device=point.device, dtype=point.dtype))
    angles = angles.flatten(-2)
    distance = offset.square().sum(-1, keepdim=True).sqrt()
    return torch.cat((angles.sin(), angles.cos(), offset, distance), dim=-1)


def _read(maps: Float[Tensor, "K C h w"], places: Float[Tensor, "K 1 1 2"]) -> Float[Tensor, "K C 1 1"]:
    """The maps at one place each, bilinearly."""
    return F.grid_sample(maps, places, align_corners=False, padding_mode="border")


def _resized(maps: Float[Tensor, "B C h w"], rows: int) -> Float[Tensor, "B C r r"]:
    """Averaged down, or interpolated up, to a square grid."""
    if tuple(maps.shape[-2:]) == (rows, rows):
        return maps
    if maps.shape[-1] > rows:  # in float32: on the CPU torch 2.11 antialiases no half precision
        sized = F.interpolate(maps.float(), (rows, rows), mode="bilinear", align_corners=False, antialias=True)
        return sized.to(maps.dtype)
    return F.interpolate(maps, (rows, rows), mode="bilinear", align_corners=False)
