"""What has to be known of a transformer to read its attention: where its blocks are and what its tokens mean.

One :class:`TokenLayout` a model, made by :func:`timm_layout` or :func:`transformers_layout`, which refuse every family
that the table in :mod:`arrcoc_sam.attention.families` does not list as supported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from arrcoc_sam.attention.families import Library, require_supported
from arrcoc_sam.errors import UnsupportedModelError, explain

__all__ = ["TokenLayout", "layout_of", "timm_layout", "transformers_layout"]


@dataclass(frozen=True)
class TokenLayout:
    """A model's tokens: prefix tokens first, then patches row by row.

    Attributes:
        library: Where the model comes from.
        family: The line of the families' table.
        label: What to call the model in messages.
        blocks: The modules that each compute one attention between all tokens, in order.
        num_heads: Heads of each block.
        num_prefix: Tokens before the patches: class token, distillation token, registers.
        has_class_token: Whether token 0 is a class token.
        patch_hw: Height and width of a patch, pixels.
        input_hw: The size that the model was built for, pixels; None if it takes any.
        any_size: Whether it also takes other multiples of its patch.
        pads: Whether it pads its input at the bottom and right to a multiple of its patch.
        pool: The module whose latent queries pool the tokens, if there is one.
        pool_sees_prefix: Whether the pool's keys include the prefix tokens.
        run: Runs the model on pixels (B, 3, H, W), through the pool.
    """

    library: Library
    family: str
    label: str
    blocks: tuple[nn.Module, ...]
    num_heads: int
    num_prefix: int
    has_class_token: bool
    patch_hw: tuple[int, int]
    input_hw: tuple[int, int] | None
    any_size: bool
    pads: bool
    pool: nn.Module | None
    pool_sees_prefix: bool
    run: Callable[[Float[Tensor, "B 3 H W"]], Any]

    def grid_hw(self, frame_hw: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patches in an input of ``frame_hw`` pixels; what is left over at the edge is not seen."""
        height, width = (-(-s // p) if self.pads else s // p for s, p in zip(frame_hw, self.patch_hw, strict=True))
        return height, width


def layout_of(model: nn.Module, *, label: str | None = None) -> TokenLayout:
    """The layout of a model, whichever library its class comes from.

    Args:
        model: A timm model or a transformers model.
        label: What to call it in messages.

    Raises:
        UnsupportedModelError: Its family is refused, or it comes from neither library.
    """
    label = type(model).__name__ if label is None else label
    packages = {base.__module__.partition(".")[0] for base in type(model).__mro__}
    if "transformers" in packages:
        return transformers_layout(model, label=label)
    if "timm" in packages:
        return timm_layout(model, label=label)
    raise UnsupportedModelError(
        explain(
            f"{label} is a {type(model).__module__}.{type(model).__qualname__}",
            "a timm or transformers model, whose tokens are known",
            "read the attention with arrcoc_sam.attention.AttentionCapture and hand it over with CallableAttention",
        )
    )


def timm_layout(model: Any, *, label: str) -> TokenLayout:
    """The layout of a timm model; see :func:`layout_of`."""
    from timm.layers.attention_pool import AttentionPoolLatent
    from timm.layers.patch_embed import PatchEmbed
    from timm.models.beit import Beit
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    kinds = {
        VisionTransformer: "vision_transformer",
        VisionTransformerDistilled: "deit",
        Beit: "beit",
        Eva: "eva",
    }
    # The exact classes: a subclass may do anything with its tokens.
    family = kinds.get(type(model), type(model).__module__.rpartition(".")[2])
    require_supported("timm", family, model=label)
    if type(model.patch_embed) is not PatchEmbed:
        require_supported("timm", "vision_transformer/stem", model=label)
    for block in model.blocks:
        names = {type(block).__name__, type(getattr(block, "attn", None)).__name__}
        if names & {"DiffAttention", "DiffParallelScalingBlock"}:
            require_supported("timm", "vision_transformer/differential", model=label)
        if "ParallelThingsBlock" in names:
            require_supported("timm", "vision_transformer/parallel", model=label)

    pool = getattr(model, "attn_pool", None)
    embed = model.patch_embed
    dynamic = bool(getattr(model, "dynamic_img_size", False))
    return TokenLayout(
        library="timm",
        family=family,
        label=label,
        blocks=tuple(model.blocks),
        num_heads=int(getattr(model.blocks[0], "attn", model.blocks[0]).num_heads),
        num_prefix=int(model.num_prefix_tokens),
        has_class_token=getattr(model, "cls_token", None) is not None,
        patch_hw=tuple(embed.patch_size),
        input_hw=None if embed.img_size is None else tuple(embed.img_size),
        any_size=dynamic,
        pads=bool(embed.dynamic_img_pad),
        pool=pool if isinstance(pool, AttentionPoolLatent) else None,
        # Eva hands all of its tokens to the pool; VisionTransformer leaves the prefix out unless told otherwise.
        pool_sees_prefix=family == "eva" or bool(getattr(model, "pool_include_prefix", False)),
        run=model,
    )


_LAYER_CLASSES = {
    "vit": "ViTLayer",
    "deit": "DeiTLayer",
    "ijepa": "IJepaLayer",
    "dinov2": "Dinov2Layer",
    "dinov2_with_registers": "Dinov2WithRegistersLayer",
    "dinov3_vit": "DINOv3ViTLayer",
    "clip": "CLIPEncoderLayer",
    "siglip": "SiglipEncoderLayer",
}
_PREFIX_TOKENS = {"vit": 1, "deit": 2, "ijepa": 0, "dinov2": 1, "clip": 1, "siglip": 0}
# These interpolate their positions on their own; the others do when told so.
_ANY_SIZE_UNASKED = frozenset({"dinov2", "dinov2_with_registers", "dinov3_vit"})


def transformers_layout(model: Any, *, label: str) -> TokenLayout:
    """The layout of a transformers model, its image tower if it has two; see :func:`layout_of`."""
    config = model.config
    model_type = config.model_type
    require_supported("transformers", model_type, model=label)
    family = model_type.removesuffix("_vision_model")
    folder = f"transformers.models.{family}."
    if not any(base.__module__.startswith(folder) for base in type(model).__mro__):
        raise UnsupportedModelError(
            explain(
                f"{label} says that it is a '{model_type}' but is a {type(model).__module__} class", f"one of {folder}*"
            )
        )
    tower = getattr(model, "vision_model", model)
    config = getattr(config, "vision_config", config)
    blocks = tuple(module for module in tower.modules() if type(module).__name__ == _LAYER_CLASSES[family])
    registers = int(getattr(config, "num_register_tokens", 0))
    num_prefix = _PREFIX_TOKENS.get(family, 1 + registers)
    if len(blocks) != config.num_hidden_layers:
        raise UnsupportedModelError(
            explain(
                f"{label} has {len(blocks)} modules of class {_LAYER_CLASSES[family]}",
                f"the {config.num_hidden_layers} layers of its configuration",
                "use an image model of this family, or the transformers version that the table was tested with",
            )
        )

    def run(pixels: Float[Tensor, "B 3 H W"]) -> Any:
        if family in _ANY_SIZE_UNASKED:
            return tower(pixel_values=pixels)
        other_size = tuple(pixels.shape[-2:]) != _pair(config.image_size)
        return tower(pixel_values=pixels, interpolate_pos_encoding=other_size)

    head = getattr(tower, "head", None) if family == "siglip" else None
    return TokenLayout(
        library="transformers",
        family=model_type,
        label=label,
        blocks=blocks,
        num_heads=int(config.num_attention_heads),
        num_prefix=num_prefix,
        has_class_token=num_prefix > 0,
        patch_hw=_pair(config.patch_size),
        input_hw=_pair(config.image_size),
        any_size=True,
        pads=False,
        pool=getattr(head, "attention", None),
        pool_sees_prefix=False,
        run=run,
    )


def _pair(size: Any) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)
