import numpy as np
import pandas as pd
import pytest
import torch

from arrcoc_sam.errors import InputError
from arrcoc_sam.granularity.planted import IGNORANT, centre_prior, ignorant, planted, sinks, smooth_noise
from arrcoc_sam.granularity.trials import NULLS, clopper_pearson, false_positive_rates
from arrcoc_sam.granularity.validation import balanced_accuracy, scene_regions, validate

GRID = (32, 32)


@pytest.fixture(scope="module")
def regions():
    return scene_regions(40, GRID)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_smooth_noise_has_the_spread_asked_for_and_no_preferred_place():
    maps = smooth_noise(4_000, (16, 12), generator=seeded(), roughness=0.5)
    logs = maps.log()
    assert logs.std().item() == pytest.approx(0.5, rel=0.03)
    assert logs.mean(0).abs().max() < 0.05
    assert logs.std(0).sub(0.5).abs().max() < 0.05
    neighbours = torch.corrcoef(torch.stack([logs[:, 4, 4], logs[:, 4, 5], logs[:, 12, 10]]))
    assert neighbours[0, 1] > 0.5
    assert neighbours[0, 2].abs() < 0.1


def test_centre_prior_moves_only_when_told_to():
    still = centre_prior(3, (9, 9), jitter=0.0)
    assert torch.equal(still[0], still[2])
    assert still[0].argmax() == 40
    moved = centre_prior(500, (9, 9), generator=seeded())
    peaks = moved.flatten(1).argmax(1)
    assert peaks.unique().numel() > 5
    assert moved.mean(0).flatten().argmax() == 40


def test_sinks_hold_the_share_asked_for():
    maps = sinks(50, (20, 20), generator=seeded(), share_of_cells=0.02, share_of_mass=0.6)
    held = maps.flatten(1).sort(1, descending=True).values[:, :8].sum(1) / maps.flatten(1).sum(1)
    assert held.min() > 0.6
    assert held.max() < 0.65


def test_planted_attention_is_denser_by_the_gain():
    level = torch.zeros(400, 8, 8)
    level[:, :4] = 1
    maps = planted(level, gain=3.0, generator=seeded())
    ratio = maps[:, :4].mean() / maps[:, 4:].mean()
    assert ratio.item() == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize("kind", IGNORANT)
def test_ignorant_kinds(kind):
    maps = ignorant(kind, 3, (5, 7), generator=seeded())
    assert maps.shape == (3, 5, 7)
    assert (maps > 0).all()
    assert torch.equal(maps, ignorant(kind, 3, (5, 7), generator=seeded()))


def test_scene_regions_are_measurable_and_seeded(regions):
    assert len(regions) == 40
    assert regions.measurable().all()
    assert regions.distinct.all()
    torch.testing.assert_close(scene_regions(3, GRID).shells, regions.shells[:3])


def test_clopper_pearson_limits_by_definition():
    from scipy.stats import binom

    low, high = clopper_pearson(7, 50)
    assert binom.sf(6, 50, low) == pytest.approx(0.01)  # at the lower limit, 7 or more happen once in a hundred
    assert binom.cdf(7, 50, high) == pytest.approx(0.01)
    assert clopper_pearson(0, 50)[0] == 0
    assert clopper_pearson(50, 50)[1] == 1


def test_balanced_accuracy_by_hand():
    table = pd.DataFrame([[8, 0, 2], [5, 5, 0]], index=["a", "b"], columns=["a", "b", "abstain"])
    assert balanced_accuracy(table) == pytest.approx((0.8 + 0.5) / 2)
    assert balanced_accuracy(table[["a", "b"]]) == pytest.approx((1 + 0.5) / 2)
    assert np.isnan(balanced_accuracy(table[["a", "b"]].mul([0, 1], axis=0)))  # no head at "a" was answered: no warning


def test_the_null_of_record_keeps_its_size_and_pixel_shuffling_is_convicted(regions):
    """A small version; 10,000 trials are marked slow."""
    own = false_positive_rates(regions, num_trials=200, num_draws=99, nulls=NULLS[:1])
    assert own["attention"].tolist() == list(IGNORANT)
    assert not own["convicted"].any()
    assert (own["high"] > 0.05).all()  # nor does it reject nothing at all
    assert (own["trials"] == 200).all()
    shuffled = false_positive_rates(regions, num_trials=40, images_a_trial=20, nulls=NULLS[2:])
    rates = shuffled.set_index("attention")
    assert rates.loc["jittered centre", "convicted"]
    assert rates.loc["jittered centre", "rate"] > 0.8
    assert (shuffled["trials"] == 40).all()


def test_the_whole_protocol_finds_what_is_there():
    seen = []
    report = validate(
        num_images=40, num_heads=3, gains=(2.0,), num_trials=10, progress=lambda *args: seen.append(args[0])
    )
    assert report.balanced_accuracy >= 0.85
    assert report.confusion.to_numpy().sum() == 3 * 3 + 3 * 3
    assert report.by_gain["heads"].tolist() == [3, 3, 3]
    assert (report.by_gain[["right", "wrong", "abstained"]].sum(axis=1) == 3).all()
    assert report.by_gain["right"].sum() == sum(
        report.confusion.loc[level, level] for level in report.confusion.index[:3]
    )
    assert report.confusion.loc[list(IGNORANT), "abstain"].sum() >= 8
    assert 0 <= report.abstained <= 0.2
    assert {"scenes", "sinks against other images"} <= set(seen)
    single = report.single_image.set_index("metric")
    assert single.loc["shell_contrast", "balanced_accuracy"] > single.loc["mass_accuracy", "balanced_accuracy"]
    assert single.loc["mass_accuracy", "whole_of_nothing"] == 1  # the area bias that the null is for
    calls = [f"{level}_of_nothing" for level in ("whole", "part", "subpart")]
    np.testing.assert_allclose(single[calls].sum(axis=1), 1)


@pytest.mark.usefixtures("as_at_run_time")
@pytest.mark.parametrize("options", [{"num_images": 29}, {"num_heads": 0}, {"gains": ()}, {"alpha": 1}])
def test_nothing_to_count_is_refused(options):
    with pytest.raises(InputError, match="at least 30 images"):
        validate(**options)


@pytest.mark.parametrize("gain", [float("nan"), float("inf"), -1.0, 0.0])
def test_gains_that_plant_nothing_are_refused(gain):
    with pytest.raises(InputError, match="gains="):
        validate(gains=(1.0, gain))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_size_of_ten_thousand_trials():
    regions = scene_regions(200, GRID)
    for images in (30, 60):
        found = false_positive_rates(regions, num_trials=10_000, images_a_trial=images, nulls=NULLS[:1])
        assert not found["convicted"].any(), found.to_string()
        assert (found["high"] > 0.05).all() or (found["rate"] > 0.04).all()
    moved = false_positive_rates(regions, num_trials=10_000, nulls=NULLS[1:]).set_index(["null", "attention"])
    assert moved.loc[("pixel shuffling", "jittered centre"), "rate"] > 0.95


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_planted_levels_are_recovered():
    report = validate(num_trials=1_000)
    assert report.balanced_accuracy >= 0.85, report.confusion.to_string()
    assert report.false_claims <= 0.02
    assert report.passed
