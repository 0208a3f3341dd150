"""The loop: it learns, it resumes to the same curve, it refuses what it can't do."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor, nn

from arrcoc_sam.errors import CheckpointError, InputError, OutputError, TrainingError
from arrcoc_sam.scenes import Scene, generate_scene
from arrcoc_sam.segmenters.tiny import build_tiny
from arrcoc_sam.training import segmenter_run
from arrcoc_sam.training.augmentation import Augmentation
from arrcoc_sam.training.batches import PromptBatch
from arrcoc_sam.training.interactive import ClickRecipe
from arrcoc_sam.training.segmenter import SegmenterTraining, Stage, train_segmenter
from arrcoc_sam.training.sources import MaskedImage


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [generate_scene(seed, size=64) for seed in range(4)]


CONFIG = SegmenterTraining(
    stages=(Stage(64, 4, num_images=2, num_targets=2), Stage(96, 2, num_images=2, num_targets=2)),
    recipe=ClickRecipe(num_rounds=2),
    warmup_steps=2,
)
ONE = replace(CONFIG, stages=(Stage(64, 1, num_images=2, num_targets=2),))


def columns(folder: Path) -> list[list[str]]:
    """All of a log but its last column, the throughput."""
    return [line.split(",")[:-1] for line in (folder / "log.csv").read_text().splitlines()]


def test_resumed_run_has_the_same_curve(scenes: list[Scene], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"checkpoint_every": 3, "log_every": 1, "device": "cpu"}
    whole = train_segmenter(CONFIG, scenes, tmp_path / "whole", **options)

    class KilledError(Exception):
        pass

    real, calls = segmenter_run._backward, iter(range(100))

    def die(*arguments: Any) -> dict[str, Tensor]:
        if next(calls) == 4:
            raise KilledError
        return real(*arguments)

    monkeypatch.setattr(segmenter_run, "_backward", die)
    with pytest.raises(KilledError):
        train_segmenter(CONFIG, scenes, tmp_path / "parts", **options)
    assert len(columns(tmp_path / "parts")) == 5  # four steps, one of them after the checkpoint
    with (tmp_path / "parts" / "log.csv").open("a") as file:
        file.write("5,0.1")  # a row that a kill cut off
    resumed = train_segmenter(CONFIG, scenes, tmp_path / "parts", **options)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0.0, atol=0.0, msg=name)
    assert columns(tmp_path / "parts") == columns(tmp_path / "whole")
    assert whole.image_encoder.img_size == 96
    again = train_segmenter(CONFIG, scenes, tmp_path / "parts", **options)  # a finished run is not run again
    torch.testing.assert_close(again.mask_decoder.iou_token.weight, whole.mask_decoder.iou_token.weight)


LONG = """
    from pathlib import Path
    from arrcoc_sam.scenes import generate_scene
    from arrcoc_sam.training.interactive import ClickRecipe
    from arrcoc_sam.training.segmenter import SegmenterTraining, Stage, train_segmenter

    config = SegmenterTraining(stages=(Stage(64, 30, 2, 2),), recipe=ClickRecipe(num_rounds=2), warmup_steps=2)
    scenes = [generate_scene(seed, size=64) for seed in range(4)]
    train_segmenter(config, scenes, FOLDER, checkpoint_every=4, log_every=1, device="cpu")
