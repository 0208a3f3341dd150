"""All masks of a data set scored on this machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from arrcoc_sam.datasets.mask_forms import open_masks
from arrcoc_sam.datasets.mask_sets import MaskSet
from arrcoc_sam.errors import InputError, describe, explain
from arrcoc_sam.quality.estimator import MaskQualityEstimator
from arrcoc_sam.quality.scoring.again import reopen, set_aside, settle
from arrcoc_sam.quality.scoring.plan import scoring_plan
from arrcoc_sam.quality.scoring.run import Progress, ScoringRun, read_part, write_part
from arrcoc_sam.quality.scoring.scorer import MaskScorer
from arrcoc_sam.report.provenance import Provenance

__all__ = ["PART_MASKS", "Engine", "ScoringSummary", "local_engine", "run_scoring", "score_masks"]

PART_MASKS = 256
"""Masks between two files on disk: what a kill can cost."""

Engine: TypeAlias = Callable[[ScoringRun, Progress | None], None]
"""Scores all parts of a run that are missing, wherever it likes.

If it has a method ``check(plan)``, that is called before anything is listed, to refuse a run of other options."""


@dataclass(frozen=True)
class ScoringSummary:
    """What became of a data set's masks.

    Attributes:
        scores: The table.
        manifest: What the scores depend on, versions and counts, as JSON.
        errors: The table of masks that could not be scored; None where all could.
        num_masks: All of them.
        num_errors: Those that could not be scored.
        num_resumed: How many had been scored before this call.
        note: Why parts stayed as they were although a picture that they lack can be read by now; None without such.
    """

    scores: Path
    manifest: Path
    errors: Path | None
    num_masks: int
    num_errors: int
    num_resumed: int
    note: str | None = None


def score_masks(
    dataset: MaskSet | str | os.PathLike[str],
    out: str | os.PathLike[str],
    estimator: MaskQualityEstimator,
    *,
    part_masks: int = PART_MASKS,
    engine: Engine | None = None,
    progress: Progress | None = None,
) -> ScoringSummary:
    """Score every mask of a data set into one Parquet table; the same call goes on where another one was stopped.

    Memory does not grow with the number of masks. What can't be read (an image that is missing, run lengths that do
    not add up, a mask of another size) goes into a table of errors, ``<out>.errors.csv``, and the rest is scored. Once
    more called, it tries pictures again that could not be read: parts of which one can be by then are scored anew, and
    the table is replaced once all is done. A part stays as it is where a mask that has a score would lose it.

    Args:
        dataset: A data set, or its path for :func:`~arrcoc_sam.datasets.mask_forms.open_masks`.
        out: The table; ends in ``.parquet``. It appears when all is done; until then there is ``<out>.work``.
        estimator: Scores the masks; ``keep_masks=False`` saves time.
        part_masks: Masks between two files on disk. The same in a call that goes on.
        engine: What scores the parts, such as :class:`arrcoc_sam.distributed.RayEngine` of a spec like the estimator;
            by default the estimator in this process, one after the other.
        progress: Called with stage, done, total.

    Returns:
        Where the tables are, and counts.

    Raises:
        DataError: The data set can't be read as a whole, has no masks, or ids repeat; nothing is left on disk.
        OutputError: ``out`` belongs to something else or can't be written; what is scored is kept.
        InputError: An engine that can't be called, or is of other options than the estimator's; nothing is done then.
    """
    masks = dataset if isinstance(dataset, MaskSet) else open_masks(dataset)
    segmenter = estimator.segmenter
    place, device = ("local", str(segmenter.device)) if engine is None else (type(engine).__name__, "the engine's")
    provenance = Provenance(segmenter=segmenter.name, checkpoint_hash=segmenter.checkpoint_hash, device=device)
    if part_masks < 1:
        raise InputError(explain(f"part_masks={part_masks}", "at least 1"))
    given: object = engine
    if given is not None and not callable(given):
        came, mend = f"engine is {describe(given)}", "leave it out to score in this process"
        raise InputError(explain(came, "something to call with a run, such as RayEngine(spec=…)", mend))
    plan = scoring_plan(masks, estimator, part_masks=part_masks)
    engine = local_engine(estimator) if engine is None else engine
    manifest = {**provenance.as_json(), "engine": place}
    return run_scoring(masks, out, plan, engine, manifest=manifest, estimator=estimator, progress=progress)


def local_engine(estimator: MaskQualityEstimator, *, on_image: Callable[[str], None] | None = None) -> Engine:
    """The engine that scores one part after the other in this process.

    Args:
        estimator: Scores the masks.
        on_image: Called with the name of each image that has a mask with scores.
    """

    def engine(run: ScoringRun, progress: Progress | None) -> None:
        scorer = MaskScorer(estimator, *run.folders, on_image=on_image)
        missing = run.missing()
        total = run.num_masks(run.parts())
        done = total - run.num_masks(missing)
        for number in missing:
            if progress is not None:
                progress("Scoring", done, total)
            records = read_part(run.work, number)
            write_part(run.work, number, scorer.score(records))
            done += len(records)
        if progress is not None:
            progress("Scoring", total, total)

    return engine


def run_scoring(
    dataset: MaskSet,
    out: str | os.PathLike[str],
    plan: Mapping[str, Any],
    engine: Engine,
    *,
    manifest: Mapping[str, Any],
    estimator: MaskQualityEstimator | None = None,
    progress: Progress | None = None,
) -> ScoringSummary:
    """List the masks, have an engine score them, and make the table; whatever of it was not done before.

    Args:
        dataset: What is scored.
        out: The table.
        plan: Of :func:`~arrcoc_sam.quality.scoring.plan.scoring_plan`.
        engine: Scores the parts that are missing.
        manifest: What is said of the run besides the plan.
        estimator: That of the plan. With it, what an earlier run could not read is tried again.
        progress: Called with stage, done, total.

    Raises:
        DataError: As for :func:`score_masks`.
        OutputError: As for :func:`score_masks`.
        InputError: The engine is of other options than the plan; nothing is listed then.
    """
    if (check := getattr(engine, "check", None)) is not None:
        check(plan)
    with ScoringRun(dataset, out, plan) as run:
        scorer = None if estimator is None else MaskScorer(estimator, *run.folders)
        held: dict[int, str] = {}
        if run.done and (scorer is None or not reopen(run, scorer, held, progress)):
            run.clear()
            num_masks, num_errors = run.keep_manifest(manifest)
            return _summary(run, num_masks, num_errors, resumed=num_masks, held=held)
        run.prepare(progress)
        if not run.reopened:
            settle(run, held)
            if scorer is not None:
                set_aside(run, scorer, held, progress)
        resumed = run.num_masks(run.parts()) - run.num_masks(run.missing())
        engine(run, progress)
        settle(run, held)
        num_masks, num_errors = run.finish(manifest)
        return _summary(run, num_masks, num_errors, resumed=resumed, held=held)


def _summary(
    run: ScoringRun, num_masks: int, num_errors: int, *, resumed: int, held: Mapping[int, str]
) -> ScoringSummary:
    errors = run.errors_path if num_errors else None
    note = None
    if held:
        parts = "1 part stays" if len(held) == 1 else f"{len(held)} parts stay"
        lost = f"{min(held.items())[1]} had scores, and can't be scored now"
        note = f"{parts} as before, though a picture can be read again: {lost}"
    return ScoringSummary(run.out, run.manifest_path, errors, num_masks, num_errors, resumed, note)
