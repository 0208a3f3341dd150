"""What frozen backbones answered with, kept by weights and pixels: each image is worked through once a process."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b
from typing import TypeAlias

import torch
from jaxtyping import UInt8
from torch import Tensor

__all__ = ["MapMemory"]

Key: TypeAlias = tuple[bytes, torch.device, bytes]


class MapMemory:
    """Feature maps by weights and image.

    Args:
        most_bytes: Of maps that are kept; those that were not asked for the longest make room.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._maps: OrderedDict[Key, list[Tensor]] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._maps)

    def __call__(
        self, images: UInt8[Tensor, "B 3 S S"], weights: bytes, compute: Callable[[Tensor], list[Tensor]]
    ) -> list[Tensor]:
        """The maps (B, C, h, w) of some images; what is not known is computed in one batch.

        Args:
            images: Bytes; the same bytes are the same image.
            weights: What tells the backbone from others: its class, settings and weights.
            compute: Maps of images.
        """
        pixels = [image.cpu().numpy().tobytes() for image in images]
        keys = [(weights, images.device, blake2b(each, digest_size=16).digest()) for each in pixels]
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

    def _keep(self, key: Key, maps: list[Tensor]) -> None:
        self._maps[key] = maps
        self._bytes += sum(each.nbytes for each in maps)
        while self._bytes > self.most_bytes:
            _, dropped = self._maps.popitem(last=False)
            self._bytes -= sum(each.nbytes for each in dropped)
