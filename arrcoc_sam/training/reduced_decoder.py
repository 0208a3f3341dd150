"""SAM's mask decoder in bfloat16 and with few passes over memory, for training: equal algebra, half the time on a CPU.

Under autocast the transformer's normalisation answers in float32 and every projection of the image's tokens rounds them
anew; here the weights are rounded once a step and all runs in bfloat16. The cross attentions are folded
(:mod:`arrcoc_sam.segmenters.folded`), and the upscaling is matrix products (:mod:`arrcoc_sam.segmenters.upscaling`).
The key biases of folded attentions, whose gradient is 0, get none.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

from segment_anything.modeling import MaskDecoder, Sam
from torch import Tensor, nn
from torch.func import functional_call

from arrcoc_sam.segmenters.decoder_path import run_decoder, stock_decoder
from arrcoc_sam.segmenters.folded import folded_transformer
from arrcoc_sam.segmenters.two_way import can_cross
from arrcoc_sam.segmenters.upscaling import is_plain, multiplied_masks

__all__ = ["ReducedDecoder"]


class ReducedDecoder:
    """Decodes prompts in bfloat16 with the model's weights as they are now; gradients reach the weights.

    Args:
        model: Whose decoder it is; one that can't be folded runs as segment-anything has it.
    """

    def __init__(self, model: Sam) -> None:
        self._module = _Decoding(model.mask_decoder)
        self._image_pe = model.prompt_encoder.get_dense_pe().bfloat16()
        self._weights = {name: value.bfloat16() for name, value in self._module.named_parameters()}

    def __call__(
        self, embeddings: Tensor, sparse: Tensor, dense: Tensor, tokens: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Logits (K, M, g, g) and predicted IoU (K, M) of M mask tokens, float32."""
        given = (embeddings.bfloat16(), self._image_pe, sparse.bfloat16(), dense.bfloat16(), tuple(tokens))
        answer: tuple[Tensor, Tensor] = functional_call(self._module, self._weights, given)
        return answer


class _Decoding(nn.Module):
    def __init__(self, decoder: MaskDecoder) -> None:
        super().__init__()
        self.decoder = decoder
        self.lean = can_cross(decoder.transformer) and is_plain(decoder.output_upscaling)

    def forward(
        self, embeddings: Tensor, image_pe: Tensor, sparse: Tensor, dense: Tensor, tokens: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        given = (self.decoder, embeddings, image_pe, sparse, dense, tokens)
        if self.lean:
            return run_decoder(folded_transformer, *given, reduced=nullcontext, upscale=multiplied_masks)
        return stock_decoder(*given, reduced=nullcontext)
