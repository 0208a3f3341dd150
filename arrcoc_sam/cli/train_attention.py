"""``arrcoc-sam train attention``: attention that means whole, part and subpart."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from arrcoc_sam.cli.options import CheckpointOption, DeviceOption, JsonOption

__all__ = ["attention"]


def attention(
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="A TOML file of settings.", show_default="the default's")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")] = Path("attention-run"),
    segmenter: Annotated[
        str | None,
        typer.Option(
            "--segmenter",
            "-s",
            help="Segmenter whose masks teach, named as in the other commands; a cache of another one is refused.",
            show_default="tiny for scenes, any for a cache",
        ),
    ] = None,
    checkpoint: CheckpointOption = None,
    device: DeviceOption = "auto",
    workers: Annotated[int, typer.Option(min=0, help="Processes that draw batches ahead.")] = 0,
    evaluate_every: Annotated[int, typer.Option(min=0, help="Steps between evaluations; 0: at the end only.")] = 0,
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 200,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write for TensorBoard too.")] = False,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the default file and exit.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train multi-scale attention on a segmenter's hierarchies and say at which level each head attends.

    Without --config it trains on procedural scenes, in minutes on two cores. Run it again after a kill: it goes on from
    the last checkpoint, to the same curve. Start it with `accelerate launch -m arrcoc_sam.cli.main train attention …`
    for several devices. In Python `arrcoc_sam.training.load_attention_model(FOLDER)` gives the model back.
    """
    from arrcoc_sam.cli.train_attention_job import TrainAttentionJob

    TrainAttentionJob(
        config=config,
        out=out,
        segmenter=segmenter,
        checkpoint=checkpoint,
        device=device,
        workers=workers,
        evaluate_every=evaluate_every,
        checkpoint_every=checkpoint_every,
        tensorboard=tensorboard,
        print_config=print_config,
        as_json=as_json,
    ).run()
