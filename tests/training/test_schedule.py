"""Learning rates by step."""

from __future__ import annotations

from typing import Any

import pytest

from arrcoc_sam.errors import InputError
from arrcoc_sam.training.schedule import Schedule
from arrcoc_sam.training.settings import PRESETS, SegmenterTraining, Stage


def test_linear_rises_stays_and_falls() -> None:
    config = SegmenterTraining(stages=(Stage(64, 100),), warmup_steps=10, decay_share=0.4, learning_rate=1.0)
    rates = [config.rate_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10:60] == pytest.approx([1.0] * 50)
    assert rates[80] == pytest.approx(0.5)
    assert 0 < rates[99] < 0.03


def test_cosine_falls_to_its_floor() -> None:
    cosine = Schedule(1000, "cosine", floor=0.1)
    assert cosine(0) == 1.0
    assert cosine(500) == pytest.approx(0.55)
    assert cosine(999) == pytest.approx(0.1, abs=1e-4)


def test_steps_at_milestones() -> None:
    sam1 = SegmenterTraining(stages=(Stage(64, 90_000),), **PRESETS["sam1"])  # type: ignore[arg-type]
    assert sam1.rate_at(0) == pytest.approx(8e-4 / 250)
    changes = [step for step in (59_999, 60_000, 86_665, 86_666) if sam1.rate_at(step) < 0.99 * sam1.rate_at(step - 1)]
    assert changes == [60_000, 86_666]
    assert sam1.rate_at(89_999) == pytest.approx(8e-6)


def test_constant() -> None:
    assert {Schedule(10, "constant")(step) for step in range(10)} == {1.0}


@pytest.mark.parametrize(
    "options",
    [
        {"warmup_steps": -1},
        {"decay_share": 0.0},
        {"floor": 2.0},
        {"shape": "step"},
        {"milestones": (0.5,)},
        {"shape": "step", "milestones": (0.5, 0.2)},
    ],
)
def test_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Schedule(10, **options)
