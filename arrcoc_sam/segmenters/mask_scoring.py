"""Predicted IoU that also looks at the masks it is about.

SAM's head reads one token and never sees the masks. How they lie to each other says much about the IoU that an
ambiguous click can expect: three masks that agree leave little to choose, a small one in a large one leaves much; and a
mask that is unsure of its own border is rarely right. Here two small networks add to the head's prediction what the
geometry of the low-resolution masks tells: one for the three masks of an ambiguous prompt together, one for token 0.
The masks stay as they are.

Reference: the idea of judging a mask by the mask is that of Huang et al. 2019, "Mask Scoring R-CNN".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from segment_anything.modeling import MaskDecoder
from torch import Tensor, nn

from arrcoc_sam.errors import InputError, explain

__all__ = ["MaskScoring", "looks_at_masks", "mask_geometry", "scored_iou"]

_LEAST_AREA = 1e-4  # share of the frame; smaller masks have the same logarithm
_MARGIN = 1.0  # logits around the threshold, for the stability


class MaskScoring(nn.Module):
    """Corrects the predicted IoU of M masks that answer one prompt.

    A new one changes nothing.

    Args:
        num_masks: M.
        hidden_dim: Units of both hidden layers.
    """

    def __init__(self, num_masks: int, hidden_dim: int = 128) -> None:
        super().__init__()
        width = num_masks * 6 + num_masks * (num_masks - 1) * 3 // 2  # see mask_geometry
        last = nn.Linear(hidden_dim, num_masks)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(
            nn.Linear(width + num_masks, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, hidden_dim), nn.GELU(), last
        )

    def forward(self, geometry: Float[Tensor, "k F"], predicted_iou: Float[Tensor, "k M"]) -> Float[Tensor, "k M"]:
        """The corrected prediction.

        Args:
            geometry: Of the masks, from :func:`mask_geometry`.
            predicted_iou: What the head says; a gradient reaches it past the networks only.
        """
        seen = torch.cat([geometry, predicted_iou.detach()], dim=1).to(next(self.parameters()).dtype)
        corrected: Tensor = predicted_iou + self.layers(seen).to(predicted_iou.dtype)
        return corrected


def looks_at_masks(decoder: MaskDecoder) -> bool:
    """Whether a decoder's predicted IoU depends on its masks."""
    return hasattr(decoder, "mask_scoring")


def scored_iou(
    decoder: MaskDecoder,
    logits: Float[Tensor, "k m h w"],
    predicted_iou: Float[Tensor, "k m"],
    tokens: Sequence[int],
) -> Float[Tensor, "k m"]:
    """What a decoder says of the IoU of its masks, once it has seen them.

    Args:
        decoder: Of a plain ``MaskDecoder`` the prediction comes back as it is.
        logits: Of the masks of these tokens.
        predicted_iou: What the head read from its token.
        tokens: Which mask tokens: 0, all the others in order, or both.

    Raises:
        InputError: Only some of the masks of an ambiguous prompt, which are judged together.
    """
    if not looks_at_masks(decoder):
        return predicted_iou
    single, several = int(0 in tokens), decoder.num_multimask_outputs
    if list(tokens)[single:] not in ([], list(range(1, several + 1))) or list(tokens)[:single] not in ([], [0]):
        raise InputError(explain(f"tokens {tuple(tokens)}", f"0, all of 1 to {several} in order, or both"))
    scoring: Any = decoder.mask_scoring
    parts = []
    with torch.autocast(logits.device.type, enabled=False):  # pixels are counted: reduced floats can't
        if single:
            parts.append(scoring["single"](mask_geometry(logits[:, :1]), predicted_iou[:, :1]))
        if len(tokens) > single:
            parts.append(scoring["several"](mask_geometry(logits[:, single:]), predicted_iou[:, single:]))
    return torch.cat(parts, dim=1)


@torch.no_grad()
def mask_geometry(logits: Float[Tensor, "k M h w"]) -> Float[Tensor, "k F"]:
    """What M low-resolution masks look like, alone and to each other; every number in [0, 1], none with a gradient.

    Of each mask: its share of the frame, the logarithm of it, its stability (IoU of the masks at logits of 1 and -1),
    the IoU that its own probabilities expect, the mean probability inside, and its roundness (border of the square of
    its area over its own border, clipped). Of each two: IoU, and the share of either inside the other.
    """
    logits = logits.float()
    masks, probability = (logits > 0).flatten(2).float(), logits.sigmoid().flatten(2)
    area, pixels = masks.sum(dim=2), masks.shape[2]
    solid = area.clamp(min=1)
    share = area / pixels
    logarithm = 1 - share.clamp(min=_LEAST_AREA).log() / torch.tensor(_LEAST_AREA).log()
    outer, inner = ((logits > level).flatten(2).sum(dim=2) for level in (-_MARGIN, _MARGIN))
    inside = torch.linalg.vecdot(probability, masks)
    alone = [
        share,
        logarithm,
        inner / outer.clamp(min=1),
        inside / (probability.sum(dim=2) + area - inside).clamp(min=1e-6),
        inside / solid,
        (4 * solid.sqrt() / _border(logits > 0).clamp(min=1)).clamp(max=1),
    ]
    count = masks.shape[1]
    first, second = torch.triu_indices(count, count, offset=1, device=logits.device)
    shared = (masks @ masks.transpose(1, 2))[:, first, second]
    union = (area[:, first] + area[:, second] - shared).clamp(min=1)
    pairs = [shared / union, shared / solid[:, first], shared / solid[:, second]]
    return torch.cat([*alone, *pairs], dim=1)


def _border(masks: Tensor) -> Float[Tensor, "k M"]:
    """Sides of cells between a mask and what is not in it; the frame's own edge does not count."""
    across = (masks[..., 1:] != masks[..., :-1]).flatten(2).sum(dim=2)
    down = (masks[..., 1:, :] != masks[..., :-1, :]).flatten(2).sum(dim=2)
    return (across + down).float()
