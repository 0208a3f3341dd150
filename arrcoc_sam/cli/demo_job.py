"""The demo from its table of images to a report."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64, UInt8
from torch import Tensor

from arrcoc_sam.attention import AttentionMaps, RelevanceAttention
from arrcoc_sam.cli.analysis_figures import save_figures
from arrcoc_sam.cli.analysis_job import save_tables
from arrcoc_sam.cli.console import out, print_json, print_table, progress
from arrcoc_sam.cli.demo_controls import planted_maps
from arrcoc_sam.cli.demo_images import DEMO_PHOTOS, DEMO_SCENE_SEED, DemoPhoto, DemoScene, load_photo, load_scene
from arrcoc_sam.cli.demo_masks import mask_section, score_scene, scores_frame
from arrcoc_sam.cli.granularity_run import Analysed, analyze_image, find_levels
from arrcoc_sam.cli.options import check_segmenter, open_segmenter
from arrcoc_sam.cli.staging import staged_folder
from arrcoc_sam.hierarchy import MaskHierarchy
from arrcoc_sam.hierarchy.levels import LEVELS
from arrcoc_sam.masks import pairwise_iou
from arrcoc_sam.prompts import Prompts
from arrcoc_sam.report import GranularityPage, Provenance
from arrcoc_sam.report.provenance import DEMONSTRATION_MODEL
from arrcoc_sam.report.results import ABSTAIN
from arrcoc_sam.report.score_section import ScoredMask

if TYPE_CHECKING:
    from arrcoc_sam.segmenters.base import Segmenter

__all__ = ["run_demo"]

_NOTES = (
    "ARR-COC's relevance maps on photographs that scikit-image brings along, and on one generated scene. Three masks "
    "answer each click; four maps say where the image is informative, structured, like the place clicked, and all of "
    "these in balance.",
    "In the scene the levels are known. Attention is planted at each of them, which the analysis has to find, and "
    "uniform attention, on which it has to abstain.",
    "At the end the other job: masks that the segmenter did not make, some wrong on purpose, and their scores.",
)


def run_demo(
    *,
    out_folder: Path,
    segmenter_name: str,
    checkpoint: Path | None,
    device: str,
    figure_format: str,
    as_json: bool,
    command: str,
) -> None:
    """Analyse the demo's images and write table, figures and report.

    Raises:
        ArrcocSamError: Bad options; nothing is written then.
    """
    check_segmenter(segmenter_name)
    with staged_folder(out_folder) as folder:
        segmenter = open_segmenter(segmenter_name, checkpoint, device)
        provenance = Provenance(
            command=command,
            segmenter=segmenter.name,
            checkpoint_hash=segmenter.checkpoint_hash,
            attention="relevance, and planted controls in the scene",
            device=str(segmenter.device),
            seed=DEMO_SCENE_SEED,
        )
        page = GranularityPage(title="arrcoc-sam demo: attention granularity", notes=_NOTES, provenance=provenance)
        photographs: list[Analysed] = []
        scenes: list[Analysed] = []
        scene = load_scene()
        with progress("Analysing", total=len(DEMO_PHOTOS) + 3) as advance:
            for made, analysed in _results(segmenter, scene):
                (scenes if made else photographs).append(analysed)
                page.add(analysed.item())
                save_figures(analysed, folder / "figures", _file_name(analysed.name), figure_format)
                advance()
            scored = score_scene(segmenter, scene)
            page.append(mask_section(scene, scored))
            advance()
        save_tables(pd.concat([each.frame() for each in (*photographs, *scenes)], ignore_index=True), folder)
        scores = scores_frame(scored)
        scores.to_csv(folder / "scores.csv", index=False)
        page.write(folder / "report.html")
    report = out_folder / "report.html"
    if as_json:
        print_json(
            {
                "report": str(report),
                "table": str(out_folder / "granularity.parquet"),
                "abstained": page.abstained,
                "answers": page.answers,
                "planted": {each.name: _planted(each) for each in scenes},
                "scores": json.loads(scores.to_json(orient="records")),
                **provenance.as_json(),
            }
        )
        return
    _print_masks([*photographs, *scenes])
    _print_planted(scenes)
    _print_scores(scored)
    out().print(f"Report: {report}", soft_wrap=True, markup=False)


def _results(segmenter: Segmenter, scene: DemoScene) -> Iterator[tuple[bool, Analysed]]:
    """Everything that the demo shows, and whether it is a generated scene."""
    for photo in DEMO_PHOTOS:
        yield False, _analyze_photo(photo, segmenter)
    yield from ((True, analysed) for analysed in _analyze_scene(segmenter, scene))


def _analyze_photo(photo: DemoPhoto, segmenter: Segmenter) -> Analysed:
    image = load_photo(photo.name)
    points = torch.tensor([point for _, point in photo.clicks], dtype=torch.float64)
    levels = find_levels(segmenter, image, Prompts(points_xy=points[:, None]))
    note = photo.note
    if photo.fails and segmenter.name == DEMONSTRATION_MODEL:
        note += " Shown because the embedded model fails here: its masks are not the things that a person would name."
    return Analysed(
        photo.name,
        analyze_image(image, points, _relevance(image, points), levels.hierarchy),
        {"stability": levels.stability},
        note,
        tuple(f"Prompt {i + 1}, {name}" for i, (name, _) in enumerate(photo.clicks)),
    )


def _analyze_scene(segmenter: Segmenter, scene: DemoScene) -> Iterator[Analysed]:
    """The scene twice: against the levels that are true, and against those that the segmenter finds."""
    points = torch.tensor([scene.point_xy], dtype=torch.float64)
    relevance = _relevance(scene.image, points)
    maps = AttentionMaps.cat([relevance, planted_maps(scene.levels, relevance)])
    truth = MaskHierarchy.from_masks(scene.levels[None], torch.full((1, 3), torch.nan))
    yield Analysed(
        "scene, true",
        analyze_image(scene.image, points, maps, truth),
        note="True masks: the analysis alone, on exact levels. Each planted map has to be found at its own level.",
    )
    found = find_levels(segmenter, scene.image, Prompts(points_xy=points[:, None]))
    overlap = pairwise_iou(found.hierarchy.masks[0].cpu(), scene.nodes)
    yield Analysed(
        "scene, found",
        analyze_image(scene.image, points, maps, found.hierarchy),
        {"stability": found.stability, "IoU with the closest true mask": overlap.amax(1)[None]},
        "Masks found: the whole pipeline, the same maps against the masks that the segmenter answers the click with.",
    )


def _relevance(image: UInt8[np.ndarray, "H W 3"], points_xy: Float64[Tensor, "K 2"]) -> AttentionMaps:
    with torch.no_grad():
        maps: AttentionMaps = RelevanceAttention()(image, points_xy)
    return maps


def _file_name(name: str) -> str:
    return name.replace(", ", "-").replace(" ", "-")


def _planted(scene: Analysed) -> dict[str, str]:
    """What the analysis answered to each planted map and control."""
    result = scene.result
    answers = {name: str(result.best_match[index, 0]) for index, name in enumerate(result.maps.names)}
    return {name: answer for name, answer in answers.items() if name.startswith(("planted", "control"))}


def _print_masks(everything: Sequence[Analysed]) -> None:
    rows = []
    for analysed in everything:
        result, stability = analysed.result, analysed.mask_scores.get("stability")
        points = result.points_xy
        for prompt, matches in enumerate(result.best_match.T):
            x, y = (float("nan"),) * 2 if points is None else points[prompt].tolist()
            rows.append(
                (
                    analysed.name,
                    f"{x:.4g},{y:.4g}",
                    _triple(result.hierarchy.scores[prompt].tolist()),
                    "–" if stability is None else _triple(stability[prompt].tolist()),
                    str(matches[result.maps.names.index("balanced")]),
                    f"{sum(match == ABSTAIN for match in matches)}/{len(matches)}",
                )
            )
    columns = ["image", "click", "predicted IoU", "stability", "balanced", "abstain"]
    title = f"Masks ({', '.join(LEVELS)}) and the level of the balanced map"
    print_table(title, columns, rows, to=out(), right=["click", "abstain"])


def _print_planted(scenes: Sequence[Analysed]) -> None:
    answers = [_planted(scene) for scene in scenes]
    rows = [(name, *(answer[name] for answer in answers)) for name in answers[0]]
    print_table("Attention planted in the scene", ["map", *(scene.name for scene in scenes)], rows, to=out())
    out().print("Not calibrated: one image's levels ranked, no comparison with other images.", soft_wrap=True)


def _print_scores(scored: Sequence[ScoredMask]) -> None:
    rows = []
    for each in scored:
        low, high = each.interval
        interval = "–" if math.isnan(low) else f"{low:.2f} to {high:.2f}"
        rows.append((each.name, f"{each.true_iou:.2f}", f"{each.quality:.2f}", interval))
    columns = ["mask", "true IoU", "quality", "90 % interval"]
    print_table("Masks that the segmenter did not make", columns, rows, to=out(), right=columns[1:])


def _triple(values: list[float]) -> str:
    return " ".join("–" if math.isnan(value) else f"{value:.2f}" for value in values)
