"""The trainer: it learns, resumes to the same curve, cuts a step up without changing it, refuses what it can't do."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch
from attention_cases import scene_cache

from arrcoc_sam.errors import CheckpointError, DataError, InputError, TrainingError, UnknownNameError
from arrcoc_sam.losses import HierarchicalAttentionLoss
from arrcoc_sam.training.attention import trainer as module
from arrcoc_sam.training.attention.evaluation import evaluate_levels, measurable_samples
from arrcoc_sam.training.attention.feed import HeldSamples, StepSamples
from arrcoc_sam.training.attention.settings import AttentionTraining
from arrcoc_sam.training.attention.trainer import build_attention, load_attention_model, train_attention
from arrcoc_sam.training.cache.dataset import HierarchyCache, HierarchyDataset
from arrcoc_sam.training.distributed import Devices, SingleDevice
from arrcoc_sam.training.samples import AttentionBatch

SMALL = AttentionTraining(
    levels=(4, 8, 16), image_size=32, width=8, target_size=24, steps=6, num_images=4, num_queries=2, warmup_steps=2
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("scenes")
    scene_cache(place, range(24))
    return place / "cache"


@pytest.fixture(scope="module")
def samples(folder: Path) -> HeldSamples:
    return read(folder)


def read(folder: Path) -> HeldSamples:
    dataset = HierarchyDataset(HierarchyCache.open(folder), target_hw=(24, 24), image_size=32)
    return HeldSamples([dataset[i] for i in range(len(dataset))])


def curve(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "log.csv").drop(columns=["images_per_second", "peak_gib"])


def weights_of(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([value.flatten().double() for value in model.state_dict().values()])


def test_a_killed_run_takes_the_same_course(
    samples: HeldSamples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"checkpoint_every": 2, "log_every": 1}
    whole, _ = train_attention(SMALL, samples, tmp_path / "whole", **options)  # type: ignore[arg-type]

    class KilledError(Exception):
        pass

    real, calls = module._accumulate, iter(range(100))

    def dying(*arguments: object) -> torch.Tensor:
        if next(calls) == 3:
            raise KilledError
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_accumulate", dying)
    with pytest.raises(KilledError):
        train_attention(SMALL, samples, tmp_path / "parts", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "parts" / module.WEIGHTS).exists()
    resumed, _ = train_attention(SMALL, samples, tmp_path / "parts", **options)  # type: ignore[arg-type]
    torch.testing.assert_close(weights_of(resumed), weights_of(whole), rtol=0.0, atol=0.0)
    pd.testing.assert_frame_equal(curve(tmp_path / "parts"), curve(tmp_path / "whole"))
    kept = load_attention_model(tmp_path / "parts")
    torch.testing.assert_close(weights_of(kept), weights_of(whole), rtol=0.0, atol=0.0)


def gradient(settings: AttentionTraining, samples: HeldSamples, devices: Devices) -> torch.Tensor:
    """The gradient of step 3, as the trainer makes it."""
    model = build(settings).train()
    wrapped = devices.prepare(model)
    batches = StepSamples(samples, settings, rank=devices.rank, world_size=devices.world_size)
    criterion = HierarchicalAttentionLoss(reduction="sum")
    module._accumulate(wrapped, criterion, batches[3], settings, devices)
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_parts_of_a_step_have_its_gradient(samples: HeldSamples) -> None:
    devices = SingleDevice("cpu")
    whole, *parts = (gradient(replace(SMALL, accumulation=count), samples, devices) for count in (1, 2, 4))
    for each in parts:
        torch.testing.assert_close(each, whole, rtol=0.0, atol=1e-5)
    assert whole.abs().max() > 0.1
    with pytest.raises(AssertionError, match="not close"):  # the batch matters
        torch.testing.assert_close(gradient(replace(SMALL, seed=1), samples, devices), whole, rtol=0.0, atol=1e-5)


def build(settings: AttentionTraining) -> torch.nn.Module:
    torch.manual_seed(settings.seed)
    return build_attention(settings)


@pytest.mark.slow
def test_it_learns_where_levels_are(samples: HeldSamples, tmp_path: Path) -> None:
    settings = replace(SMALL, steps=40, num_images=8, flip=False, learning_rate=5e-3, ema_decay=0.9)
    validation = measurable_samples(samples, 16)
    before = evaluate_levels(build(settings), validation)  # type: ignore[arg-type]
    rows: list[dict[str, float]] = []
    _, after = train_attention(
        settings, samples, tmp_path, validation=validation, progress=lambda _, row: rows.append(row), evaluate_every=20
    )
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    assert after is not None
    assert after.level_matched > before.level_matched + 0.05  # on what it was trained on
    judged = pd.read_csv(tmp_path / "evaluation" / "log.csv")
    assert judged["step"].tolist() == [20, 40]
    assert judged["level_matched_contrast"].iloc[-1] == pytest.approx(after.level_matched, rel=1e-4)
    assert (tmp_path / "report.json").is_file()


def test_attention_that_ignores_the_image_has_no_contrast(samples: HeldSamples) -> None:
    """A blob around the click, whatever the picture: its contrast is high, and nothing is left beyond the null."""
    model = build(SMALL)
    validation = measurable_samples(samples, 16)

    def blob(pyramid: object, points: torch.Tensor, index: object) -> list[torch.Tensor]:
        maps = []
        for rows in SMALL.levels:
            centres = (torch.arange(rows) + 0.5) * 32 / rows - 0.5
            x, y = centres[None, None, :] - points[:, 0, None, None], centres[None, :, None] - points[:, 1, None, None]
            maps.append(2.0 - (x**2 + y**2) / 40)
        return maps

    model.attend = blob  # type: ignore[assignment]
    report = evaluate_levels(model, validation)  # type: ignore[arg-type]
    assert float(report.claims.value.max()) > 0.3
    assert report.matched.nan_to_num().abs().max() < 1e-4


def test_a_step_is_the_same_on_any_number_of_processes(samples: HeldSamples) -> None:
    settings = replace(SMALL, draw_levels=True)
    alone = StepSamples(samples, settings)
    shared = [StepSamples(samples, settings, rank=rank, world_size=2) for rank in range(2)]
    for step in (0, 7):
        (whole,) = alone[step]
        halves = [part for each in shared for part in each[step]]
        assert torch.equal(whole.targets, torch.cat([half.targets for half in halves]))
        assert torch.equal(whole.valid, torch.cat([half.valid for half in halves]))
        assert bool((whole.valid.sum(1) <= 1).all())
    assert not torch.equal(alone[0][0].points_xy, alone[1][0].points_xy)


def test_draws_are_by_one_order_an_epoch_and_one_grouping(
    samples: HeldSamples, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(SMALL, flip=False)
    keys = samples.image_keys()
    shuffled = HeldSamples([samples[int(i)] for i in np.random.default_rng(0).permutation(len(samples))])
    for collection in (samples, shuffled):
        batches = StepSamples(collection, settings)
        pictures = np.unique(collection.image_keys())
        for step in (0, 1, 9, 10, 2):
            expected = []
            for place in range(settings.num_images):
                epoch, number = divmod(step * settings.num_images + place, len(pictures))
                order = np.random.default_rng([settings.seed, 0, epoch]).permutation(len(pictures))
                rows = np.flatnonzero(collection.image_keys() == pictures[order[number]])
                chosen = np.random.default_rng([settings.seed, 1, step, place]).permutation(rows)
                expected += [collection[int(i)].point_xy for i in chosen[: settings.num_queries]]
            assert torch.equal(batches[step][0].points_xy, torch.stack(expected))

    orders, real = [], np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: orders.append(seed) or real(seed))
    batches = StepSamples(samples, settings)
    for step in range(len(np.unique(keys)) // settings.num_images):
        batches[step]
    assert [seed for seed in orders if seed[1] == 0] == [[settings.seed, 0, 0]]


def test_measurable_samples_groups_once(samples: HeldSamples, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = HeldSamples.image_keys
    monkeypatch.setattr(HeldSamples, "image_keys", lambda self: calls.append(1) or real(self))
    found = measurable_samples(samples, 16)
    assert len(calls) == 1
    assert len({sample.image_key for sample in found}) == len(found) > 3
    backwards = measurable_samples(HeldSamples(samples.samples[::-1]), 16, most=3)
    assert [sample.image_key for sample in backwards] == [sample.image_key for sample in found[:-4:-1]]
    assert measurable_samples(HeldSamples([]), 16) == []


WORKER = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import torch
from arrcoc_sam.training.attention.trainer import train_attention
from arrcoc_sam.training.distributed import open_devices
from test_attention_training import SMALL, gradient, read
torch.set_num_threads(1)
devices, samples = open_devices("cpu"), read(Path({folder!r}))
torch.save(gradient(SMALL, samples, devices), {out!r} + f"/gradient{{devices.rank}}.pt")
train_attention(SMALL, samples, {out!r}, devices=devices, log_every=1)
"""


