"""Images as arrays: what a path, a PIL image or an array means here, and what a file says before it is decoded."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from arrcoc_sam.errors import ImageReadError, ImageTooLargeError, InputError, ShapeError, describe, explain

__all__ = [
    "MAX_PIXELS",
    "ImageHeader",
    "ImageInput",
    "header_size",
    "is_turned",
    "load_image",
    "read_header",
]

ImageInput: TypeAlias = str | os.PathLike[str] | Image.Image | np.ndarray
"""What :func:`load_image` takes: a path, a PIL image, or an H×W×3 uint8 array."""

MAX_PIXELS = 100_000_000
"""Height × width above which an image is refused, unless more is allowed."""

_ORIENTATION_TAG = 0x0112
_TRANSPOSED: dict[int, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)
_limit_lock = threading.Lock()


def load_image(image: ImageInput, *, max_pixels: int = MAX_PIXELS) -> UInt8[np.ndarray, "H W 3"]:
    """An image as an RGB array, upright.

    EXIF orientation is applied; grey, palette, CMYK and the like become RGB; an alpha channel is dropped, as
    ``convert("RGB")`` does; 16-bit grey is scaled to 8 bit by 1/257 (and not clipped, as ``convert`` would); of an
    animation the first frame is read.

    Args:
        image: A path; a PIL image; or a uint8 array (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA.
        max_pixels: Height × width above which an image is refused, judged by the file's header before it is decoded.

    Returns:
        (H, W, 3) uint8 RGB. An array that already is that comes back without a copy.

    Raises:
        ImageReadError: The file is missing, a folder, empty, truncated, or no image that Pillow reads.
        ImageTooLargeError: More pixels than ``max_pixels``.
        ShapeError: An array of another rank or number of channels.
        InputError: An array of another dtype, or something else altogether.

    Example:
        >>> load_image(np.zeros((4, 6), dtype=np.uint8)).shape
        (4, 6, 3)
    """
    if isinstance(max_pixels, bool) or not isinstance(max_pixels, int) or max_pixels < 1:
        raise InputError(explain(f"max_pixels={max_pixels!r}", "a whole number of pixels, at least 1"))
    given: object = image
    if isinstance(given, np.ndarray):
        return _from_array(given, max_pixels)
    if isinstance(given, Image.Image):
        return _from_pil(given, "the PIL image", max_pixels)
    if isinstance(given, (str, os.PathLike)):
        return _from_file(Path(given).expanduser(), max_pixels)
    mend = None
    if hasattr(given, "permute"):
        shape = tuple(getattr(given, "shape", ()))
        channels_last = len(shape) == 3 and shape[2] in (1, 3, 4) and shape[0] not in (1, 3, 4)
        mend = "image.cpu().numpy()" if channels_last else "for a C×H×W tensor: image.permute(1, 2, 0).cpu().numpy()"
    raise InputError(explain(f"image is {describe(image)}", "a path, a PIL image or an H×W×3 uint8 array", mend))


@dataclass(frozen=True)
class ImageHeader:
    """What an image file says of itself before it is decoded.

    Attributes:
        stored_hw: Height and width as it is stored.
        orientation: Of its EXIF data, 1 to 8; 1 where they have none, and of a PNG that gives it after its pixels.
    """

    stored_hw: tuple[int, int]
    orientation: int = 1

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width with the orientation applied, as :func:`load_image` does."""
        height, width = self.stored_hw
        return (width, height) if self.orientation in _SIDEWAYS else (height, width)

    def is_turned(self, *, in_place: bool = False) -> bool:
        """See :func:`is_turned`."""
        return self.orientation in _TRANSPOSED and not (in_place and self.size_hw != self.stored_hw)


def read_header(path: str | os.PathLike[str]) -> ImageHeader | None:
    """The header of an image file; None where it can't be read.

    Args:
        path: The file.
    """
    try:
        with warnings.catch_warnings(action="ignore"), _no_pixel_limit(), Image.open(path) as file:
            return ImageHeader((file.height, file.width), _orientation(file))
    except Exception:  # decoders raise a dozen kinds; whoever loads the picture says which
        return None


def header_size(path: str | os.PathLike[str], *, upright: bool = True) -> tuple[int, int] | None:
    """Height and width of an image file without decoding it; None where the header can't be read.

    Args:
        path: The file.
        upright: With the orientation of its EXIF data applied, as :func:`load_image` does. A PNG that gives it after
            its pixels is taken for upright.
    """
    header = read_header(path)
    return None if header is None else header.size_hw if upright else header.stored_hw


def is_turned(path: str | os.PathLike[str], *, in_place: bool = False) -> bool:
    """Whether :func:`load_image` moves an image's pixels by the orientation of its EXIF data.

    As :func:`header_size`, this reads no more than the header, and is False where that can't be read.

    Args:
        path: The file.
        in_place: Only where its size stays: whoever drew masks on the pixels as stored has no other sign of it.
    """
    header = read_header(path)
    return header is not None and header.is_turned(in_place=in_place)


def _orientation(image: Image.Image) -> int:
    try:
        # the method of PngImageFile would decode the picture
        found: Any = Image.Image.getexif(image).get(_ORIENTATION_TAG, 1)
        return int(found) if found in _TRANSPOSED else 1
    except Exception:  # damaged metadata is no reason to refuse the picture
        return 1


def _from_array(array: np.ndarray, max_pixels: int) -> UInt8[np.ndarray, "H W 3"]:
    if array.dtype != np.uint8:
        mend = None
        if np.issubdtype(array.dtype, np.floating):
            mend = "for values in [0, 1]: (image * 255).round().astype(np.uint8)"
        elif array.dtype == np.uint16:
            mend = "for the full 16-bit range: (image // 257).astype(np.uint8)"
        elif np.issubdtype(array.dtype, np.integer):
            mend = "for values from 0 to 255: image.astype(np.uint8)"
        raise InputError(explain(f"image is {describe(array)}", "uint8 values from 0 to 255", mend))
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or 0 in array.shape:
        mend = (
            "move the channels last: image.transpose(1, 2, 0)" if array.ndim == 3 and len(array) in (1, 3, 4) else None
        )
        if array.ndim == 4:
            mend = "pass a batch as a list of images"
        raise ShapeError(explain(f"image is {describe(array)}", "(H, W, 3), H and W at least 1", mend))
    _check_size(array.shape[1], array.shape[0], "the array", max_pixels)
    if array.ndim == 2 or array.shape[2] == 1:
        return np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2)
    return np.ascontiguousarray(array[:, :, :3])


