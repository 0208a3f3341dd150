"""``arrcoc-sam cache``: hierarchies computed once, for any number of trainings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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

__all__ = ["cache"]


def cache(
    images: Annotated[list[str], typer.Argument(help="Image files, folders and globs.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the cache.", show_default=False)],
    segmenter: SegmenterOption = "tiny",
    checkpoint: CheckpointOption = None,
    device: DeviceOption = "auto",
    grid: Annotated[
        int | None, typer.Option(help="Clicks along each side of every image; 8 by default.", show_default=False)
    ] = None,
    points: Annotated[
        Path | None,
        typer.Option(
            help='JSON file of clicks: {"image.jpg": [[x, y], …]}, by file name, with its folder where names repeat.',
            show_default=False,
        ),
    ] = None,
    truth: Annotated[
        Path | None,
        typer.Option(help="COCO file: one click on every annotated mask, which is kept beside.", show_default=False),
    ] = None,
    human: Annotated[
        bool, typer.Option("--human", help="With --truth: keep its nested masks themselves, and ask no segmenter.")
    ] = False,
    quality: Annotated[
        bool, typer.Option("--quality", help="Score every mask too, so that training can leave out the bad ones.")
    ] = False,
    shard: Annotated[int, typer.Option(min=1, help="Images a Parquet file: what a killed run does again.")] = 64,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Look into subfolders.")] = False,
    engine: EngineOption = "local",
    address: AddressOption = None,
    actors: ActorsOption = None,
    gpus_per_actor: GpusPerActorOption = None,
    as_json: JsonOption = False,
) -> None:
    """Whole, part and subpart of many clicks, computed once and read back while training.

    Run it again after a kill: finished shards stay. A folder that holds a cache of other images, clicks or weights is
    refused. Images that can't be used are listed at the end (exit 3), and tried again when it is run again.
    """
    from arrcoc_sam.cli.cache_job import CacheJob

    CacheJob(
        images=images,
        out=out,
        segmenter=segmenter,
        checkpoint=checkpoint,
        device=device,
        grid=grid,
        points=points,
        truth=truth,
        human=human,
        quality=quality,
        shard=shard,
        recursive=recursive,
        engine=engine,
        address=address,
        actors=actors,
        gpus_per_actor=gpus_per_actor,
        as_json=as_json,
    ).run()
