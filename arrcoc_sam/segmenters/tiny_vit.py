"""MobileSAM's image encoder: timm's TinyViT with the last stage at stride 16, and SAM's neck on top of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from segment_anything.modeling.common import LayerNorm2d
from timm.models.tiny_vit import TinyVit
from torch import Tensor, nn

__all__ = ["TinyViTEncoder"]


class TinyViTEncoder(nn.Module):
    """TinyViT-5M as MobileSAM has it: the third downsampling keeps the resolution, no classifier.

    Args:
        image_size: Side of the square input in pixels, a multiple of 16. The weights don't depend on it.
        embed_dim: Channels of the embedding.
        embed_dims: Channels of the four stages.
        depths: Blocks of the four stages.
        num_heads: Attention heads of the four stages; the first has convolutions only.
        window_sizes: Sides of the attention windows.

    Reference:
        Wu et al. 2022, TinyViT; Zhang et al. 2023, Faster Segment Anything (MobileSAM); ``TinyViT`` of
        ChaoningZhang/MobileSAM.
    """

    def __init__(
        self,
        image_size: int = 1024,
        embed_dim: int = 256,
        embed_dims: Sequence[int] = (64, 128, 160, 320),
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (2, 4, 5, 10),
        window_sizes: Sequence[int] = (7, 7, 14, 7),
    ) -> None:
        super().__init__()
        self.img_size = image_size
        trunk: Any = TinyVit(
            embed_dims=tuple(embed_dims),
            depths=tuple(depths),
            num_heads=tuple(num_heads),
            window_sizes=tuple(window_sizes),
            num_classes=0,
            drop_path_rate=0.0,
        )
        trunk.stages[3].downsample.conv2.conv.stride = (1, 1)
        self.patch_embed: nn.Module = trunk.patch_embed
        self.stages: nn.Module = trunk.stages
        self.neck = nn.Sequential(
            nn.Conv2d(embed_dims[-1], embed_dim, kernel_size=1, bias=False),
            LayerNorm2d(embed_dim),
            nn.Conv2d(embed_dim, embed_dim, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(embed_dim),
        )

    def forward(self, x: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B C S/16 S/16"]:
        """Embeds normalised, padded images.

        Args:
            x: (B, 3, S, S) as ``Sam.preprocess`` gives it.

        Returns:
            (B, embed_dim, S/16, S/16).
        """
        result: Tensor = self.neck(self.stages(self.patch_embed(x)))
        return result
