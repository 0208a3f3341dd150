"""The batches of a run, step by step, drawn here or in worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch.utils.data import DataLoader, Dataset

from arrcoc_sam.training.batches import BatchPlan, PromptBatch, draw_batch
from arrcoc_sam.training.settings import SegmenterTraining
from arrcoc_sam.training.sources import MaskSource

__all__ = ["StepBatches", "feed"]


class StepBatches(Dataset[list[PromptBatch]]):
    """What this process works through in each step: one batch for each accumulation step.

    Args:
        source: What targets are drawn from.
        settings: Of the run.
        plan: The look of the batches at a stage's ``image_size`` and ``num_targets``.
        rank: Of this process.
        world_size: How many share a step's images.
    """

    def __init__(
        self,
        source: MaskSource,
        settings: SegmenterTraining,
        plan: Callable[[int, int], BatchPlan],
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.source = source
        self.settings = settings
        self.plan = plan
        self.rank = rank
        self.world_size = world_size

    def __getitem__(self, step: int) -> list[PromptBatch]:
        stage, parts = self.settings.stage_at(step), self.settings.accumulation * self.world_size
        share = stage.num_images // parts
        first = self.rank * self.settings.accumulation
        plan = self.plan(stage.image_size, stage.num_targets)
        return [
            draw_batch(
                self.source,
                plan,
                seed=self.settings.seed,
                step=step,
                places=range((first + part) * share, (first + part + 1) * share),
            )
            for part in range(self.settings.accumulation)
        ]


def feed(batches: StepBatches, steps: range, *, num_workers: int) -> Iterator[list[PromptBatch]]:
    """The batches of some steps in order.

    Args:
        batches: What a step's batches are.
        steps: Which.
        num_workers: Processes that draw ahead; 0 draws here, when asked.
    """
    if num_workers == 0:
        return (batches[step] for step in steps)
    return iter(DataLoader(batches, batch_size=None, sampler=steps, num_workers=num_workers))
