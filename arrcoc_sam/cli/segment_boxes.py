"""The box of a prompt, checked against its image."""

from __future__ import annotations

from collections.abc import Sequence

from arrcoc_sam.errors import DataError, InputError, explain

__all__ = ["check_corners"]


def check_corners(box_xyxy: Sequence[float], size_hw: tuple[int, int]) -> None:
    """See that both corners of a box lie in the image, as clicks do.

    Args:
        box_xyxy: x0, y0, x1, y1 in pixels.
        size_hw: Height and width of the image.

    Raises:
        DataError: Not four numbers.
        InputError: A corner that is not finite or lies outside, or a box that ends before it begins.
    """
    if len(box_xyxy) != 4:
        raise DataError(explain(f"a box of {len(box_xyxy)} numbers", "x0, y0, x1, y1"))
    x0, y0, x1, y1 = box_xyxy
    height, width = size_hw
    came = f"the box ({x0:g}, {y0:g}, {x1:g}, {y1:g})"
    if x1 < x0 or y1 < y0:
        raise InputError(explain(f"{came} ends before it begins", "x0 <= x1 and y0 <= y1"))
    if not (-0.5 <= x0 <= x1 <= width - 0.5 and -0.5 <= y0 <= y1 <= height - 0.5):
        expected = f"0 <= x <= {width - 1} and 0 <= y <= {height - 1}"
        raise InputError(explain(f"{came} reaches outside the image", expected))
