from __future__ import annotations

from pathlib import Path

import pytest

from arrcoc_sam.cli.options import wherever


def test_a_relative_folder_of_a_model_is_found_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "sam").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert wherever("hf:models/sam") == f"hf:{tmp_path}/models/sam"
    for name in ("hf:facebook/sam2.1-hiera-tiny", "timm:models", "sam_vit_b", "tiny"):
        assert wherever(name) == name
