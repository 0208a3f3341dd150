"""Does the attention of each level sit at its level? By shell contrast, beyond what the click alone explains.

For a click, other images' attention is asked at the same place of theirs: V[j, i] is the contrast of image j's
attention at image i's click, on image i's masks. A blob around the click scores the same on all of them, so the mean
over j ≠ i takes it out, and what is left is what the model saw in the image.

A sample holds averages over cells, not pixels, so levels are clipped cell by cell, by the smaller share. A level that
counts lies inside the one above but for a tenth of it at most: of that tenth stays what shares a cell with the level
above. Metrics of masks clip pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from arrcoc_sam.errors import InputError, explain
from arrcoc_sam.granularity.claims import MIN_COMPUTED, Claims, image_scores, make_claims
from arrcoc_sam.granularity.metrics import shell_contrast
from arrcoc_sam.hierarchy.levels import LEVELS, clip_levels, measurable_shells, shell_masks
from arrcoc_sam.masks import area_average
from arrcoc_sam.training.attention.feed import SampleCollection, by_picture
from arrcoc_sam.training.attention.model import MultiScaleAttention, attention_of_logits
from arrcoc_sam.training.samples import AttentionSample, collate_samples

__all__ = ["LevelReport", "check_judged", "evaluate_levels", "measurable_samples"]


@dataclass(frozen=True, eq=False)
class LevelReport:
    """What the heads of a model attend to.

    Attributes:
        contrast: (n, 3, 3) of each image, head and level: shell contrast less its mean over other images, nats. NaN
            where the image has no such level.
        claims: The protocol of a claim, the three heads being the maps.
        area: (3,) mean share of the cells whose probability is over one half.
    """

    contrast: Float[Tensor, "n 3 3"]
    claims: Claims
    area: Float[Tensor, " 3"]

    @property
    def matched(self) -> Float[Tensor, "n 3"]:
        """The contrast of each head at its own level."""
        return self.contrast.diagonal(dim1=1, dim2=2)

    @property
    def level_matched(self) -> float:
        """The mean of :attr:`matched` over images and levels, each level weighing the same: the headline."""
        return float(self.matched.nanmean(0).mean())

    def figures(self) -> dict[str, float]:
        """The numbers to log."""
        matched = self.matched.nanmean(0)
        row = {"level_matched_contrast": self.level_matched}
        for number, level in enumerate(LEVELS):
            row[f"contrast_{level}"] = float(matched[number])
            row[f"z_{level}"] = float(self.claims.z[number, number])
            row[f"area_{level}"] = float(self.area[number])
        return row


def measurable_samples(samples: SampleCollection, rows: int, *, most: int | None = None) -> list[AttentionSample]:
    """One sample a picture with at least two levels that count, which a grid can tell apart.

    Args:
        samples: With targets that are finer than the grid, or as fine.
        rows: Of the finest grid.
        most: No more than this.
    """
    found: list[AttentionSample] = []
    order, starts = by_picture(samples.image_keys())
    for picture in np.argsort(order[starts[:-1]]):  # as they first come
        for row in order[starts[picture] : starts[picture + 1]]:
            sample = samples[int(row)]
            shells = area_average(shell_masks(clip_levels(sample.targets), sample.valid), (rows, rows))
            enough = torch.tensor([int(sample.valid.sum()) >= 2])
            if bool(measurable_shells(shells[None], sample.valid[None], enough)[0]):
                found.append(sample)
                break
        if most is not None and len(found) == most:
            break
    return found


def check_judged(samples: Sequence[AttentionSample]) -> None:
    """Refuse too few samples, before anything is trained that could then not be judged.

    Raises:
        InputError: Fewer than four.
    """
    if len(samples) < MIN_COMPUTED:
        came = f"{len(samples)} measurable samples to judge on"
        mend = "use more or larger pictures, or finer levels"
        raise InputError(explain(came, f"at least {MIN_COMPUTED}, one a picture", mend))


@torch.no_grad()
def evaluate_levels(model: MultiScaleAttention, samples: Sequence[AttentionSample], *, seed: int = 0) -> LevelReport:
    """Measure a model on samples of different pictures.

    Args:
        model: With three levels and point queries; evaluated in eval mode and put back.
        samples: One a picture, such as :func:`measurable_samples` finds.
        seed: Of permutations and halves.

    Returns:
        The report; its claims abstain with fewer than 30 pictures.

    Raises:
        InputError: Fewer than four samples, or not three levels.
    """
    check_judged(samples)
    if model.num_levels != len(LEVELS):
        raise InputError(explain(f"a model of {model.num_levels} levels", "three: whole, part, subpart"))
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    images = torch.stack([collate_samples([sample]).images[0] for sample in samples]).to(device)
    points = torch.stack([sample.point_xy for sample in samples]).to(device)
    pyramid = [
        torch.cat(parts) for parts in zip(*(model.encode(part) for part in torch.split(images, 32)), strict=True)
    ]
    num = len(samples)
    everywhere = torch.arange(num, device=device)
    values = torch.zeros(num, num, model.num_levels, len(LEVELS), dtype=torch.float64)
    area = torch.zeros(model.num_levels)
    for i, sample in enumerate(samples):
        logits = model.attend(pyramid, points[i].expand(num, 2), everywhere)
        masks, distinct = sample.targets[None].to(device), sample.valid[None].to(device)
        for head, level in enumerate(logits):
            contrast = shell_contrast(attention_of_logits(level), masks, distinct=distinct)
            values[:, i, head] = contrast[:, 0].double().cpu()
            area[head] += float((level[i] > 0).float().mean()) / num
    model.train(was_training)
    contrast = image_scores(values, torch.ones_like(values[0, 0]))
    return LevelReport(contrast, make_claims(values, seed=seed), area)
