"""The registry, the cache, and verification."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from arrcoc_sam.errors import CheckpointError, UnknownNameError
from arrcoc_sam.segmenters import checkpoints as checkpoints_module
from arrcoc_sam.segmenters.checkpoints import (
    CHECKPOINTS,
    Checkpoint,
    cache_folder,
    cached_path,
    fetch,
    get_checkpoint,
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

    def fake(url, target, *, sha256, size_bytes, advance):
        asked.append((url, sha256, size_bytes))
        advance(500, 1000)
        return target

    monkeypatch.setattr(checkpoints_module, "download", fake)
    assert fetch(checkpoint, show_progress=True) == cache / "toy.pth"
    assert asked == [(checkpoint.url, checkpoint.sha256, checkpoint.size_bytes)]
    captured = capsys.readouterr()
    assert "toy.pth" in captured.err
    assert captured.out == ""


def test_no_progress_where_stderr_is_no_terminal(cache, checkpoint, monkeypatch, capsys):
    monkeypatch.setattr(checkpoints_module, "download", lambda url, target, **options: target)
    fetch(checkpoint)
    assert capsys.readouterr().err == ""


def test_verify(cache, checkpoint):
    with pytest.raises(CheckpointError, match=r"does not exist.*checkpoints fetch toy"):
        verify(checkpoint)
    cache.mkdir()
    file = cache / "toy.pth"
    file.write_bytes(CONTENT)
    assert verify(checkpoint) == file
    assert verify(replace(checkpoint, sha256=checkpoint.sha256.upper())) == file
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
