"""The command ``video``: what it writes, and input that it refuses before it writes anything."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from arrcoc_sam.masks.rle import decode_rle
from arrcoc_sam.segmenters.video_frames import VideoFileClip
from arrcoc_sam.segmenters.video_tracks import VideoTracks

Command = Callable[..., Any]

SIZE_HW = (45, 61)
FRAME = 128


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small SAM 2 with random weights, as a folder."""
    import torch
    from transformers import Sam2VideoConfig, Sam2VideoModel

    side = FRAME // 16
    vision = {
        "model_type": "sam2_vision_model",
        "backbone_config": {
            "model_type": "sam2_hiera_det_model",
            "hidden_size": 8,
            "image_size": [FRAME, FRAME],
            "blocks_per_stage": [1, 1, 2, 1],
            "embed_dim_per_stage": [8, 16, 32, 64],
            "num_attention_heads_per_stage": [1, 1, 2, 2],
            "window_size_per_stage": [8, 4, 4, 4],
            "global_attention_blocks": [3],
        },
        "backbone_channel_list": [64, 32, 16, 8],
        "backbone_feature_sizes": [[side * 4] * 2, [side * 2] * 2, [side] * 2],
        "fpn_hidden_size": 128,
    }
    prompts = {"hidden_size": 128, "image_size": FRAME, "patch_size": 16, "mask_input_channels": 16}
    decoder = {"hidden_size": 128, "mlp_dim": 64, "num_attention_heads": 4, "iou_head_hidden_dim": 32}
    config = Sam2VideoConfig(
        vision_config=vision,
        prompt_encoder_config=prompts,
        mask_decoder_config=decoder,
        image_size=FRAME,
        memory_attention_hidden_size=128,
        memory_attention_num_layers=1,
        memory_attention_feed_forward_hidden_size=64,
        memory_attention_rope_feat_sizes=[side, side],
        memory_encoder_hidden_size=128,
        mask_downsampler_embed_dim=128,
        memory_fuser_num_layers=1,
        memory_fuser_embed_dim=128,
        memory_fuser_intermediate_dim=64,
    )
    folder = tmp_path_factory.mktemp("model")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = Sam2VideoModel(config)
        torch.nn.init.constant_(made.mask_decoder.pred_obj_score_head.proj_out.bias, 1.0)
        made.save_pretrained(folder)
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
        (("-p", "15"), "the point '15'"),
        (("--prompts", "none.json"), "none.json can't be read as JSON"),
        (("-p", "15,20", "-s", "sam_vit_b"), "'sam_vit_b' does not track"),
        (("-p", "15,20", "-s", "hf:./nowhere"), "there is no folder './nowhere'"),
    ],
)
def test_bad_input(command: Command, frames: Path, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    answer = command("video", frames.relative_to(tmp_path), *words, "-o", "out")
    assert answer.code == 2
    assert said in answer.err
    assert not (tmp_path / "out").exists()


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
        ('[{"frame": 0}]', "prompt 0 of prompts.json: a prompt of no points, no box and no mask"),
        ('[{"frame": 0, "point": [1, 2]}]', "prompt 0 of prompts.json has 'point'"),
        ('[{"frame": "a", "points": [[1, 2]]}]', "frame='a'"),
        ('[{"object": 1.5, "points": [[1, 2]]}]', "is of object 1.5"),
    ],
)
@pytest.mark.usefixtures("as_at_run_time")
def test_bad_prompt_files(command: Command, frames: Path, tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "prompts.json").write_text(content)
    answer = command("video", frames, "--prompts", "prompts.json", "-o", "out")
    assert answer.code == 2
    assert said in answer.err
