"""Which masks stay: rules on scores, and what they come to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Literal, TypeAlias

import numpy as np
import pandas as pd

from arrcoc_sam.errors import DataError, InputError, explain

__all__ = ["COLUMNS", "CrowdRule", "Judgement", "KeepRules", "best_and_worst", "classes", "judge"]

CrowdRule: TypeAlias = Literal["keep", "judge", "drop"]

COLUMNS = (
    "id",
    "image_id",
    "image",
    "category",
    "crowd",
    "area",
    "area_share",
    "quality",
    "quality_kind",
    "lower_bound",
    "stability",
)
"""The columns of a table of scores that rules and reports need."""

NO_CLASS = "(no class)"
"""What masks without a class are called; a quantile treats them as one class."""


@dataclass(frozen=True)
class KeepRules:
    """What a mask has to meet to stay: all of these that are given.

    Attributes:
        min_quality: Of ``quality``, a bound or a calibrated estimate, in [0, 1].
        min_bound: Of ``lower_bound``, in [0, 1].
        min_stability: In [0, 1]. A mask whose closest candidate has no pixels has none, and fails.
        min_area: In pixels.
        max_area_share: Of the image, in (0, 1].
        class_quantile: The share of each class, the worst by ``quality``, that goes, in (0, 1). Of equal masks at the
            limit all stay.
        crowd: What becomes of masks of groups of objects: they stay (they tell a trainer what to ignore), they are
            judged like others, or they go. Only judged ones count for a class's quantile.
    """

    min_quality: float | None = None
    min_bound: float | None = None
    min_stability: float | None = None
    min_area: int | None = None
    max_area_share: float | None = None
    class_quantile: float | None = None
    crowd: CrowdRule = "keep"

    def __post_init__(self) -> None:
        if self.crowd not in ("keep", "judge", "drop"):
            raise InputError(explain(f"crowd={self.crowd!r}", "'keep', 'judge' or 'drop'"))
        if not self.names and self.crowd != "drop":
            raise InputError(explain("no rule", "at least one", "give min_quality (--min-quality), for one"))
        for name in ("min_quality", "min_bound", "min_stability", "max_area_share"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise InputError(explain(f"{name}={value}", "a number in [0, 1]"))
        if self.class_quantile is not None and not 0 < self.class_quantile < 1:
            raise InputError(explain(f"class_quantile={self.class_quantile}", "a share between 0 and 1"))
        if self.min_area is not None and self.min_area < 0:
            raise InputError(explain(f"min_area={self.min_area}", "pixels, at least 0"))

    @property
    def names(self) -> tuple[str, ...]:
        """The rules on scores that are given."""
        return tuple(f.name for f in fields(self) if f.name != "crowd" and getattr(self, f.name) is not None)


@dataclass(frozen=True)
class Judgement:
    """What rules say of masks.

    Attributes:
        kept: One a mask: whether it stays.
        failed: A column a rule, one row a mask: whether the mask fails it. Exempt masks fail nothing.
        rules: What they were held against.
    """

    kept: pd.Series
    failed: pd.DataFrame
    rules: KeepRules

    def reasons(self) -> pd.DataFrame:
        """A row a rule: how many masks fail it, and how many fail it alone."""
        alone = self.failed.sum(axis=1) == 1
        rows = [(name, int(of.sum()), int((of & alone).sum())) for name, of in self.failed.items()]
        return pd.DataFrame(rows, columns=["rule", "failed", "alone"])

    def by_class(self, scores: pd.DataFrame) -> pd.DataFrame:
        """A row a class, the one that loses most first: masks, those that go, their share, mean quality of both."""
        frame = pd.DataFrame(
            {
                "category": classes(scores),
                "dropped": ~self.kept.to_numpy(),
                "kept_quality": scores["quality"].where(self.kept),
                "dropped_quality": scores["quality"].where(~self.kept),
            }
        )
        grouped = frame.groupby("category", observed=True)
        table = pd.DataFrame(
            {
                "masks": grouped.size(),
                "dropped": grouped["dropped"].sum().astype(int),
                "dropped_share": grouped["dropped"].mean(),
                "kept_quality": grouped["kept_quality"].mean(),
                "dropped_quality": grouped["dropped_quality"].mean(),
            }
        )
        return table.sort_values(["dropped", "masks"], ascending=False, kind="stable").reset_index()

    def dropped(self, scores: pd.DataFrame) -> pd.DataFrame:
        """The masks that go, with the rules that they fail."""
        gone = scores[~self.kept]
        failed = self.failed[~self.kept]
        words = [", ".join(failed.columns[row]) for row in failed.to_numpy()]
        return gone[["id", "image_id", "image", "category", "quality", "stability", "area"]].assign(failed=words)

    def notes(self, scores: pd.DataFrame) -> Iterator[str]:
        """What the rules do not do although it looks as if: a share of a class that equal masks keep it from losing."""
        share = self.rules.class_quantile
        if share is None:
            return
        judged = pd.Series(True, index=scores.index) if self.rules.crowd == "judge" else ~scores["crowd"].astype(bool)
        by_class = pd.DataFrame({"masks": judged, "dropped": self.failed["class_quantile"]}).groupby(classes(scores))
        counts = by_class.sum()
        missing = np.floor(share * counts["masks"] + 1e-9) - counts["dropped"]
        blocked = counts[(missing > 0) & ((counts["dropped"] == 0) | (missing > 0.1 * share * counts["masks"]))]
        if len(blocked):
            fewer = int(missing[blocked.index].sum())
            yield (
                f"class_quantile={share:g} drops {fewer:,} masks fewer than its share in {len(blocked):,} of "
                f"{len(counts):,} classes: at the limit masks are equal, of which all go or none; calibrate, or give "
                "min_quality"
            )

    def lost_images(self, scores: pd.DataFrame) -> pd.Index:
        """Ids of the images that had masks and keep none."""
        any_left = self.kept.groupby(scores["image_id"]).any()
        lost: pd.Index = any_left.index[~any_left.to_numpy()]
        return lost


def judge(scores: pd.DataFrame, rules: KeepRules) -> Judgement:
    """Hold masks against rules.

    Args:
        scores: A table of scores; of :data:`COLUMNS` those that the rules need, and ``crowd``.
        rules: What a mask has to meet.

    Returns:
        The judgement, with the index of ``scores``.

    Raises:
        DataError: Bounds and calibrated estimates are mixed: no threshold means the same for both.

    Example:
        >>> scores = pd.DataFrame({"quality": [0.9, 0.4], "crowd": [False, False]})
        >>> judge(scores, KeepRules(min_quality=0.5)).kept.tolist()
        [True, False]
    """
    if "quality_kind" in scores and scores["quality_kind"].nunique() > 1:
        kinds = " and ".join(map(repr, sorted(scores["quality_kind"].unique())))
        raise DataError(explain(f"scores of the kinds {kinds}", "one of them", "score all masks alike"))
    judged = pd.Series(True, index=scores.index) if rules.crowd == "judge" else ~scores["crowd"].astype(bool)
    failed: dict[str, pd.Series] = {}
    for name, column in (("min_quality", "quality"), ("min_bound", "lower_bound"), ("min_stability", "stability")):
        if (least := getattr(rules, name)) is not None:
            failed[name] = ~(scores[column] >= np.float32(least))  # NaN fails
    if rules.min_area is not None:
        failed["min_area"] = scores["area"] < rules.min_area
    if rules.max_area_share is not None:
        failed["max_area_share"] = scores["area_share"] > np.float32(rules.max_area_share)
    if rules.class_quantile is not None:
        by_class = scores["quality"].where(judged).groupby(classes(scores))
        most = np.floor(rules.class_quantile * by_class.transform("count") + 1e-9)
        failed["class_quantile"] = ~(by_class.rank(method="max") > most)  # of equals all go or none; NaN fails
    table = pd.DataFrame({name: of & judged for name, of in failed.items()}, index=scores.index)
    if rules.crowd == "drop":
        table["crowd"] = ~judged
    return Judgement(~table.any(axis=1), table, rules)


def classes(scores: pd.DataFrame) -> pd.Series:
    """The class of each mask by name."""
    if "category" not in scores:
        return pd.Series(NO_CLASS, index=scores.index)
    return scores["category"].fillna(NO_CLASS).astype(str)


def best_and_worst(scores: pd.DataFrame, count: int) -> tuple[Sequence[int], Sequence[int]]:
    """Rows of the best and of the worst masks by quality, crowds left out, none in both."""
    order = scores.index[~scores["crowd"].astype(bool)]
    ranked = scores.loc[order, "quality"].sort_values(ascending=False, kind="stable").index
    count = min(count, len(ranked) // 2)
    return list(ranked[:count]), list(ranked[::-1][:count])
