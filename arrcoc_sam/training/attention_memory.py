"""What a frozen backbone answered with, kept by the image's pixels: each image is worked through once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b

import torch
from jaxtyping import UInt8
from torch import Tensor

__all__ = ["MapMemory"]


class MapMemory:
    """Feature maps by image.

    Args:
        most_bytes: Of maps that are kept; those that were not asked for the longest make room.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._maps: OrderedDict[tuple[torch.device, bytes], list[Tensor]] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._maps)

    def forget(self) -> None:
        """Drop everything, for when the weights have changed."""
        self._maps.clear()
        self._bytes = 0

    def __call__(self, images: UInt8[Tensor, "B 3 S S"], compute: Callable[[Tensor], list[Tensor]]) -> list[Tensor]:
        """The maps (B, C, h, w) of some images; what is not known is computed in one batch.

        Args:
            images: Bytes; the same bytes are the same image.
            compute: Maps of images.
        """
        keys = [(images.device, blake2b(image.cpu().numpy().tobytes(), digest_size=16).digest()) for image in images]
        known = {key: self._maps[key] for key in keys if key in self._maps}
        unknown = {key: place for place, key in enumerate(keys) if key not in known}
        if unknown:
            computed = compute(images[list(unknown.values())])
            for number, key in enumerate(unknown):
                known[key] = [each[number].clone() for each in computed]
                self._keep(key, known[key])
        for key in keys:
            if key in self._maps:
                self._maps.move_to_end(key)
        return [torch.stack(maps) for maps in zip(*(known[key] for key in keys), strict=True)]

    def _keep(self, key: tuple[torch.device, bytes], maps: list[Tensor]) -> None:
        self._maps[key] = maps
        self._bytes += sum(each.nbytes for each in maps)
        while self._bytes > self.most_bytes:
            _, dropped = self._maps.popitem(last=False)
            self._bytes -= sum(each.nbytes for each in dropped)
