"""Where a result comes from: versions, weights, seed, command."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from arrcoc_sam._version import __version__

__all__ = ["DEMONSTRATION_MODEL", "Provenance", "installed_versions"]

DEMONSTRATION_MODEL = "tiny"
"""The segmenter whose results are marked as a demonstration."""

_SHOWN = ("torch", "numpy", "segment-anything", "timm", "scikit-image")
_SHOWN_IF_INSTALLED = ("transformers", "av")


def installed_versions() -> dict[str, str]:
    """Versions of this package, of Python and of the libraries that results depend on."""
    versions = {"arrcoc-sam": __version__, "python": platform.python_version()}
    for name in _SHOWN:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    for name in _SHOWN_IF_INSTALLED:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


@dataclass(frozen=True)
class Provenance:
    """What made a result, so that someone else can make it again.

    Attributes:
        command: The command line, quoted for a shell.
        segmenter: What the segmenter was loaded as.
        checkpoint_hash: SHA-256 over the segmenter's weights.
        attention: What the attention source was.
        device: Where the segmenter ran.
        seed: The seed of everything random; None where nothing was.
        versions: Library to version.
        created: When, UTC.
    """

    command: str | None = None
    segmenter: str | None = None
    checkpoint_hash: str | None = None
    attention: str | None = None
    device: str | None = None
    seed: int | None = None
    versions: Mapping[str, str] = field(default_factory=installed_versions)
    created: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def demonstration(self) -> bool:
        """Whether the masks come from the embedded demonstration model."""
        return self.segmenter == DEMONSTRATION_MODEL

    def rows(self) -> list[tuple[str, str]]:
        """What is known, as pairs of words, in the order of a page."""
        known: list[tuple[str, str | None]] = [
            ("Command", self.command),
            ("Segmenter", f"{self.segmenter} (demonstration model)" if self.demonstration else self.segmenter),
            ("Weights, SHA-256", self.checkpoint_hash),
            ("Attention", self.attention),
            ("Device", self.device),
            ("Seed", None if self.seed is None else str(self.seed)),
            *((f"{name} version", number) for name, number in self.versions.items()),
            ("Made", self.created.strftime("%Y-%m-%d %H:%M UTC")),
        ]
        return [(name, value) for name, value in known if value is not None]

    def as_json(self) -> dict[str, Any]:
        """The same as a dictionary for JSON."""
        return {
            "command": self.command,
            "segmenter": self.segmenter,
            "demonstration_model": self.demonstration,
            "checkpoint_hash": self.checkpoint_hash,
            "attention": self.attention,
            "device": self.device,
            "seed": self.seed,
            "versions": dict(self.versions),
            "created": self.created.isoformat(timespec="seconds"),
        }
