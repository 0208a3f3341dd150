"""SAM's interactive training: a first prompt, clicks on the error, one loss for every round.

The first round has one prompt, and so three masks, of which the best one learns (minimum over masks); every later round
is fed the logits of the round before, detached, and learns through token 0. What else there is to choose says
:class:`arrcoc_sam.training.ClickRecipe`.

Reference: Kirillov et al. 2023, "Segment Anything", appendix A, "Training algorithm"; Ravi et al. 2024, "SAM 2",
appendix D.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from segment_anything.modeling import Sam
from torch import Tensor, nn

from arrcoc_sam.errors import InputError, explain
from arrcoc_sam.losses import functional as LF
from arrcoc_sam.masks.measures import iou_of_comparisons
from arrcoc_sam.prompts.clicks import sample_error_clicks
from arrcoc_sam.segmenters.decoder_path import stock_decoder
from arrcoc_sam.training.batches import PromptBatch
from arrcoc_sam.training.grouping import grouping_loss
from arrcoc_sam.training.meaning import expected_iou, matched_loss, what_is_meant
from arrcoc_sam.training.recipe import SAM1_RECIPE, SAM2_RECIPE, ClickRecipe
from arrcoc_sam.training.reduced_decoder import ReducedDecoder

__all__ = ["SAM1_RECIPE", "SAM2_RECIPE", "ClickRecipe", "Decode", "InteractiveModel", "interactive_loss", "num_targets"]

FIGURES = ("mask_loss", "iou_loss", "oracle_iou", "final_iou")
"""What :func:`interactive_loss` tells beside the loss."""

_SINGLE, _SEVERAL = (0,), (1, 2, 3)  # tokens that answer a clear prompt and an ambiguous one
_PADDING_LOGIT = -10.0  # what mask prompts hold on padding


@runtime_checkable
class Decode(Protocol):
    """Logits (K, M, g, g) and predicted IoU (K, M) of M mask tokens: 0, 1 to 3, or all four."""

    def __call__(
        self, embeddings: Tensor, sparse: Tensor, dense: Tensor, tokens: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Decode K prompts, given for each the embedding of its image."""
        ...


