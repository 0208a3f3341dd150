"""``arrcoc-sam segment``: the candidate masks of one prompt, of many, or all masks of an image."""

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
    refine: Annotated[
        int, typer.Option(help="Rounds that feed the mask back; a single refined mask comes besides.", min=0)
    ] = 0,
    points_file: Annotated[
        Path | None,
        typer.Option(
            help='Many prompts: JSON, a list of {"points": [[x, y], [x, y, 0]], "box": [x0, y0, x1, y1], '
            '"image": "other.jpg"}; points or a box in each, an image of its own if it has one.',
            show_default=False,
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--everything", help="All masks, from a grid of clicks.")] = False,
    points_per_side: Annotated[int, typer.Option(help="With --everything: clicks along each side.", min=1)] = 32,
    min_predicted_iou: Annotated[float, typer.Option(help="With --everything: masks predicted better.")] = 0.88,
    min_stability: Annotated[float, typer.Option(help="With --everything: masks at least so stable.")] = 0.95,
    crop_layers: Annotated[int, typer.Option(help="With --everything: layers of crops besides the image.", min=0)] = 0,
    exact: Annotated[
        bool, typer.Option("--exact", help="With --everything: the very masks of segment-anything, slower.")
    ] = False,
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
    """Candidate masks of one prompt: clicks, a box, or both; of many prompts; or all masks of an image.

    Three masks answer a prompt, named whole, part and subpart by area and nesting, each with the model's predicted IoU
    (raw) and its stability. With --points-file a single click is answered with three masks, any other prompt with one.
    With --everything the masks come with segment-anything's fields; a folder also gets the tree of which mask lies in
    which, as JSON and as a picture.
    """
    if everything:
        from arrcoc_sam.cli.segment_everything_job import SegmentEverythingJob

        SegmentEverythingJob(
            image=image,
            prompted=bool(point or box or points_file or refine),
            points_per_side=points_per_side,
            min_predicted_iou=min_predicted_iou,
            min_stability=min_stability,
            crop_layers=crop_layers,
            exact=exact,
            segmenter=segmenter,
            checkpoint=checkpoint,
            device=device,
            out=out,
            output_format=output_format,
            as_json=as_json,
            command=current_command(),
        ).run()
        return
    if points_file is not None:
        from arrcoc_sam.cli.segment_prompts_job import SegmentPromptsJob

        SegmentPromptsJob(
            image=image,
            points_file=points_file,
            prompted=bool(point or box or refine),
            segmenter=segmenter,
            checkpoint=checkpoint,
            device=device,
            out=out,
            output_format=output_format,
            as_json=as_json,
            command=current_command(),
        ).run()
        return
    from arrcoc_sam.cli.segment_job import SegmentJob

    SegmentJob(
        image=image,
        points=point or [],
        box=box,
        refine=refine,
        segmenter=segmenter,
        checkpoint=checkpoint,
        device=device,
        out=out,
        output_format=output_format,
        as_json=as_json,
        command=current_command(),
    ).run()
