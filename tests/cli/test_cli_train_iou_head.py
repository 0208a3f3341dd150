"""``arrcoc-sam train iou-head``: what it writes, says and refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arrcoc_sam.scenes import generate_scene


def test_the_command(command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = [generate_scene(seed, size=64) for seed in range(4)]
    monkeypatch.setattr("arrcoc_sam.training.segmenter_config.draw_bank", lambda *_, **__: scenes)
    (tmp_path / "run.toml").write_text("[split]\nheld_out = 0.5\nmasks_per_image = 3\n[transfer]\nepochs = 2\n")
    answer = command("train", "iou-head", "--config", "run.toml", "--out", "run", "--json", "--device", "cpu")
    assert answer.code == 0, answer.err
    record = json.loads(answer.out)
    assert record["held_out"]["images"] == 2
    assert record["initial"] != record["checkpoint_hash"]
    assert Path(record["weights"]).is_file()
    assert len(record["held_out"]["after"]["pearson"]["interval"]) == 2
    answer = command("train", "iou-head", "--config", "run.toml", "--out", "run", "--device", "cpu")
    assert "pearson" in answer.out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[data]\n[external]\n", "one of them"),
        ('[external]\npath = "a.json"\n', "has no 'truth'"),
        ("[transfer]\nepochs = 0\n", "epochs=0"),
        ('[transfer]\npart = "all"\n', "'token+head'"),
        ("[split]\nheld_out = 1.0\n", "held_out=1.0"),
        ("[data]\nscenes = 1\n", "run.toml [split]: held_out=0.3 of 1 images"),
        ("[head]\n", "has the key 'head'"),
    ],
)
def test_bad_files_of_settings(command: Callable[..., Any], tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "run.toml").write_text(text)
    answer = command("train", "iou-head", "--config", "run.toml", "--out", "run")
    assert answer.code == 2
    assert message in answer.error
    assert not Path("run").exists()
