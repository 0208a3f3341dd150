"""``arrcoc-sam validate``: the error rates of the method itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from arrcoc_sam.cli.options import JsonOption
from arrcoc_sam.cli.record import current_command

__all__ = ["validate"]


def validate(
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for tables and figures.", show_default=False)
    ] = None,
    trials: Annotated[
        int, typer.Option(min=10, help="Trials behind each false-positive rate; 10,000 for a verdict.")
    ] = 1_000,
    scenes: Annotated[int, typer.Option(min=30, help="Generated scenes behind each claim.")] = 100,
    heads: Annotated[
        int, typer.Option(min=1, help="Heads planted at each level and strength, and of each kind that knows nothing.")
    ] = 20,
    gain: Annotated[
        list[float], typer.Option(help="How much denser than elsewhere attention is on a planted level; repeatable.")
    ] = [0.5, 1.0, 2.0],  # noqa: B006 (Typer reads it, nothing writes it)
    grid: Annotated[int, typer.Option(min=8, max=64, help="Cells a side of the attention's grid.")] = 32,
    alpha: Annotated[
        float, typer.Option(help="Level of the tests and false discovery rate of the claims, in (0, 1).")
    ] = 0.05,
    seed: Annotated[int, typer.Option(help="Seed of everything.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """How often is the method wrong? Attention planted at known levels goes through the whole protocol.

    Prints what is claimed of heads planted at each level, and of heads that know nothing of the image; and how often
    the test rejects such heads, with exact intervals. The same harness judges a test by pixel shuffling, which it has
    to convict. Exits 1 where the method does not pass; that it does takes 10,000 trials to say.
    """
    from arrcoc_sam.cli.validate_job import ValidateJob

    ValidateJob(
        out=out,
        trials=trials,
        scenes=scenes,
        heads=heads,
        gains=tuple(gain),
        grid=grid,
        alpha=alpha,
        seed=seed,
        as_json=as_json,
        command=current_command(),
    ).run()
