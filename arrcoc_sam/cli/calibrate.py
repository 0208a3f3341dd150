"""``arrcoc-sam calibrate``: from bounds to estimates of IoU with intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from arrcoc_sam.cli.options import CheckpointOption, DeviceOption, JsonOption, SegmenterOption, TokensOption
from arrcoc_sam.cli.record import current_command

__all__ = ["calibrate"]


def calibrate(
    dataset: Annotated[Path, typer.Argument(help="COCO JSON with true masks.", show_default=False)],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="The calibration, a .json file; figures go beside it.", show_default=False),
    ],
    images: Annotated[
        Path | None, typer.Option(help="Folder of the images; by default the data set's own.", show_default=False)
    ] = None,
    segmenter: SegmenterOption = "tiny",
    checkpoint: CheckpointOption = None,
    device: DeviceOption = "auto",
    protocol: Annotated[
        str, typer.Option(help="How a mask is asked about: mask, box, point, mask+point, mask+box, mask+point+box.")
    ] = "mask+point",
    tokens: TokensOption = "all",
    components: Annotated[
        bool, typer.Option("--components", help="Score a mask by the worst of its components, for score --components.")
    ] = False,
    method: Annotated[
        Literal["monotone", "isotonic"],
        typer.Option(help="monotone: several scores; isotonic: a curve over the lower bound."),
    ] = "monotone",
    confidence: Annotated[float, typer.Option(help="Coverage of the intervals, in (0, 1).")] = 0.9,
    per_mask: Annotated[int, typer.Option(min=1, help="Samples of each true mask.")] = 1,
    min_masks: Annotated[
        int, typer.Option(min=2, help="The least number of masks to fit, to cover, and to test.")
    ] = 1000,
    min_images: Annotated[int, typer.Option(min=1, help="The least number of images in each of the three sets.")] = 1,
    ablation: Annotated[bool, typer.Option(help="Compare protocols and tokens, on the first images.")] = True,
    ablation_images: Annotated[int, typer.Option(min=2, help="Images that the comparison is made on.")] = 60,
    seed: Annotated[int, typer.Option(help="Seed of degradations and splits.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Fit how far scores of masks can be trusted, on masks that are known.

    True masks are made wrong in eight ways, scored, and compared with the truth. Half of the images fit the estimate, a
    quarter its intervals, a quarter judges both. Give the file to score with --calibration.
    """
    from arrcoc_sam.cli.calibrate_job import CalibrateJob

    CalibrateJob(
        dataset=dataset,
        out=out,
        images=images,
        segmenter=segmenter,
        checkpoint=checkpoint,
        device=device,
        protocol=protocol,
        tokens=tokens,
        components=components,
        method=method,
        confidence=confidence,
        per_mask=per_mask,
        min_masks=min_masks,
        min_images=min_images,
        ablation_images=ablation_images if ablation else 0,
        seed=seed,
        as_json=as_json,
        command=current_command(),
    ).run()
