"""Pictures in the square frame that attention is trained in."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image
from torch import Tensor

__all__ = ["to_frame"]


def to_frame(image: UInt8[ndarray, "H W 3"], side: int) -> UInt8[Tensor, "3 S S"]:
    """The whole picture resized to a square, bilinearly with antialiasing.

    Args:
        image: RGB.
        side: Of the frame, pixels.

    Example:
        >>> to_frame(np.full((4, 6, 3), 7, dtype=np.uint8), 2).unique().tolist()
        [7]
    """
    resized = np.array(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR))
    return torch.from_numpy(resized).permute(2, 0, 1).contiguous()