@pytest.mark.slow
def test_two_processes_equal_one(folder: Path, samples: HeldSamples, tmp_path: Path) -> None:
    train_attention(SMALL, samples, tmp_path / "one", log_every=1, devices=SingleDevice("cpu"))
    (tmp_path / "two").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = WORKER.format(tests=str(Path(__file__).parent), folder=str(folder), out=str(tmp_path / "two"))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env=os.environ
            | {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
            | {"MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=220)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    alone = gradient(SMALL, samples, SingleDevice("cpu"))
    for rank in range(2):
        both = torch.load(tmp_path / "two" / f"gradient{rank}.pt", weights_only=True)
        torch.testing.assert_close(both, alone, rtol=0.0, atol=1e-5)
    ours, theirs = (curve(tmp_path / name) for name in ("one", "two"))
    pd.testing.assert_frame_equal(theirs, ours, rtol=1e-3)


MORTAL = """
import sys
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, {tests!r})
import torch
from arrcoc_sam.training.attention.trainer import train_attention
from arrcoc_sam.training.distributed import SingleDevice
from test_attention_training import SMALL, read
torch.set_num_threads(1)
settings, devices = replace(SMALL, steps=60), SingleDevice("cpu")
train_attention(settings, read(Path({folder!r})), sys.argv[1], devices=devices, log_every=1, checkpoint_every=4)
"""


@pytest.mark.slow
def test_kill_9_and_the_same_command_again(folder: Path, tmp_path: Path) -> None:
    script = MORTAL.format(tests=str(Path(__file__).parent), folder=str(folder))

    def start(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", script, str(tmp_path / name)]
        return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True)

    mortal = start("parts")
    while mortal.poll() is None and not (tmp_path / "parts" / "last.pt").exists():
        time.sleep(0.01)
    mortal.kill()
    assert mortal.wait() == -signal.SIGKILL
    assert not (tmp_path / "parts" / module.WEIGHTS).exists()
    assert [start(name).wait() for name in ("parts", "whole")] == [0, 0]
    pd.testing.assert_frame_equal(curve(tmp_path / "parts"), curve(tmp_path / "whole"))
    assert len(curve(tmp_path / "whole")) == 60
    one, other = (weights_of(load_attention_model(tmp_path / name)) for name in ("parts", "whole"))
    torch.testing.assert_close(one, other, rtol=0.0, atol=0.0)


@pytest.mark.usefixtures("as_at_run_time")
def test_bad_settings_and_data(samples: HeldSamples, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"2 heads.*three: whole, part, subpart"):
        replace(SMALL, levels=(4, 8))
    with pytest.raises(UnknownNameError, match="supervision='all'"):
        replace(SMALL, supervision="all")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="ema_decay=1"):
        replace(SMALL, ema_decay=1.0)
    with pytest.raises(InputError, match="a multiple of 3"):
        train_attention(replace(SMALL, accumulation=3), samples, tmp_path)
    live = replace(SMALL, backbone="test_resnet", batch_norm="keep", accumulation=2)
    with pytest.raises(InputError, match="batch_norm='keep'"):
        train_attention(live, samples, tmp_path)
    with pytest.raises(InputError, match="2 measurable samples to judge on; expected at least 4"):
        train_attention(SMALL, samples, tmp_path, validation=samples.samples[:2])
    for name, least in (("checkpoint_every", 1), ("log_every", 1), ("evaluate_every", 0), ("num_workers", 0)):
        with pytest.raises(InputError, match=rf"^{name}={least - 1}; expected at least {least}"):
            train_attention(SMALL, samples, tmp_path / "counts", **{name: least - 1})  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"samples is a list of \d+; expected .* Mend: HeldSamples\(samples\)"):
        train_attention(SMALL, samples.samples, tmp_path / "counts")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"first sample is .*\(3, 32, 32\); expected \(3, 64, 64\)"):
        train_attention(replace(SMALL, image_size=64), samples, tmp_path / "counts")
    with pytest.raises(InputError, match=r"first sample is None; expected \(3, 32, 32\)"):
        train_attention(SMALL, HeldSamples([replace(samples[0], image=None)]), tmp_path / "counts")
    assert not (tmp_path / "counts").exists()
    train_attention(replace(SMALL, steps=1), samples, tmp_path / "run")
    with pytest.raises(TrainingError, match=r"another configuration \(settings\.steps was 1, and is 6\)"):
        train_attention(SMALL, samples, tmp_path / "run")
    with pytest.raises(TrainingError, match="another configuration"):
        train_attention(replace(SMALL, steps=1), samples, tmp_path / "run", provenance={"cache": "other"})
    with pytest.raises(CheckpointError, match="can't be read"):
        load_attention_model(tmp_path)