"""


def test_a_run_that_is_stopped_goes_on(scenes: list[Scene], tmp_path: Path) -> None:
    options: dict[str, Any] = {"log_every": 1, "device": "cpu"}
    train_segmenter(CONFIG, scenes, tmp_path / "whole", **options)
    train_segmenter(CONFIG, scenes, tmp_path / "parts", stop_after=3, **options)
    assert len(columns(tmp_path / "parts")) == 1 + 3
    train_segmenter(CONFIG, scenes, tmp_path / "parts", **options)
    assert columns(tmp_path / "parts") == columns(tmp_path / "whole")


@pytest.mark.slow
def test_killed_for_real(tmp_path: Path) -> None:
    def start(folder: Path) -> subprocess.Popen[bytes]:
        script = textwrap.dedent(LONG).replace("FOLDER", repr(str(folder)))
        return subprocess.Popen([sys.executable, "-c", script])

    whole = start(tmp_path / "whole")
    assert whole.wait(timeout=200) == 0
    kills = 0
    for after in (5, 13, 22, 99):
        run, log = start(tmp_path / "parts"), tmp_path / "parts" / "log.csv"
        while run.poll() is None:
            if log.is_file() and len(log.read_text().splitlines()) > after:
                run.send_signal(signal.SIGKILL)
                run.wait()
                kills += 1
            time.sleep(0.01)
    assert kills == 3
    assert run.returncode == 0
    assert columns(tmp_path / "parts") == columns(tmp_path / "whole")


def test_the_loss_falls(tmp_path: Path) -> None:
    """On one scene, in a few seconds; how far it goes in an hour is experiments/embedded_model's to say."""
    scene = min((generate_scene(seed, size=64) for seed in range(20)), key=len)
    figures: list[dict[str, float]] = []
    config = SegmenterTraining(
        stages=(Stage(64, 30, num_images=2, num_targets=3),), recipe=ClickRecipe(num_rounds=1), warmup_steps=5
    )
    train_segmenter(config, [scene], tmp_path, log_every=5, progress=lambda _, row: figures.append(row))
    assert figures[-1]["mask_loss"] < 0.85 * figures[0]["mask_loss"]


class Wholes:
    """The wholes of some scenes: a click in one of them has one meaning."""

    def __init__(self, scenes: list[Scene]) -> None:
        self.scenes = scenes

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> MaskedImage:
        scene = self.scenes[index]
        masks = scene.masks[scene.levels == 0]
        return MaskedImage(f"{index}", scene.image, len(masks), lambda chosen: masks[chosen])


@pytest.mark.slow
@pytest.mark.timeout(900)  # 400 steps: minutes on a busy machine
def test_a_handful_of_scenes_is_learned_by_heart(tmp_path: Path) -> None:
    """IoU above .95 in 400 steps."""
    figures: list[dict[str, float]] = []
    config = SegmenterTraining(
        stages=(Stage(64, 400, num_images=4, num_targets=2),),
        recipe=ClickRecipe(num_rounds=1, box_probability=0.0),
        augmentation=Augmentation(crop_probability=0.0, rotate=False, flip=False, recolor=False),
        learning_rate=1e-3,
        warmup_steps=20,
        ema_decay=0.0,
        autocast=False,
    )
    scenes = sorted((generate_scene(seed, size=64) for seed in range(20)), key=len)[:4]
    train_segmenter(config, Wholes(scenes), tmp_path, progress=lambda _, row: figures.append(row), device="cpu")
    last = figures[-10:]
    assert sum(row["oracle_iou"] for row in last) / len(last) > 0.95


def test_accumulation_does_not_change_the_step(scenes: list[Scene], tmp_path: Path) -> None:
    config = replace(
        CONFIG, stages=(Stage(64, 2, num_images=4, num_targets=2),), freeze_batch_norm=True, autocast=False
    )
    whole = train_segmenter(config, scenes, tmp_path / "whole", device="cpu", log_every=1)
    parts = train_segmenter(replace(config, accumulation=2), scenes, tmp_path / "parts", device="cpu", log_every=1)
    for name, value in whole.state_dict().items():
        # Adam makes a step of 4e-4 of any gradient, of one that is almost rounding too
        torch.testing.assert_close(parts.state_dict()[name], value, rtol=1e-5, atol=5e-5, msg=name)
    whole_row, parts_row = (columns(tmp_path / name)[1] for name in ("whole", "parts"))
    assert [float(v) for v in parts_row] == pytest.approx([float(v) for v in whole_row], rel=1e-4)


