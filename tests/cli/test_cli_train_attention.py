"""``arrcoc-sam train attention``: on a few scenes, resumed, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arrcoc_sam.training.attention_config import AttentionConfig, default_config
from arrcoc_sam.training.attention_trainer import load_attention_model

Command = Callable[..., Any]

CONFIG = """
[data]
scenes = 6
validation = 8
size = 64
clicks = 2
levels = "truth"
[attention]
levels = [4, 8, 16]
image_size = 32
width = 8
target_size = 32
steps = {steps}
num_images = 2
num_queries = 1
warmup_steps = 1
"""


def test_it_trains_and_says_what_the_heads_attend_to(command: Command, tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(CONFIG.format(steps=2))
    answer = command("train", "attention", "--config", "small.toml", "-o", "run", "--json")
    assert answer.code == 0, answer.err
    record = json.loads(answer.out)
    assert set(record["claimed"]) <= {"whole", "part", "subpart", "abstain"}
    assert "contrast_part" in record["evaluation"]
    assert load_attention_model(record["weights"]).grids == (4, 8, 16)
    again = command("train", "attention", "--config", "small.toml", "-o", "run")
    assert again.code == 0, again.err  # nothing left to do
    assert "Shell contrast beyond other images" in again.out
    assert "Nothing is claimed of whole, part, subpart: fewer than 30 images." in again.out
    assert "report.json and log.csv" in again.out
    (tmp_path / "small.toml").write_text(CONFIG.format(steps=3))
    other = command("train", "attention", "--config", "small.toml", "-o", "run")
    assert other.code == 2
    assert "settings.steps was 2, and is 3" in other.error


def test_the_default_file_says_what_the_code_defaults_to(command: Command) -> None:
    answer = command("train", "attention", "--print-config")
    assert answer.out == default_config()
    assert AttentionConfig.read(None).data == AttentionConfig().data


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[data", "can't be read as TOML"),
        ("[model]\n", "section [model]"),
        ("[attention]\nstep = 3\n", "'step'"),
        ('[attention]\nsteps = "many"\n', "steps = 'many'"),
        ("[attention]\nlevels = [4, 8]\n", "2 heads"),
        ('[attention]\nsupervision = "all"\n', "supervision = 'all'"),
        ('[attention]\nbackbone = "no_such_net"\n', "timm has no model"),
        ("[attention]\nlevels = [16, 12, 8]\n", "grids from coarse to fine"),
        ("[attention]\nnum_images = 5\naccumulation = 2\n", "a multiple of 2"),
        ("[data]\nvalidation = 3\n", "at least 4, or 0"),
        ('[data]\nkind = "cache"\n', "a folder for kind 'cache' only"),
        ('[data]\nkind = "cache"\ncache = "nowhere"\n', "no cache.json"),
    ],
)
@pytest.mark.usefixtures("as_at_run_time")
def test_bad_files(command: Command, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.toml").write_text(text)
    answer = command("train", "attention", "--config", "bad.toml", "-o", "run")
    assert answer.code == 2
    assert message in answer.error
    assert not (tmp_path / "run").exists()
