"""Attention that was made elsewhere: arrays in memory or on disk, and functions."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from arrcoc_sam.attention.map_files import ARRAY_SUFFIXES, map_file
from arrcoc_sam.attention.maps import AttentionMaps, ImageLike, PointsLike, as_points
from arrcoc_sam.errors import InputError, ShapeError, UnknownNameError, describe, explain, listed
from arrcoc_sam.geometry import ImageTransform
from arrcoc_sam.images import load_image

__all__ = ["ARRAY_SUFFIXES", "ArrayAttention", "CallableAttention", "Fit", "Given", "read_attention"]

Fit: TypeAlias = Literal["stretch", "letterbox"] | Callable[[tuple[int, int], tuple[int, int]], ImageTransform]
"""Where a grid lies on the image: it covers the image exactly ("stretch"); it is square and covers the image padded at
the bottom or right to a square ("letterbox"); or a function of the image's and the grid's (height, width)."""

Given: TypeAlias = np.ndarray | Tensor
GREY_MODES = ("1", "L", "I;16", "I")


class ArrayAttention:
    """Attention maps from an array, a file, or a folder with one file for each image.

    Args:
        source: An array or tensor, (h, w), (N, h, w), or (N, K, h, w) for K prompts, answered for any image; a
            ``.npy``, ``.npz``, ``.png`` (one grey map) or ``.safetensors`` file of such an array; or a folder, in which
            the file for ``photos/cat.jpg`` is called ``photos/cat.npy`` or ``cat.npy``, ``cat.png`` and so on (images
            must then be given as paths).
        key: The array's name inside ``.npz`` and ``.safetensors`` files; needed only where there are several.
        names: One name a map; "map0", "map1", … when not given.
        fit: Where the grid lies on the image; see :data:`Fit`.

    Raises:
        InputError: A file that is missing, unreadable, pickled or of an unknown kind; values that are NaN, negative or
        all zero. ShapeError: An array of another rank. UnknownNameError: A key that the file does not have, or no such
        fit.
    """

    def __init__(
        self,
        source: str | Path | Given,
        *,
        key: str | None = None,
        names: Sequence[str] | None = None,
        fit: Fit = "stretch",
    ) -> None:
        _check_fit(fit)
        self.key = key
        self.names = names
        self.fit = fit
        self._folder: Path | None = None
        self._values: Tensor | None = None
        if isinstance(source, (str, Path)) and Path(source).is_dir():
            self._folder = Path(source)
            return
        if isinstance(source, (str, Path)):
            self._label = str(source)
            self._values = _ranked(read_attention(source, key=key), self._label)
        else:
            self._label = "the attention array"
            self._values = _ranked(_numbers(source, self._label), self._label)
        # A bad array is refused here, before any image is touched; what frame its grid lies on does not matter for
        # that.
        _maps(self._values, names, ImageTransform.identity(_grid_hw(self._values)), self._label)

    def __call__(self, image: ImageLike, points_xy: PointsLike | None = None) -> AttentionMaps:
        """The maps, laid on ``image``; see :class:`arrcoc_sam.attention.AttentionSource`."""
        image_hw = load_image(image).shape[:2]
        values, label = self._of(image)
        points = None if points_xy is None else as_points(points_xy, image_hw)
        if values.ndim == 4 and points is not None and values.shape[1] != len(points):
            raise ShapeError(
                explain(f"{label} has maps for {values.shape[1]} prompts", f"maps for the {len(points)} points given")
            )
        return _maps(values, self.names, _placed(self.fit, image_hw, _grid_hw(values)), label)

    def _of(self, image: ImageLike) -> tuple[Tensor, str]:
        if self._values is not None:
            return self._values, self._label
        folder = self._folder
        if folder is None or not isinstance(image, (str, Path)):
            came = f"the image is {describe(image)} and the attention comes from the folder {folder}"
            raise InputError(explain(came, "an image path, whose stem names the attention file"))
        found = map_file(folder, Path(image))
        return _ranked(read_attention(found, key=self.key), str(found)), str(found)

    def file_of(self, image: str | Path) -> Path | None:
        """The file in the folder that an image's maps are read from; None of an array that is for any image.

        Raises:
            InputError: The folder has none for it, or several.
        """
        return None if self._folder is None else map_file(self._folder, Path(image))


class CallableAttention:
    """Attention maps from a function of the image.

    Args:
        fn: Called with the image, (H, W, 3) uint8 RGB (EXIF orientation applied), and, with ``takes_points``, also with
            the prompt points, a float64 tensor (K, 2) or None. Answers (h, w), (N, h, w) or (N, K, h, w), array or
            tensor (gradients flow through), or a finished :class:`AttentionMaps`.
        names: One name a map; "map0", "map1", … when not given.
        fit: Where the grid lies on the image; see :data:`Fit`.
        takes_points: Whether the function is called with the points.

    Raises:
        InputError: No function. UnknownNameError: No such fit.

    Example:
        >>> import numpy as np
        >>> brightness = CallableAttention(lambda image: image.mean(-1), names=["brightness"])
        >>> brightness(np.full((4, 6, 3), 128, dtype=np.uint8)).grid_hw
        (4, 6)
    """

    def __init__(
        self,
        fn: Callable[..., Given | AttentionMaps],
        *,
        names: Sequence[str] | None = None,
        fit: Fit = "stretch",
        takes_points: bool = False,
    ) -> None:
        given: object = fn
        if not callable(given):
            mend = "maps of arrays or files: ArrayAttention(...)"
            raise InputError(explain(f"fn is {describe(given)}", "a function of the image", mend))
        _check_fit(fit)
        self.fn = fn
        self.names = names
        self.fit = fit
        self.takes_points = takes_points

    def __call__(self, image: ImageLike, points_xy: PointsLike | None = None) -> AttentionMaps:
        """The function's maps of ``image``; see :class:`arrcoc_sam.attention.AttentionSource`.

        Raises:
            InputError: The function answered something that is no attention; the message names the function.
        """
        pixels: UInt8[np.ndarray, "H W 3"] = load_image(image)
        points = None if points_xy is None else as_points(points_xy, pixels.shape[:2])
        answer = self.fn(pixels, points) if self.takes_points else self.fn(pixels)
        if isinstance(answer, AttentionMaps):
            return answer
        label = f"what {getattr(self.fn, '__name__', repr(self.fn))} returned"
        values = _ranked(_numbers(answer, label), label)
        if values.ndim == 4 and (points is None or values.shape[1] != len(points)):
            given = "no points" if points is None else f"{len(points)} points"
            raise ShapeError(
                explain(f"{label} has maps for {values.shape[1]} prompts and there were {given}", "equal numbers")
            )
        return _maps(values, self.names, _placed(self.fit, pixels.shape[:2], _grid_hw(values)), label)


def read_attention(path: str | Path, *, key: str | None = None) -> Shaped[Tensor, ...]:
    """The one array in a ``.npy``, ``.npz``, ``.png`` or ``.safetensors`` file. Nothing is ever unpickled.

    Args:
        path: The file.
        key: The array's name in ``.npz`` and ``.safetensors`` files; may be left out where there is one.

    Raises:
        InputError: The file is missing, unreadable, pickled, of an unknown kind, a colour picture, or holds several
        arrays. UnknownNameError: There is no array called ``key``.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in ARRAY_SUFFIXES:
        raise InputError(explain(f"the attention file is {path}", f"a folder or a file in {', '.join(ARRAY_SUFFIXES)}"))
    if not path.is_file():
        raise InputError(explain(f"there is no attention file {path}", "an existing file"))
    try:
        if suffix == ".png":
            array: Given = _read_png(path)
        elif suffix == ".safetensors":
            with safe_open(path, framework="pt") as archive:
                array = archive.get_tensor(_chosen(list(archive.keys()), key, path))
        else:
            array = _read_numpy(path, key)
    except (OSError, ValueError, EOFError, SyntaxError, SafetensorError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, InputError):
            raise
        pickled = "pickle" in str(error).lower()
        came = f"{path} holds pickled objects" if pickled else f"{path} can't be read ({error})"
        mend = "save the array itself: numpy.save(path, array.astype('float32'))" if pickled else None
        raise InputError(explain(came, f"an intact {suffix} file of numbers", mend)) from error
    return _numbers(array, str(path))


