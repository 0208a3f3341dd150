"""Layer x head granularity of a model over many images: the place where claims are made.

Images go one by one through the segmenter and the source onto the disk (:mod:`arrcoc_sam.granularity.atlas.build`), in
this process or on a cluster; V[j, i] is then made block by block, and :mod:`arrcoc_sam.granularity.claims` judges it.
Memory does not grow with the number of images; the matrix on disk grows with its square (12 bytes a head: 430 MB for
500 images and 144 heads).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from arrcoc_sam.attention.maps import AttentionSource, ImageLike
from arrcoc_sam.errors import InputError, OutputError, explain
from arrcoc_sam.granularity.atlas.build import AtlasBuild, AtlasEngine, array_digest, local_engine
from arrcoc_sam.granularity.atlas.judge import AtlasJudge
from arrcoc_sam.granularity.atlas.read import CONTROLS, AtlasReader, Hierarchies
from arrcoc_sam.granularity.atlas.result import MODEL, AtlasResult
from arrcoc_sam.granularity.atlas.store import AtlasStore, Thresholds
from arrcoc_sam.granularity.claims import MIN_COMPUTED, MIN_IMAGES
from arrcoc_sam.granularity.metrics import check_names
from arrcoc_sam.granularity.trials import Progress
from arrcoc_sam.hierarchy.levels import LEVELS
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
    engine: AtlasEngine | None = None,
    progress: Progress | None = None,
) -> AtlasResult:
    """Claims about every map of a source, with controls and an ablation beside.

    Levels are found at a lattice of points that is the same for all images, and so never comes from the attention. For
    a source whose maps depend on the point, another image's attention is taken at the same place of the lattice.
    Images that can't be read are listed in the result and left out.

    Args:
        images: Paths or images, all different, which is not looked at: a copy would count twice, and on both halves
            (:func:`~arrcoc_sam.granularity.atlas.build.copies` finds them). At least 30 for claims.
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
        engine: What reads the images, such as :class:`arrcoc_sam.distributed.RayAtlasEngine`; by default this process,
            one after the other. Whatever it is, the first image is read here.
        progress: Called as the work goes on.

    Returns:
        The atlas, saved in ``folder`` besides.

    Raises:
        UnknownNameError: No such metric.
        InputError: No images, neither segmenter nor hierarchies, a control of a reserved name, or
            fewer than 4 images with measurable levels.
        DataError: A source answers different grids or names, or depends on points where hierarchies bring none.
        CheckpointError: The folder's records are of other models under the same names.
        OutputError: The folder belongs to another run, can't be written, or has no room; an engine left images out.
    """
    check_names([metric])
    sources = {MODEL: source, **(controls or {})}
    _check_arguments(images, segmenter, hierarchies, controls or {}, points_per_side)
    names = [str(image) if isinstance(image, (str, Path)) else f"image {n}" for n, image in enumerate(images)]
    digests = [array_digest(image) for image in images]
    plan = {
        "images": names,
        "points_per_side": points_per_side if hierarchies is None else None,
        "square": square,
        "sources": list(sources),
        "pixels of images": digests,
        "checkpoint": None if segmenter is None else segmenter.checkpoint_hash,
        "description": dict(description or {}),
    }
    folder = Path(folder).expanduser()
    store = AtlasStore(folder, plan)
    reader = AtlasReader(sources, segmenter, hierarchies, points_per_side, square)
    build = AtlasBuild(store, tuple(images), tuple(names), AtlasBuild.asked_of(reader))
    build.begin(reader)
    _check_room(build, ablated=bool(ablation))
    (local_engine(reader) if engine is None else engine)(build, progress)
    table = build.table()
    readable = table.index[table["error"] == ""].tolist()
    judge = AtlasJudge(store, readable, metric, false_discovery_rate, confidence, seed, progress)
    if len(judge.usable(Thresholds())) < MIN_COMPUTED:
        came = f"{len(judge.usable(Thresholds()))} of {len(images)} images have levels that the grid can measure"
        mend = "more images, larger objects, a finer grid"
        raise InputError(explain(came, f"at least {MIN_COMPUTED}, and {MIN_IMAGES} for claims", mend))

    result = _judged(judge, table, plan, ablation, toroidal=toroidal)
    result.save(folder)
    return result


def _judged(
    judge: AtlasJudge,
    images: pd.DataFrame,
    plan: Mapping[str, Any],
    ablation: Sequence[Thresholds],
    *,
    toroidal: bool,
) -> AtlasResult:
    """The claims about the sources and the controls, and what they hang on."""
    claims = {group: judge.claims(group) for group in (*plan["sources"], *CONTROLS)}
    heads = [judge.heads(group, claims[group], toroidal=toroidal and group in plan["sources"]) for group in claims]
    return AtlasResult(
        heads=pd.concat(heads, ignore_index=True),
        images=images,
        ablation=judge.ablation(MODEL, claims[MODEL], ablation),
        info={
            **plan,
            "metric": judge.metric,
            "num_images": claims[MODEL].num_images,
            "num_draws": claims[MODEL].num_draws,
            "false_discovery_rate": judge.false_discovery_rate,
            "confidence": judge.confidence,
            "seed": judge.seed,
        },
    )


def _check_room(build: AtlasBuild, *, ablated: bool) -> None:
    """Refuse what the disk can't hold, before all images are read: the records, and V of every source.

    V is kept, and that of the model is there a second time while the thresholds are tried.
    """
    store, num_images, missing = build.store, len(build.names), len(build.missing())
    counts = {name: len(maps) for name, maps in store.map_names().items()}
    num_maps = sum(counts.values()) + len(CONTROLS) + (counts.get(MODEL, 0) if ablated else 0)
    record = max((path.stat().st_size for path in (store.folder / "images").glob("*.safetensors")), default=0)
    needed = num_maps * num_images**2 * len(LEVELS) * 4 + missing * record
    kept = sum(path.stat().st_size for path in store.folder.glob("values.*.npy"))  # these are made anew
    free = shutil.disk_usage(store.folder).free + kept
    if needed > free:
        came = f"{store.folder} has room for {free / 1e9:.1f} GB"
        expected = (
            f"{needed / 1e9:.1f} GB: {missing} records, and {num_maps} maps on {num_images} images against all others"
        )
        raise OutputError(explain(came, expected, "fewer images, fewer layers or heads, another disk"))


def _check_arguments(
    images: Sequence[ImageLike],
    segmenter: Segmenter | None,
    hierarchies: Hierarchies | None,
    controls: Mapping[str, AttentionSource],
    points_per_side: int,
) -> None:
    if len(images) < MIN_COMPUTED:
        came = f"{len(images) or 'no'} image{'' if len(images) == 1 else 's'}"
        raise InputError(explain(came, f"at least {MIN_COMPUTED}, and {MIN_IMAGES} for claims"))
    if segmenter is None and hierarchies is None:
        raise InputError(explain("neither a segmenter nor hierarchies were given", "one of them"))
    if points_per_side < 1:
        raise InputError(explain(f"points_per_side is {points_per_side}", "at least 1"))
    taken = {MODEL, *CONTROLS} & set(controls)
    if taken:
        raise InputError(
            explain(f"a control is called {taken.pop()!r}", f"another name than {MODEL}, {', '.join(CONTROLS)}")
        )
