"""What an atlas says of a source: claims, the table of its heads, and the same again under other thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from arrcoc_sam.granularity.atlas.result import heads_frame
from arrcoc_sam.granularity.atlas.store import AtlasStore, Thresholds
from arrcoc_sam.granularity.atlas.values import matched_values, mean_areas, mean_sinks, toroidal_p, value_matrix
from arrcoc_sam.granularity.claims import MIN_COMPUTED, Claims, make_claims
from arrcoc_sam.granularity.moment_metrics import OF_MOMENTS
from arrcoc_sam.granularity.result import ABSTAIN
from arrcoc_sam.granularity.trials import Progress
from arrcoc_sam.hierarchy.levels import LEVELS

__all__ = ["AtlasJudge"]

# Metrics whose means are shown beside the one that claims are made of.
_SHOWN = ("shell_contrast", "information_gain", "log_lift", "mass_accuracy", "pearson")


@dataclass(frozen=True)
class AtlasJudge:
    """Judges the sources of a store.

    Attributes:
        store: Where the images' records are.
        readable: The images that have one.
        metric: What claims are made of.
        false_discovery_rate: Over the maps of a source.
        confidence: Of the bootstrap intervals.
        seed: Of all draws.
        progress: Called as the work goes on.
    """

    store: AtlasStore
    readable: Sequence[int]
    metric: str
    false_discovery_rate: float
    confidence: float
    seed: int
    progress: Progress | None = None

    def usable(self, thresholds: Thresholds) -> list[int]:
        """Images with a prompt that is measurable under these thresholds."""
        return [number for number in self.readable if bool(self.store.levels(number).regions(thresholds)[1].any())]

    def claims(self, group: str, thresholds: Thresholds | None = None) -> Claims:
        """The protocol of a claim for the maps of one source; V is kept under the default thresholds only."""
        kept = thresholds is None
        path = self.store.folder / f"values.{group.replace(' ', '_') if kept else 'ablation'}.npy"
        used = Thresholds() if thresholds is None else thresholds
        numbers = self.usable(used)
        values = value_matrix(self.store, numbers, group, self.metric, path, thresholds=used, progress=self.progress)
        claims = make_claims(
            values, false_discovery_rate=self.false_discovery_rate, confidence=self.confidence, seed=self.seed
        )
        if not kept:
            del values  # lets go of the file, which some systems insist on
            path.unlink()
        return claims

    def heads(self, group: str, claims: Claims, *, toroidal: bool) -> pd.DataFrame:
        """One row a map, see :attr:`arrcoc_sam.granularity.atlas.result.AtlasResult.heads`."""
        thresholds = Thresholds()
        numbers = self.usable(thresholds)
        shown = tuple(dict.fromkeys((self.metric, *_SHOWN)))
        shifted = None
        if toroidal and self.metric in OF_MOMENTS:
            shifted = toroidal_p(
                self.store,
                numbers,
                group,
                self.metric,
                thresholds=thresholds,
                seed=self.seed,
                progress=self.progress,
            )
        return heads_frame(
            group,
            self.store.map_names().get(group, (group,)),
            claims,
            matched_values(self.store, numbers, group, shown, thresholds=thresholds),
            areas=mean_areas(self.store, numbers, thresholds=thresholds),
            sinks=mean_sinks(self.store, numbers, group, thresholds=thresholds),
            prefix=self._mean_prefix(numbers, group),
            toroidal=shifted,
        )

    def ablation(self, group: str, judged: Claims, others: Sequence[Thresholds]) -> pd.DataFrame:
        """One row a set of thresholds, the default ones first."""
        rows = []
        for thresholds in (Thresholds(), *others):
            numbers = self.usable(thresholds)
            claims: Claims | None = judged
            if thresholds != Thresholds():
                claims = self.claims(group, thresholds) if len(numbers) >= MIN_COMPUTED else None
            measurable = torch.cat([self.store.levels(number).regions(thresholds)[1] for number in self.readable])
            row: dict[str, Any] = {
                **asdict(thresholds),
                "num_images": len(numbers),
                "measurable_share": float(measurable.double().mean()),
            }
            for level in (*LEVELS, ABSTAIN):
                row[f"share_{level}"] = np.nan if claims is None else float((claims.level == level).mean())
            row["agreement"] = np.nan if claims is None else float((claims.level == judged.level).mean())
            rows.append(row)
        return pd.DataFrame(rows)

    def _mean_prefix(self, numbers: Sequence[int], group: str) -> Float[Tensor, " N"] | None:
        found = [mass for number in numbers if (mass := self.store.prefix_mass(number, group)) is not None]
        return torch.stack(found).mean(0) if found else None
