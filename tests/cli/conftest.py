"""A way to run the command in this process, and small inputs for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from arrcoc_sam.cli.main import run
from arrcoc_sam.segmenters.tiny import build_tiny


@dataclass(frozen=True)
class Answer:
    """What a command answered."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The error message, which has to be the only line of stderr but for notes."""
        lines = [line for line in self.err.splitlines() if not line.startswith("note:")]
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: ")
        return lines[0]


@pytest.fixture
def command(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Answer]:
    """Runs ``arrcoc-sam`` with the words given, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def call(*words: object) -> Answer:
        capfd.readouterr()
        code = run([str(word) for word in words])
        captured = capfd.readouterr()
        return Answer(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the embedded model: what the commands do does not depend on how good its masks are."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file({name: value.contiguous() for name, value in build_tiny().state_dict().items()}, path)
    return path


def write_photo(path: Path, *, height: int = 40, width: int = 60, seed: int = 0) -> Path:
    """A small picture of smooth colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (4, 6, 3), dtype=np.uint8))
    coarse.resize((width, height), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """One photograph, 60 × 40."""
    return write_photo(tmp_path / "photo.png")


@pytest.fixture
def make_photo() -> Callable[..., Path]:
    """Writes a photograph."""
    return write_photo


@pytest.fixture
def array_file(tmp_path: Path) -> Path:
    """Two attention maps on a 4 × 6 grid."""
    path = tmp_path / "attention.npy"
    np.save(path, np.random.default_rng(0).random((2, 4, 6), dtype=np.float32))
    return path


@pytest.fixture
def truth(make_photo: Callable[..., Path], tmp_path: Path) -> Path:
    """Eight photographs with an object, a part of it and a neighbour each."""
    images, annotations = [], []
    for number in range(8):
        make_photo(tmp_path / "data" / f"{number}.png", seed=number)
        images.append({"id": number, "file_name": f"{number}.png", "width": 60, "height": 40})
        for x0, y0, x1, y1 in ((4, 4, 30, 34), (8, 8, 18, 18 + number), (36, 10, 56, 30)):
            ring = [x0, y0, x1, y0, x1, y1, x0, y1]
            annotations.append(
                {"id": len(annotations), "image_id": number, "category_id": 1, "segmentation": [ring], "iscrowd": 0}
            )
    path = tmp_path / "data" / "truth.json"
    record = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    path.write_text(json.dumps(record))
    return path
