import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from arrcoc_sam.errors import InputError, ShapeError
from arrcoc_sam.granularity.inference import (
    benjamini_hochberg,
    bootstrap_counts,
    bootstrap_gap,
    max_t,
    split_halves,
    standard_scores,
)


def test_scores_are_in_null_standard_deviations():
    null = torch.tensor([[1.0, 10.0, 0.0], [3.0, 30.0, 0.0], [5.0, 50.0, 0.0]], dtype=torch.float64)
    z = standard_scores(torch.tensor([7.0, 30.0, 1.0], dtype=torch.float64), null)
    assert z[:2].tolist() == [2.0, 0.0]
    assert z[2].isnan()  # a null without spread


def test_a_null_that_is_constant_but_for_rounding_says_nothing():
    null = 5 + 1e-7 * torch.randn(100, 2, 3, dtype=torch.float64)
    observed = torch.full((2, 3), 6.0, dtype=torch.float64)
    assert standard_scores(observed, null).isnan().all()
    p_level, p_any = max_t(observed, null)
    assert (p_level == 1).all()
    assert (p_any == 1).all()


def test_max_t_by_hand():
    # levels 0 and 1 have the same spread; level 2 is constant
    null = torch.tensor([[-1.0, 1.0, 0.0], [1.0, -1.0, 0.0], [0.0, 0.0, 0.0]])
    observed = torch.tensor([2.0, 0.5, 0.0])
    together = np.array([[-1, 1], [1, -1], [0, 0], [2, 0.5]])
    standard = (together - together.mean(0)) / together.std(0)
    highest = standard.max(1)
    p_level, p_any = max_t(observed, null)
    expected = [(highest >= standard[3, level] - 1e-9).mean() for level in range(2)]
    np.testing.assert_allclose(p_level, [*expected, 1.0])
    assert p_any.item() == pytest.approx((highest >= highest[3]).mean())
    assert p_any.item() == min(expected)


def test_a_level_that_is_undefined_leaves_the_others_alone():
    generator = torch.Generator().manual_seed(0)
    null = torch.randn(99, 4, 3, generator=generator, dtype=torch.float64)
    observed = torch.randn(4, 3, generator=generator, dtype=torch.float64) + 2
    missing, observed_missing = null.clone(), observed.clone()
    missing[..., 1], observed_missing[..., 1] = torch.nan, torch.nan
    p_level, p_any = max_t(observed_missing, missing)
    assert (p_level[:, 1] == 1).all()
    twice = max_t(observed[:, [0, 2, 2]], null[..., [0, 2, 2]])  # the maximum over two levels
    torch.testing.assert_close(p_any, twice[1])


def test_ties_count_against_the_claim():
    null = torch.tensor([0.0, 1.0] * 50)[:, None].expand(100, 3)
    _, p_any = max_t(torch.ones(3), null)
    assert p_any.item() == pytest.approx(51 / 101)
    _, p_any = max_t(torch.ones(3) - 1e-7, null)  # the same but for rounding
    assert p_any.item() == pytest.approx(51 / 101)


def test_the_test_of_the_maximum_has_its_size_for_correlated_levels():
    generator = torch.Generator().manual_seed(1)
    draws = torch.randn(200, 4_000, 1, generator=generator) + torch.randn(200, 4_000, 3, generator=generator)
    _, p_any = max_t(draws[0], draws[1:])
    rejected = int((p_any <= 0.05).sum())
    assert binomtest(rejected, 4_000, 0.05).pvalue > 1e-3


@pytest.mark.usefixtures("as_at_run_time")
def test_what_does_not_fit_is_refused():
    with pytest.raises(ShapeError, match="draws"):
        max_t(torch.zeros(2, 3), torch.zeros(9, 3))
    with pytest.raises(InputError, match="at least 2"):
        standard_scores(torch.zeros(2, 3), torch.zeros(1, 2, 3))