def _read_png(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as picture:
            if picture.mode not in GREY_MODES:
                came = f"{path} is a picture of mode {picture.mode}"
                raise InputError(
                    explain(
                        came, "a grey one (8 or 16 bit)", "a heat map's colours are no numbers: save the map itself"
                    )
                )
            return np.asarray(picture)
    except Image.DecompressionBombError as error:
        raise OSError(str(error)) from error


def _read_numpy(path: Path, key: str | None) -> np.ndarray:
    # Opened here and not by NumPy, which leaves a broken archive open.
    with path.open("rb") as file:
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            return np.asarray(loaded[_chosen(loaded.files, key, path)])


def _chosen(keys: Sequence[str], key: str | None, path: Path) -> str:
    if key is None and len(keys) == 1:
        return keys[0]
    named = listed(sorted(keys))
    if key is None:
        came = f"{path} holds {len(keys)} arrays ({named})"
        raise InputError(explain(came, "one", "name it: ArrayAttention(path, key=...) (--key)"))
    if key not in keys:
        raise UnknownNameError(explain(f"{path} holds no array called {key!r}", f"one of its {len(keys)}: {named}"))
    return key


def _numbers(array: object, label: str) -> Tensor:
    """An array as a real tensor: floating tensors as they are (with their gradient), everything else as float32."""
    if isinstance(array, Tensor):
        tensor = array
    elif isinstance(array, (np.ndarray, list, tuple)):
        try:
            plain = np.asarray(array)
        except ValueError as error:  # ragged
            raise ShapeError(explain(f"{label} is {describe(array)}", "rows of one length")) from error
        if plain.dtype.kind not in "biuf":
            raise InputError(explain(f"{label} is {describe(plain)}", "an array of real numbers"))
        with np.errstate(over="ignore"):  # what is too large becomes inf, and is refused by name later
            tensor = torch.from_numpy(np.array(plain, dtype=np.float32))
    else:
        raise InputError(explain(f"{label} is {describe(array)}", "an array, a tensor or AttentionMaps"))
    if tensor.is_complex():
        raise InputError(explain(f"{label} is {describe(tensor)}", "an array of real numbers"))
    return tensor if tensor.is_floating_point() else tensor.float()


def _ranked(values: Tensor, label: str) -> Tensor:
    """The values with the axis of the maps."""
    if values.ndim not in (2, 3, 4) or 0 in values.shape:
        raise ShapeError(explain(f"{label} is {describe(values)}", "non-empty (h, w), (N, h, w) or (N, K, h, w)"))
    return values[None] if values.ndim == 2 else values


def _grid_hw(values: Tensor) -> tuple[int, int]:
    return int(values.shape[-2]), int(values.shape[-1])


def _check_fit(fit: object) -> None:
    if not callable(fit) and not (isinstance(fit, str) and fit in ("stretch", "letterbox")):
        raise UnknownNameError(explain(f"fit is {fit!r}", "'stretch', 'letterbox' or a function"))


def _placed(fit: Fit, image_hw: tuple[int, int], grid_hw: tuple[int, int]) -> ImageTransform:
    if callable(fit):
        return fit(image_hw, grid_hw)
    if fit == "stretch":
        return ImageTransform.squash(image_hw, grid_hw)
    if grid_hw[0] != grid_hw[1]:
        raise ShapeError(
            explain(f"the attention's grid is {grid_hw}", "a square one for fit='letterbox'", "use fit='stretch'")
        )
    # A frame finer than the grid, so that the letterbox's rounding to whole pixels does not move its content by half a
    # cell.
    return ImageTransform.letterbox(image_hw, grid_hw[0] * max(1, -(-max(image_hw) // grid_hw[0])))


def _maps(values: Tensor, names: Sequence[str] | None, transform: ImageTransform, label: str) -> AttentionMaps:
    try:
        return AttentionMaps.from_values(values, names=names, transform=transform)
    except ShapeError as error:
        raise ShapeError(f"{label}: {error}") from error
    except InputError as error:
        raise InputError(f"{label}: {error}") from error
