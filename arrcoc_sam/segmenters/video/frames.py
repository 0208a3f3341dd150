"""The frames of a clip, from a folder of images or a video file, one at a time and in any order.

Only a window of frames is in memory. Going backwards through a video file decodes a stretch at a time, from the
keyframe before it.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from arrcoc_sam.errors import DataError, ImageReadError, InputError, MissingExtraError, describe, explain
from arrcoc_sam.image_files import find_images
from arrcoc_sam.images import header_size, load_image

__all__ = ["ArrayClip", "Clip", "FolderClip", "VideoFileClip", "check_frame", "open_clip"]

_WINDOW_BYTES = 128 << 20
_MAX_WINDOW = 64


class Clip(ABC):
    """Frames of one size.

    Attributes:
        name: What it is called in messages.
        size_hw: Height and width of every frame.
        times_s: The time of each frame in seconds, or None where nothing says it.
    """

    name: str
    size_hw: tuple[int, int]
    times_s: Sequence[float] | None = None

    @abstractmethod
    def __len__(self) -> int:
        """The number of frames."""

    @abstractmethod
    def _read(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        """A frame that there is."""

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        """A frame as RGB.

        Raises:
            IndexError: There is no such frame.
            DataError: It can't be decoded, or has another size than the first.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"frame {index} of {len(self)}")
        image = self._read(index)
        if image.shape[:2] != self.size_hw:
            raise _changed(self.name, index, (image.shape[0], image.shape[1]), self.size_hw)
        return image

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        return (self[index] for index in range(len(self)))

    @property
    def frame_rate(self) -> float | None:
        """Frames per second, or None where nothing says it."""
        times = self.times_s
        if times is None or len(times) < 2 or times[-1] <= times[0]:
            return None
        return (len(times) - 1) / (times[-1] - times[0])

    def close(self) -> None:
        """Let go of the file."""
        return


