"""What the image shows under a prompt, told to the prompt's own token.

SAM's prompt encoder knows where a click is and not what lies there: the transformer has to look that up, in heads that
are wide enough in SAM. In a small decoder a head has 8 numbers to tell one place from all others. Here each prompt
token is given what the embedding holds at its place, read by the positional code that both carry: its product with the
codes of all cells is highest at the token's own place and falls from there (to the next cell of the embedded model by
about 4 in a frame of 256 px, by 8 in one of 192), so that a softmax over them is an interpolation.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from segment_anything.modeling import MaskDecoder
from torch import Tensor, nn

__all__ = ["PromptContent", "with_content"]


class PromptContent(nn.Module):
    """Adds to prompt tokens a projection of the embedding at their places.

    A new one changes nothing.

    Args:
        width: Channels of tokens and embedding.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, width)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(
        self,
        image_embeddings: Float[Tensor, "#k C h w"],
        image_pe: Float[Tensor, "1 C h w"],
        sparse: Float[Tensor, "k n C"],
    ) -> Float[Tensor, "k n C"]:
        """The tokens with what lies under them.

        Args:
            image_embeddings: Of the image of each prompt, or of the one image.
            image_pe: Positional code of the embedding's cells.
            sparse: Tokens of points and corners. One without a place, such as padding, is given a mixture of places,
                which the projection learns to tell from content.
        """
        with torch.autocast(sparse.device.type, enabled=False):  # scores of 64 and more need all their digits
            scores = sparse.float() @ image_pe.float().flatten(2)
            content = scores.softmax(dim=-1) @ image_embeddings.float().flatten(2).transpose(1, 2)
        added: Tensor = self.project(content.to(self.project.weight.dtype))
        return sparse + added.to(sparse.dtype)


def with_content(
    decoder: MaskDecoder,
    image_embeddings: Float[Tensor, "#k C h w"],
    image_pe: Float[Tensor, "1 C h w"],
    sparse: Float[Tensor, "k n C"],
) -> Float[Tensor, "k n C"]:
    """The prompt tokens as a decoder takes them: of a plain ``MaskDecoder`` as they are."""
    content = getattr(decoder, "prompt_content", None)
    return sparse if content is None else content(image_embeddings, image_pe, sparse)
