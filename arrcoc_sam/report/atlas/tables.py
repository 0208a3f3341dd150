"""What figures and pages read from an atlas, and the tables that they draw: so that this package computes no atlas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd

from arrcoc_sam.hierarchy.levels import LEVELS
from arrcoc_sam.report.labels import metric_label
from arrcoc_sam.report.results import ABSTAIN

__all__ = [
    "KINDS",
    "MIN_IMAGES",
    "AtlasLike",
    "best_heads",
    "calibrated_title",
    "claim_counts",
    "columns_of",
    "contrast_limit",
    "groups",
    "image_count",
    "laid_out",
    "makes_claims",
    "of_group",
    "threshold_names",
]

MIN_IMAGES = 30
"""With fewer images there is no claim to show."""

KINDS = (*LEVELS, ABSTAIN)
"""What can be said of a map."""


@runtime_checkable
class AtlasLike(Protocol):
    """Claims about the maps of a source and of its controls.

    :class:`arrcoc_sam.granularity.atlas.run.AtlasResult` is one; its documentation says what the columns mean.
    """

    @property
    def heads(self) -> pd.DataFrame:
        """One row a map of every group; the group that is judged comes first."""
        ...

    @property
    def images(self) -> pd.DataFrame:
        """One row an image."""
        ...

    @property
    def ablation(self) -> pd.DataFrame:
        """One row a set of thresholds, the atlas's own first."""
        ...

    @property
    def info(self) -> Mapping[str, Any]:
        """How it was made."""
        ...


def groups(result: AtlasLike) -> list[str]:
    """The judged source, then its controls."""
    return list(dict.fromkeys(result.heads["group"].astype(str)))


def of_group(result: AtlasLike, group: str) -> pd.DataFrame:
    """The maps of one group."""
    return result.heads[result.heads["group"] == group]


def image_count(result: AtlasLike) -> int:
    """Images behind the numbers: those with a level that the grid can measure."""
    return int((result.images["measurable"] > 0).sum())


def makes_claims(result: AtlasLike) -> bool:
    """Whether there are images enough for claims."""
    return image_count(result) >= MIN_IMAGES


def claim_counts(maps: pd.DataFrame) -> dict[str, int]:
    """How many maps are claimed at each level, and of how many nothing is claimed."""
    return {kind: int((maps["level"] == kind).sum()) for kind in KINDS}


def best_heads(maps: pd.DataFrame, level: str, count: int) -> pd.DataFrame:
    """Maps whose largest level on the selecting half is this one, the largest score there first.

    Their numbers on the other half are what can be quoted: that half had no say in which maps are listed.
    """
    chosen = maps[(maps["top"] == level) & maps[f"selection_z_{level}"].notna()]
    return chosen.nlargest(count, f"selection_z_{level}")


def laid_out(maps: pd.DataFrame) -> tuple[list[str], list[str], dict[tuple[int, int], int]]:
    """Where each map of a group stands in a table of layers by heads.

    Args:
        maps: Rows of one group; names such as "L03.H07" or "pool.H02". What comes before the dot is the row; a name
            without a dot has a row of its own.

    Returns:
        Names of the rows and of the columns, and for (row, column) the position among ``maps``.

    Example:
        >>> laid_out(pd.DataFrame({"map": ["L00.H00", "L00.H01", "L01.H00"]}))
        (['L00', 'L01'], ['H00', 'H01'], {(0, 0): 0, (0, 1): 1, (1, 0): 2})
    """
    names = [name.partition(".") for name in maps["map"].astype(str)]
    rows = list(dict.fromkeys(row for row, _, _ in names))
    columns = list(dict.fromkeys(column for _, _, column in names))
    places = {(rows.index(row), columns.index(column)): index for index, (row, _, column) in enumerate(names)}
    return rows, columns, places


def columns_of(values: np.ndarray, places: Mapping[tuple[int, int], int], shape: tuple[int, int]) -> np.ndarray:
    """Values of maps as a table of layers by heads, NaN where there is no such map."""
    table = np.full(shape, np.nan)
    for place, index in places.items():
        table[place] = values[index]
    return table


def contrast_limit(maps: pd.DataFrame) -> float:
    """The end of a scale for calibrated scores that is the same for all levels: the largest size, at least 3."""
    values = np.abs(maps[[f"z_{level}" for level in LEVELS]].to_numpy(dtype=float))
    finite = values[np.isfinite(values)]
    return max(3.0, float(finite.max())) if finite.size else 3.0


def calibrated_title(result: AtlasLike) -> str:
    """What the calibrated scores of an atlas are scores of, as a heading: the metric that it was told to judge by."""
    return f"{metric_label(str(result.info.get('metric', 'shell_contrast'))).title}, calibrated"


def threshold_names(ablation: pd.DataFrame) -> list[str]:
    """What each row of an ablation changes, against the first.

    Example:
        >>> threshold_names(pd.DataFrame({"distinct_iou": [0.7, 0.6], "nested_share": 0.9, "min_cells": [4.0, 4.0]}))
        ['as in this atlas', 'distinct at IoU ≤ 0.6']
    """
    words = {
        "distinct_iou": "distinct at IoU ≤ {:g}",
        "nested_share": "nested from a share of {:g}",
        "min_cells": "at least {:g} cells",
    }
    names = []
    for number in range(len(ablation)):
        row, first = ablation.iloc[number], ablation.iloc[0]
        changed = [text.format(row[key]) for key, text in words.items() if row[key] != first[key]]
        names.append(", ".join(changed) or "as in this atlas")
    return names
