"""Calibration: monotone where it must be, covering as promised, by image, and refused where it does not belong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import arrcoc_sam as aa
from arrcoc_sam.errors import DataError, InputError, OutputError, UnknownNameError
from arrcoc_sam.quality import (
    AnnotatedImage,
    FittedCalibration,
    MaskQualityEstimator,
    calibration_samples,
    embedded_calibration_path,
    fit_calibration,
    jaccard_bounds,
    load_calibration,
)
from arrcoc_sam.quality.calibration import ConformalIntervals
from arrcoc_sam.quality.calibration_ablation import compare_protocols
from arrcoc_sam.quality.calibration_curves import BoundCurve, MonotoneModel
from arrcoc_sam.quality.calibration_fit import bound_figures, coverage_figures, split_by_image
from arrcoc_sam.quality.calibration_samples import degrade_masks
from arrcoc_sam.segmenters.sam import SamSegmenter


def made_up(count: int = 6000, images: int = 300, seed: int = 0) -> pd.DataFrame:
    """Scores whose truth is a known monotone function of them, with noise that grows towards the middle."""
    rng = np.random.default_rng(seed)
    alignment, predicted, stability, soft = rng.uniform(0, 1, (4, count))
    area = np.exp(rng.uniform(np.log(0.001), np.log(0.5), count))
    mean = 0.1 + 0.5 * alignment * predicted + 0.1 * stability + 0.1 * soft**2 + 0.1 * np.abs(np.log(area) + 3) / 4
    actual = np.clip(mean + rng.normal(0, 0.02 + 0.2 * mean * (1 - mean)), 0, 1)
    lower, upper = jaccard_bounds(alignment, predicted)
    return pd.DataFrame(
        {
            "image": [f"image {index % images}" for index in range(count)],
            "kind": rng.choice(["none", "erode"], count),
            "actual_iou": actual,
            "lower_bound": lower,
            "upper_bound": upper,
            "alignment_iou": alignment,
            "predicted_iou": predicted,
            "stability": stability,
            "soft_iou": soft,
            "area_share": area,
        }
    )


@pytest.fixture(scope="module")
def estimator(toy_segmenter: SamSegmenter) -> MaskQualityEstimator:
    return MaskQualityEstimator(toy_segmenter, keep_masks=False)


@pytest.fixture(scope="module")
def fitted(estimator: MaskQualityEstimator) -> FittedCalibration:
    return fit_calibration(made_up(), estimator, data={"name": "made up"}).calibration


@pytest.mark.parametrize("method", ["isotonic", "monotone"])
def test_calibrated_and_covering_on_new_samples(estimator: MaskQualityEstimator, method: str) -> None:
    fit = fit_calibration(made_up(), estimator, method=method)
    new = made_up(seed=1)
    quality, low, high = fit.calibration.estimate(new)
    covered = ((low <= new["actual_iou"]) & (new["actual_iou"] <= high)).mean()
    assert covered == pytest.approx(0.9, abs=0.03)
    assert fit.calibration.report["coverage"] == pytest.approx(0.9, abs=0.03)
    assert fit.reports[method].ece < 0.03 < fit.reports["bound"].ece
    assert (
        np.corrcoef(quality, new["actual_iou"])[0, 1] > np.corrcoef(new["lower_bound"], new["actual_iou"])[0, 1] - 0.02
    )
    assert fit.reports["monotone"].mae < fit.reports["isotonic"].mae


@pytest.mark.parametrize(("num_images", "per_image"), [(10, 100), (30, 34), (40, None)])
def test_intervals_cover_masks_of_new_images(num_images: int, per_image: int | None) -> None:
    """Masks of one image err together; with masks as the unit ten images of a hundred cover .873 of new ones."""
    rng = np.random.default_rng(0)

    def errors(images: np.ndarray) -> np.ndarray:
        per_mask = 0.02 * rng.standard_normal(len(images))
        return 0.08 * rng.standard_normal(images.max() + 1)[images] + per_mask

    covered = []
    for _ in range(300):
        sizes = rng.integers(1, 200, num_images) if per_image is None else np.full(num_images, per_image)
        images, new = np.repeat(np.arange(num_images), sizes), np.arange(400)
        fitted = (np.full(100, 0.5), 0.5 + errors(np.arange(100)))
        held_out = (np.full(len(images), 0.5), 0.5 + errors(images))
        intervals = ConformalIntervals.fit(fitted, held_out, 0.9, images=images.tolist())
        low, high = intervals.around(np.full(len(new), 0.5))
        truth = 0.5 + errors(new)
        covered.append(((low <= truth) & (truth <= high)).mean())
    assert intervals.num_images == num_images
    assert 0.895 <= np.mean(covered) <= 0.9 + 1 / (num_images + 1)


def test_one_mask_an_image_is_the_plain_conformal_quantile() -> None:
    rng = np.random.default_rng(0)
    fitted = (np.full(100, 0.5), 0.5 + rng.normal(0, 0.1, 100))
    for count, rank in ((9, 9), (19, 18), (100, 91)):
        errors = rng.permutation(np.arange(1, count + 1)) / 1000
        intervals = ConformalIntervals.fit(fitted, (np.full(count, 0.5), 0.5 + errors), 0.9, images=range(count))
        assert intervals.quantile * intervals.errors[0] == pytest.approx(rank / 1000)
    eight = [*range(8)] * 10
    few = ConformalIntervals.fit(fitted, (np.full(80, 0.5), np.full(80, 0.51)), 0.9, images=eight)
    assert [end.tolist() for end in few.around(np.array([0.5]))] == [[0.0], [1.0]]  # eight images can't promise 90 %


def test_coverage_has_an_interval_by_image(fitted: FittedCalibration) -> None:
    low, high = fitted.report["coverage_interval"]
    assert low < fitted.report["coverage"] < high < low + 0.1
    ends = pd.DataFrame({"image": ["a"] * 6 + ["b"] * 2, "interval_low": 0.4, "interval_high": 0.6, "actual_iou": 0.5})
    figures = coverage_figures(ends.assign(actual_iou=[0.5] * 6 + [0.5, 0.9]))
    assert (figures["coverage"], figures["image_coverage"]) == (7 / 8, 3 / 4)
    assert figures["image_coverage_interval"] == [0.5, 1.0]
    assert np.isnan(coverage_figures(ends.iloc[:6])["coverage_interval"]).all()


def test_the_model_never_falls_in_what_must_not_mean_worse() -> None:
    samples = made_up()
    hostile = samples.assign(actual_iou=1 - samples["actual_iou"])  # what it would love to fit is the other way round
    scores = {name: samples[name].to_numpy() for name in samples.columns[3:]}
    for truth in (samples["actual_iou"], hostile["actual_iou"]):
        model = MonotoneModel.fit(scores, truth.to_numpy())
        for name in ("predicted_iou", "alignment_iou", "stability", "soft_iou"):
            more = dict(scores) | {name: scores[name] + np.random.default_rng(0).uniform(0, 0.5, len(samples))}
            assert (model.predict(more) >= model.predict(scores) - 1e-9).all()
    areas = dict(scores) | {"area_share": np.full(len(samples), np.exp(-3.0))}
    difference = MonotoneModel.fit(scores, samples["actual_iou"].to_numpy()).predict(areas) - model.predict(scores)
    assert difference.std() > 0


def test_model_learns_the_function_that_made_the_samples() -> None:
    samples = made_up()
    scores = {name: samples[name].to_numpy() for name in samples.columns[3:]}
    predicted = MonotoneModel.fit(scores, samples["actual_iou"].to_numpy()).predict(scores)
    mean = (
        0.1
        + 0.5 * scores["alignment_iou"] * scores["predicted_iou"]
        + 0.1 * scores["stability"]
        + 0.1 * scores["soft_iou"] ** 2
        + 0.1 * np.abs(np.log(scores["area_share"]) + 3) / 4
    )
    assert np.abs(predicted - mean).mean() < 0.01


def test_isotonic_curve_by_hand() -> None:
    curve = BoundCurve.fit({"lower_bound": np.array([0.0, 0.0, 0.5, 0.6, 1.0])}, np.array([0.1, 0.3, 0.6, 0.4, 0.9]))
    assert curve.bounds == (0.0, 0.5, 0.6, 1.0)
    assert curve.ious == (0.2, 0.5, 0.5, 0.9)
    np.testing.assert_allclose(curve.predict({"lower_bound": np.array([0.25, 0.8])}), [0.35, 0.7])


def test_sets_share_no_image() -> None:
    sets = split_by_image(made_up(), seed=3)
    images = [set(part["image"]) for part in sets.values()]
    assert [len(some) for some in images] == [150, 75, 75]
    assert len(set.union(*images)) == 300


def test_saved_and_loaded_it_is_the_same(fitted: FittedCalibration, tmp_path: Path) -> None:
    fitted.save(tmp_path / "c.json")
    again = load_calibration(tmp_path / "c.json")
    assert again.as_json() == fitted.as_json()
    assert again.digest == fitted.digest != replace(fitted, protocol="box").digest
    for one, other in zip(fitted.estimate(made_up(200)), again.estimate(made_up(200)), strict=True):
        np.testing.assert_array_equal(one, other)
    assert again.provenance["data"] == {"name": "made up"}
    assert again.provenance["versions"]["arrcoc-sam"] == aa.__version__
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.json"]
    assert again.intervals.num_images == 75
    before = replace(fitted, intervals=replace(fitted.intervals, num_images=None))
    before.save(tmp_path / "c.json")
    assert "num_images" not in before.as_json()["intervals"]
    assert load_calibration(tmp_path / "c.json").digest == before.digest
    with pytest.raises(OutputError, match="can't be written"):
        fitted.save(tmp_path / "c.json" / "in a file.json")


def test_estimator_takes_a_path_and_fills_quality(
    toy_segmenter: SamSegmenter, fitted: FittedCalibration, tmp_path: Path
) -> None:
    fitted.save(tmp_path / "c.json")
    masks = np.zeros((3, 40, 50), dtype=bool)
    masks[0, 5:30, 5:30], masks[1, 10:12, 10:40] = True, True
    image = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    bounds = MaskQualityEstimator(toy_segmenter).estimate(image, masks)
    scores = MaskQualityEstimator(toy_segmenter, calibration=tmp_path / "c.json").estimate(image, masks)
    assert scores.quality_kind == "calibrated"
    quality, low, high = fitted.estimate(bounds.to_frame().iloc[:2])
    torch.testing.assert_close(scores.quality[:2], torch.tensor(quality).float())
    torch.testing.assert_close(scores.interval_low[:2], torch.tensor(low).float())
    torch.testing.assert_close(scores.interval_high[:2], torch.tensor(high).float())
    assert (scores.interval_low <= scores.quality).all()
    assert (scores.quality <= scores.interval_high).all()
    assert [scores.quality[2], scores.interval_low[2], scores.interval_high[2]] == [0, 0, 0]  # the empty mask
    torch.testing.assert_close(scores.lower_bound, bounds.lower_bound)


def test_a_head_s_nan_is_no_estimate(estimator: MaskQualityEstimator, fitted: FittedCalibration) -> None:
    samples = made_up(6000)
    expected = fitted.estimate(samples)[0]
    for name in ("predicted_iou", "soft_iou", "stability"):
        values = samples[name].to_numpy().copy()
        values[:2] = np.nan
        estimates = fitted.estimate(samples.assign(**{name: values}))
        np.testing.assert_array_equal(estimates[0][2:], expected[2:])
        for part in estimates:
            assert np.isnan(part[:2]).all() == (name != "stability")  # no pixels, no stability
    with pytest.raises(DataError, match="2 of 6000 samples have scores that are NaN"):
        fit_calibration(samples.assign(soft_iou=samples["soft_iou"].where(samples.index > 1)), estimator)


def test_of_another_checkpoint_or_protocol_is_refused(
    toy_segmenter: SamSegmenter, fitted: FittedCalibration, tmp_path: Path
) -> None:
    replace(fitted, checkpoint_hash="0" * 64).save(tmp_path / "c.json")
    with pytest.raises(InputError, match=r"checkpoint_hash='0+'.*Mend: calibrate anew: arrcoc-sam calibrate"):
        MaskQualityEstimator(toy_segmenter, calibration=tmp_path / "c.json")
    with pytest.raises(InputError, match=r"protocol='mask\+point' for scores of protocol='box'"):
        MaskQualityEstimator(toy_segmenter, "box", calibration=fitted)


def test_bad_files(fitted: FittedCalibration, tmp_path: Path) -> None:
    good, path = fitted.as_json(), tmp_path / "c.json"
    assert good["version"] == 2
    knots = {name: at for name, at in good["curve"]["knots"].items() if name != "soft_iou"}
    cases = [
        ("", "not JSON"),
        ("[]", "is no calibration"),
        (json.dumps(good | {"version": 9}), "format version 9"),
        (json.dumps(good | {"version": 1}), r"format version 1; expected version 2\. Mend: calibrate anew"),
        (json.dumps(good | {"curve": good["curve"] | {"knots": knots}}), "no 'soft_iou'"),
        (json.dumps({key: value for key, value in good.items() if key != "curve"}), "no 'curve'"),
        (json.dumps(good | {"method": "magic"}), "method='magic'"),
        (json.dumps(good | {"curve": good["curve"] | {"weights": [1.0]}}), "do not fit its knots"),
        (json.dumps(good | {"curve": good["curve"] | {"weights": [-1.0] * len(good["curve"]["weights"])}}), "monotone"),
        (json.dumps(good | {"intervals": good["intervals"] | {"errors": [0.0]}}), "damaged"),
        (json.dumps(good | {"intervals": good["intervals"] | {"quantile": float("nan")}}), "quantile=nan"),
        (json.dumps(good | {"intervals": good["intervals"] | {"quantile": -1}}), r"quantile=-1\.0"),
        (json.dumps(good | {"intervals": good["intervals"] | {"confidence": 1}}), r"confidence=1\.0"),
        (json.dumps(good | {"intervals": good["intervals"] | {"estimates": [0.5], "errors": [float("nan")]}}), "order"),
        (json.dumps(good | {"provenance": "abc"}), "provenance='abc'"),
        (json.dumps(good | {"report": []}), r"report=\[\]"),
    ]
    for text, words in cases:
        path.write_text(text)
        with pytest.raises(DataError, match=words):
            load_calibration(path)
    with pytest.raises(DataError, match="No such file"):
        load_calibration(tmp_path / "none.json")
    assert load_calibration("embedded").as_json() == load_calibration(embedded_calibration_path()).as_json()


@pytest.mark.usefixtures("as_at_run_time")
def test_bad_fits(estimator: MaskQualityEstimator) -> None:
    with pytest.raises(DataError, match=r"fit set has 496 masks .*at least 1000"):
        fit_calibration(made_up(1000), estimator)
    few = r"fit set has 3000 masks of 15 images; expected .* of at least 30 images\. Mend: give more images\."
    with pytest.raises(DataError, match=few):
        fit_calibration(made_up(images=30), estimator, min_images=30)
    with pytest.raises(UnknownNameError, match="method='neural'"):
        fit_calibration(made_up(), estimator, method="neural")
    with pytest.raises(InputError, match="confidence=1"):
        fit_calibration(made_up(), estimator, confidence=1.0)
    for name in ("soft_iou", "actual_iou", "kind"):
        with pytest.raises(DataError, match=f"samples has no column '{name}'"):
            fit_calibration(made_up().drop(columns=name), estimator)
    with pytest.raises(InputError, match=r"samples is \{\}; expected a data frame"):
        fit_calibration({}, estimator)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="actual_iou of samples holds NaN"):
        fit_calibration(made_up().assign(actual_iou=float("nan")), estimator)


def squares(name: str, seed: int) -> AnnotatedImage:
    rng = np.random.default_rng(seed)
    masks = np.zeros((3, 48, 64), dtype=bool)
    masks[0, 8:40, 4:30], masks[1, 12:24, 8:20], masks[2, 10:40, 36:60] = True, True, True
    return AnnotatedImage(name, rng.integers(0, 255, (48, 64, 3), dtype=np.uint8), masks, np.array([0, 1, 0]))


def test_samples_know_their_truth(estimator: MaskQualityEstimator, toy_segmenter: SamSegmenter) -> None:
    images = [squares(f"image {index}", index) for index in range(6)]
    both = {"default": estimator, "box": MaskQualityEstimator(toy_segmenter, "box", keep_masks=False)}
    samples = calibration_samples(both, images, per_mask=4, seed=2)
    first, other = samples["default"], samples["box"]
    assert len(first) == len(other) == 6 * 3 * 4
    assert set(first["kind"]) >= {"none", "paste", "merge", "part"}
    pd.testing.assert_series_equal(first["actual_iou"], other["actual_iou"])
    assert (first["actual_iou"][first["kind"] == "none"] == 1).all()
    assert (first["actual_iou"][first["kind"] != "none"] < 1).mean() > 0.9
    one = degrade_masks(images[0], seed=2, per_mask=4)
    truths = images[0].masks[one.table["node"]]
    overlap = (one.masks & truths).sum((1, 2)) / (one.masks | truths).sum((1, 2))
    np.testing.assert_allclose(one.table["actual_iou"], overlap)
    assert (first["nearest_iou"] >= first["actual_iou"] - 1e-6).all()
    parts = first[(first["kind"] == "part") & (first["node"] == 0)]  # the first square holds the second
    assert (parts["nearest_iou"] == 1).all()
    assert (parts["actual_iou"] < 0.5).all()
    pd.testing.assert_frame_equal(one.table, first.iloc[:12][one.table.columns])
    pd.testing.assert_frame_equal(samples["box"], calibration_samples(both, images, per_mask=4, seed=2)["box"])


def test_with_an_oracle_all_truths_lie_inside_the_bounds(oracle_of: type) -> None:
    for index in range(8):
        image = squares(f"image {index}", index)
        image = AnnotatedImage(image.name, image.image, image.masks[:1], image.levels[:1])
        oracle = MaskQualityEstimator(oracle_of([image.masks[0]]), keep_masks=False)
        figures = bound_figures(calibration_samples({"oracle": oracle}, [image], per_mask=12)["oracle"])
        assert figures["inside"] == 1.0
        assert 0 < figures["width"] < 1


def test_ways_of_asking_are_compared_in_pairs() -> None:
    """A way that is a little better on every image is told from the default, though the intervals of both overlap."""
    default = made_up(600, 60)
    worse = default["lower_bound"] + np.random.default_rng(1).normal(0, 0.08, len(default))
    ways = {"mask+point, all": default, "mask, all": default.assign(lower_bound=worse.clip(0, 1))}
    table = compare_protocols(ways, seed=3).set_index("protocol")
    assert table.loc["mask+point", ["gain", "gain_low", "gain_high"]].tolist() == [0, 0, 0]
    other = table.loc["mask"]
    assert other["spearman_high"] > table.loc["mask+point", "spearman_low"]
    assert other["gain"] == pytest.approx(other["spearman"] - table.loc["mask+point", "spearman"])
    assert other["gain_low"] < other["gain"] < other["gain_high"] < 0
    turned = compare_protocols(ways, default="mask, all", seed=3).set_index("protocol").loc["mask+point"]
    assert (turned["gain_low"], turned["gain_high"]) == pytest.approx((-other["gain_high"], -other["gain_low"]))
    with pytest.raises(UnknownNameError, match=r"'box, all' without samples; expected those of one of mask\+point"):
        compare_protocols(ways, default="box, all")


@pytest.mark.usefixtures("as_at_run_time")
def test_samples_of_nothing(estimator: MaskQualityEstimator, fitted: FittedCalibration) -> None:
    with pytest.raises(InputError, match="no image with a mask"):
        calibration_samples({"default": estimator}, [])
    with pytest.raises(InputError, match="0 estimators of 0 segmenters"):
        calibration_samples({}, [])
    calibrated = MaskQualityEstimator(estimator.segmenter, calibration=fitted)
    with pytest.raises(InputError, match="without calibration"):
        calibration_samples({"default": calibrated}, [squares("a", 0)])