def test_benjamini_hochberg_by_hand():
    # sorted: .005·6/1, .01·6/2, .03·6/3, .04·6/4, .2·6/5, .9; then the running minimum from the right
    found = benjamini_hochberg(torch.tensor([[0.9, 0.01, 0.04], [0.03, 0.2, 0.005]]))
    torch.testing.assert_close(found, torch.tensor([[0.9, 0.03, 0.06], [0.06, 0.24, 0.03]]))
    assert benjamini_hochberg(torch.ones(0)).shape == (0,)


def test_halves_share_nothing_and_miss_nothing():
    first, second = split_halves(31, generator=torch.Generator().manual_seed(0))
    assert (len(first), len(second)) == (15, 16)
    assert torch.equal(torch.cat([first, second]).sort().values, torch.arange(31))
    again = split_halves(31, generator=torch.Generator().manual_seed(1))[0]
    assert not torch.equal(first, again)


def test_bootstrap_counts_are_resamples_with_replacement():
    counts = bootstrap_counts(20, 3_000, generator=torch.Generator().manual_seed(0))
    assert (counts.sum(1) == 20).all()
    assert counts.mean(0).sub(1).abs().max() < 0.1
    assert counts.var(0).sub(19 / 20).abs().max() < 0.15


def test_gap_is_the_lead_of_the_given_level_over_the_best_other():
    scores = torch.zeros(50, 2, 3, dtype=torch.float64)
    scores[:, 0] = torch.tensor([1.0, 3.0, 2.0])
    scores[:, 1] = torch.tensor([5.0, 3.0, 2.0])
    counts = bootstrap_counts(50, 200, generator=torch.Generator().manual_seed(0))
    gap, interval = bootstrap_gap(scores, torch.tensor([1, 1]), counts)
    assert gap.tolist() == [1, -2]
    np.testing.assert_allclose(interval, [[1, 1], [-2, -2]])


def test_the_interval_covers_the_mean_gap_as_often_as_it_says():
    generator = torch.Generator().manual_seed(3)
    true = torch.tensor([0.5, 0.0, -1.0], dtype=torch.float64)
    scores = true + torch.randn(60, 2_000, 3, generator=generator, dtype=torch.float64)
    counts = bootstrap_counts(60, 1_000, generator=generator)
    _, interval = bootstrap_gap(scores, torch.zeros(2_000, dtype=torch.int64), counts, confidence=0.9)
    covered = ((interval[:, 0] <= 0.5) & (interval[:, 1] >= 0.5)).double().mean()
    assert 0.86 < covered < 0.93


def test_levels_of_equal_merit_are_rarely_told_apart():
    """The top is fixed from other data; chosen anew in each resample it would always lead."""
    generator = torch.Generator().manual_seed(4)
    scores = torch.randn(60, 2_000, 3, generator=generator, dtype=torch.float64)
    counts = bootstrap_counts(60, 500, generator=generator)
    fixed = bootstrap_gap(scores, torch.zeros(2_000, dtype=torch.int64), counts)[1][:, 0] > 0
    assert fixed.double().mean() < 0.03
    chosen = bootstrap_gap(scores, scores.mean(0).argmax(-1), counts)[1][:, 0] > 0
    assert chosen.double().mean() > fixed.double().mean()


def test_missing_levels_in_the_bootstrap():
    scores = torch.randn(40, 3, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64) + 3
    scores[:, 0, 1:] = torch.nan  # nothing to lead over
    scores[:, 1, 0] = torch.nan  # the top itself is missing
    scores[:20, 2, 2] = torch.nan  # half of the images lack a level
    scores[:, 2, 0] += 5
    counts = bootstrap_counts(40, 200, generator=torch.Generator().manual_seed(0))
    gap, interval = bootstrap_gap(scores, torch.zeros(3, dtype=torch.int64), counts)
    assert gap.isnan().tolist() == [True, True, False]
    assert interval.isnan().any(1).tolist() == [True, True, False]
    expected = scores[:, 2, 0].mean() - max(scores[:, 2, 1].mean(), scores[20:, 2, 2].mean())
    assert gap[2].item() == pytest.approx(expected.item())
