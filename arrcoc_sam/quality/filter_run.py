"""From a table of scores to the data set of the masks that stay, and a report."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from arrcoc_sam.datasets.faults import commonest
from arrcoc_sam.datasets.mask_forms import open_masks
from arrcoc_sam.datasets.mask_index import MaskIndex
from arrcoc_sam.datasets.mask_sets import MaskSet
from arrcoc_sam.errors import ArrcocSamError, DataError, InputError, OutputError, describe, explain
from arrcoc_sam.images import load_image
from arrcoc_sam.quality.filtering import COLUMNS, Judgement, KeepRules, best_and_worst, classes, judge
from arrcoc_sam.quality.score_table import ScoredChanges, read_plan, read_scores
from arrcoc_sam.quality.scoring.scorer import read_mask
from arrcoc_sam.quality.unscored import NOT_RECORDED, all_are_listed, listed_errors, listed_masks, unscored_masks
from arrcoc_sam.report.filter_page import FilterFigures, MaskPicture, filter_report
from arrcoc_sam.report.json_text import json_document
from arrcoc_sam.report.provenance import Provenance
from arrcoc_sam.report.writing import made_folder, refuse_overwriting, replacing, write_text

__all__ = ["FilterSummary", "beside", "filter_masks"]

_FILES = (".json", ".parquet")


@dataclass(frozen=True, eq=False)
class FilterSummary:
    """What became of the masks of a data set.

    Attributes:
        out: The data set of what is kept; None where nothing was written.
        scores: A row a mask that has a score.
        judgement: What the rules say of those.
        unscored: A row a mask that has none: ``id``, ``image_id``, ``image``, ``category``, ``error``.
        record: Rules, counts, classes, versions, as the manifest has them.
        notes: What is not as one may think; to be read.
    """

    out: Path | None
    scores: pd.DataFrame
    judgement: Judgement
    unscored: pd.DataFrame
    record: dict[str, Any]
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        """How many stay, and where they are."""
        kept, scored = self.record["num_kept"], self.record["num_scored"]
        notes = f"; notes: {len(self.notes)}" if self.notes else ""
        bare = f"{len(self.unscored):,} without a score"
        return f"FilterSummary({kept:,} of {scored:,} masks stay, {bare}; out={self.out}{notes})"


def filter_masks(
    scored: str | os.PathLike[str],
    out: str | os.PathLike[str] | None,
    rules: KeepRules,
    *,
    keep_unscored: bool = False,
    keep_images: bool = False,
    with_scores: bool = False,
    dataset: str | os.PathLike[str] | None = None,
    images: str | os.PathLike[str] | None = None,
    pictures: int = 8,
    command: str | None = None,
) -> FilterSummary:
    """Keep the masks of a scored data set that meet all rules, and write the data set of what is kept.

    It has the form that the data set came in. Beside it: a report (``OUT.report.html``), a list of what was dropped and
    why (``OUT.dropped.csv``), and a manifest (``OUT.manifest.json``).

    Args:
        scored: The table that :func:`arrcoc_sam.quality.score_masks` wrote.
        out: The data set to be written: a .json file of COCO, a .parquet file of Parquet, a folder of a folder. None
            writes nothing.
        rules: What a mask has to meet.
        keep_unscored: Keep masks that could not be scored.
        keep_images: Keep images that keep no mask.
        with_scores: Write scores into the annotations, too.
        dataset: Where the data set has moved since.
        images: Likewise its images.
        pictures: Masks on the report, so many of the best and of the worst.
        command: What is said of how it was made.

    Returns:
        What became of the masks.

    Raises:
        DataError: The table or the data set can't be read, or the data set is not what was scored.
        InputError: What is no path or no rules, fewer than 0 pictures, an output whose name does not fit the data set's
            form, or a folder that is to get scores.
        OutputError: The output would overwrite what it is made of, or can't be written.

    Example:
        >>> filter_masks("scores.parquet", "kept.json", KeepRules(min_quality=0.8))  # doctest: +SKIP
        FilterSummary(812 of 1,000 masks stay, 0 without a score; out=kept.json)
    """
    for name, value in (("scored", scored), ("out", out)):
        if not isinstance(value, (str, os.PathLike)) and not (name == "out" and value is None):
            mend = "give the table's path; score_masks tells it as .scores" if name == "scored" else None
            raise InputError(explain(f"{name} is {describe(value)}", "a path", mend))
    if not isinstance(rules, KeepRules):
        raise InputError(explain(f"rules is {describe(rules)}", "KeepRules", "write KeepRules(min_quality=0.8)"))
    if out is not None and Path(out).name in ("", ".."):
        raise InputError(explain(f"the output {str(out)!r}", "a path that ends in a name"))
    if pictures < 0:
        raise InputError(explain(f"pictures={pictures}", "at least 0"))
    run = _FilterRun(
        scored=Path(scored).expanduser(),
        out=None if out is None else Path(out).expanduser(),
        rules=rules,
        keep_unscored=keep_unscored,
        keep_images=keep_images,
        with_scores=with_scores,
        dataset=None if dataset is None else Path(dataset).expanduser(),
        images=None if images is None else Path(images).expanduser(),
        pictures=pictures,
        command=command,
    )
    return run()


@dataclass(frozen=True)
class _FilterRun:
    """The arguments of :func:`filter_masks`; called, it does what they say."""

    scored: Path
    out: Path | None
    rules: KeepRules
    keep_unscored: bool
    keep_images: bool
    with_scores: bool
    dataset: Path | None
    images: Path | None
    pictures: int
    command: str | None

    def __call__(self) -> FilterSummary:
        """Judge and write."""
        plan = read_plan(self.scored)
        dataset = None if self.out is None else self._open(plan, self.out)
        scores = read_scores(self.scored, list(COLUMNS))
        unscored, notes = self._unscored(plan, dataset, len(scores))
        judgement = judge(scores, self.rules)
        record = self._record(plan, scores, judgement, unscored)
        if self.out is not None and dataset is not None:
            self._write(self.out, dataset, scores, judgement, unscored, record)
        notes += list(judgement.notes(scores))
        if record["quality_kind"] == "bound" and self.rules.min_quality is not None:
            notes.append("quality is a lower bound here, not an estimate; calibrate for that")
        return FilterSummary(self.out, scores, judgement, unscored, record, tuple(notes))

    def _unscored(
        self, plan: dict[str, Any], dataset: MaskSet | None, num_scored: int
    ) -> tuple[pd.DataFrame, list[str]]:
        """The masks without a score: those of the table of errors, where it has all, or those that are found.

        Where that table has no classes, they are looked up in the data set, if that has to be read anyway.
        """
        listed = listed_errors(self.scored)
        complete = all_are_listed(self.scored, num_scored + len(listed))
        if complete and (dataset is None or not (listed["category"] == NOT_RECORDED).any()):
            return listed, []
        if dataset is not None and self.out is not None:
            return unscored_masks(self.scored, dataset, made_folder(self.out.parent)), []
        try:
            return unscored_masks(self.scored, self._source(plan), None), []
        except (DataError, OutputError) as error:  # it can be judged without the data set
            return listed, [f"masks without a score are those of the table of errors alone: {error}"]

    def _source(self, plan: dict[str, Any]) -> MaskSet:
        """The data set that was scored, as it was."""
        dataset = open_masks(self.dataset or plan["dataset"], images=self.images or _if_there(plan["images"]))
        if dataset.format != plan["format"]:
            raise DataError(explain(f"{dataset.path} is {dataset.format}", f"what was scored, {plan['format']}"))
        # a digest of folders holds times, which a copy of them does not keep
        compared = self.dataset is None or not dataset.path.is_dir()
        if compared and dataset.digest() != plan["dataset_digest"]:
            mend = "score it again; or name a copy of what was scored with dataset (--dataset)"
            fault = "has changed since it was scored" if self.dataset is None else "is not what was scored"
            raise DataError(explain(f"{dataset.path} {fault}", "the same data set", mend))
        return dataset

    def _open(self, plan: dict[str, Any], target: Path) -> MaskSet:
        """The data set that was scored, if the target can be its like."""
        dataset = self._source(plan)
        wanted = {"coco": ".json", "parquet": ".parquet", "folder": None}[dataset.format]
        if (
            target.suffix.lower() != wanted if wanted else target.suffix.lower() in _FILES
        ):  # folders may have dots in their names
            expected = f"a name that ends in {wanted}" if wanted else "the name of a folder"
            raise InputError(explain(f"the output {target} for a {dataset.format} data set", expected))
        written = [target, *(beside(target, ending) for ending in ("manifest.json", "dropped.csv", "report.html"))]
        refuse_overwriting(written, [dataset.path])
        if dataset.path.is_dir() and dataset.format == "parquet" and target.parent.resolve() == dataset.path.resolve():
            raise OutputError(explain(f"the output {target} in the folder of the data set", "a file outside"))
        theirs = [self.scored, *(beside(self.scored, ending) for ending in ("manifest.json", "errors.csv"))]
        for ours in written:
            if ours.resolve() in [path.resolve() for path in theirs]:
                expected = f"another name: {ours.name} belongs to the scores"
                raise OutputError(explain(f"the output {target} beside {self.scored.name}", expected))
        if self.with_scores and dataset.format == "folder":
            raise InputError(
                explain(
                    "scores in a folder of pictures, which have no fields",
                    "none",
                    "leave with_scores (--with-scores) out",
                )
            )
        return dataset

    def _record(
        self, plan: dict[str, Any], scores: pd.DataFrame, judgement: Judgement, unscored: pd.DataFrame
    ) -> dict[str, Any]:
        kept = int(judgement.kept.sum())
        rules = {name: value for name, value in asdict(self.rules).items() if value is not None}
        provenance = Provenance(
            command=self.command, segmenter=plan["segmenter"], checkpoint_hash=plan["checkpoint_hash"]
        )
        return {
            "scores": str(self.scored),
            "dataset": plan["dataset"],
            "out": None if self.out is None else str(self.out),
            "rules": rules,
            "quality_kind": plan["quality_kind"],
            "num_scored": len(scores),
            "num_kept": kept,
            "num_dropped": len(scores) - kept,
            "num_unscored": len(unscored),
            "unscored_kept": self.keep_unscored,
            "num_unscored_dropped": 0 if self.keep_unscored else len(unscored),
            "unscored_reason": commonest(unscored["error"]),
            "unscored_classes": {name: int(count) for name, count in classes(unscored).value_counts().items()},
            "num_images_lost": len(self._lost_images(scores, judgement, unscored)),
            "reasons": judgement.reasons().to_dict("records"),
            "classes": json.loads(judgement.by_class(scores).to_json(orient="records")),
            "plan": plan,
            **provenance.as_json(),
        }

    def _lost_images(self, scores: pd.DataFrame, judgement: Judgement, unscored: pd.DataFrame) -> pd.Index:
        """Images that had masks and keep none."""
        lost = judgement.lost_images(scores)
        bare = pd.Index(unscored["image_id"].dropna().unique()).astype(scores["image_id"].dtype)
        if self.keep_unscored:
            return lost.difference(bare)
        return lost.union(bare.difference(pd.Index(scores["image_id"])))

    def _write(
        self,
        target: Path,
        dataset: MaskSet,
        scores: pd.DataFrame,
        judgement: Judgement,
        unscored: pd.DataFrame,
        record: dict[str, Any],
    ) -> None:
        best, worst = self._pictures(dataset, scores, target.parent)
        changes = ScoredChanges(
            self.scored,
            kept=pd.Index(scores["id"][judgement.kept]),
            keep_unscored=self.keep_unscored,
            lost_images=None if self.keep_images else self._lost_images(scores, judgement, unscored),
            with_scores=self.with_scores,
        )
        dataset.rewrite(target, changes)
        with replacing(beside(target, "dropped.csv")) as temporary:
            self._dropped(scores, judgement, unscored).to_csv(temporary, index=False, quoting=csv.QUOTE_MINIMAL)
        write_text(beside(target, "manifest.json"), json_document(record))
        figures = FilterFigures(
            scores=scores,
            kept=judgement.kept.to_numpy(bool),
            rules=record["rules"],
            reasons=judgement.reasons(),
            classes=judgement.by_class(scores),
            num_unscored=len(unscored),
            unscored_kept=self.keep_unscored,
            num_lost_images=record["num_images_lost"],
            dataset=record["dataset"],
            best=best,
            worst=worst,
            provenance=Provenance(
                command=self.command, segmenter=record["segmenter"], checkpoint_hash=record["checkpoint_hash"]
            ),
        )
        filter_report(figures, beside(target, "report.html"))

    def _dropped(self, scores: pd.DataFrame, judgement: Judgement, unscored: pd.DataFrame) -> pd.DataFrame:
        """The masks that go, by the rules that they fail or for want of a score."""
        gone = judgement.dropped(scores).assign(error=None)
        if self.keep_unscored or unscored.empty:
            return gone
        rest = unscored.assign(quality=None, stability=None, area=None, failed="unscored")[gone.columns]
        return rest if gone.empty else pd.concat([gone.astype(object), rest.astype(object)], ignore_index=True)

    def _pictures(
        self, dataset: MaskSet, scores: pd.DataFrame, folder: Path
    ) -> tuple[Sequence[MaskPicture], Sequence[MaskPicture]]:
        """The best and the worst; to find them the data set is listed once more, in a file beside the output.

        Raises:
            OutputError: There is no room for it.
        """
        if not self.pictures or scores.empty:
            return (), ()
        with listed_masks(
            dataset, made_folder(folder), mend="make room, or ask for no pictures (--pictures 0)"
        ) as index:
            best, worst = (
                [_picture(dataset, index, scores.loc[[row]].iloc[0]) for row in rows]
                for rows in best_and_worst(scores, self.pictures)
            )
        return [picture for picture in best if picture], [picture for picture in worst if picture]


def _picture(dataset: MaskSet, index: MaskIndex, row: pd.Series) -> MaskPicture | None:
    """A mask on its image; None where one of them can't be read any more."""
    records = index.select([row["id"].item() if isinstance(row["id"], np.generic) else row["id"]])
    try:
        mask = read_mask(records[0], dataset.masks)
        image = load_image(dataset.images / records[0]["image"])
    except (ArrcocSamError, IndexError):
        return None
    if mask.shape != image.shape[:2]:
        return None
    category = "" if pd.isna(row["category"]) else f"{row['category']}, "
    words = f"{category}quality {row['quality']:.3f}, stability {row['stability']:.3f}, {row['image']}"
    return MaskPicture(str(row["id"]), image, mask.numpy(), words)


def beside(target: Path, ending: str) -> Path:
    """The file of an ending beside an output."""
    return target.with_name(f"{target.stem if target.suffix.lower() in _FILES else target.name}.{ending}")


def _if_there(folder: str) -> str | None:
    return folder if Path(folder).is_dir() else None
