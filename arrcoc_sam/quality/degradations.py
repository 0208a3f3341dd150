"""Eight ways in which masks are wrong, each of a severity that says how wrong.

Severity is the share of agreement that is lost: a degraded mask's IoU with the mask that it was made of is
1 - severity, to the nearest pixel, wherever the kind can get there. Drawn uniformly, it spreads true IoUs over all of
[0, 1] instead of piling them up near 1. The true IoU is always measured, never taken for granted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

import numpy as np
from jaxtyping import Bool, Float64
from numpy import ndarray
from scipy import ndimage

from arrcoc_sam.errors import InputError, ShapeError, UnknownNameError, describe, explain
from arrcoc_sam.masks import containment

__all__ = ["DEGRADATIONS", "DegradationKind", "MaskContext", "degrade", "mask_context"]

DegradationKind: TypeAlias = Literal["dilate", "erode", "shift", "hole", "boundary_noise", "merge", "part", "paste"]
"""A way in which a mask is wrong."""

DEGRADATIONS: tuple[DegradationKind, ...] = get_args(DegradationKind)
"""All of them, in the order of reports."""

# Of the smaller mask: what lies inside another mask at least so far is a part of it, what overlaps less a neighbour.
_INSIDE = 0.9
_BESIDE = 0.1

# Wavelength of boundary noise, in radii of the disc of the mask's area.
_WAVELENGTH = 0.25


@dataclass(frozen=True, eq=False)
class MaskContext:
    """What lies around a mask: the stuff of merges, of parts that are taken for wholes, and of pasted masks.

    Attributes:
        neighbours: (N, H, W) bool, other objects of the same image.
        parts: (P, H, W) bool, masks inside this one.
        donors: Masks (h, w) of other images, of any sizes, none empty.
    """

    neighbours: Bool[ndarray, "N H W"] | None = None
    parts: Bool[ndarray, "P H W"] | None = None
    donors: Sequence[Bool[ndarray, "_h _w"]] = field(default=())

    @property
    def kinds(self) -> tuple[DegradationKind, ...]:
        """The degradations that can be made here: all but "merge" without neighbours and "paste" without donors."""
        lacking = {"merge"} if self.neighbours is None or not len(self.neighbours) else set()
        lacking |= set() if len(self.donors) else {"paste"}
        return tuple(kind for kind in DEGRADATIONS if kind not in lacking)


def mask_context(
    masks: Bool[ndarray, "n H W"], index: int, donors: Sequence[Bool[ndarray, "_h _w"]] = ()
) -> MaskContext:
    """The context of one mask among all masks of its image, by how they overlap.

    Args:
        masks: All masks of the image.
        index: Which of them it is for.
        donors: Masks of other images.

    Returns:
        As parts the masks that lie inside it by at least 0.9 and cover at most 0.9 of it; as neighbours those that
        share at most 0.1 of the smaller one's area with it.

    Raises:
        InputError: There is no such mask.

    Example:
        >>> left = np.array([[True, True, True, False]])
        >>> masks = np.stack([left, ~left, np.array([[True, False, False, False]])])
        >>> context = mask_context(masks, 0)
        >>> len(context.neighbours), len(context.parts)
        (1, 1)
    """
    if not -len(masks) <= index < len(masks):
        raise InputError(explain(f"index={index} for {len(masks)} masks", "one of them"))
    within, covered = containment(masks, masks[index]).numpy(), containment(masks[index], masks).numpy()
    beside = np.maximum(within, covered) <= _BESIDE
    return MaskContext(masks[beside], masks[(within >= _INSIDE) & (covered <= _INSIDE)], donors)


def degrade(
    mask: Bool[ndarray, "H W"],
    kind: DegradationKind,
    severity: float,
    *,
    context: MaskContext | None = None,
    seed: int | Sequence[int] = 0,
) -> Bool[ndarray, "H W"]:
    """A mask made wrong in one way.

    - "dilate" adds the nearest pixels around the mask, "erode" takes the outermost ones away;
    - "shift" moves it in a random direction, back into the image where more than half would leave it;
    - "hole" takes a disc around a random inner pixel out;
    - "boundary_noise" displaces the outline by a smooth random field, by up to the mask's own size;
    - "merge" adds the nearest neighbour, from its near side on;
    - "part" keeps the part whose area fits the severity best, or one side of a straight cut where there are no parts;
    - "paste" is a mask of another image, moved and scaled from this mask's box (severity near 0) to the box that it has
      in its own image (1); its IoU is what it turns out to be.

    Args:
        mask: Not empty.
        kind: One of :data:`DEGRADATIONS`.
        severity: In (0, 1]: 1 - IoU with ``mask``, to the nearest pixel. Where a kind can't get there (the image ends,
            the neighbour is too small) it goes as far as it can.
        context: What lies around the mask; "merge" and "paste" need it.
        seed: The same seed gives the same mask.

    Returns:
        A new mask, never empty: where nothing would be left of it (of a few pixels, say), the mask as it was.

    Raises:
        UnknownNameError: No such kind.
        ShapeError: ``mask`` is not (H, W), or the context's masks are of another size.
        InputError: An empty mask, not bool, a severity outside (0, 1], or a context that lacks what the kind needs.

    Example:
        >>> mask = np.zeros((20, 20), dtype=bool)
        >>> mask[5:15, 5:15] = True
        >>> int(degrade(mask, "erode", 0.25).sum()), int(degrade(mask, "dilate", 0.5).sum())
        (75, 200)
    """
    around = context or MaskContext()
    _check(mask, kind, severity, around)
    rng = np.random.default_rng(seed)
    match kind:
        case "dilate":
            degraded = _dilate(mask, severity)
        case "erode":
            degraded = _erode(mask, severity)
        case "shift":
            degraded = _shift(mask, severity, rng)
        case "hole":
            degraded = _hole(mask, severity, rng)
        case "boundary_noise":
            degraded = _boundary_noise(mask, severity, rng)
        case "merge":
            degraded = _merge(mask, severity, around)
        case "part":
            degraded = _part(mask, severity, around, rng)
        case "paste":
            degraded = _paste(mask, severity, around, rng)
    return degraded if degraded.any() and degraded is not mask else mask.copy()


def _dilate(mask: ndarray, severity: float) -> ndarray:
    return _with(mask, _nearest(~mask, ndimage.distance_transform_edt(~mask), _surplus(mask, severity)))


def _erode(mask: ndarray, severity: float) -> ndarray:
    return _without(mask, _nearest(mask, _depth(mask), _deficit(mask, severity)))


def _shift(mask: ndarray, severity: float, rng: np.random.Generator) -> ndarray:
    angle = rng.uniform(0, 2 * np.pi)
    there, back = (_shifted(mask, severity, angle + turn) for turn in (0, np.pi))
    return there if 2 * there.sum() >= min(mask.sum(), 2 * back.sum()) else back


def _hole(mask: ndarray, severity: float, rng: np.random.Generator) -> ndarray:
    depth = _depth(mask)
    inner = np.argwhere(mask & (depth >= np.median(depth[mask])))
    row, column = inner[rng.integers(len(inner))]
    rows, columns = np.ogrid[: mask.shape[0], : mask.shape[1]]
    distance = np.hypot(rows - row, columns - column)
    return _without(mask, _nearest(mask, distance, _deficit(mask, severity)))


def _boundary_noise(mask: ndarray, severity: float, rng: np.random.Generator) -> ndarray:
    radius = np.sqrt(mask.sum() / np.pi)
    window = _window(mask, margin=int(np.ceil(3 * radius)))
    inside = mask[window]
    height = _depth(inside) - ndimage.distance_transform_edt(~inside)  # above 0 inside
    noise = ndimage.gaussian_filter(rng.standard_normal(inside.shape), max(1.0, _WAVELENGTH * radius))
    noise = np.clip(noise / noise.std(), -2, 2) if noise.std() > 0 else noise
    low, high = 0.0, radius
    for _ in range(16):  # amplitude to radius / 65,536
        middle = (low + high) / 2
        low, high = (middle, high) if _iou(inside, height + middle * noise > 0) > 1 - severity else (low, middle)
    degraded = np.zeros_like(mask)
    degraded[window] = height + high * noise > 0
    return degraded


def _merge(mask: ndarray, severity: float, context: MaskContext) -> ndarray:
    beside = np.asarray(context.neighbours) & ~mask
    distance = ndimage.distance_transform_edt(~mask)
    gaps = [distance[other].min(initial=np.inf) for other in beside]
    return _with(mask, _nearest(beside[int(np.argmin(gaps))], distance, _surplus(mask, severity)))


def _part(mask: ndarray, severity: float, context: MaskContext, rng: np.random.Generator) -> ndarray:
    if context.parts is not None and len(context.parts):
        parts = context.parts & mask
        return np.asarray(parts[int(np.abs(parts.sum((1, 2)) / mask.sum() - (1 - severity)).argmin())])
    angle = rng.uniform(0, 2 * np.pi)
    rows, columns = np.ogrid[: mask.shape[0], : mask.shape[1]]
    across = rows * np.sin(angle) + columns * np.cos(angle)
    return _without(mask, _nearest(mask, across, _deficit(mask, severity)))


def _paste(mask: ndarray, severity: float, context: MaskContext, rng: np.random.Generator) -> ndarray:
    donor = context.donors[int(rng.integers(len(context.donors)))]
    shape = donor[_window(donor)]
    here, there = _edges(mask), _edges(donor) * np.repeat(np.divide(mask.shape, donor.shape), 2)
    top, bottom, left, right = np.rint((1 - severity) * here + severity * there).astype(int)
    top, left = min(top, mask.shape[0] - 1), min(left, mask.shape[1] - 1)
    degraded = np.zeros_like(mask)
    target = degraded[top : max(bottom, top + 1), left : max(right, left + 1)]
    rows, columns = (
        ((np.arange(size) + 0.5) * have / size).astype(int)
        for size, have in zip(target.shape, shape.shape, strict=True)
    )
    target[:] = shape[rows[:, None], columns]
    return degraded


def _check(mask: ndarray, kind: str, severity: float, context: MaskContext) -> None:
    if kind not in DEGRADATIONS:
        raise UnknownNameError(explain(f"kind={kind!r}", "one of " + ", ".join(DEGRADATIONS)))
    if not isinstance(mask, ndarray) or mask.dtype != np.bool_:
        raise InputError(explain(f"mask is {describe(mask)}", "a bool array (H, W)"))
    if mask.ndim != 2:
        raise ShapeError(explain(f"mask is {describe(mask)}", "a bool array (H, W)"))
    if not mask.any():
        raise InputError(explain("mask is empty", "a mask with at least one pixel"))
    if not isinstance(severity, (int, float, np.number)) or not 0 < severity <= 1:
        raise InputError(explain(f"severity={severity!r}", "a number above 0 and at most 1"))
    if kind not in context.kinds:
        what = "neighbours" if kind == "merge" else "donors"
        raise InputError(explain(f"kind={kind!r} with a context without {what}", f"a MaskContext with {what}"))
    for name in ("neighbours", "parts"):
        others = getattr(context, name)
        if others is not None and others.shape[1:] != mask.shape:
            raise ShapeError(explain(f"context.{name} is {describe(others)}", f"(n, {mask.shape[0]}, {mask.shape[1]})"))
    if kind == "paste" and not all(donor.any() for donor in context.donors):
        raise InputError(explain("a donor is empty", "masks with at least one pixel"))


def _deficit(mask: ndarray, severity: float) -> int:
    """Pixels to take away for an IoU of 1 - severity; one always stays."""
    area = int(mask.sum())
    return min(round(severity * area), area - 1)


def _surplus(mask: ndarray, severity: float) -> int:
    """Pixels to add for an IoU of 1 - severity."""
    area = int(mask.sum())
    return mask.size if severity == 1 else min(round(area * severity / (1 - severity)), mask.size)


def _with(mask: ndarray, added: ndarray) -> ndarray:
    return np.asarray(mask | added)


def _without(mask: ndarray, taken: ndarray) -> ndarray:
    return np.asarray(mask & ~taken)


def _nearest(among: Bool[ndarray, "H W"], distance: Float64[ndarray, "H W"], count: int) -> Bool[ndarray, "H W"]:
    """The ``count`` pixels of least distance, of equal ones the upper left."""
    place = np.flatnonzero(among)
    chosen = np.zeros(among.size, dtype=bool)
    chosen[place[np.argsort(distance.ravel()[place], kind="stable")[:count]]] = True
    return chosen.reshape(among.shape)


def _depth(mask: Bool[ndarray, "H W"]) -> Float64[ndarray, "H W"]:
    """Distance of each pixel of a mask to the outside, which begins beyond the image too."""
    depth: ndarray = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    return depth


def _shifted(mask: ndarray, severity: float, angle: float) -> ndarray:
    """Moved along a direction by the step, at least one pixel, that brings the IoU nearest to 1 - severity."""

    def moved(step: int) -> ndarray:
        down, along = round(step * np.sin(angle)), round(step * np.cos(angle))
        height, width = mask.shape
        result = np.zeros_like(mask)
        if abs(down) < height and abs(along) < width:
            result[max(down, 0) : height + min(down, 0), max(along, 0) : width + min(along, 0)] = mask[
                max(-down, 0) : height - max(down, 0), max(-along, 0) : width - max(along, 0)
            ]
        return result

    low, high = 0, int(np.hypot(*mask.shape)) + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _iou(mask, moved(middle)) > 1 - severity else (low, middle)
    steps = [moved(step) for step in (low, high) if step > 0]
    return min((one for one in steps if one.any()), key=lambda one: abs(_iou(mask, one) - 1 + severity), default=mask)


def _edges(mask: ndarray) -> ndarray:
    """Top, bottom, left, right of the tight box, the last ones exclusive."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([rows[0], rows[-1] + 1, columns[0], columns[-1] + 1])


def _window(mask: ndarray, margin: int = 0) -> tuple[slice, slice]:
    top, bottom, left, right = _edges(mask)
    return slice(max(0, top - margin), bottom + margin), slice(max(0, left - margin), right + margin)


def _iou(a: ndarray, b: ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())
