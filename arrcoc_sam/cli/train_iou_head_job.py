"""``train iou-head`` from a file of settings to weights, and what the transfer did."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from arrcoc_sam.cli.console import out, print_json, print_table
from arrcoc_sam.cli.orientation import note_turned
from arrcoc_sam.cli.stage_progress import stage_progress
from arrcoc_sam.cli.train_segmenter_job import build_model
from arrcoc_sam.report import Provenance
from arrcoc_sam.report.json_text import finite, json_document
from arrcoc_sam.report.writing import write_text
from arrcoc_sam.segmenters.sam import SamSegmenter
from arrcoc_sam.segmenters.weights import weights_hash
from arrcoc_sam.training.checkpoint import save_weights
from arrcoc_sam.training.iou_transfer.config import IoUHeadConfig, default_iou_head_config
from arrcoc_sam.training.iou_transfer.report import TransferReport
from arrcoc_sam.training.iou_transfer.scored_masks import split_images
from arrcoc_sam.training.iou_transfer.transfer import transfer_iou_head

__all__ = ["TrainIoUHeadJob"]

WEIGHTS, RECORD = "weights.safetensors", "run.json"


@dataclass(frozen=True)
class TrainIoUHeadJob:
    """Everything that ``train iou-head`` was told; :meth:`run` does it."""

    config: Path | None
    out: Path
    device: str
    print_config: bool
    as_json: bool
    command: str

    def run(self) -> None:
        """Teach the head, write weights and figures, and print the latter.

        Raises:
            ArrcocSamError: Bad settings or data, or a folder that can't be written or holds another run.
        """
        if self.print_config:
            print(default_iou_head_config(), end="")
            return
        config = IoUHeadConfig.read(self.config)
        model = build_model(config.model, config.root, config.transfer.seed)
        segmenter = SamSegmenter(model, name=config.model.segmenter, device=self.device)
        first = segmenter.checkpoint_hash
        progress = self.out / "progress"
        with stage_progress() as report:
            masks, facts = config.open_masks(self.out / "scenes", report)
        note_turned(getattr(masks, "turned_in_place", ()), "masks")
        with stage_progress() as report:
            train, held_out = split_images(masks, config.split.held_out, seed=config.split.seed)
            origin = {"split": asdict(config.split), "root": str(config.root.absolute()), **facts}
            done = transfer_iou_head(
                segmenter, train, held_out, config.transfer, folder=progress, origin=origin, progress=report
            )
        size = segmenter.image_size
        record = {
            "transfer": asdict(config.transfer),
            "split": asdict(config.split),
            **facts,
            "initial": first,
            "held_out": done.report.as_json(),
            **Provenance(
                command=self.command,
                segmenter=config.model.segmenter,
                checkpoint_hash=weights_hash(done.model, frame_hw=(size, size)),
                device=str(segmenter.device),
                seed=config.transfer.seed,
            ).as_json(),
        }
        weights = self.out / WEIGHTS
        header = {"image_size": str(size), "judges": config.transfer.prompt, "run": json.dumps(finite(record))}
        save_weights(weights, done.model, header)
        write_text(self.out / RECORD, json_document(record))
        shutil.rmtree(progress, ignore_errors=True)
        if self.as_json:
            print_json({"weights": str(weights), **record})
            return
        _print(done.report)
        out().print(f"Wrote {weights}", soft_wrap=True, markup=False)


def _print(report: TransferReport) -> None:
    figures: dict[str, Any] = report.as_json()
    rows = [
        (name, *(_words(figures[column][name]) for column in ("before", "after", "gain"))) for name in figures["before"]
    ]
    title = f"Predicted against true IoU of {figures['masks']} held-out masks ({figures['images']} images)"
    columns = ["metric", "before", "after", "gain"]
    print_table(title, columns, rows, to=out(), right=columns[1:])


def _words(figure: dict[str, Any]) -> str:
    low, high = figure["interval"]
    value = "–" if figure["value"] is None else f"{figure['value']:.3f}"
    return value if low is None else f"{value} [{low:.3f}, {high:.3f}]"
