"""transformers' families through our adapter: the numbers of their own forward, and of segment-anything's classes."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hf_small_models import FRAME, NAMES, WIDTH, build_segmenter, family
from sam_conversion import to_transformers, transformers_name
from segment_anything.build_sam import build_sam_vit_b
from segment_anything.modeling import MaskDecoder, TwoWayTransformer
from torch import nn

from arrcoc_sam.geometry import ImageTransform
from arrcoc_sam.hierarchy import MaskHierarchy
from arrcoc_sam.prompts import Prompts
from arrcoc_sam.quality import MaskQualityEstimator
from arrcoc_sam.segmenters import load_segmenter
from arrcoc_sam.segmenters.hf.segmenter import HuggingFaceSegmenter
from arrcoc_sam.segmenters.sam import SamSegmenter

TOLERANCE = 1e-4
SIZE_HW = (90, 130)
SAM2_LIKE = [name for name in NAMES if family(name).decoder == "sam2"]

_built: dict[str, HuggingFaceSegmenter] = {}


def segmenter_of(name: str) -> HuggingFaceSegmenter:
    """Built once a run."""
    if name not in _built:
        _built[name] = build_segmenter(name)
    return _built[name]


def prompt_kinds(mask_size: int) -> dict[str, Prompts]:
    generator = np.random.default_rng(0)
    points, labels, box = [[[40.0, 30], [100, 80], [5, 60]]], [[1, 0, 1]], [[20.0, 15, 110, 70]]
    mask = generator.normal(0, 6, (1, mask_size, mask_size)).astype(np.float32)
    return {
        "point": Prompts([[[40.0, 30]]]),
        "points": Prompts(points, labels),
        "box": Prompts(boxes_xyxy=box),
        "box and points": Prompts(points, labels, boxes_xyxy=box),
        "mask and point": Prompts([[[40.0, 30]]], mask_logits=mask),
        "mask": Prompts(mask_logits=mask),
    }


def own_inputs(segmenter: HuggingFaceSegmenter, prompts: Prompts) -> dict[str, Any]:
    """A prompt as transformers' processors hand it to the model."""
    scale = torch.tensor(segmenter.transform_for(SIZE_HW).scale_xy, dtype=torch.float64)
    inputs: dict[str, Any] = {}
    if prompts.points_xy is not None:
        inputs |= {"input_points": (prompts.points_xy * scale).float()[None], "input_labels": prompts.labels[None]}
    if prompts.boxes_xyxy is not None:
        inputs["input_boxes"] = (prompts.boxes_xyxy * scale.repeat(2)).float()[None]
    if prompts.mask_logits is not None:
        inputs["input_masks"] = prompts.mask_logits[:, None]
    return inputs


@pytest.mark.parametrize("name", NAMES)
def test_numbers_of_its_own_forward(name, picture):
    segmenter = segmenter_of(name)
    image = picture(*SIZE_HW, 1)
    pixels = segmenter.pixel_values(segmenter._resize(image, segmenter.transform_for(SIZE_HW)))[None]
    embedding = segmenter.encode(image)
    model: Any = segmenter.model
    if hasattr(model.mask_decoder, "dynamic_multimask_via_stability"):
        model.mask_decoder.dynamic_multimask_via_stability = False
    try:
        for kind, prompts in prompt_kinds(segmenter.mask_input_size[0]).items():
            if kind == "mask" and name in SAM2_LIKE:
                continue  # transformers adds two tokens that say "not a point"; tested below
            all_tokens = segmenter.decode(embedding, prompts, multimask="all")
            for multimask, tokens in ((True, [1, 2, 3]), (False, [0])):
                cand = segmenter.decode(embedding, prompts, multimask=multimask)
                assert cand.token_index.tolist() == tokens
                torch.testing.assert_close(cand.logits, all_tokens.for_tokens(tokens).logits, msg=kind)
                image_inputs = {"pixel_values": pixels}
                if name == "SAM 3 tracker":  # its own image path is wrong: below
                    levels = [embedding.features[level] for level in ("stride_4", "stride_8", "image")]
                    image_inputs = {"image_embeddings": levels}
                with torch.no_grad():
                    out = model(**image_inputs, **own_inputs(segmenter, prompts), multimask_output=multimask)
                scores = cand.predicted_iou[0]
                if name == "SAM-HQ":
                    scores = scores.sort(descending=True).values
                else:  # SAM-HQ's own masks are wrong: below
                    torch.testing.assert_close(cand.logits, out.pred_masks[0], atol=TOLERANCE, rtol=TOLERANCE, msg=kind)
                torch.testing.assert_close(scores, out.iou_scores[0, 0], atol=TOLERANCE, rtol=TOLERANCE, msg=kind)
                if name in SAM2_LIKE:
                    expected = out.object_score_logits.reshape(-1)
                    torch.testing.assert_close(cand.object_score, expected, atol=TOLERANCE, rtol=TOLERANCE)
                else:
                    assert cand.object_score is None
    finally:
        if hasattr(model.mask_decoder, "dynamic_multimask_via_stability"):
            model.mask_decoder.dynamic_multimask_via_stability = True


