"""Teaches an IoU head to judge masks that are not the model's own.

SAM's head predicts the IoU of the mask that SAM draws; fed a mask of somebody else's, it still speaks of its answer.
Here the foreign mask is the prompt, its true IoU the target, and only the head is trained, or the head and the token
that it reads. With the head alone, every mask that the model draws stays as it is; the token is seen by the mask
tokens, and moves them a little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, UInt8
from numpy import ndarray
from segment_anything.modeling import Sam
from torch import Tensor, nn

from arrcoc_sam._version import __version__
from arrcoc_sam.errors import DataError, InputError, TrainingError, UnsupportedModelError, explain
from arrcoc_sam.prompts import Prompts
from arrcoc_sam.segmenters.base import ImageEmbedding, Segmenter
from arrcoc_sam.segmenters.mask_scoring import looks_at_masks
from arrcoc_sam.segmenters.sam import SamSegmenter
from arrcoc_sam.training.iou_transfer_progress import TransferProgress
from arrcoc_sam.training.iou_transfer_report import TransferReport, compare_heads
from arrcoc_sam.training.schedule import Schedule

__all__ = ["IoUTransfer", "ScoredImage", "TransferSettings", "transfer_iou_head"]

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


@dataclass(frozen=True)
class TransferSettings:
    """How a head is taught.

    Attributes:
        part: "head", or "token+head": the IoU token that the head reads as well.
        prompt: What of the mask the model is shown: "mask", "mask+point", "mask+box" or "mask+point+box".
        token: Which of the head's outputs is taught; 0 is the one that SAM uses where a mask is fed.
        epochs: Passes over the masks.
        batch_size: Masks a step.
        learning_rate: Peak of AdamW; a cosine after a linear rise over the first tenth.
        weight_decay: Of AdamW.
        seed: Of the order of the masks.
    """

    part: Literal["head", "token+head"] = "head"
    prompt: Literal["mask", "mask+point", "mask+box", "mask+point+box"] = "mask+point"
    token: int = 0
    epochs: int = 60
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InputError: One is out of its range.
        """
        if self.token not in range(4):
            raise InputError(explain(f"token={self.token}", "0 to 3"))
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(explain(f"{name}={getattr(self, name)}", "at least 1"))
        if not 0 < self.learning_rate < float("inf") or not 0 <= self.weight_decay < float("inf"):
            came = f"learning_rate={self.learning_rate}, weight_decay={self.weight_decay}"
            raise InputError(explain(came, "finite numbers, the first above 0"))


@dataclass(frozen=True)
class IoUTransfer:
    """The taught model and what it learned.

    Attributes:
        model: A model whose head judges the masks that it is shown.
        report: On held-out images.
    """

    model: Sam
    report: TransferReport


