"""Bad input: one clear line on stderr, exit 2, nothing written."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import arrcoc_sam.segmenters.checkpoints as checkpoints_module

Command = Callable[..., Any]
pytestmark = pytest.mark.usefixtures("as_at_run_time")


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.fixture
def refused(command: Command, tmp_path: Path) -> Callable[..., str]:
    """Runs a command that has to be refused, and gives its error message."""

    def call(*words: object) -> str:
        before = files(tmp_path)
        answer = command(*words)
        assert answer.code == 2
        assert answer.out == ""
        assert files(tmp_path) == before
        assert "Traceback" not in answer.err
        message: str = answer.error
        return message

    return call


def png_header(path: Path, width: int, height: int) -> Path:
    """A PNG of this size by its header, without any pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    path.write_bytes(data)
    return path


@pytest.fixture(params=["analyze", "segment"])
def on_image(request: pytest.FixtureRequest) -> Callable[[Path], list[object]]:
    """The words of a command about one image."""

    def words(image: Path) -> list[object]:
        if request.param == "analyze":
            return ["analyze", image, "--out", "results"]
        return ["segment", image, "--point", "5,5", "--out", "results"]

    return words


def test_a_missing_file(refused: Any, on_image: Any, tmp_path: Path) -> None:
    assert f"{tmp_path / 'no.png'} does not exist" in refused(*on_image(tmp_path / "no.png"))


def test_not_an_image(refused: Any, on_image: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("not a picture")
    assert f"{tmp_path / 'notes.png'} is no image" in refused(*on_image(tmp_path / "notes.png"))


def test_an_empty_folder(refused: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no image in the folder empty" in refused("analyze", "empty", "--out", "results")


@pytest.mark.parametrize("point", ["60,10", "-1,3", "5,40.1"])
def test_a_point_outside_the_image(refused: Any, photo: Path, point: str) -> None:
    for words in (
        ["analyze", photo, f"--points={point}", "--out", "results"],
        ["segment", photo, f"--point={point}", "--out", "results"],
    ):
        assert "lies outside the image; expected 0 <= x <= 59 and 0 <= y <= 39" in refused(*words)


def test_an_image_of_one_pixel(refused: Any, make_photo: Any, weights: Path, tmp_path: Path) -> None:
    image = make_photo(tmp_path / "dot.png", height=1, width=1)
    for words in (["analyze", image], ["segment", image, "--point", "0,0"]):
        message = refused(*words, "--checkpoint", weights, "--out", "results")
        assert str(image) in message
        assert "width 1 and height 1" in message


def test_an_image_of_108_megapixels(refused: Any, on_image: Any, tmp_path: Path) -> None:
    image = png_header(tmp_path / "huge.png", 12_000, 9_000)
    message = refused(*on_image(image))
    assert "huge.png is 12000 x 9000 = 108.0 megapixels; expected at most" in message


@pytest.mark.parametrize("kept", [0, 1000])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_an_empty_and_a_truncated_checkpoint(
    refused: Any, on_image: Any, photo: Path, weights: Path, tmp_path: Path, kept: int, suffix: str
) -> None:
    broken = tmp_path / f"broken{suffix}"
    broken.write_bytes(weights.read_bytes()[:kept])
    message = refused(*on_image(photo), "--checkpoint", broken)
    assert str(broken) in message
    # whether the first bytes look like a pickle, torch decides by chance of what they are
    assert any(words in message for words in (["is empty (0 bytes)"] if kept == 0 else ["is damaged", "can't be read"]))


def test_a_wrong_sha_256(refused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(b"x" * 100)
    expected = "0" * 64
    known = checkpoints_module.Checkpoint("sam_vit_b", "https://example.org/w.pth", 100, expected, "MIT")
    monkeypatch.setattr(checkpoints_module, "CHECKPOINTS", {"sam_vit_b": known})
    message = refused("checkpoints", "verify", "sam_vit_b", "--path", path)
    assert f"{path} has SHA-256" in message
    assert expected in message


def test_an_unknown_segmenter(refused: Any, on_image: Any, photo: Path) -> None:
    message = refused(*on_image(photo), "--segmenter", "sam_vit_q")
    assert "no segmenter is called 'sam_vit_q'; expected one of tiny, sam_vit_b" in message


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.array([[1.0, np.nan], [1.0, 1.0]]), "NaN"),
        (np.array([[1.0, -1.0], [1.0, 1.0]]), "negative"),
        (np.zeros((2, 2)), "zero"),
        (np.ones(7), "(7,)"),
        (np.ones((1, 1, 1, 2, 2)), "(1, 1, 1, 2, 2)"),
    ],
)
def test_arrays_that_are_no_attention(
    refused: Any, photo: Path, tmp_path: Path, values: np.ndarray, words: str
) -> None:
    path = tmp_path / "attention.npy"
    np.save(path, values)
    message = refused("analyze", photo, "--attention", path, "--out", "results")
    assert str(path) in message
    assert words in message