SHARED = """
    import sys
    from pathlib import Path
    import torch
    torch.set_num_threads(1)
    from arrcoc_sam.scenes import generate_scene
    from arrcoc_sam.training.interactive import ClickRecipe
    from arrcoc_sam.training.segmenter import SegmenterTraining, Stage, train_segmenter

    config = SegmenterTraining(
        stages=(Stage(64, 3, num_images=4, num_targets=3),), recipe=ClickRecipe(num_rounds=2), warmup_steps=2,
        freeze_batch_norm=True, autocast=False,
    )
    scenes = [generate_scene(seed, size=64) for seed in range(4)]
    model = train_segmenter(config, scenes, sys.argv[1], log_every=1, device="cpu")
    torch.save(model.state_dict(), Path(sys.argv[1]) / f"weights{sys.argv[2]}.pt")
"""


@pytest.mark.slow
def test_two_processes_are_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = textwrap.dedent(SHARED)

    def start(folder: str, rank: int, world: int) -> subprocess.Popen[bytes]:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = os.environ | {name: str(value) for name, value in place.items()} | {"ACCELERATE_USE_CPU": "true"}
        return subprocess.Popen([sys.executable, "-c", script, str(tmp_path / folder), str(rank)], env=environment)

    runs = [start("two", rank, 2) for rank in (0, 1)]
    assert [run.wait(timeout=200) for run in runs] == [0, 0]
    assert start("one", 0, 1).wait(timeout=200) == 0
    one = torch.load(tmp_path / "one" / "weights0.pt", weights_only=True)
    for rank in (0, 1):
        two = torch.load(tmp_path / "two" / f"weights{rank}.pt", weights_only=True)
        assert two.keys() == one.keys()
        apart = torch.cat([(two[name].double() - value.double()).abs().flatten() for name, value in one.items()])
        # equal to 1e-5; but Adam makes a step of 4e-4 of any gradient, and a few of them are little more than rounding,
        # which differs from run to run
        assert (apart > 1e-5).double().mean() < 1e-4
        assert apart.max() < 1e-4
    for ours, theirs in zip(columns(tmp_path / "one")[1:], columns(tmp_path / "two")[1:], strict=True):
        assert [float(value) for value in ours] == pytest.approx([float(value) for value in theirs], rel=1e-4, abs=1e-5)


def test_parts_of_a_model(scenes: list[Scene], tmp_path: Path) -> None:
    model = build_tiny(64)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    patterns = ("mask_decoder.*", "image_encoder.fuse.3.*")
    config = replace(ONE, trainable=patterns, ema_decay=0.0)
    trained = train_segmenter(config, scenes, tmp_path, model=model)
    assert trained is model
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all(name.startswith(("mask_decoder.", "image_encoder.fuse.3.")) for name in moved)
    assert "image_encoder.fuse.3.weight" in moved
    # batch normalisation of frozen layers keeps its statistics
    assert not any("running" in name for name in moved if not name.startswith("image_encoder.fuse"))


def test_a_vision_transformer_of_sam(scenes: list[Scene], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Sam(
        ImageEncoderViT(img_size=64, patch_size=16, embed_dim=32, depth=1, num_heads=2, out_chans=16),
        PromptEncoder(embed_dim=16, image_embedding_size=(4, 4), input_image_size=(64, 64), mask_in_chans=4),
        MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=1, embedding_dim=16, mlp_dim=32, num_heads=2),
            transformer_dim=16,
        ),
    )
    config = replace(ONE, trainable=("mask_decoder.*",))
    train_segmenter(config, scenes, tmp_path, model=model)
    with pytest.raises(InputError, match="positions"):
        train_segmenter(CONFIG, scenes, tmp_path / "other", model=model)


