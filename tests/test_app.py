"""The page: what it answers, and that it opens. How it looks was looked at in a browser."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch

from arrcoc_sam.app import Desk, build_page, painted
from arrcoc_sam.errors import InputError, MissingExtraError, ShapeError, UnknownNameError
from arrcoc_sam.scenes import generate_scene
from arrcoc_sam.segmenters import load_segmenter
from arrcoc_sam.segmenters.sam import SamSegmenter
from arrcoc_sam.segmenters.tiny import build_tiny

SCENE = generate_scene(5_000_000, 96)


@pytest.fixture(scope="module")
def desk() -> Desk:
    return Desk(load_segmenter("tiny", device="cpu"), random_weights=True)


@pytest.fixture
def port() -> int:
    """A port that is free."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_a_click_gives_levels_and_attention_over_them(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    figure, table = desk.levels(SCENE.image, (40, 50), "relevance")
    assert table["level"].tolist() == ["whole", "part", "subpart"]
    assert table["predicted IoU"].between(0, 1).all()
    assert table["share of the image"].is_monotonic_decreasing
    assert len(figure.axes) > 5
    monkeypatch.setattr(desk.segmenter, "encode", lambda _: pytest.fail("encoded again"))
    again, _ = desk.levels(SCENE.image, (20, 20), "timm:test_vit")  # another click, another attention, the same picture
    assert again is not figure


@pytest.mark.usefixtures("as_at_run_time")
def test_a_grey_picture_is_as_large_as_in_colour(desk: Desk) -> None:
    grey = SCENE.image[..., 0]
    _, expected = desk.levels(np.repeat(grey[..., None], 3, axis=2), (40, 50), "relevance")
    for image in (grey, grey[..., None]):
        pd.testing.assert_frame_equal(desk.levels(image, (40, 50), "relevance")[1], expected)


def test_visitors_come_at_once(desk: Desk) -> None:
    clicks = [(x, y) for x in (20, 40, 60) for y in (20, 50)]
    alone = [desk.levels(SCENE.image, click, "timm:test_vit")[1] for click in clicks]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda click: desk.levels(SCENE.image, click, "timm:test_vit")[1], clicks))
    for one, other in zip(alone, together, strict=True):
        pd.testing.assert_frame_equal(one, other)


def test_pictures_are_forgotten_after_a_while(desk: Desk) -> None:
    for value in range(6):
        desk.levels(np.full((40, 40, 3), value, np.uint8), (3, 3), "relevance")
    assert len(desk._embeddings) == 4


def test_a_mask_is_scored_beside_the_closest_answer(desk: Desk) -> None:
    mask = SCENE.masks[0]
    figure, table = desk.score(SCENE.image, mask)
    values = table.set_index("score")["value"]
    expected = desk.estimator.estimate(SCENE.image, mask[None])
    assert values["quality"] == f"{float(expected.quality[0]):.3f}"
    assert values["kind"] == "calibrated"
    assert " to " in values["its interval"]
    assert len(figure.axes) == 2


def test_other_weights_are_not_calibrated_by_the_embedded_calibration() -> None:
    torch.manual_seed(0)
    other = Desk(SamSegmenter(build_tiny(64), name="untrained"))
    _, table = other.score(SCENE.image, SCENE.masks[0])
    values = table.set_index("score")["value"]
    assert values["kind"] == "bound"
    assert "its interval" not in values


