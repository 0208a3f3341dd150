"""``arrcoc-sam checkpoints``: known weights, fetched and verified."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["checkpoints"]

checkpoints = typer.Typer(help="Known weights: list, fetch, verify.", pretty_exceptions_enable=False)

_Json = Annotated[bool, typer.Option("--json", help="Machine-readable, on stdout.")]
_Name = Annotated[
    str, typer.Argument(help="A checkpoint that is fetched: any in `arrcoc-sam checkpoints list` but tiny.")
]


@checkpoints.command("list")
def list_checkpoints(
    as_json: _Json = False,
) -> None:
    """Known checkpoints: size, licence, SHA-256, and where they are cached."""
    from arrcoc_sam.cli.console import err, out, print_json, print_table
    from arrcoc_sam.segmenters.checkpoints import CHECKPOINTS, cache_folder, cached_path
    from arrcoc_sam.segmenters.download import sha256_of
    from arrcoc_sam.segmenters.tiny import tiny_weights_path

    shipped = Path(tiny_weights_path())
    tiny: dict[str, object] = {
        "name": "tiny",
        "size_bytes": shipped.stat().st_size if shipped.is_file() else None,
        "licence": "Apache-2.0",
        "sha256": sha256_of(shipped) if shipped.is_file() else None,
        "url": None,
        "path": str(shipped),
        "present": shipped.is_file(),
        "demonstration_model": True,
    }
    records: list[dict[str, object]] = [
        tiny,
        *(
            {
                "name": known.name,
                "size_bytes": known.size_bytes,
                "licence": known.licence,
                "sha256": known.sha256,
                "url": known.url,
                "path": str(cached_path(known)),
                "present": cached_path(known).is_file(),
                "demonstration_model": False,
            }
            for known in CHECKPOINTS.values()
        ),
    ]
    if as_json:
        print_json({"cache_folder": str(cache_folder()), "checkpoints": records})
        return
    rows = [
        (
            str(record["name"]),
            "–" if record["size_bytes"] is None else _size(int(str(record["size_bytes"]))),
            "in the package" if record is tiny else "cached" if record["present"] else "not fetched",
            f"{record['licence']}, SHA-256 {str(record['sha256'])[:16]}…"
            + (", for demonstration" if record is tiny else ""),
        )
        for record in records
    ]
    print_table("Checkpoints", ["name", "size", "where", "what"], rows, to=out(), right=["size"])
    err().print(f"cache: {cache_folder()}", soft_wrap=True, markup=False)


@checkpoints.command()
def fetch(name: _Name, as_json: _Json = False) -> None:
    """Download a checkpoint, verify it, and keep it in the cache. A broken download is continued."""
    from arrcoc_sam.segmenters import checkpoints as known

    path = known.fetch(name)
    _tell(name, path, str(path), as_json=as_json)


@checkpoints.command()
def verify(
    name: _Name,
    path: Annotated[Path | None, typer.Option(help="A file elsewhere than in the cache.", show_default=False)] = None,
    as_json: _Json = False,
) -> None:
    """Compare a checkpoint's file with the published SHA-256."""
    from arrcoc_sam.segmenters import checkpoints as known

    verified = known.verify(name, path=path)
    _tell(name, verified, f"{verified} is {name}: SHA-256 {known.get_checkpoint(name).sha256}", as_json=as_json)


def _tell(name: str, path: Path, words: str, *, as_json: bool) -> None:
    """Which file it is, whose content has been compared."""
    from arrcoc_sam.cli.console import print_json
    from arrcoc_sam.segmenters.checkpoints import get_checkpoint

    if as_json:
        print_json({"name": name, "path": str(path), "sha256": get_checkpoint(name).sha256})
    else:
        print(words)


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count < 1e9 else f"{count / 1e9:,.2f} GB"
