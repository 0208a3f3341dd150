"""SAM's mask decoder in bfloat16 and with few passes over memory, for training: equal algebra, half the time on a CPU.

Under autocast the transformer's normalisation answers in float32 and every projection of the image's tokens rounds them
anew; here the weights are rounded once a step and all runs in bfloat16. The cross attentions are folded
(:mod:`arrcoc_sam.segmenters.folded`), and the upscaling, whose transposed convolutions don't overlap, is two matrix
products on positions that keep their channels side by side; only the logits are put in their places.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from segment_anything.modeling import MaskDecoder, Sam
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn
from torch.func import functional_call

from arrcoc_sam.segmenters.decoder_path import stock_decoder
from arrcoc_sam.segmenters.folded import can_fold, folded_transformer
from arrcoc_sam.segmenters.mask_scoring import scored_iou
from arrcoc_sam.segmenters.prompt_content import with_content

__all__ = ["ReducedDecoder", "lean_decoder"]


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
        self.lean = _is_lean(decoder)

    def forward(
        self, embeddings: Tensor, image_pe: Tensor, sparse: Tensor, dense: Tensor, tokens: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        if self.lean:
            return lean_decoder(self.decoder, embeddings, image_pe, sparse, dense, tokens)
        return stock_decoder(self.decoder, embeddings, image_pe, sparse, dense, tokens, reduced=nullcontext)


def _is_lean(decoder: MaskDecoder) -> bool:
    """Whether transformer and upscaling are segment-anything's own."""
    kinds = [nn.ConvTranspose2d, LayerNorm2d, nn.GELU, nn.ConvTranspose2d, nn.GELU]
    upscaling: Any = decoder.output_upscaling
    return can_fold(decoder.transformer) and [type(layer) for layer in upscaling] == kinds


def lean_decoder(
    decoder: MaskDecoder,
    image_embeddings: Float[Tensor, "k C h w"],
    image_pe: Float[Tensor, "1 C h w"],
    sparse: Float[Tensor, "k n C"],
    dense: Float[Tensor, "k C h w"],
    tokens: Sequence[int],
) -> tuple[Float[Tensor, "k m H W"], Float[Tensor, "k m"]]:
    """What :func:`~arrcoc_sam.segmenters.sam.stock_decoder` gives, in the dtype of weights and embeddings.

    The key biases of folded attentions, whose gradient is 0, get none.
    """
    learned = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    sparse = with_content(decoder, image_embeddings, image_pe, sparse)
    queries = torch.cat([learned.expand(len(sparse), -1, -1), sparse], dim=1)
    transformer: Any = decoder.transformer
    answers = [0, *(1 + token for token in tokens)]
    queries, keys = folded_transformer(transformer, image_embeddings + dense, image_pe, queries, answers)
    mlps = decoder.output_hypernetworks_mlps
    weights = torch.stack([mlps[token](queries[:, 1 + row]) for row, token in enumerate(tokens)], dim=1)
    logits = _upscaled_products(decoder.output_upscaling, keys, weights, image_embeddings.shape[-2:]).float()
    predicted_iou = decoder.iou_prediction_head(queries[:, 0])[:, list(tokens)].float()
    return logits, scored_iou(decoder, logits, predicted_iou, tokens)


def _upscaled_products(
    upscaling: Any, keys: Float[Tensor, "k n C"], weights: Float[Tensor, "k m c"], grid_hw: Sequence[int]
) -> Float[Tensor, "k m H W"]:
    """``weights @ upscaling(keys)``, each position's 4 × 4 pixels side by side until the end."""
    first, norm, _, second, _ = upscaling
    count, positions, _ = keys.shape
    pixels = _four_pixels(first, keys).reshape(count, 4 * positions, -1)
    pixels = F.gelu(F.layer_norm(pixels, pixels.shape[-1:], norm.weight, norm.bias, norm.eps))
    pixels = _four_pixels(second, pixels).reshape(count, 16 * positions, -1)
    products = F.gelu(pixels) @ weights.transpose(1, 2)  # (k, 16 n, m)
    height, width = grid_hw
    placed = products.reshape(count, height, width, 2, 2, 2, 2, -1).permute(0, 7, 1, 3, 5, 2, 4, 6)
    return placed.reshape(count, -1, 4 * height, 4 * width)


def _four_pixels(upscaling: Any, positions: Float[Tensor, "k n c"]) -> Float[Tensor, "k n o"]:
    """A transposed 2 × 2 convolution of stride 2: two pixels down, two across, output channels, side by side."""
    weight = upscaling.weight.permute(2, 3, 1, 0).flatten(0, 2)
    return F.linear(positions, weight, upscaling.bias.repeat(4))
