"""Every supported family against its own eager attention; every other refused by name; the table kept honest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models._registry import _module_to_models
from torch import Tensor, nn

from arrcoc_sam.attention import ViTAttention
from arrcoc_sam.attention.capture import AttentionCall, AttentionCapture
from arrcoc_sam.attention.families import FAMILIES, Example, Family, family_of
from arrcoc_sam.attention.families_doc import families_table
from arrcoc_sam.attention.layouts import TokenLayout, layout_of
from arrcoc_sam.attention.reading import POOL
from arrcoc_sam.errors import UnknownNameError, UnsupportedModelError

transformers = pytest.importorskip("transformers")

SUPPORTED = [(family, example) for family in FAMILIES if family.supported for example in family.examples]
REFUSED = [(family, name) for family in FAMILIES if not family.supported for name in family.names]
# The table also knows types of other transformers versions; and timm_wrapper builds a timm model for its configuration.
KNOWN_TYPES = set(transformers.CONFIG_MAPPING) - {"timm_wrapper"}
SMALL = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 64,
    "image_size": 64,
    "patch_size": 16,
}
SMALL_TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 99,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def build(family: Family, example: Example, **options: Any) -> nn.Module:
    """The example with random weights large enough that its attention is far from uniform."""
    torch.manual_seed(0)
    if family.library == "timm":
        model = timm.create_model(example.name, pretrained=False, **example.options)
    else:
        kind = getattr(transformers, example.name)
        settings: dict[str, Any] = {**SMALL, **example.options}
        if "vision_config" in kind.config_class().to_dict():
            settings = {"vision_config": settings, "text_config": SMALL_TEXT}
        model = kind._from_config(kind.config_class(**settings), **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * (0.5 if parameter.ndim < 2 else 0.3))
    return model.eval()


def pixels_for(layout: TokenLayout) -> Tensor:
    assert layout.input_hw is not None
    return torch.randn(2, 3, *layout.input_hw, generator=torch.Generator().manual_seed(1))


def captured(layout: TokenLayout, pixels: Tensor) -> tuple[dict[str, Tensor], Any]:
    modules = {f"L{i:02d}": block for i, block in enumerate(layout.blocks)}
    if layout.pool is not None:
        modules[POOL] = layout.pool

    def rows(name: str, call: AttentionCall) -> Tensor:
        return call.rows()

    with torch.no_grad(), AttentionCapture(modules, rows) as capture:
        output = layout.run(pixels)
    return capture.results, output


def eager_timm(model: nn.Module, layout: TokenLayout, pixels: Tensor) -> dict[str, Tensor]:
    """timm's own unfused attention, caught as the input of each attention's dropout."""
    caught: dict[str, Tensor] = {}
    handles = []
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    for i, block in enumerate(layout.blocks):
        dropout = getattr(block, "attn", block).attn_drop
        handles.append(
            dropout.register_forward_hook(lambda m, args, out, name=f"L{i:02d}": caught.update({name: args[0]}))
        )
    pool: Any = layout.pool
    if pool is not None:  # it has no dropout: its normalised queries and keys then
        parts: dict[str, Tensor] = {}
        for side in ("q_norm", "k_norm"):
            norm = getattr(pool, side)
            handles.append(norm.register_forward_hook(lambda m, args, out, side=side: parts.update({side: out})))
    with torch.no_grad():
        model(pixels)
    for handle in handles:
        handle.remove()
    if pool is not None:
        caught[POOL] = (parts["q_norm"] * pool.scale @ parts["k_norm"].transpose(-2, -1)).softmax(-1)
    return caught


def eager_transformers(family: Family, example: Example, pixels: Tensor) -> dict[str, Tensor]:
    """The same weights with transformers' eager attention, which can answer its weights."""
    model: Any = build(family, example, attn_implementation="eager")
    tower = getattr(model, "vision_model", model)
    with torch.no_grad():
        output = tower(pixel_values=pixels, output_attentions=True)
    caught = {f"L{i:02d}": weights for i, weights in enumerate(output.attentions)}
    head = getattr(tower, "head", None)
    if head is not None:
        with torch.no_grad():
            probe = head.probe.repeat(len(pixels), 1, 1)
            tokens = output.last_hidden_state
            caught[POOL] = head.attention(probe, tokens, tokens, average_attn_weights=False)[1]
    return caught


