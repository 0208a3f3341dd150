"""ViTAttention: queries, heads, layers, rollout, points, framings, training, and its one-line errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from arrcoc_sam.attention import AttentionCapture, AttentionSource, RelevanceAttention, ViTAttention, load_attention
from arrcoc_sam.attention import loading as loading_module
from arrcoc_sam.attention import reading as reading_module
from arrcoc_sam.attention.capture import AttentionCall
from arrcoc_sam.attention.files import ArrayAttention
from arrcoc_sam.errors import (
    AttentionCaptureError,
    CheckpointError,
    InputError,
    UnknownNameError,
    UnsupportedModelError,
)
from arrcoc_sam.geometry import ImageTransform

RNG = np.random.default_rng(3)
IMAGE = RNG.integers(0, 256, (90, 120, 3), dtype=np.uint8)
TINY = {"img_size": 64, "depth": 3, "embed_dim": 48, "num_heads": 3}


def vit(name: str = "vit_tiny_patch16_224", **options: Any) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, **{**TINY, **options})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3)
    return model.eval()


def full_attention(source: ViTAttention, image: np.ndarray = IMAGE) -> list[Tensor]:
    """Every block's whole attention matrix (heads, tokens, tokens), read apart from the source's own reader."""

    def whole(name: str, call: AttentionCall) -> Tensor:
        return call.rows()[0]

    modules = {str(i): block for i, block in enumerate(source.layout.blocks)}
    with torch.no_grad(), AttentionCapture(modules, whole) as capture:
        source.layout.run(source.preprocess(image)[0])
    return [capture.results[str(i)] for i in range(len(modules))]


def normalised(values: Tensor) -> Tensor:
    return values / values.sum((-2, -1), keepdim=True)


def test_class_token_by_layer_and_head() -> None:
    source = ViTAttention(vit(reg_tokens=2))
    assert isinstance(source, AttentionSource)
    maps = source(IMAGE)
    assert maps.names == tuple(f"L{layer:02d}.H{head:02d}" for layer in range(3) for head in range(3))
    whole = full_attention(source)
    for layer in range(3):
        for head in range(3):
            row = whole[layer][head, 0]
            one = maps[f"L{layer:02d}.H{head:02d}"]
            torch.testing.assert_close(one.values[0], normalised(row[3:].reshape(4, 4)))
            assert one.prefix_mass is not None
            torch.testing.assert_close(one.prefix_mass[0], row[:3].sum())


def test_layers_and_heads_are_picked() -> None:
    model = vit()
    everything = ViTAttention(model)(IMAGE)
    some = ViTAttention(model, layers=[-1, 0], heads=[2, 0])(IMAGE)
    assert some.names == ("L00.H00", "L00.H02", "L02.H00", "L02.H02")
    torch.testing.assert_close(some.values, everything[list(some.names)].values)
    mean = ViTAttention(model, layers=[1], heads="mean")(IMAGE)
    assert mean.names == ("L01.mean",)
    row = full_attention(ViTAttention(model))[1][:, 0].mean(0)
    torch.testing.assert_close(mean.values[0], normalised(row[1:].reshape(4, 4)))


def test_mean_query() -> None:
    source = ViTAttention(vit(), layers=[1], query="mean")
    rows = full_attention(source)[1][:, 1:].mean(1)  # the patches' queries, the class token's left out
    maps = source(IMAGE)
    torch.testing.assert_close(maps.values, normalised(rows[:, 1:].reshape(3, 4, 4)))
    torch.testing.assert_close(maps.prefix_mass, rows[:, 0])


def test_point_query_takes_the_patch_under_the_click() -> None:
    source = ViTAttention(vit(), layers=[0, 2], query="point", framing="squash")
    points = [[0.0, 0.0], [119.0, 0.0], [31.0, 89.0]]  # 30 x 22.5 pixels a patch
    maps = source(IMAGE, points)
    assert maps.values.shape == (6, 3, 4, 4)
    whole = full_attention(source)
    for k, cell in enumerate([0, 3, 13]):
        expected = normalised(whole[2][:, 1 + cell, 1:].reshape(3, 4, 4))
        torch.testing.assert_close(maps.values[3:, k], expected)
        torch.testing.assert_close(maps.prefix_mass[3:, k], whole[2][:, 1 + cell, 0])


@pytest.mark.parametrize("name", ["vit_base_patch16_siglip_224", "vit_pe_core_tiny_patch16_384"])
def test_pool_query(name: str) -> None:
    model = vit(name, embed_dim=64, num_heads=2)
    source = ViTAttention(model, query="pool")
    maps = source(IMAGE)
    assert maps.names[0] == "pool.H00"
    assert len(maps) == source.layout.pool.num_heads

    def whole(name: str, call: AttentionCall) -> Tensor:
        return call.rows()[0, :, 0]

    with torch.no_grad(), AttentionCapture({"pool": model.attn_pool}, whole) as capture:
        model(source.preprocess(IMAGE)[0])
    row = capture.results["pool"]
    prefix = row.shape[1] - 16
    assert prefix == (0 if "siglip" in name else 1)
    torch.testing.assert_close(maps.values, normalised(row[:, prefix:].reshape(-1, 4, 4)))
    torch.testing.assert_close(maps.prefix_mass, row[:, :prefix].sum(1))


@pytest.mark.parametrize("query", ["cls", "mean", "point"])
def test_rollout_is_the_product_of_mixed_means(query: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading_module, "ROWS_AT_A_TIME", 5)
    source = ViTAttention(vit(), layers=[0, 2], query=query, rollout=True, framing="squash")
    product = torch.eye(17)
    products = []
    for attention in full_attention(source):
        product = (attention.mean(0) + torch.eye(17)) / 2 @ product
        products.append(product)
    points = [[0.0, 0.0], [119.0, 89.0]]
    maps = source(IMAGE, points)
    assert maps.names == ("L00.rollout", "L02.rollout")
    for i, layer in enumerate((0, 2)):
        rows = {"cls": products[layer][:1], "mean": products[layer][1:].mean(0, keepdim=True)}
        rows["point"] = products[layer][[1, 16]]
        expected = normalised(rows[query][:, 1:].reshape(-1, 4, 4))
        found = maps.values[i] if query == "point" else maps.values[i][None]
        torch.testing.assert_close(found, expected)


def test_rollout_through_a_pool() -> None:
    model = vit("vit_base_patch16_siglip_224")
    source = ViTAttention(model, query="pool", rollout=True)
    product = torch.eye(16)
    for attention in full_attention(source):
        product = (attention.mean(0) + torch.eye(16)) / 2 @ product
    pool = ViTAttention(model, query="pool", heads="mean")(IMAGE).values.reshape(1, 16)
    maps = source(IMAGE)
    assert maps.names == ("pool.rollout",)
    torch.testing.assert_close(maps.values.reshape(1, 16), pool @ product)


def test_non_square_inputs() -> None:
    source = ViTAttention(vit(img_size=(48, 96)), layers=[0], framing="squash")
    maps = source(IMAGE)
    assert maps.grid_hw == (3, 6)
    torch.testing.assert_close(maps.values[1], normalised(full_attention(source)[0][1, 0, 1:].reshape(3, 6)))


def test_aspect_framing_shows_the_whole_image() -> None:
    maps = ViTAttention(vit(dynamic_img_size=True), layers=[0], framing="aspect", image_size=64)(IMAGE)
    assert maps.grid_hw == (4, 5)
    torch.testing.assert_close(maps.valid, torch.ones(4, 5))
    assert maps.transform.original_hw == (90, 120)


def test_models_that_pad_and_models_that_drop_the_rest() -> None:
    padded = vit(dynamic_img_size=True, dynamic_img_pad=True)
    torch.manual_seed(0)

    def at_odds(image: np.ndarray) -> tuple[Tensor, ImageTransform]:
        return torch.rand(1, 3, 40, 56), ImageTransform.squash(image.shape[:2], (40, 56))

    maps = ViTAttention(padded, layers=[0], preprocess=at_odds)(IMAGE)
    assert maps.grid_hw == (3, 4)
    torch.testing.assert_close(
        maps.valid, torch.outer(torch.tensor([1.0, 1.0, 0.5]), torch.tensor([1.0, 1.0, 1.0, 0.5]))
    )

    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=48, num_hidden_layers=1, num_attention_heads=3, image_size=64, patch_size=16
    )
    source = ViTAttention(transformers.Dinov2Model(config), layers=[0], query="point", preprocess=at_odds)
    maps = source(IMAGE, [[0, 0]])
    assert maps.grid_hw == (2, 3)
    assert maps.transform.frame_hw == (32, 48)
    with pytest.raises(InputError, match="crop"):
        source(IMAGE, [[119, 89]])  # the patches end before it


def test_a_click_that_the_crop_cuts_off_is_refused() -> None:
    source = ViTAttention(vit(), query="point")
    assert source(IMAGE, [[60, 45]]).values.shape[1] == 1
    with pytest.raises(InputError, match="crop"):
        source(IMAGE, [[1, 45]])
    with pytest.raises(InputError, match="no points were given"):
        source(IMAGE)
    with pytest.raises(InputError, match="outside the image"):
        ViTAttention(vit())(IMAGE, [[200, 0]])


def test_the_model_keeps_its_mode_and_its_output() -> None:
    model = vit(proj_drop_rate=0.5, drop_path_rate=0.5).train()
    source = ViTAttention(model)
    first, second = source(IMAGE), source(IMAGE)
    assert torch.equal(first.values, second.values)  # evaluated without dropout
    assert model.training
    assert not first.values.requires_grad
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_supervising_a_model_s_own_attention() -> None:
    model = vit(depth=2).train()
    source = ViTAttention(model, layers=[-1], heads="mean", differentiable=True)
    pixels = torch.randn(4, 3, 64, 64)
    wanted = torch.zeros(4, 4)
    wanted[:2, :2] = 1.0
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(15):
        with source.watch((64, 64)) as attention:
            logits = model(pixels)
        assert logits.shape == (4, 1000)
        assert attention.values.shape == (4, 1, 4, 4)
        torch.testing.assert_close(attention.values.sum((-2, -1)) + attention.prefix_mass, torch.ones(4, 1))
        loss = -(attention.values * wanted).sum((-2, -1)).log().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert source(IMAGE).values.requires_grad


def test_half_precision_models() -> None:
    full, half = vit(), vit().bfloat16()
    a, b = ViTAttention(full, layers=[0])(IMAGE), ViTAttention(half, layers=[0])(IMAGE)
    assert b.values.dtype == torch.float32
    torch.testing.assert_close(a.values, b.values, rtol=0.1, atol=0.02)
    torch.testing.assert_close(b.values.sum((-2, -1)), torch.ones(3))


def test_transformers_with_a_processor() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPVisionConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=64, image_size=64, patch_size=16
    )
    model = transformers.CLIPVisionModel(config).eval()
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    maps = ViTAttention(model, processor=processor)(IMAGE)
    assert len(maps) == 6
    assert maps.grid_hw == (4, 4)
    larger = ViTAttention(model, processor=processor, image_size=96, framing="squash")(IMAGE)
    assert larger.grid_hw == (6, 6)
    with pytest.raises(InputError, match="without an image processor"):
        ViTAttention(model)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layers": [3]}, UnknownNameError, r"\[3\] were asked for as layers"),
        ({"layers": []}, UnknownNameError, "none were asked for"),
        ({"layers": "last"}, UnknownNameError, "'all' or their numbers"),
        ({"layers": 3}, InputError, r"3 was asked for as layers .* Mend: \[3\]"),
        ({"layers": None}, InputError, "None was asked for as layers of .*expected 'all' or their numbers"),
        ({"layers": [0.5]}, InputError, r"\[0\.5\] was asked for as layers"),
        ({"heads": "max"}, UnknownNameError, "expected 'all', 'mean' or their numbers"),
        ({"image_size": 0}, InputError, r"image_size=\(0, 0\); expected"),
        ({"heads": [0, 7]}, UnknownNameError, r"\[7\] were asked for as heads"),
        ({"query": "register"}, UnknownNameError, "query is 'register'"),
        ({"query": "pool"}, InputError, "no latent attention pool"),
        ({"rollout": True, "heads": [0]}, InputError, "rollout of single heads"),
        ({"framing": "crop"}, InputError, "framing is 'crop'"),
    ],
)
@pytest.mark.usefixtures("as_at_run_time")
def test_bad_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ViTAttention(vit(), **options)


def test_models_without_a_class_token() -> None:
    with pytest.raises(InputError, match=r"no class token.*query='pool'"):
        ViTAttention(vit("vit_base_patch16_siglip_224"))
    with pytest.raises(InputError, match=r"no class token.*query='mean' or 'point'"):
        ViTAttention(vit("vit_base_patch16_siglip_gap_224"))


def test_missing_weights_are_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def unplugged(*args: Any, **kwargs: Any) -> None:
        assert constants.HF_HUB_OFFLINE  # or the hub's client would try again and again, and say so
        raise ConnectionError("Name or service not known\nand a long story")

    monkeypatch.setattr(timm, "create_model", unplugged)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(loading_module, "_hub_is_reachable", lambda: False)
    with pytest.raises(CheckpointError) as caught:
        ViTAttention("timm:vit_tiny_patch16_224")
    assert "\n" not in str(caught.value)
    assert "the weights of timm:vit_tiny_patch16_224 can't be had (ConnectionError: Name or service" in str(
        caught.value
    )
    assert "pretrained=False (--random-weights)" in str(caught.value)
    assert not constants.HF_HUB_OFFLINE


def test_missing_transformers_models(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="the configuration of hf:nobody/nothing can't be had"):
        ViTAttention("hf:nobody/nothing")
    with pytest.raises(CheckpointError, match=r"the folder .* has no config\.json"):
        ViTAttention(f"hf:{tmp_path}")
    for nowhere in ("/nope", "./nope", "~/nope/at/all"):
        with pytest.raises(CheckpointError, match=f"there is no folder '{nowhere}'"):
            ViTAttention(f"hf:{nowhere}")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="the configuration of hf:"):
        ViTAttention(f"hf:{tmp_path}")


def test_a_local_transformers_folder(tmp_path: Any) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=64, image_size=64, patch_size=16
    )
    transformers.ViTModel(config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="the weights of hf:"):
        ViTAttention(f"hf:{tmp_path}")  # no processor
    transformers.ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    maps = [ViTAttention(f"hf:{tmp_path}", device="cpu")(IMAGE) for _ in range(2)]
    torch.testing.assert_close(maps[0].values, maps[1].values)
    random = ViTAttention(f"hf:{tmp_path}", pretrained=False, device="cpu")(IMAGE)
    assert not torch.allclose(random.values, maps[0].values)


def saved_transformer(folder: Any, model: Any) -> str:
    """A model and a processor for it, as save_pretrained writes them, by its name here."""
    import transformers

    model.save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return f"hf:{folder}"


SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 64}
SMALL |= {"image_size": 64, "patch_size": 16}


def test_weights_that_are_not_all_there(tmp_path: Any) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2WithRegistersConfig(**SMALL)
    name = saved_transformer(tmp_path, transformers.Dinov2WithRegistersModel(config))
    state = load_file(tmp_path / "model.safetensors")
    lost = [key for key in state if ".layer.1." in key and (".query." in key or ".key." in key)]
    kept = {key: value for key, value in state.items() if key not in lost}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"lack {len(lost)} tensors of Dinov2WithRegistersModel, .*layer\.1\."):
        ViTAttention(name, device="cpu")
    assert len(lost) == 4
    ViTAttention(name, pretrained=False, device="cpu")


def test_a_folder_of_one_s_home(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    saved_transformer(tmp_path / "vit", transformers.ViTModel(transformers.ViTConfig(**SMALL)))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(loading_module, "_hub_is_reachable", lambda: pytest.fail("no hub is asked for a folder"))
    assert len(ViTAttention("hf:~/vit", device="cpu")(IMAGE)) == 6


def test_classifiers_lack_what_no_map_is_made_of(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    transformers = pytest.importorskip("transformers")
    classifier = transformers.ViTForImageClassification(transformers.ViTConfig(**SMALL)).eval()
    name = saved_transformer(tmp_path / "vit", classifier)
    capsys.readouterr()
    came = ViTAttention(name, device="cpu")
    assert capsys.readouterr() == ("", "")  # no list of what is missing, and no bars where stderr is no terminal
    processor = transformers.ViTImageProcessor(size={"height": 64, "width": 64})
    expected = ViTAttention(classifier.vit, processor=processor)
    torch.testing.assert_close(came(IMAGE).values, expected(IMAGE).values)
    text = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 64}
    text |= {"vocab_size": 9, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    for kind in ("CLIP", "Siglip"):
        config = getattr(transformers, f"{kind}Config")(vision_config=SMALL, text_config=text)
        classifier = getattr(transformers, f"{kind}ForImageClassification")(config)
        ViTAttention(saved_transformer(tmp_path / kind, classifier), query="mean", device="cpu")


def test_options_that_a_model_does_not_take() -> None:
    with pytest.raises(InputError, match="can't be built with"):
        ViTAttention("timm:vit_tiny_patch16_224", pretrained=False, options={"no_such_option": 1})
    with pytest.raises(InputError, match="can't be built with"):  # nothing is fetched, so no weights are missing
        ViTAttention("timm:vit_tiny_patch16_224", pretrained=False, options={"img_size": 0})


@pytest.mark.parametrize("device", ["cuda:99", "abacus"])
def test_a_device_that_there_is_not(device: str) -> None:
    with pytest.raises(InputError, match=f"device='{device}'.*expected"):
        ViTAttention("timm:test_vit", pretrained=False, device=device)


def test_dropped_tokens_are_noticed() -> None:
    model = vit()
    source = ViTAttention(model, layers=[1])
    model.norm_pre = nn.Identity()
    model.norm_pre.register_forward_hook(lambda module, args, output: output[:, :-3])
    with pytest.raises(AttentionCaptureError, match="from 14 queries to 14 keys; expected 17 and 17"):
        source(IMAGE)


def test_unfused_models_are_read_through_their_softmax() -> None:
    model = vit()
    fused = ViTAttention(model)(IMAGE)
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    torch.testing.assert_close(ViTAttention(model)(IMAGE).values, fused.values, rtol=1e-5, atol=1e-6)


def test_sources_by_name(tmp_path: Any) -> None:
    assert isinstance(load_attention("relevance", grid=8), RelevanceAttention)
    np.save(tmp_path / "map.npy", np.ones((2, 2)))
    assert isinstance(load_attention(str(tmp_path / "map.npy")), ArrayAttention)
    assert isinstance(load_attention(str(tmp_path)), ArrayAttention)
    source = load_attention("timm:vit_tiny_patch16_224", pretrained=False, layers=[0], options={"depth": 1})
    assert isinstance(source, ViTAttention)
    with pytest.raises(UnsupportedModelError):
        load_attention("timm:resnet18", pretrained=False)
    with pytest.raises(UnknownNameError, match="no attention source 'saliency'"):
        load_attention("saliency")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("vit_base_patch16_224", "timm:vit_base_patch16_224"),
        ("vit_base_patch16_224.augreg_in21k", "timm:vit_base_patch16_224.augreg_in21k"),
        ("facebook/dinov2-small", "hf:facebook/dinov2-small"),
        ("saliency", None),
        ("./maps", None),
        ("a/deep/folder", None),
    ],
)
def test_the_name_of_a_model_without_its_library(name: str, meant: str | None) -> None:
    with pytest.raises(UnknownNameError) as caught:
        load_attention(name)
    assert str(caught.value).endswith("." if meant is None else f". Mend: '{meant}', if that is meant.")
    assert ("Mend" in str(caught.value)) == (meant is not None)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cuda_kernels_are_read_as_well(dtype: torch.dtype) -> None:
    model = vit().to(dtype)
    expected = ViTAttention(model, query="point", framing="squash")(IMAGE, [[60, 45]])
    source = ViTAttention(model.cuda(), query="point", framing="squash")
    maps = source(IMAGE, [[60, 45]])
    assert maps.values.is_cuda
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(maps.values.cpu(), expected.values, rtol=tolerance, atol=tolerance)
    pixels = source.preprocess(IMAGE)[0].cuda().to(dtype)
    with torch.no_grad():
        plain = model(pixels)
        with source.watch((64, 64), torch.zeros(1, 2, dtype=torch.int64)):
            watched = model(pixels)
    assert torch.equal(plain, watched)