def test_tensorboard_and_workers_change_nothing(scenes: list[Scene], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train_segmenter(ONE, scenes, tmp_path / "here", log_every=1, device="cpu")
    train_segmenter(ONE, scenes, tmp_path / "board", log_every=1, tensorboard=True, num_workers=1, device="cpu")
    assert columns(tmp_path / "here") == columns(tmp_path / "board")
    events = EventAccumulator(str(tmp_path / "board" / "tensorboard"))
    events.Reload()
    header, row = columns(tmp_path / "board")
    logged = float(row[header.index("mask_loss")])
    assert events.Scalars("mask_loss")[0].value == pytest.approx(logged, rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": ()}, "stages is empty"),
        ({"stages": (Stage(100, 1),)}, "multiple of 32"),
        ({"stages": (Stage(64, 1, num_images=3),), "accumulation": 2, "freeze_batch_norm": True}, "num_images=3"),
        ({"accumulation": 2}, "freeze_batch_norm"),
        ({"trainable": ("decoder.*",)}, "mask_decoder"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"schedule": "step"}, "milestones"),
    ],
)
def test_bad_configurations(scenes: list[Scene], tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        train_segmenter(replace(CONFIG, **changes), scenes, tmp_path / "run")
    assert not (tmp_path / "run" / "last.pt").exists()


def test_a_run_of_another_configuration(scenes: list[Scene], tmp_path: Path) -> None:
    train_segmenter(ONE, scenes, tmp_path)
    with pytest.raises(TrainingError, match=r"another configuration \(training.learning_rate was 0.0008, and is 0.1"):
        train_segmenter(replace(ONE, learning_rate=0.1), scenes, tmp_path)
    with pytest.raises(TrainingError, match=r"origin.data was None, and is 'elsewhere'"):
        train_segmenter(ONE, scenes, tmp_path, origin={"data": "elsewhere"})
    (tmp_path / "last.pt").write_bytes(b"torn")
    with pytest.raises(TrainingError, match="can't be read"):
        train_segmenter(ONE, scenes, tmp_path)


def test_a_checkpoint_of_another_architecture(scenes: list[Scene], tmp_path: Path) -> None:
    train_segmenter(ONE, scenes, tmp_path)
    other = build_tiny(64)
    other.mask_decoder.iou_prediction_head.layers[-1] = nn.Linear(8, 4)
    with pytest.raises(TrainingError, match=r"last\.pt holds a state of another model \(.*size mismatch"):
        train_segmenter(ONE, scenes, tmp_path, model=other)
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    state["optimizer"]["param_groups"].pop()
    torch.save(state, tmp_path / "last.pt")
    with pytest.raises(TrainingError, match="state of another optimizer"):
        train_segmenter(ONE, scenes, tmp_path)


def test_a_checkpoint_from_before_an_option_was_there(scenes: list[Scene], tmp_path: Path) -> None:
    train_segmenter(ONE, scenes, tmp_path)
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    settings = json.loads(state["settings"])
    del settings["training"]["recipe"]["given_mask_probability"], settings["training"]["validation"]
    torch.save(state | {"settings": json.dumps(settings)}, tmp_path / "last.pt")
    train_segmenter(ONE, scenes, tmp_path)  # it has been done
    other = replace(ONE, recipe=replace(ONE.recipe, given_mask_probability=0.5))
    with pytest.raises(TrainingError, match=r"given_mask_probability was 0.0, and is 0.5"):
        train_segmenter(other, scenes, tmp_path)


def test_weights_of_another_architecture(scenes: list[Scene], tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="another architecture"):
        train_segmenter(ONE, scenes, tmp_path / "run", initial=tmp_path / "other.safetensors")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_can_not_be_made(scenes: list[Scene], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="can't be made"):
        train_segmenter(ONE, scenes, tmp_path / "file" / "run")


def test_a_loss_that_is_not_finite_stops_with_the_batch_saved(
    scenes: list[Scene], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_tiny(64)
    nn.init.constant_(model.mask_decoder.iou_prediction_head.layers[-1].bias, float("nan"))
    with pytest.raises(TrainingError, match=r"the loss is nan .* at step 0; the batch is in .*bad_batch_0.pt"):
        train_segmenter(ONE, scenes, tmp_path, model=model)
    saved = torch.load(tmp_path / "bad_batch_0.pt", weights_only=True)
    batch = PromptBatch(**saved["batches"][0])
    assert saved["step"] == 0
    assert batch.images.shape == (2, 3, 64, 64)
    assert not (tmp_path / "last.pt").exists()
