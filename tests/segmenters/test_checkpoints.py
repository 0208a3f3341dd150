"""The registry, the cache, verification, and reading weights from good and bad files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from arrcoc_sam.errors import CheckpointError, UnknownNameError
from arrcoc_sam.segmenters import checkpoints as checkpoints_module
from arrcoc_sam.segmenters.checkpoints import (
    CHECKPOINTS,
    Checkpoint,
    cache_folder,
    cached_path,
    fetch,
    get_checkpoint,
    load_weights,
    read_weights,
    verify,
)

CONTENT = b"weights" * 1000


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ARRCOC_SAM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def checkpoint() -> Checkpoint:
    digest = hashlib.sha256(CONTENT).hexdigest()
    return Checkpoint("toy", "http://127.0.0.1:1/toy.pth", len(CONTENT), digest, "Apache-2.0")


def small_model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def test_registry_is_the_published_one():
    assert list(CHECKPOINTS) == ["sam_vit_b", "sam_vit_l", "sam_vit_h", "mobile_sam"]
    for name, known in CHECKPOINTS.items():
        assert known.name == name
        assert known.file_name.startswith(name)
        assert known.file_name.endswith((".pth", ".pt"))
        assert len(bytes.fromhex(known.sha256)) == 32
        assert known.url.startswith("https://")
    # float32: four bytes a parameter; the models have 93.7, 312.3, 641.1 and 10.1 million
    millions = [known.size_bytes / 4e6 for known in CHECKPOINTS.values()]
    assert millions == pytest.approx([93.7, 312.3, 641.1, 10.1], abs=0.1)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(
        UnknownNameError, match=r"'sam_vit_x'; expected one of sam_vit_b, sam_vit_l, sam_vit_h, mobile_sam"
    ):
        get_checkpoint("sam_vit_x")


def test_cache_folder_follows_the_environment(cache, monkeypatch):
    assert cache_folder() == cache
    assert cached_path("sam_vit_b") == cache / "sam_vit_b_01ec64.pth"
    monkeypatch.delenv("ARRCOC_SAM_CACHE")
    assert cache_folder().name == "arrcoc_sam"


def test_fetch_returns_the_cached_file(cache, checkpoint):
    cache.mkdir()
    (cache / "toy.pth").write_bytes(CONTENT)
    assert fetch(checkpoint) == cache / "toy.pth"  # port 1 answers nobody: it was not asked
    (cache / "toy.pth").write_bytes(CONTENT[:100])
    with pytest.raises(CheckpointError, match=r"has 100 bytes; expected 7,000.*delete it"):
        fetch(checkpoint)


def test_fetch_downloads_by_url_and_digest(cache, checkpoint, monkeypatch, capsys):
    asked = []

    def fake(url, target, *, sha256, advance):
        asked.append((url, sha256))
        advance(500, 1000)
        return target

    monkeypatch.setattr(checkpoints_module, "download", fake)
    assert fetch(checkpoint, show_progress=True) == cache / "toy.pth"
    assert asked == [(checkpoint.url, checkpoint.sha256)]
    captured = capsys.readouterr()
    assert "toy.pth" in captured.err
    assert captured.out == ""


def test_no_progress_where_stderr_is_no_terminal(cache, checkpoint, monkeypatch, capsys):
    monkeypatch.setattr(checkpoints_module, "download", lambda url, target, *, sha256, advance: target)
    fetch(checkpoint)
    assert capsys.readouterr().err == ""


def test_verify(cache, checkpoint):
    with pytest.raises(CheckpointError, match=r"does not exist.*checkpoints fetch toy"):
        verify(checkpoint)
    cache.mkdir()
    file = cache / "toy.pth"
    file.write_bytes(CONTENT)
    assert verify(checkpoint) == file
    file.write_bytes(b"")
    with pytest.raises(CheckpointError, match="is empty"):
        verify(checkpoint)
    file.write_bytes(CONTENT[:-1])
    with pytest.raises(CheckpointError, match="has 6,999 bytes; expected 7,000"):
        verify(checkpoint)
    file.write_bytes(CONTENT[:-1] + b"!")
    with pytest.raises(CheckpointError, match=f"expected {checkpoint.sha256}"):
        verify(checkpoint)


def test_verify_another_path(tmp_path, checkpoint):
    (tmp_path / "elsewhere.pth").write_bytes(CONTENT)
    assert verify(checkpoint, path=tmp_path / "elsewhere.pth") == tmp_path / "elsewhere.pth"


@pytest.mark.parametrize("kind", ["pth", "legacy", "safetensors", "model", "state_dict"])
def test_weights_come_back_from_every_container(tmp_path, kind):
    torch.manual_seed(0)
    model, other = small_model(), small_model()
    state = model.state_dict()
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "safetensors":
        save_file(state, path)
    elif kind in ("model", "state_dict"):
        torch.save({kind: state, "epoch": 3}, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "pth")
    load_weights(other, path, name="toy")
    for key, value in other.state_dict().items():
        torch.testing.assert_close(value, state[key], rtol=0, atol=0)


class _Evil:
    def __reduce__(self):
        return (print, ("code of the file was run",))


def test_code_in_a_file_is_never_run(tmp_path, capsys):
    torch.save({"a": _Evil()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="would run code of its own"):
        read_weights(tmp_path / "evil.pth")
    assert capsys.readouterr().out == ""


def test_missing_and_empty_files(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        read_weights(tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match="is no file"):
        read_weights(tmp_path)
    (tmp_path / "empty.pth").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"empty.pth is empty \(0 bytes\)"):
        read_weights(tmp_path / "empty.pth")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_truncated_files(tmp_path, suffix, share):
    path = tmp_path / f"w.{suffix}"
    state = {f"t{i}": torch.randn(64) for i in range(20)}
    if suffix == "pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError) as caught:
        read_weights(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"<html>not found</html>", b"version https://git-lfs.github.com/spec/v1\noid", b"\x80\x04K\x01."]
)
def test_files_that_are_something_else(tmp_path, content):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"w\.pth"):
        read_weights(tmp_path / "w.pth")


def test_file_without_weights(tmp_path):
    torch.save([1, 2, 3], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="holds list, not weights"):
        read_weights(tmp_path / "list.pth")


def test_other_architecture_leaves_the_model_as_it_was(tmp_path):
    model = small_model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    torch.save(nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 4)).state_dict(), tmp_path / "w.pth")
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, tmp_path / "w.pth", name="toy")
    message = str(caught.value)
    assert "3 tensors missing, 0 unknown, 2 of another shape" in message
    assert "0.weight is (4, 5) in place of (4, 3)" in message
    assert "the 7 tensors of toy" in message
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)
