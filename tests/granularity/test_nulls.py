import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from arrcoc_sam.errors import InputError, ShapeError, UnknownNameError
from arrcoc_sam.granularity import metrics as M
from arrcoc_sam.granularity.nulls import (
    matched_mean,
    null_means,
    random_derangements,
    random_permutations,
    required_draws,
    toroidal_values,
)
from arrcoc_sam.granularity.regions import Regions


def test_draws_follow_the_number_of_tests():
    assert required_draws(1) == 9_999
    assert required_draws(144, 0.05) == 28_800
    assert required_draws(144, 0.01) == 144_000


@pytest.mark.parametrize("num", [2, 3, 7, 40])
def test_derangements_have_no_fixed_point_and_are_permutations(num):
    drawn = random_derangements(num, 200, generator=torch.Generator().manual_seed(0))
    assert drawn.shape == (200, num)
    assert (drawn != torch.arange(num)).all()
    assert (drawn.sort(1).values == torch.arange(num)).all()


@pytest.mark.parametrize(("draw", "kinds"), [(random_derangements, 9), (random_permutations, 24)])
def test_every_one_is_equally_likely(draw, kinds):
    found = Counter(map(tuple, draw(4, 24_000, generator=torch.Generator().manual_seed(1)).tolist()))
    expected = [
        order
        for order in itertools.permutations(range(4))
        if kinds == 24 or all(place != value for place, value in enumerate(order))
    ]
    assert sorted(found) == expected
    assert len(expected) == kinds
    statistic = sum((count - 24_000 / kinds) ** 2 / (24_000 / kinds) for count in found.values())
    assert statistic < 3 * kinds  # chi-square with kinds − 1 degrees of freedom


def test_seeds_repeat():
    draws = [random_derangements(9, 5, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*draws)
    with pytest.raises(InputError, match="at least 2"):
        random_derangements(1, 5)


def brute_force(values: np.ndarray, assignment: list[int]) -> np.ndarray:
    """Mean over images that have the level, test by test."""
    num, tests = values.shape[0], values.shape[2]
    result = np.empty(tests)
    for test in range(tests):
        counted = [i for i in range(num) if not np.isnan(values[:, i, test]).all()]
        result[test] = np.mean([values[assignment[i], i, test] for i in counted]) if counted else np.nan
    return result


def test_means_equal_brute_force_with_missing_levels():
    generator = torch.Generator().manual_seed(2)
    values = 100 + torch.randn(6, 6, 130, generator=generator, dtype=torch.float64)  # more tests than one group holds
    values[:, 2, 0] = torch.nan  # image 2 lacks the level
    values[:, :, 1] = torch.nan  # no image has it
    draws = random_derangements(6, 20, generator=generator)
    found = null_means(values.view(6, 6, 65, 2), draws).flatten(1)
    for row, assignment in zip(found, draws.tolist(), strict=True):
        np.testing.assert_allclose(row, brute_force(values.numpy(), assignment), rtol=1e-8)
    np.testing.assert_allclose(matched_mean(values), brute_force(values.numpy(), list(range(6))), rtol=1e-8)


def test_a_value_that_is_undefined_for_some_maps_makes_the_test_undefined():
    values = torch.rand(5, 5, 2, 3)
    values[3, :, 0, 1] = -torch.inf
    found = null_means(values, random_derangements(5, 10))
    assert found[:, 0, 1].isnan().all()
    assert found.isfinite().sum() == 10 * 5


@pytest.mark.usefixtures("as_at_run_time")
def test_what_is_not_square_is_refused():
    with pytest.raises(ShapeError, match="n images"):
        null_means(torch.rand(4, 5, 2), torch.zeros(3, 5, dtype=torch.int64))
    with pytest.raises(ShapeError, match="n images"):
        null_means(torch.rand(4, 4, 2), torch.zeros(3, 5, dtype=torch.int64))


def nested(size: tuple[int, int], *sides: int) -> torch.Tensor:
    masks = torch.zeros(1, 3, *size, dtype=torch.bool)
    for level, side in enumerate(sides):
        masks[0, level, 1 : 1 + side, 1 : 1 + side] = True
    return masks


@pytest.mark.parametrize("name", ["shell_contrast", "pearson", "attention_iou"])
def test_toroidal_values_are_those_of_rolled_maps(name):
    generator = torch.Generator().manual_seed(4)
    masks, attention = nested((8, 10), 6, 4, 2), torch.rand(2, 8, 10, generator=generator, dtype=torch.float64)
    found = toroidal_values(name, attention, Regions.from_masks(masks, (8, 10)))
    assert found.shape == (80, 2, 1, 3)
    for down, right in [(0, 0), (1, 0), (3, 7), (7, 9)]:
        rolled = attention.roll((down, right), (1, 2))
        torch.testing.assert_close(found[down * 10 + right], getattr(M, name)(rolled, masks))


def test_toroidal_shifts_stay_within_the_image():
    masks = torch.nn.functional.pad(nested((8, 8), 6, 4, 2), (0, 2))
    attention = torch.nn.functional.pad(torch.rand(1, 8, 8, dtype=torch.float64), (0, 2))
    valid = torch.ones(8, 10)
    valid[:, 8:] = 0
    found = toroidal_values("pearson", attention, Regions.from_masks(masks, (8, 10), valid=valid))
    assert len(found) == 64
    expected = M.pearson(attention[..., :8].roll(3, 2), masks[..., :8])
    torch.testing.assert_close(found[3], expected)
    with pytest.raises(UnknownNameError, match="auc"):
        toroidal_values("auc", attention, Regions.from_masks(masks, (8, 10)))
