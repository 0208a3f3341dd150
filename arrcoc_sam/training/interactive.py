"""SAM's interactive training: a first prompt, clicks on the error, one loss for every round.

The first round has one prompt, and so three masks, of which the best one learns (minimum over masks); every later round
adds a click from the error region, is fed the previous round's logits, detached, and learns through token 0.

Reference: Kirillov et al. 2023, "Segment Anything", appendix A, "Training algorithm".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from segment_anything.modeling import Sam
from torch import Tensor

from arrcoc_sam.losses import functional as LF
from arrcoc_sam.masks import mask_iou
from arrcoc_sam.prompts.clicks import sample_error_clicks
from arrcoc_sam.training.batches import SceneBatch

__all__ = ["ClickRecipe", "interactive_loss"]


@dataclass(frozen=True)
class ClickRecipe:
    """How prompts are simulated and what each term of the loss weighs.

    Attributes:
        num_rounds: Prompts in all, the first included.
        box_probability: Share of targets whose first prompt is a noisy box in place of a click.
        box_noise: Standard deviation of a box corner, as a share of the box's side.
        box_noise_limit: The largest shift of a corner, as a share of the model's frame (SAM: 20 of 1024 pixels).
        focal_weight: Weight of the focal loss.
        dice_weight: Weight of the Dice loss.
        iou_weight: Weight of the IoU head's squared error.
    """

    num_rounds: int = 3
    box_probability: float = 0.2
    box_noise: float = 0.1
    box_noise_limit: float = 20 / 1024
    focal_weight: float = 20.0
    dice_weight: float = 1.0
    iou_weight: float = 1.0


@runtime_checkable
class Decode(Protocol):
    """Logits (K, 4, g, g) and predicted IoU (K, 4) of all four mask tokens."""

    def __call__(self, embeddings: Tensor, sparse: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]: ...


def interactive_loss(
    model: Sam,
    embeddings: Float[Tensor, "B C e e"],
    batch: SceneBatch,
    recipe: ClickRecipe,
    *,
    generator: torch.Generator,
    decode: Decode,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """The loss of all rounds on one batch.

    Args:
        model: The model whose prompt encoder is used.
        embeddings: (B, C, e, e) of the batch's images.
        batch: Images, targets and first prompts.
        recipe: Rounds and weights.
        generator: Source of randomness for boxes and error clicks.
        decode: Runs the mask decoder, one embedding a prompt.

    Returns:
        The scalar loss, mean over prompts and rounds, and detached figures for the log: ``mask_loss``, ``iou_loss``,
        ``oracle_iou`` (first round, best of three), ``final_iou`` (last round, token 0).
    """
    num_images, num_targets = batch.targets.shape[:2]
    targets = batch.targets.flatten(0, 1)
    truth = targets > 0.5
    image_index = torch.arange(num_images, device=embeddings.device).repeat_interleave(num_targets)
    per_prompt = embeddings[image_index]
    frame = float(batch.images.shape[-1])

    boxed = torch.rand(len(targets), generator=generator) < recipe.box_probability
    boxes = _noisy_boxes(batch.boxes_xyxy.flatten(0, 1), recipe, frame, generator)
    points = batch.points_xy.flatten(0, 1)[:, None]
    labels = torch.ones(len(targets), 1)

    mask_loss, iou_loss, figures = targets.new_zeros(()), targets.new_zeros(()), {}
    logits = None
    for turn in range(recipe.num_rounds):
        sparse = _embed_prompts(model, points, labels, boxes, boxed)
        dense = _embed_previous(model, logits, len(targets))
        all_logits, all_iou = decode(per_prompt, sparse, dense)
        tokens = slice(1, None) if turn == 0 else slice(0, 1)
        shown, predicted = all_logits[:, tokens].float(), all_iou[:, tokens].float()
        terms = LF.multimask_loss(
            shown, targets, predicted, focal_weight=recipe.focal_weight, dice_weight=recipe.dice_weight
        )
        mask_loss, iou_loss = mask_loss + terms["mask_loss"], iou_loss + terms["iou_loss"]
        actual = mask_iou(shown.detach() > 0, truth[:, None]).nan_to_num(0.0)
        if turn == 0:
            figures["oracle_iou"] = actual.amax(dim=1).mean()
        figures["final_iou"] = actual.amax(dim=1).mean()
        if turn + 1 == recipe.num_rounds:
            break
        best = predicted.detach().argmax(dim=1)
        logits = shown.detach()[torch.arange(len(best)), best]
        clicks, signs = _error_clicks(logits > 0, truth, frame, generator)
        points, labels = torch.cat([points, clicks[:, None]], dim=1), torch.cat([labels, signs[:, None]], dim=1)
    rounds = recipe.num_rounds
    loss = (mask_loss + recipe.iou_weight * iou_loss) / rounds
    figures["mask_loss"], figures["iou_loss"] = mask_loss.detach() / rounds, iou_loss.detach() / rounds
    return loss, figures


def _embed_prompts(model: Sam, points: Tensor, labels: Tensor, boxes: Tensor, boxed: Tensor) -> Tensor:
    """Sparse embeddings (K, P + 1, C), the last a box's second corner or padding, as SAM's predictor lays them out.

    A prompt with a box carries its two corners where a prompt with a click carries the click and the padding point.
    """
    encoder = model.prompt_encoder
    clicked, _ = encoder((points, labels), None, None)
    cornered, _ = encoder(None, boxes, None)
    first = torch.where(boxed[:, None], cornered[:, 0], clicked[:, 0])
    last = torch.where(boxed[:, None], cornered[:, 1], clicked[:, -1])
    return torch.cat([first[:, None], clicked[:, 1:-1], last[:, None]], dim=1)


def _embed_previous(model: Sam, logits: Tensor | None, count: int) -> Tensor:
    """Dense embeddings (K, C, e, e) of the previous round's logits, or of "no mask"."""
    masks = None if logits is None else logits[:, None]
    dense: Tensor = model.prompt_encoder(None, None, masks)[1]
    return dense.expand(count, -1, -1, -1) if logits is None else dense


def _noisy_boxes(boxes: Tensor, recipe: ClickRecipe, frame: float, generator: torch.Generator) -> Tensor:
    """Boxes whose corners moved by a share of the box's side, at most so many pixels, inside the frame."""
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    limit = recipe.box_noise_limit * frame
    noise = torch.randn(boxes.shape, generator=generator) * recipe.box_noise * sides
    return (boxes + noise.clamp(-limit, limit)).clamp(0.0, frame - 1.0)


def _error_clicks(
    predicted: Bool[Tensor, "K g g"], truth: Bool[Tensor, "K g g"], frame: float, generator: torch.Generator
) -> tuple[Float[Tensor, "K 2"], Float[Tensor, " K"]]:
    """A uniform click in each error region, in the frame; its label is -1 where nothing is wrong."""
    cells, labels = sample_error_clicks(predicted, truth, generator=generator)
    # a cell of the low resolution spans several pixels: anywhere in it
    inside = torch.rand(cells.shape, generator=generator, dtype=cells.dtype)
    places = (cells.nan_to_num(0.0) + inside) * (frame / truth.shape[-1]) - 0.5
    return places.clamp(0.0, frame - 1.0).float(), labels.float()
