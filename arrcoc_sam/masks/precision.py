"""Matrix products of masks keep their digits, whatever mode the caller is in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

__all__ = ["full_precision"]


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Autocast off: it would round what is multiplied, and counts of pixels, to half precision.

    Args:
        device: Where the products run; one that knows no autocast is left alone.

    Example:
        >>> mask = torch.ones(1, 300)
        >>> with torch.autocast("cpu", torch.bfloat16), full_precision(mask.device):
        ...     int(mask @ mask.T)
        300
    """
    known = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if known else nullcontext()
