"""The embedded model: segment-anything's prompt encoder and mask decoder on a small convolutional encoder.

What of it is our own: :mod:`arrcoc_sam.segmenters.tiny_encoder` and :mod:`arrcoc_sam.segmenters.tiny_decoder`.

A demonstration model, trained from scratch by this package on its own procedural scenes; its weights ship inside the
package. It makes the demo, the tests and the tutorials run offline in seconds. Real work names a real checkpoint.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from segment_anything.modeling import ImageEncoderViT, PromptEncoder, Sam, TwoWayTransformer

from arrcoc_sam.errors import CheckpointError, explain
from arrcoc_sam.segmenters.tiny_decoder import TinyDecoder
from arrcoc_sam.segmenters.tiny_encoder import TinyEncoder
from arrcoc_sam.segmenters.weights import header_of

__all__ = ["build_tiny", "set_image_size", "tiny_weights_path", "trained_image_size"]

EMBED_DIM = 128
STRIDE = 8
IMAGE_SIZE = 256
"""Side in pixels of the square frame where none is named; the shipped weights name theirs."""


def build_tiny(image_size: int = IMAGE_SIZE) -> Sam:
    """The embedded model with random weights, as segment-anything's own ``Sam``.

    Args:
        image_size: Side of the model's square frame in pixels, a multiple of 32.

    Returns:
        The model; ``SamPredictor`` and everything else written for ``Sam`` works with it.
    """
    grid = image_size // STRIDE
    sam = Sam(
        # Sam uses img_size and forward of it, no more
        image_encoder=cast(ImageEncoderViT, TinyEncoder(image_size, EMBED_DIM)),
        prompt_encoder=PromptEncoder(
            embed_dim=EMBED_DIM,
            image_embedding_size=(grid, grid),
            input_image_size=(image_size, image_size),
            mask_in_chans=16,
        ),
        mask_decoder=TinyDecoder(
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
    """The side of the frame, in pixels, that a file of weights names in its header; 256 where it names none.

    Args:
        path: A file of weights that can be read.

    Raises:
        CheckpointError: The header names no multiple of 32.
    """
    named = header_of(path).get("image_size", str(IMAGE_SIZE))
    if not named.isdecimal() or int(named) < 32 or int(named) % 32:
        raise CheckpointError(explain(f"{path} names image_size={named!r} in its header", "a multiple of 32"))
    return int(named)
