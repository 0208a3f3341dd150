"""The learning rate over a run: a linear rise, then constant, linear, cosine or stepwise fall."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from arrcoc_sam.errors import InputError, UnknownNameError, explain

__all__ = ["SHAPES", "Schedule", "ScheduleShape"]

ScheduleShape: TypeAlias = Literal["constant", "linear", "cosine", "step"]
SHAPES: Final = ("constant", "linear", "cosine", "step")


@dataclass(frozen=True)
class Schedule:
    """The factor of the peak learning rate at each step.

    Attributes:
        total_steps: Of the run.
        shape: How it falls. "linear": to 0 over the last ``decay_share`` of the steps; "cosine": half a cosine over
            the same share; "step": by ``step_factor`` at each milestone.
        warmup_steps: Linear rise at the start, of whatever comes after.
        decay_share: In (0, 1].
        floor: What linear and cosine fall to, as a share of the peak.
        milestones: For "step", ascending shares of the run in (0, 1).
        step_factor: For "step".
    """

    total_steps: int
    shape: ScheduleShape = "linear"
    warmup_steps: int = 0
    decay_share: float = 1.0
    floor: float = 0.0
    milestones: tuple[float, ...] = ()
    step_factor: float = 0.1

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InputError: One is out of its range.
            UnknownNameError: An unknown shape.
        """
        if self.shape not in SHAPES:
            raise UnknownNameError(explain(f"schedule={self.shape!r}", f"one of {', '.join(SHAPES)}"))
        if self.warmup_steps < 0:
            raise InputError(explain(f"warmup_steps={self.warmup_steps}", "at least 0"))
        if not 0 < self.decay_share <= 1:
            raise InputError(explain(f"decay_share={self.decay_share}", "a share in (0, 1]"))
        if not (0 <= self.floor <= 1 and 0 < self.step_factor <= 1):
            came = f"floor={self.floor}, step_factor={self.step_factor}"
            raise InputError(explain(came, "floor in [0, 1], step_factor in (0, 1]"))
        ascending = list(self.milestones) == sorted(set(self.milestones))
        if not ascending or not all(0 < share < 1 for share in self.milestones):
            raise InputError(explain(f"milestones={list(self.milestones)}", "ascending shares of the run in (0, 1)"))
        if (self.shape == "step") != bool(self.milestones):
            came = f"schedule={self.shape!r} with milestones={list(self.milestones)}"
            raise InputError(explain(came, "milestones for 'step', and for no other"))

    def __call__(self, step: int) -> float:
        """The factor of a step, counted from 0.

        Example:
            >>> cosine = Schedule(100, "cosine", warmup_steps=10)
            >>> [round(cosine(step), 3) for step in (0, 10, 50, 99)]
            [0.1, 0.976, 0.5, 0.0]
        """
        warm = min(1.0, (step + 1) / max(self.warmup_steps, 1))
        return warm * self._after_warmup(step)

    def _after_warmup(self, step: int) -> float:
        if self.shape == "step":
            passed = sum(step >= share * self.total_steps for share in self.milestones)
            return float(self.step_factor**passed)
        left = min(1.0, (self.total_steps - step) / max(self.decay_share * self.total_steps, 1.0))
        if self.shape == "constant":
            return 1.0
        fallen = left if self.shape == "linear" else (1 - math.cos(math.pi * left)) / 2
        return self.floor + (1 - self.floor) * fallen
