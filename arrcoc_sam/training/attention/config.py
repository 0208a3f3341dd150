"""The file of settings of ``arrcoc-sam train attention``."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from arrcoc_sam.errors import InputError, explain
from arrcoc_sam.training.attention.settings import AttentionTraining
from arrcoc_sam.training.configuration import read_section, read_toml

__all__ = ["AttentionConfig", "AttentionData", "default_config"]


@dataclass(frozen=True)
class AttentionData:
    """What is trained on.

    Attributes:
        kind: "scenes" or "cache".
        scenes: Pictures to train on, of kind "scenes".
        validation: Pictures to judge on; the most, of kind "cache".
        size: Side of the scenes.
        clicks: The most a scene.
        levels: "segmenter" or "truth", of kind "scenes".
        cache: The folder to train on, of kind "cache"; in a file of settings relative to that file.
        validation_cache: The folder to judge on, alike; without one nothing is judged.
        images: Where the pictures of ``cache`` are now, if they were moved since it was built: the folder in place of
            the deepest one that held them all; relative as ``cache`` is.
        validation_images: Those of ``validation_cache``, alike.
    """

    kind: Literal["scenes", "cache"] = "scenes"
    scenes: int = 200
    validation: int = 48
    size: int = 256
    clicks: int = 6
    levels: Literal["segmenter", "truth"] = "segmenter"
    cache: str | None = None
    validation_cache: str | None = None
    images: str | None = None
    validation_images: str | None = None

    def __post_init__(self) -> None:
        """Check what goes together.

        Raises:
            InputError: A number out of its range, or fields of another kind.
        """
        if self.kind not in ("scenes", "cache") or self.levels not in ("segmenter", "truth"):
            came = f"kind={self.kind!r}, levels={self.levels!r}"
            raise InputError(explain(came, "kind 'scenes' or 'cache', levels 'segmenter' or 'truth'"))
        if (self.kind == "cache") != (self.cache is not None):
            raise InputError(explain(f"kind={self.kind!r} with cache={self.cache!r}", "a folder for kind 'cache' only"))
        moved = {"images": ("cache", self.cache), "validation_images": ("validation_cache", self.validation_cache)}
        for name, (of, cache) in moved.items():
            if getattr(self, name) is not None and cache is None:
                came = f"{name}={getattr(self, name)!r} without {of}"
                raise InputError(explain(came, "the cache whose pictures were moved there"))
        if self.scenes < 1 or self.validation < 0 or not 32 <= self.size <= 2048 or self.clicks < 1:
            came = f"scenes={self.scenes}, validation={self.validation}, size={self.size}, clicks={self.clicks}"
            raise InputError(explain(came, "at least one scene and click, sizes of 32 to 2048"))

    def under(self, root: Path) -> AttentionData:
        """The same, with folders that are relative taken from there."""
        names = ("cache", "validation_cache", "images", "validation_images")
        given = {name: Path(folder) for name in names if (folder := getattr(self, name)) is not None}
        placed: dict[str, Any] = {name: str(root / folder.expanduser()) for name, folder in given.items()}
        return replace(self, **placed)


@dataclass(frozen=True)
class AttentionConfig:
    """Data and settings of a run."""

    data: AttentionData = field(default_factory=AttentionData)
    attention: AttentionTraining = field(default_factory=AttentionTraining)

    @classmethod
    def read(cls, path: str | Path | None) -> AttentionConfig:
        """From a TOML file; None for the default.

        Raises:
            DataError: It can't be read.
            InputError: A key that there is not, a value of another type or out of its range.
            UnknownNameError: An unknown name.
        """
        record = tomllib.loads(default_config()) if path is None else read_toml(path)
        unknown = set(record) - {"data", "attention"}
        if unknown:
            raise InputError(explain(f"{path} has the section [{min(unknown)}]", "[data] and [attention]"))
        data = read_section(AttentionData, record.get("data", {}), f"{path} [data]")
        return cls(
            data if path is None else data.under(Path(path).parent),
            read_section(AttentionTraining, record.get("attention", {}), f"{path} [attention]"),
        )


def default_config() -> str:
    """The default file, with what every setting means."""
    return files("arrcoc_sam.training.attention").joinpath("attention.toml").read_text(encoding="utf-8")