def test_a_library_that_gives_no_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "safe_open", Mock(side_effect=EOFError()))
    with pytest.raises(CheckpointError, match=r"can't be read \(EOFError\)"):
        load_attention_model("some.safetensors")


def test_a_step_schedule_and_a_checkpoint_of_before_it_was_there(samples: HeldSamples, tmp_path: Path) -> None:
    stepped = replace(SMALL, schedule="step", milestones=(0.5,), warmup_steps=0)
    train_attention(stepped, samples, tmp_path / "stepped", log_every=1)
    rates = curve(tmp_path / "stepped")["rate"].to_numpy()
    np.testing.assert_allclose(rates[-1] / rates[0], 0.1)
    load_attention_model(tmp_path / "stepped")
    train_attention(SMALL, samples, tmp_path / "old", log_every=1)
    path = tmp_path / "old" / "last.pt"
    state = torch.load(path, weights_only=True)
    settings = json.loads(state["settings"])
    del settings["settings"]["milestones"]
    torch.save(state | {"settings": json.dumps(settings)}, path)
    train_attention(SMALL, samples, tmp_path / "old")  # resumed, not refused
    with pytest.raises(InputError, match="milestones"):
        replace(SMALL, schedule="step")


def test_a_loss_or_a_confidence_that_is_no_number(
    samples: HeldSamples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = replace(samples[0], confidence=torch.full((3,), torch.nan))
    with pytest.raises(DataError, match="a confidence is nan"):
        train_attention(SMALL, HeldSamples([bad]), tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(torch.inf))
        with pytest.raises(TrainingError, match="the gradient's norm is inf at step 0; the batch is in"):
            train_attention(SMALL, samples, tmp_path / "gradient")
    saved = torch.load(tmp_path / "gradient" / "bad_batch_0.pt", weights_only=True)
    assert saved["step"] == 0
    assert AttentionBatch(**saved["batches"][0]).images.shape[1:] == (3, 32, 32)
    monkeypatch.setattr(module, "_accumulate", lambda *_: torch.tensor(torch.nan))
    with pytest.raises(TrainingError, match="the loss is nan at step 0"):
        train_attention(SMALL, samples, tmp_path)


@pytest.mark.gpu
def test_on_a_gpu_bf16_stays_near_fp32(samples: HeldSamples, tmp_path: Path) -> None:
    curves = []
    for autocast in (False, True):
        settings = replace(SMALL, steps=20, autocast=autocast)
        train_attention(settings, samples, tmp_path / str(autocast), devices=SingleDevice("cuda"), log_every=1)
        curves.append(curve(tmp_path / str(autocast))["loss"].to_numpy())
    np.testing.assert_allclose(curves[1], curves[0], rtol=0.1)