def test_attention_that_is_not_there(refused: Any, photo: Path, tmp_path: Path) -> None:
    assert "no attention file missing.npy" in refused("analyze", photo, "-a", "missing.npy", "-o", "results")
    assert "no attention source 'relevence'" in refused("analyze", photo, "-a", "relevence", "-o", "results")
    (tmp_path / "maps").mkdir()
    assert "0 attention files for the image photo.png" in refused("analyze", photo, "-a", "maps", "-o", "results")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--points", "12"], "the point '12'; expected x,y in pixels"),
        (["--points", "nan,3"], "the point 'nan,3'"),
        (["--points", "1,2", "--grid", "3"], "both --points and --grid"),
        (["--grid", "0"], "--grid 0; expected 1 to 32"),
        (["--metrics", "pearson,sharpness"], "no metric is called 'sharpness'"),
        (["--layers", "1"], "--layers with --attention relevance"),
        (["--key", "a"], "--key with --attention relevance"),
        (["--attention", "timm:vit_tiny_patch16_224", "--layers", "one"], "--layers 'one'"),
        (["--reference", "photo.png"], "0 images for --reference besides photo.png itself; expected at least 19"),
        (["--format", "gif"], "gif"),
        (["--unknown"], "No such option"),
    ],
)
def test_options_that_make_no_sense(refused: Any, photo: Path, words: list[str], expected: str) -> None:
    assert expected in refused("analyze", photo.name, "--out", "results", *words)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "neither --point nor --box"),
        (["--point", "5,5,2"], "x,y,1 (foreground) or x,y,0 (background)"),
        (["--box", "9,9,3,3"], "the box '9,9,3,3'"),
        (["--box", "0,0,60,10"], "the box (0, 0, 60, 10) reaches outside the image"),
        (["--point", "5,5", "--format", "png"], "a folder"),
        (["--point", "5,5", "--device", "abacus"], "device='abacus'"),
    ],
)
def test_prompts_that_make_no_sense(refused: Any, photo: Path, weights: Path, words: list[str], expected: str) -> None:
    assert expected in refused("segment", photo, "--checkpoint", weights, *words)


def test_results_that_can_t_be_written(refused: Any, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for target in ("file", "file/deep"):
        assert "file is a file; expected a folder" in refused("analyze", photo, "--out", target)


@pytest.mark.parametrize("what", ["segmenter", "attention", "iou-head"])
def test_runs_that_can_t_be_written(refused: Any, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("scenes.bank", "training.samples_scenes"):
        monkeypatch.setattr(f"arrcoc_sam.{module}.generate_scene", lambda *_, **__: pytest.fail("a scene was drawn"))
    (tmp_path / "file").touch()
    small = '[data]\nlevels = "truth"\n[attention]\nlevels = [4, 8, 16]\nimage_size = 32\nwidth = 8\n'
    (tmp_path / "run.toml").write_text(small)
    settings = ["--config", "run.toml"] if what == "attention" else []
    for target in ("file", "file/deep"):
        message = refused("train", what, *settings, "--device", "cpu", "--out", target)
        assert re.search(r"file/.* can't be made \(Not a directory\); expected a folder to write to", message)


def test_words_that_are_no_command(refused: Any) -> None:
    assert "No such command 'analyse'" in refused("analyse")
    assert "'analyze'? See: arrcoc-sam --help" in refused("anlyze")
    assert "Missing" in refused("analyze")
    assert "no checkpoint is called 'other'" in refused("checkpoints", "fetch", "other")
    assert refused("checkpoints", "fetch", "vit_b").endswith("Mend: 'sam_vit_b', if that is meant.")
