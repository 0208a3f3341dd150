"""Segmenters of segment-anything's ``Sam`` class: SAM 1 in three sizes, the embedded model, and your own.

Preprocessing, coordinates and results are those of ``SamPredictor``. What differs is the decoder's batching; see
:mod:`arrcoc_sam.segmenters.decoder_path`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from segment_anything.modeling import Sam
from torch import Tensor

from arrcoc_sam.geometry import ImageTransform
from arrcoc_sam.segmenters.base import DecoderOutput, ModelPrompts, Segmenter
from arrcoc_sam.segmenters.decoder_path import DecoderPath, published_decoder, stock_decoder
from arrcoc_sam.segmenters.folded import FoldedDecoder
from arrcoc_sam.segmenters.lean_encoder import can_run_lean, lean_encoder

__all__ = ["DecoderPath", "SamSegmenter", "published_decoder", "stock_decoder"]


class SamSegmenter(Segmenter):
    """A segmenter on any ``segment_anything.modeling.Sam``.

    Attributes:
        decoder_path: How the mask decoder is run; every path gives the same numbers.

    Example:
        >>> from arrcoc_sam.segmenters.tiny import build_tiny
        >>> segmenter = SamSegmenter(build_tiny(), name="untrained")
        >>> embedding = segmenter.encode(np.zeros((60, 80, 3), dtype=np.uint8))
        >>> len(embedding), segmenter.transform_for((60, 80)).resized_hw
        (1, (192, 256))
    """

    model: Sam

    def __init__(
        self,
        model: Sam,
        *,
        name: str,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        decoder_path: DecoderPath | None = None,
    ) -> None:
        """Wrap a model; see :class:`Segmenter`.

        Args:
            model: The model.
            name: What to call it in messages.
            device: "auto", a device, or None for where the model lies.
            dtype: Autocast of encoder and transformer, or None.
            decoder_path: How the mask decoder is run; by default folded where that pays.
        """
        super().__init__(model, name=name, device=device, dtype=dtype)
        self._kept_pe: tuple[object, Tensor] | None = None
        self.decoder_path: DecoderPath = FoldedDecoder() if decoder_path is None else decoder_path

    @property
    def image_size(self) -> int:
        """Side of the model's square frame in pixels."""
        return int(self.model.image_encoder.img_size)

    @property
    def mask_input_size(self) -> tuple[int, int]:
        """Rows and columns of a mask prompt and of the logits that come back."""
        height, width = self.model.prompt_encoder.mask_input_size
        return int(height), int(width)

    def _transform(self, original_hw: tuple[int, int]) -> ImageTransform:
        return ImageTransform.letterbox(original_hw, self.image_size)

    def _resize(self, image: UInt8[np.ndarray, "H W 3"], transform: ImageTransform) -> UInt8[Tensor, "3 a b"]:
        height, width = transform.resized_hw
        resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1)

    def _encode(self, images: Sequence[UInt8[Tensor, "3 _ _"]]) -> Mapping[str, Tensor]:
        pixels = torch.stack([self.model.preprocess(image) for image in images])
        encoder = self.model.image_encoder
        with self._reduced()():
            embeddings = lean_encoder(encoder, pixels) if can_run_lean(encoder) else encoder(pixels)
        return {"image": embeddings.float()}

    def _image_pe(self) -> Float[Tensor, "1 C h w"]:
        """The positional encoding of the embedding's grid, worked out again when what it depends on has changed."""
        encoder: Any = self.model.prompt_encoder
        matrix = encoder.pe_layer.positional_encoding_gaussian_matrix
        key = (matrix.data_ptr(), matrix._version, matrix.device, encoder.image_embedding_size)
        if self._kept_pe is None or self._kept_pe[0] != key:
            with torch.inference_mode(False), torch.no_grad():  # whoever asks next may want gradients
                self._kept_pe = (key, encoder.get_dense_pe())
        return self._kept_pe[1]

    def _decode(self, features: Mapping[str, Tensor], prompts: ModelPrompts, tokens: Sequence[int]) -> DecoderOutput:
        encoder, points, labels = self.model.prompt_encoder, prompts.points_xy, prompts.labels
        reduced = self._reduced()  # asked for here, where the caller's autocast is still on
        with self._full():
            sparse, dense = encoder(
                points=None if points is None else (points, labels),
                boxes=prompts.boxes_xyxy,
                masks=prompts.mask_logits,
            )
            logits, predicted_iou = self.decoder_path(
                self.model.mask_decoder,
                features["image"],
                self._image_pe(),
                sparse,
                dense,
                tokens,
                reduced=reduced,
            )
        return DecoderOutput(logits, predicted_iou)