class ArrayClip(Clip):
    """Frames that are in memory already.

    Args:
        frames: H×W×3 uint8 RGB, all of one size.
        name: What to call the clip.

    Raises:
        DataError: No frame, or frames of several sizes.
    """

    def __init__(self, frames: Sequence[UInt8[np.ndarray, "_ _ 3"]], *, name: str = "the clip") -> None:
        self.name = name
        self._frames = [load_image(frame) for frame in frames]
        if not self._frames:
            raise _empty(name)
        self.size_hw = (self._frames[0].shape[0], self._frames[0].shape[1])
        for index, frame in enumerate(self._frames):
            if frame.shape[:2] != self.size_hw:
                raise _changed(name, index, (frame.shape[0], frame.shape[1]), self.size_hw)

    def __len__(self) -> int:
        return len(self._frames)

    def _read(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        return self._frames[index]


class FolderClip(Clip):
    """The images of a folder as frames, in the order of their names, numbers in them read as numbers.

    Args:
        folder: The folder; its subfolders are not searched.

    Raises:
        ImageReadError: No image in it, or one whose header can't be read.
        DataError: Images of several sizes.
    """

    def __init__(self, folder: str | Path) -> None:
        self.name = str(folder)
        self._paths = sorted(find_images(folder), key=_natural)
        sizes = [_size_of(path) for path in self._paths]
        self.size_hw = sizes[0]
        for index, size in enumerate(sizes):
            if size != self.size_hw:
                raise _changed(f"{folder} ({self._paths[index].name})", index, size, self.size_hw)

    def __len__(self) -> int:
        return len(self._paths)

    def _read(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        return load_image(self._paths[index])


class VideoFileClip(Clip):
    """The frames of a video file, by PyAV.

    Args:
        path: The file; its first video stream is read.
        window: Frames that are kept when going backwards; by default as many as fit into 128 MiB, at most 64.

    Raises:
        DataError: No video in it, or no frame.
        ImageReadError: The file is missing or nothing that FFmpeg reads.
        MissingExtraError: PyAV is not installed.
    """

    def __init__(self, path: str | Path, *, window: int | None = None) -> None:
        try:
            import av
        except ImportError as error:
            raise MissingExtraError.of("av", "video") from error
        self._av: Any = av
        self.name = str(path)
        self._path = Path(path).expanduser()
        if not self._path.is_file():
            raise ImageReadError(explain(f"{path} does not exist or is no file", "a video file or a folder of images"))
        self._open()
        if self._stream is None:
            self.close()
            raise DataError(explain(f"{path} has no video stream", "a video file or a folder of images"))
        packets = self._container.demux(self._stream)
        stamps = sorted({packet.pts for packet in packets if packet.pts is not None and not packet.is_discard})
        if not stamps:
            self.close()
            raise _empty(self.name)
        self._stamps = stamps
        self._index_of = {stamp: index for index, stamp in enumerate(stamps)}
        base = float(self._stream.time_base)
        self.times_s = [(stamp - stamps[0]) * base for stamp in stamps]
        self._kept: dict[int, UInt8[np.ndarray, "_ _ 3"]] = {}
        self._last = -1
        self._restart()
        first = self._decode_until(0, keep=1)
        self.size_hw = (first.shape[0], first.shape[1])
        self._window = window or min(_MAX_WINDOW, max(2, _WINDOW_BYTES // first.nbytes))

    def __len__(self) -> int:
        return len(self._stamps)

    def close(self) -> None:
        """Let go of the file."""
        self._container.close()

    def _read(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        if index not in self._kept:
            backwards = index < self._last
            if backwards or index > self._last + self._window:
                self._seek(max(0, index - self._window + 1) if backwards else index)
            self._decode_until(index, keep=self._window if backwards else 1)
        return self._kept[index]

    def _open(self) -> None:
        try:
            self._container: Any = self._av.open(str(self._path))
        except self._av.error.FFmpegError as error:
            raise ImageReadError(
                explain(f"{self.name} can't be read ({error})", "a video file that FFmpeg reads, or a folder of images")
            ) from error
        self._stream: Any = next(iter(self._container.streams.video), None)
        if self._stream is not None:
            self._stream.thread_type = "AUTO"

    def _restart(self) -> None:
        self._container.close()
        self._open()
        self._frames = self._container.decode(self._stream)
        self._last = -1

    def _seek(self, index: int) -> None:
        """Stand at or before a frame."""
        self._container.seek(self._stamps[index], stream=self._stream, backward=True)
        self._frames = self._container.decode(self._stream)
        self._last = -1
        first = self._next()
        if first is None or first[0] > index:  # a container without a usable index
            self._restart()
        else:
            self._kept = {first[0]: first[1]}
            self._last = first[0]

    def _decode_until(self, index: int, *, keep: int) -> UInt8[np.ndarray, "H W 3"]:
        """Decode on, up to a frame, and keep the last few."""
        self._kept = {i: image for i, image in self._kept.items() if index - keep < i <= index}
        while index not in self._kept:
            found = self._next(only_from=index - keep + 1)
            if found is None:
                raise DataError(
                    explain(f"frame {index} of {self.name} can't be decoded", "a whole video file", "convert it anew")
                )
            self._last = found[0]
            if index - keep < found[0] <= index:
                self._kept[found[0]] = found[1]
            elif found[0] > index:
                if index and found[1].shape[:2] != self.size_hw:
                    raise _changed(self.name, found[0], (found[1].shape[0], found[1].shape[1]), self.size_hw)
                raise DataError(
                    explain(f"frame {index} of {self.name} is missing in the stream", "every frame", "convert it anew")
                )
        return self._kept[index]

    def _next(self, *, only_from: int = 0) -> tuple[int, UInt8[np.ndarray, "_ _ 3"]] | None:
        """The next frame of the stream; one before ``only_from`` is not converted."""
        try:
            frame = next(self._frames, None)
        except self._av.error.FFmpegError as error:
            raise DataError(explain(f"{self.name} is damaged ({error})", "a whole video file")) from error
        if frame is None:
            return None
        index = self._index_of.get(frame.pts, -1)
        if index < only_from:
            return index, np.zeros((1, 1, 3), dtype=np.uint8)
        image = frame.to_ndarray(format="rgb24")
        return index, np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90)))


def open_clip(source: str | Path | Clip) -> Clip:
    """A clip of what is given: a folder of images, a video file, or a clip.

    Raises:
        ImageReadError: Nothing is there, or nothing that can be read.
        DataError: No frames, or of several sizes.
        MissingExtraError: A video file without PyAV.
        InputError: Something else.
    """
    if isinstance(source, Clip):
        return source
    given: object = source
    if not isinstance(given, (str, os.PathLike)):
        mend = "ArrayClip(frames) of arrcoc_sam.segmenters.video.frames, for frames in memory"
        raise InputError(explain(f"clip is {describe(given)}", "a folder of images, a video file or a Clip", mend))
    path = Path(source).expanduser()
    if path.is_dir():
        return FolderClip(path)
    return VideoFileClip(path)


def check_frame(clip: Clip, frame: int, what: str) -> None:
    """See that a frame is there.

    Raises:
        InputError: It is not.
    """
    if not 0 <= frame < len(clip):
        raise InputError(
            explain(f"{what} on frame {frame} of {clip.name}, which has {len(clip)} frames", f"0 to {len(clip) - 1}")
        )


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """A sort key by which "9.jpg" comes before "10.jpg"."""
    parts = re.findall(r"\d+|\D+", path.name)
    return [(0, int(part), part) if part.isdigit() else (1, 0, part) for part in parts]


def _size_of(path: Path) -> tuple[int, int]:
    found = header_size(path)
    if found is None:
        raise ImageReadError(explain(f"{path} can't be read", "an image file"))
    return found


def _empty(name: str) -> DataError:
    return DataError(explain(f"{name} has no frames", "at least one"))


def _changed(name: str, index: int, came: tuple[int, int], first: tuple[int, int]) -> DataError:
    return DataError(
        explain(
            f"frame {index} of {name} is {came[1]} × {came[0]}, the first one {first[1]} × {first[0]}",
            "frames of one size",
            "cut the clip where the size changes, or scale all frames to one size",
        )
    )
