"""Which mask teaches which level, and multi-mask augmentation."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from arrcoc_sam.errors import InputError, ShapeError, UnknownNameError
from arrcoc_sam.training.samples_supervision import (
    MaskTriple,
    area_quantile_bounds,
    draw_levels,
    multimask_annotations,
    supervision,
)

TRIPLE = MaskTriple(
    score=np.array([0.5, 0.9, 0.7]),
    token_index=np.array([2, 3, 1]),
    distinct=np.array([True, True, True]),
    counted=np.array([True, False, True]),
    area_share=np.array([0.4, 0.3, 0.02]),
    key=5,
)


def test_the_hierarchy_leaves_out_what_is_not_distinct_and_nested() -> None:
    taught = supervision()(TRIPLE)
    assert taught.mask.tolist() == [0, 1, 2]
    assert taught.valid.tolist() == [True, False, True]
    assert taught.confidence.tolist() == [0.5, 0.9, 0.7]
    alike = supervision(weighted=False)(TRIPLE)
    assert alike.confidence[alike.valid].tolist() == [1.0, 1.0]


def test_baselines() -> None:
    flat = supervision("flat")(TRIPLE)
    assert flat.mask.tolist() == [1, 1, 1]
    assert flat.confidence.tolist() == [0.9] * 3
    assert supervision("token_order")(TRIPLE).mask.tolist() == [2, 0, 1]
    quantiles = supervision("area_quantiles", area_bounds=(0.05, 0.2))(TRIPLE)
    assert quantiles.valid.tolist() == [True, False, True]
    assert quantiles.mask[[0, 2]].tolist() == [1, 2]  # two in the top range: the higher score
    permuted = supervision("permuted", seed=1)
    orders = set()
    for key in range(50):
        triple = replace(TRIPLE, key=key)
        assert permuted(triple).mask.tolist() == permuted(triple).mask.tolist()
        orders.add(tuple(permuted(triple).mask.tolist()))
    assert len(orders) == 6


def test_workers_can_be_sent_one() -> None:
    teach = supervision("permuted", seed=3)
    assert pickle.loads(pickle.dumps(teach))(TRIPLE).mask.tolist() == teach(TRIPLE).mask.tolist()


def test_bounds_are_terciles() -> None:
    assert area_quantile_bounds(np.linspace(0, 1, 301)) == pytest.approx((1 / 3, 2 / 3))


def test_annotations_are_the_levels_that_count() -> None:
    confidence = torch.tensor([[0.9, 1.3, -0.2], [0.5, float("nan"), 0.25]])
    found = multimask_annotations(confidence, torch.tensor([[True, True, True], [True, False, True]]))
    assert found.sample.tolist() == [0, 0, 0, 1, 1]
    assert found.level.tolist() == [0, 1, 2, 0, 2]
    assert found.weight.tolist() == pytest.approx([0.9, 1.0, 0.0, 0.5, 0.25])


def test_levels_are_drawn_in_proportion_to_confidence() -> None:
    confidence = torch.tensor([[0.8, 0.4, 0.4]]).expand(20_000, 3)
    valid = torch.tensor([[True, True, False]]).expand(20_000, 3)
    drawn = draw_levels(confidence, valid, torch.Generator().manual_seed(0))
    assert bool((drawn.sum(1) == 1).all())
    # 4 standard deviations of a share of 2/3 in 20,000 draws
    assert drawn.float().mean(0).tolist() == pytest.approx([2 / 3, 1 / 3, 0.0], abs=0.0134)
    none = draw_levels(torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool))
    assert not bool(none.any())


@pytest.mark.usefixtures("as_at_run_time")
def test_bad_input() -> None:
    with pytest.raises(UnknownNameError, match="'all'"):
        supervision("all")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="bounds for 'area_quantiles'"):
        supervision("area_quantiles")
    with pytest.raises(InputError, match="bounds for 'area_quantiles'"):
        supervision("flat", area_bounds=(0.1, 0.2))
    with pytest.raises(InputError, match="ascending"):
        supervision("area_quantiles", area_bounds=(0.3, 0.2))
    with pytest.raises(InputError, match="no areas"):
        area_quantile_bounds(np.array([]))
    with pytest.raises(ShapeError, match=r"\(K, 3\) both"):
        draw_levels(torch.ones(2, 3), torch.ones(3, dtype=torch.bool))
