"""Masks of somebody else's, and what a decoder reads of them: what an IoU head is taught with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Bool, Float, Float64, UInt8
from numpy import ndarray
from torch import Tensor, nn

from arrcoc_sam.errors import DataError, explain
from arrcoc_sam.prompts import Prompts
from arrcoc_sam.segmenters.base import ImageEmbedding
from arrcoc_sam.segmenters.mask_scoring import looks_at_masks
from arrcoc_sam.segmenters.sam import SamSegmenter
from arrcoc_sam.training.iou_transfer.progress import TransferProgress

__all__ = ["AskedMasks", "MaskPrompt", "ScoredImage", "TaughtOutput", "ask_about"]

MaskPrompt: TypeAlias = Literal["mask", "mask+point", "mask+box", "mask+point+box"]

# Images between two states on disk.
_KEEP_EVERY = 256


@dataclass(frozen=True, eq=False)
class ScoredImage:
    """An image with masks of somebody else's, and how good they are.

    Attributes:
        name: What messages call it; the bootstrap draws images.
        image: (H, W, 3) uint8 RGB.
        masks: (n, H, W) bool, none empty; an image of no masks is passed over.
        true_iou: (n,) IoU of each mask with the object that it means, in [0, 1].
    """

    name: str
    image: UInt8[ndarray, "H W 3"]
    masks: Bool[ndarray, "n H W"]
    true_iou: Float64[ndarray, " n"]

    def __post_init__(self) -> None:
        """Check the masks.

        Raises:
            DataError: An empty one, or a true IoU outside [0, 1].
        """
        if not self.masks.any(axis=(1, 2)).all():
            raise DataError(explain(f"{self.name} has an empty mask", "masks of at least one pixel"))
        if not ((self.true_iou >= 0) & (self.true_iou <= 1)).all():
            raise DataError(explain(f"a true IoU of {self.name} lies outside [0, 1]", "intersections over unions"))


class TaughtOutput:
    """One column of the predicted IoU as a function of what the head reads and, where it is looked at, of the masks."""

    def __init__(self, segmenter: SamSegmenter, token: int) -> None:
        decoder: Any = segmenter.model.mask_decoder
        self.segmenter = segmenter
        self.head: nn.Module = decoder.iou_prediction_head
        self.scoring: nn.Module | None = None
        self.columns, self.column = slice(None), token
        if looks_at_masks(decoder):
            self.scoring = decoder.mask_scoring["single" if token == 0 else "several"]
            self.columns, self.column = (slice(0, 1), 0) if token == 0 else (slice(1, None), token - 1)

    def read(self, embedding: ImageEmbedding, prompts: Prompts) -> Float[Tensor, "k C"]:
        """What the output is made from, in the order of the prompts, which are all of one signature."""
        kept: dict[nn.Module, list[Tensor]] = {self.head: []}
        if self.scoring is not None:
            kept[self.scoring] = []
        hooks = [
            module.register_forward_pre_hook(lambda _, given, kept=into: kept.append(given[0].float()))
            for module, into in kept.items()
        ]
        try:
            self.segmenter.decode(embedding, prompts, multimask="all")
        finally:
            for hook in hooks:
                hook.remove()
        return torch.cat([torch.cat(parts) for parts in kept.values()], dim=1)

    def __call__(self, inputs: Float[Tensor, "k C"]) -> Float[Tensor, " k"]:
        """The output, differentiable in the head's weights and in the inputs."""
        if self.scoring is None:
            answer: Tensor = self.head(inputs)
        else:
            width = self.segmenter.model.mask_decoder.transformer_dim
            answer = self.scoring(inputs[:, width:], self.head(inputs[:, :width])[:, self.columns])
        return answer[:, self.column]


@dataclass(frozen=True, eq=False)
class AskedMasks:
    """Foreign masks as the decoder meets them.

    Attributes:
        names: Of the image of each mask.
        true_iou: (K,).
        inputs: (K, C): what the output is made from; fixed while only the head is trained.
        images: Each image's embedding and prompts, for when the token is trained too.
        image_of: (K,) row of ``images``.
    """

    names: tuple[str, ...]
    true_iou: Float[Tensor, " K"]
    inputs: Float[Tensor, "K C"]
    images: tuple[tuple[ImageEmbedding, Prompts], ...]
    image_of: tuple[int, ...]


@torch.no_grad()
def ask_about(
    taught: TaughtOutput,
    images: Iterable[ScoredImage],
    stage: str,
    *,
    prompt: MaskPrompt,
    keep_images: bool,
    kept: TransferProgress,
    report: Callable[[str, int, int], None],
) -> AskedMasks:
    """What the decoder says of all masks, gone on with where it was kept.

    Args:
        taught: The output.
        images: With their masks.
        stage: What messages call them.
        prompt: What of a mask the model is shown.
        keep_images: Keep embeddings in memory, and nothing on disk.
        kept: What a run before has done.
        report: Called with (stage, done, of how many).

    Raises:
        DataError: No image with masks.
    """
    device = taught.segmenter.device
    parts: list[dict[str, Any]] = [] if keep_images else list(_kept_parts(kept, stage))
    names: list[str] = []
    true_iou: list[Tensor] = []
    inputs: list[Tensor] = []
    in_memory: list[tuple[ImageEmbedding, Prompts]] = []
    image_of: list[int] = []
    total = len(images) if isinstance(images, Sequence) else 0
    done = parts[-1]["step"] if parts else 0
    for scored in _from(images, done):
        done += 1
        if len(scored.masks):
            embedding = taught.segmenter.encode(scored.image)
            prompts = Prompts.from_masks(scored.masks, taught.segmenter, kind=prompt)
            inputs.append(taught.read(embedding, prompts).cpu())
            image_of += [len(in_memory)] * len(scored.masks)
            if keep_images:
                in_memory.append((embedding.to("cpu"), prompts.to("cpu")))
            names += [scored.name] * len(scored.masks)
            true_iou.append(torch.from_numpy(scored.true_iou).float())
        report(stage, done, total or done + 1)
        if not keep_images and done % _KEEP_EVERY == 0:
            part = {"names": names, "true_iou": true_iou, "inputs": inputs}
            kept.save(_part_name(stage, len(parts)), done, part)
            parts.append(part)
            names, true_iou, inputs = [], [], []
    parts.append({"names": names, "true_iou": true_iou, "inputs": inputs})
    names, true_iou, inputs = ([one for part in parts for one in part[key]] for key in ("names", "true_iou", "inputs"))
    if not names:
        raise DataError(explain(f"no {stage}", "at least one image with masks"))
    return AskedMasks(
        tuple(names),
        torch.cat(true_iou).to(device),
        torch.cat(inputs).to(device),
        tuple(in_memory),
        tuple(image_of),
    )


def _part_name(stage: str, number: int) -> str:
    return f"{stage.replace(' ', '_')}_{number:05d}"


def _kept_parts(kept: TransferProgress, stage: str) -> Iterator[dict[str, Any]]:
    """What was kept of a stage, in order."""
    number = 0
    while (part := kept.load(_part_name(stage, number))) is not None:
        yield part
        number += 1


def _from(images: Iterable[ScoredImage], first: int) -> Iterator[ScoredImage]:
    """The images from a number on; what comes before is not read where they can be asked for by number."""
    if isinstance(images, Sequence):
        return (images[number] for number in range(first, len(images)))
    return islice(images, first, None)
