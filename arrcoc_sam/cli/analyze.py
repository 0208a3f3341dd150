"""``arrcoc-sam analyze``: at which granularity attention works, for files, folders and globs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from arrcoc_sam.cli.options import CheckpointOption, DeviceOption, JsonOption, SegmenterOption
from arrcoc_sam.cli.record import current_command

__all__ = ["analyze"]

_SOURCES = (
    "Where the attention comes from: relevance (ARR-COC's maps); timm:MODEL or hf:MODEL (a vision transformer); a "
    ".npy, .npz, .png or .safetensors file; a folder with one such file an image, of the image's name, in folders as "
    "the image's where names repeat."
)
_POINTS = "A click x,y in pixels, the same in every image; may be repeated. Default: the centre of each image."
_ATTENTION, _CLICKS, _OUTPUT = "Attention", "Clicks", "Output"


def analyze(
    images: Annotated[list[str], typer.Argument(help="Image files, folders, globs.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.", show_default=False)],
    attention: Annotated[str, typer.Option("--attention", "-a", help=_SOURCES)] = "relevance",
    segmenter: SegmenterOption = "tiny",
    checkpoint: CheckpointOption = None,
    device: DeviceOption = "auto",
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Search folders with their subfolders.")] = False,
    points: Annotated[
        list[str] | None, typer.Option("--points", "-p", help=_POINTS, show_default=False, rich_help_panel=_CLICKS)
    ] = None,
    grid: Annotated[
        int | None,
        typer.Option(help="N x N clicks, evenly spread over each image.", show_default=False, rich_help_panel=_CLICKS),
    ] = None,
    hierarchy: Annotated[
        Path | None,
        typer.Option(
            help="A COCO file: masks that people drew, with their clicks, in place of a segmenter's. Nested masks are "
            "listed in it under 'hierarchies', or found by containment.",
            show_default=False,
            rich_help_panel=_CLICKS,
        ),
    ] = None,
    query: Annotated[
        Literal["cls", "mean", "point", "pool"] | None,
        typer.Option(
            help="Query of a transformer's attention: class token, mean of all patches, clicked patch, or pool.",
            show_default=False,
            rich_help_panel=_ATTENTION,
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(help="Blocks, such as 0,5,-1.", show_default="all", rich_help_panel=_ATTENTION),
    ] = None,
    heads: Annotated[
        str | None,
        typer.Option(help="Heads, such as 0,3, or mean.", show_default="all", rich_help_panel=_ATTENTION),
    ] = None,
    random_weights: Annotated[
        bool,
        typer.Option(
            "--random-weights", help="A transformer without its weights: a control.", rich_help_panel=_ATTENTION
        ),
    ] = False,
    key: Annotated[
        str | None,
        typer.Option(help="The array in .npz and .safetensors files.", show_default=False, rich_help_panel=_ATTENTION),
    ] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(
            help="Other images of the same shape, at least 19: answers become calibrated against the same attention "
            "on them. Files, folders, globs; may be repeated.",
            show_default=False,
            rich_help_panel=_ATTENTION,
        ),
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(help="Metrics with commas between them.", show_default="the usual five")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of whatever is random (--random-weights).")] = 0,
    figure_format: Annotated[
        Literal["png", "svg", "pdf", "none"],
        typer.Option("--format", help="File format of the figures.", rich_help_panel=_OUTPUT),
    ] = "png",
    title: Annotated[str, typer.Option(help="Title of the report.", rich_help_panel=_OUTPUT)] = "Attention granularity",
    max_shown: Annotated[
        int, typer.Option(min=1, help="Images shown in full in the report.", rich_help_panel=_OUTPUT)
    ] = 50,
    as_json: JsonOption = False,
) -> None:
    """At which granularity does attention work: the whole object, a part, a part of the part?

    Writes granularity.parquet and granularity.csv (one row a map, click and level), a figure for each click, and
    report.html, one self-contained page.

    A click finds three nested masks; each attention map is measured against them on its own grid. Clicks never come
    from the attention that is judged: without --points or --grid there is one, at the centre of each image. With
    --hierarchy masks and clicks come from a file instead.
    """
    from arrcoc_sam.cli.analysis_inputs import AttentionOptions, ClickPlan
    from arrcoc_sam.cli.analysis_job import AnalysisJob

    chosen = AttentionOptions(
        name=attention,
        query=query,
        layers=layers,
        heads=heads,
        random_weights=random_weights,
        key=key,
        seed=seed,
        device=device,
    )
    AnalysisJob(
        images=images,
        recursive=recursive,
        clicks=ClickPlan.parse(points or [], grid),
        hierarchy=hierarchy,
        attention=chosen,
        segmenter=segmenter,
        checkpoint=checkpoint,
        device=device,
        reference=reference or [],
        metrics=metrics,
        out=out,
        figure_format=figure_format,
        title=title,
        max_shown=max_shown,
        as_json=as_json,
        command=current_command(),
    ).run()
