"""The command ``video``: what it writes, and input that it refuses before it writes anything."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hf_small_models import build
from PIL import Image

from arrcoc_sam.masks.rle import decode_rle
from arrcoc_sam.segmenters.video.frames import FolderClip, VideoFileClip
from arrcoc_sam.segmenters.video.resume import TrackingCheckpoints
from arrcoc_sam.segmenters.video.tracks import VideoTracks

Command = Callable[..., Any]

SIZE_HW = (45, 61)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small SAM 2 with random weights, as a folder."""
    folder = tmp_path_factory.mktemp("model")
    build("SAM 2", video=True).save_pretrained(folder)
    return f"hf:{folder}"


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    folder = tmp_path / "frames"
    folder.mkdir()
    for index in range(6):
        image = np.full((*SIZE_HW, 3), 80, dtype=np.uint8)
        image[10:30, 5 + 4 * index : 25 + 4 * index] = (230, 180, 60)
        Image.fromarray(image).save(folder / f"{index}.png")
    return folder


def test_everything_is_written(command: Command, frames: Path, model: str, tmp_path: Path) -> None:
    answer = command("video", frames, "-p", "15,20", "--frame", "2", "-s", model, "--device", "cpu", "-o", "results")
    assert answer.code == 0, answer.err
    out = tmp_path / "results"
    assert sorted(path.name for path in out.iterdir()) == ["overlay.mp4", "scores.png", "tracks.parquet", "video.json"]
    tracks = VideoTracks.from_parquet(out / "tracks.parquet")
    assert [row.frame for row in tracks.rows] == list(range(6))
    assert all(decode_rle(row.segmentation).shape == SIZE_HW for row in tracks.rows)
    record = json.loads((out / "video.json").read_text())
    assert record["num_frames"] == 6
    assert record["prompts"][0]["points_xy"] == [[15.0, 20.0]]
    assert record["checkpoint_hash"] == tracks.metadata["checkpoint_hash"]
    assert record["command"].startswith("arrcoc-sam video")
    shown = VideoFileClip(out / "overlay.mp4")
    assert len(shown) == 6
    assert shown.size_hw == (46, 62)  # even sides, as the codec wants them
    assert "Wrote results/scores.png" in answer.out


def test_a_run_that_broke_off_goes_on(
    command: Command, frames: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arrcoc_sam.cli.video_job.TrackingCheckpoints", partial(TrackingCheckpoints, every=2))
    words = ("video", frames, "-p", "15,20", "-s", model, "--device", "cpu", "--no-overlay", "-o")
    assert command(*words, "whole").code == 0
    read = FolderClip._read

    def interrupted(clip: FolderClip, index: int) -> np.ndarray:
        if index == 4:
            raise KeyboardInterrupt
        return read(clip, index)

    with monkeypatch.context() as patch:
        patch.setattr(FolderClip, "_read", interrupted)
        assert command(*words, "out").code == 130
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".unfinished"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".out")]
    answer = command(*words, "out")
    assert answer.code == 0
    assert "note: went on where a run had broken off, after 4 steps" in answer.err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["scores.png", "tracks.parquet", "video.json"]
    resumed, whole = (VideoTracks.from_parquet(tmp_path / name / "tracks.parquet") for name in ("out", "whole"))
    assert [row.segmentation for row in resumed.rows] == [row.segmentation for row in whole.rows]
    assert [row.object_score for row in resumed.rows] == [row.object_score for row in whole.rows]