@pytest.mark.parametrize("name", SAM2_LIKE)
def test_a_mask_alone_has_no_token(name, picture):
    """As in SAM 2's own image predictor; with a token that says "not a point" the numbers are others."""
    segmenter = segmenter_of(name)
    model: Any = segmenter.model
    prompts = prompt_kinds(segmenter.mask_input_size[0])["mask"]
    embedding = segmenter.encode(picture(*SIZE_HW, 1))
    features = embedding.features
    dense = model.prompt_encoder.mask_embed(prompts.mask_logits[:, None])
    arguments = (features["image"], model.get_image_wide_positional_embeddings())
    keywords = {"multimask_output": True, "high_resolution_features": [features["stride_4"], features["stride_8"]]}
    nothing = model.prompt_encoder.not_a_point_embed.weight[None, None].expand(1, 1, 2, -1)
    expected, _, _, _ = model.mask_decoder(*arguments, nothing[:, :, :0], dense, **keywords)
    with_tokens, _, _, _ = model.mask_decoder(*arguments, nothing, dense, **keywords)
    cand = segmenter.decode(embedding, prompts)
    torch.testing.assert_close(cand.logits, expected[0], atol=TOLERANCE, rtol=TOLERANCE)
    assert (cand.logits - with_tokens[0]).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_equals_a_loop(name, picture):
    """K prompts of all kinds, masks among them, about images of several sizes in one call."""
    segmenter = segmenter_of(name)
    images = [picture(90, 130, 1), picture(130, 115, 2), picture(120, 120, 3)]
    embedding = segmenter.encode(images)
    kinds = prompt_kinds(segmenter.mask_input_size[0]).values()
    single = [(kind, i) for i in range(3) for kind in kinds]
    prompts = Prompts.cat([Prompts(*_fields(kind), image_index=[i]) for kind, i in single])
    together = segmenter.decode(embedding, prompts, multimask="all")
    for row, (kind, i) in enumerate(single):
        alone = segmenter.decode(segmenter.encode(images[i]), kind, multimask="all")
        torch.testing.assert_close(together.logits[row], alone.logits[0], atol=3e-4, rtol=TOLERANCE)
        torch.testing.assert_close(together.predicted_iou[row], alone.predicted_iou[0], atol=TOLERANCE, rtol=TOLERANCE)
        if alone.object_score is not None:
            torch.testing.assert_close(together.object_score[row], alone.object_score[0], atol=1e-4, rtol=1e-4)


