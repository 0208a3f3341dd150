"""Segmenters by name: weights from files, what is frozen, and names and files that are wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from arrcoc_sam.errors import CheckpointError, InputError, UnknownNameError
from arrcoc_sam.prompts import Prompts
from arrcoc_sam.segmenters import checkpoints, list_segmenters, load_segmenter
from arrcoc_sam.segmenters.sam import SamSegmenter
from arrcoc_sam.segmenters.tiny import build_tiny


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    model = build_tiny().requires_grad_(False)
    folder = tmp_path_factory.mktemp("weights")
    save_file(model.state_dict(), folder / "tiny.safetensors")
    torch.save({"model": model.state_dict()}, folder / "tiny.pth")
    return model, folder


@pytest.mark.parametrize("name", ["tiny.safetensors", "tiny.pth"])
def test_weights_come_from_the_file(weights, name):
    model, folder = weights
    segmenter = load_segmenter("tiny", checkpoint=folder / name, device="cpu")
    assert isinstance(segmenter, SamSegmenter)
    assert segmenter.name == "tiny"
    assert segmenter.checkpoint_hash == SamSegmenter(model, name="same").checkpoint_hash
    assert not segmenter.model.training
    assert not any(parameter.requires_grad for parameter in segmenter.model.parameters())
    image = np.arange(40 * 50 * 3, dtype=np.uint64).reshape(40, 50, 3).astype(np.uint8)
    prompts = Prompts([[[20.0, 10]]])
    expected = SamSegmenter(model, name="same")
    came = segmenter.decode(segmenter.encode(image), prompts)
    torch.testing.assert_close(came.logits, expected.decode(expected.encode(image), prompts).logits)


@pytest.mark.parametrize(
    ("header", "judges"),
    [
        ({}, None),
        ({"judges": "mask+box"}, "mask+box"),
        ({"run": json.dumps({"transfer": {"prompt": "mask"}})}, "mask"),
        ({"run": json.dumps({"training": {}})}, None),
        ({"run": "no JSON"}, None),
    ],
)
def test_a_file_says_how_its_head_was_taught(weights, tmp_path, header, judges):
    model, _ = weights
    save_file(model.state_dict(), tmp_path / "taught.safetensors", metadata={"image_size": "96", **header})
    assert load_segmenter("tiny", tmp_path / "taught.safetensors", "cpu").judges == judges


def test_the_embedded_model_has_the_size_that_the_file_names(weights, tmp_path):
    model, folder = weights
    assert load_segmenter("tiny", checkpoint=folder / "tiny.safetensors", device="cpu").image_size == 256
    path = tmp_path / "small.safetensors"
    save_file(model.state_dict(), path, metadata={"image_size": "96"})
    segmenter = load_segmenter("tiny", checkpoint=path, device="cpu")
    assert segmenter.image_size == 96
    other = build_tiny(96).requires_grad_(False)
    other.load_state_dict(model.state_dict())
    expected = SamSegmenter(other, name="other")
    assert segmenter.checkpoint_hash == expected.checkpoint_hash
    image, prompts = np.full((40, 50, 3), 90, dtype=np.uint8), Prompts([[[20.0, 10]]])
    came = segmenter.decode(segmenter.encode(image), prompts)
    torch.testing.assert_close(came.logits, expected.decode(expected.encode(image), prompts).logits)
    for named in ("100", "0", "big"):
        save_file(model.state_dict(), path, metadata={"image_size": named})
        with pytest.raises(CheckpointError, match=f"image_size='{named}' in its header; expected a multiple of 32"):
            load_segmenter("tiny", checkpoint=path, device="cpu")


def test_loading_draws_no_random_numbers(weights):
    _, folder = weights
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    load_segmenter("tiny", checkpoint=str(folder / "tiny.pth"), device="cpu")
    assert torch.equal(torch.rand(3), expected)


def test_names(monkeypatch):
    assert list_segmenters() == ["tiny", "sam_vit_b", "sam_vit_l", "sam_vit_h", "mobile_sam"]
    assert list(checkpoints.CHECKPOINTS) == list_segmenters()[1:]
    with pytest.raises(
        UnknownNameError, match=r"'sam'; expected one of tiny, .*, mobile_sam, or hf:<repository or folder>"
    ):
        load_segmenter("sam")
    with pytest.raises(UnknownNameError, match="Mend: 'sam_vit_h', if that is meant"):
        load_segmenter("vit_h")
    with pytest.raises(UnknownNameError, match="Mend: 'hf:facebook/sam-vit-base', if that is meant"):
        load_segmenter("facebook/sam-vit-base")
    with pytest.raises(UnknownNameError, match=r"checkpoint='weights/sam_vit_b\.pth'"):
        load_segmenter("weights/sam_vit_b.pth")


def test_published_weights_are_fetched_by_name(monkeypatch, tmp_path):
    asked = []

    def fetch(name):
        asked.append(name)
        return tmp_path / "nothing"

    monkeypatch.setattr(checkpoints, "fetch", fetch)
    with pytest.raises(CheckpointError, match="does not exist"):
        load_segmenter("sam_vit_l", device="cpu")
    assert asked == ["sam_vit_l"]
    with pytest.raises(InputError, match="device='nowhere'"):  # said before anything is fetched
        load_segmenter("sam_vit_l", device="nowhere")
    assert asked == ["sam_vit_l"]


def test_weights_of_another_architecture(weights):
    _, folder = weights
    with pytest.raises(CheckpointError, match=r"another architecture .*tensors of sam_vit_b"):
        load_segmenter("sam_vit_b", checkpoint=folder / "tiny.pth", device="cpu")


def test_empty_and_truncated_files(weights, tmp_path):
    _, folder = weights
    (tmp_path / "empty.pth").write_bytes(b"")
    with pytest.raises(CheckpointError, match="is empty"):
        load_segmenter("tiny", checkpoint=tmp_path / "empty.pth")
    (tmp_path / "half.pth").write_bytes((folder / "tiny.pth").read_bytes()[:100_000])
    with pytest.raises(CheckpointError, match="can't be read as weights"):
        load_segmenter("tiny", checkpoint=tmp_path / "half.pth")


@pytest.mark.usefixtures("as_at_run_time")
def test_a_checkpoint_is_a_path(as_at_run_time):
    with pytest.raises(InputError, match=r"checkpoint is 3; expected the path of a file of weights"):
        load_segmenter("tiny", checkpoint=3)


def test_a_path_is_no_name(tmp_path, as_at_run_time):
    with pytest.raises(InputError, match=r"name is .*expected a name, .*checkpoint="):
        load_segmenter(tmp_path / "sam_vit_b.pth")