@pytest.mark.parametrize(("family", "example"), SUPPORTED, ids=lambda value: getattr(value, "name", None))
def test_captured_is_eager_and_the_output_is_unchanged(family: Family, example: Example) -> None:
    model = build(family, example)
    layout = layout_of(model)
    assert layout.family in family.names or family.names == ("deit",)  # plain DeiTs are VisionTransformers in timm
    pixels = pixels_for(layout)
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            before = layout.run(pixels)
        weights, output = captured(layout, pixels)
        after = [output] if isinstance(output, Tensor) else [v for v in output.values() if isinstance(v, Tensor)]
        plain = [before] if isinstance(before, Tensor) else [v for v in before.values() if isinstance(v, Tensor)]
        assert after
        assert all(torch.equal(a, b) for a, b in zip(after, plain, strict=True))
        if family.library == "timm":
            eager = eager_timm(model, layout, pixels)
        else:
            eager = eager_transformers(family, example, pixels)
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)

    assert set(weights) == set(eager)
    for name, expected in eager.items():
        assert weights[name].dtype == torch.float32
        error = (weights[name] - expected).abs().max().item()
        assert error <= 1e-6, f"{name}: {error}"
        assert expected.amax() > 1.5 / expected.shape[-1]  # not so uniform that anything would pass
    # Two prefix tokens, five, none: the key count is theirs and the patches'.
    rows, columns = layout.grid_hw((pixels.shape[-2], pixels.shape[-1]))
    assert eager["L00"].shape[-2:] == (layout.num_prefix + rows * columns,) * 2


@pytest.mark.parametrize(("family", "example"), SUPPORTED, ids=lambda value: getattr(value, "name", None))
def test_a_token_is_its_patch(family: Family, example: Example) -> None:
    """A change of one patch's pixels changes the first block's scores at one key only: the one that the grid says."""
    model = build(family, example)
    layout = layout_of(model)
    pixels = pixels_for(layout)[:1]
    (rows, columns), (height, width) = layout.grid_hw((pixels.shape[-2], pixels.shape[-1])), layout.patch_hw
    before = captured(layout, pixels)[0]["L00"]
    for row, column in ((0, columns - 1), (rows - 1, 1)):
        changed = pixels.clone()
        changed[..., row * height : (row + 1) * height, column * width : (column + 1) * width] += 1.0
        after = captured(layout, changed)[0]["L00"]
        key = layout.num_prefix + row * columns + column
        query = 0 if layout.num_prefix else (key + 1) % after.shape[-1]
        change = after[0, :, query].log() - before[0, :, query].log()
        others = torch.arange(after.shape[-1]) != key
        # The softmax's normaliser moves all the others by the same amount.
        spread = change[:, others].amax(-1) - change[:, others].amin(-1)
        assert spread.max() < 1e-3
        assert (change[:, key] - change[:, others].mean(-1)).abs().max() > 0.01


def test_every_prefix_token_is_counted() -> None:
    counts = {
        example.name: layout_of(build(family, example)).num_prefix
        for family, example in SUPPORTED
        if example.name
        in (
            "vit_tiny_patch16_224",
            "vit_small_patch14_reg4_dinov2",
            "vit_base_patch16_siglip_224",
            "deit_tiny_distilled_patch16_224",
            "vit_small_patch16_dinov3",
            "DeiTModel",
            "IJepaModel",
            "Dinov2WithRegistersModel",
        )
    }
    assert counts == {
        "vit_tiny_patch16_224": 1,
        "vit_small_patch14_reg4_dinov2": 5,
        "vit_base_patch16_siglip_224": 0,
        "deit_tiny_distilled_patch16_224": 2,
        "vit_small_patch16_dinov3": 5,
        "DeiTModel": 2,
        "IJepaModel": 0,
        "Dinov2WithRegistersModel": 5,
    }


