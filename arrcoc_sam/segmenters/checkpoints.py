"""Published checkpoints: what they are, where they are kept, and how their weights are read.

Files are fetched on request, verified by SHA-256 and kept in one cache folder. Weights are read without unpickling
code (``weights_only=True``, or safetensors), and a file that is not what it should be says so in one line.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from platformdirs import user_cache_path
from torch import Tensor, nn

from arrcoc_sam.errors import CheckpointError, UnknownNameError, explain, first_line
from arrcoc_sam.segmenters.download import Advance, download, sha256_of

__all__ = [
    "CHECKPOINTS",
    "Checkpoint",
    "cache_folder",
    "cached_path",
    "fetch",
    "get_checkpoint",
    "header_of",
    "load_weights",
    "read_weights",
    "taught_prompt",
    "verify",
    "weights_hash",
]

CACHE_VARIABLE = "ARRCOC_SAM_CACHE"
"""The environment variable that names another cache folder."""

_SEGMENT_ANYTHING = "https://dl.fbaipublicfiles.com/segment_anything"


@dataclass(frozen=True)
class Checkpoint:
    """A published file of weights.

    Attributes:
        name: The segmenter that it is for (``load_segmenter(name)``).
        url: Where it is published; the last part is the file's name in the cache.
        size_bytes: Its size.
        sha256: Its digest, hexadecimal.
        licence: SPDX identifier of the weights' licence.
    """

    name: str
    url: str
    size_bytes: int
    sha256: str
    licence: str

    @property
    def file_name(self) -> str:
        """Name of the file in the cache folder."""
        return self.url.rsplit("/", 1)[-1]


CHECKPOINTS: Mapping[str, Checkpoint] = {
    checkpoint.name: checkpoint
    for checkpoint in (
        Checkpoint(
            "sam_vit_b",
            f"{_SEGMENT_ANYTHING}/sam_vit_b_01ec64.pth",
            375_042_383,
            "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
            "Apache-2.0",
        ),
        Checkpoint(
            "sam_vit_l",
            f"{_SEGMENT_ANYTHING}/sam_vit_l_0b3195.pth",
            1_249_524_607,
            "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
            "Apache-2.0",
        ),
        Checkpoint(
            "sam_vit_h",
            f"{_SEGMENT_ANYTHING}/sam_vit_h_4b8939.pth",
            2_564_550_879,
            "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
            "Apache-2.0",
        ),
        Checkpoint(
            "mobile_sam",
            "https://raw.githubusercontent.com/ChaoningZhang/MobileSAM/"
            "f706ad9c4eb7f219c00d9050e46328518ffb65d2/weights/mobile_sam.pt",
            40_728_226,
            "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
            "Apache-2.0",
        ),
    )
}
"""Known checkpoints by the segmenter's name."""


def get_checkpoint(name: str) -> Checkpoint:
    """The known checkpoint of this name.

    Raises:
        UnknownNameError: There is none.

    Example:
        >>> get_checkpoint("sam_vit_b").file_name
        'sam_vit_b_01ec64.pth'
    """
    if name not in CHECKPOINTS:
        raise UnknownNameError(explain(f"no checkpoint is called {name!r}", f"one of {', '.join(CHECKPOINTS)}"))
    return CHECKPOINTS[name]


def cache_folder() -> Path:
    """Where checkpoints are kept: ``$ARRCOC_SAM_CACHE``, or the platform's cache folder for this package."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named).expanduser() if named else user_cache_path("arrcoc_sam")


def cached_path(checkpoint: str | Checkpoint) -> Path:
    """Where the checkpoint's file is or would be in the cache; whether it is there, ``.exists()`` tells."""
    known = get_checkpoint(checkpoint) if isinstance(checkpoint, str) else checkpoint
    return cache_folder() / known.file_name


def fetch(checkpoint: str | Checkpoint, *, show_progress: bool | None = None) -> Path:
    """The checkpoint's file in the cache, downloaded if it is not there.

    A broken download is continued by the next call; a file appears under its name only once its SHA-256 matched.

    Args:
        checkpoint: A name of ``CHECKPOINTS``, or a checkpoint of your own.
        show_progress: A progress bar on stderr; by default when stderr is a terminal.

    Returns:
        The file.

    Raises:
        UnknownNameError: No checkpoint has this name.
        CheckpointError: The server can't be reached or sends another file, or the cached one has another size.
        OutputError: The cache folder can't be written.
    """
    known = get_checkpoint(checkpoint) if isinstance(checkpoint, str) else checkpoint
    path = cached_path(known)
    if path.exists():
        _require_size(path, known)
        return path
    with _progress(f"Fetching {known.file_name}", show=show_progress) as advance:
        return download(known.url, path, sha256=known.sha256, advance=advance)


