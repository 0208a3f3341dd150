"""Teaches an IoU head to judge masks that are not the model's own.

SAM's head predicts the IoU of the mask that SAM draws; fed a mask of somebody else's, it still speaks of its answer.
Here the foreign mask is the prompt, its true IoU the target, and only the head is trained, or the head and the token
that it reads. With the head alone, every mask that the model draws stays as it is; the token is seen by the mask
tokens, and moves them a little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float64
from numpy import ndarray
from segment_anything.modeling import Sam
from torch import Tensor, nn

from arrcoc_sam._version import __version__
from arrcoc_sam.errors import InputError, TrainingError, UnsupportedModelError, explain
from arrcoc_sam.segmenters.base import Segmenter
from arrcoc_sam.segmenters.sam import SamSegmenter
from arrcoc_sam.training.iou_transfer.masks import AskedMasks, MaskPrompt, ScoredImage, TaughtOutput, ask_about
from arrcoc_sam.training.iou_transfer.progress import TransferProgress
from arrcoc_sam.training.iou_transfer.report import TransferReport, compare_heads
from arrcoc_sam.training.schedule import Schedule

__all__ = ["IoUTransfer", "ScoredImage", "TransferSettings", "transfer_iou_head"]


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
    prompt: MaskPrompt = "mask+point"
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
    taught = TaughtOutput(segmenter, chosen.token)
    place = None if folder is None else Path(folder)
    depends = {"version": __version__, "initial": segmenter.checkpoint_hash, "origin": dict(origin or {})}
    asked = TransferProgress(place, depends | {name: getattr(chosen, name) for name in ("part", "prompt", "token")})
    kept = TransferProgress(place, depends | {"transfer": asdict(chosen)})
    ask = partial(ask_about, taught, prompt=chosen.prompt, keep_images=chosen.part != "head", kept=asked, report=report)
    learned = ask(train, "images to learn from")
    judged = ask(held_out, "held-out images")
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
        segmenter.judges = chosen.prompt
    return IoUTransfer(
        model, compare_heads(before, after, judged.true_iou, judged.names, losses, num_bootstrap, chosen.seed)
    )


def _teach(
    taught: TaughtOutput,
    data: AskedMasks,
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
                came = f"the loss is {loss.item()} at step {step}"
                raise TrainingError(explain(came, mend="lower the learning rate"))
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


def _batches(data: AskedMasks, settings: TransferSettings, epoch: int) -> list[list[int]]:
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
    taught: TaughtOutput, data: AskedMasks, rows: Sequence[int], settings: TransferSettings
) -> Float[Tensor, " k"]:
    """The taught output for some masks; with the token, for all masks of some images, in order."""
    if settings.part == "head":
        return taught(data.inputs[list(rows)])
    images, device = dict.fromkeys(data.image_of[row] for row in rows), taught.segmenter.device
    asked = ((embedding.to(device), prompts) for embedding, prompts in (data.images[image] for image in images))
    return taught(torch.cat([taught.read(embedding, prompts) for embedding, prompts in asked]))


@torch.no_grad()
def _predict(taught: TaughtOutput, data: AskedMasks, settings: TransferSettings) -> Float64[ndarray, "K 1"]:
    predicted = _outputs(taught, data, range(len(data.names)), settings)
    return predicted.double().cpu().numpy()[:, None]
