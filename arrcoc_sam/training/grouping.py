"""Dense training of the image encoder: SAM's decoder without its transformer, asked at many places of an image at once.

A mask token that a click leads to is, in the end, a vector that is multiplied with the upscaled embedding. Here it is
read off the embedding under the click: the encoder itself has to make the cells of one object agree, and its parts and
subparts too. An image is upscaled once for all clicks, so that one click more costs next to nothing, where the
transformer works through every cell of the image for each; the decoder then starts from an embedding that is grouped
already, and from its own upscaling and hypernetworks as they were trained here.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from segment_anything.modeling import MaskDecoder, Sam
from torch import Tensor

from arrcoc_sam.losses import functional as LF
from arrcoc_sam.masks.measures import iou_of_comparisons
from arrcoc_sam.training.batches import PromptBatch
from arrcoc_sam.training.meaning import matched_loss, what_is_meant
from arrcoc_sam.training.recipe import ClickRecipe

__all__ = ["grouping_loss", "read_masks"]

_PADDING_LOGIT = -10.0


def grouping_loss(
    model: Sam,
    embeddings: Float[Tensor, "B C e e"],
    batch: PromptBatch,
    recipe: ClickRecipe,
    *,
    normalizer: Float[Tensor, ""] | float,
    reduced: Callable[[], AbstractContextManager[object]],
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """The mask loss of one click each, answered past the decoder's transformer; the IoU head is not asked.

    Args:
        model: The model whose mask decoder is used.
        embeddings: (B, C, e, e) of the batch's images.
        batch: Images and targets; boxes and later clicks are not used.
        recipe: Weights of the loss.
        normalizer: What sums over targets are divided by.
        reduced: Makes the context that the decoder's layers run in (autocast).

    Returns:
        Loss and figures, as :func:`arrcoc_sam.training.interactive_loss` gives them.
    """
    frame = float(batch.images.shape[-1])
    with reduced():
        logits = read_masks(model.mask_decoder, embeddings, batch.image_index, batch.points_xy, frame)
    logits = logits.masked_fill(~batch.valid[batch.image_index][:, None], _PADDING_LOGIT)
    if recipe.supervise_meant:
        rows = torch.arange(len(batch), device=logits.device)
        losses = matched_loss(logits, what_is_meant(batch, rows, torch.zeros_like(rows, dtype=torch.bool)), recipe)
    else:
        losses, _ = LF.min_over_masks_loss(
            logits, batch.targets, focal_weight=recipe.focal_weight, dice_weight=recipe.dice_weight
        )
    best = iou_of_comparisons(logits.detach() > 0, (batch.targets > 0.5)[:, None]).amax(dim=1).sum() / normalizer
    loss = losses.sum() / normalizer
    return loss, {"mask_loss": loss.detach(), "iou_loss": torch.zeros_like(best), "oracle_iou": best, "final_iou": best}


def read_masks(
    decoder: MaskDecoder,
    embeddings: Float[Tensor, "B C e e"],
    image_index: Int64[Tensor, " K"],
    points_xy: Float[Tensor, "K 2"],
    frame: float,
) -> Float[Tensor, "K M g g"]:
    """The masks of an ambiguous click, their tokens read off the embedding at the click.

    Args:
        decoder: Of which upscaling and hypernetworks are used.
        embeddings: Of B images.
        image_index: The image of each click, ascending.
        points_xy: Clicks in pixels of the model's frame.
        frame: Its side in pixels.

    Returns:
        Logits of the M masks of each click, float32.
    """
    places = (2 * points_xy + 1) / frame - 1  # grid_sample's: -1 and 1 are the frame's edges
    upscaled = decoder.output_upscaling(embeddings).float()
    # as many clicks for each image as the one with the most has: no embedding is copied for each of its clicks
    order = torch.arange(len(places), device=places.device) - torch.searchsorted(image_index, image_index)
    clicks = places.new_zeros(len(embeddings), int(order.max()) + 1 if len(order) else 0, 2)
    clicks[image_index, order] = places
    read = F.grid_sample(embeddings, clicks[:, None], align_corners=False, padding_mode="border")[:, :, 0]
    tokens = read.transpose(1, 2)[image_index, order]
    weights = torch.stack([mlp(tokens) for mlp in decoder.output_hypernetworks_mlps[1:]], dim=1).float()
    with torch.autocast(embeddings.device.type, enabled=False):
        spread = weights.new_zeros(*clicks.shape[:2], *weights.shape[1:])
        spread[image_index, order] = weights
        every = spread.flatten(1, 2) @ upscaled.flatten(2)
        logits: Tensor = every.reshape(*spread.shape[:3], -1)[image_index, order]
    return logits.reshape(*logits.shape[:2], *upscaled.shape[-2:])
