import numpy as np
import pytest
import torch

from arrcoc_sam.errors import InputError, ShapeError
from arrcoc_sam.granularity.claims import image_scores, make_claims
from arrcoc_sam.granularity.nulls import null_means, random_derangements


def random_values(num: int, maps: int, seed: int = 0) -> torch.Tensor:
    """V with the main effects that real attention has: maps that like a level in any image, images easy to hit."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(num, num, maps, 3, generator=generator)
    prior = 3 * torch.randn(1, 1, maps, 3, generator=generator)
    of_attention = torch.randn(num, 1, maps, 3, generator=generator)
    of_masks = torch.randn(1, num, maps, 3, generator=generator)
    return noise + prior + of_attention + of_masks


def with_effect(values: torch.Tensor, level: int, size: float, maps: slice = slice(None)) -> torch.Tensor:
    changed = values.clone()
    matched = torch.arange(len(values))
    changed[matched, matched, maps, level] += size
    return changed


def test_an_effect_is_found_at_its_level_in_spite_of_priors():
    values = random_values(60, 9)
    for level in range(3):
        values = with_effect(values, level, 2.0, slice(level * 2, level * 2 + 2))
    claims = make_claims(values)
    assert claims.level[:6].tolist() == ["whole", "whole", "part", "part", "subpart", "subpart"]
    assert set(claims.level[6:]) == {"abstain"}
    assert (claims.reason[:6] == "").all()
    assert all(claims.reason[6:])
    assert claims.top[:6].tolist() == [0, 0, 1, 1, 2, 2]
    assert claims.num_draws == 9_999


def test_z_is_the_value_against_derangements():
    values = with_effect(random_values(40, 2), 1, 1.0)
    claims = make_claims(values, num_draws=200)
    null = null_means(values, random_derangements(40, 4_000, generator=torch.Generator().manual_seed(9)))
    observed = values.diagonal().mean(-1)
    torch.testing.assert_close(claims.value, observed.double(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(claims.z, ((observed - null.mean(0)) / null.std(0)), rtol=0.1, atol=0.1)


def test_scores_of_images_average_to_z():
    values = with_effect(random_values(40, 2), 1, 1.0).double()
    null = null_means(values, random_derangements(40, 20_000, generator=torch.Generator().manual_seed(9)))
    z = (values.diagonal().mean(-1) - null.mean(0)) / null.std(0)
    torch.testing.assert_close(image_scores(values, null.std(0)).mean(0), z, atol=0.05, rtol=0.02)


def test_two_levels_alike_abstain_though_something_stands_out():
    values = with_effect(with_effect(random_values(60, 8), 0, 2.0), 1, 2.0)
    claims = make_claims(values)
    assert (claims.q_value <= 0.05).all()
    ahead = (claims.level != "abstain").mean()
    assert ahead <= 0.25
    assert "ahead" in claims.reason[claims.level == "abstain"][0]


def test_constant_controls_abstain():
    values = random_values(40, 3)
    values[:, :, 0] = 0.25  # uniform attention
    values[:, :, 1] = values[:1, :, 1]  # the same map for every image: V[j, i] depends on i alone
    claims = make_claims(values, num_draws=500)
    assert claims.z[:2].isnan().all()
    assert (claims.p_any[:2] == 1).all()
    assert claims.level[:2].tolist() == ["abstain"] * 2


def test_too_few_images_compute_but_never_claim():
    claims = make_claims(with_effect(random_values(20, 2), 0, 5.0), num_draws=500)
    assert (claims.p_any < 0.01).all()
    assert claims.level.tolist() == ["abstain"] * 2
    assert claims.reason[0] == "fewer than 30 images"


def test_a_level_that_few_images_have_is_not_claimed():
    values = with_effect(random_values(60, 2) * 0.1, 1, 3.0)
    for images, level in ((2, "abstain"), (29, "abstain"), (30, "part")):
        few = values.clone()
        few[:, images:, :, 1] = torch.nan
        claims = make_claims(few, num_draws=999)
        assert (claims.q_value < 0.05).all()
        assert claims.images.tolist() == [[60, images, 60]] * 2
        assert claims.level.tolist() == [level] * 2
        if level == "abstain":
            assert set(claims.reason) == {"fewer than 30 images have the chosen level"}


def test_a_level_that_is_not_finite_on_some_images_has_no_mean_and_says_so():
    values = with_effect(random_values(60, 3), 1, 3.0)
    values[7, 7, 0, 1] = values[8, 8, 0, 1] = -torch.inf  # on two images, of the level that would be claimed
    values[3, 9, 1, 0] = -torch.inf  # on one, of another level, of another image's attention
    values[:, 4, 2, 2] = torch.nan  # no such level: undefined, not infinite
    claims = make_claims(values, num_draws=999)
    assert claims.level.tolist() == ["abstain", "abstain", "part"]
    reasons = [f"the metric is not finite on {count} of 60 images" for count in (2, 1)]
    assert claims.reason.tolist() == [*reasons, ""]
    assert claims.images.tolist() == [[60, 60, 60], [60, 60, 60], [60, 60, 59]]


def test_images_without_a_level_do_not_count_for_it():
    values = with_effect(random_values(60, 2), 1, 2.0)
    values[:, ::3, :, 2] = torch.nan
    claims = make_claims(values, num_draws=999)
    assert claims.level.tolist() == ["part", "part"]
    assert claims.z.isfinite().all()
    values[..., 2] = torch.nan
    claims = make_claims(values, num_draws=999)
    assert claims.z[:, 2].isnan().all()
    assert claims.level.tolist() == ["part", "part"]


def test_the_seed_decides_and_groups_of_maps_do_not(monkeypatch):
    values = with_effect(random_values(32, 5), 1, 0.7)
    first, again, other = (make_claims(values, num_draws=300, seed=seed) for seed in (1, 1, 2))
    torch.testing.assert_close(first.p_level, again.p_level)
    assert not torch.equal(first.selection_z, other.selection_z)
    monkeypatch.setattr("arrcoc_sam.granularity.claims._CHUNK", 32 * 32 * 3 * 2)
    grouped = make_claims(values, num_draws=300, seed=1)
    torch.testing.assert_close(grouped.p_level, first.p_level)
    torch.testing.assert_close(grouped.gap_interval, first.gap_interval)


def test_arrays_on_disk_are_taken(tmp_path):
    values = random_values(30, 2).numpy()
    np.save(tmp_path / "values.npy", values)
    stored = np.load(tmp_path / "values.npy", mmap_mode="r")
    torch.testing.assert_close(
        make_claims(stored, num_draws=99).z, make_claims(torch.from_numpy(values), num_draws=99).z
    )


def test_nothing_is_claimed_of_heads_that_know_nothing():
    claims = make_claims(random_values(40, 300, seed=5), num_draws=2_000)
    assert (claims.level != "abstain").sum() <= 1
    uniform = (claims.p_any <= 0.05).double().mean()
    assert 0.02 < uniform < 0.09


@pytest.mark.usefixtures("as_at_run_time")
def test_what_does_not_fit_is_refused():
    with pytest.raises(ShapeError, match="n, n, N, 3"):
        make_claims(torch.zeros(5, 4, 2, 3))
    with pytest.raises(InputError, match="at least 4"):
        make_claims(torch.zeros(3, 3, 2, 3))
    for draws in (-4, 0, 2.5):
        with pytest.raises(InputError, match=f"num_draws={draws}; expected a whole number"):
            make_claims(torch.zeros(9, 9, 2, 3), num_draws=draws)
    with pytest.raises(InputError, match="false_discovery_rate"):
        make_claims(torch.zeros(9, 9, 2, 3), false_discovery_rate=0)
