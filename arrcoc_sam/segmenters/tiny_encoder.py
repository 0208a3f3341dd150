"""The embedded model's image encoder: convolutions for what is near, attention for what belongs together."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["TinyEncoder"]


class _Residual(nn.Module):
    """Two 3×3 convolutions with batch normalisation, and the input added.

    Args:
        width: Channels.
        last: No activation behind it, and a new one changes nothing.
    """

    def __init__(self, width: int, *, last: bool = False) -> None:
        super().__init__()
        self.last = last
        ending = nn.BatchNorm2d(width)
        if last:
            nn.init.zeros_(ending.weight)
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            ending,
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.body(x)
        return result if self.last else F.gelu(result)


def _halve(width_in: int, width_out: int) -> nn.Sequential:
    """A 3×3 convolution of stride 2."""
    return nn.Sequential(
        nn.Conv2d(width_in, width_out, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width_out), nn.GELU()
    )


class _Attention(nn.Module):
    """Every cell looks at every other: a transformer's layer that learns places by a depthwise convolution.

    A new one changes nothing.
    """

    def __init__(self, width: int, num_heads: int = 4, expansion: int = 3) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.place = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        narrow = nn.Linear(expansion * width, width)
        self.mlp = nn.Sequential(nn.Linear(width, expansion * width), nn.GELU(), narrow)
        for last in (self.place, self.out, narrow):
            for weights in last.parameters():
                nn.init.zeros_(weights)

    def forward(self, x: Tensor) -> Tensor:
        cells = (x + self.place(x)).flatten(2).transpose(1, 2)
        count, length, width = cells.shape
        heads = (count, length, 3, self.num_heads, width // self.num_heads)
        q, k, v = self.qkv(self.norm1(cells)).reshape(heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(cells.shape)
        cells = cells + self.out(attended)
        cells = cells + self.mlp(self.norm2(cells))
        placed: Tensor = cells.transpose(1, 2).reshape(x.shape)
        return placed


class TinyEncoder(nn.Module):
    """A residual network of strides 4 to 32, fused top-down into one map of stride 8 and worked over there.

    The coarse stages see the whole object, the fine ones its borders; attention at stride 16 lets what belongs together
    agree, wherever it lies. The prompt's transformer then reads both in one place, as it does behind SAM's ViT.

    Args:
        image_size: Side of the square input in pixels, a multiple of 32. The weights don't depend on it.
        embed_dim: Channels of the embedding.
        widths: Channels at strides 4, 8, 16, 32.
        depths: Residual blocks at strides 4, 8, 16, 32.
        attention: Layers of attention at stride 16.
        more: Residual blocks at stride 16 that begin as such that change nothing, before the attention.
        refinements: Likewise, of the embedding.
    """

    def __init__(
        self,
        image_size: int,
        embed_dim: int,
        widths: tuple[int, int, int, int] = (48, 96, 128, 160),
        depths: tuple[int, int, int, int] = (2, 3, 3, 0),
        attention: int = 8,
        more: int = 4,
        refinements: int = 2,
    ) -> None:
        super().__init__()
        self.img_size = image_size
        self.stem = _halve(3, 24)
        widths_in = (24, *widths[:-1])
        self.stages = nn.ModuleList(
            nn.Sequential(_halve(w_in, w), *(_Residual(w) for _ in range(depth)))
            for w_in, w, depth in zip(widths_in, widths, depths, strict=True)
        )
        self.deepened = nn.Sequential(*(_Residual(widths[2], last=True) for _ in range(more)))
        self.context = nn.Sequential(*(_Attention(widths[2]) for _ in range(attention)))
        self.lateral = nn.ModuleList(nn.Conv2d(width, embed_dim, 1) for width in widths[1:])
        self.detail = nn.Conv2d(widths[0] * 4, embed_dim, 1)  # stride 4, folded into stride 8 without loss
        self.fuse = nn.Sequential(
            nn.Conv2d(embed_dim, embed_dim, 3, padding=1, bias=False),
            nn.BatchNorm2d(embed_dim),
            nn.GELU(),
            nn.Conv2d(embed_dim, embed_dim, 1),
        )
        self.refine = nn.Sequential(*(_Residual(embed_dim, last=True) for _ in range(refinements)))

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
        features[2] = self.context(self.deepened(features[2]))
        fused = self.lateral[-1](features[-1])
        for lateral, feature in zip(self.lateral[-2::-1], features[-2:0:-1], strict=True):
            fused = lateral(feature) + F.interpolate(fused, size=feature.shape[-2:], mode="bilinear")
        fused = fused + self.detail(F.pixel_unshuffle(features[0], 2))
        result: Tensor = self.refine(fused + self.fuse(fused))
        return result
