"""The embedded model's mask decoder: segment-anything's, with two additions for its size.

Prompt tokens are told what the image shows at their places (:mod:`arrcoc_sam.segmenters.prompt_content`), and the
predicted IoU is corrected by what the masks look like (:mod:`arrcoc_sam.segmenters.mask_scoring`).
"""

from __future__ import annotations

from typing import Any

from segment_anything.modeling import MaskDecoder
from torch import Tensor, nn

from arrcoc_sam.segmenters.mask_scoring import MaskScoring, scored_iou
from arrcoc_sam.segmenters.prompt_content import PromptContent, with_content

__all__ = ["TinyDecoder"]


class TinyDecoder(MaskDecoder):
    """segment-anything's mask decoder with :class:`PromptContent` before it and :class:`MaskScoring` after it.

    ``SamPredictor`` and all that is written for ``MaskDecoder`` work with it. Arguments are those of ``MaskDecoder``.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.mask_scoring = nn.ModuleDict(
            {"single": MaskScoring(1), "several": MaskScoring(self.num_multimask_outputs)}
        )
        self.prompt_content = PromptContent(self.transformer_dim)

    def predict_masks(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Logits and corrected predicted IoU of all mask tokens, as ``MaskDecoder.predict_masks`` gives them."""
        sparse = with_content(self, image_embeddings, image_pe, sparse_prompt_embeddings)
        logits, predicted_iou = super().predict_masks(image_embeddings, image_pe, sparse, dense_prompt_embeddings)
        return logits, scored_iou(self, logits, predicted_iou, range(self.num_mask_tokens))
