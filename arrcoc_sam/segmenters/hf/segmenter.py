"""Segmenters of transformers: SAM, SAM-HQ, SAM 2, EdgeTAM and SAM 3's tracker through one adapter.

``load_segmenter("hf:<repository or folder>")`` makes one. Whatever the family, prompts mean the same and the tokens of
the candidates are the decoder's own: nothing is sorted, switched or dropped (:mod:`~arrcoc_sam.segmenters.hf.decoders`
says what would be), and every prompt brings the embedding of its own image.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tvf

from arrcoc_sam.geometry import ImageTransform
from arrcoc_sam.segmenters.base import DecoderOutput, ModelPrompts, Segmenter
from arrcoc_sam.segmenters.hf.decoders import DECODERS, DecoderInput, decode_hq, hq_features
from arrcoc_sam.segmenters.hf.families import SamFamily

__all__ = ["HuggingFaceSegmenter", "resize_squashed"]

_LAYER_NORM_EPS = 1e-5


class HuggingFaceSegmenter(Segmenter):
    """A segmenter on a SAM of transformers.

    Attributes:
        family: Which family it is of.
    """

    def __init__(
        self,
        model: nn.Module,
        family: SamFamily,
        *,
        name: str,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        """Wrap a model; see :class:`Segmenter`.

        The layer norms of SAM's and SAM-HQ's two-way transformer get the epsilon of segment-anything, 1e-5, in place:
        transformers builds them with 1e-6.

        Args:
            model: The model; of video classes the image part is used.
            family: Its family.
            name: What to call it in messages.
            device: "auto", a device, or None for where the model lies.
            dtype: Autocast of encoder and transformer, or None.
            mean: Of the pixels in [0, 1]; the family's by default.
            std: Likewise.
        """
        super().__init__(model, name=name, device=device, dtype=dtype)
        self.family = family
        self._mean = torch.tensor(tuple(mean or family.mean), device=self.device)[:, None, None]
        self._std = torch.tensor(tuple(std or family.std), device=self.device)[:, None, None]
        own: Any = self.model
        self._own = own
        self._decoder = DECODERS[family.decoder]
        if family.decoder != "sam2":
            for module in own.mask_decoder.transformer.modules():
                if isinstance(module, nn.LayerNorm):
                    module.eps = _LAYER_NORM_EPS

    @property
    def image_size(self) -> int:
        """Side of the model's square frame in pixels."""
        return int(self._own.prompt_encoder.input_image_size)

    @property
    def mask_input_size(self) -> tuple[int, int]:
        """Rows and columns of a mask prompt and of the logits that come back."""
        height, width = self._own.prompt_encoder.image_embedding_size
        return 4 * int(height), 4 * int(width)

    @property
    def scorer(self) -> HuggingFaceSegmenter:
        """This segmenter; of SAM-HQ, one of the same model that leaves the high-quality mask out of the sum."""
        if self.family.decoder != "hq":
            return self
        part = copy.copy(self)
        part._decoder = partial(decode_hq, sam_part=True)
        return part

    def pixel_values(self, image: UInt8[Tensor, "3 a b"]) -> Float[Tensor, "3 S S"]:
        """A resized image as the encoder takes it: normalised, and padded with zeros at the bottom and right."""
        values = (image.float() - 255 * self._mean) / (255 * self._std)
        height, width = values.shape[-2:]
        return nn.functional.pad(values, (0, self.image_size - width, 0, self.image_size - height))

    def _transform(self, original_hw: tuple[int, int]) -> ImageTransform:
        if self.family.framing == "letterbox":
            return ImageTransform.letterbox(original_hw, self.image_size)
        return ImageTransform.squash(original_hw, (self.image_size, self.image_size))

    def _resize(self, image: UInt8[np.ndarray, "H W 3"], transform: ImageTransform) -> UInt8[Tensor, "3 a b"]:
        if self.family.framing == "squash":
            return resize_squashed(image, self.image_size)
        height, width = transform.resized_hw
        resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1)

    def _encode(self, images: Sequence[UInt8[Tensor, "3 _ _"]]) -> Mapping[str, Tensor]:
        with self._full():
            pixels = torch.stack([self.pixel_values(image) for image in images])
        with self._reduced()():
            seen = self._own.vision_encoder(pixels)
        decoder = self._own.mask_decoder
        with self._full():
            if self.family.decoder == "sam":
                return {"image": seen.last_hidden_state.float()}
            if self.family.decoder == "hq":
                image = seen.last_hidden_state.float()
                return {"image": image, "hq": hq_features(decoder, image, seen.intermediate_embeddings[0].float())}
            stride_4, stride_8, image = (level.float() for level in seen.fpn_hidden_states[:3])
            return {
                "image": image + self._own.no_memory_embedding.reshape(1, -1, 1, 1),
                "stride_8": decoder.conv_s1(stride_8),
                "stride_4": decoder.conv_s0(stride_4),
            }

    def _decode(self, features: Mapping[str, Tensor], prompts: ModelPrompts, tokens: Sequence[int]) -> DecoderOutput:
        reduced = self._reduced()  # asked for here, where the caller's autocast is still on
        with self._full():
            sparse, dense = self._embed_prompts(prompts, len(features["image"]))
            image_pe = self._own.get_image_wide_positional_embeddings()
            given = DecoderInput(features, image_pe, sparse, dense, reduced)
            return self._decoder(self._own.mask_decoder, given, tokens)

    def _embed_prompts(
        self, prompts: ModelPrompts, count: int
    ) -> tuple[Float[Tensor, "k n C"], Float[Tensor, "k C h w"]]:
        """Tokens and dense embedding of k prompts.

        A mask alone has no token, as in the image predictors of segment-anything and SAM 2. (transformers' SAM 2 gives
        it two that say "not a point".)
        """
        encoder = self._own.prompt_encoder
        points, boxes = prompts.points_xy, prompts.boxes_xyxy
        sparse, dense = encoder(
            input_points=None if points is None else points[:, None],
            input_labels=None if prompts.labels is None else prompts.labels[:, None],
            input_boxes=None if boxes is None else boxes[:, None],
            input_masks=prompts.mask_logits,
        )
        tokens = dense.new_zeros(count, 0, dense.shape[1]) if sparse is None else sparse[:, 0]
        return tokens, dense


def resize_squashed(image: UInt8[np.ndarray, "H W 3"], size: int) -> UInt8[Tensor, "3 S S"]:
    """An image resized to a square, as transformers' processors of SAM 2 do it: bilinear, antialiased, in 8 bits."""
    # A copy of read-only memory, as Pillow's is, at which torch warns.
    pixels = torch.from_numpy(np.require(image, requirements=["C", "W"])).permute(2, 0, 1)
    resized: Tensor = tvf.resize(  # type: ignore[attr-defined]
        pixels, [size, size], interpolation=InterpolationMode.BILINEAR, antialias=True
    )
    return resized
