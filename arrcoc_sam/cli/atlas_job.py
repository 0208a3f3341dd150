"""``atlas`` from checked inputs to files: records, tables, figures, one page."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
import typer

from arrcoc_sam.cli.analysis_inputs import AttentionOptions, Inputs, about
from arrcoc_sam.cli.console import err, note, noted, out, print_json, print_table, tracked
from arrcoc_sam.cli.options import check_segmenter, open_segmenter, refuse_ray_options, wherever
from arrcoc_sam.cli.orientation import orientation_note
from arrcoc_sam.cli.skipped import BAD_FILES, record_faults, skipped_json
from arrcoc_sam.cli.stage_progress import stage_progress
from arrcoc_sam.datasets import CocoDataset, human_hierarchies
from arrcoc_sam.errors import CheckpointError, InputError, UnknownNameError, explain, first_line
from arrcoc_sam.granularity.atlas.build import copies
from arrcoc_sam.granularity.atlas.read import AtlasReader
from arrcoc_sam.granularity.atlas.result import MODEL
from arrcoc_sam.granularity.atlas.run import AtlasResult, run_atlas
from arrcoc_sam.granularity.claims import MIN_IMAGES
from arrcoc_sam.granularity.metrics import check_names
from arrcoc_sam.hierarchy import MaskHierarchy
from arrcoc_sam.hierarchy.levels import LEVELS
from arrcoc_sam.images import load_image
from arrcoc_sam.report import Provenance
from arrcoc_sam.report.atlas.page import atlas_report
from arrcoc_sam.report.atlas.plots import atlas_figures
from arrcoc_sam.report.atlas.tables import KINDS, best_heads, claim_counts, groups, makes_claims, of_group
from arrcoc_sam.report.provenance import DEMONSTRATION_MODEL
from arrcoc_sam.report.results import ABSTAIN
from arrcoc_sam.report.writing import made_folder, replacing

if TYPE_CHECKING:
    from arrcoc_sam.attention import AttentionSource
    from arrcoc_sam.attention.maps import ImageLike
    from arrcoc_sam.granularity.atlas.build import AtlasEngine
    from arrcoc_sam.segmenters.base import Segmenter

__all__ = ["AtlasJob"]

RANDOM = "random weights"
_LISTED = 3


@dataclass(frozen=True)
class AtlasJob:
    """Everything that ``atlas`` was told; :meth:`run` does it."""

    images: Sequence[str]
    recursive: bool
    limit: int | None
    attention: AttentionOptions
    control: bool
    segmenter: str
    checkpoint: Path | None
    device: str
    hierarchy: Path | None
    grid: int
    metric: str
    false_discovery_rate: float
    seed: int
    out: Path
    figure_format: str
    title: str
    engine: str
    address: str | None
    actors: int | None
    gpus_per_actor: float | None
    as_json: bool
    command: str

    def run(self) -> None:
        """Judge and write.

        Raises:
            ArrcocSamError: Bad input.
            typer.Exit: With code 3, where some files of a folder were left out.
        """
        check_names([self.metric])
        if not 0 < self.false_discovery_rate < 1:
            raise InputError(explain(f"--fdr {self.false_discovery_rate}", "a rate between 0 and 1"))
        refuse_ray_options(self.engine, self.address, self.actors, self.gpus_per_actor)
        inputs = Inputs.find(self.images, recursive=self.recursive)
        paths = list(inputs.paths)[: self.limit]
        if len(paths) < 4:
            raise InputError(explain(f"{len(paths)} images", f"at least 4, and {MIN_IMAGES} for claims"))
        people = self._people()
        for path in tracked(sorted(inputs.named & set(paths)), "Checking"):
            with about(path):
                load_image(path)
                if people is not None:
                    _HumanLevels(people)(path)
        turned = None if people is None else orientation_note(paths, "masks", in_place=True)
        if turned is not None:
            noted(turned)
        if len(paths) < MIN_IMAGES:
            noted(f"{len(paths)} images: claims take at least {MIN_IMAGES}, so none will be made")
        twice = [f"{paths[copy]} is {paths[first]}" for first, copy in copies(paths, [None] * len(paths))]
        if twice:
            more = f" and {len(twice) - 5:,} more" if len(twice) > 5 else ""
            noted(f"an image that is there twice counts twice towards a claim: {', '.join(twice[:5])}{more}")
        asked = self._asked()
        engine = self._ray(asked) if self.engine == "ray" else None
        # on a cluster this process reads one image, to know what the others have to look like
        here = "cpu" if self.engine == "ray" else self.device
        source, *controls = self._load(asked, here)
        segmenter = open_segmenter(self.segmenter, self.checkpoint, here) if people is None else None
        provenance = self._provenance(segmenter)
        try:
            with stage_progress() as progress:
                result = run_atlas(
                    paths,
                    source,
                    segmenter,
                    self.out,
                    hierarchies=None if people is None else _HumanLevels(people),
                    controls=dict(zip(list(asked)[1:], controls, strict=True)),
                    metric=self.metric,
                    points_per_side=self.grid,
                    false_discovery_rate=self.false_discovery_rate,
                    seed=self.seed,
                    description=self._description(segmenter),
                    engine=engine,
                    progress=progress,
                )
        except KeyboardInterrupt:
            note("images that were read are kept: the same command goes on from there")
            raise
        with replacing(self.out / "heads.csv") as draft:
            result.heads.to_csv(draft, index=False)
        self._save_figures(result)
        report = atlas_report(
            result,
            self.out / "report.html",
            title=self.title,
            provenance=provenance,
            control=self.attention.random_weights,
        )
        self._tell(result, report, provenance, () if people is None else record_faults(people))

    def _people(self) -> CocoDataset | None:
        """Human masks, where they stand in place of a segmenter's."""
        if self.hierarchy is None:
            check_segmenter(self.segmenter)
            return None
        if self.checkpoint is not None or self.segmenter != DEMONSTRATION_MODEL:
            expected = "one of them: human masks stand in place of a segmenter's"
            raise InputError(explain("--hierarchy with --segmenter or --checkpoint", expected))
        return CocoDataset.read(self.hierarchy, strict=False)

    def _asked(self) -> dict[str, AttentionOptions]:
        """What is judged, and the same architecture with random weights beside it."""
        name = self.attention.name
        transformer = name.startswith(("timm:", "hf:"))
        if not transformer and name != "relevance":
            raise UnknownNameError(explain(f"--model {name}", "timm:MODEL, hf:MODEL or relevance"))
        self.attention.note_control()
        if not transformer or self.attention.random_weights or not self.control:
            return {MODEL: self.attention}
        return {MODEL: self.attention, RANDOM: replace(self.attention, random_weights=True)}

    def _load(self, asked: Mapping[str, AttentionOptions], device: str) -> list[AttentionSource]:
        """The sources, in their order."""
        name = self.attention.name
        try:
            return [replace(options, device=device).load() for options in asked.values()]
        except CheckpointError as error:
            # What is in a local folder needs no network; elsewhere the configuration may be missing, too.
            if self.attention.random_weights or (name.startswith("hf:") and not Path(name[3:]).is_dir()):
                raise
            reason = first_line(error.__cause__ or error)
            mend = "fetch them once on a connected machine, or name --random-weights, for a control only"
            came = f"the weights of {name} can't be had ({reason})"
            raise CheckpointError(explain(came, "a network, a cached copy or a local folder", mend)) from error

    def _ray(self, asked: Mapping[str, AttentionOptions]) -> AtlasEngine:
        from arrcoc_sam.distributed import RayAtlasEngine

        levels = _Levels(
            segmenter=wherever(self.segmenter),
            checkpoint=None if self.checkpoint is None else self.checkpoint.absolute(),
            hierarchy=None if self.hierarchy is None else self.hierarchy.absolute(),
        )
        sources = {name: replace(options, name=wherever(options.name)) for name, options in asked.items()}
        return RayAtlasEngine(
            partial(_reader, sources, levels, self.grid, self.device),
            device=self.device,
            address=self.address,
            actors=self.actors,
            gpus_per_actor=self.gpus_per_actor,
        )

    def _description(self, segmenter: Segmenter | None) -> dict[str, Any]:
        """What the numbers depend on besides images and thresholds: a folder of another run is refused by it."""
        attention = self.attention
        levels = {"levels": "human masks", "hierarchy": _digest(self.hierarchy)}
        if segmenter is not None:
            levels = {"segmenter": segmenter.name, "checkpoint": segmenter.checkpoint_hash}
        return {
            "model": attention.name,
            "weights": f"random, seed {attention.seed}" if attention.random_weights else "published",
            "query": attention.query or "cls",
            "layers": attention.layers or "all",
            "heads": attention.heads or "all",
            "input": ", ".join(f"{key} {value}" for key, value in attention.further.items()) or "own",
            **levels,
        }

    def _provenance(self, segmenter: Segmenter | None) -> Provenance:
        return Provenance(
            command=self.command,
            segmenter=None if segmenter is None else segmenter.name,
            checkpoint_hash=None if segmenter is None else segmenter.checkpoint_hash,
            attention=self.attention.describe(),
            device=None if segmenter is None else self.device if self.engine == "ray" else str(segmenter.device),
            seed=self.seed,
        )

    def _save_figures(self, result: AtlasResult) -> None:
        if self.figure_format == "none":
            return
        folder = made_folder(self.out / "figures")
        for name, figure in atlas_figures(result).items():
            with replacing(folder / f"{name}.{self.figure_format}") as draft:
                figure.savefig(draft)

    def _tell(
        self, result: AtlasResult, report: Path, provenance: Provenance, records: Sequence[tuple[str, str]]
    ) -> None:
        errors = result.images[result.images["error"] != ""]
        named = [*records, *((str(row.image), str(row.error)) for row in errors.itertuples())]
        rows = [(name, " ".join(reason.split())) for name, reason in named]
        if rows:
            print_table("Left out", ["file", "reason"], rows, to=err())
            with replacing(self.out / "errors.csv") as draft:
                pd.DataFrame(rows, columns=["file", "reason"]).to_csv(draft, index=False)
        else:
            (self.out / "errors.csv").unlink(missing_ok=True)  # of an earlier run
        bare = int(((result.images["prompts"] == 0) & (result.images["error"] == "")).sum())
        if bare:
            noted(f"{bare} of {len(result.images)} images have no nested masks in {self.hierarchy}")
        if self.as_json:
            listed = [{"file": name, "message": reason} for name, reason in named]
            left_out = {**skipped_json(named), "errors": listed}
            print_json(_as_json(result, report, self.out) | left_out | provenance.as_json())
        else:
            _print_summary(result)
            out().print(f"Report: {report}", soft_wrap=True, markup=False)
        if rows:
            raise typer.Exit(BAD_FILES)


