from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arrcoc_sam.errors import DataError, InputError
from arrcoc_sam.quality.filtering import KeepRules, best_and_worst, judge


def table(**columns: Any) -> pd.DataFrame:
    count = len(next(iter(columns.values())))
    frame = pd.DataFrame(
        {
            "id": range(count),
            "image_id": [i // 2 for i in range(count)],
            "image": "a.png",
            "category": "cat",
            "crowd": False,
            "area": 100,
            "area_share": np.float32(0.1),
            "quality": np.float32(0.5),
            "quality_kind": "bound",
            "lower_bound": np.float32(0.5),
            "stability": np.float32(0.9),
        }
    )
    return frame.assign(**columns)


@pytest.mark.parametrize(
    ("rule", "column", "values", "kept"),
    [
        ({"min_quality": 0.8}, "quality", np.float32([0.79, 0.8, 1.0, np.nan]), [False, True, True, False]),
        ({"min_bound": 0.3}, "lower_bound", np.float32([0.3, 0.2, 0.0, 1.0]), [True, False, False, True]),
        ({"min_stability": 0.5}, "stability", np.float32([np.nan, 0.5, 0.4, 1.0]), [False, True, False, True]),
        ({"min_area": 10}, "area", [9, 10, 11, 0], [False, True, True, False]),
        ({"max_area_share": 0.9}, "area_share", np.float32([0.9, 0.91, 0.0, 1.0]), [True, False, True, False]),
    ],
)
def test_each_rule_by_itself(rule: dict[str, Any], column: str, values: Any, kept: list[bool]) -> None:
    judgement = judge(table(**{column: values}), KeepRules(**rule))
    assert judgement.kept.tolist() == kept
    assert judgement.reasons().to_dict("records") == [
        {"rule": next(iter(rule)), "failed": kept.count(False), "alone": kept.count(False)}
    ]


@given(
    quality=st.lists(st.integers(0, 6), min_size=1, max_size=40),
    share=st.sampled_from([0.1, 0.25, 0.5, 0.8]),
    names=st.randoms(use_true_random=False),
)
def test_a_quantile_takes_the_worst_of_every_class(quality: list[int], share: float, names: Any) -> None:
    category = [names.choice(["a", "b", None]) for _ in quality]
    scores = table(quality=np.float32(quality) / 6, category=category)
    kept = judge(scores, KeepRules(class_quantile=share)).kept
    for name in ("a", "b", None):
        own = np.array([c == name for c in category])
        if not own.any():
            continue
        left, gone = scores["quality"][own & kept], scores["quality"][own & ~kept]
        assert len(left) >= 1
        assert len(gone) <= share * own.sum()  # never more than was asked for
        assert not len(gone) or gone.max() < left.min()
        if scores["quality"][own].is_unique:
            assert len(gone) > share * own.sum() - 1


def test_a_small_quantile_leaves_a_small_class_alone() -> None:
    scores = table(quality=np.float32([0.1, 0.9, 0.2, 0.3, 0.4, 0.5]), category=["a", "a", "b", "b", "b", "b"])
    assert judge(scores, KeepRules(class_quantile=0.01)).kept.all()
    assert judge(scores, KeepRules(class_quantile=0.5)).kept.tolist() == [False, True, False, False, True, True]


def test_rules_together_and_what_they_say() -> None:
    scores = table(quality=np.float32([0.9, 0.1, 0.2, 0.95]), area=[5, 50, 5, 50], category=["cat", "cat", "dog", None])
    judgement = judge(scores, KeepRules(min_quality=0.5, min_area=10))
    assert judgement.kept.tolist() == [False, False, False, True]
    assert judgement.reasons().to_dict("list") == {
        "rule": ["min_quality", "min_area"],
        "failed": [2, 2],
        "alone": [1, 1],
    }
    assert judgement.dropped(scores)["failed"].tolist() == ["min_area", "min_quality", "min_quality, min_area"]
    assert judgement.lost_images(scores).tolist() == [0]
    classes = judgement.by_class(scores).set_index("category")
    assert classes["masks"].to_dict() == {"cat": 2, "dog": 1, "(no class)": 1}
    assert classes["dropped_share"].to_dict() == {"cat": 1.0, "dog": 1.0, "(no class)": 0.0}
    assert classes.loc["cat", "dropped_quality"] == pytest.approx(0.5)
    assert classes.index[0] == "cat"


def test_crowds() -> None:
    scores = table(quality=np.float32([0.1, 0.9, 0.1]), crowd=[True, True, False])
    for crowd, kept in {
        "keep": [True, True, False],
        "judge": [False, True, False],
        "drop": [False, False, False],
    }.items():
        assert judge(scores, KeepRules(min_quality=0.5, crowd=crowd)).kept.tolist() == kept
    assert judge(scores, KeepRules(crowd="drop")).kept.tolist() == [False, False, True]


def test_best_and_worst_have_no_mask_in_common() -> None:
    scores = table(quality=np.float32([0.5, 0.9, 0.1, 0.7, 0.0]), crowd=[False, False, False, False, True])
    assert best_and_worst(scores, 1) == ([1], [2])
    assert best_and_worst(scores, 9) == ([1, 3], [2, 0])


@pytest.mark.usefixtures("as_at_run_time")
@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({}, "no rule"),
        ({"min_quality": 1.2}, "min_quality=1.2"),
        ({"min_bound": float("nan")}, "min_bound=nan"),
        ({"class_quantile": 1.0}, "between 0 and 1"),
        ({"min_area": -1}, "min_area=-1"),
        ({"min_quality": 0.5, "crowd": "no"}, "crowd='no'"),
    ],
)
def test_rules_that_make_no_sense(rules: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        KeepRules(**rules)


def test_bounds_and_estimates_are_never_mixed() -> None:
    with pytest.raises(DataError, match="'bound' and 'calibrated'"):
        judge(table(quality_kind=["bound", "calibrated"]), KeepRules(min_quality=0.5))


def test_a_quantile_that_equal_masks_stop_is_noted() -> None:
    quality = np.float32([0, 0, 0, 0, 0, 0, 0.4, 0.9, 0.8, 0.7])
    scores = table(quality=quality)
    (note,) = judge(scores, KeepRules(class_quantile=0.3)).notes(scores)
    assert "drops 3 masks fewer than its share in 1 of 1 classes: at the limit masks are equal" in note
    assert not list(judge(scores, KeepRules(class_quantile=0.7)).notes(scores))
    assert not list(judge(scores, KeepRules(min_quality=0.5)).notes(scores))
    varied = table(quality=np.float32(range(10)) / 10)
    assert not list(judge(varied, KeepRules(class_quantile=0.3)).notes(varied))


def test_classes_too_small_to_lose_a_mask_are_no_equal_ones() -> None:
    scores = table(quality=np.float32(range(20)) / 20, category=[str(number) for number in range(20)])
    assert not list(judge(scores, KeepRules(class_quantile=0.3)).notes(scores))


def test_one_class_that_equal_masks_stop_is_noted_among_others() -> None:
    quality = np.float32([0] * 10 + [number / 90 for number in range(90)])
    scores = table(quality=quality, category=["a"] * 10 + ["b"] * 90)
    (note,) = judge(scores, KeepRules(class_quantile=0.3)).notes(scores)
    assert "3 masks fewer than its share in 1 of 2 classes" in note


def test_crowds_that_are_not_judged_stop_no_quantile() -> None:
    scores = table(quality=np.float32([0, 0, 0, 0, 0.4, 0.5, 0.6, 0.7]), crowd=[True] * 4 + [False] * 4)
    assert not list(judge(scores, KeepRules(class_quantile=0.25)).notes(scores))
    judged = judge(scores, KeepRules(class_quantile=0.25, crowd="judge"))
    assert len(list(judged.notes(scores))) == 1