@pytest.mark.parametrize(("family", "name"), [(f, n) for f, n in REFUSED if f.library == "timm" and "/" not in n])
def test_timm_families_are_refused_by_name(family: Family, name: str) -> None:
    model = sorted(_module_to_models[name])[0]
    with pytest.raises(UnsupportedModelError) as caught:
        ViTAttention(f"timm:{model}", pretrained=False)
    assert f"'{name}'" in str(caught.value)
    assert family.note in str(caught.value)


@pytest.mark.parametrize(
    ("model", "options", "reason"),
    [
        ("vit_dwee_patch16_reg1_gap_256", {"depth": 1}, "differential attention"),
        ("vit_dpwee_patch16_reg1_gap_256", {"depth": 1}, "differential attention"),
        ("vit_small_patch16_18x2_224", {"depth": 1}, "two attentions side by side"),
    ],
)
def test_variants_of_supported_families_are_refused(model: str, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=reason):
        ViTAttention(f"timm:{model}", pretrained=False, query="mean", options=options)


@pytest.mark.parametrize(("family", "name"), [(f, n) for f, n in REFUSED if n in KNOWN_TYPES and f.library != "timm"])
def test_transformers_families_are_refused_before_any_weights(family: Family, name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": name}))
    with pytest.raises(UnsupportedModelError) as caught:
        ViTAttention(f"hf:{tmp_path}", pretrained=True)
    assert family.note in str(caught.value)


def test_modules_are_refused_as_names_are() -> None:
    swin = timm.create_model("swin_tiny_patch4_window7_224", embed_dim=12, depths=(1, 1), num_heads=(1, 1))
    with pytest.raises(UnsupportedModelError, match="a window only"):
        ViTAttention(swin)
    mae = transformers.ViTMAEModel(transformers.ViTMAEConfig(**SMALL))
    with pytest.raises(UnsupportedModelError, match="dropped and shuffled"):
        ViTAttention(mae)
    with pytest.raises(UnsupportedModelError, match="a timm or transformers model"):
        ViTAttention(nn.Linear(2, 2))

    class Shuffled(timm.models.vision_transformer.VisionTransformer):
        """A subclass may do anything with its tokens."""

    with pytest.raises(UnsupportedModelError, match="has not been verified"):
        ViTAttention(Shuffled(img_size=32, embed_dim=48, depth=1, num_heads=3))


def test_every_timm_file_has_its_line() -> None:
    listed = {name for family in FAMILIES if family.library == "timm" for name in family.names if "/" not in name}
    assert listed == set(_module_to_models)


def test_no_family_has_two_lines_and_the_supported_ones_are_tested() -> None:
    names = [(family.library, name) for family in FAMILIES for name in family.names]
    assert len(names) == len(set(names))
    assert all(family.examples for family in FAMILIES if family.supported)
    assert not family_of("timm", "of_tomorrow").supported


def test_the_documented_table_is_the_one_in_the_code() -> None:
    path = Path(__file__).parents[2] / "docs" / "attention_families.md"
    assert path.read_text(encoding="utf-8") == families_table(), "run python -m arrcoc_sam.attention.families_doc"


def test_unknown_models_are_named_with_what_is_near() -> None:
    with pytest.raises(UnknownNameError, match="such as vit_tiny_patch16_224"):
        ViTAttention("timm:vit_tiny_patch16_223", pretrained=False)
    with pytest.raises(UnknownNameError, match="'timm:<model>', 'hf:<repository>'"):
        ViTAttention("dinov2", pretrained=False)
