"""The embedded model: segment-anything's prompt encoder and mask decoder on a small convolutional encoder.

Its predicted IoU is corrected by what the masks look like (:mod:`arrcoc_sam.segmenters.mask_scoring`).

A demonstration model, trained from scratch by this package on its own procedural scenes; its weights ship inside the
package. It makes the demo, the tests and the tutorials run offline in seconds. Real work names a real checkpoint.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import torch.nn.functional as F
from jaxtyping import Float
from safetensors import safe_open
from segment_anything.modeling import ImageEncoderViT, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor, nn

from arrcoc_sam.errors import CheckpointError, explain
from arrcoc_sam.segmenters.mask_scoring import MaskScoringDecoder

__all__ = ["TinyEncoder", "build_tiny", "set_image_size", "tiny_weights_path", "trained_image_size"]

EMBED_DIM = 128
STRIDE = 8
IMAGE_SIZE = 192
"""Side in pixels of the square frame that the shipped weights were trained at."""


class _Residual(nn.Module):
    """Two 3×3 convolutions with batch normalisation, and the input added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x + self.body(x))


def _halve(width_in: int, width_out: int) -> nn.Sequential:
    """A 3×3 convolution of stride 2."""
    return nn.Sequential(
        nn.Conv2d(width_in, width_out, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width_out), nn.GELU()
    )


class TinyEncoder(nn.Module):
    """A residual network of strides 4 to 32, fused top-down into one map of stride 8.

    The coarse stages see the whole object, the fine ones its borders; the prompt's transformer then reads both in one
    place, as it does behind SAM's ViT.

    Args:
        image_size: Side of the square input in pixels, a multiple of 32. The weights don't depend on it.
        embed_dim: Channels of the embedding.
        widths: Channels at strides 4, 8, 16, 32.
        depths: Residual blocks at strides 4, 8, 16, 32.
    """

    def __init__(
        self,
        image_size: int = IMAGE_SIZE,
        embed_dim: int = EMBED_DIM,
        widths: tuple[int, int, int, int] = (48, 96, 128, 160),
        depths: tuple[int, int, int, int] = (2, 3, 3, 2),
    ) -> None:
        super().__init__()
        self.img_size = image_size
        self.stem = _halve(3, 24)
        widths_in = (24, *widths[:-1])
        self.stages = nn.ModuleList(
            nn.Sequential(_halve(w_in, w), *(_Residual(w) for _ in range(depth)))
            for w_in, w, depth in zip(widths_in, widths, depths, strict=True)
        )
        self.lateral = nn.ModuleList(nn.Conv2d(width, embed_dim, 1) for width in widths[1:])
        self.detail = nn.Conv2d(widths[0] * 4, embed_dim, 1)  # stride 4, folded into stride 8 without loss
        self.fuse = nn.Sequential(
            nn.Conv2d(embed_dim, embed_dim, 3, padding=1, bias=False),
            nn.BatchNorm2d(embed_dim),
            nn.GELU(),
            nn.Conv2d(embed_dim, embed_dim, 1),
        )

    def forward(self, x: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B C S/8 S/8"]:
        """Embeds normalised, padded images.

        Args:
            x: (B, 3, S, S) as ``Sam.preprocess`` gives it.

        Returns:
            (B, embed_dim, S/8, S/8).
        """
        features = []
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        fused = self.lateral[-1](features[-1])
        for lateral, feature in zip(self.lateral[-2::-1], features[-2:0:-1], strict=True):
            fused = lateral(feature) + F.interpolate(fused, size=feature.shape[-2:], mode="bilinear")
        fused = fused + self.detail(F.pixel_unshuffle(features[0], 2))
        result: Tensor = fused + self.fuse(fused)
        return result


def build_tiny(image_size: int = IMAGE_SIZE) -> Sam:
    """The embedded model with random weights, as segment-anything's own ``Sam``.

    Args:
        image_size: Side of the model's square frame in pixels, a multiple of 32.

    Returns:
        The model; ``SamPredictor`` and everything else written for ``Sam`` works with it.
    """
    grid = image_size // STRIDE
    sam = Sam(
        image_encoder=cast(ImageEncoderViT, TinyEncoder(image_size)),  # Sam uses img_size and forward of it, no more
        prompt_encoder=PromptEncoder(
            embed_dim=EMBED_DIM,
            image_embedding_size=(grid, grid),
            input_image_size=(image_size, image_size),
            mask_in_chans=16,
        ),
        mask_decoder=MaskScoringDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=EMBED_DIM, mlp_dim=512, num_heads=8),
            transformer_dim=EMBED_DIM,
            iou_head_depth=3,
            iou_head_hidden_dim=EMBED_DIM,
        ),
        pixel_mean=[123.675, 116.28, 103.53],
        pixel_std=[58.395, 57.12, 57.375],
    )
    return sam.eval()


def set_image_size(model: Sam, image_size: int) -> None:
    """Lets the embedded model work at another resolution, in place; no weight depends on it.

    Args:
        model: What :func:`build_tiny` made.
        image_size: Side of the square frame in pixels, a multiple of 32.
    """
    grid = image_size // STRIDE
    encoder: Any = model.image_encoder
    encoder.img_size = image_size
    prompts = model.prompt_encoder
    prompts.input_image_size = (image_size, image_size)
    prompts.image_embedding_size = (grid, grid)
    prompts.mask_input_size = (4 * grid, 4 * grid)


def tiny_weights_path() -> str:
    """Where the shipped weights lie (safetensors)."""
    return str(files("arrcoc_sam").joinpath("weights", "tiny.safetensors"))


def trained_image_size(path: str | Path) -> int:
    """The side of the frame, in pixels, that a file of weights names in its header; 192 where it names none.

    Args:
        path: A file of weights that can be read.

    Raises:
        CheckpointError: The header names no multiple of 32.
    """
    file = Path(path).expanduser()
    if file.suffix != ".safetensors":
        return IMAGE_SIZE
    with safe_open(file, "pt") as weights:
        named = (weights.metadata() or {}).get("image_size", str(IMAGE_SIZE))
    if not named.isdecimal() or int(named) < 32 or int(named) % 32:
        raise CheckpointError(explain(f"{file} names image_size={named!r} in its header", "a multiple of 32"))
    return int(named)
