"""``arrcoc-sam segment``: the candidate masks of one prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from arrcoc_sam.cli.options import CheckpointOption, DeviceOption, JsonOption, SegmenterOption
from arrcoc_sam.cli.record import current_command

__all__ = ["segment"]


def segment(
    image: Annotated[Path, typer.Argument(help="An image file.", show_default=False)],
    point: Annotated[
        list[str] | None,
        typer.Option(
            "--point",
            "-p",
            help="A click x,y in pixels; x,y,0 is one on the background. Repeatable.",
            show_default=False,
        ),
    ] = None,
    box: Annotated[str | None, typer.Option(help="A box x0,y0,x1,y1 in pixels.", show_default=False)] = None,
    segmenter: SegmenterOption = "tiny",
    checkpoint: CheckpointOption = None,
    device: DeviceOption = "auto",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder, or .json file; without it JSON goes to stdout.", show_default=False),
    ] = None,
    output_format: Annotated[
        Literal["json", "png"],
        typer.Option("--format", help="json: run lengths (COCO RLE) and scores; png: one picture a mask, 0 and 255."),
    ] = "json",
    as_json: JsonOption = False,
) -> None:
    """Candidate masks of one prompt: clicks, a box, or both.

    Three masks come back, named whole, part and subpart by area and nesting, each with the model's predicted IoU (raw)
    and its stability.
    """
    from arrcoc_sam.cli.segment_job import SegmentJob

    SegmentJob(
        image=image,
        points=point or [],
        box=box,
        segmenter=segmenter,
        checkpoint=checkpoint,
        device=device,
        out=out,
        output_format=output_format,
        as_json=as_json,
        command=current_command(),
    ).run()
