"""ARR-COC's relevance maps: three ways of knowing an image and their balance, without any trained weights.

*Propositional* knowing is information (local Shannon entropy), *perspectival* knowing is what stands out (edge
magnitude), *participatory* knowing is the coupling of a query with the content (cosine similarity of features). The
balanced map is their weighted mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from PIL import Image
from skimage.color import rgb2gray, rgb2lab
from skimage.filters import rank, sobel, sobel_h, sobel_v
from skimage.morphology import disk
from torch import Tensor, nn
from torch.nn import functional as F

from arrcoc_sam.attention.maps import AttentionMaps, ImageLike, PointsLike, as_points
from arrcoc_sam.errors import InputError, ShapeError, describe, explain
from arrcoc_sam.geometry import ImageTransform
from arrcoc_sam.images import load_image
from arrcoc_sam.inputs import as_numbers

__all__ = [
    "RELEVANCE_NAMES",
    "RelevanceAttention",
    "edge_magnitude",
    "local_entropy",
    "query_similarity",
    "texture_features",
]

RELEVANCE_NAMES = ("propositional", "perspectival", "participatory", "balanced")
PIXELS_PER_CELL = 16


def local_entropy(image: UInt8[np.ndarray, "H W 3"], *, radius: int = 5) -> Float[Tensor, "H W"]:
    """Shannon entropy of the grey levels in a disc around each pixel, in bits.

    Args:
        image: RGB.
        radius: The disc's radius in pixels; at the image's edge only the pixels inside count.

    Returns:
        Entropy, >= 0, at most the logarithm of the number of pixels in the disc; 0 on a flat image.
    """
    levels = np.rint(rgb2gray(image) * 255).astype(np.uint8)
    return _tensor(rank.entropy(levels, disk(radius)))  # type: ignore[no-untyped-call]


def edge_magnitude(image: UInt8[np.ndarray, "H W 3"]) -> Float[Tensor, "H W"]:
    """Sobel gradient magnitude of the grey image (levels in [0, 1]); 0 on a flat image."""
    return _tensor(sobel(rgb2gray(image)))  # type: ignore[no-untyped-call]


def texture_features(image: UInt8[np.ndarray, "H W 3"]) -> Float[Tensor, "9 H W"]:
    """Colour and oriented edges at each pixel: what the participatory map compares unless it is given an encoder.

    The channels are CIE L*a*b* / 100, their squares (averaged over a cell they carry the spread of the colour), and the
    products of the horizontal and vertical gradients (averaged, the structure tensor).
    """
    lab = np.moveaxis(rgb2lab(image) / 100.0, -1, 0)
    grey = rgb2gray(image)
    across, down = sobel_v(grey), sobel_h(grey)  # type: ignore[no-untyped-call]
    return _tensor(np.stack([*lab, *lab**2, across**2, down**2, across * down]))


def query_similarity(features: Float[Tensor, "C h w"], queries: Float[Tensor, "K C"]) -> Float[Tensor, "K h w"]:
    """Cosine similarity of each cell's feature with each query, negatives set to 0.

    A cell that points away from the query is as irrelevant as one that is orthogonal to it; a zero vector is similar to
    nothing.
    """
    return torch.einsum("kc,chw->khw", F.normalize(queries, dim=1), F.normalize(features, dim=0)).clamp(min=0)


class RelevanceAttention(nn.Module):
    """Relevance maps of an image on a 32 x 32 grid: propositional, perspectival, participatory, balanced.

    The image is letterboxed to ``grid`` cells of 16 pixels on its longer side (padded at the bottom or the right), so
    the maps mean the same at any image size. Each map is averaged by area over each cell and normalised to sum 1.

    The participatory map needs a query: the features of the cell under a prompt point, or the vector ``query``. With
    points all maps are (N, K, h, w), the ones that do not depend on the point repeated. Without points and without
    ``query`` there is nothing that could participate: three maps come back, and the balance is that of the first two.

    A map that is zero everywhere (entropy and edges of a flat image, a query that no cell resembles) says that nothing
    stands out, and is answered as uniform attention.

    Args:
        weights: Weights of the propositional, perspectival and participatory map in the balanced one, >= 0, not all 0;
            scaled to sum 1.
        learnable: Make the weights a parameter (softmax of ``weight_logits``, begun at ``weights``, which must be > 0),
            so that a loss on the balanced map trains them.
        grid: Cells on the longer side.
        entropy_radius: Radius of the entropy's disc, in pixels of 1/16 cell.
        features: From the resized RGB image (without its padding) to features (C, a, b) that cover it, at any
            resolution, compared by cosine as they are. Default: :func:`texture_features`, each channel standardised
            over the image's cells.
        query: A vector (C,) to compare with when no points are given.

    Raises:
        InputError: Weights that are no numbers, negative, all 0, or 0 while learnable; a grid or radius below 1;
            features that are no function; a query that is not finite.
        ShapeError: Not three weights, or a query that is no vector.

    Reference:
        J. Vervaeke, T. P. Lillicrap, B. A. Richards: Relevance Realization and the Emerging Framework in Cognitive
        Science, Journal of Logic and Computation 22 (1), 2012, for relevance as a balance of several processes.
        Entropy, Sobel magnitude and cosine similarity are this package's operational readings of the kinds of knowing.
    """

    weight_logits: nn.Parameter
    fixed_weights: Tensor
    query: Tensor | None

    def __init__(
        self,
        *,
        weights: Sequence[float | int] | Float[Tensor, " 3"] | Shaped[np.ndarray, " 3"] = (1, 1, 1),
        learnable: bool = False,
        grid: int = 32,
        entropy_radius: int = 5,
        features: Callable[[UInt8[np.ndarray, "H W 3"]], Float[Tensor, "C a b"]] | None = None,
        query: Float[Tensor, " C"] | Shaped[np.ndarray, " C"] | Sequence[float | int] | None = None,
    ) -> None:
        super().__init__()
        balance = as_numbers(weights, "weights", "(3,)").detach().to("cpu", torch.float32)
        if balance.shape != (3,):
            raise ShapeError(
                explain(f"weights is {describe(weights)}", "three: propositional, perspectival, participatory")
            )
        if not torch.isfinite(balance).all() or (balance < 0).any() or balance.sum() == 0:
            raise InputError(explain(f"weights are {balance.tolist()}", "finite numbers >= 0, not all 0"))
        if learnable and (balance == 0).any():
            raise InputError(
                explain(f"learnable weights are {balance.tolist()}", "numbers > 0", "begin with a small weight")
            )
        if grid < 1 or entropy_radius < 1:
            raise InputError(explain(f"grid is {grid} and entropy_radius is {entropy_radius}", "both >= 1"))
        if features is not None and not callable(features):
            raise InputError(explain(f"features is {describe(features)}", "a function of the image"))
        vector = None if query is None else as_numbers(query, "query", "(C,)")
        if vector is not None and vector.ndim != 1:
            raise ShapeError(explain(f"query is {describe(query)}", "a vector (C,)"))
        if vector is not None and not vector.isfinite().all():
            raise InputError(explain("query holds NaN or infinite values", "finite numbers"))
        self.grid = grid
        self.entropy_radius = entropy_radius
        self.features = features
        self.learnable = learnable
        balance = balance / balance.sum()
        if learnable:
            self.weight_logits = nn.Parameter(balance.log())
        else:
            self.register_buffer("fixed_weights", balance)
        self.register_buffer("query", vector)

    @property
    def weights(self) -> Float[Tensor, " 3"]:
        """Weights of the three maps in the balanced one, >= 0, sum 1."""
        return self.weight_logits.softmax(0) if self.learnable else self.fixed_weights

    def forward(self, image: ImageLike, points_xy: PointsLike | None = None) -> AttentionMaps:
        """The relevance maps of ``image``.

        Args:
            image: A path, PIL image or (H, W, 3) uint8 array.
            points_xy: (K, 2) prompt points, pixel indices in the image.

        Returns:
            Four maps (4, K, h, w) with points, (4, h, w) with ``query`` alone, three (3, h, w) with neither.

        Raises:
            InputError: A point outside the image; features that are no numbers or not finite.
            ShapeError: Features or a query of other shapes than documented.
        """
        pixels = load_image(image)
        image_hw = (pixels.shape[0], pixels.shape[1])
        points = None if points_xy is None else as_points(points_xy, image_hw)
        transform = ImageTransform.letterbox(image_hw, self.grid * PIXELS_PER_CELL)
        content = _resized(pixels, transform)
        grid_hw = (self.grid, self.grid)
        valid = transform.grid_valid(grid_hw).to(torch.float32)

        fixed = self._cells(torch.stack([local_entropy(content, radius=self.entropy_radius), edge_magnitude(content)]))
        maps = _distributions(fixed, valid)
        names = list(RELEVANCE_NAMES[:2])
        if points is not None or self.query is not None:
            features = self._cell_features(content, valid)
            if points is not None:
                cells = transform.cells_at(points, grid_hw)
                queries = features[:, cells[:, 0], cells[:, 1]].T
            else:
                queries = self._query_for(features)[None]
            participatory = _distributions(query_similarity(features, queries) * valid, valid)
            maps = torch.cat([maps[:, None].expand(-1, len(queries), -1, -1), participatory[None]])
            maps = maps if points is not None else maps[:, 0]
            names.append(RELEVANCE_NAMES[2])
        weights = self.weights[: len(maps)]
        if float(weights.detach().sum()) == 0:
            raise InputError(
                explain(
                    "only the participatory map has a weight, and there is no query",
                    "points_xy, or query at construction",
                )
            )
        maps = maps.to(weights.device)
        balanced = torch.einsum("n,n...->...", weights / weights.sum(), maps)
        return AttentionMaps.from_values(
            torch.cat([maps, balanced[None]]),
            names=[*names, RELEVANCE_NAMES[3]],
            transform=transform,
            valid=valid,
        )

    def _cells(self, pixels: Shaped[Tensor, "C a b"]) -> Float[Tensor, "C h w"]:
        """Sum of per-pixel values over each cell, as a mean over the whole cell: padding counts as zeros."""
        side = self.grid * PIXELS_PER_CELL
        padded = F.pad(pixels.to(torch.float32), (0, side - pixels.shape[-1], 0, side - pixels.shape[-2]))
        return F.avg_pool2d(padded, PIXELS_PER_CELL)

    def _cell_features(
        self, content: UInt8[np.ndarray, "H W 3"], valid: Float[Tensor, "h w"]
    ) -> Float[Tensor, "C h w"]:
        answered = texture_features(content) if self.features is None else self.features(content)
        features = as_numbers(answered, "what features returned", "(C, a, b)")
        if features.ndim != 3 or 0 in features.shape:
            raise ShapeError(explain(f"the features are {describe(features)}", "(C, a, b)"))
        if features.shape[-2:] != content.shape[:2]:
            features = F.interpolate(
                features[None].float(), size=content.shape[:2], mode="bilinear", align_corners=False
            )[0]
        share = valid.clamp(min=torch.finfo(torch.float32).tiny)
        cells = self._cells(features) / share * (valid > 0)
        if not cells.isfinite().all():  # cosines of NaN would pass for a map that is zero everywhere
            raise InputError(explain("the features hold NaN, infinite or too large values", "finite numbers"))
        if self.features is not None:
            return cells
        total = valid.sum()
        mean = (cells * valid).sum((1, 2), keepdim=True) / total
        centred = (cells - mean) * (valid > 0)
        spread = ((centred**2 * valid).sum((1, 2), keepdim=True) / total).sqrt()
        # A channel that does not vary over the image has nothing to say, rather than 0/0.
        return torch.where(spread > 1e-6, centred / spread.clamp(min=1e-6), 0.0)

    def _query_for(self, features: Float[Tensor, "C h w"]) -> Float[Tensor, " C"]:
        if self.query is None or len(self.query) != len(features):
            raise ShapeError(
                explain(f"query is {describe(self.query)}", f"a vector of the {len(features)} feature channels")
            )
        return self.query.to(device=features.device, dtype=features.dtype)


def _resized(pixels: UInt8[np.ndarray, "H W 3"], transform: ImageTransform) -> UInt8[np.ndarray, "a b 3"]:
    """The image at the size that it has in the transform's frame, antialiased, without the frame's padding."""
    return np.asarray(Image.fromarray(pixels).resize(transform.resized_hw[::-1], Image.Resampling.BICUBIC))


def _distributions(mass: Float[Tensor, "N h w"], valid: Float[Tensor, "h w"]) -> Float[Tensor, "N h w"]:
    """Each map scaled to sum 1; one that is zero everywhere becomes uniform over the image."""
    total = mass.sum((-2, -1), keepdim=True)
    uniform = valid / valid.sum()
    return torch.where(total > 0, mass / torch.where(total > 0, total, 1.0), uniform)


def _tensor(array: np.ndarray) -> Float[Tensor, ...]:
    return torch.from_numpy(np.asarray(array, dtype=np.float32))
