"""``arrcoc-sam demo``: the main job on bundled images, offline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from arrcoc_sam.cli.options import CheckpointOption, DeviceOption, JsonOption, SegmenterOption
from arrcoc_sam.cli.record import current_command

__all__ = ["demo"]


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")] = Path("arrcoc-sam-demo"),
    segmenter: SegmenterOption = "tiny",
    checkpoint: CheckpointOption = None,
    device: DeviceOption = "auto",
    figure_format: Annotated[
        Literal["png", "svg", "pdf", "none"], typer.Option("--format", help="File format of the figures.")
    ] = "png",
    as_json: JsonOption = False,
) -> None:
    """The main job on photographs and one generated scene, with the embedded model: no download, under a minute.

    The photographs come with scikit-image. In the scene the levels are known, and attention is planted at each of
    them: what the analysis has to find.
    """
    from arrcoc_sam.cli.demo_job import run_demo

    run_demo(
        out_folder=out,
        segmenter_name=segmenter,
        checkpoint=checkpoint,
        device=device,
        figure_format=figure_format,
        as_json=as_json,
        command=current_command(),
    )
