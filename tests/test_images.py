from __future__ import annotations

import io
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from arrcoc_sam.errors import ImageReadError, ImageTooLargeError, InputError, ShapeError
from arrcoc_sam.images import is_turned, load_image

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def png_header_only(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


# --- what is accepted -------------------------------------------------------------------------------------------------


def test_path_string_pil_and_array_are_the_same(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(RGB).save(path)
    for image in (path, str(path), Image.fromarray(RGB), RGB):
        loaded = load_image(image)
        np.testing.assert_array_equal(loaded, RGB)
        assert loaded.dtype == np.uint8
        torch.from_numpy(loaded)  # writable and contiguous: no warning


def test_an_rgb_array_is_not_copied():
    assert load_image(RGB) is RGB or np.shares_memory(load_image(RGB), RGB)


def test_arrays_with_other_channels():
    grey = RGB[:, :, 0]
    expected = np.stack((grey, grey, grey), axis=-1)
    np.testing.assert_array_equal(load_image(grey), expected)
    np.testing.assert_array_equal(load_image(grey[..., None]), expected)
    np.testing.assert_array_equal(load_image(np.dstack((RGB, grey))), RGB)
    flipped = load_image(RGB[::-1, ::2])
    np.testing.assert_array_equal(flipped, RGB[::-1, ::2])
    assert flipped.flags["C_CONTIGUOUS"]


def test_one_pixel_is_an_image():
    assert load_image(np.zeros((1, 1, 3), dtype=np.uint8)).shape == (1, 1, 3)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "La", "P", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"])
def test_every_mode_becomes_rgb_as_pillow_has_it(mode):
    image = Image.fromarray(RGB)
    if mode in ("La", "RGBa"):
        image = image.convert(mode.upper()).convert(mode)
        expected = np.asarray(image.convert(mode.upper()).convert("RGB"))
    elif mode == "LAB":
        image = Image.frombytes("LAB", (7, 5), RGB.tobytes())
        expected = None
    else:
        image = image.convert(mode)
        expected = np.asarray(image.convert("RGB"))
    loaded = load_image(image)
    assert loaded.shape == (5, 7, 3)
    if expected is not None:
        np.testing.assert_array_equal(loaded, expected)


def test_a_palette_with_transparency(tmp_path):
    image = Image.fromarray(RGB).quantize(8)
    image.info["transparency"] = bytes([0, 128, 255])
    path = tmp_path / "a.png"
    image.save(path)
    np.testing.assert_array_equal(load_image(path), np.asarray(image.convert("RGBA"))[..., :3])


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path, suffix):
    values = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
    path = tmp_path / f"a{suffix}"
    Image.fromarray(values).save(path)
    np.testing.assert_array_equal(load_image(path)[0, :, 1], [0, 0, 1, 1, 128, 255])


def test_thirty_two_bit_grey_within_sixteen_bits_and_beyond():
    values = np.array([[0, 257, 65535]], dtype=np.int32)
    np.testing.assert_array_equal(load_image(Image.fromarray(values))[0, :, 0], [0, 1, 255])
    with pytest.raises(ImageReadError, match="beyond 16 bits"):
        load_image(Image.fromarray(values * 2))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    # the eight stored forms of one upright picture, by the definition of the tag: where row 0 and column 0 really are
    stored = {
        1: RGB,
        2: RGB[:, ::-1],
        3: RGB[::-1, ::-1],
        4: RGB[::-1],
        5: RGB.transpose(1, 0, 2),
        6: RGB.transpose(1, 0, 2)[::-1],
        7: RGB.transpose(1, 0, 2)[::-1, ::-1],
        8: RGB.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.png"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif)
    np.testing.assert_array_equal(load_image(path), RGB)
    with Image.open(path) as image:
        np.testing.assert_array_equal(load_image(image), RGB)


def test_damaged_metadata_does_not_cost_the_picture(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(RGB).save(path, exif=b"Exif\x00\x00II*\x00garbage")
    np.testing.assert_array_equal(load_image(path), RGB)


def test_the_first_frame_of_an_animation(tmp_path):
    path = tmp_path / "a.gif"
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("#ff0000", "#00ff00")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert load_image(path)[0, 0].tolist() == [255, 0, 0]


# --- size -------------------------------------------------------------------------------------------------------------


def test_too_large_is_told_from_the_header(tmp_path, recwarn):
    path = tmp_path / "huge.png"
    path.write_bytes(png_header_only(50_000, 40_000))  # Pillow itself would raise its bomb error here
    with pytest.raises(ImageTooLargeError, match=r"50000 x 40000 = 2000\.0 megapixels.*at most max_pixels = 100\.0"):
        load_image(path)
    path.write_bytes(png_header_only(12_000, 9_000))
    with pytest.raises(ImageTooLargeError, match=r"108\.0 megapixels"):
        load_image(path)
    with pytest.raises(ImageReadError, match="can't be decoded"):  # allowed by size, and read: there is nothing in it
        load_image(path, max_pixels=108_000_000)
    assert Image.MAX_IMAGE_PIXELS is not None
    assert not recwarn.list


def test_max_pixels_counts_pixels_exactly():
    assert load_image(RGB, max_pixels=35) is not None
    with pytest.raises(ImageTooLargeError):
        load_image(RGB, max_pixels=34)
    with pytest.raises(ImageTooLargeError):
        load_image(Image.fromarray(RGB), max_pixels=34)


def test_a_large_image_that_is_allowed_raises_no_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # Pillow would refuse more than 20
    path = tmp_path / "a.png"
    Image.fromarray(RGB).save(path)
    np.testing.assert_array_equal(load_image(path), RGB)
    assert Image.MAX_IMAGE_PIXELS == 10


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["missing.png", "folder", "empty.jpg", "text.png", "cut.png", "cut.jpg", "header.png"])
def test_unreadable_files_are_named_with_the_reason(tmp_path, name):
    buffer = io.BytesIO()
    big = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    big.save(buffer, "jpeg" if name.endswith("jpg") else "png")
    whole = buffer.getvalue()
    contents = {"empty.jpg": b"", "text.png": b"not an image", "header.png": whole[:20]}
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
    elif name != "missing.png":
        path.write_bytes(contents.get(name, whole[: len(whole) // 2]))
    reason = {
        "missing.png": "does not exist",
        "folder": "is a folder",
        "empty.jpg": r"empty \(0 bytes\)",
        "text.png": "is no image",
        "cut.png": "can't be decoded",
        "cut.jpg": "can't be decoded",
        "header.png": "header.png",
    }[name]
    with pytest.raises(ImageReadError, match=reason) as caught:
        load_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(RGB).save(path)
    path.chmod(0)
    with pytest.raises(ImageReadError, match="can't be read"):
        load_image(path)


@pytest.mark.parametrize(
    ("image", "kind", "words"),
    [
        (RGB / 255, InputError, "(image * 255).round().astype(np.uint8)"),
        (RGB.astype(np.uint16), InputError, "(image // 257)"),
        (RGB[None], ShapeError, "list of images"),
        (RGB.transpose(2, 0, 1), ShapeError, "image.transpose(1, 2, 0)"),
        (RGB[:, :, :2], ShapeError, "(5, 7, 2)"),
        (RGB[:0], ShapeError, "(0, 7, 3)"),
        (RGB[0, 0], ShapeError, "(3,)"),
        (torch.from_numpy(RGB), InputError, "Mend: image.cpu().numpy()"),
        (torch.from_numpy(RGB).permute(2, 0, 1), InputError, "image.permute(1, 2, 0).cpu().numpy()"),
        (RGB.astype(np.int64), InputError, "image.astype(np.uint8)"),
        (None, InputError, "None"),
        (7, InputError, "a path, a PIL image or"),
        (Image.fromarray(np.zeros((2, 2), dtype=np.float32)), ImageReadError, "holds floats"),
    ],
)
def test_errors_say_what_came(image, kind, words, as_at_run_time):
    with pytest.raises(kind) as caught:
        load_image(image)
    assert words in str(caught.value)


@pytest.mark.parametrize("max_pixels", [0, -1, 1.5, True])
def test_max_pixels_is_a_number_of_pixels(max_pixels, as_at_run_time):
    with pytest.raises(InputError, match="max_pixels"):
        load_image(RGB, max_pixels=max_pixels)


# --- headers ----------------------------------------------------------------------------------------------------------


def test_which_files_are_turned_and_show_it_by_their_size(tmp_path):
    for orientation in range(10):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.new("RGB", (6, 4)).save(tmp_path / f"{orientation}.jpg", exif=exif)
        Image.new("RGB", (5, 5)).save(tmp_path / f"square{orientation}.jpg", exif=exif)
    turned = [k for k in range(10) if is_turned(tmp_path / f"{k}.jpg")]
    in_place = [k for k in range(10) if is_turned(tmp_path / f"{k}.jpg", in_place=True)]
    squares = [k for k in range(10) if is_turned(tmp_path / f"square{k}.jpg", in_place=True)]
    assert (turned, in_place, squares) == ([2, 3, 4, 5, 6, 7, 8], [2, 3, 4], [2, 3, 4, 5, 6, 7, 8])
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    assert not is_turned(tmp_path / "broken.jpg")
