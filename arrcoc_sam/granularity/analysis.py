"""The granularity of attention on one image: masks from a segmenter, maps from a source, metrics of both."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor

from arrcoc_sam.attention.maps import AttentionMaps, AttentionSource, ImageLike, PointsLike, as_points
from arrcoc_sam.errors import InputError, ShapeError, describe, explain
from arrcoc_sam.granularity.inference import max_t, standard_scores
from arrcoc_sam.granularity.metrics import check_names, evaluate
from arrcoc_sam.granularity.regions import Regions
from arrcoc_sam.granularity.result import GranularityResult, top_levels
from arrcoc_sam.hierarchy import MaskHierarchy
from arrcoc_sam.images import load_image
from arrcoc_sam.prompts import Prompts
from arrcoc_sam.segmenters.base import Segmenter

__all__ = ["DEFAULT_METRICS", "GranularityAnalyzer", "regions_of", "sink_mass"]

DEFAULT_METRICS = ("shell_contrast", "information_gain", "log_lift", "mass_accuracy", "pearson")
SINK_SHARE = 0.01
# Contrast of uniform attention in float32, in nats: what is below is 0.
_ROUNDING = 1e-5


class GranularityAnalyzer:
    """Asks, for each attention map and each prompt, whether the map works at the whole, the part or the subpart.

    Args:
        segmenter: What finds the levels at the prompts; None if every call brings its own hierarchy.
        source: What makes attention maps of an image; a function of yours goes into
            :class:`~arrcoc_sam.attention.CallableAttention`.
        metrics: Names of metrics to compute; ``shell_contrast`` and ``pearson`` always are.
        alpha: Level of the test that a calibrated answer has to pass, in (0, 1).

    Raises:
        UnknownNameError: A metric that does not exist.
        InputError: An ``alpha`` out of range; names, classes or arrays in place of segmenter and source.
    """

    def __init__(
        self,
        segmenter: Segmenter | None,
        source: AttentionSource,
        metrics: Sequence[str] | None = None,
        *,
        alpha: float = 0.05,
    ) -> None:
        if metrics is not None:
            check_names(metrics)
        if not 0 < alpha < 1:
            raise InputError(explain(f"alpha is {alpha}", "a level in (0, 1), such as 0.05"))
        asked: tuple[object, object] = (segmenter, source)
        if isinstance(asked[0], str):
            mend = f"load_segmenter({asked[0]!r})"
            raise InputError(explain(f"segmenter is {asked[0]!r}", "a segmenter, or None", mend))
        decodes = hasattr(asked[0], "encode") and hasattr(asked[0], "decode") and not isinstance(asked[0], type)
        if asked[0] is not None and not decodes:
            came = f"segmenter is {describe(asked[0])}"
            raise InputError(explain(came, "a segmenter, or None", "load_segmenter(name)"))
        if isinstance(asked[1], type):
            mend = f"make one: {asked[1].__name__}(...)"
            raise InputError(explain(f"source is the class {asked[1].__name__}", "an attention source", mend))
        if not callable(asked[1]):
            mend = "ViTAttention(name), RelevanceAttention(), or ArrayAttention(array or file)"
            raise InputError(explain(f"source is {describe(asked[1])}", "an attention source", mend))
        self.segmenter = segmenter
        self.source = source
        chosen = DEFAULT_METRICS if metrics is None else ("shell_contrast", "pearson", *metrics)
        self.metrics = tuple(dict.fromkeys(chosen))
        self.alpha = alpha

    def analyze(
        self,
        image: ImageLike,
        points_xy: PointsLike | None,
        *,
        hierarchy: MaskHierarchy | None = None,
        reference: Sequence[AttentionMaps] | None = None,
    ) -> GranularityResult:
        """Metrics of the source's attention on ``image`` against the levels at K prompt points.

        Without ``reference``, ``best_match`` is the level of the largest shell contrast, and "abstain" where the triple
        is not measurable on the maps' grid or that contrast is not above 0. With it, the same attention of other images
        is laid over this image's levels: ``best_match`` is the level that stands out most from what they score (the
        largest z), and "abstain" where the maximum over the three levels is no rarer than ``alpha``. Either describes
        one image; a claim about a map needs many (:mod:`arrcoc_sam.granularity.atlas.run`).

        Args:
            image: A path, PIL image or (H, W, 3) uint8 array.
            points_xy: (K, 2) pixel indices (x, y) in the image; may be None when a hierarchy is given.
            hierarchy: Levels of K prompts, such as human masks, in place of the segmenter's.
            reference: Maps of the same source on other images, from :meth:`reference_maps`; at least 1/alpha − 1.

        Returns:
            The result, with the image for pictures.

        Raises:
            ImageReadError: The image can't be read.
            InputError: A point outside the image, no points where they are needed, neither segmenter nor hierarchy,
                something else in place of a hierarchy, or too few reference maps.
            ShapeError: A hierarchy or reference that does not fit the image.
        """
        pixels = load_image(image)
        image_hw = (pixels.shape[0], pixels.shape[1])
        points = None if points_xy is None else as_points(points_xy, image_hw)
        fewest = math.ceil(1 / self.alpha - 1e-9) - 1
        if reference is not None and len(reference) < fewest:
            came = f"{len(reference)} reference maps at alpha = {self.alpha}"
            raise InputError(explain(came, f"at least {fewest}: no p could be small enough"))
        for given in list[object](reference or ()):
            if not isinstance(given, AttentionMaps):
                mend = "make them of images: analyzer.reference_maps(images, points_xy, image_hw)"
                raise InputError(explain(f"reference holds {describe(given)}", "AttentionMaps of other images", mend))
        if hierarchy is None:
            hierarchy = self._hierarchy(pixels, points)
        _check_hierarchy(hierarchy, image_hw, points)
        maps = _answered(self.source(image, points)).detach()
        _check_maps(maps, image_hw, len(hierarchy))
        for other in reference or ():
            _check_reference(other, maps)

        regions = regions_of(hierarchy, maps)
        metrics = evaluate(self.metrics, maps.values, regions)
        measurable = regions.measurable(hierarchy.valid)
        contrast = metrics["shell_contrast"]
        z = p_level = None
        if reference is None:
            ranked, stands_out = contrast, contrast.nan_to_num(nan=-torch.inf).amax(-1) > _ROUNDING
        else:
            others = [evaluate(["shell_contrast"], other.values, regions)["shell_contrast"] for other in reference]
            null = torch.stack(others).to(contrast.device)
            z = standard_scores(contrast, null)
            p_level, p_any = max_t(contrast, null)
            ranked, stands_out = z, p_any <= self.alpha
        return GranularityResult(
            image=pixels,
            points_xy=points,
            hierarchy=hierarchy,
            maps=maps,
            masks=hierarchy.clipped(),
            metrics=metrics,
            best_match=top_levels(ranked, stands_out & measurable),
            measurable=measurable,
            grid_area=regions.areas,
            sink_mass=sink_mass(maps.values, regions),
            calibrated=reference is not None,
            z=z,
            p_value=p_level,
        )

    def reference_maps(
        self, images: Iterable[ImageLike], points_xy: PointsLike | None, image_hw: tuple[int, int]
    ) -> list[AttentionMaps]:
        """The source's attention on other images, at the same places: what ``analyze`` compares with.

        Args:
            images: Other images of the same shape (the same aspect ratio, where the source letterboxes).
            points_xy: (K, 2) points in the image that is to be analysed.
            image_hw: Height and width of that image.

        Returns:
            One AttentionMaps an image.
        """
        points = None if points_xy is None else as_points(points_xy, image_hw)
        found = []
        for image in images:
            pixels = load_image(image)
            scale = torch.tensor([pixels.shape[1] / image_hw[1], pixels.shape[0] / image_hw[0]], dtype=torch.float64)
            # Pixel indices count from the first pixel's centre, half a pixel from the edge that scaling leaves alone.
            places = None if points is None else (points + 0.5) * scale - 0.5
            found.append(_answered(self.source(image, places)).detach())
        return found

    def _hierarchy(self, pixels: UInt8[np.ndarray, "H W 3"], points: Float64[Tensor, "K 2"] | None) -> MaskHierarchy:
        if self.segmenter is None:
            raise InputError(explain("neither a segmenter nor a hierarchy was given", "one of them", "pass hierarchy="))
        if points is None:
            raise InputError(explain("points_xy is None", "(K, 2) points to find the levels at", "or pass hierarchy="))
        with torch.no_grad():
            embedding = self.segmenter.encode(pixels)
            labels = torch.ones(len(points), 1, dtype=torch.int64)
            candidates = self.segmenter.decode(embedding, Prompts(points_xy=points[:, None], labels=labels))
        return candidates.hierarchy()


def regions_of(hierarchy: MaskHierarchy, maps: AttentionMaps) -> Regions:
    """The levels of a hierarchy, clipped at the image's resolution and then averaged by area to the maps' grid."""
    distinct = hierarchy.distinct
    shells = maps.transform.masks_to_grid(hierarchy.shells(), maps.grid_hw).to(maps.values.device)
    frame_hw, grid_hw = maps.transform.frame_hw, maps.grid_hw
    return Regions(
        shells=shells,
        valid=maps.valid,
        distinct=distinct.to(shells.device),
        cell_hw=(frame_hw[0] / grid_hw[0], frame_hw[1] / grid_hw[1]),
    )


def sink_mass(attention: Float[Tensor, "N h w"] | Float[Tensor, "N K h w"], regions: Regions) -> Float[Tensor, "N K"]:
    """Share of the attention held by the top 1 % of the cells outside the whole (at least one), (N, K).

    A cell is outside where less than half of it belongs to the whole. NaN where there is no such cell.

    Reference:
        T. Darcet, M. Oquab, J. Mairal, P. Bojanowski: Vision Transformers Need Registers, ICLR 2024 (sinks).
    """
    outside = ((regions.levels[:, 0] < 0.5) & (regions.valid > 0)).flatten(1)
    mass = attention.flatten(-2) if attention.ndim == 4 else attention.flatten(-2)[:, None]
    ranked = (mass * outside).sort(-1, descending=True).values.cumsum(-1)
    count = outside.sum(1)
    top = (count * SINK_SHARE).round().long().clamp(min=1)
    held = ranked.gather(-1, (top - 1).expand(len(mass), -1)[..., None])[..., 0] / mass.sum(-1)
    return held.masked_fill(count == 0, torch.nan)


def _answered(maps: object) -> AttentionMaps:
    """What a source answered, or the error of one that answers something else."""
    if not isinstance(maps, AttentionMaps):
        came = f"the source answered {describe(maps)}"
        raise InputError(explain(came, "AttentionMaps", "wrap a function of yours: CallableAttention(function)"))
    return maps


def _check_hierarchy(
    hierarchy: MaskHierarchy, image_hw: tuple[int, int], points: Float64[Tensor, "K 2"] | None
) -> None:
    given: object = hierarchy
    if not isinstance(given, MaskHierarchy):
        mend = "of candidates: candidates.hierarchy(); of masks (K, 3, H, W): MaskHierarchy.from_masks(masks)"
        raise InputError(explain(f"hierarchy is {describe(given)}", "one MaskHierarchy", mend))
    if tuple(hierarchy.masks.shape[-2:]) != image_hw:
        came = f"the hierarchy's masks have size {tuple(hierarchy.masks.shape[-2:])}"
        raise ShapeError(explain(came, f"the image's {image_hw}"))
    if points is not None and len(points) != len(hierarchy):
        raise ShapeError(
            explain(f"{len(points)} points came with a hierarchy of {len(hierarchy)}", "one point a triple")
        )


def _check_maps(maps: AttentionMaps, image_hw: tuple[int, int], num_prompts: int) -> None:
    if maps.transform.original_hw != image_hw:
        raise ShapeError(explain(f"the source's maps lie on an image of {maps.transform.original_hw}", f"{image_hw}"))
    if maps.num_prompts not in (None, num_prompts):
        raise ShapeError(explain(f"the source answered maps for {maps.num_prompts} prompts", f"{num_prompts}"))


def _check_reference(other: AttentionMaps, maps: AttentionMaps) -> None:
    if other.values.shape != maps.values.shape or other.names != maps.names:
        came = f"a reference holds {len(other)} maps of shape {tuple(other.values.shape[1:])}"
        raise ShapeError(explain(came, f"the source's {len(maps)} of shape {tuple(maps.values.shape[1:])}"))
    if not torch.equal(other.valid.to(maps.valid), maps.valid):
        came = (
            f"a reference image of {other.transform.original_hw} is padded otherwise than {maps.transform.original_hw}"
        )
        raise ShapeError(explain(came, "images of one shape", "crop the images to one aspect ratio"))
