"""A clip with the masks drawn into it, as a video file."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from arrcoc_sam.errors import MissingExtraError
from arrcoc_sam.masks.rle import decode_rle
from arrcoc_sam.segmenters.video.frames import Clip
from arrcoc_sam.segmenters.video.tracks import VideoTracks

__all__ = ["OBJECT_COLOURS", "check_overlay", "draw_masks", "write_overlay"]

OBJECT_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
"""Told apart by readers with and without a colour vision deficiency (Okabe and Ito 2008); repeated after seven."""

_OPACITY = 0.45
_DEFAULT_RATE = 10


def check_overlay() -> None:
    """See that an overlay can be written, before there is anything to lose.

    Raises:
        MissingExtraError: PyAV is not installed.
    """
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise MissingExtraError.of("av", "video") from error


def write_overlay(path: Path, clip: Clip, tracks: VideoTracks, *, progress: Callable[[str, int, int], None]) -> None:
    """Write the clip with each object's mask in its own colour.

    Args:
        path: The file, by its ending a container of FFmpeg's.
        clip: The frames.
        tracks: Their masks.
        progress: Told how far it is.

    Raises:
        MissingExtraError: PyAV is not installed.
    """
    check_overlay()
    import av

    colours = {
        name: np.array([int(OBJECT_COLOURS[i % len(OBJECT_COLOURS)][k : k + 2], 16) for k in (1, 3, 5)])
        for i, name in enumerate(tracks.object_ids)
    }
    rate = Fraction(clip.frame_rate or _DEFAULT_RATE).limit_denominator(1001)
    with av.open(str(path), "w") as container:
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        stream: Any = container.add_stream(codec, rate=rate)
        height, width = clip.size_hw
        stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        for index, image in enumerate(clip):
            drawn = image
            for row in tracks.on(index):
                drawn = draw_masks(drawn, decode_rle(row.segmentation).numpy(), colours[row.object_id])
            even = np.pad(drawn, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
            frame.pts, frame.time_base = index, 1 / rate
            container.mux(stream.encode(frame))
            progress("overlay", index + 1, len(clip))
        container.mux(stream.encode())


def draw_masks(
    image: UInt8[np.ndarray, "H W 3"], mask: Bool[np.ndarray, "H W"], colour: np.ndarray
) -> UInt8[np.ndarray, "H W 3"]:
    """An image with a mask over it, tinted inside and solid along its border."""
    inner = mask.copy()
    inner[1:] &= mask[:-1]
    inner[:-1] &= mask[1:]
    inner[:, 1:] &= mask[:, :-1]
    inner[:, :-1] &= mask[:, 1:]
    drawn = image.copy()
    drawn[mask] = ((1 - _OPACITY) * image[mask] + _OPACITY * colour).astype(np.uint8)
    drawn[mask & ~inner] = colour.astype(np.uint8)
    return drawn
