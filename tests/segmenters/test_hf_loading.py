"""Models of transformers by name: folders that hold them, and every way in which a name is wrong."""

from __future__ import annotations

import json
import math
import sys

import pytest
import torch
from hf_small_models import NAMES, build, build_segmenter, family
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from arrcoc_sam.cli.main import run
from arrcoc_sam.errors import CheckpointError, InputError, MissingExtraError, UnsupportedModelError
from arrcoc_sam.prompts import Prompts
from arrcoc_sam.segmenters import load_segmenter
from arrcoc_sam.segmenters.hf.loading import load_hf_model
from arrcoc_sam.segmenters.hf.segmenter import HuggingFaceSegmenter


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small SAM 2 as save_pretrained writes it."""
    path = tmp_path_factory.mktemp("sam2")
    build("SAM 2").save_pretrained(path)
    return path


@pytest.fixture
def no_network(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_gives_the_model_back(name, tmp_path, picture, capsys):
    expected = build_segmenter(name)
    expected.model.save_pretrained(tmp_path)
    capsys.readouterr()
    came = load_segmenter(f"hf:{tmp_path}", device="cpu")
    assert capsys.readouterr() == ("", "")
    assert isinstance(came, HuggingFaceSegmenter)
    assert came.family is family(name)
    assert came.name == f"hf:{tmp_path}"
    assert came.checkpoint_hash == expected.checkpoint_hash
    assert not came.model.training
    assert not any(parameter.requires_grad for parameter in came.model.parameters())
    image, prompts = picture(60, 90, 0), Prompts([[[20.0, 30]]])
    cand = came.decode(came.encode(image), prompts)
    torch.testing.assert_close(cand.logits, expected.decode(expected.encode(image), prompts).logits)


@pytest.mark.parametrize("name", ["SAM 2", "EdgeTAM"])
def test_a_video_model_is_an_image_model_too(name, tmp_path, picture):
    """The published repositories of SAM 2 and EdgeTAM describe the video model."""
    video = build(name, video=True)
    video.save_pretrained(tmp_path)
    came = load_segmenter(f"hf:{tmp_path}", device="cpu")
    assert type(came.model).__name__ == family(name).image_class
    image, prompts = picture(60, 90, 0), Prompts([[[20.0, 30]]])
    expected = HuggingFaceSegmenter(video, family(name), name="video")
    cand = came.decode(came.encode(image), prompts)
    torch.testing.assert_close(cand.logits, expected.decode(expected.encode(image), prompts).logits)


def test_mean_and_deviation_of_the_repository(folder, tmp_path, picture):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = {"image_processor_type": "Sam2ImageProcessorFast", "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    white = torch.full((3, 128, 128), 255, dtype=torch.uint8)
    assert load_segmenter(f"hf:{tmp_path}", device="cpu").pixel_values(white).unique().tolist() == [2.0]
    nested = {"processor_class": "Sam2Processor", "image_processor": {"image_mean": [0.25] * 3}}
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    assert load_segmenter(f"hf:{tmp_path}", device="cpu").pixel_values(white).unique().tolist() == [3.0]
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "processor_config.json").write_text('{"processor_class": "Sam2Processor"}')  # names none
    expected = (1 - torch.tensor(family("SAM 2").mean)) / torch.tensor(family("SAM 2").std)
    for path in (folder, tmp_path):
        came = load_segmenter(f"hf:{path}", device="cpu").pixel_values(white)[:, 0, 0]
        torch.testing.assert_close(came, expected)


WHOLE = json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}).encode()


@pytest.mark.parametrize(
    "damaged",
    [
        WHOLE[:-5],
        b"",
        b"[1]",
        b"\x80\x02\xff",
        *(
            json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3} | one).encode()
            for one in (
                {"image_mean": ["a", "b", "c"]},
                {"image_mean": 0.5},
                {"image_mean": [0.5] * 2},
                {"image_mean": [math.nan] * 3},
                {"image_mean": []},
                {"image_std": [0.25, 0, 0.25]},
                {"image_std": [math.inf] * 3},
            )
        ),
    ],
)
def test_a_damaged_processor_is_not_passed_over(folder, tmp_path, damaged):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "preprocessor_config.json").write_bytes(damaged)
    with pytest.raises(CheckpointError, match=r"the preprocessor_config\.json of hf:.* can't be used .*fetch"):
        load_segmenter(f"hf:{tmp_path}", device="cpu")


def test_folders_that_are_no_models(tmp_path, folder):
    with pytest.raises(CheckpointError, match=r"the folder .* has no config\.json"):
        load_segmenter(f"hf:{tmp_path}")
    with pytest.raises(CheckpointError, match=r"there is no folder './nowhere'"):
        load_segmenter("hf:./nowhere")
    with pytest.raises(CheckpointError, match="there is no folder ''"):
        load_segmenter("hf:")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="the configuration of"):
        load_segmenter(f"hf:{tmp_path}")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(CheckpointError, match="the weights of"):
        load_segmenter(f"hf:{tmp_path}")


def test_weights_that_are_not_all_there(tmp_path, folder):
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    state = load_file(folder / "model.safetensors")
    del state["mask_decoder.iou_token.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lack 1 tensors of Sam2Model, mask_decoder.iou_token.weight for one"):
        load_segmenter(f"hf:{tmp_path}", device="cpu")
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="the weights of"):
        load_segmenter(f"hf:{tmp_path}", device="cpu")


def test_a_pickle_is_not_read(tmp_path, folder):
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    torch.save(load_file(folder / "model.safetensors"), tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="the weights of"):
        load_segmenter(f"hf:{tmp_path}", device="cpu")


def test_a_model_that_is_no_sam(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "architectures": ["ViTModel"]}))
    with pytest.raises(UnsupportedModelError, match=r"type 'vit', which is no promptable SAM.*SAM-HQ \(sam_hq\)"):
        load_segmenter(f"hf:{tmp_path}")


def test_an_unknown_repository(no_network):
    with pytest.raises(CheckpointError, match=r"the configuration of hf:nobody/nothing can't be had"):
        load_segmenter("hf:nobody/nothing")


def test_models_that_do_not_track(folder, tmp_path):
    with pytest.raises(UnsupportedModelError, match=r"is an image model \(sam2\), without the memory"):
        load_hf_model(f"hf:{folder}", kind="video")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "sam"}))
    with pytest.raises(UnsupportedModelError, match=r"family SAM, which does not track here; expected one of SAM 2"):
        load_hf_model(f"hf:{tmp_path}", kind="video")


def test_arguments(folder, tmp_path):
    with pytest.raises(InputError, match="no checkpoint: the repository or folder holds the weights"):
        load_segmenter(f"hf:{folder}", checkpoint=tmp_path / "w.pth")
    with pytest.raises(InputError, match="device='nowhere'"):
        load_segmenter("hf:nobody/nothing", device="nowhere")


def test_without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'arrcoc-sam\[hf\]'"):
        load_segmenter("hf:facebook/sam-vit-base")


def test_command_line(folder, tmp_path, picture, capsys):
    from PIL import Image

    Image.fromarray(picture(60, 90, 0)).save(tmp_path / "a.png")
    assert run(["segment", str(tmp_path / "a.png"), "-p", "20,30", "-s", f"hf:{folder}", "--device", "cpu"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["segmenter"] == f"hf:{folder}"
    assert len(record["masks"]) == 3
    assert run(["segment", str(tmp_path / "a.png"), "-p", "20,30", "-s", f"hf:{tmp_path}"]) == 2
    assert "has no config.json" in capsys.readouterr().err