@pytest.mark.usefixtures("as_at_run_time")
def test_bad_input(desk: Desk) -> None:
    with pytest.raises(InputError, match="96"):
        desk.levels(SCENE.image, (200, 5), "relevance")
    for name in ("nonsense", "", "/etc/passwd", "maps.npy"):  # a page opens no files of its machine
        with pytest.raises(UnknownNameError, match="no attention is called"):
            desk.levels(SCENE.image, (20, 20), name)
    closed = Desk(desk.segmenter, only_these=True)
    with pytest.raises(UnknownNameError, match="expected relevance"):
        closed.levels(SCENE.image, (20, 20), "timm:test_vit")
    with pytest.raises(InputError, match="no attention source"):
        Desk(desk.segmenter, attention=[])
    with pytest.raises(ShapeError, match="expected 96 rows, 96 columns"):
        desk.score(SCENE.image, np.ones((5, 96), bool))
    with pytest.raises(InputError, match="an empty mask"):
        desk.score(SCENE.image, np.zeros((96, 96), bool))
    for nothing in (None, {"background": None, "layers": []}):
        with pytest.raises(InputError, match="no picture"):
            painted(nothing)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (lambda desk: desk.levels(SCENE.image, None, "relevance"), "point_xy is .*; expected"),
        (lambda desk: desk.levels(SCENE.image, (), "relevance"), "point_xy is .*; expected"),
        (lambda desk: desk.levels(SCENE.image, (3,), "relevance"), "point_xy is .*; expected"),
        (lambda desk: desk.levels(SCENE.image, ("a", "b"), "relevance"), "point_xy is a tuple of 2; expected numbers"),
        (lambda desk: desk.levels(SCENE.image, (3, 4, 5), "relevance"), "point_xy is .*; expected"),
        (lambda desk: desk.levels(SCENE.image, [(3, 4)], "relevance"), "point_xy is .*; expected one point"),
        (lambda desk: desk.levels(SCENE.image, (3, 4), None), "attention is None; expected the name of a source"),
        (lambda desk: desk.levels(None, (3, 4), "relevance"), "image is None; expected"),
        (lambda desk: desk.score(None, SCENE.masks[0]), "image is None; expected"),
        (lambda desk: desk.score(SCENE.image, None), "mask is None; expected bool masks"),
        (lambda desk: desk.score(SCENE.image, [[True]]), "mask is a list of 1; expected bool masks"),
        (lambda desk: desk.score(SCENE.image, SCENE.masks), "the mask is .*; expected 96 rows, 96 columns"),
        (lambda desk: Desk(desk.segmenter, attention="relevance"), r"'relevance'; .* Mend: \['relevance'\]"),
    ],
)
@pytest.mark.usefixtures("as_at_run_time")
def test_other_things_in_their_place(desk: Desk, asked: Callable[[Desk], object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        asked(desk)


def test_what_is_painted() -> None:
    layers = np.zeros((2, 4, 5, 4), np.uint8)
    layers[0, 1, 2, 3], layers[1, 3, 4, 3] = 255, 20
    image, mask = painted({"background": np.full((4, 5, 4), 255, np.uint8), "layers": list(layers)})
    assert image.shape == (4, 5, 3)
    assert np.argwhere(mask).tolist() == [[1, 2], [3, 4]]


def asked(port: int, event: str, data: list[object]) -> str:
    """What the page's server answers to an event, as its own script would ask."""
    address = f"http://127.0.0.1:{port}/gradio_api/call/{event}"
    given = json.dumps({"data": data}).encode()
    request = urllib.request.Request(address, given, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        number = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{address}/{number}", timeout=20) as answer:
        return str(answer.read().decode())


def test_the_page_opens(port: int) -> None:
    words = [sys.executable, "-m", "arrcoc_sam.cli.main", "app", "--no-open", "--port", str(port), "-a", "relevance"]
    with subprocess.Popen(
        [*words, "-a", "timm:test_vit"],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    ) as page:
        assert page.stdout is not None
        try:
            assert page.stdout.readline() == f"The page: http://127.0.0.1:{port}/\n"
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/config", timeout=20) as answer:
                config = json.load(answer)
            told = asked(port, "scored", [None, None])
            second = subprocess.run(words, capture_output=True, text=True, check=False)
        finally:
            page.send_signal(signal.SIGINT)
            try:
                page.wait(20)
            finally:
                page.kill()
    assert page.returncode in (0, 130)
    assert config["title"] == "arrcoc_sam"
    assert config["analytics_enabled"] is False
    shown = [part["props"].get("value") for part in config["components"] if part["type"] == "markdown"]
    assert any("demonstration model" in value.lower() for value in shown)
    [source] = [part["props"] for part in config["components"] if part["type"] == "dropdown"]
    assert [name for _, name in source["choices"]] == ["relevance", "timm:test_vit"]
    assert "no picture; expected one to paint on" in told
    assert second.returncode == 2
    assert f"a page at port {port} of 127.0.0.1" in second.stderr


def test_without_gradio(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(MissingExtraError, match=r"arrcoc-sam\[app\]"):
        build_page(desk)
