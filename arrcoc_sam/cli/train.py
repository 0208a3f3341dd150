"""``arrcoc-sam train``: one command for each thing that is trained."""

from __future__ import annotations

import typer

from arrcoc_sam.cli.train_attention import attention
from arrcoc_sam.cli.train_iou_head import iou_head
from arrcoc_sam.cli.train_segmenter import segmenter

__all__ = ["train"]

train = typer.Typer(
    help="Train a segmenter, attention, or an IoU head.", pretty_exceptions_enable=False, no_args_is_help=True
)


@train.callback()
def about() -> None:
    """Training, from a file of settings, with checkpoints that resume."""


train.command()(segmenter)
train.command()(attention)
train.command("iou-head")(iou_head)
