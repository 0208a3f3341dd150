"""Pictures of a page as SVG: the photograph once, and over it maps, outlines and clicks in the image's coordinates.

A map is a palette PNG of its own few cells, laid where its grid lies, and outlines are paths: both stay sharp at any
size, and a page of a hundred maps holds its photograph only once.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from arrcoc_sam.geometry import ImageTransform
from arrcoc_sam.report.drawing import grid_extent, level_outlines, mask_outlines, thumbnail
from arrcoc_sam.report.labels import ATTENTION_COLORMAP, LEVEL_STYLES
from arrcoc_sam.report.markup import Html, element, text

__all__ = ["click", "colour_scale", "map_image", "mask_outline", "outlines", "panel", "photograph", "reuse"]

_TRANSPARENT = 255


def photograph(image: UInt8[np.ndarray, "H W 3"], *, name: str, max_side: int = 900) -> Html:
    """The image itself, to be shown again elsewhere by :func:`reuse`, under ``name``."""
    height, width = image.shape[:2]
    buffer = io.BytesIO()
    Image.fromarray(thumbnail(image, max_side)).save(buffer, "JPEG", quality=86, optimize=True)
    return element("image", id=name, width=width, height=height, href=_data_uri("image/jpeg", buffer.getvalue()))


def reuse(name: str) -> Html:
    """Something drawn before under ``name``."""
    return element("use", href=f"#{name}")


def map_image(
    density: Float[np.ndarray, "h w"], transform: ImageTransform, *, top: float, opacity: float = 0.62
) -> Html:
    """An attention map, cell by cell, where its grid lies on the image; what is NaN stays transparent.

    Args:
        density: A value per cell, >= 0.
        transform: From the image to the frame that the grid divides.
        top: The value at the end of the colour scale.
        opacity: In [0, 1].
    """
    shade = np.clip(np.nan_to_num(density) / top, 0, 1) * (_TRANSPARENT - 1)
    index = np.where(np.isnan(density), _TRANSPARENT, np.rint(shade)).astype(np.uint8)
    picture = Image.frombytes("P", index.shape[::-1], index.tobytes())
    picture.putpalette(_palette())
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True, transparency=_TRANSPARENT)
    left, top_edge, right, bottom = grid_extent(transform)
    return element(
        "image",
        x=_short(left),
        y=_short(top_edge),
        width=_short(right - left),
        height=_short(bottom - top_edge),
        preserveAspectRatio="none",
        opacity=opacity,
        class_="cells",
        href=_data_uri("image/png", buffer.getvalue()),
    )


def outlines(masks: Bool[np.ndarray, "3 H W"], *, name: str) -> Html:
    """Outlines of whole, part and subpart under ``name``, each in its colour and line style over a dark casing."""
    lines = []
    for level, traced in level_outlines(masks).items():
        path = "".join(_path(outline) for outline in traced)
        if path:
            lines.append(element("path", d=path, class_="casing"))
            style = LEVEL_STYLES[level]
            dashes = " ".join(f"{2.2 * length:g}" for length in style.dashes) or None
            lines.append(element("path", d=path, class_="line", stroke=style.line, stroke_dasharray=dashes))
    return element("g", lines, id=name)


def mask_outline(mask: Bool[np.ndarray, "H W"], *, colour: str = "#FFD166") -> Html:
    """The outline of one mask over a dark casing."""
    path = "".join(_path(outline) for outline in mask_outlines(mask))
    lines = [element("path", d=path, class_="casing"), element("path", d=path, class_="line", stroke=colour)]
    return element("g", lines if path else [])


def click(point_xy: Sequence[float], size_hw: tuple[int, int]) -> Html:
    """A ringed cross at pixel indices (x, y)."""
    x, y, radius = point_xy[0] + 0.5, point_xy[1] + 0.5, 0.016 * max(size_hw)
    arm = 0.62 * radius
    return element(
        "g",
        [
            element("circle", cx=_short(x), cy=_short(y), r=_short(radius)),
            element("path", d=f"M{x - arm:.2f} {y:.2f}h{2 * arm:.2f}M{x:.2f} {y - arm:.2f}v{2 * arm:.2f}"),
        ],
        class_="click",
    )


def panel(size_hw: tuple[int, int], layers: Sequence[Html], *, label: str) -> Html:
    """Layers one over the other, cut at the image's edges, with a description for those who can't see them."""
    height, width = size_hw
    return element(
        "svg", [element("title", text(label)), *layers], viewBox=f"0 0 {width} {height}", role="img", class_="picture"
    )


def colour_scale() -> str:
    """The attention's colour scale as a CSS gradient."""
    palette = np.array(_palette()).reshape(-1, 3)[np.linspace(0, _TRANSPARENT - 1, 9).round().astype(int)]
    stops = ",".join(f"rgb({red},{green},{blue})" for red, green, blue in palette.tolist())
    return f"linear-gradient(90deg,{stops})"


def _palette() -> list[int]:
    from matplotlib import colormaps

    colours = colormaps[ATTENTION_COLORMAP](np.linspace(0, 1, _TRANSPARENT))[:, :3]
    return [*np.rint(255 * colours).astype(int).ravel().tolist(), 0, 0, 0]


def _path(outline: Float[np.ndarray, "n 2"]) -> str:
    points = [f"{x:.1f} {y:.1f}" for x, y in outline[:-1].tolist()]
    return "M" + "L".join(points) + "Z"


def _short(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
