"""SAM's mask decoder with fast cross attentions: the projections of the image side folded onto the token side.

What folding is, and what is done where it does not pay: :mod:`arrcoc_sam.segmenters.cross_attentions`. The same
weights, the same numbers up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from segment_anything.modeling import MaskDecoder
from torch import Tensor

from arrcoc_sam.errors import InputError, explain
from arrcoc_sam.segmenters.cross_attentions import FOLDED, POSITIONS_LAST, folding_pays
from arrcoc_sam.segmenters.decoder_path import Transform, run_decoder, stock_transformer
from arrcoc_sam.segmenters.two_way import can_cross, two_way
from arrcoc_sam.segmenters.upscaling import banded_masks, convolved_masks, is_plain

__all__ = ["FoldedDecoder", "folded_transformer", "positions_last_transformer"]


@dataclass(frozen=True)
class FoldedDecoder:
    """A decoder path that folds where this pays.

    Elsewhere positions lie along memory on a CPU, and on other devices the transformer runs as segment-anything has it;
    so it does while the decoder's weights are trained, or when something is wrapped around its layers or hooked into
    them. On a CPU masks are upscaled in bands (:mod:`arrcoc_sam.segmenters.upscaling`), but while weights are trained,
    or where the layers are not SAM's.

    Attributes:
        masks: False gives no masks: the logits are (k, m, 0, 0), predicted IoU is as ever. Upscaling and hypernetworks
            are skipped, unless predicted IoU depends on the masks, as the embedded model's does.
        max_tokens: Fold up to so many tokens (five of the decoder's own and those of the prompt); by default while that
            takes no more products: 17 tokens in SAM 1.

    Example:
        >>> from arrcoc_sam.segmenters.sam import SamSegmenter
        >>> from arrcoc_sam.segmenters.tiny import build_tiny
        >>> segmenter = SamSegmenter(build_tiny(), name="untrained", decoder_path=FoldedDecoder(max_tokens=7))
    """

    masks: bool = True
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 0:
            raise InputError(explain(f"max_tokens={self.max_tokens}", "at least 0, or None"))

    def __call__(
        self,
        decoder: MaskDecoder,
        image_embeddings: Float[Tensor, "k C h w"],
        image_pe: Float[Tensor, "1 C h w"],
        sparse: Float[Tensor, "k n C"],
        dense: Float[Tensor, "k C h w"],
        tokens: Sequence[int],
        *,
        reduced: Callable[[], AbstractContextManager[object]],
    ) -> tuple[Float[Tensor, "k m H W"], Float[Tensor, "k m"]]:
        """Logits and predicted IoU of some of the mask tokens, as :func:`run_decoder` gives them."""
        # A key bias drops out of the algebra and would be left without its gradient of 0, which data-parallel training
        # takes for an error; gradients to prompts and images flow through the folded code as well.
        trained = torch.is_grad_enabled() and any(weight.requires_grad for weight in decoder.parameters())
        banded = not trained and image_embeddings.device.type == "cpu" and is_plain(decoder.output_upscaling)
        num_tokens = 1 + decoder.num_mask_tokens + sparse.shape[1]
        return run_decoder(
            stock_transformer if trained else self._transform(decoder, num_tokens, image_embeddings.device),
            decoder,
            image_embeddings,
            image_pe,
            sparse,
            dense,
            tokens,
            reduced=reduced,
            upscale=banded_masks if banded else convolved_masks,
            masks=self.masks,
        )

    def _transform(self, decoder: MaskDecoder, num_tokens: int, device: torch.device) -> Transform:
        if not can_cross(decoder.transformer):
            return stock_transformer
        attention: Any = decoder.transformer.final_attn_token_to_image
        limit = self.max_tokens
        pays = folding_pays(attention, num_tokens) if limit is None else num_tokens <= limit
        if pays:
            return folded_transformer
        return positions_last_transformer if device.type == "cpu" else stock_transformer


folded_transformer = partial(two_way, FOLDED)
positions_last_transformer = partial(two_way, POSITIONS_LAST)
