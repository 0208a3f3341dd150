"""``arrcoc-sam filter``: the masks that are good enough, in the form they came in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from arrcoc_sam.cli.options import JsonOption
from arrcoc_sam.cli.record import current_command
from arrcoc_sam.errors import InputError, explain

__all__ = ["filter_masks"]


def filter_masks(
    scored: Annotated[Path, typer.Argument(help="A table that `arrcoc-sam score` wrote.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Where the data set of the kept masks goes.", show_default=False),
    ] = None,
    min_quality: Annotated[
        float | None,
        typer.Option(help="Least quality, 0 to 1: the bound, or the calibrated estimate.", show_default=False),
    ] = None,
    min_bound: Annotated[float | None, typer.Option(help="Least lower bound, 0 to 1.", show_default=False)] = None,
    min_stability: Annotated[float | None, typer.Option(help="Least stability, 0 to 1.", show_default=False)] = None,
    min_area: Annotated[int | None, typer.Option(help="Least area in pixels.", show_default=False)] = None,
    max_area_share: Annotated[
        float | None, typer.Option(help="Largest share of the image, 0 to 1.", show_default=False)
    ] = None,
    class_quantile: Annotated[
        float | None,
        typer.Option(help="Share of each class that goes, the worst of it, in (0, 1).", show_default=False),
    ] = None,
    crowd: Annotated[
        Literal["keep", "judge", "drop"], typer.Option(help="What becomes of masks of groups of objects.")
    ] = "keep",
    keep_unscored: Annotated[
        bool, typer.Option("--keep-unscored", help="Keep masks that could not be scored.")
    ] = False,
    keep_images: Annotated[
        bool, typer.Option("--keep-images", help="Keep images that lost all their masks; trainers see no object there.")
    ] = False,
    with_scores: Annotated[bool, typer.Option("--with-scores", help="Write the scores beside each mask.")] = False,
    dataset: Annotated[
        Path | None, typer.Option(help="The data set, where it has moved since.", show_default=False)
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of the images, where it has moved since.", show_default=False)
    ] = None,
    pictures: Annotated[
        int, typer.Option(min=0, max=100, help="Masks on the report, so many of the best and of the worst; 0 for none.")
    ] = 8,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be dropped and write nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Keep the masks that meet all rules given. Writes the data set of what is kept in the form it came in.

    Beside it: a report (OUT.report.html), a list of what was dropped and why (OUT.dropped.csv), and a manifest.
    """
    from arrcoc_sam.cli.filter_output import tell_filtered
    from arrcoc_sam.quality import filter_run
    from arrcoc_sam.quality.filtering import KeepRules

    if out is None and not dry_run:
        raise InputError(explain("neither --out nor --dry-run", "one of them", "name a file with --out"))
    summary = filter_run.filter_masks(
        scored,
        None if dry_run else out,
        KeepRules(
            min_quality=min_quality,
            min_bound=min_bound,
            min_stability=min_stability,
            min_area=min_area,
            max_area_share=max_area_share,
            class_quantile=class_quantile,
            crowd=crowd,
        ),
        keep_unscored=keep_unscored,
        keep_images=keep_images,
        with_scores=with_scores,
        dataset=dataset,
        images=images,
        pictures=pictures,
        command=current_command(),
    )
    tell_filtered(summary, as_json=as_json)
