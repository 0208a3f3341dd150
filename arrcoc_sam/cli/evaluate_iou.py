"""``arrcoc-sam evaluate-iou``: does the IoU head know how good the masks are?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from arrcoc_sam.cli.options import CheckpointOption, DeviceOption, JsonOption, SegmenterOption
from arrcoc_sam.cli.record import current_command

__all__ = ["evaluate_iou"]


def evaluate_iou(
    dataset: Annotated[Path, typer.Argument(help="COCO JSON with true masks.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for tables and the diagram.", show_default=False)
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of the images; by default the data set's own.", show_default=False)
    ] = None,
    segmenter: SegmenterOption = "tiny",
    checkpoint: CheckpointOption = None,
    device: DeviceOption = "auto",
    clicks: Annotated[list[int], typer.Option(help="Also judge token 0 after so many clicks; repeatable.")] = [3, 8],  # noqa: B006 (Typer reads it, nothing writes it)
    bootstrap: Annotated[int, typer.Option(min=0, help="Draws of the images behind each interval.")] = 1000,
    confidence: Annotated[float, typer.Option(help="Coverage of the intervals, in (0, 1).")] = 0.95,
    seed: Annotated[int, typer.Option(help="Seed of clicks and draws.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Judge predicted IoU against actual IoU on true masks.

    Each mask gets one click, drawn uniformly in it, and three answers; then clicks that correct the one of the highest
    predicted IoU. Prints correlations, errors, selection and calibration with intervals by image, and the same by area,
    level and number of clicks.
    """
    from arrcoc_sam.cli.evaluate_iou_job import EvaluateIouJob

    EvaluateIouJob(
        dataset=dataset,
        out=out,
        images=images,
        segmenter=segmenter,
        checkpoint=checkpoint,
        device=device,
        clicks=tuple(clicks),
        bootstrap=bootstrap,
        confidence=confidence,
        seed=seed,
        as_json=as_json,
        command=current_command(),
    ).run()
