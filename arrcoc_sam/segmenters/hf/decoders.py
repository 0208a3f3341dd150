"""The mask decoders of transformers' SAM families by their own submodules: one embedding a prompt, any mask tokens.

Their ``forward`` is not used, for what it does besides: it answers the three multimask tokens or the single one, never
all four; SAM 2's replaces the single mask by another token's where it is unstable; SAM-HQ's sorts the three by their
predicted IoU, so that nobody knows which token is which; and SAM-HQ's (seen in transformers 4.57 and 5.23) forms the
masks from what goes *into* the transformer, rows and columns swapped, where the published decoder takes what comes out
of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from arrcoc_sam.segmenters.base import DecoderOutput

__all__ = ["DECODERS", "Decoder", "DecoderInput", "decode_hq", "decode_sam", "decode_sam2", "hq_features"]

Reduced: TypeAlias = Callable[[], AbstractContextManager[object]]
"""Makes the context that the transformer runs in (autocast); the rest runs in float32."""


class DecoderInput(NamedTuple):
    """What a mask decoder is asked with, one embedding a prompt.

    Attributes:
        features: ``image`` (k, C, h, w), the embedding of each prompt's image, and what else the decoder reads.
        image_pe: The positional encoding of the embedding's grid.
        sparse: Tokens of points and boxes; n may be 0.
        dense: What the mask prompts add to the embedding.
        reduced: The transformer's context.
    """

    features: Mapping[str, Tensor]
    image_pe: Float[Tensor, "1 C h w"]
    sparse: Float[Tensor, "k n C"]
    dense: Float[Tensor, "k C h w"]
    reduced: Reduced


Decoder: TypeAlias = Callable[[nn.Module, DecoderInput, Sequence[int]], DecoderOutput]


def decode_sam(decoder: nn.Module, given: DecoderInput, tokens: Sequence[int]) -> DecoderOutput:
    """SAM's decoder.

    Args:
        decoder: ``SamMaskDecoder``.
        given: Embeddings of images and prompts.
        tokens: Which mask tokens to answer with, in this order.

    Returns:
        Logits and raw predicted IoU, float32.
    """
    own: Any = decoder
    learned = torch.cat([own.iou_token.weight, own.mask_tokens.weight])
    queries, source = _transformed(own, learned, given)
    upscaled = _upscaled(own, source)
    logits = _masks(own, queries[:, 1:], upscaled, tokens)
    return DecoderOutput(logits, own.iou_prediction_head(queries[:, 0])[:, list(tokens)])


def decode_hq(
    decoder: nn.Module, given: DecoderInput, tokens: Sequence[int], *, sam_part: bool = False
) -> DecoderOutput:
    """SAM-HQ's decoder: every token's mask plus the one high-quality mask, tokens in their own order.

    The predicted IoU is the head's of the SAM part of the mask; SAM-HQ has none of the sum.

    Args:
        decoder: ``SamHQMaskDecoder``.
        given: As for :func:`decode_sam`; among the features ``hq`` (k, C/8, 4h, 4w) of :func:`hq_features`.
        tokens: Which mask tokens.
        sam_part: Leave the high-quality mask out: the masks that the predicted IoU speaks of.

    Returns:
        Logits and raw predicted IoU, float32.

    Reference:
        Ke et al. 2023, Segment Anything in High Quality; ``MaskDecoderHQ`` of SysCV/sam-hq, which answers the best of
        the three tokens only.
    """
    own: Any = decoder
    learned = torch.cat([own.iou_token.weight, own.mask_tokens.weight, own.hq_token.weight])
    queries, source = _transformed(own, learned, given)
    upscaled = _upscaled(own, source)
    logits = _masks(own, queries[:, 1:], upscaled, tokens)
    if sam_part:
        return DecoderOutput(logits, own.iou_prediction_head(queries[:, 0])[:, list(tokens)])
    fine = own.mask_conv2(own.activation(own.mask_norm(own.mask_conv1(upscaled)))) + given.features["hq"]
    hq_token = queries[:, 1 + len(own.mask_tokens.weight)]
    logits = logits + (own.hq_mask_mlp(hq_token)[:, None] @ fine.flatten(2)).unflatten(2, fine.shape[-2:])
    return DecoderOutput(logits, own.iou_prediction_head(queries[:, 0])[:, list(tokens)])


def hq_features(
    decoder: nn.Module, image: Float[Tensor, "N C h w"], early: Float[Tensor, "N h w D"]
) -> Float[Tensor, "N c H W"]:
    """SAM-HQ's fused features, which depend on the image alone: made once, when it is encoded.

    Args:
        decoder: ``SamHQMaskDecoder``.
        image: The embedding.
        early: The output of the ViT's first block with global attention.

    Returns:
        (N, C/8, 4h, 4w).
    """
    own: Any = decoder
    coarse = own.encoder_conv2(own.activation(own.encoder_norm(own.encoder_conv1(image))))
    detail = own.compress_vit_conv1(early.permute(0, 3, 1, 2))
    result: Tensor = coarse + own.compress_vit_conv2(own.activation(own.compress_vit_norm(detail)))
    return result


def decode_sam2(decoder: nn.Module, given: DecoderInput, tokens: Sequence[int]) -> DecoderOutput:
    """The decoder of SAM 2, EdgeTAM and SAM 3's tracker, without its switching of tokens by stability.

    Args:
        decoder: ``Sam2MaskDecoder`` or the like.
        given: As for :func:`decode_sam`; among the features ``stride_8`` (k, C/4, 2h, 2w) and ``stride_4``
            (k, C/8, 4h, 4w).
        tokens: Which mask tokens.

    Returns:
        Logits, predicted IoU (after the head's own sigmoid) and object scores (logits), float32.
    """
    own: Any = decoder
    learned = torch.cat([own.obj_score_token.weight, own.iou_token.weight, own.mask_tokens.weight])
    queries, source = _transformed(own, learned, given)
    upscaled = _upscaled(own, source, given.features["stride_8"], given.features["stride_4"])
    logits = _masks(own, queries[:, 2:], upscaled, tokens)
    predicted_iou = own.iou_prediction_head(queries[:, 1])[:, list(tokens)]
    return DecoderOutput(logits, predicted_iou, own.pred_obj_score_head(queries[:, 0])[:, 0])


DECODERS: Mapping[str, Decoder] = {"sam": decode_sam, "hq": decode_hq, "sam2": decode_sam2}
"""By ``SamFamily.decoder``."""


def _transformed(
    decoder: Any, learned: Tensor, given: DecoderInput
) -> tuple[Float[Tensor, "k n C"], Float[Tensor, "k C h w"]]:
    """Queries and embedding after the two-way transformer, which has an axis more here: prompts of one image."""
    source = given.features["image"] + given.dense
    queries = torch.cat([learned.expand(len(source), -1, -1), given.sparse], dim=1)
    with given.reduced():
        answered, seen = decoder.transformer(
            point_embeddings=queries[:, None],
            image_embeddings=source,
            image_positional_embeddings=given.image_pe,
            attention_similarity=None,
            target_embedding=None,
        )
    return answered[:, 0].float(), seen[:, 0].float().transpose(1, 2).reshape(source.shape)


def _upscaled(decoder: Any, source: Tensor, stride_8: Tensor | None = None, stride_4: Tensor | None = None) -> Tensor:
    """The embedding at four times its resolution, with the encoder's finer features where there are any."""
    upscaled = decoder.upscale_conv1(source)
    upscaled = upscaled if stride_8 is None else upscaled + stride_8
    upscaled = decoder.upscale_conv2(decoder.activation(decoder.upscale_layer_norm(upscaled)))
    upscaled = upscaled if stride_4 is None else upscaled + stride_4
    result: Tensor = decoder.activation(upscaled)
    return result


def _masks(decoder: Any, mask_tokens: Tensor, upscaled: Tensor, tokens: Sequence[int]) -> Float[Tensor, "k m H W"]:
    weights = [decoder.output_hypernetworks_mlps[token](mask_tokens[:, token]) for token in tokens]
    logits: Tensor = torch.stack(weights, dim=1) @ upscaled.flatten(2)
    return logits.reshape(*logits.shape[:2], *upscaled.shape[-2:])
