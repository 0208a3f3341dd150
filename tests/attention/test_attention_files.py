"""Attention from arrays, files, folders and functions; every bad one refused with one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from arrcoc_sam.attention import ArrayAttention, AttentionMaps, AttentionSource, CallableAttention, RelevanceAttention
from arrcoc_sam.attention.files import read_attention
from arrcoc_sam.errors import InputError, ShapeError, UnknownNameError
from arrcoc_sam.geometry import ImageTransform

IMAGE = np.random.default_rng(1).integers(0, 256, (30, 40, 3), dtype=np.uint8)
VALUES = np.random.default_rng(2).random((2, 3, 4)).astype(np.float32)


def normalised(values: np.ndarray) -> torch.Tensor:
    values = np.atleast_3d(values) if values.ndim > 2 else values[None]
    return torch.from_numpy(values / values.sum((-2, -1), keepdims=True))


def write(folder: Path, suffix: str, values: np.ndarray) -> Path:
    path = folder / f"attention{suffix}"
    if suffix == ".npy":
        np.save(path, values)
    elif suffix == ".npz":
        np.savez(path, attention=values)
    else:
        save_file({"attention": values}, path)
    return path


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
def test_files_come_back_as_they_were_written(tmp_path: Path, suffix: str) -> None:
    source = ArrayAttention(write(tmp_path, suffix, VALUES), names=["first", "second"])
    assert isinstance(source, AttentionSource)
    maps = source(IMAGE)
    assert maps.names == ("first", "second")
    torch.testing.assert_close(maps.values, normalised(VALUES))
    assert maps.transform.original_hw == (30, 40)
    torch.testing.assert_close(maps.valid, torch.ones(3, 4))


@pytest.mark.parametrize(
    ("mode", "dtype", "top"), [("L", np.uint8, 255), ("I;16", np.uint16, 65535), ("1", np.bool_, 1)]
)
def test_grey_pngs(tmp_path: Path, mode: str, dtype: type, top: int) -> None:
    values = (np.arange(12).reshape(3, 4) * top // 11).astype(dtype)
    path = tmp_path / "map.png"
    Image.fromarray(values.astype(np.uint8) * 255 if mode == "1" else values).convert(mode).save(path)
    torch.testing.assert_close(ArrayAttention(path)(IMAGE).values, normalised(values.astype(np.float32)))


def test_one_map_and_maps_by_prompt() -> None:
    assert ArrayAttention(VALUES[0])(IMAGE).values.shape == (1, 3, 4)
    prompted = ArrayAttention(np.stack([VALUES] * 5, axis=1))
    assert prompted(IMAGE).values.shape == (2, 5, 3, 4)
    assert prompted(IMAGE, [[0, 0]] * 5).values.shape == (2, 5, 3, 4)
    with pytest.raises(ShapeError, match="maps for 5 prompts"):
        prompted(IMAGE, [[0, 0]])


def test_integers_and_gradients_are_accepted() -> None:
    assert ArrayAttention(np.arange(12).reshape(3, 4))(IMAGE).values.dtype == torch.float32
    weights = torch.rand(1, 3, 4, requires_grad=True)
    ArrayAttention(weights)(IMAGE).values[0, 0, 0].backward()
    assert weights.grad is not None


def test_a_folder_by_image_stem(tmp_path: Path) -> None:
    photos, arrays = tmp_path / "photos", tmp_path / "arrays"
    photos.mkdir()
    arrays.mkdir()
    for stem, scale in (("cat", 1.0), ("dog", 2.0)):
        Image.fromarray(IMAGE).save(photos / f"{stem}.png")
        np.save(arrays / f"{stem}.npy", VALUES**scale)
    source = ArrayAttention(arrays)
    torch.testing.assert_close(source(photos / "dog.png").values, normalised(VALUES**2))
    torch.testing.assert_close(source(str(photos / "cat.png")).values, normalised(VALUES))
    with pytest.raises(InputError, match="an image path"):
        source(IMAGE)
    Image.fromarray(IMAGE).save(photos / "cow.png")
    with pytest.raises(InputError, match=r"has 0 attention files for the image cow\.png"):
        source(photos / "cow.png")
    write(arrays, ".npz", VALUES).rename(arrays / "cat.npz")
    with pytest.raises(InputError, match="has 2 attention files"):
        source(photos / "cat.png")


def test_images_of_one_name_have_maps_in_folders_of_their_own(tmp_path: Path) -> None:
    for name in ("photos/a/1.png", "photos/b/1.png", "photos/c/1.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.fromarray(IMAGE).save(tmp_path / name)
    for name, power in (("maps/a/1", 1), ("maps/photos/b/1", 2), ("maps/b/1", 3), ("maps/1", 4)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / f"{name}.npy", VALUES**power)
    source = ArrayAttention(tmp_path / "maps")
    for folder, power in (("a", 1), ("b", 2), ("c", 4)):
        torch.testing.assert_close(source(tmp_path / "photos" / folder / "1.png").values, normalised(VALUES**power))
    assert source.file_of(tmp_path / "photos" / "c" / "1.png") == tmp_path / "maps" / "1.npy"
    assert ArrayAttention(VALUES).file_of("any.png") is None


def test_suffixes_of_maps_in_capital_letters_and_no_image_as_its_own_map(tmp_path: Path) -> None:
    Image.fromarray(IMAGE[..., 0]).save(tmp_path / "cat.png")
    source = ArrayAttention(tmp_path)
    with pytest.raises(InputError, match="has 0 attention files"):
        source(tmp_path / "cat.png")
    np.save(tmp_path / "cat.npy", VALUES)
    (tmp_path / "cat.npy").rename(tmp_path / "cat.NPY")
    torch.testing.assert_close(source(tmp_path / "cat.png").values, normalised(VALUES))


def test_a_checkpoint_in_place_of_maps_is_named_in_few_words(tmp_path: Path) -> None:
    save_file({f"blocks.{k}.weight": np.ones((2, 2)) for k in range(177)}, tmp_path / "model.safetensors")
    for key, error in ((None, InputError), ("maps", UnknownNameError)):
        with pytest.raises(error, match="177") as caught:
            ArrayAttention(tmp_path / "model.safetensors", key=key)
        assert len(str(caught.value)) < 400 + len(str(tmp_path))


def test_letterboxed_grids() -> None:
    values = np.ones((1, 4, 4))
    maps = ArrayAttention(values, fit="letterbox")(IMAGE)  # 30 x 40: three of four rows
    torch.testing.assert_close(maps.valid, torch.tensor([[1.0] * 4] * 3 + [[0.0] * 4]))
    assert maps.values[0, 3].sum() == 0
    with pytest.raises(ShapeError, match="a square one"):
        ArrayAttention(VALUES, fit="letterbox")(IMAGE)

    def cropped(image_hw: tuple[int, int], grid_hw: tuple[int, int]) -> ImageTransform:
        assert (image_hw, grid_hw) == ((30, 40), (4, 4))
        return ImageTransform.crop(image_hw, (5, 0, 35, 30))

    assert ArrayAttention(values, fit=cropped)(IMAGE).transform.frame_hw == (30, 30)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (np.array([[[0.0, np.nan]]]), InputError, "'map0' holds NaN"),
        (np.array([[[1.0, 1.0]], [[1.0, -1.0]]]), InputError, "'map1' holds negative"),
        (np.zeros((1, 2, 2)), InputError, "'map0' is zero"),
        (np.array([[[1e300, 1.0]]]), InputError, "infinite"),
        (np.ones(4), ShapeError, "expected non-empty"),
        (np.ones((1, 1, 1, 2, 2)), ShapeError, "expected non-empty"),
        (np.ones((0, 2, 2)), ShapeError, "expected non-empty"),
        (np.array([["a", "b"]]), InputError, "real numbers"),
        (np.ones((2, 2), dtype=complex), InputError, "real numbers"),
    ],
)
def test_bad_arrays_are_refused_before_any_image(
    tmp_path: Path, values: np.ndarray, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ArrayAttention(values)
    path = tmp_path / "bad.npy"
    np.save(path, values)
    with pytest.raises(error, match=r"bad\.npy"):
        ArrayAttention(path)


def test_pickles_are_refused_and_never_run(tmp_path: Path) -> None:
    ran = tmp_path / "ran"

    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (ran,))

    for path, save in ((tmp_path / "a.npy", np.save), (tmp_path / "b.npz", np.savez)):
        save(path, np.array([Bomb()], dtype=object), allow_pickle=True)
        with pytest.raises(InputError, match="pickled objects"):
            ArrayAttention(path)
    assert not ran.exists()


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".png", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"not what it says", b"PK\x03\x04 broken", b"\x89PNG\r\n\x1a\n broken"])
def test_unreadable_files(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"broken{suffix}"):
        read_attention(path)


def test_truncated_files(tmp_path: Path) -> None:
    for suffix in (".npy", ".npz", ".safetensors"):
        path = write(tmp_path, suffix, VALUES)
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(InputError, match="can't be read"):
            read_attention(path)


def test_missing_unknown_and_ambiguous_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no attention file"):
        ArrayAttention(tmp_path / "missing.npy")
    with pytest.raises(InputError, match="a folder or a file in"):
        ArrayAttention(tmp_path / "attention.pt")
    path = tmp_path / "two.npz"
    np.savez(path, a=VALUES, b=VALUES[:1])
    with pytest.raises(InputError, match=r"2 arrays \(a, b\)"):
        ArrayAttention(path)
    with pytest.raises(UnknownNameError, match="no array called 'c'"):
        ArrayAttention(path, key="c")
    assert len(ArrayAttention(path, key="b")(IMAGE)) == 1
    colour = tmp_path / "colour.png"
    Image.fromarray(IMAGE).save(colour)
    with pytest.raises(InputError, match="mode RGB"):
        ArrayAttention(colour)


def test_functions() -> None:
    centre = CallableAttention(lambda image: image[::10, ::10].mean(-1), names=["bright"])
    assert centre(IMAGE).names == ("bright",)
    assert centre(IMAGE, [[1, 1]]).values.shape == (1, 3, 4)

    def at_points(image: np.ndarray, points: torch.Tensor | None) -> torch.Tensor:
        assert points is not None
        return points.sum(1).reshape(1, -1, 1, 1).expand(1, -1, 2, 2) + 1

    assert CallableAttention(at_points, takes_points=True)(IMAGE, [[1, 2], [3, 4]]).values.shape == (1, 2, 2, 2)

    finished = CallableAttention(RelevanceAttention(grid=4))
    assert isinstance(finished(IMAGE), AttentionMaps)
    assert len(finished(IMAGE)) == 3


@pytest.mark.usefixtures("as_at_run_time")
def test_an_unknown_fit_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="fit is 'fill'"):
        ArrayAttention(VALUES, fit="fill")  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="fit is 'fill'"):
        CallableAttention(lambda image: VALUES, fit="fill")  # type: ignore[arg-type]


@pytest.mark.usefixtures("as_at_run_time")
def test_bad_functions_are_named() -> None:
    def negative(image: np.ndarray) -> np.ndarray:
        return -np.ones((2, 2))

    with pytest.raises(InputError, match="what negative returned"):
        CallableAttention(negative)(IMAGE)
    with pytest.raises(InputError, match="an array, a tensor or AttentionMaps"):
        CallableAttention(lambda image: None)(IMAGE)  # type: ignore[arg-type, return-value]
    for ragged in ([[1.0], [3, 4]], [np.ones((2, 2)), np.ones((2, 3))]):
        with pytest.raises(ShapeError, match="a list of 2; expected rows of one length"):
            CallableAttention(lambda image, answer=ragged: answer)(IMAGE)  # type: ignore[misc]
        with pytest.raises(ShapeError, match="a list of 2; expected rows of one length"):
            ArrayAttention(ragged)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"fn is None; expected a function .*ArrayAttention"):
        CallableAttention(None)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="there were no points"):
        CallableAttention(lambda image: np.ones((1, 2, 2, 2)))(IMAGE)
