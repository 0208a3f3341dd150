"""The file of settings of ``arrcoc-sam train iou-head``: model, masks and transfer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from arrcoc_sam.datasets import CocoDataset
from arrcoc_sam.datasets.mask_sets import files_digest
from arrcoc_sam.errors import InputError, explain
from arrcoc_sam.training.configuration import read_section, read_toml
from arrcoc_sam.training.iou_transfer.scored_masks import DegradedMasks, MatchedMasks, held_out_count
from arrcoc_sam.training.iou_transfer.transfer import ScoredImage, TransferSettings
from arrcoc_sam.training.segmenter_config import DataSettings, ModelSettings, Report

__all__ = ["ExternalSettings", "IoUHeadConfig", "SplitSettings", "default_iou_head_config"]


@dataclass(frozen=True)
class ExternalSettings:
    """Masks of somebody else's and true ones, as two COCO files about the same images.

    Attributes:
        path: The masks to be judged; relative to the file of settings.
        truth: The true masks. A mask means the one that it fits best.
        images: The folder of images.
    """

    path: str
    truth: str
    images: str


@dataclass(frozen=True)
class SplitSettings:
    """Which images are judged on.

    Attributes:
        held_out: Their share.
        masks_per_image: The most masks that are degraded in an image of ``[data]``.
        seed: Of the split and of the degradations.
    """

    held_out: float = 0.3
    masks_per_image: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InputError: One is out of its range.
        """
        if not 0 < self.held_out < 1 or self.masks_per_image < 1 or self.seed < 0:
            came = f"held_out={self.held_out}, masks_per_image={self.masks_per_image}, seed={self.seed}"
            raise InputError(explain(came, "a share in (0, 1), at least 1 mask, a seed of at least 0"))


@dataclass(frozen=True)
class IoUHeadConfig:
    """Model, masks and transfer of a run.

    Attributes:
        model: Whose head.
        data: True masks, which are degraded; None with ``external``.
        external: Somebody's masks and true ones; None with ``data``.
        split: Which images are judged on.
        transfer: How the head is taught.
        root: What paths are relative to: the folder of the file.
    """

    model: ModelSettings
    data: DataSettings | None
    external: ExternalSettings | None
    split: SplitSettings
    transfer: TransferSettings
    root: Path

    @classmethod
    def read(cls, path: str | Path | None) -> IoUHeadConfig:
        """From a TOML file; None for the default.

        Raises:
            DataError: It can't be read.
            InputError: An unknown key, or a value that can't be used; the message names the place.
        """
        file = (
            Path(str(files("arrcoc_sam.training.iou_transfer").joinpath("iou_head.toml")))
            if path is None
            else Path(path)
        )
        record = read_toml(file)
        known = ("model", "data", "external", "split", "transfer")
        for name in record:
            if name not in known:
                raise InputError(explain(f"{file} has the key {name!r}", f"one of {', '.join(known)}"))
        if "data" in record and "external" in record:
            raise InputError(explain(f"{file} has [data] and [external]", "one of them"))

        def section(kind: type, name: str) -> Any:
            return read_section(kind, record.get(name, {}), f"{file} [{name}]")

        external = section(ExternalSettings, "external") if "external" in record else None
        data = None if external is not None else section(DataSettings, "data")
        split = section(SplitSettings, "split")
        if data is not None and data.kind == "scenes":  # known before any is drawn
            try:
                held_out_count(data.scenes, split.held_out)
            except InputError as error:
                raise InputError(f"{file} [split]: {error}") from error
        return cls(
            section(ModelSettings, "model"),
            data,
            external,
            split,
            section(TransferSettings, "transfer"),
            file.parent,
        )

    def open_masks(self, scenes: Path, report: Report | None = None) -> tuple[Sequence[ScoredImage], dict[str, Any]]:
        """The masks to be judged with their true IoU, and what they were made of.

        Args:
            scenes: Where drawn scenes are kept.
            report: Called with ("scenes", done, of how many).

        Raises:
            DataError: A file is missing or inconsistent, or a picture is not there.
        """
        if self.external is None:
            source, facts = (self.data or DataSettings()).open(self.root, scenes, report)
            return DegradedMasks(source, self.split.masks_per_image, seed=self.split.seed), {"data": facts}
        paths = {name: self.root / Path(getattr(self.external, name)).expanduser() for name in ("path", "truth")}
        images = self.root / Path(self.external.images).expanduser()
        external, truth = (CocoDataset.read(path, images=images) for path in paths.values())
        digests = {name: files_digest(path, [path]) for name, path in paths.items()}
        return MatchedMasks(external, truth), {"data": {"kind": "external", "sha256": digests}}


def default_iou_head_config() -> str:
    """The default file, with what the settings mean."""
    return files("arrcoc_sam.training.iou_transfer").joinpath("iou_head.toml").read_text(encoding="utf-8")
