"""``arrcoc-sam score``: every mask of a data set scored."""

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
    TokensOption,
)
from arrcoc_sam.cli.record import current_command

__all__ = ["score"]


def score(
    dataset: Annotated[
        Path,
        typer.Argument(
            help="COCO JSON; Parquet (a file or a folder); or a folder with images/ and masks/.", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The table of scores, a .parquet file.", show_default=False)],
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of the images, where they do not lie beside the data set.", show_default=False),
    ] = None,
    segmenter: SegmenterOption = "tiny",
    checkpoint: CheckpointOption = None,
    device: DeviceOption = "auto",
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option(help="What encoder and transformer compute in.")
    ] = "float32",
    protocol: Annotated[
        str, typer.Option(help="How a mask is asked about: mask, box, point, mask+point, mask+box, mask+point+box.")
    ] = "mask+point",
    tokens: TokensOption = "all",
    components: Annotated[
        bool, typer.Option("--components", help="Score a mask by the worst of its connected components.")
    ] = False,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="A calibration, or embedded (of tiny): scores are then estimates of IoU, not bounds.",
            show_default=False,
        ),
    ] = None,
    annotated: Annotated[
        Path | None,
        typer.Option(help="Also write the data set again, with the scores beside each mask.", show_default=False),
    ] = None,
    part_masks: Annotated[
        int, typer.Option(min=1, help="Masks between two files on disk: what a kill can cost.")
    ] = 256,
    engine: EngineOption = "local",
    address: AddressOption = None,
    actors: ActorsOption = None,
    gpus_per_actor: GpusPerActorOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score every mask of a data set: how good is it, by the masks that the segmenter makes of it?

    The table has a row a mask: quality, bounds, stability and more. The same command goes on where it was stopped,
    even by kill -9. Masks that can't be scored are listed in OUT.errors.csv; the exit code is then 3. Once all is done,
    the same command tries pictures again that could not be read; what has scores keeps them.
    """
    from arrcoc_sam.cli.score_job import ScoreJob

    ScoreJob(
        dataset=dataset,
        out=out,
        images=images,
        segmenter=segmenter,
        checkpoint=checkpoint,
        device=device,
        dtype=dtype,
        protocol=protocol,
        tokens=tokens,
        components=components,
        calibration=calibration,
        annotated=annotated,
        part_masks=part_masks,
        engine=engine,
        address=address,
        actors=actors,
        gpus_per_actor=gpus_per_actor,
        as_json=as_json,
        command=current_command(),
    ).run()
