"""Output folders that are filled at the end, in one go: what fails half way leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from arrcoc_sam.errors import OutputError, explain

__all__ = ["staged_folder"]

# Who names such a folder means a file of this form.
_FILE_SUFFIXES = (".csv", ".html", ".jpeg", ".jpg", ".json", ".mp4", ".parquet", ".pdf", ".png", ".svg")


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """A temporary folder whose files move to ``target`` when the block ends without an error.

    Files of the same names are replaced, one rename each; whatever else is in ``target`` stays. The temporary folder
    lies on the same disk, in the nearest folder that exists, so that a name that can't be written is found out before
    any work.

    Args:
        target: The folder; made with its parents if need be, and not before the end.

    Yields:
        The temporary folder.

    Raises:
        OutputError: ``target`` is a file or named like one, or lies where nothing can be written.
    """
    target = target.expanduser()
    if target.suffix.lower() in _FILE_SUFFIXES and not target.exists():
        came, mend = f"{target} is the name of a file", f"name one with --out, such as {target.with_suffix('')}"
        raise OutputError(explain(came, "a folder to write results to", mend))
    ground = target
    while not ground.exists():
        ground = ground.parent
    if not ground.is_dir():
        raise OutputError(explain(f"{ground} is a file", "a folder to write results to", "name another one"))
    # Beside the target, where it exists already: a folder that is being listed does not show a stranger.
    parent = ground.parent if ground == target and os.access(ground.parent, os.W_OK) else ground
    if parent.stat().st_dev != ground.stat().st_dev:
        parent = ground
    if not os.access(ground, os.W_OK):
        raise _refused(target, "permission denied")
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name[:40]}-", dir=parent))
    except OSError as error:
        raise _refused(target, error.strerror or str(error)) from error
    try:
        yield temporary
        for file in sorted(path for path in temporary.rglob("*") if path.is_file()):
            place = target / file.relative_to(temporary)
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                file.replace(place)
            except OSError as error:
                raise _refused(place, error.strerror or str(error)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _refused(target: Path, reason: str) -> OutputError:
    return OutputError(explain(f"{target} can't be written ({reason})", "a folder to write to", "name another one"))