@dataclass(frozen=True)
class _Levels:
    """Where levels come from, in plain values for another machine."""

    segmenter: str
    checkpoint: Path | None
    hierarchy: Path | None


def _reader(asked: Mapping[str, AttentionOptions], levels: _Levels, grid: int, device: str) -> AtlasReader:
    """What reads images on another machine."""
    people = None if levels.hierarchy is None else CocoDataset.read(levels.hierarchy, strict=False)
    return AtlasReader(
        sources={name: replace(options, device=device).load() for name, options in asked.items()},
        segmenter=open_segmenter(levels.segmenter, levels.checkpoint, device) if people is None else None,
        hierarchies=None if people is None else _HumanLevels(people),
        points_per_side=grid,
        square=True,
    )


class _HumanLevels:
    """Levels that people drew; none on an image that their file does not know."""

    def __init__(self, people: CocoDataset) -> None:
        self.people = people

    def __call__(self, image: ImageLike) -> MaskHierarchy:
        height, width = load_image(image).shape[:2]
        found = human_hierarchies(self.people, str(image), image_hw=(height, width))
        return (
            MaskHierarchy.from_masks(torch.zeros(0, 3, height, width, dtype=torch.bool)) if found is None else found[0]
        )


def _digest(path: Path | None) -> str:
    return "" if path is None else hashlib.sha256(path.read_bytes()).hexdigest()