def test_an_overlay_that_can_t_be_written_is_known_before_the_work(
    command: Command, frames: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    words = ("video", frames, "-p", "15,20", "-s", model, "--device", "cpu", "-o", "out")
    answer = command(*words)
    assert answer.code == 2
    assert "arrcoc-sam[video]" in answer.error
    assert not (tmp_path / "out").exists()
    assert command(*words, "--no-overlay").code == 0


def test_prompts_of_a_file(command: Command, frames: Path, model: str, tmp_path: Path) -> None:
    mask = np.zeros(SIZE_HW, dtype=np.uint8)
    mask[10:30, 5:25] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    prompts = [
        {"frame": 0, "object": 4, "mask": "mask.png"},
        {"frame": 3, "object": 2, "points": [[20, 20], [50, 40]], "labels": [1, 0]},
        {"frame": 3, "object": 4, "box": [15, 8, 40, 32]},
    ]
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    words = ("video", frames, "--prompts", "prompts.json", "-s", model, "--device", "cpu", "-o", "out", "--no-overlay")
    answer = command(*words, "--json")
    assert answer.code == 0, answer.err
    record = json.loads(answer.out)
    assert [entry["object"] for entry in record["objects"]] == [2, 4]
    tracks = VideoTracks.from_parquet(tmp_path / "out" / "tracks.parquet")
    assert tracks.of(4)[0].area == 400
    assert np.isnan(tracks.of(4)[0].predicted_iou)
    assert not (tmp_path / "out" / "overlay.mp4").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "no prompt; expected --point, --box, --mask or --prompts"),
        (("-p", "15,20", "--frame", "6"), "on frame 6 of frames, which has 6 frames; expected 0 to 5"),
        (("-p", "99,20"), "lies outside image 0 of width 61 and height 45"),
        (("-p", "99,20", "--frame", "3"), "object 1 on frame 3: the point (x, y) = (99, 20)"),
        (("-p", "15"), "the point '15'"),
        (("--prompts", "none.json"), "none.json does not exist"),
        (("-p", "15,20", "-s", "sam_vit_b"), "'sam_vit_b' does not track"),
        (("-p", "15,20", "-s", "hf:./nowhere"), "there is no folder './nowhere'"),
    ],
)
def test_bad_input(command: Command, frames: Path, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    answer = command("video", frames.relative_to(tmp_path), *words, "-o", "out")
    assert answer.code == 2
    assert said in answer.err
    assert not (tmp_path / "out").exists()


def test_a_mask_of_0_and_1_is_no_empty_object(command: Command, frames: Path, tmp_path: Path) -> None:
    mask = np.zeros(SIZE_HW, dtype=np.uint8)
    mask[10:30, 5:25] = 1
    Image.fromarray(mask).save(tmp_path / "mask.png")
    (tmp_path / "prompts.json").write_text('[{"object": 2, "mask": "mask.png"}]')
    for words in (("--mask", "mask.png"), ("--prompts", "prompts.json")):
        answer = command("video", frames, *words, "-o", "out")
        assert answer.code == 2
        assert "mask.png has no pixel above half intensity, 1 at most; expected" in answer.err


def test_bad_clips(command: Command, frames: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((50, 61, 3), dtype=np.uint8)).save(frames / "9.png")
    answer = command("video", frames, "-p", "15,20", "-o", "out")
    assert answer.code == 2
    assert "is 61 × 50, the first one 61 × 45" in answer.err
    (tmp_path / "empty").mkdir()
    answer = command("video", "empty", "-p", "15,20", "-o", "out")
    assert answer.code == 2
    assert "no image in the folder" in answer.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{}", "holds no list of prompts"),
        ('[{"frame": 0}]', "prompt 0 of prompts.json (object 1, frame 0): a prompt of no points, no box and no mask"),
        ('[{"frame": 0, "point": [1, 2]}]', "prompt 0 of prompts.json has 'point'"),
        ('[{"frame": "a", "points": [[1, 2]]}]', "frame='a'"),
        (
            '[{"frame": 2, "object": 3, "points": [[1, 2]], "labels": [7]}]',
            "prompt 0 of prompts.json (object 3, frame 2): the label 7; expected 1 (foreground)",
        ),
        ('[{"points": [[1, 2]], "labels": [-1]}]', "prompt 0 of prompts.json (object 1, frame 0): the label -1"),
        ('[{"points": [[1, 2], [3, 4]], "labels": "ab"}]', "(object 1, frame 0): labels is 'ab'; expected numbers"),
        ('[{"box": [9, 9, 3, 3]}]', "prompt 0 of prompts.json (object 1, frame 0): boxes_xyxy 0 end before"),
        ('[{"frame": 1, "object": 4, "points": [[99, 2]]}]', "object 4 on frame 1: the point (x, y) = (99, 2)"),
        ('[{"object": 1.5, "points": [[1, 2]]}]', "prompt 0 of prompts.json (object 1.5, frame 0): object_id=1.5"),
        ('[{"object": 99999999999999999999999, "points": [[1, 2]]}]', "object_id=99999999999999999999999; expected"),
    ],
)
@pytest.mark.usefixtures("as_at_run_time")
def test_bad_prompt_files(command: Command, frames: Path, tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "prompts.json").write_text(content)
    answer = command("video", frames, "--prompts", "prompts.json", "-o", "out")
    assert answer.code == 2
    assert said in answer.err
