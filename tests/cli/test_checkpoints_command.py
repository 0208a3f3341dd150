from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import arrcoc_sam.segmenters.checkpoints as checkpoints_module

Command = Callable[..., Any]


def test_the_list_says_what_is_known_and_where_it_is(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARRCOC_SAM_CACHE", str(tmp_path / "cache"))
    answer = command("checkpoints", "list")
    assert answer.code == 0
    for expected in ("tiny", "sam_vit_b", "sam_vit_l", "sam_vit_h", "375.0 MB", "2.56 GB", "Apache-2.0", "not fetched"):
        assert expected in answer.out
    assert str(tmp_path / "cache") in answer.err
    record = json.loads(command("checkpoints", "list", "--json").out)
    vit_b = next(known for known in record["checkpoints"] if known["name"] == "sam_vit_b")
    assert vit_b["sha256"].startswith("ec2df627")
    assert vit_b["present"] is False
    tiny = record["checkpoints"][0]
    assert tiny.keys() == vit_b.keys()
    assert tiny["sha256"] == hashlib.sha256(Path(tiny["path"]).read_bytes()).hexdigest()
    refused = command("checkpoints", "verify", "tiny")
    assert refused.code == 2
    assert 'its weights are in the package: load_segmenter("tiny")' in refused.err
    assert Path(vit_b["path"]).parent == tmp_path / "cache"


def test_a_good_file_is_verified(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = b"weights"
    digest = hashlib.sha256(data).hexdigest()
    known = checkpoints_module.Checkpoint("sam_vit_b", "https://example.org/w.pth", len(data), digest, "MIT")
    monkeypatch.setattr(checkpoints_module, "CHECKPOINTS", {"sam_vit_b": known})
    monkeypatch.setenv("ARRCOC_SAM_CACHE", str(tmp_path))
    (tmp_path / "w.pth").write_bytes(data)
    answer = command("checkpoints", "verify", "sam_vit_b")
    assert answer.code == 0
    assert digest in answer.out
    for word in ("verify", "fetch"):
        record = json.loads(command("checkpoints", word, "sam_vit_b", "--json").out)
        assert record == {"name": "sam_vit_b", "path": str(tmp_path / "w.pth"), "sha256": digest}
    # What is there already is not fetched again.
    assert command("checkpoints", "fetch", "sam_vit_b").out.strip() == str(tmp_path / "w.pth")
