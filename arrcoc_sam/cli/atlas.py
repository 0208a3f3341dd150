"""``arrcoc-sam atlas``: layer × head granularity of a model over many images, with the statistics of a claim."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from arrcoc_sam.cli.options import (
    ActorsOption,
    AddressOption,
    CheckpointOption,
    DeviceOption,
    EngineOption,
    GpusPerActorOption,
    JsonOption,
    SegmenterOption,
)
from arrcoc_sam.cli.record import current_command

__all__ = ["atlas"]

_ATTENTION, _LEVELS, _CLAIMS, _OUTPUT = "Attention", "Levels", "Claims", "Output"


def atlas(
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            help="timm:MODEL (or its bare name) or hf:MODEL, a vision transformer; or relevance (ARR-COC's maps).",
            show_default=False,
        ),
    ],
    images: Annotated[
        list[str],
        typer.Option(
            "--images",
            "-i",
            help="Files, folders, globs; may be repeated. At least 30 images for claims.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Folder for records and results; the same command goes on in it."),
    ] = Path("arrcoc-sam-atlas"),
    segmenter: SegmenterOption = "tiny",
    checkpoint: CheckpointOption = None,
    device: DeviceOption = "auto",
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Search folders with their subfolders.")] = False,
    limit: Annotated[
        int | None, typer.Option(min=4, help="Images at most: the first ones.", show_default="all")
    ] = None,
    random_weights: Annotated[
        bool,
        typer.Option(
            "--random-weights",
            help="The model without its weights: a control, which says nothing about the trained model.",
            rich_help_panel=_ATTENTION,
        ),
    ] = False,
    control: Annotated[
        bool,
        typer.Option(help="Judge the same architecture with random weights beside.", rich_help_panel=_ATTENTION),
    ] = True,
    query: Annotated[
        Literal["cls", "mean", "point", "pool"] | None,
        typer.Option(
            help="Query of the attention: class token, mean of all patches, clicked patch, or pool.",
            show_default="cls",
            rich_help_panel=_ATTENTION,
        ),
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="Blocks, such as 0,5,-1.", show_default="all", rich_help_panel=_ATTENTION)
    ] = None,
    heads: Annotated[
        str | None, typer.Option(help="Heads, such as 0,3, or mean.", show_default="all", rich_help_panel=_ATTENTION)
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            min=8,
            help="Side of the model's input, pixels: a larger one is a finer grid.",
            show_default="the model's own",
            rich_help_panel=_ATTENTION,
        ),
    ] = None,
    grid: Annotated[
        int, typer.Option(min=1, max=16, help="N x N clicks, the same in every image.", rich_help_panel=_LEVELS)
    ] = 3,
    hierarchy: Annotated[
        Path | None,
        typer.Option(
            help="A COCO file: levels that people drew, in place of the segmenter's.",
            show_default=False,
            rich_help_panel=_LEVELS,
        ),
    ] = None,
    metric: Annotated[
        str, typer.Option(help="Metric that the claims are made of.", rich_help_panel=_CLAIMS)
    ] = "shell_contrast",
    fdr: Annotated[
        float, typer.Option("--fdr", help="False discovery rate over the maps, in (0, 1).", rich_help_panel=_CLAIMS)
    ] = 0.05,
    seed: Annotated[int, typer.Option(help="Seed of everything random.", rich_help_panel=_CLAIMS)] = 0,
    figure_format: Annotated[
        Literal["png", "svg", "pdf", "none"],
        typer.Option("--format", help="File format of the figures.", rich_help_panel=_OUTPUT),
    ] = "png",
    title: Annotated[
        str, typer.Option(help="Title of the report.", rich_help_panel=_OUTPUT)
    ] = "Atlas of attention granularity",
    engine: EngineOption = "local",
    address: AddressOption = None,
    actors: ActorsOption = None,
    gpus_per_actor: GpusPerActorOption = None,
    as_json: JsonOption = False,
) -> None:
    """Which heads of a model concentrate at the whole object, a part, a part of the part?

    Every image is cropped to its central square, clicked at the same N x N places, and each head's attention measured
    against the three masks that answer each click. A level is claimed of a head where it stands out from the same
    head's attention on other images, on images that had no say in choosing it. Under 30 images nothing is claimed.

    Writes heads, images and ablation as Parquet, figures, and report.html. A run that was stopped goes on where it was
    when the same command is given again.
    """
    from arrcoc_sam.cli.analysis_inputs import AttentionOptions
    from arrcoc_sam.cli.atlas_job import AtlasJob

    if ":" not in model and model != "relevance" and not Path(model).exists():
        model = f"timm:{model}"
    options = {"framing": "squash"} | ({} if image_size is None else {"image_size": image_size})
    attention = AttentionOptions(
        name=model,
        query=query,
        layers=layers,
        heads=heads,
        random_weights=random_weights,
        seed=seed,
        device=device,
        further=options if model.startswith(("timm:", "hf:")) else {},
        option="--model",
    )
    AtlasJob(
        images=images,
        recursive=recursive,
        limit=limit,
        attention=attention,
        control=control,
        segmenter=segmenter,
        checkpoint=checkpoint,
        device=device,
        hierarchy=hierarchy,
        grid=grid,
        metric=metric,
        false_discovery_rate=fdr,
        seed=seed,
        out=out.expanduser(),  # a shell leaves --out=~/atlas as it is
        figure_format=figure_format,
        title=title,
        engine=engine,
        address=address,
        actors=actors,
        gpus_per_actor=gpus_per_actor,
        as_json=as_json,
        command=current_command(),
    ).run()