def verify(checkpoint: str | Checkpoint, *, path: str | Path | None = None, show_progress: bool | None = None) -> Path:
    """Check that a file is the published checkpoint, byte by byte.

    Args:
        checkpoint: A name of ``CHECKPOINTS``, or a checkpoint of your own.
        path: The file; by default the one in the cache.
        show_progress: A progress bar on stderr; by default when stderr is a terminal.

    Returns:
        The file.

    Raises:
        UnknownNameError: No checkpoint has this name.
        CheckpointError: The file is missing, has another size or another SHA-256.
    """
    known = get_checkpoint(checkpoint) if isinstance(checkpoint, str) else checkpoint
    file = cached_path(known) if path is None else Path(path).expanduser()
    _require_file(file, mend=f"fetch it: {_fetch_command(known)}")
    _require_size(file, known)
    with _progress(f"Verifying {known.file_name}", show=show_progress) as advance:
        digest = sha256_of(file, advance=advance)
    if digest != known.sha256:
        mend = f"delete it and fetch it anew: {_fetch_command(known)}"
        raise CheckpointError(explain(f"{file} has SHA-256 {digest}", known.sha256, mend))
    return file


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name from a ``.safetensors`` file or a PyTorch ``.pth`` / ``.pt`` file, on the CPU.

    No code of the file is run. A PyTorch file may hold the state dict itself, or hold it under ``model`` or
    ``state_dict``, as training loops write it.

    Args:
        path: The file.

    Returns:
        The state dict.

    Raises:
        CheckpointError: The file is missing, empty, truncated, needs code to be run, or holds something else.
    """
    file = Path(path).expanduser()
    _require_file(file, mend="give the path of a checkpoint")
    mend = "copy or download it again, and compare its SHA-256 with the publisher's"
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(file)
        else:
            # Files of PyTorch >= 1.6 are mapped, so that a large one is not in memory twice.
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            explain(
                f"{file} is damaged, or would run code of its own to be read, which is never done here",
                "a state dict of tensors (.pth or .safetensors)",
                mend,
            )
        ) from error
    except Exception as error:  # torch and safetensors raise a dozen kinds on damaged files
        came = f"{file} can't be read as weights ({first_line(error)})"
        raise CheckpointError(explain(came, "a whole .pth or .safetensors file", mend)) from error
    for key in ("model", "state_dict"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(explain(f"{file} holds {type(state).__name__}, not weights", "a state dict of tensors"))
    return dict(state)


def header_of(path: str | Path) -> dict[str, str]:
    """The texts in the header of a .safetensors file that can be read; none of any other file."""
    file = Path(path).expanduser()
    if file.suffix != ".safetensors":
        return {}
    from safetensors import safe_open

    with safe_open(file, "pt") as weights:
        return dict(weights.metadata() or {})


def taught_prompt(header: Mapping[str, str]) -> str | None:
    """How weights of ``train iou-head`` are shown the mask that their head judges; None of all others."""
    if "judges" in header or "run" not in header:
        return header.get("judges")
    try:  # before the header said so itself, the record of the run did
        return str(json.loads(header["run"])["transfer"]["prompt"])
    except (ValueError, KeyError, TypeError):
        return None


def load_weights(
    model: nn.Module,
    path: str | Path,
    *,
    name: str,
    rename: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None = None,
) -> None:
    """Read weights from a file into a model, every tensor or none.

    Args:
        model: The model; its tensors are overwritten in place. A model on the meta device gets tensors of its own on
            the CPU, which saves drawing random weights first.
        path: A file for :func:`read_weights`.
        name: What the model is called in the error message.
        rename: Gives the file's tensors the model's names, where these differ.

    Raises:
        CheckpointError: As for :func:`read_weights`, or the tensors are those of another architecture.
    """
    state, wanted = read_weights(path), model.state_dict()
    state = state if rename is None else rename(state)
    missing = [key for key in wanted if key not in state]
    extra = [key for key in state if key not in wanted]
    other = [key for key in wanted if key in state and state[key].shape != wanted[key].shape]
    if missing or extra or other:
        details = [f"{len(missing)} tensors missing, {len(extra)} unknown, {len(other)} of another shape"]
        if other:
            details.append(f"{other[0]} is {tuple(state[other[0]].shape)} in place of {tuple(wanted[other[0]].shape)}")
        elif missing or extra:
            details.append(f"{(missing or extra)[0]} for one")
        raise CheckpointError(
            explain(
                f"{path} holds weights of another architecture ({'; '.join(details)})",
                f"the {len(wanted)} tensors of {name}",
                "give the file that belongs to this segmenter, or name the segmenter that belongs to this file",
            )
        )
    # Copies, so that no parameter stays mapped to the file.
    state = {key: state[key].to(wanted[key].dtype, copy=True) for key in wanted}
    model.load_state_dict(state, assign=True)


def weights_hash(model: nn.Module, *, frame_hw: tuple[int, int]) -> str:
    """SHA-256 over a model's weights and the size of its frame, whatever file they came from.

    Args:
        model: The model.
        frame_hw: The size of its frame, which the same weights may be used with several of.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> weights_hash(layer, frame_hw=(8, 8)) == weights_hash(layer, frame_hw=(8, 16))
        False
    """
    digest = hashlib.sha256(f"frame {frame_hw[0]} {frame_hw[1]}".encode())
    for key, value in sorted(model.state_dict().items()):
        tensor = value.detach().cpu().contiguous()
        digest.update(f"\n{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _require_file(file: Path, *, mend: str) -> None:
    if not file.is_file():
        raise CheckpointError(explain(f"{file} does not exist or is no file", "a file of weights", mend))
    if file.stat().st_size == 0:
        raise CheckpointError(explain(f"{file} is empty (0 bytes)", "a file of weights", mend))


def _require_size(file: Path, known: Checkpoint) -> None:
    size = file.stat().st_size
    if size != known.size_bytes:
        mend = f"delete it and fetch it anew: {_fetch_command(known)}"
        raise CheckpointError(explain(f"{file} has {size:,} bytes", f"{known.size_bytes:,}", mend))


def _fetch_command(known: Checkpoint) -> str:
    return f"arrcoc-sam checkpoints fetch {known.name}"


@contextmanager
def _progress(text: str, *, show: bool | None) -> Iterator[Advance | None]:
    """A bar for bytes on stderr, or None where none is wanted."""
    if not (sys.stderr.isatty() if show is None else show):
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task(text, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
