"""One large file over HTTP: resumed where it broke off, verified, moved into place only when whole.

A download writes to ``<target>.part`` under a file lock, so that two processes never write the same bytes, and what
an interruption left is continued with a Range request. The target appears by an atomic rename after its SHA-256
matched: a file under its own name is a whole one.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse, IncompleteRead
from pathlib import Path

from filelock import FileLock

from arrcoc_sam.errors import CheckpointError, InputError, OutputError, explain

__all__ = ["Advance", "download", "sha256_of"]

Advance = Callable[[int, int | None], None]
"""Called with (bytes so far, bytes in all or None where the server does not say)."""

_BLOCK = 1 << 20


def sha256_of(path: Path, *, advance: Advance | None = None) -> str:
    """SHA-256 of a file in hexadecimal, read in blocks of 1 MiB.

    Args:
        path: The file.
        advance: Called after every block.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "empty"
        ...     _ = path.write_bytes(b"")
        ...     sha256_of(path)[:16]
        'e3b0c44298fc1c14'
    """
    digest, done, total = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            done += len(block)
            if advance is not None:
                advance(done, total)
    return digest.hexdigest()


def download(
    url: str,
    target: Path,
    *,
    sha256: str,
    size_bytes: int | None = None,
    attempts: int = 5,
    wait_s: float = 1.0,
    timeout_s: float = 30.0,
    advance: Advance | None = None,
) -> Path:
    """Fetch ``url`` to ``target``; a partial download is continued, and nothing but a verified file gets the name.

    Args:
        url: ``http(s)`` address.
        target: Where the file goes; its folder is made. An existing file is returned as it is.
        sha256: The expected digest, hexadecimal.
        size_bytes: The file's size, where it is known: without a word of the server it tells a whole file from one that
            broke off.
        attempts: Tries in a row that bring no new byte before giving up; a try that brought some starts the count anew.
        wait_s: Pause before going on; doubled for every try in a row that brought nothing.
        timeout_s: How long to wait for the server each time.
        advance: Called as bytes arrive.

    Returns:
        ``target``.

    Raises:
        InputError: ``url`` is no such address.
        CheckpointError: The server refuses, the transfer breaks off for good (what came is kept), the digest differs.
        OutputError: The folder can't be written or the disk is full.
    """
    if not url.lower().startswith(("http://", "https://")):
        raise InputError(explain(f"url={url!r}", "an address, https://…"))
    part = target.with_name(target.name + ".part")

    def transfer() -> str:
        _transfer(url, part, size_bytes, attempts=attempts, wait_s=wait_s, timeout_s=timeout_s, advance=advance)
        return sha256_of(part)

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(target.name + ".lock")):
            if target.exists():  # another process was faster
                return target
            resumed = part.exists() and part.stat().st_size > 0
            came = transfer()
            if came != sha256.lower() and resumed:
                # The first half may be of another version of the file or damaged: once more from the start.
                part.unlink()
                came = transfer()
            if came != sha256.lower():
                part.unlink()
                raise CheckpointError(
                    explain(
                        f"{url} has SHA-256 {came}", sha256, "the file was not kept; check the address or the proxy"
                    )
                )
            part.replace(target)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(
            explain(
                f"{target} can't be written ({error.strerror or error})",
                "a writable folder with enough space",
                "name another one by the environment variable ARRCOC_SAM_CACHE",
            )
        ) from error
    return target


class _BrokenOffError(Exception):
    """The connection failed or ended early; worth another try."""


def _transfer(
    url: str,
    part: Path,
    size_bytes: int | None,
    *,
    attempts: int,
    wait_s: float,
    timeout_s: float,
    advance: Advance | None,
) -> None:
    """Append to ``part`` until it is complete, over as many connections as it takes."""
    failed = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _transfer_once(url, part, size_bytes, timeout_s=timeout_s, advance=advance)
            return
        except _BrokenOffError as error:
            grown = part.exists() and part.stat().st_size > before
            failed = 0 if grown else failed + 1
            if failed >= attempts:
                kept = f"{part.stat().st_size:,} bytes are kept" if part.exists() else "nothing came"
                raise CheckpointError(
                    explain(
                        f"{url} broke off: {error} ({kept})",
                        "a connection to the server",
                        "run the same command again to go on where it stopped, or give a local file as checkpoint",
                    )
                ) from error
            time.sleep(wait_s * 2**failed)


def _transfer_once(url: str, part: Path, size_bytes: int | None, *, timeout_s: float, advance: Advance | None) -> None:
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response: HTTPResponse = urllib.request.urlopen(request, timeout=timeout_s)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and start:
            # Nothing after the last byte that we hold: it is complete, or not this file. The digest tells.
            return
        if error.code in (408, 429) or error.code >= 500:
            raise _BrokenOffError(f"the server answers {error.code} {error.reason}") from error
        raise CheckpointError(
            explain(f"{url} answers {error.code} {error.reason}", "a file", "check the address, or give a local file")
        ) from error
    except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
        raise _BrokenOffError(str(getattr(error, "reason", error)) or type(error).__name__) from error
    with response:
        # A server without Range answers 200 with the whole file: begin again.
        offset = start if response.status == 206 else 0
        if offset and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            part.unlink()
            raise _BrokenOffError("the server sent another part than asked for")
        length = response.headers.get("Content-Length")
        total = offset + int(length) if length is not None else size_bytes
        _require_space(part.parent, None if total is None else total - offset)
        with part.open("ab" if offset else "wb") as file:
            done = offset
            while True:
                try:
                    block = response.read(_BLOCK)
                except (HTTPException, TimeoutError, ConnectionError) as error:
                    if isinstance(error, IncompleteRead):  # what came of the block
                        file.write(error.partial)
                    raise _BrokenOffError(str(error) or type(error).__name__) from error
                if not block:
                    break
                file.write(block)
                done += len(block)
                if advance is not None:
                    advance(done, total)
            file.flush()
            os.fsync(file.fileno())
    # http.client ends a response that was cut short like one that is complete: count.
    if total is not None and done < total:
        raise _BrokenOffError(f"{done:,} of {total:,} bytes came")


def _require_space(folder: Path, needed: int | None) -> None:
    free = shutil.disk_usage(folder).free
    if needed is not None and needed > free:
        raise OutputError(
            explain(
                f"{folder} has {free:,} bytes free",
                f"{needed:,} for the download",
                "free some, or name another folder by the environment variable ARRCOC_SAM_CACHE",
            )
        )
