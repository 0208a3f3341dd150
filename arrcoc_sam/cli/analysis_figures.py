"""Figures of ``analyze`` and ``demo``: their names, and which of them an earlier run left."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from pyarrow import ArrowException

from arrcoc_sam.cli.granularity_run import Analysed
from arrcoc_sam.report import plot_granularity

__all__ = ["figures_of_table", "remove_figures", "save_figures"]

_NUMBERED = re.compile(r"(-\d+){0,2}\.(png|svg|pdf)")


def save_figures(analysed: Analysed, folder: Path, stem: str, figure_format: str) -> None:
    """A figure for each click, under a name that is free."""
    if figure_format == "none":
        return
    folder.mkdir(exist_ok=True)
    num_prompts = len(analysed.result.masks)
    for prompt in range(num_prompts):
        name = stem if num_prompts == 1 else f"{stem}-{prompt + 1}"
        # Images of one name may come from several folders.
        taken = 1
        while (folder / f"{name}.{figure_format}").exists():
            taken += 1
            name = f"{stem}-{prompt + 1}-{taken}"
        figure = plot_granularity(analysed.result, prompts=[prompt], title=analysed.name)
        figure.savefig(folder / f"{name}.{figure_format}")


def figures_of_table(out: Path) -> list[Path]:
    """The figures in ``out`` that belong to the images of the table there; what else lies beside them is not ours."""
    try:
        images = pd.read_parquet(out / "granularity.parquet", columns=["image"])["image"].unique()
    except (OSError, ValueError, KeyError, ArrowException):  # no table, or not of this command
        return []
    stems = {Path(str(image)).stem for image in images}
    return [
        path
        for path in sorted((out / "figures").glob("*"))
        if any(path.name.startswith(stem) and _NUMBERED.fullmatch(path.name[len(stem) :]) for stem in stems)
    ]


def remove_figures(earlier: Iterable[Path], kept: Iterable[str]) -> None:
    """Remove figures of an earlier run, but those whose names the present one wrote again."""
    names = set(kept)
    for path in earlier:
        if path.name not in names:
            path.unlink(missing_ok=True)