class InteractiveModel(nn.Module):
    """A segmenter and the rounds around it as one module, so that its forward pass is the whole training step.

    Args:
        model: What is trained.
        recipe: Rounds and weights.
        autocast: bfloat16 for encoder and mask decoder; prompt encoder and losses stay float32.
    """

    def __init__(self, model: Sam, recipe: ClickRecipe, *, autocast: bool) -> None:
        super().__init__()
        self.model = model
        self.recipe = recipe
        self.autocast = autocast

    def forward(
        self, batch: PromptBatch, normalizers: Float[Tensor, " 2"]
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        """The loss of a batch; see :func:`interactive_loss`.

        Args:
            batch: Of this process.
            normalizers: The two numbers of :func:`num_targets`, of the whole step.
        """
        model, recipe = self.model, self.recipe
        every, those_decoded = normalizers
        reduced = partial(torch.autocast, batch.images.device.type, torch.bfloat16, enabled=self.autocast)
        frozen = not any(parameter.requires_grad for parameter in model.image_encoder.parameters())
        with torch.no_grad() if frozen else nullcontext(), reduced():
            embeddings = model.image_encoder(model.preprocess(batch.images))
        embeddings = embeddings.float()
        grouping = partial(grouping_loss, model, embeddings, batch, recipe, normalizer=every, reduced=reduced)
        if not recipe.transformer:
            return grouping()
        decoder = ReducedDecoder(model) if self.autocast else _Decoder(model)
        decoded = batch if recipe.decoded_targets is None else batch.first_of_each(recipe.decoded_targets)
        loss, figures = interactive_loss(model, embeddings, decoded, recipe, decode=decoder, normalizer=those_decoded)
        if recipe.grouping_weight > 0:
            grouped, seen = grouping()
            loss, figures["grouping_loss"] = loss + recipe.grouping_weight * grouped, seen["mask_loss"]
        return loss, figures


def num_targets(batch: PromptBatch, recipe: ClickRecipe) -> tuple[int, int]:
    """How many targets a batch has, and how many of them go through the decoder."""
    if recipe.decoded_targets is None:
        return len(batch), len(batch)
    return len(batch), int(torch.bincount(batch.image_index).clamp(max=recipe.decoded_targets).sum())


class _Decoder(nn.Module):
    """The model's mask decoder in the precision of its weights."""

    def __init__(self, model: Sam) -> None:
        super().__init__()
        self.decoder = model.mask_decoder
        self.image_pe = model.prompt_encoder.get_dense_pe()

    def forward(
        self, embeddings: Tensor, sparse: Tensor, dense: Tensor, tokens: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        return stock_decoder(self.decoder, embeddings, self.image_pe, sparse, dense, tokens, reduced=nullcontext)


def interactive_loss(
    model: Sam,
    embeddings: Float[Tensor, "B C e e"],
    batch: PromptBatch,
    recipe: ClickRecipe,
    *,
    decode: Decode,
    normalizer: Float[Tensor, ""] | float | None = None,
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """The loss of all rounds on one batch.

    Every target's losses are summed and divided by ``normalizer``. With the number of targets of all devices and
    accumulation steps in its place, the parts' losses add up to the loss of the whole.

    Args:
        model: The model whose prompt encoder is used.
        embeddings: (B, C, e, e) of the batch's images.
        batch: Images, targets, and the chance behind the prompts.
        recipe: Rounds and weights.
        decode: Runs the mask decoder, one embedding a prompt.
        normalizer: What sums over targets are divided by; the number of the batch's targets by default.

    Returns:
        The scalar loss, and detached figures for the log, normalised alike: ``mask_loss`` and ``iou_loss`` (as the loss
        over the rounds), ``oracle_iou`` (first round, best of its masks), ``final_iou`` (last round, token 0).
    """
    frame = float(batch.images.shape[-1])
    targets, truth = batch.targets, batch.targets > 0.5
    per_prompt = embeddings[batch.image_index]
    padding = ~batch.valid[batch.image_index][:, None]
    given = _given(batch, recipe)
    boxed = (batch.box_chance < recipe.box_probability) & ~given
    boxes = _noisy_boxes(batch.boxes_xyxy, batch.box_shift, recipe, frame)
    points, labels = batch.points_xy[:, None], torch.ones_like(batch.box_chance)[:, None]
    if batch.given_xy is not None:
        points = torch.where(given[:, None, None], batch.given_xy[:, None], points)
    single = given if recipe.multimask_boxes else given | boxed

    sums = {name: targets.new_zeros(()) for name in FIGURES}
    logits: Tensor | None = None
    clicks = (None, *recipe.bring_click(batch.pause_chance))
    for turn, brings_click in enumerate(clicks):
        if brings_click and logits is not None:
            point, label = _next_clicks(logits > 0, truth, batch.click_chance[:, turn - 1], recipe, frame)
            points, labels = torch.cat([points, point[:, None]], dim=1), torch.cat([labels, label[:, None]], dim=1)
        if turn == 1:  # the point of a foreign mask may be wrong as the mask is: a right click goes on
            points = torch.cat([batch.points_xy[:, None], points[:, 1:]], dim=1)
        sparse = _embed_prompts(model, points, labels, boxes, boxed)
        shown_to = list(_shown_tokens(single if turn == 0 else torch.ones_like(single)))
        tokens = [token for _, those in reversed(shown_to) for token in those]
        dense = _embed_previous(model, logits, len(targets))
        if turn == 0 and batch.given_logits is not None and given.any():
            dense = dense.clone()
            dense[given] = _embed_previous(model, batch.given_logits[given], int(given.sum()))
        all_logits, all_iou = decode(per_prompt, sparse, dense, tokens)
        all_logits = all_logits.float().masked_fill(padding, _PADDING_LOGIT)
        logits = torch.empty_like(targets)
        for rows, those in shown_to:
            first = tokens.index(those[0])
            columns = slice(first, first + len(those))
            shown, predicted = all_logits[rows][:, columns], all_iou[rows][:, columns].float()
            expected, mask_loss = None, None
            if turn == 0 and recipe.needs_meant:
                meant = what_is_meant(batch, rows, boxed | given)
                if recipe.expected_iou:
                    expected = expected_iou(shown.detach() > 0, meant)
                if recipe.supervise_meant and shown.shape[1] > 1:
                    mask_loss = matched_loss(shown, meant, recipe)
            answer = _judge(shown, predicted, targets[rows], recipe, expected, mask_loss)
            logits[rows] = answer.fed_back
            sums["mask_loss"] = sums["mask_loss"] + answer.mask_loss
            sums["iou_loss"] = sums["iou_loss"] + answer.iou_loss
            if turn == 0:
                sums["oracle_iou"] += answer.best_iou
            if turn == len(clicks) - 1:
                sums["final_iou"] += answer.best_iou
    if normalizer is None:
        normalizer = float(len(targets))
    over_rounds = len(clicks) if recipe.round_reduction == "mean" else 1
    for name in ("mask_loss", "iou_loss"):
        sums[name] = sums[name] / over_rounds
    means = {name: value / normalizer for name, value in sums.items()}
    loss = means["mask_loss"] + recipe.iou_weight * means["iou_loss"]
    return loss, {name: value.detach() for name, value in means.items()}


def _given(batch: PromptBatch, recipe: ClickRecipe) -> Bool[Tensor, " K"]:
    """Whether the first prompt of each target is a mask."""
    if batch.given is not None:
        return batch.given
    if recipe.given_mask_probability > 0:
        came = f"a batch without given masks, with given_mask_probability={recipe.given_mask_probability}"
        raise InputError(explain(came, mend="draw it by a plan with given_share"))
    return torch.zeros_like(batch.box_chance, dtype=torch.bool)


class _Answer(NamedTuple):
    """Sums over the prompts of one answer, and what is fed back of each."""

    mask_loss: Tensor
    iou_loss: Tensor
    best_iou: Tensor
    fed_back: Tensor


def _judge(
    logits: Float[Tensor, "k M g g"],
    predicted_iou: Float[Tensor, "k M"],
    targets: Float[Tensor, "k g g"],
    recipe: ClickRecipe,
    expected: Float[Tensor, "k M"] | None,
    matched: Float[Tensor, " k"] | None,
) -> _Answer:
    """The losses of one round, and the logits of the highest predicted IoU, detached."""
    with torch.no_grad() if matched is not None else nullcontext():
        mask_loss, winner = LF.min_over_masks_loss(
            logits, targets, focal_weight=recipe.focal_weight, dice_weight=recipe.dice_weight
        )
    if matched is not None:
        mask_loss = matched
    if expected is None:
        iou_loss = LF.iou_prediction_loss(
            predicted_iou,
            logits,
            targets,
            kind=recipe.iou_kind,
            supervise=recipe.iou_supervise,
            winner=winner,
            reduction="none",
        )
        per_prompt = iou_loss if iou_loss.ndim == 1 else iou_loss.mean(dim=1)
    else:
        error = predicted_iou - expected
        each = error**2 if recipe.iou_kind == "mse" else error.abs()
        per_prompt = each.mean(dim=1) if recipe.iou_supervise == "all" else each.gather(1, winner[:, None])[:, 0]
    shown = logits.detach()
    best_iou = iou_of_comparisons(shown > 0, (targets > 0.5)[:, None]).amax(dim=1)
    chosen = predicted_iou.detach().argmax(dim=1)
    fed_back = shown[torch.arange(len(chosen), device=chosen.device), chosen]
    return _Answer(mask_loss.sum(), per_prompt.sum(), best_iou.sum(), fed_back)


def _shown_tokens(single: Bool[Tensor, " K"]) -> Iterator[tuple[Int64[Tensor, " k"], tuple[int, ...]]]:
    """Prompts that are answered with tokens 1 to 3, and those with token 0 alone."""
    for chosen, tokens in ((~single, _SEVERAL), (single, _SINGLE)):
        rows = chosen.nonzero()[:, 0]
        if len(rows):
            yield rows, tokens


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


def _noisy_boxes(
    boxes: Float[Tensor, "K 4"], shift: Float[Tensor, "K 4"], recipe: ClickRecipe, frame: float
) -> Float[Tensor, "K 4"]:
    """Boxes whose corners moved by a share of the box's side, at most so many pixels, inside the frame."""
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    limit = recipe.box_noise_limit * frame
    noise = shift * recipe.box_noise * sides
    return (boxes + noise.clamp(-limit, limit)).clamp(0.0, frame - 1.0)


def _next_clicks(
    predicted: Bool[Tensor, "K g g"],
    truth: Bool[Tensor, "K g g"],
    chance: Float[Tensor, "K 4"],
    recipe: ClickRecipe,
    frame: float,
) -> tuple[Float[Tensor, "K 2"], Float[Tensor, " K"]]:
    """A uniform click in each error region, now and then in the target; its label is -1 where nothing is wrong."""
    anywhere = chance[:, 0] < recipe.truth_click_probability
    # against an empty prediction the whole target is the error
    cells, labels = sample_error_clicks(predicted & ~anywhere[:, None, None], truth, chance=chance[:, 1])
    # a cell of the low resolution spans several pixels: anywhere in it
    places = (cells.nan_to_num(0.0) + chance[:, 2:]) * (frame / truth.shape[-1]) - 0.5
    return places.clamp(0.0, frame - 1.0).float(), labels.float()
