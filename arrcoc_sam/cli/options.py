"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from arrcoc_sam.errors import InputError, UnknownNameError, explain

if TYPE_CHECKING:
    from arrcoc_sam.segmenters.base import Segmenter

__all__ = [
    "ActorsOption",
    "AddressOption",
    "BoxOption",
    "CheckpointOption",
    "DeviceOption",
    "EngineOption",
    "GpusPerActorOption",
    "JsonOption",
    "PointOption",
    "SegmenterOption",
    "TokensOption",
    "check_segmenter",
    "open_segmenter",
    "refuse_ray_options",
    "tokens_asked",
    "wherever",
]

SegmenterOption = Annotated[
    str,
    typer.Option(
        "--segmenter",
        "-s",
        help="tiny (the embedded demonstration model), sam_vit_b, sam_vit_l, sam_vit_h, mobile_sam, or "
        "hf:<repository or folder>.",
    ),
]
CheckpointOption = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint", help="A file of weights; by default the published one, fetched when needed.", show_default=False
    ),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")]
PointOption = Annotated[
    list[str] | None,
    typer.Option(
        "--point",
        "-p",
        help="A click x,y in pixels; x,y,0 is one on the background. Repeatable.",
        show_default=False,
    ),
]
BoxOption = Annotated[str | None, typer.Option("--box", help="A box x0,y0,x1,y1 in pixels.", show_default=False)]
EngineOption = Annotated[
    Literal["local", "ray"],
    typer.Option("--engine", help="local: this process; ray: a pool of actors, here or on a cluster."),
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address", help="Address of a Ray cluster, HOST:PORT; without it Ray is started here.", show_default=False
    ),
]
ActorsOption = Annotated[
    int | None,
    typer.Option("--actors", min=1, help="Ray actors; by default one a GPU, or one a core.", show_default=False),
]
GpusPerActorOption = Annotated[
    float | None,
    typer.Option(
        "--gpus-per-actor",
        min=0.0,
        help="GPUs an actor; .5 lets two share one, so that images are read while others are encoded. By default 1.",
        show_default=False,
    ),
]
TokensOption = Annotated[
    Literal["all", "1-3", "0"],
    typer.Option("--tokens", help="Mask tokens that are decoded: all four, the three of a click, or the single one."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print machine-readable results on stdout.")]


def check_segmenter(name: str) -> None:
    """Refuse a segmenter that there is not, before anything else is done.

    Raises:
        UnknownNameError: No segmenter has this name.
    """
    from arrcoc_sam.segmenters import list_segmenters

    if name not in list_segmenters() and not name.startswith("hf:"):
        expected = f"one of {', '.join(list_segmenters())}, or hf:<repository or folder>"
        raise UnknownNameError(explain(f"no segmenter is called {name!r}", expected))


def refuse_ray_options(engine: str, address: str | None, actors: int | None, gpus_per_actor: float | None) -> None:
    """Refuse options of Ray for the local engine.

    Raises:
        InputError: One was given.
    """
    given = {"--address": address, "--actors": actors, "--gpus-per-actor": gpus_per_actor}
    misplaced = [option for option, value in given.items() if value is not None]
    if engine == "local" and misplaced:
        raise InputError(explain(f"{misplaced[0]} with --engine local", "--engine ray"))


def tokens_asked(tokens: Literal["all", "1-3", "0"]) -> bool | Literal["all"]:
    """The ``multimask`` that ``--tokens`` names."""
    return "all" if tokens == "all" else tokens == "1-3"


def wherever(model: str) -> str:
    """The name of a model for a process that works in another folder: ``hf:`` and a relative folder become absolute."""
    kind, _, place = model.partition(":")
    return f"hf:{Path(place).absolute()}" if kind == "hf" and Path(place).is_dir() else model


def open_segmenter(name: str, checkpoint: Path | None, device: str) -> Segmenter:
    """The segmenter that the options name, with a word on stderr where it is the demonstration model."""
    from arrcoc_sam.cli.console import noted
    from arrcoc_sam.report.provenance import DEMONSTRATION_MODEL
    from arrcoc_sam.segmenters import load_segmenter

    if name == DEMONSTRATION_MODEL:
        noted("'tiny' is a demonstration model; real work names a real checkpoint (--segmenter sam_vit_b)")
    return load_segmenter(name, checkpoint=checkpoint, device=device)