def _fields(prompts: Prompts) -> tuple[Any, ...]:
    return prompts.points_xy, prompts.labels, prompts.boxes_xyxy, prompts.mask_logits


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_the_mask_prompt_and_the_embedding(name, picture):
    segmenter = segmenter_of(name)
    embedding = segmenter.encode(picture(*SIZE_HW, 1))
    for values in embedding.features.values():
        values.requires_grad_(True)
    side = segmenter.mask_input_size[0]
    mask = torch.randn(1, side, side, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    cand = segmenter.decode(embedding, Prompts([[[40.0, 30]]], mask_logits=mask))
    (cand.logits.square().mean() + cand.predicted_iou.sum()).backward()
    for values in (mask, *embedding.features.values()):
        assert values.grad is not None
        assert values.grad.abs().max() > 0


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_is_near_and_float32_outside(name, picture):
    segmenter = segmenter_of(name)
    half = HuggingFaceSegmenter(segmenter.model, segmenter.family, name="half", dtype=torch.bfloat16)
    image, prompts = picture(*SIZE_HW, 1), Prompts([[[40.0, 30]]])
    full, reduced = (s.decode(s.encode(image), prompts) for s in (segmenter, half))
    assert reduced.logits.dtype == reduced.predicted_iou.dtype == torch.float32
    assert torch.corrcoef(torch.stack([full.logits.flatten(), reduced.logits.flatten()]))[0, 1] > 0.98
    assert not torch.equal(full.logits, reduced.logits)


@pytest.mark.parametrize("name", NAMES)
def test_levels_and_quality(name, picture):
    """Jobs 1 and 2 stand on every family."""
    segmenter = segmenter_of(name)
    image = picture(*SIZE_HW, 1)
    hierarchy = segmenter.decode(segmenter.encode(image), Prompts([[[40.0, 30]]])).hierarchy()
    assert isinstance(hierarchy, MaskHierarchy)
    assert hierarchy.masks.shape == (1, 3, *SIZE_HW)
    masks = torch.zeros(2, *SIZE_HW, dtype=torch.bool)
    masks[0, 10:60, 20:90], masks[1, 30:50, 30:50] = True, True
    quality = MaskQualityEstimator(segmenter).estimate(image, masks)
    assert quality.quality.shape == (2,)
    assert (quality.lower_bound <= quality.upper_bound).all()
    assert ((quality.soft_iou > 0) & (quality.soft_iou <= 1)).all()


def test_masks_are_compared_with_the_part_of_sam_hq_that_its_head_speaks_of(picture):
    segmenter, bare = segmenter_of("SAM-HQ"), copy.deepcopy(segmenter_of("SAM-HQ"))
    for values in bare.model.mask_decoder.hq_mask_mlp.proj_out.parameters():
        values.data.zero_()  # nothing is added to the SAM part
    image, prompts = picture(*SIZE_HW, 1), Prompts([[[40.0, 30]]])
    masks = torch.zeros(2, *SIZE_HW, dtype=torch.bool)
    masks[0, 10:60, 20:90], masks[1, 30:50, 30:50] = True, True
    with_hq, without = (s.decode(s.encode(image), prompts) for s in (segmenter, bare))
    torch.testing.assert_close(with_hq.predicted_iou, without.predicted_iou)
    assert not torch.equal(with_hq.masks(), without.masks())
    scores, expected = (MaskQualityEstimator(s).estimate(image, masks) for s in (segmenter, bare))
    assert scores.best_sam_masks.rles == expected.best_sam_masks.rles
    torch.testing.assert_close(scores.lower_bound, expected.lower_bound)
    torch.testing.assert_close(scores.soft_iou, expected.soft_iou)


# --- preprocessing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size_hw", [(90, 130), (200, 77), (128, 128)])
def test_pixels_of_its_own_processor(size_hw, picture):
    from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil
    from transformers.models.sam2.image_processing_sam2 import Sam2ImageProcessor

    image = picture(*size_hw, 4)
    side = {"height": FRAME, "width": FRAME}
    processors = {
        "SAM": SamImageProcessorPil(size={"longest_edge": FRAME}, pad_size=side),
        "SAM 2": Sam2ImageProcessor(size=side),
        "SAM 3 tracker": Sam2ImageProcessor(size=side, image_mean=[0.5] * 3, image_std=[0.5] * 3),
    }
    for name, processor in processors.items():
        segmenter = segmenter_of(name)
        expected = processor(image, return_tensors="pt")["pixel_values"][0]
        came = segmenter.pixel_values(segmenter._resize(image, segmenter.transform_for(size_hw)))
        torch.testing.assert_close(came, expected.float(), atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("name", NAMES)
def test_read_only_pictures_are_taken_as_others_are(name, picture):
    """np.asarray of a PIL image is one; torch would warn, which is an error here."""
    image, segmenter = picture(60, 90, 0), build_segmenter(name)
    expected = segmenter.encode(image)
    locked = image.copy()
    locked.flags.writeable = False
    prompts = Prompts([[[20.0, 30]]])
    torch.testing.assert_close(
        segmenter.decode(segmenter.encode(locked), prompts).logits, segmenter.decode(expected, prompts).logits
    )


def test_frames():
    """SAM letterboxes, SAM 2 squashes; a mask prompt goes the same way."""
    assert segmenter_of("SAM").transform_for((90, 130)) == ImageTransform.letterbox((90, 130), FRAME)
    assert segmenter_of("SAM 2").transform_for((90, 130)) == ImageTransform.squash((90, 130), (FRAME, FRAME))
    mask = torch.ones(1, 90, 130, dtype=torch.bool)
    for name, filled in (("SAM", False), ("SAM 2", True)):
        logits = Prompts.from_masks(mask, segmenter_of(name), kind="mask").mask_logits
        assert logits is not None
        assert bool((logits > 0).all()) == filled


# --- traps ------------------------------------------------------------------------------------------------------------


def test_the_single_mask_is_never_switched(picture):
    """SAM 2's forward answers another token's mask where the single one is unstable; ours answers token 0."""
    segmenter = segmenter_of("SAM 2")
    image = picture(*SIZE_HW, 1)
    embedding, prompts = segmenter.encode(image), Prompts([[[40.0, 30]]])
    cand = segmenter.decode(embedding, prompts, multimask="all")
    pixels = segmenter.pixel_values(segmenter._resize(image, segmenter.transform_for(SIZE_HW)))[None]
    model: Any = segmenter.model
    model.mask_decoder.dynamic_multimask_stability_thresh = 1.1  # nothing is stable enough
    try:
        with torch.no_grad():
            switched = model(pixels, **own_inputs(segmenter, prompts), multimask_output=False).pred_masks[0, 0]
    finally:
        model.mask_decoder.dynamic_multimask_stability_thresh = 0.98
    best = 1 + int(cand.predicted_iou[0, 1:].argmax())
    torch.testing.assert_close(switched[0], cand.logits[0, best], atol=TOLERANCE, rtol=TOLERANCE)
    assert (segmenter.decode(embedding, prompts, multimask=False).logits[0, 0] - switched[0]).abs().max() > 0.01


def test_sam_3_gets_its_embedding_of_no_memory(picture):
    """In transformers the image model adds it to a level that it drops, the video model to the one that is read."""
    segmenter = segmenter_of("SAM 3 tracker")
    image = picture(*SIZE_HW, 1)
    model: Any = segmenter.model
    levels = model.vision_encoder(
        segmenter.pixel_values(segmenter._resize(image, segmenter.transform_for(SIZE_HW)))[None]
    )
    expected = levels.fpn_hidden_states[2] + model.no_memory_embedding.reshape(1, -1, 1, 1)
    torch.testing.assert_close(segmenter.encode(image).features["image"], expected, atol=1e-5, rtol=1e-5)
    assert model.no_memory_embedding.abs().max() > 0.1


def test_sam_hq_is_the_published_decoder(picture):
    """Against segment-anything's own decoder with a fifth mask token, whose features are SAM-HQ's."""
    segmenter = segmenter_of("SAM-HQ")
    own: Any = segmenter.model.mask_decoder
    reference = MaskDecoder(
        num_multimask_outputs=4,
        transformer=TwoWayTransformer(depth=2, embedding_dim=WIDTH, mlp_dim=64, num_heads=4),
        transformer_dim=WIDTH,
        iou_head_depth=3,
        iou_head_hidden_dim=WIDTH,
    ).eval()
    ours, theirs = own.state_dict(), {}
    for key in reference.state_dict():
        if "iou_prediction_head" in key:
            continue
        name = transformers_name(f"mask_decoder.{key}").removeprefix("mask_decoder.")
        if key.startswith("output_hypernetworks_mlps.4."):
            layer = {"0": "proj_in", "1": "layers.0", "2": "proj_out"}[key.split(".")[3]]
            name = f"hq_mask_mlp.{layer}.{key.split('.')[4]}"
        theirs[key] = ours[name]
    theirs["mask_tokens.weight"] = torch.cat([ours["mask_tokens.weight"], ours["hq_token.weight"]])
    reference.load_state_dict(theirs, strict=False)

    image = picture(*SIZE_HW, 1)
    embedding = segmenter.encode(image)
    seen: Any = segmenter.model.vision_encoder(
        segmenter.pixel_values(segmenter._resize(image, segmenter.transform_for(SIZE_HW)))[None]
    )
    early = own.compress_vit_conv1(seen.intermediate_embeddings[0].permute(0, 3, 1, 2))
    hq = own.compress_vit_conv2(nn.functional.gelu(own.compress_vit_norm(early)))
    coarse = nn.functional.gelu(own.encoder_norm(own.encoder_conv1(seen.last_hidden_state)))
    hq = hq + own.encoder_conv2(coarse)
    caught: dict[str, torch.Tensor] = {}
    reference.output_upscaling.register_forward_hook(lambda _, __, out: caught.update(upscaled=out))
    reference.output_hypernetworks_mlps[4].register_forward_hook(lambda _, __, out: caught.update(weight=out))
    for kind, prompts in prompt_kinds(segmenter.mask_input_size[0]).items():
        cand = segmenter.decode(embedding, prompts, multimask="all")
        sparse, dense = _embedded(segmenter, prompts)
        pe = segmenter.model.get_image_wide_positional_embeddings()
        masks, _ = reference.predict_masks(seen.last_hidden_state, pe, sparse, dense)
        features = nn.functional.gelu(own.mask_norm(own.mask_conv1(caught["upscaled"])))
        fine = own.mask_conv2(features) + hq
        expected = masks[:, :4] + torch.einsum("kc,kchw->khw", caught["weight"], fine)[:, None]
        torch.testing.assert_close(cand.logits, expected, atol=TOLERANCE, rtol=TOLERANCE, msg=kind)


def _embedded(segmenter: HuggingFaceSegmenter, prompts: Prompts) -> tuple[torch.Tensor, torch.Tensor]:
    model: Any = segmenter.model
    inputs = {"input_points": None, "input_labels": None, "input_boxes": None, "input_masks": None}
    sparse, dense = model.prompt_encoder(**{**inputs, **own_inputs(segmenter, prompts)})
    return torch.zeros(1, 0, WIDTH) if sparse is None else sparse[0], dense


# --- the same weights, two implementations ----------------------------------------------------------------------------


def assert_same_as_segment_anything(ours: SamSegmenter, theirs: HuggingFaceSegmenter, image: np.ndarray) -> None:
    one, other = ours.encode(image), theirs.encode(image)
    torch.testing.assert_close(one.features["image"], other.features["image"], atol=TOLERANCE, rtol=TOLERANCE)
    height, width = image.shape[:2]
    scale = torch.tensor([width / SIZE_HW[1], height / SIZE_HW[0]], dtype=torch.float64)
    for kind, small in prompt_kinds(ours.mask_input_size[0]).items():
        points, labels, boxes, mask = _fields(small)
        prompts = Prompts(
            None if points is None else points * scale,
            labels,
            None if boxes is None else boxes * scale.repeat(2),
            mask,
        )
        expected = ours.decode(one, prompts, multimask="all")
        came = theirs.decode(other, prompts, multimask="all")
        torch.testing.assert_close(came.logits, expected.logits, atol=TOLERANCE, rtol=TOLERANCE, msg=kind)
        torch.testing.assert_close(came.predicted_iou, expected.predicted_iou, atol=TOLERANCE, rtol=TOLERANCE)
        clear = expected.logits.abs().min() > TOLERANCE
        assert not clear or torch.equal(came.masks(), expected.masks())


def test_same_weights_as_a_small_sam(small_sam, segmenter, picture):
    converted = build_segmenter("SAM", seed=1)
    converted.model.load_state_dict(to_transformers(small_sam.state_dict()))
    for size_hw in ((90, 130), (140, 61)):
        assert_same_as_segment_anything(segmenter, converted, picture(*size_hw, 5))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_same_weights_as_sam_vit_b(picture, tmp_path):
    """One state on disk in either form, loaded by either name."""
    from transformers import SamConfig, SamModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = build_sam_vit_b().state_dict()
    torch.save(state, tmp_path / "sam_vit_b.pth")
    model = SamModel(SamConfig())
    model.load_state_dict(to_transformers(state))
    model.save_pretrained(tmp_path / "converted")
    ours = load_segmenter("sam_vit_b", checkpoint=tmp_path / "sam_vit_b.pth", device="cpu")
    theirs = load_segmenter(f"hf:{tmp_path / 'converted'}", device="cpu")
    assert isinstance(ours, SamSegmenter)
    assert isinstance(theirs, HuggingFaceSegmenter)
    assert_same_as_segment_anything(ours, theirs, picture(300, 400, 6))
