"""``arrcoc-sam video``: objects followed through a clip, with the scores of every frame."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from arrcoc_sam.cli.options import BoxOption, DeviceOption, JsonOption, PointOption
from arrcoc_sam.cli.record import current_command

__all__ = ["video"]


def video(
    clip: Annotated[Path, typer.Argument(help="A video file, or a folder of images.", show_default=False)],
    point: PointOption = None,
    box: BoxOption = None,
    mask: Annotated[
        Path | None,
        typer.Option(help="A picture of the frames' size, the object above half intensity.", show_default=False),
    ] = None,
    frame: Annotated[int, typer.Option(help="The frame that clicks, box or mask are about, from 0.")] = 0,
    prompts_file: Annotated[
        Path | None,
        typer.Option(
            "--prompts", help="JSON of prompts for several objects or frames; see docs/video.md.", show_default=False
        ),
    ] = None,
    segmenter: Annotated[
        str, typer.Option("--segmenter", "-s", help="hf:<repository or folder> of SAM 2 or EdgeTAM (video).")
    ] = "hf:facebook/sam2.1-hiera-tiny",
    device: DeviceOption = "auto",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")] = Path("video"),
    overlay: Annotated[bool, typer.Option(help="Also write the clip with the masks drawn into it.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Follow objects through a clip, forward and backward from their prompts.

    Writes tracks.parquet (one row an object and frame: mask, object score, predicted IoU, area, level), scores.png
    (these over time), video.json (prompts, occlusions, where the results come from) and overlay.mp4.
    """
    from arrcoc_sam.cli.video_job import VideoJob

    VideoJob(
        clip=clip,
        points=point or [],
        box=box,
        mask=mask,
        frame=frame,
        prompts_file=prompts_file,
        segmenter=segmenter,
        device=device,
        out=out,
        overlay=overlay,
        as_json=as_json,
        command=current_command(),
    ).run()
