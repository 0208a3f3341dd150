"""``arrcoc-sam segment``: the candidate masks of one prompt, of many, or all masks of an image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from arrcoc_sam.cli.options import BoxOption, CheckpointOption, DeviceOption, JsonOption, PointOption, SegmenterOption
from arrcoc_sam.cli.record import current_command

__all__ = ["segment"]

_Image = Annotated[Path, typer.Argument(help="An image file.", show_default=False)]
_Refine = Annotated[
    int, typer.Option(help="Rounds that feed the mask back; a single refined mask comes besides.", min=0)
]
_PointsFile = Annotated[
    Path | None,
    typer.Option(
        help='Many prompts: JSON, a list of {"points": [[x, y], [x, y, 0]], "box": [x0, y0, x1, y1], '
        '"image": "other.jpg"}; points or a box in each, an image of its own if it has one.',
        show_default=False,
    ),
]
_Everything = Annotated[bool, typer.Option("--everything", help="All masks, from a grid of clicks.")]
_PointsPerSide = Annotated[
    int | None, typer.Option(help="With --everything: clicks along each side.", min=1, show_default="32")
]
_MinPredictedIou = Annotated[
    float | None, typer.Option(help="With --everything: predicted IoU that a mask has to exceed.", show_default="0.88")
]
_MinStability = Annotated[
    float | None, typer.Option(help="With --everything: least stability of a mask, 0 to 1.", show_default="0.95")
]
_CropLayers = Annotated[
    int | None, typer.Option(help="With --everything: layers of crops besides the image.", min=0, show_default="0")
]
_BoxNmsIou = Annotated[
    float | None,
    typer.Option(
        help="With --everything: of masks whose boxes overlap more, the best one stays.",
        min=0,
        max=1,
        show_default="0.7",
    ),
]
_CropPointsDownscale = Annotated[
    int | None,
    typer.Option(
        help="With --everything: each layer of crops has so many times fewer clicks a side.", min=1, show_default="1"
    ),
]
_MinRegionArea = Annotated[
    int | None,
    typer.Option(
        help="With --everything: holes and islands of fewer pixels are removed; 0 leaves them.",
        min=0,
        show_default="100",
    ),
]
_Exact = Annotated[
    bool, typer.Option("--exact", help="With --everything: segment-anything's masks but for rounding, slower.")
]
_Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Folder, or .json file; without it JSON goes to stdout.", show_default=False),
]
_Format = Annotated[
    Literal["json", "png"],
    typer.Option("--format", help="json: run lengths (COCO RLE) and scores; png: one picture a mask, 0 and 255."),
]


def segment(
    image: _Image,
    point: PointOption = None,
    box: BoxOption = None,
    refine: _Refine = 0,
    points_file: _PointsFile = None,
    everything: _Everything = False,
    points_per_side: _PointsPerSide = None,
    min_predicted_iou: _MinPredictedIou = None,
    min_stability: _MinStability = None,
    box_nms_iou: _BoxNmsIou = None,
    crop_layers: _CropLayers = None,
    crop_points_downscale: _CropPointsDownscale = None,
    min_region_area: _MinRegionArea = None,
    exact: _Exact = False,
    segmenter: SegmenterOption = "tiny",
    checkpoint: CheckpointOption = None,
    device: DeviceOption = "auto",
    out: _Out = None,
    output_format: _Format = "json",
    as_json: JsonOption = False,
) -> None:
    """Candidate masks of one prompt: clicks, a box, or both; of many prompts; or all masks of an image.

    Three masks answer a prompt, named whole, part and subpart by area and nesting, each with the model's predicted IoU
    (raw) and its stability. With --points-file a single click is answered with three masks, any other prompt with one.
    With --everything the masks come with segment-anything's fields; a folder also gets the tree of which mask lies in
    which, as JSON and as a picture.
    """
    from arrcoc_sam.cli.segment_everything_job import SegmentEverythingJob, refuse_without_everything
    from arrcoc_sam.cli.segment_job import SegmentJob
    from arrcoc_sam.cli.segment_prompts_job import SegmentPromptsJob
    from arrcoc_sam.cli.segment_setting import SegmentSetting

    setting = SegmentSetting(segmenter, checkpoint, device, out, output_format, as_json, current_command())
    of_everything: dict[str, Any] = {
        "points_per_side": points_per_side,
        "min_predicted_iou": min_predicted_iou,
        "min_stability": min_stability,
        "box_nms_iou": box_nms_iou,
        "crop_layers": crop_layers,
        "crop_points_downscale": crop_points_downscale,
        "min_region_area": min_region_area,
        "exact": exact or None,
    }
    if not everything:
        refuse_without_everything(of_everything)
    job: SegmentEverythingJob | SegmentPromptsJob | SegmentJob
    if everything:
        job = SegmentEverythingJob(
            setting,
            image,
            prompted=bool(point or box or points_file or refine),
            **{name: value for name, value in of_everything.items() if value is not None},
        )
    elif points_file is not None:
        job = SegmentPromptsJob(setting, image, points_file, prompted=bool(point or box or refine))
    else:
        job = SegmentJob(setting, image, points=point or [], box=box, refine=refine)
    job.run()