def transfer_iou_head(
    segmenter: Segmenter,
    train: Iterable[ScoredImage],
    held_out: Iterable[ScoredImage],
    settings: TransferSettings | None = None,
    *,
    num_bootstrap: int = 1000,
    folder: str | Path | None = None,
    origin: Mapping[str, Any] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> IoUTransfer:
    """Fine-tunes the IoU head of a segmenter on foreign masks, and judges it before and after.

    With a folder a transfer that was killed goes on, to the same end: what the decoder said of the masks is kept for
    every 256 images (of part "head"; the other one needs the images), the head after each epoch. Taught otherwise, with
    another learning rate say, the masks need not be asked about again.

    Args:
        segmenter: Of segment-anything's class; its model is trained in place, and frozen again. Its
            ``checkpoint_hash`` is then another.
        train: Images to learn from, streamed once.
        held_out: Images to judge on, others than those.
        settings: How; the default :class:`TransferSettings`.
        num_bootstrap: Draws of the intervals.
        folder: Where the progress is kept; None: nowhere.
        origin: What images and masks depend on, as JSON takes it: progress is resumed only where it is the same.
        progress: Called with (stage, done, of how many).

    Returns:
        The model and the report.

    Raises:
        UnsupportedModelError: The segmenter is of another class.
        InputError: An image is in both parts.
        DataError: A part is empty.
        TrainingError: The loss is not finite, or the folder holds another transfer.
        OutputError: The folder can't be written.
    """
    chosen = settings or TransferSettings()
    if not isinstance(segmenter, SamSegmenter):
        came = f"{segmenter.name} is a {type(segmenter).__name__}"
        raise UnsupportedModelError(explain(came, "a segmenter of segment-anything's class: tiny or sam_vit_*"))
    report = progress or (lambda *_: None)
    taught = _TaughtOutput(segmenter, chosen.token)
    place = None if folder is None else Path(folder)
    depends = {"version": __version__, "initial": segmenter.checkpoint_hash, "origin": dict(origin or {})}
    asked = TransferProgress(place, depends | {name: getattr(chosen, name) for name in ("part", "prompt", "token")})
    kept = TransferProgress(place, depends | {"transfer": asdict(chosen)})
    learned = _encode(taught, train, chosen, "images to learn from", asked, report)
    judged = _encode(taught, held_out, chosen, "held-out images", asked, report)
    shared = set(learned.names) & set(judged.names)
    if shared:
        came = f"{min(shared)} and {len(shared) - 1} others are in both parts"
        raise InputError(explain(came, "held-out images that nothing was learned from"))
    model = segmenter.model
    parameters = [*model.mask_decoder.iou_prediction_head.parameters()]
    if chosen.part == "token+head":
        parameters += [*model.mask_decoder.iou_token.parameters()]
    before = _predict(taught, judged, chosen)
    model.requires_grad_(False).eval()
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        losses = _teach(taught, learned, chosen, parameters, kept, report)
        after = _predict(taught, judged, chosen)
    finally:  # whatever came of it, the weights are others now
        model.requires_grad_(False)
        segmenter.weights_changed()
    return IoUTransfer(
        model, compare_heads(before, after, judged.true_iou, judged.names, losses, num_bootstrap, chosen.seed)
    )


class _TaughtOutput:
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
class _Encoded:
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
def _encode(
    taught: _TaughtOutput,
    images: Iterable[ScoredImage],
    settings: TransferSettings,
    stage: str,
    kept: TransferProgress,
    report: Callable[[str, int, int], None],
) -> _Encoded:
    whole, device = settings.part == "token+head", taught.segmenter.device
    parts: list[dict[str, Any]] = [] if whole else list(_kept_parts(kept, stage))
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
            prompts = Prompts.from_masks(scored.masks, taught.segmenter, kind=settings.prompt)
            inputs.append(taught.read(embedding, prompts).cpu())
            image_of += [len(in_memory)] * len(scored.masks)
            if whole:
                in_memory.append((embedding.to("cpu"), prompts.to("cpu")))
            names += [scored.name] * len(scored.masks)
            true_iou.append(torch.from_numpy(scored.true_iou).float())
        report(stage, done, total or done + 1)
        if not whole and done % _KEEP_EVERY == 0:
            part = {"names": names, "true_iou": true_iou, "inputs": inputs}
            kept.save(_part_name(stage, len(parts)), done, part)
            parts.append(part)
            names, true_iou, inputs = [], [], []
    parts.append({"names": names, "true_iou": true_iou, "inputs": inputs})
    names, true_iou, inputs = ([one for part in parts for one in part[key]] for key in ("names", "true_iou", "inputs"))
    if not names:
        raise DataError(explain(f"no {stage}", "at least one image with masks"))
    return _Encoded(
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


def _teach(
    taught: _TaughtOutput,
    data: _Encoded,
    settings: TransferSettings,
    parameters: Sequence[nn.Parameter],
    kept: TransferProgress,
    report: Callable[[str, int, int], None],
) -> tuple[float, ...]:
    """Squared error of the taught output, mask by mask in a new order each epoch; image by image with the token."""
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    batches = [_batches(data, settings, epoch) for epoch in range(settings.epochs)]
    total = sum(len(epoch) for epoch in batches)
    curve = Schedule(total, "cosine", warmup_steps=max(1, total // 10))
    step, losses, first = 0, [], 0
    name = f"head_{kept.digest}"
    if (state := kept.load(name)) is not None:
        first, losses = state["step"], state["losses"]
        step = sum(len(epoch) for epoch in batches[:first])
        optimizer.load_state_dict(state["optimizer"])
        with torch.no_grad():
            for parameter, value in zip(parameters, state["parameters"], strict=True):
                parameter.copy_(value)
    for number, epoch in enumerate(batches[first:], start=first):
        errors = 0.0
        for rows in epoch:
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * curve(step)
            loss = nn.functional.mse_loss(_outputs(taught, data, rows, settings), data.true_iou[rows])
            if not torch.isfinite(loss):
                raise TrainingError(
                    explain(f"the loss is {float(loss)} at step {step}", mend="lower the learning rate")
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            errors += float(loss.detach()) * len(rows)
            step += 1
        losses.append(errors / len(data.names))
        learned = [parameter.detach().cpu() for parameter in parameters]
        parts = {"losses": losses, "optimizer": optimizer.state_dict(), "parameters": learned}
        kept.save(name, number + 1, parts)
        report("epochs", number + 1, settings.epochs)
    return tuple(losses)


def _batches(data: _Encoded, settings: TransferSettings, epoch: int) -> list[list[int]]:
    """Rows of each step of an epoch; with the token, whole images."""
    rng = np.random.default_rng([settings.seed, epoch])
    if settings.part == "head":
        order = rng.permutation(len(data.names)).tolist()
        return [order[start : start + settings.batch_size] for start in range(0, len(order), settings.batch_size)]
    image_of = np.array(data.image_of)
    batches: list[list[int]] = [[]]
    for image in rng.permutation(len(data.images)):
        if batches[-1] and len(batches[-1]) + (image_of == image).sum() > settings.batch_size:
            batches.append([])
        batches[-1] += np.flatnonzero(image_of == image).tolist()
    return batches


def _outputs(
    taught: _TaughtOutput, data: _Encoded, rows: Sequence[int], settings: TransferSettings
) -> Float[Tensor, " k"]:
    """The taught output for some masks; with the token, for all masks of some images, in order."""
    if settings.part == "head":
        return taught(data.inputs[list(rows)])
    images, device = dict.fromkeys(data.image_of[row] for row in rows), taught.segmenter.device
    asked = ((embedding.to(device), prompts) for embedding, prompts in (data.images[image] for image in images))
    return taught(torch.cat([taught.read(embedding, prompts) for embedding, prompts in asked]))


@torch.no_grad()
def _predict(taught: _TaughtOutput, data: _Encoded, settings: TransferSettings) -> Float64[ndarray, "K 1"]:
    predicted = _outputs(taught, data, range(len(data.names)), settings)
    return predicted.double().cpu().numpy()[:, None]
