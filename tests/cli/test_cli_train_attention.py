"""``arrcoc-sam train attention``: on a few scenes, resumed, and what it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arrcoc_sam.cli.train_attention_job import TrainAttentionJob
from arrcoc_sam.training.attention.config import AttentionConfig, AttentionData, default_config
from arrcoc_sam.training.attention.trainer import load_attention_model
from arrcoc_sam.training.cache.dataset import HierarchyDataset
from arrcoc_sam.training.distributed import SingleDevice
from arrcoc_sam.training.samples_scenes import prepare_scenes

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


def test_it_trains_and_says_what_the_heads_attend_to(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "small.toml").write_text(CONFIG.format(steps=2))
    answer = command("train", "attention", "--config", "small.toml", "-o", "run", "--json")
    assert answer.code == 0, answer.err
    record = json.loads(answer.out)
    assert set(record["claimed"]) <= {"whole", "part", "subpart", "abstain"}
    assert "contrast_part" in record["evaluation"]
    assert load_attention_model(record["weights"]).grids == (4, 8, 16)
    monkeypatch.setattr(
        "arrcoc_sam.training.samples_scenes.generate_scene", lambda *_, **__: pytest.fail("a scene is drawn again")
    )
    again = command("train", "attention", "--config", "small.toml", "-o", "run")
    assert again.code == 0, again.err  # nothing left to do
    assert "Shell contrast beyond other images" in again.out
    assert "Nothing is claimed of whole, part, subpart: fewer than 30 images." in again.out
    assert "report.json and log.csv" in again.out
    assert again.out.splitlines()[-1] == "Load it with arrcoc_sam.training.load_attention_model('run')"
    assert load_attention_model("run").grids == (4, 8, 16)
    (tmp_path / "small.toml").write_text(CONFIG.format(steps=3))
    other = command("train", "attention", "--config", "small.toml", "-o", "run")
    assert other.code == 2
    assert "settings.steps was 2, and is 3" in other.error


def test_another_process_opens_what_the_main_one_drew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("scenes", "validation"):
        prepare_scenes(tmp_path / name, range(3), size=32, clicks=1)
    second = SingleDevice("cpu")
    second.rank = 1
    monkeypatch.setattr(TrainAttentionJob, "_scenes", lambda *_: pytest.fail("scenes are drawn once more"))
    job = TrainAttentionJob(None, tmp_path, None, None, "cpu", 0, 0, 1, False, False, False)
    config = AttentionConfig(data=AttentionData(levels="truth"))
    train, judge = job._caches(config, second, lambda *_: None)
    assert (train.folder, judge.folder) == (tmp_path / "scenes" / "truth", tmp_path / "validation" / "truth")
    (tmp_path / "validation").rename(tmp_path / "gone")
    config = AttentionConfig(data=AttentionData(levels="truth", validation=0))
    assert job._caches(config, second, lambda *_: None)[1] is None


def test_pictures_that_were_moved_are_named_in_the_settings(tmp_path: Path) -> None:
    for name in ("scenes", "validation"):
        cache = prepare_scenes(tmp_path / name, range(3), size=32, clicks=1)
        Path(cache.plan.root).rename(tmp_path / f"{name}-moved")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "c.toml").write_text(
        '[data]\nkind = "cache"\ncache = "../scenes/truth"\nvalidation_cache = "../validation/truth"\n'
        'images = "../scenes-moved"\nvalidation_images = "../validation-moved"\n'
    )
    job = TrainAttentionJob(None, tmp_path, None, None, "cpu", 0, 0, 1, False, False, False)
    config = AttentionConfig.read(tmp_path / "below" / "c.toml")
    caches = job._caches(config, SingleDevice("cpu"), lambda *_: None)
    for cache, name in zip(caches, ("scenes", "validation"), strict=True):
        assert Path(cache.plan.root).samefile(tmp_path / f"{name}-moved")
        assert HierarchyDataset(cache, target_hw=(8, 8), image_size=16, only_valid=False)[0].image is not None


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
        ('[data]\nimages = "elsewhere"\n', "images='elsewhere' without cache"),
        ('[data]\nvalidation_images = "elsewhere"\n', "without validation_cache"),
    ],
)
@pytest.mark.usefixtures("as_at_run_time")
def test_bad_files(command: Command, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.toml").write_text(text)
    answer = command("train", "attention", "--config", "bad.toml", "-o", "run")
    assert answer.code == 2
    assert message in answer.error
    assert not (tmp_path / "run").exists()


def test_a_named_segmenter_has_to_be_that_of_the_caches(
    command: Command, make_photo: Callable[..., Path], weights: Path, tmp_path: Path
) -> None:
    make_photo(tmp_path / "a.png")
    for name, options in (("own", ()), ("other", ("--checkpoint", weights))):
        assert command("cache", "a.png", "-o", name, "--grid", 1, *options).code == 0
    refused = "other holds masks of .*build a cache with this segmenter"
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "c.toml").write_text('[data]\nkind = "cache"\ncache = "../other"\n')  # beside the file
    answer = command("train", "attention", "-c", "below/c.toml", "-o", "run", "-s", "tiny")
    assert re.search(refused, answer.error)
    for train, judge, named, message in [
        ("other", None, ("-s", "tiny"), refused),
        ("own", "other", ("-s", "tiny"), refused),
        ("own", None, ("--checkpoint", weights), "own holds masks of "),
    ]:
        judged = "" if judge is None else f'validation_cache = "{judge}"\n'
        (tmp_path / "c.toml").write_text(f'[data]\nkind = "cache"\ncache = "{train}"\n{judged}')
        answer = command("train", "attention", "-c", "c.toml", "-o", "run", *named)
        assert answer.code == 2
        assert re.search(message, answer.error)
        assert not (tmp_path / "run").exists()
    prepare_scenes(tmp_path / "scenes", range(3), size=32)
    (tmp_path / "c.toml").write_text(
        '[data]\nkind = "cache"\ncache = "own"\nvalidation_cache = "scenes/truth"\n[attention]\nmin_quality = 0.5\n'
    )
    answer = command("train", "attention", "-c", "c.toml", "-o", "run", "-s", "tiny")
    assert "were not scored" in answer.error  # past the comparison of segmenters
