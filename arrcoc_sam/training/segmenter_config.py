"""The file of settings of ``arrcoc-sam train segmenter``: model, data and training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from arrcoc_sam.datasets import CocoDataset
from arrcoc_sam.datasets.mask_forms import open_masks
from arrcoc_sam.datasets.mask_sets import files_digest
from arrcoc_sam.errors import InputError, UnknownNameError, explain
from arrcoc_sam.scenes import STYLES, TRAIN_SEEDS, draw_bank
from arrcoc_sam.training.configuration import read_section, read_toml
from arrcoc_sam.training.settings import PRESETS, SegmenterTraining, style_shares
from arrcoc_sam.training.sources import (
    CocoSource,
    MaskSetSource,
    MaskSource,
    MixedSource,
    SceneSource,
    TripleSource,
)

__all__ = ["DataSettings", "ModelSettings", "SegmenterConfig", "default_segmenter_config"]

Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ModelSettings:
    """What is trained.

    Attributes:
        segmenter: "tiny", "sam_vit_b", "sam_vit_l" or "sam_vit_h".
        weights: "published" (those that ship or are fetched), "random", or the path of a file.
    """

    segmenter: Literal["tiny", "sam_vit_b", "sam_vit_l", "sam_vit_h"] = "tiny"
    weights: str = "published"


@dataclass(frozen=True)
class DataSettings:
    """One source of targets.

    Attributes:
        kind: "scenes" (procedural), "coco" (instances of a COCO file), "triples" (nested masks of one) or "masks" (a
            folder of images and masks, or Parquet).
        path: The file or folder; relative to the file of settings.
        images: The folder of images; by default that of ``path``, for "masks" the one in it.
        weight: How often this source is drawn from, beside the others.
        scenes: How many, for "scenes".
        first_seed: Of the first scene.
        size: Side of the scenes in pixels.
        rich_share: The share of rich scenes among those that are drawn from.
        lifelike_share: The share of lifelike ones.
        natural_share: The share of natural ones; the rest is plain.
    """

    kind: Literal["scenes", "coco", "triples", "masks"] = "scenes"
    path: str | None = None
    images: str | None = None
    weight: float = 1.0
    scenes: int = 200
    first_seed: int = 0
    size: int = 256
    rich_share: float = 0.0
    lifelike_share: float = 0.0
    natural_share: float = 0.0

    def __post_init__(self) -> None:
        """Check what goes together.

        Raises:
            InputError: A path for scenes or none for files, or a number out of its range.
        """
        if (self.kind == "scenes") != (self.path is None):
            raise InputError(explain(f"kind={self.kind!r} with path={self.path!r}", "a path for all but scenes"))
        if not 0 < self.weight < float("inf"):
            raise InputError(explain(f"weight={self.weight}", "a finite number above 0"))
        last = self.first_seed + self.scenes - 1
        if self.scenes < 1 or self.first_seed not in TRAIN_SEEDS or last not in TRAIN_SEEDS:
            came = f"scenes={self.scenes} from first_seed={self.first_seed}"
            raise InputError(explain(came, f"at least one, with seeds of training, 0 to {TRAIN_SEEDS[-1]:,}"))
        if not 32 <= self.size <= 2048:
            raise InputError(explain(f"size={self.size}", "32 to 2048 pixels"))
        if self.scenes < len(self.shares):
            named = [f"{style}_share" for style in self.shares if style != "plain"]
            came = f"scenes={self.scenes} with {', '.join(named)}"
            raise InputError(explain(came, f"at least {len(self.shares)} scenes"))

    @property
    def shares(self) -> dict[str, float]:
        """The share of each style that has one, by name."""
        return style_shares(rich=self.rich_share, lifelike=self.lifelike_share, natural=self.natural_share)

    def open(self, root: Path, scenes: Path, report: Report | None = None) -> tuple[MaskSource, dict[str, Any]]:
        """The source, and what it was made of, for checkpoints to compare.

        Args:
            root: What paths are relative to.
            scenes: Where drawn scenes are kept.
            report: Called with ("scenes", done, of how many).

        Raises:
            DataError: A file is missing or inconsistent, or a picture is not there.
        """
        if self.path is None:
            return self._draw(scenes, report)
        path = root / Path(self.path).expanduser()
        images = None if self.images is None else root / Path(self.images).expanduser()
        if self.kind == "masks":
            masks = open_masks(path, images=images)
            return MaskSetSource(masks), {"kind": self.kind, "sha256": masks.digest()}
        dataset = CocoDataset.read(path, images=path.parent if images is None else images)
        source: MaskSource = CocoSource(dataset) if self.kind == "coco" else TripleSource(dataset)
        return source, {"kind": self.kind, "sha256": files_digest(path, [path])}

    def _draw(self, scenes: Path, report: Report | None) -> tuple[MaskSource, dict[str, Any]]:
        """Scenes of one style or of several, one after the other in seeds."""
        shares = self.shares
        facts: dict[str, Any] = {"kind": self.kind, "seeds": [self.first_seed, self.scenes], "size": self.size}
        sources: list[MaskSource] = []
        first = self.first_seed
        for style, count in _counts(shares, self.scenes).items():
            bank = draw_bank(
                scenes / (f"{first}-{count}-{self.size}" + ("" if style == "plain" else f"-{style}")),
                first_seed=first,
                num_scenes=count,
                size=self.size,
                style=style,
                progress=None if report is None else lambda done, total: report("scenes", done, total),
            )
            sources.append(SceneSource(bank))
            first += count
        if len(sources) == 1:
            return sources[0], facts | {"generator": STYLES[next(iter(shares))]}
        facts |= {"generator": [STYLES[style] for style in shares]}
        facts |= {f"{style}_share": share for style, share in shares.items() if style != "plain"}
        return MixedSource(sources, list(shares.values())), facts


def _counts(shares: dict[str, float], total: int) -> dict[str, int]:
    """How many scenes of each style, at least one each; the first takes what rounding leaves of ``total``."""
    first, *others = shares
    counts = {style: max(1, round(shares[style] * total)) for style in others}
    while sum(counts.values()) >= total:  # so few that rounding up leaves the first none
        counts[max(counts, key=counts.__getitem__)] -= 1
    return {first: total - sum(counts.values())} | counts


@dataclass(frozen=True)
class SegmenterConfig:
    """Model, data and training of a run.

    Attributes:
        training: Stages, recipe, optimizer.
        data: At least one source.
        model: What is trained.
        preset: What ``training`` was laid over.
        root: What paths are relative to: the folder of the file.
    """

    training: SegmenterTraining
    data: tuple[DataSettings, ...]
    model: ModelSettings
    preset: str
    root: Path

    @classmethod
    def read(cls, path: str | Path | None) -> SegmenterConfig:
        """From a TOML file; None for the default.

        Raises:
            DataError: It can't be read.
            InputError: An unknown key, or a value that can't be used; the message names the place.
            UnknownNameError: An unknown preset.
        """
        file = Path(str(files("arrcoc_sam.training").joinpath("segmenter.toml"))) if path is None else Path(path)
        record = read_toml(file)
        known = ("preset", "model", "data", "training")
        for name in record:
            if name not in known:
                raise InputError(explain(f"{file} has the key {name!r}", f"one of {', '.join(known)}"))
        preset = record.get("preset", "short")
        if not isinstance(preset, str) or preset not in PRESETS:
            raise UnknownNameError(explain(f"{file}: preset = {preset!r}", f"one of {', '.join(PRESETS)}"))
        given = record.get("data", [{}])
        if not isinstance(given, list) or not given:
            raise InputError(explain(f"{file}: data is {given!r}", "at least one table [[data]]"))
        sources = [read_section(DataSettings, each, f"{file} [[data]] {i + 1}") for i, each in enumerate(given)]
        training = read_section(
            SegmenterTraining, record.get("training", {}), f"{file} [training]", base=PRESETS[preset]
        )
        model = read_section(ModelSettings, record.get("model", {}), f"{file} [model]")
        return cls(training, tuple(sources), model, preset, file.parent)

    def open_data(self, scenes: Path, report: Report | None = None) -> tuple[MaskSource, dict[str, Any]]:
        """All sources as one, and what they were made of.

        Raises:
            DataError: See :meth:`DataSettings.open`.
        """
        opened = [each.open(self.root, scenes, report) for each in self.data]
        facts = {"data": [fact | {"weight": each.weight} for each, (_, fact) in zip(self.data, opened, strict=True)]}
        if len(opened) == 1:
            return opened[0][0], facts
        return MixedSource([source for source, _ in opened], [each.weight for each in self.data]), facts


def default_segmenter_config() -> str:
    """The default file, with what the settings mean."""
    return files("arrcoc_sam.training").joinpath("segmenter.toml").read_text(encoding="utf-8")
