"""``arrcoc-sam train iou-head``: an IoU head for masks that the model did not draw."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from arrcoc_sam.cli.options import DeviceOption, JsonOption
from arrcoc_sam.cli.record import current_command

__all__ = ["iou_head"]


def iou_head(
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="A TOML file of settings.", show_default="the default's")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")] = Path("iou-head-run"),
    device: DeviceOption = "auto",
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the default file and exit.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Teach an IoU head to judge masks that its model did not draw, and say what that did on held-out images.

    Without --config the embedded model's head learns from degraded masks of procedural scenes, in minutes on two cores.
    Only the head is trained, and the masks that the model draws stay the same; or the head and its token.
    """
    from arrcoc_sam.cli.train_iou_head_job import TrainIoUHeadJob

    TrainIoUHeadJob(
        config=config, out=out, device=device, print_config=print_config, as_json=as_json, command=current_command()
    ).run()
