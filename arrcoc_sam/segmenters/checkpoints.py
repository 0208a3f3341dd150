"""Published checkpoints: what they are, and where they are kept.

Files are fetched on request, verified by SHA-256 and kept in one cache folder. How their weights are read is told in
:mod:`arrcoc_sam.segmenters.weights`, whose names can be had from here too.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_cache_path

from arrcoc_sam.errors import CheckpointError, UnknownNameError, explain, near_name
from arrcoc_sam.segmenters.download import Advance, download, sha256_of
from arrcoc_sam.segmenters.weights import (
    header_of,
    load_weights,
    read_weights,
    require_file,
    taught_prompt,
    weights_hash,
)

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
        known = f"one of {', '.join(CHECKPOINTS)}"
        if name == "tiny":
            mend = 'its weights are in the package: load_segmenter("tiny")'
            raise UnknownNameError(explain("'tiny' is no file to fetch or to verify", known, mend))
        raise UnknownNameError(explain(f"no checkpoint is called {name!r}", known, near_name(name, CHECKPOINTS)))
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
        return download(known.url, path, sha256=known.sha256, size_bytes=known.size_bytes, advance=advance)


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
    require_file(file, mend=f"fetch it: {_fetch_command(known)}")
    _require_size(file, known)
    with _progress(f"Verifying {known.file_name}", show=show_progress) as advance:
        digest = sha256_of(file, advance=advance)
    if digest != known.sha256.lower():
        mend = f"delete it and fetch it anew: {_fetch_command(known)}"
        raise CheckpointError(explain(f"{file} has SHA-256 {digest}", known.sha256, mend))
    return file


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
