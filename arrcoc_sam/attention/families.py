"""Which transformer families' attention can be read exactly, how, tested with what, and why the others are refused.

The table is what :class:`arrcoc_sam.attention.ViTAttention` consults, what the tests run through, and what
``python -m arrcoc_sam.attention.families_doc`` writes to ``docs/attention_families.md``: the three can't drift apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from arrcoc_sam.errors import UnsupportedModelError, explain

__all__ = ["FAMILIES", "Example", "Family", "Library", "family_of", "require_supported"]

Library: TypeAlias = Literal["timm", "transformers"]


@dataclass(frozen=True)
class Example:
    """A model that the tests compare with its own eager attention, made small by ``options``.

    Attributes:
        name: A timm model, or a transformers model class.
        options: Arguments of ``timm.create_model``, or of the model class's configuration.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """One line of the table.

    Attributes:
        library: Where the models come from.
        names: timm model files (``timm.models.<name>``, with ``/variant`` for a part of one), or transformers model
            types (``config.model_type``).
        supported: Whether its attention is read.
        note: How it is read; or why it is refused, as the end of the sentence "… is refused: …".
        examples: What the tests run; every supported family has one.
    """

    library: Library
    names: tuple[str, ...]
    supported: bool
    note: str
    examples: tuple[Example, ...] = ()


def _names(listed: str) -> tuple[str, ...]:
    return tuple(listed.split())


_TINY = {"img_size": 64, "depth": 2, "embed_dim": 48, "num_heads": 3}
_TINY_14 = {**_TINY, "img_size": 56}

CONVOLUTION = "a convolutional network: there is no attention over tokens"
WINDOWS = "its queries see the keys of a window only, and the windows are partly shifted or merged"
STAGES = "convolutional stages, with attention only on coarse late grids or over strided, pooled keys"
CHANNELS = "its attention is between channels or factorised, so that no row is a distribution over the image"
UNVERIFIED = "its token layout has not been verified here"

FAMILIES: tuple[Family, ...] = (
    # --- timm, supported ---------------------------------------------------------------------------------------------
    Family(
        "timm",
        ("vision_transformer",),
        True,
        "fused or plain attention of each block; class and register tokens first, patches in rows; "
        "query 'pool' reads the latent attention pool (SigLIP)",
        (
            Example("vit_tiny_patch16_224", _TINY),
            Example("vit_small_patch14_dinov2", _TINY_14),
            Example("vit_small_patch14_reg4_dinov2", _TINY_14),
            Example("vit_base_patch16_clip_224", _TINY),
            Example("vit_base_patch16_siglip_224", _TINY),
            Example("vit_medium_patch16_reg1_gap_256", _TINY),
            Example("vit_pwee_patch16_reg1_gap_256", _TINY),
        ),
    ),
    Family(
        "timm",
        ("deit",),
        True,
        "as vision_transformer; the distilled models have two prefix tokens, class and distillation",
        (
            Example("deit_tiny_patch16_224", _TINY),
            Example("deit_tiny_distilled_patch16_224", _TINY),
            Example("deit3_small_patch16_224", _TINY),
        ),
    ),
    Family(
        "timm",
        ("beit",),
        True,
        "as vision_transformer; the relative position bias enters as the call's additive mask",
        (Example("beit_base_patch16_224", _TINY), Example("beitv2_base_patch16_224", _TINY)),
    ),
    Family(
        "timm",
        ("eva",),
        True,
        "as vision_transformer; rotary positions are in the queries and keys (EVA, EVA02, DINOv3, PE, RoPE ViT)",
        (
            Example("eva02_tiny_patch14_224", _TINY_14),
            Example("eva02_base_patch16_clip_224", _TINY),
            Example("vit_small_patch16_dinov3", _TINY),
            Example("vit_pe_core_tiny_patch16_384", {**_TINY, "embed_dim": 64, "num_heads": 2}),
            Example("vit_small_patch16_rope_mixed_224", _TINY),
        ),
    ),
    # --- transformers, supported -------------------------------------------------------------------------------------
    Family(
        "transformers",
        ("vit",),
        True,
        "attention of each layer (sdpa or eager); one class token, patches in rows",
        (Example("ViTModel"), Example("ViTForImageClassification")),
    ),
    Family(
        "transformers",
        ("deit",),
        True,
        "as vit; class and distillation token first",
        (Example("DeiTModel"),),
    ),
    Family("transformers", ("ijepa",), True, "as vit, without a class token", (Example("IJepaModel"),)),
    Family("transformers", ("dinov2",), True, "as vit", (Example("Dinov2Model"),)),
    Family(
        "transformers",
        ("dinov2_with_registers",),
        True,
        "as vit; class token, then registers",
        (Example("Dinov2WithRegistersModel", {"num_register_tokens": 4}),),
    ),
    Family(
        "transformers",
        ("dinov3_vit",),
        True,
        "as vit; class token, then registers; rotary positions are in the queries and keys",
        (Example("DINOv3ViTModel", {"num_register_tokens": 4}),),
    ),
    Family(
        "transformers",
        ("clip", "clip_vision_model"),
        True,
        "the image tower; one class token",
        (Example("CLIPVisionModel"), Example("CLIPModel")),
    ),
    Family(
        "transformers",
        ("siglip", "siglip_vision_model"),
        True,
        "the image tower, without prefix tokens; query 'pool' reads the pooling head",
        (Example("SiglipVisionModel"), Example("SiglipModel")),
    ),
    # --- timm, refused -----------------------------------------------------------------------------------------------
    Family(
        "timm",
        ("vision_transformer/differential",),
        False,
        "differential attention subtracts two softmaxes (vit_dwee_*, vit_dpwee_*), so that no row is a distribution",
    ),
    Family(
        "timm",
        ("vision_transformer/parallel",),
        False,
        "each block runs two attentions side by side (vit_*_18x2_*)",
    ),
    Family(
        "timm",
        ("vision_transformer_hybrid", "vitamin", "vision_transformer/stem"),
        False,
        "its tokens come from a convolutional stem and are no patches of the image",
    ),
    Family(
        "timm",
        (
            "swin_transformer",
            "swin_transformer_v2",
            "swin_transformer_v2_cr",
            "maxxvit",
            "gcvit",
            "nest",
            "twins",
            "vision_transformer_sam",
        ),
        False,
        WINDOWS,
    ),
    Family("timm", ("davit",), False, "its blocks alternate windowed attention with attention between channels"),
    Family(
        "timm",
        ("hiera", "hieradet_sam2"),
        False,
        "queries are pooled, keys come from mask units or windows, and tokens are not in row order",
    ),
    Family("timm", ("mvitv2", "pvt_v2"), False, "its keys are pooled or strided: a key is no cell of the query's grid"),
    Family("timm", ("pit",), False, "tokens are pooled between stages: there is no single grid"),
    Family("timm", ("xcit", "edgenext", "coat"), False, CHANNELS),
    Family("timm", ("efficientvit_mit", "swiftformer"), False, "its attention is linear or additive, without weights"),
    Family("timm", ("cait",), False, "talking heads mix the attention of all heads before and after the softmax"),
    Family("timm", ("convit",), False, "positional and content attention are gated together after two softmaxes"),
    Family("timm", ("crossvit", "tnt"), False, "it has two sets of tokens of different sizes"),
    Family("timm", ("volo",), False, "outlook attention predicts weights over neighbours from single tokens"),
    Family(
        "timm",
        ("naflexvit",),
        False,
        "sequences of any length are packed and padded, and the grid is not part of the model",
    ),
    Family(
        "timm",
        ("vision_transformer_relpos", "deepseek_vit", "gemma4_vit", "qwen3_vit"),
        False,
        UNVERIFIED,
    ),
    Family(
        "timm",
        _names(
            "byoanet cpubone csatv2 efficientformer efficientformer_v2 efficientvit_msra fastvit iformer levit "
            "lowformer metaformer mobilenetv5 mobilevit nextvit shvit tiny_vit visformer"
        ),
        False,
        STAGES,
    ),
    Family("timm", ("focalnet", "mlp_mixer", "sequencer", "efficientvim", "mambaout"), False, "it has no attention"),
    Family(
        "timm",
        _names(
            "byobnet convmixer convnext cspnet cspnext densenet dla dpn efficientnet fasternet ghostnet "
            "hardcorenas hgnet hrnet inception_next inception_resnet_v2 inception_v3 inception_v4 lcnetv2 "
            "mobilenetv3 nasnet nfnet pnasnet rdnet regnet repghost repvit res2net resnest resnet resnetv2 rexnet "
            "selecsls senet sknet starnet tresnet vgg vovnet xception xception_aligned"
        ),
        False,
        CONVOLUTION,
    ),
    # --- transformers, refused ---------------------------------------------------------------------------------------
    Family(
        "transformers",
        (
            "qwen2_vl",
            "qwen2_5_vl",
            "qwen2_5_omni",
            "qwen3_vl",
            "qwen3_vl_moe",
            "qwen3_5",
            "qwen3_5_moe",
            "qwen3_omni_moe",
        ),
        False,
        "its vision tower permutes the patches into 2 x 2 merge groups (Qwen2.5 also into windows), so that the k-th "
        "key is not the k-th patch in row order",
    ),
    Family("transformers", ("swin", "swinv2", "swin2sr", "donut-swin", "maskformer-swin", "dinat"), False, WINDOWS),
    Family(
        "transformers",
        ("sam", "sam_vision_model", "sam_hq", "vitdet"),
        False,
        "most layers see windows only, with decomposed relative positions",
    ),
    Family(
        "transformers",
        ("hiera", "sam2", "sam2_video", "sam2_hiera_det_model", "edgetam"),
        False,
        "queries are pooled, keys come from mask units or windows, and tokens are not in row order",
    ),
    Family(
        "transformers", ("segformer", "pvt", "pvt_v2", "glpn", "cvt"), False, "its keys are strided or convolved tokens"
    ),
    Family("transformers", ("levit", "mobilevit", "mobilevitv2", "efficientformer", "swiftformer"), False, STAGES),
    Family("transformers", ("vit_mae",), False, "patches are dropped and shuffled at random in every forward pass"),
    Family("transformers", ("siglip2", "siglip2_vision_model"), False, "its sequences are padded, of any grid"),
    Family(
        "transformers",
        ("vivit", "timesformer", "videomae", "vjepa2", "video_llava"),
        False,
        "its tokens are tubelets of a video, not patches of an image",
    ),
    Family("transformers", ("perceiver",), False, "latents attend to pixels; there are no patch tokens"),
    Family(
        "transformers", ("timm_wrapper", "timm_backbone"), False, "it wraps a timm model: load that by its 'timm:' name"
    ),
    Family(
        "transformers",
        ("convnext", "convnextv2", "dinov3_convnext", "resnet", "regnet", "bit", "efficientnet", "mobilenet_v2"),
        False,
        CONVOLUTION,
    ),
)

_BY_NAME = {(family.library, name): family for family in FAMILIES for name in family.names}


def family_of(library: Library, name: str) -> Family:
    """The table's line for a family; one that it does not know is refused as not verified.

    Args:
        library: "timm" or "transformers".
        name: A timm model file or a transformers model type.

    Example:
        >>> family_of("timm", "xcit").supported
        False
        >>> family_of("transformers", "made_yesterday").note
        'its token layout has not been verified here'
    """
    return _BY_NAME.get((library, name), Family(library, (name,), False, UNVERIFIED))


def require_supported(library: Library, name: str, *, model: str) -> Family:
    """The table's line for a supported family.

    Args:
        library: "timm" or "transformers".
        name: A timm model file or a transformers model type.
        model: What the user asked for, for the message.

    Raises:
        UnsupportedModelError: The family is refused; the message names it and says why.
    """
    family = family_of(library, name)
    if not family.supported:
        raise UnsupportedModelError(
            explain(
                f"the attention of {model} ({library} family '{name}') can't be mapped to image cells: {family.note}",
                "a family that docs/attention_families.md lists as supported",
                "read the attention yourself and hand it over with CallableAttention",
            )
        )
    return family
