"""Reading weights from good and bad files."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from arrcoc_sam.errors import CheckpointError
from arrcoc_sam.segmenters.weights import as_bytes, load_weights, read_weights


def small_model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


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


def test_weights_in_a_byte_a_number_come_back_rounded(tmp_path):
    torch.manual_seed(0)
    sizes = torch.logspace(-3, 1, 5)[:, None, None, None]
    weights = {"kernel": torch.randn(5, 3, 2, 2) * sizes, "bias": torch.randn(5)}
    weights["kernel"][2] = 0.0
    path = tmp_path / "w.safetensors"
    for _ in range(2):  # what was rounded is not rounded further
        save_file(as_bytes(weights, ["kernel"]), path)
        found = read_weights(path)
        assert list(found) == ["bias", "kernel"]
        assert found["kernel"].dtype == torch.float32
        assert torch.equal(found["bias"], weights["bias"])
        off = (found["kernel"] - weights["kernel"]).abs().flatten(1).amax(dim=1)
        assert (off <= weights["kernel"].abs().flatten(1).amax(dim=1) / 253).all()
        torch.testing.assert_close(read_weights(path)["kernel"][2], torch.zeros(3, 2, 2))
        weights, before = found, weights
    torch.testing.assert_close(weights["kernel"], before["kernel"], rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("changed", "told"),
    [({"0.weight": None}, "0.weight as torch.int8"), ({"0.weight": torch.ones(3)}, "0.weight as"), ({}, "")],
)
def test_bytes_without_their_scales_are_no_weights(tmp_path, changed, told):
    model = small_model()
    stored = as_bytes(model.state_dict(), ["0.weight"])
    (scale,) = stored.keys() - model.state_dict().keys()
    for value in changed.values():
        stored.pop(scale) if value is None else stored.update({scale: value})
    path = tmp_path / "w.safetensors"
    save_file(stored, path)
    if not told:
        load_weights(model, path, name="toy")
        return
    with pytest.raises(CheckpointError, match=told):
        load_weights(model, path, name="toy")


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