def _as_json(result: AtlasResult, report: Path, folder: Path) -> dict[str, Any]:
    judged = result.of()
    return {
        "report": str(report),
        "table": str(folder / "heads.parquet"),
        "num_images": result.num_images,
        "claims_made": makes_claims(result),
        "answers": {group: claim_counts(of_group(result, group)) for group in groups(result)},
        "abstained": result.abstained_share,
        "unmeasurable": result.unmeasurable_share,
        "claims": dict(judged[judged["level"] != ABSTAIN].set_index("map")["level"]),
    }


def _short(value: float) -> str:
    return f"{round(value, 1) + 0.0:.1f}"  # no minus before 0


def _print_summary(result: AtlasResult) -> None:
    rows = []
    for group in groups(result):
        maps = of_group(result, group)
        counts = claim_counts(maps)
        rows.append((group, str(len(maps)), *(str(counts[kind]) for kind in KINDS)))
    print_table("Maps by what is claimed", ["attention", "maps", *KINDS], rows, to=out(), right=["maps", *KINDS])
    rows = []
    for level in LEVELS:
        for head in best_heads(result.of(), level, _LISTED).to_dict("records"):
            lead = f"{_short(head['gap'])} [{_short(head['gap_low'])}, {_short(head['gap_high'])}]"
            rows.append((head["map"], level, _short(head[f"report_z_{level}"]), lead, head["level"]))
    title = f"The first {_LISTED} maps of each level, as one half of the images has it; z and lead of the other half"
    columns = ["map", "largest at", "z (null sd)", "lead [interval]", "claimed"]
    print_table(title, columns, rows, to=out(), right=["z (null sd)"])
    if makes_claims(result):
        words = "A claim: the map concentrates at the level beyond its image-independent prior. Nothing causal."
    else:
        words = f"No claim: {result.num_images} images with levels that the grid can measure; it takes {MIN_IMAGES}."
    out().print(words, soft_wrap=True, markup=False)
