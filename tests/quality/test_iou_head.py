from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn.metrics import mean_absolute_error, root_mean_squared_error

from arrcoc_sam.errors import InputError, ShapeError
from arrcoc_sam.quality import IoUHeadReport, evaluate_iou_head
from arrcoc_sam.quality.head_metrics import METRICS, bin_of, head_metrics


def sample(num_prompts: int = 60, num_masks: int = 3, *, digits: int = 2, seed: int = 0) -> tuple[Any, Any]:
    """Predicted and actual IoU that go together; rounded, so that there are ties."""
    rng = np.random.default_rng(seed)
    actual = rng.uniform(0, 1, (num_prompts, num_masks)).round(digits)
    predicted = (0.2 + 0.7 * actual + rng.normal(0, 0.15, actual.shape)).round(digits)
    return predicted, actual


def calibration_error(predicted: np.ndarray, actual: np.ndarray, num_bins: int = 15) -> float:
    """By the book: a value's bin is the share of smaller ones, in fifteenths."""
    predicted, actual = predicted.ravel(), actual.ravel()
    bins: dict[int, list[int]] = {}
    for position, value in enumerate(predicted):
        bins.setdefault(int((predicted < value).sum()) * num_bins // len(predicted), []).append(position)
    gaps = [len(b) * abs(predicted[b].mean() - actual[b].mean()) for b in bins.values()]
    return float(sum(gaps) / len(predicted))


def by_others(predicted: np.ndarray, actual: np.ndarray) -> dict[str, float]:
    """Every metric by another library or by brute force."""
    chosen = [row[int(np.argmax(guess))] for guess, row in zip(predicted, actual, strict=True)]
    best = [max(row) for row in actual]
    x, y = predicted.ravel(), actual.ravel()
    return {
        "pearson": float(stats.pearsonr(x, y).statistic),
        "spearman": float(stats.spearmanr(x, y).statistic),
        "mae": float(mean_absolute_error(y, x)),
        "rmse": float(root_mean_squared_error(y, x)),
        "selection_accuracy": float(np.mean([c >= b - 0.01 for c, b in zip(chosen, best, strict=True)])),
        "automatic_iou": float(np.mean(chosen)),
        "oracle_iou": float(np.mean(best)),
        "oracle_gap": float(np.mean(best) - np.mean(chosen)),
        "ece": calibration_error(predicted, actual),
    }


@pytest.mark.parametrize(("num_prompts", "num_masks", "digits"), [(60, 3, 2), (7, 4, 8), (500, 3, 1), (40, 1, 3)])
def test_parity_with_scipy_and_scikit_learn(num_prompts: int, num_masks: int, digits: int) -> None:
    predicted, actual = sample(num_prompts, num_masks, digits=digits)
    report = evaluate_iou_head(predicted, torch.from_numpy(actual), num_bootstrap=0)
    assert {name: getattr(report, name) for name in METRICS} == pytest.approx(by_others(predicted, actual), abs=1e-12)
    assert (report.num_prompts, report.num_candidates, report.num_images) == (
        num_prompts,
        num_prompts * num_masks,
        num_prompts,
    )
    assert all(math.isnan(end) for ends in report.intervals.values() for end in ends)


def test_every_draw_is_the_sample_written_out() -> None:
    predicted, actual = sample(40, digits=1)
    images = np.repeat(np.arange(10), 4)
    counts = np.random.default_rng(1).multinomial(10, np.full(10, 0.1), size=6)
    values = head_metrics(predicted, actual, images, counts)
    for draw, count in enumerate(counts):
        rows = np.concatenate([np.flatnonzero(images == image).tolist() * times for image, times in enumerate(count)])
        expected = by_others(predicted[rows.astype(int)], actual[rows.astype(int)])
        assert {name: values[name][draw] for name in METRICS} == pytest.approx(expected, abs=1e-12)


def test_calibration_error_by_hand() -> None:
    # thirty values, two a bin: predicted exceeds actual by 0.1 in the first bin and falls short by 0.2 in the last;
    # within the second bin the errors cancel
    actual = np.linspace(0.1, 0.68, 30)
    predicted = actual.copy()
    predicted[:2] += 0.01
    actual[:2] -= 0.09
    predicted[2] -= 0.004
    predicted[3] += 0.004
    actual[28:] += 0.2
    report = evaluate_iou_head(predicted[:, None], actual[:, None], num_bootstrap=0)
    assert report.ece == pytest.approx((2 * 0.1 + 2 * 0.2) / 30)
    table = report.reliability
    assert table["count"].tolist() == [2] * 15
    assert (table["predicted"] - table["actual"]).tolist() == pytest.approx([0.1] + [0.0] * 13 + [-0.2], abs=1e-12)
    assert table["predicted_low"].tolist() == sorted(table["predicted_low"])


def test_equal_predictions_share_a_bin_whatever_their_order() -> None:
    predicted = np.full((20, 1), 0.5)
    actual = np.repeat([0.0, 1.0], 10)[:, None]
    report = evaluate_iou_head(predicted, actual, num_bootstrap=0)
    assert report.ece == 0.0  # in two bins of ten it would be 0.5
    assert report.reliability["count"].tolist() == [20]
    assert math.isnan(report.pearson)
    assert math.isnan(report.spearman)
    assert bin_of(np.array([0.1, 0.9, 0.1, 0.9]), 4).tolist() == [0, 2, 0, 2]


def test_selection_by_hand() -> None:
    predicted = np.array([[0.9, 0.8, 0.1], [0.2, 0.3, 0.4], [0.5, 0.4, 0.3]])
    actual = np.array([[0.895, 0.9, 0.0], [0.9, 0.1, 0.7], [0.6, 0.2, 0.1]])
    report = evaluate_iou_head(predicted, actual, num_bootstrap=0)
    assert report.selection_accuracy == pytest.approx(2 / 3)  # the first is within 0.01 of the best
    assert report.oracle_gap == pytest.approx((0.005 + 0.2 + 0.0) / 3)
    assert report.oracle_iou == pytest.approx((0.9 + 0.9 + 0.6) / 3)


def test_intervals_are_by_image() -> None:
    predicted, actual = sample(30, digits=6)
    many, truth = np.repeat(predicted, 20, axis=0), np.repeat(actual, 20, axis=0)
    alone = evaluate_iou_head(predicted, actual)
    by_image = evaluate_iou_head(many, truth, image_id=np.repeat(np.arange(30), 20).tolist())
    by_prompt = evaluate_iou_head(many, truth)
    for name in ("mae", "pearson", "automatic_iou"):
        value, (low, high) = getattr(alone, name), alone.intervals[name]
        assert low < value < high
        assert by_image.intervals[name] == pytest.approx((low, high), abs=1e-9)  # copies are no new images
        wide, narrow = high - low, by_prompt.intervals[name][1] - by_prompt.intervals[name][0]
        assert narrow < 0.4 * wide


def test_the_interval_of_a_mean_is_that_of_theory() -> None:
    predicted, actual = sample(400, 1, digits=8)
    report = evaluate_iou_head(predicted, actual, num_bootstrap=4000, confidence=0.9)
    low, high = report.intervals["mae"]
    error = np.abs(predicted - actual)
    assert high - low == pytest.approx(2 * 1.645 * error.std() / math.sqrt(400), rel=0.08)


def test_draws_are_seeded_and_strata_stand_alone() -> None:
    predicted, actual = sample(80)
    levels = np.array(["whole", "part", "subpart", "part"] * 20)
    clicks = torch.tensor([1, 3] * 40)
    report = evaluate_iou_head(predicted, actual, strata={"level": levels, "clicks": clicks})
    again = evaluate_iou_head(predicted, actual, strata=levels)
    assert report.intervals == again.intervals
    assert report.intervals != evaluate_iou_head(predicted, actual, seed=1).intervals
    assert list(report.strata["level"]) == ["part", "subpart", "whole"]
    part = report.strata["level"]["part"]
    assert isinstance(part, IoUHeadReport)
    assert part.num_prompts == 40
    rows = levels == "part"
    assert part.mae == pytest.approx(np.abs(predicted[rows] - actual[rows]).mean())
    assert report.strata["clicks"][3].num_prompts == 40
    frame = report.to_frame()
    assert len(frame) == (1 + 3 + 2) * len(METRICS)
    row = frame[(frame["stratum"] == "clicks") & (frame["label"] == 3) & (frame["metric"] == "ece")].iloc[0]
    assert row["value"] == report.strata["clicks"][3].ece
    assert row["low"] <= row["high"]
    assert list(again.strata) == ["stratum"]


def test_the_interval_of_the_calibration_error_holds_it_and_the_true_one() -> None:
    """Percentiles of draws hold neither where a head is nearly right: both value and draws are biased upwards."""
    rng = np.random.default_rng(0)
    for bias, at_least in ((0.0, 17), (0.1, 16)):  # a constant bias is the true error
        covered = 0
        for seed in range(20):
            predicted = rng.uniform(0.2, 0.8, (300, 1))
            actual = np.clip(predicted + bias + 0.1 * rng.standard_normal((300, 1)), 0, 1)
            report = evaluate_iou_head(predicted, actual, num_bootstrap=100, seed=seed)
            low, high = report.intervals["ece"]
            assert 0 <= low <= report.ece <= high
            covered += low <= bias <= high
        assert covered >= at_least, bias


def test_one_image_has_no_interval() -> None:
    predicted, actual = sample(5)
    report = evaluate_iou_head(predicted, actual, image_id=[7] * 5)
    assert report.num_images == 1
    assert all(math.isnan(end) for ends in report.intervals.values() for end in ends)
    assert report.reliability["actual_low"].isna().all()


def test_bfloat16_is_read_as_the_numbers_that_it_holds() -> None:
    predicted, actual = (torch.tensor(values).bfloat16() for values in sample(4))
    report = evaluate_iou_head(predicted, actual)
    assert report.mae == evaluate_iou_head(predicted.double(), actual.double()).mae


@pytest.mark.usefixtures("as_at_run_time")
def test_bad_input() -> None:
    predicted, actual = sample(4)
    with pytest.raises(ShapeError, match=r"\(K, M\) both"):
        evaluate_iou_head(predicted, actual[:, :2])
    with pytest.raises(ShapeError, match="K and M at least 1"):
        evaluate_iou_head(predicted[:0], actual[:0])
    with pytest.raises(ShapeError, match=r"Mend: of one candidate a prompt: predicted\[:, None\]"):
        evaluate_iou_head(predicted[:, 0], actual[:, 0])
    with pytest.raises(InputError, match=r"to 1\.0000001; expected"):
        evaluate_iou_head(predicted, np.full_like(actual, 1 + 1e-7))
    with pytest.raises(ShapeError, match=r"strata\['stratum'\] is a DataFrame of shape \(4, 1\); expected \(4,\)"):
        evaluate_iou_head(predicted, actual, strata=pd.DataFrame({"size": list("abab")}))
    with pytest.raises(InputError, match="swapped"):
        evaluate_iou_head(actual, predicted + 1)
    with pytest.raises(InputError, match="predicted holds NaN"):
        evaluate_iou_head(np.full_like(predicted, np.nan), actual)
    with pytest.raises(ShapeError, match=r"image_id is a list of 3; expected \(4,\)"):
        evaluate_iou_head(predicted, actual, image_id=[1, 2, 3])
    with pytest.raises(InputError, match=r"strata\['area'\] holds missing"):
        evaluate_iou_head(predicted, actual, strata={"area": ["a", None, "b", "a"]})
    with pytest.raises(InputError, match=r"strata\['area'\] can't be told apart \(unhashable"):
        evaluate_iou_head(predicted, actual, strata={"area": [{}, {}, {}, {}]})  # type: ignore[dict-item]
    for draws in (10.5, "a", -1):
        with pytest.raises(InputError, match=f"num_bootstrap={draws!r}; expected a whole number, at least 0"):
            evaluate_iou_head(predicted, actual, num_bootstrap=draws)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="confidence=95"):
        evaluate_iou_head(predicted, actual, confidence=95)
    with pytest.raises(InputError, match="num_bootstrap=-1"):
        evaluate_iou_head(predicted, actual, num_bootstrap=-1)
