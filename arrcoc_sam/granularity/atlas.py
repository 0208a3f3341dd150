"""Layer x head granularity of a model over many images: the place where claims are made.

Images go one by one through the segmenter and the source onto the disk (:mod:`arrcoc_sam.granularity.atlas_store`);
V[j, i] is then made block by block, and :mod:`arrcoc_sam.granularity.claims` judges it. Memory does not grow with the
number of images; the matrix on disk grows with its square (12 bytes a head: 430 MB for 500 images and 144 heads).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from arrcoc_sam.attention.maps import AttentionSource, ImageLike
from arrcoc_sam.errors import ImageReadError, InputError, explain
from arrcoc_sam.granularity.atlas_read import CONTROLS, AtlasReader, Hierarchies
from arrcoc_sam.granularity.atlas_result import MODEL, AtlasResult, heads_frame
from arrcoc_sam.granularity.atlas_store import AtlasStore, Thresholds
from arrcoc_sam.granularity.atlas_values import matched_values, mean_sinks, toroidal_p, value_matrix
from arrcoc_sam.granularity.claims import Claims, make_claims
from arrcoc_sam.granularity.metrics import check_names
from arrcoc_sam.granularity.moment_metrics import OF_MOMENTS
from arrcoc_sam.granularity.result import ABSTAIN
from arrcoc_sam.granularity.trials import Progress
from arrcoc_sam.levels import LEVELS
from arrcoc_sam.segmenters.base import Segmenter

__all__ = ["ABLATION", "AtlasResult", "Thresholds", "run_atlas"]

ABLATION = (
    Thresholds(distinct_iou=0.6),
    Thresholds(distinct_iou=0.8),
    Thresholds(nested_share=0.8),
    Thresholds(min_cells=2.0),
    Thresholds(min_cells=8.0),
)
"""Thresholds that the claims are made again with, to see what hangs on them."""

_SHOWN = ("shell_contrast", "information_gain", "log_lift", "mass_accuracy", "pearson")


def run_atlas(
    images: Sequence[ImageLike],
    source: AttentionSource,
    segmenter: Segmenter | None,
    folder: str | Path,
    *,
    hierarchies: Hierarchies | None = None,
    controls: Mapping[str, AttentionSource] | None = None,
    metric: str = "shell_contrast",
    points_per_side: int = 3,
    square: bool = True,
    false_discovery_rate: float = 0.05,
    confidence: float = 0.95,
    ablation: Sequence[Thresholds] = ABLATION,
    toroidal: bool = True,
    seed: int = 0,
    description: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> AtlasResult:
    """Claims about every map of a source, with controls and an ablation beside.

    Levels are found at a lattice of points that is the same for all images, and so never comes from the attention. For
    a source whose maps depend on the point, another image's attention is taken at the same place of the lattice.
    Images that can't be read are listed in the result and left out.

    Args:
        images: Paths or images, all different. At least 30 for claims.
        source: What is judged. It must answer one grid for all images.
        segmenter: What finds levels at the points; None with ``hierarchies``.
        folder: Where records are kept and the matrices go. The same call goes on where it stopped.
        hierarchies: Levels from elsewhere instead of the segmenter's.
        controls: Further sources by name, such as the same architecture with random weights.
        metric: What the claims are made of.
        points_per_side: Points of the lattice a side.
        square: Crop every image to its central square, so that one place is the same place in all. Without it, images
            must have one shape, and are handed to the source as they came.
        false_discovery_rate: q of the Benjamini-Hochberg procedure over a source's maps.
        confidence: Coverage of the bootstrap intervals.
        ablation: Thresholds to make the claims again with; () for none.
        toroidal: Compute p against toroidal shifts, too (for comparison, metrics of moments only).
        seed: Of all draws.
        description: What to remember of the run (model, checkpoint, command); a folder of another one is refused.
        progress: Called as the work goes on.

    Returns:
        The atlas, saved in ``folder`` besides.

    Raises:
        UnknownNameError: No such metric.
        InputError: No images, neither segmenter nor hierarchies, a control of a reserved name, or fewer than 4 images
            with measurable levels.
        DataError: A source answers different grids or names, or depends on points where hierarchies bring none.
        OutputError: The folder belongs to another run, or can't be written.
    """
    check_names([metric])
    sources = {MODEL: source, **(controls or {})}
    _check_arguments(images, segmenter, hierarchies, controls or {}, points_per_side)
    names = [str(image) if isinstance(image, (str, Path)) else f"image {n}" for n, image in enumerate(images)]
    plan = {
        "images": names,
        "points_per_side": points_per_side if hierarchies is None else None,
        "square": square,
        "sources": list(sources),
        "description": dict(description or {}),
    }
    store = AtlasStore(folder, plan)
    reader = AtlasReader(sources, segmenter, hierarchies, points_per_side, square)
    table = _read_images(images, names, store, reader, progress)
    usable = _usable(store, table, Thresholds())
    if len(usable) < 4:
        came = f"{len(usable)} of {len(images)} images have levels that the grid can measure"
        raise InputError(explain(came, "at least 4, and 30 for claims", "more images, larger objects, a finer grid"))

    def claims_of(group: str, numbers: Sequence[int], thresholds: Thresholds) -> Claims:
        path = store.folder / f"values.{group.replace(' ', '_')}.npy"
        values = value_matrix(store, numbers, group, metric, path, thresholds=thresholds, progress=progress)
        return make_claims(values, false_discovery_rate=false_discovery_rate, confidence=confidence, seed=seed)

    frames, judged = [], None
    shown = tuple(dict.fromkeys((metric, *_SHOWN)))
    for group in (*sources, *CONTROLS):
        claims = claims_of(group, usable, Thresholds())
        judged = claims if judged is None else judged
        shifted = None
        if toroidal and metric in OF_MOMENTS and group not in CONTROLS:
            shifted = toroidal_p(store, usable, group, metric, thresholds=Thresholds(), seed=seed, progress=progress)
        frames.append(
            heads_frame(
                group,
                store.map_names().get(group, (group,)),
                claims,
                matched_values(store, usable, group, shown, thresholds=Thresholds()),
                sinks=mean_sinks(store, usable, group, thresholds=Thresholds()),
                prefix=_mean_prefix(store, usable, group),
                toroidal=shifted,
            )
        )
    rows = []
    for thresholds in (Thresholds(), *ablation):
        numbers = _usable(store, table, thresholds)
        found = judged if thresholds == Thresholds() else None
        if found is None and len(numbers) >= 4:
            found = claims_of(MODEL, numbers, thresholds)
        rows.append(_ablation_row(store, table, thresholds, len(numbers), found, judged))
    result = AtlasResult(
        heads=pd.concat(frames, ignore_index=True),
        images=table,
        ablation=pd.DataFrame(rows),
        info={
            "metric": metric,
            "num_images": len(usable),
            "num_draws": judged.num_draws if judged is not None else 0,
            "false_discovery_rate": false_discovery_rate,
            "confidence": confidence,
            "seed": seed,
            **plan,
        },
    )
    result.save(folder)
    return result


def _check_arguments(
    images: Sequence[ImageLike],
    segmenter: Segmenter | None,
    hierarchies: Hierarchies | None,
    controls: Mapping[str, AttentionSource],
    points_per_side: int,
) -> None:
    if len(images) == 0:
        raise InputError(explain("no images", "at least 4, and 30 for claims"))
    if segmenter is None and hierarchies is None:
        raise InputError(explain("neither a segmenter nor hierarchies were given", "one of them"))
    if points_per_side < 1:
        raise InputError(explain(f"points_per_side is {points_per_side}", "at least 1"))
    taken = {MODEL, *CONTROLS} & set(controls)
    if taken:
        raise InputError(
            explain(f"a control is called {taken.pop()!r}", f"another name than {MODEL}, {', '.join(CONTROLS)}")
        )


def _read_images(
    images: Sequence[ImageLike],
    names: Sequence[str],
    store: AtlasStore,
    reader: AtlasReader,
    progress: Progress | None,
) -> pd.DataFrame:
    """Make the records that are missing; one row an image."""
    rows = []
    for number, (image, name) in enumerate(zip(images, names, strict=True)):
        error = ""
        if number not in store:
            try:
                record, map_names = reader.read(image)
                store.keep_names(map_names, name)
                store.write(number, record)
            except ImageReadError as problem:
                error = str(problem)
        prompts = measurable = 0
        if not error:
            _, flags = store.read(number).regions(Thresholds())
            prompts, measurable = len(flags), int(flags.sum())
        rows.append({"image": name, "prompts": prompts, "measurable": measurable, "error": error})
        if progress is not None:
            progress("images", number + 1, len(images))
    return pd.DataFrame(rows)


def _usable(store: AtlasStore, table: pd.DataFrame, thresholds: Thresholds) -> list[int]:
    """Images with a prompt that is measurable under these thresholds."""
    readable = table.index[table["error"] == ""].tolist()
    return [number for number in readable if bool(store.read(number).regions(thresholds)[1].any())]


def _mean_prefix(store: AtlasStore, numbers: Sequence[int], group: str) -> Float[Tensor, " N"] | None:
    found = [mass[group] for number in numbers if group in (mass := store.read(number).prefix_mass)]
    return torch.stack(found).mean(0) if found else None


def _ablation_row(
    store: AtlasStore,
    table: pd.DataFrame,
    thresholds: Thresholds,
    num_images: int,
    claims: Claims | None,
    judged: Claims | None,
) -> dict[str, Any]:
    flags = [store.read(n).regions(thresholds)[1] for n in table.index[table["error"] == ""].tolist()]
    prompts = torch.cat(flags)
    row: dict[str, Any] = {
        **asdict(thresholds),
        "num_images": num_images,
        "measurable_share": float(prompts.double().mean()) if len(prompts) else np.nan,
    }
    for level in (*LEVELS, ABSTAIN):
        row[f"share_{level}"] = np.nan if claims is None else float((claims.level == level).mean())
    agree = np.nan
    if claims is not None and judged is not None:
        agree = float((claims.level == judged.level).mean())
    return {**row, "agreement": agree}
