"""Segmenter: images and prompts to candidates. The work that all model families share; an adapter adds the model.

``encode`` once, ``decode`` as often as there are prompts. Prompts of like signature go through the model together and
are never padded, so that a batch answers exactly what one prompt at a time would.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property, partial
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from arrcoc_sam.candidates import MaskCandidates
from arrcoc_sam.errors import EmbeddingMismatchError, InputError, ShapeError, describe, explain
from arrcoc_sam.geometry import ImageTransform
from arrcoc_sam.images import MAX_PIXELS, ImageInput, load_image
from arrcoc_sam.inputs import as_count, as_size, choose_device
from arrcoc_sam.prompts import Prompts
from arrcoc_sam.segmenters.embedding import ImageEmbedding
from arrcoc_sam.segmenters.model_prompts import ModelPrompts, check_image_index, check_inside
from arrcoc_sam.segmenters.weights import weights_hash

__all__ = [
    "MIN_IMAGE_SIDE",
    "DecoderOutput",
    "ImageEmbedding",
    "ModelPrompts",
    "Multimask",
    "Segmenter",
]

MIN_IMAGE_SIDE = 8
"""Pixels; a smaller image has no masks worth the name."""

Multimask: TypeAlias = bool | Literal["all"]
"""Which mask tokens: True the three of an ambiguous prompt (1-3), False the single mask (0), "all" all four."""

# Work of one step: pixels of the frames that are encoded, positions of the embeddings that are decoded.
_ENCODE_PIXELS_CPU, _ENCODE_PIXELS_GPU = 1 << 20, 1 << 22
_DECODE_CELLS_CPU, _DECODE_CELLS_GPU = 1 << 13, 1 << 18


class DecoderOutput(NamedTuple):
    """What a model answers to k prompts: float32, one column a token asked for.

    Attributes:
        logits: (k, m, h, w) over the model's whole frame.
        predicted_iou: (k, m), raw.
        object_score: (k,), or None of models without such a head.
    """

    logits: Float[Tensor, "k m h w"]
    predicted_iou: Float[Tensor, "k m"]
    object_score: Float[Tensor, " k"] | None = None


class Segmenter(ABC):
    """A promptable segmentation model: ``encode`` images, ``decode`` prompts.

    Attributes:
        model: The model itself.
        name: What it was loaded as.
        device: Where it runs.
        judges: How a head that was taught to judge the mask it is shown (``train iou-head``) is shown it, as a kind of
            prompt of ``Prompts.from_masks``; None of a head that speaks of the segmenter's own masks, as SAM's does.
        mask_logit_scale: The logit that stands for certainty in a mask prompt made of a bool mask.
    """

    mask_logit_scale: float = 10.0

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Wrap a model as it is; ``load_segmenter`` also puts it into eval mode and freezes it.

        Args:
            model: The model; moved to ``device``.
            name: What to call it in messages.
            device: "auto", a device, or None for where the model lies.
            dtype: ``torch.bfloat16`` or ``torch.float16`` runs encoder and transformer under autocast; prompts,
                logits and predicted IoU stay float32. None leaves it at float32, or at the caller's own autocast.

        Raises:
            InputError: A device that is not there, or another dtype.
        """
        if dtype not in (None, torch.float32, torch.bfloat16, torch.float16):
            raise InputError(explain(f"dtype={dtype!r}", "None, torch.float32, torch.bfloat16 or torch.float16"))
        self.name = name
        self.device = next(model.parameters()).device if device is None else choose_device(device)
        self.model = model.to(self.device)
        self._autocast_dtype = None if dtype == torch.float32 else dtype
        self.judges: str | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.image_size} px, {self.device}, {self.dtype})"

    # --- what an adapter adds ---------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def image_size(self) -> int:
        """Side of the model's square frame in pixels."""

    @property
    @abstractmethod
    def mask_input_size(self) -> tuple[int, int]:
        """Rows and columns of a mask prompt and of the logits that come back."""

    @abstractmethod
    def _transform(self, original_hw: tuple[int, int]) -> ImageTransform:
        """The map from an image of this size to the model's frame."""

    @abstractmethod
    def _resize(self, image: UInt8[np.ndarray, "H W 3"], transform: ImageTransform) -> UInt8[Tensor, "3 a b"]:
        """The image as the model's reference code resizes it, before normalisation and padding."""

    @abstractmethod
    def _encode(self, images: Sequence[UInt8[Tensor, "3 _ _"]]) -> Mapping[str, Tensor]:
        """Features of resized images on the model's device, float32, one row an image."""

    @abstractmethod
    def _decode(self, features: Mapping[str, Tensor], prompts: ModelPrompts, tokens: Sequence[int]) -> DecoderOutput:
        """Candidates for k prompts, given for each the row of features of its image."""

    # --- shared -----------------------------------------------------------------------------------------------------

    @property
    def dtype(self) -> torch.dtype:
        """What encoder and transformer compute in."""
        return self._autocast_dtype or torch.float32

    @cached_property
    def checkpoint_hash(self) -> str:
        """SHA-256 over the weights, as they were when it was first asked for, and the size of the frame.

        The same weights from different files have the same hash. It names embeddings, calibrations and caches.
        """
        return weights_hash(self.model, frame_hw=(self.image_size, self.image_size))

    @property
    def scorer(self) -> Segmenter:
        """The segmenter whose masks the predicted IoU speaks of, which takes the same embeddings: this one, mostly."""
        return self

    def weights_changed(self) -> None:
        """Forget the hash of the weights, after they were changed in place: embeddings made before are refused."""
        self.__dict__.pop("checkpoint_hash", None)

    def transform_for(self, original_hw: tuple[int, int]) -> ImageTransform:
        """The map from an image of this size to the model's frame.

        Raises:
            InputError: A side under 8 pixels, or a shape so long that its short side would be less than one cell of
                the logits.
        """
        height, width = as_size(original_hw, "original_hw")
        cell = self.image_size / self.mask_input_size[0]
        transform = self._transform((height, width))
        if min(height, width) < MIN_IMAGE_SIDE or min(transform.resized_hw) < cell:
            raise InputError(
                explain(
                    f"an image of width {width} and height {height} is too small or too narrow for {self.name}",
                    f"sides of at least {MIN_IMAGE_SIDE} pixels, and a long side of at most "
                    f"{int(self.image_size / cell)} times the short one",
                    "crop it, or enlarge it first",
                )
            )
        return transform

    def encode(
        self,
        images: ImageInput | Sequence[ImageInput],
        *,
        chunk_size: int | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> ImageEmbedding:
        """Embed images, once for any number of prompts.

        Args:
            images: One image or several, of any sizes: paths, PIL images, or H×W×3 uint8 RGB arrays.
            chunk_size: Images that go through the encoder at a time; by default as many as is fast on the device.
            max_pixels: Height × width above which an image is refused.

        Returns:
            The embedding; ``len`` is the number of images.

        Raises:
            ImageReadError: A file is missing or no image.
            ImageTooLargeError: More pixels than ``max_pixels``.
            InputError: No image, or one that is too small.
        """
        chunk = self._chunk_size(chunk_size, self.image_size**2, _ENCODE_PIXELS_CPU, _ENCODE_PIXELS_GPU)
        several: Sequence[ImageInput] = images if isinstance(images, (list, tuple)) else [images]  # type: ignore[list-item]
        if len(several) == 0:
            raise InputError(explain("no images", "at least one"))
        resized, transforms = [], []
        for image in several:
            pixels = load_image(image, max_pixels=max_pixels)
            transforms.append(self.transform_for((pixels.shape[0], pixels.shape[1])))
            resized.append(self._resize(pixels, transforms[-1]))
        parts = [
            self._encode([image.to(self.device) for image in resized[start : start + chunk]])
            for start in range(0, len(resized), chunk)
        ]
        features = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return ImageEmbedding(features, tuple(transforms), self.checkpoint_hash)

    def decode(
        self,
        embedding: ImageEmbedding,
        prompts: Prompts,
        multimask: Multimask = True,
        *,
        chunk_size: int | None = None,
    ) -> MaskCandidates:
        """Answer K prompts, which may be about any of the embedded images, in one call.

        Differentiable, in the model's parameters, the embedding and the mask prompts, unless under ``no_grad``.

        Args:
            embedding: Made by this segmenter.
            prompts: Points, boxes and masks, mixed as you like; K may be 0.
            multimask: True for tokens 1-3, False for token 0, "all" for all four.
            chunk_size: Prompts that go through the decoder at a time; by default as many as is fast on the device.

        Returns:
            Candidates in the order of the prompts, on the segmenter's device.

        Raises:
            EmbeddingMismatchError: The embedding is another segmenter's.
            InputError: An image, or bare points, in their place; a point or box outside its image, or an
                ``image_index`` without image.
            ShapeError: Mask prompts of another size than ``mask_input_size``.
        """
        tokens = self._tokens(multimask)
        self._check_prompts(embedding, prompts)
        cells = max(1, self.mask_input_size[0] * self.mask_input_size[1] // 16)
        chunk = self._chunk_size(chunk_size, cells, _DECODE_CELLS_CPU, _DECODE_CELLS_GPU)
        outputs: list[DecoderOutput] = []
        order: list[Tensor] = []
        for _, index, group in prompts.groups():
            for start in range(0, len(index), chunk):
                some = group[start : start + chunk]
                rows = {
                    name: values[some.image_index.to(values.device)].to(self.device)
                    for name, values in embedding.features.items()
                }
                outputs.append(self._decode(rows, ModelPrompts.of(some, embedding.transforms, self.device), tokens))
            order.append(index)
        return self._candidates(embedding, prompts, tokens, outputs, order)

    def _candidates(
        self,
        embedding: ImageEmbedding,
        prompts: Prompts,
        tokens: Sequence[int],
        outputs: Sequence[DecoderOutput],
        order: Sequence[Tensor],
    ) -> MaskCandidates:
        """Outputs of groups, back in the order of the prompts."""
        logits = torch.zeros(0, len(tokens), *self.mask_input_size, device=self.device)
        predicted_iou, object_score = logits.new_zeros(0, len(tokens)), None
        if outputs:
            place = torch.cat(list(order)).argsort().to(self.device)
            logits = _in_order([output.logits for output in outputs], place)
            predicted_iou = _in_order([output.predicted_iou for output in outputs], place)
            scores = [output.object_score for output in outputs if output.object_score is not None]
            object_score = _in_order(scores, place) if scores else None
        return MaskCandidates(
            logits=logits,
            predicted_iou=predicted_iou,
            token_index=torch.tensor(tokens, device=self.device),
            image_index=prompts.image_index.to(self.device),
            transforms=embedding.transforms,
            object_score=object_score,
        )

    def _check_prompts(self, embedding: ImageEmbedding, prompts: Prompts) -> None:
        given: tuple[object, object] = (embedding, prompts)
        if not isinstance(given[0], ImageEmbedding):
            mend = "decode(segmenter.encode(image), prompts)"
            raise InputError(explain(f"embedding is {describe(given[0])}", "what encode answers", mend))
        if not isinstance(given[1], Prompts):
            mend = "Prompts(points_xy=[[[x, y]]])"
            raise InputError(explain(f"prompts is {describe(given[1])}", "arrcoc_sam.Prompts", mend))
        if embedding.checkpoint_hash != self.checkpoint_hash:
            raise EmbeddingMismatchError(
                explain(
                    f"an embedding of the weights {embedding.checkpoint_hash[:12]}…",
                    f"one of {self.name}, {self.checkpoint_hash[:12]}…",
                    "encode the image with the segmenter that decodes it",
                )
            )
        check_image_index(prompts, len(embedding))
        logits = prompts.mask_logits
        if logits is not None and tuple(logits.shape[-2:]) != tuple(self.mask_input_size):
            expected = (
                f"(K, {self.mask_input_size[0]}, {self.mask_input_size[1]}), the low-resolution frame of {self.name}"
            )
            mend = "make mask prompts with Prompts.from_masks, or feed back candidates' logits"
            raise ShapeError(explain(f"mask_logits is {describe(logits)}", expected, mend))
        check_inside(prompts, embedding.sizes_hw)

    def _tokens(self, multimask: Multimask) -> tuple[int, ...]:
        tokens = {True: (1, 2, 3), False: (0,), "all": (0, 1, 2, 3)}
        if not isinstance(multimask, (bool, str)) or multimask not in tokens:
            raise InputError(explain(f"multimask={multimask!r}", "True, False or 'all'"))
        return tokens[multimask]

    def _chunk_size(self, given: int | None, size: int, budget_cpu: int, budget_gpu: int) -> int:
        if given is not None:
            return as_count(given, "chunk_size")
        return max(1, (budget_cpu if self.device.type == "cpu" else budget_gpu) // size)

    def _reduced(self) -> Callable[[], AbstractContextManager[object]]:
        """Makes the context around encoder and transformer: the segmenter's autocast, or else the caller's."""
        kind, dtype = self.device.type, self._autocast_dtype
        if dtype is None and torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
        return partial(torch.autocast, kind, dtype=dtype, enabled=dtype is not None)

    def _full(self) -> AbstractContextManager[object]:
        """Around everything else: float32, whatever autocast the caller is in."""
        return torch.autocast(self.device.type, enabled=False)


def _in_order(parts: Sequence[Tensor], place: Int[Tensor, " K"]) -> Tensor:
    """Rows of groups, back in the order of the prompts; not copied again where they are."""
    rows = torch.cat(list(parts))
    in_order = torch.equal(place, torch.arange(len(place), device=place.device))
    return rows if in_order else rows[place]