def _from_file(path: Path, max_pixels: int) -> UInt8[np.ndarray, "H W 3"]:
    # stat before open: a folder, an empty file and a missing one each deserve their own words
    try:
        size = path.stat().st_size
    except FileNotFoundError as error:
        raise ImageReadError(explain(f"{path} does not exist", "an image file", "check the path")) from error
    except (OSError, ValueError) as error:
        raise ImageReadError(explain(f"{path} can't be read: {error}", "an image file")) from error
    if path.is_dir():
        raise ImageReadError(explain(f"{path} is a folder", "an image file", "name a file in it"))
    if size == 0:
        raise ImageReadError(explain(f"{path} is empty (0 bytes)", "an image file", "fetch or copy it again"))
    try:
        with _no_pixel_limit():
            opened = Image.open(path)
    except UnidentifiedImageError as error:
        raise ImageReadError(explain(f"{path} is no image that Pillow reads", "JPEG, PNG, WebP, TIFF, …")) from error
    except Exception as error:  # decoders raise SyntaxError, struct.error, ValueError and more on damaged headers
        raise ImageReadError(explain(f"{path} can't be read: {error}", "an image file")) from error
    with opened:
        return _from_pil(opened, str(path), max_pixels)


def _from_pil(image: Image.Image, name: str, max_pixels: int) -> UInt8[np.ndarray, "H W 3"]:
    _check_size(image.width, image.height, name, max_pixels)
    try:
        image.load()
        upright = _upright(image)
    except Exception as error:  # as above, for damaged data
        raise ImageReadError(
            explain(f"{name} can't be decoded: {error}", "a whole image file", "fetch or copy it again")
        ) from error
    if upright.mode.startswith("I"):
        return _from_integers(np.asarray(upright), name)
    if upright.mode == "F":
        raise ImageReadError(explain(f"{name} holds floats", "8 or 16 bits a channel", "scale it to 0-255 and save it"))
    # Straight to RGB Pillow warns about palettes with several alphas, and does not know premultiplied ones.
    between = {"La": "LA", "RGBa": "RGBA", "P": "RGBA" if "transparency" in upright.info else "P"}
    try:
        for mode in (between.get(upright.mode, upright.mode), "RGB"):
            upright = upright if upright.mode == mode else upright.convert(mode)
    except Exception as error:
        mend = "convert it with Pillow first"
        raise ImageReadError(
            explain(f"{name} has Pillow's mode {upright.mode}", "one that becomes RGB", mend)
        ) from error
    return np.array(upright)


def _from_integers(values: np.ndarray, name: str) -> UInt8[np.ndarray, "H W 3"]:
    """Grey of 16 bits, in any of Pillow's integer modes, as RGB of 8."""
    if values.min() < 0 or values.max() > 65535:
        raise ImageReadError(
            explain(f"{name} holds integers beyond 16 bits", "8 or 16 bits a channel", "scale it to 0-255 and save it")
        )
    grey = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation: Any = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # damaged metadata is no reason to refuse the picture
        return image
    method = _TRANSPOSED.get(orientation)
    return image if method is None else image.transpose(method)


def _check_size(width: int, height: int, name: str, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise ImageReadError(explain(f"{name} is {width} x {height}", "at least 1 x 1 pixels"))
    if width * height > max_pixels:
        raise ImageTooLargeError(
            explain(
                f"{name} is {width} x {height} = {width * height / 1e6:.1f} megapixels",
                f"at most max_pixels = {max_pixels / 1e6:.1f} megapixels",
                "scale it down; in Python load_image and a segmenter's encode take a larger max_pixels",
            )
        )


@contextmanager
def _no_pixel_limit() -> Iterator[None]:
    """Pillow's own size check, off while a header is read: ours comes right after, with its own words.

    Pillow keeps the limit in a global, hence the lock; decoding itself runs outside it.
    """
    with _limit_lock:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit
