"""``arrcoc-sam train segmenter``: SAM's interactive training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from arrcoc_sam.cli.options import DeviceOption, JsonOption
from arrcoc_sam.cli.record import current_command

__all__ = ["segmenter"]


def segmenter(
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="A TOML file of settings.", show_default="the default's")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")] = Path("segmenter-run"),
    device: DeviceOption = "auto",
    workers: Annotated[int, typer.Option(min=0, help="Processes that draw batches ahead.")] = 0,
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 100,
    log_every: Annotated[int, typer.Option(min=1, help="Steps between rows of the log.")] = 10,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write for TensorBoard too.")] = False,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the default file and exit.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a promptable segmenter by clicks, with SAM 1's or SAM 2's recipe.

    Without --config the embedded model goes on with procedural scenes, in minutes on two cores. Run it again after a
    kill: it goes on from the last checkpoint, to the same curve. Start it with `accelerate launch -m
    arrcoc_sam.cli.main train segmenter …` for several devices.
    """
    from arrcoc_sam.cli.train_segmenter_job import TrainSegmenterJob

    TrainSegmenterJob(
        config=config,
        out=out,
        device=device,
        workers=workers,
        checkpoint_every=checkpoint_every,
        log_every=log_every,
        tensorboard=tensorboard,
        print_config=print_config,
        as_json=as_json,
        command=current_command(),
    ).run()
