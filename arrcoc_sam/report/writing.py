"""Files that appear whole or not at all, and the folders that they go to."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from arrcoc_sam.errors import OutputError, explain, first_line

__all__ = ["made_folder", "refuse_overwriting", "replacing", "saving", "write_text"]

# What torch.save and safetensors say where a write failed.
_WRITING = re.compile(
    r"PyTorchStreamWriter|inline_container|iostream error|unexpected pos|I/O ?error|os error|\bwrit(?:e|ing)\b", re.I
)


def made_folder(path: Path) -> Path:
    """The folder, made with its parents where it is missing.

    Raises:
        OutputError: It can't be made: one of the names is a file, the disk is read-only.

    Example:
        >>> made_folder(getfixture("tmp_path") / "run" / "scenes").is_dir()
        True
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        came = f"{path} can't be made ({error.strerror or error})"
        raise OutputError(explain(came, "a folder to write to", "name another one")) from error
    return path


def refuse_overwriting(written: Iterable[Path], read: Iterable[Path | None]) -> None:
    """See that nothing that is to be written takes the place of what it is made of.

    Args:
        written: Files and folders that are to be written, whether they are there or not.
        read: What they are made of; None for what was not given.

    Raises:
        OutputError: One of them is written and read.

    Example:
        >>> refuse_overwriting([Path("kept.json"), Path("kept.report.html")], [Path("masks.json"), None])
    """
    sources = [path.expanduser() for path in read if path is not None]
    for path in written:
        target = path.expanduser().resolve()  # "new/../masks.json" is there once "new" is made
        if target.exists() and any(source.exists() and source.samefile(target) for source in sources):
            mend = "name another output: this one would overwrite what it is made of"
            raise OutputError(explain(f"{path} is to be written and to be read", "two files", mend))


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary name to write to, beside ``path``, that takes its place when the block ends without an error.

    Args:
        path: The file; its folder is made if need be.

    Yields:
        The temporary name, with the ending of ``path``.

    Raises:
        OutputError: The folder can't be made or written, ``path`` is a folder, the disk is full.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> with replacing(folder / "a.txt") as temporary:
        ...     _ = temporary.write_text("done")
        >>> [file.name for file in folder.iterdir()]
        ['a.txt']
    """
    target = Path(path).expanduser()
    if target.is_dir():
        raise OutputError(explain(f"{target} is a folder", "the name of a file to write"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.stem[:40]}-", suffix=target.suffix, dir=target.parent)
        os.close(handle)
    except OSError as error:
        raise OutputError(_refused(target, error)) from error
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files that only their owner reads; give this one what any other new file would have.
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(target)
    except OSError as error:
        raise OutputError(_refused(target, error)) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def saving(path: str | Path) -> Iterator[Path]:
    """:func:`replacing` for ``torch.save`` and safetensors, which raise errors of their own kinds on a full disk.

    Args:
        path: As for :func:`replacing`.

    Yields:
        The temporary name.

    Raises:
        OutputError: As for :func:`replacing`, and where the library says that it could not write.
    """
    try:
        with replacing(path) as temporary:
            yield temporary
    except (RuntimeError, SafetensorError) as error:
        if not _WRITING.search(str(error)):  # of what was to be written: a device out of memory, for one
            raise
        came = f"{path} can't be written ({first_line(error)})"
        raise OutputError(explain(came, "room for it", "free some of the disk, or name another place")) from error


def write_text(path: str | Path, text: str) -> Path:
    """Write a UTF-8 text file, whole or not at all; returns its path."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def _refused(target: Path, error: OSError) -> str:
    return explain(f"{target} can't be written ({error.strerror or error})", "a place to write to", "name another one")


def _umask() -> int:
    # There is no way to read it but to set it.
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
