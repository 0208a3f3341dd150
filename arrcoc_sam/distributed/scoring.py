"""External masks are scored on Ray, part by part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from arrcoc_sam.distributed.pool import OnRay
from arrcoc_sam.errors import CheckpointError, DataError, InputError, explain
from arrcoc_sam.quality.calibration import load_calibration
from arrcoc_sam.quality.scoring.run import Progress, ScoringRun, read_part, write_part
from arrcoc_sam.quality.scoring.scorer import MaskScorer
from arrcoc_sam.quality.scoring.spec import EstimatorSpec

__all__ = ["RayEngine", "ScoringActor"]


@dataclass(frozen=True)
class RayEngine(OnRay):
    """Scores the parts of a run on a Ray cluster; its options are those of :class:`OnRay`.

    Attributes:
        spec: Makes the estimator on every actor.
    """

    spec: EstimatorSpec

    def __call__(self, run: ScoringRun, progress: Progress | None) -> None:
        """Score the parts that are missing.

        Raises:
            InputError: The spec has other options than the estimator of the run.
            MissingExtraError: Ray is not installed.
            ArrcocSamError: What an actor raised; what is scored is kept.
        """
        self.check(run.plan)
        missing = run.missing()
        if not missing:
            return
        total = run.num_masks(run.parts())
        done = total - run.num_masks(missing)
        if progress is not None:
            progress("Scoring", done, total)  # before actors start
        given = (self.spec, run.plan["checkpoint_hash"], run.work.absolute(), run.folders)
        for row in self.pool(self.spec.device).map(ScoringActor, given, missing):
            done += int(row["num_masks"])
            if progress is not None:
                progress("Scoring", done, total)

    def check(self, plan: Mapping[str, Any]) -> None:
        """Refuse a run that the spec does not fit.

        Raises:
            InputError: The spec has other options than the estimator of the run.
        """
        spec = self.spec
        ours = {name: getattr(spec, name) for name in ("dtype", "protocol", "multimask", "components")}
        ours["calibration"] = None if spec.calibration is None else load_calibration(spec.calibration).digest
        differing = [name for name, value in ours.items() if plan[name] != value]
        if differing:
            came = f"an engine of other {', '.join(differing)} than the estimator"
            raise InputError(explain(came, "the same scores from both", "make both of one EstimatorSpec"))


class ScoringActor:
    """Holds an estimator and scores one part after the other.

    Args:
        spec: Makes the estimator.
        checkpoint_hash: Of the weights that it must have.
        work: The folder of work.
        folders: Those of images and of mask files.
        threads: Of PyTorch on the CPU.

    Raises:
        CheckpointError: This machine has other weights.
        DataError: It lacks a folder.
    """

    def __init__(
        self,
        spec: EstimatorSpec,
        checkpoint_hash: str,
        work: Path,
        folders: tuple[Path, Path | None],
        *,
        threads: int,
    ) -> None:
        torch.set_num_threads(threads)
        estimator = spec.build()
        found = estimator.segmenter.checkpoint_hash
        if found != checkpoint_hash:
            came = f"this machine has the weights {found[:12]}… of {spec.segmenter}"
            raise CheckpointError(explain(came, f"those of the run, {checkpoint_hash[:12]}…", "copy the same file"))
        for folder in (each for each in folders if each is not None):
            if not folder.is_dir():
                came = f"this machine has no folder {folder}"
                raise DataError(explain(came, "the pictures under one path on all machines", "mount it, and go on"))
        self._scorer = MaskScorer(estimator, *folders)
        self._work = work

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Score the parts whose numbers are in ``part``; answers how many masks each had."""
        counts = []
        for number in batch["part"].tolist():
            scores = self._scorer.score(read_part(self._work, number))
            write_part(self._work, number, scores)
            counts.append(len(scores))
        return {"part": batch["part"], "num_masks": np.array(counts, dtype=np.int64)}
