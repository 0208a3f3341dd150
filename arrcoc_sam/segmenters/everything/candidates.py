"""Candidates of the automatic mode: what of a decoder's answers may become a mask, judged at low resolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from arrcoc_sam.masks import mask_boxes, stability_score
from arrcoc_sam.prompts import Prompts
from arrcoc_sam.segmenters.base import Segmenter
from arrcoc_sam.segmenters.embedding import ImageEmbedding
from arrcoc_sam.segmenters.everything.overlap import RoughBoxes
from arrcoc_sam.segmenters.everything.windows import LogitWindow, WindowUpscaler, cut_windows

__all__ = ["CandidateDecoder", "Candidates"]


class Candidates(NamedTuple):
    """n candidates of one image or crop, in its own pixels.

    Attributes:
        scores: (n,) predicted IoU.
        points_xy: (n, 2), the click that each answers.
        boxes: Between which bounds their boxes lie.
        windows: Their logits.
    """

    scores: Float[np.ndarray, " n"]
    points_xy: Float[np.ndarray, "n 2"]
    boxes: RoughBoxes
    windows: list[LogitWindow]

    @classmethod
    def cat(cls, parts: Sequence[Candidates]) -> Candidates:
        """All of several, in order."""
        return cls(
            np.concatenate([part.scores for part in parts]),
            np.concatenate([part.points_xy for part in parts]),
            RoughBoxes.cat([part.boxes for part in parts]),
            [window for part in parts for window in part.windows],
        )

    def best_first(self) -> list[int]:
        """Which candidate comes when: by score, of the same score as they were found."""
        order: list[int] = np.argsort(-self.scores, kind="stable").tolist()
        return order


@dataclass(frozen=True, eq=False)
class CandidateDecoder:
    """One image or crop, encoded, to be asked with clicks.

    Attributes:
        segmenter: Answers.
        embedding: Of the one image.
        upscaler: For the candidates' windows.
        min_predicted_iou: Candidates have to be predicted better than this; 0 keeps all.
        min_stability: Candidates have to be at least so stable at low resolution, padding left out; 0 keeps all.
    """

    segmenter: Segmenter
    embedding: ImageEmbedding
    upscaler: WindowUpscaler
    min_predicted_iou: float
    min_stability: float

    @classmethod
    def of(
        cls,
        segmenter: Segmenter,
        image: UInt8[np.ndarray, "H W 3"],
        *,
        min_predicted_iou: float,
        min_stability: float,
        stability_offset: float,
    ) -> CandidateDecoder:
        """Encode an image."""
        embedding = segmenter.encode(image)
        size_hw = segmenter.mask_input_size
        upscaler = WindowUpscaler.of(embedding.transforms[0], size_hw, device=segmenter.device, offset=stability_offset)
        return cls(segmenter, embedding, upscaler, min_predicted_iou, min_stability)

    def answer(self, points_xy: Float[Tensor, "n 2"]) -> Candidates:
        """The candidates among the three masks of each click."""
        answer = self.segmenter.decode(self.embedding, Prompts(points_xy=points_xy[:, None]))
        scores, logits = answer.predicted_iou.flatten(), answer.logits.flatten(0, 1)
        index = torch.arange(len(scores), device=scores.device)
        if self.min_predicted_iou > 0:
            index = (scores > self.min_predicted_iou).nonzero()[:, 0]
            logits = logits[index]
        transform = self.embedding.transforms[0]
        size_hw = (logits.shape[-2], logits.shape[-1])
        # Padding is at the bottom and the right: what shows the image begins at the first cell.
        rows, columns = ((transform.grid_valid(size_hw) >= 0.5).sum(axis).max() for axis in (0, 1))
        shown = logits[:, :rows, :columns]
        if self.min_stability > 0:
            stable = stability_score(shown, offset=self.upscaler.offset) >= self.min_stability
            index, logits = index[stable], logits[stable]
        cell_xy = [
            frame / count / scale
            for frame, count, scale in zip(transform.frame_hw[::-1], size_hw[::-1], transform.scale_xy, strict=True)
        ]
        near = logits[:, : rows + 1, : columns + 1]  # upscaling sees the first cells of the padding
        clicks = points_xy.repeat_interleave(answer.logits.shape[1], dim=0)
        cells = mask_boxes(near > self.upscaler.threshold).cpu().numpy()
        sure = self.upscaler.sure_boxes(near).cpu().numpy()
        return Candidates(
            scores=scores[index].cpu().numpy(),
            points_xy=clicks[index.cpu()].numpy(),
            boxes=RoughBoxes.of(sure, cells, cell_xy, transform.original_hw),
            windows=cut_windows(logits, self.upscaler.threshold - self.upscaler.offset),
        )
