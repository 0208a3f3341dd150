"""A folder of images and PNG masks as a data set of masks to be scored and filtered."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from jaxtyping import Bool
from PIL import Image
from torch import Tensor

from arrcoc_sam.datasets.mask_index import MaskEntry, MaskIndex
from arrcoc_sam.datasets.mask_sets import Changes, files_digest
from arrcoc_sam.errors import DataError, ImageReadError, ImageTooLargeError, OutputError, explain
from arrcoc_sam.image_files import IMAGE_SUFFIXES
from arrcoc_sam.images import MAX_PIXELS

__all__ = ["FolderMasks", "read_mask_file"]

# A palette's numbers are no colours, and bits are bytes of 255 that NumPy takes for bools.
_PLAIN = {"1": "L", "P": "RGB", "PA": "RGBA"}

_NUMBERED = re.compile(r"[-_ ]*\d*$")


class FolderMasks:
    """``images/a/b.jpg`` with its masks in ``masks/a/b.png``, or several in the folder ``masks/a/b/``.

    A mask's id is its path below ``masks`` without the ending. In a folder of several its class is the file's name
    without the number at its end: ``dog-2.png`` is of the class "dog".

    Attributes:
        path: The folder.
        images: ``images`` in it, or another folder.
        masks: ``masks`` in it.
    """

    format = "folder"

    def __init__(self, path: str | os.PathLike[str], *, images: str | os.PathLike[str] | None = None) -> None:
        self.path = Path(path)
        self.images = self.path / "images" if images is None else Path(images)
        self.masks: Path | None = self.path / "masks"

    def digest(self) -> str:
        """SHA-256 over names, sizes and times of the masks."""
        return files_digest(self._masks, self._mask_files())

    def fill(self, index: MaskIndex) -> None:
        """List images and masks; a mask without image is listed as unusable.

        Raises:
            DataError: No folder of images, no mask, or images of one name and several endings.
        """
        if not self.images.is_dir():
            raise DataError(
                explain(f"{self.images} is no folder", "the folder of images", "name it as images (--images)")
            )
        numbers: dict[str, int] = {}
        for image in _files(self.images, IMAGE_SUFFIXES):
            name = image.relative_to(self.images).as_posix()
            stem = str(PurePosixPath(name).with_suffix(""))
            if stem in numbers:
                expected = "one image of each name: masks are found by it"
                raise DataError(explain(f"{self.images} has several images {stem}.*", expected, "rename them"))
            numbers[stem] = index.add_image(name, name)
        listed = False
        for file in self._mask_files():
            listed = True
            name = file.relative_to(self._masks).as_posix()
            mask_id = PurePosixPath(name).with_suffix("")
            alone, folder = numbers.get(str(mask_id)), numbers.get(str(mask_id.parent))
            category = None if alone is not None else _NUMBERED.sub("", mask_id.name) or None
            number = folder if alone is None else alone
            words = None
            if number is None:
                above = "" if mask_id.parent == PurePosixPath() else f" or {mask_id.parent}.*"
                came = f"no image {mask_id}.*{above} in {self.images}"
                words = explain(came, "the image of each mask", "name masks after their images")
            index.add(MaskEntry(str(mask_id), number, category, mask_file=name, error=words))
        if not listed:
            raise DataError(explain(f"no mask in {self._masks}", "PNG files", "see docs/filtering.md"))

    def rewrite(self, target: Path, changes: Changes) -> None:
        """Copy the masks that stay to a folder that does not exist yet, beside a link to the images.

        There is no place for further fields in a PNG file: they are left out.

        Raises:
            OutputError: ``target`` exists or can't be written.
        """
        if target.exists():
            raise OutputError(explain(f"{target} exists", "a new folder", "choose another name"))
        draft = target.with_name(f".{target.name}.draft")
        try:
            shutil.rmtree(draft, ignore_errors=True)
            (draft / "masks").mkdir(parents=True)
            (draft / "images").symlink_to(self.images.absolute(), target_is_directory=True)
            for file in self._mask_files():
                name = file.relative_to(self._masks)
                if changes.keeps(name.with_suffix("").as_posix()):
                    copy = draft / "masks" / name
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(file, copy)
            draft.rename(target)
        except OSError as error:
            shutil.rmtree(draft, ignore_errors=True)
            came = f"{target} can't be written ({error.strerror or error})"
            raise OutputError(explain(came, "a place to write to", "name another one")) from error

    @property
    def _masks(self) -> Path:
        return self.path / "masks"

    def _mask_files(self) -> Iterator[Path]:
        return _files(self._masks, frozenset({".png"}))


def read_mask_file(path: Path, *, max_pixels: int = MAX_PIXELS) -> Bool[Tensor, "H W"]:
    """A mask from a picture of two values, of which one is 0, the background.

    Args:
        path: A PNG file: bits, grey, palette or colours alike, black outside. Transparency is looked at where it alone
            can tell: of one colour throughout that is not opaque throughout, what is wholly transparent is outside.
        max_pixels: Height × width above which it is refused.

    Raises:
        ImageReadError: It is missing, truncated or no picture.
        ImageTooLargeError: More pixels than ``max_pixels``.
        DataError: It has more than two values: a soft mask, or a map of labels.
    """
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > max_pixels:
                pixels = picture.width * picture.height / 1e6
                came = f"{path} is {picture.width} x {picture.height} = {pixels:.1f} megapixels"
                mend = "scale picture and mask down; in Python read_mask_file takes a larger max_pixels"
                raise ImageTooLargeError(explain(came, f"at most max_pixels = {max_pixels / 1e6:.1f} megapixels", mend))
            plain = _PLAIN.get(picture.mode)
            if plain == "RGB" and "transparency" in picture.info:
                plain = "RGBA"
            values = np.asarray(picture if plain is None else picture.convert(plain))
            transparent = (plain or picture.mode) in ("LA", "RGBA")
    except ImageReadError:
        raise
    except FileNotFoundError as error:
        raise ImageReadError(explain(f"{path} does not exist", "a PNG mask")) from error
    except Exception as error:  # decoders raise a dozen kinds on damaged files
        raise ImageReadError(explain(f"{path} can't be read: {error}", "a whole PNG file", "copy it again")) from error
    colours = values.reshape(*values.shape[:2], -1)[..., : -1 if transparent else None]
    if transparent and (values[..., -1] != 255).any() and (colours == colours[:1, :1]).all():
        colours = values[..., -1:]
    inside = (colours != 0).any(axis=-1)
    if (colours[inside] != colours[inside][:1]).any():
        mend = "write one mask a file, 0 outside and 255 inside"
        raise DataError(explain(f"{path} has more than two values", "0 and one other", mend))
    return torch.from_numpy(inside)


def _files(root: Path, suffixes: frozenset[str]) -> Iterator[Path]:
    """Files below a folder with these endings, none hidden, in the order of their names; links are followed."""
    found, places = [], dict[Path, Path]()
    for folder, below, names in os.walk(root, followlinks=True):
        here = Path(folder)
        places[here] = here.resolve()
        if any(places.get(above) == places[here] for above in here.parents):  # a link to a folder above
            below.clear()
            continue
        below[:] = [name for name in below if not name.startswith(".")]
        found += [here / name for name in names if not name.startswith(".")]
    yield from sorted(path for path in found if path.suffix.lower() in suffixes and path.is_file())
