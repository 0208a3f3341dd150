"""What all segmenters share: encoding, grouping, order, chunks, gradients, precision, and clear errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from segment_anything.modeling import Sam

from arrcoc_sam.errors import EmbeddingMismatchError, ImageReadError, ImageTooLargeError, InputError, ShapeError
from arrcoc_sam.inputs import choose_device
from arrcoc_sam.prompts import Prompts
from arrcoc_sam.segmenters.base import MIN_IMAGE_SIDE
from arrcoc_sam.segmenters.embedding import ImageEmbedding
from arrcoc_sam.segmenters.sam import SamSegmenter, stock_decoder

SIZES = [(96, 128), (150, 61), (40, 33)]


@pytest.fixture(scope="module")
def images(picture):
    return [picture(*size, seed=seed) for seed, size in enumerate(SIZES)]


@pytest.fixture(scope="module")
def embedding(segmenter, images) -> ImageEmbedding:
    return segmenter.encode(images)


# --- encoding -------------------------------------------------------------------------------------------------------


def test_images_of_several_sizes_in_one_batch_equal_one_at_a_time(segmenter, images, embedding):
    assert len(embedding) == 3
    assert embedding.sizes_hw == tuple(SIZES)
    for chunk_size in (1, 2, None):
        came = segmenter.encode(images, chunk_size=chunk_size)
        torch.testing.assert_close(came.features["image"], embedding.features["image"], rtol=1e-5, atol=1e-5)
    for index, image in enumerate(images):
        alone = segmenter.encode(image)
        torch.testing.assert_close(alone.features["image"], embedding[index].features["image"], rtol=1e-5, atol=1e-5)
        assert alone.transforms == embedding[index].transforms


def test_paths_pil_images_and_arrays_are_the_same_image(segmenter, images, tmp_path):
    Image.fromarray(images[0]).save(tmp_path / "image.png")
    expected = segmenter.encode(images[0]).features["image"]
    for image in (tmp_path / "image.png", str(tmp_path / "image.png"), Image.fromarray(images[0])):
        assert torch.equal(segmenter.encode(image).features["image"], expected)


def test_embedding_can_be_taken_apart_and_joined(embedding):
    assert embedding[1].sizes_hw == (SIZES[1],)
    assert embedding[-1].sizes_hw == (SIZES[2],)
    assert embedding[1:].sizes_hw == tuple(SIZES[1:])
    joined = ImageEmbedding.cat(list(embedding))
    assert torch.equal(joined.features["image"], embedding.features["image"])
    assert joined.transforms == embedding.transforms
    assert torch.equal(embedding.to("cpu").features["image"], embedding.features["image"])
    for one in (np.int64(1), torch.tensor(1), [1], np.array([1]), torch.tensor([1]), [False, True, False]):
        assert embedding[one].sizes_hw == (SIZES[1],)
        assert torch.equal(embedding[one].features["image"], embedding.features["image"][1:2])
    assert embedding[[2, 0]].sizes_hw == (SIZES[2], SIZES[0])
    for past in (3, np.int64(3), torch.tensor(-4)):
        with pytest.raises(IndexError, match=r"image -?\d of 3"):
            embedding[past]
    with pytest.raises(InputError, match="no embeddings"):
        ImageEmbedding.cat([])
    with pytest.raises(ShapeError, match="feature 'image' of 3 images with 1 transforms"):
        ImageEmbedding(embedding.features, embedding.transforms[:1], embedding.checkpoint_hash)


def test_hash_names_weights_and_frame(segmenter, small_sam_of):

    again = SamSegmenter(small_sam_of(), name="another name")
    assert again.checkpoint_hash == segmenter.checkpoint_hash
    assert len(bytes.fromhex(segmenter.checkpoint_hash)) == 32
    other = small_sam_of()
    other.mask_decoder.iou_token.weight[0, 0] += 1e-3
    assert SamSegmenter(other, name="small").checkpoint_hash != segmenter.checkpoint_hash


# --- decoding -------------------------------------------------------------------------------------------------------


def mixed_prompts(seed: int, num_prompts: int) -> Prompts:
    """Prompts of every signature, over all images, in any order, with absent parts between."""
    rng = np.random.default_rng(seed)
    image_index = rng.integers(0, len(SIZES), num_prompts)
    extent = np.array([(SIZES[i][1] - 1, SIZES[i][0] - 1) for i in image_index])
    points = rng.random((num_prompts, 3, 2)) * extent[:, None]
    labels = rng.integers(-1, 2, (num_prompts, 3))
    corners = np.sort(rng.random((num_prompts, 2, 2)), axis=1) * extent[:, None]
    boxes = corners.reshape(num_prompts, 4)
    logits = rng.normal(0, 6, (num_prompts, 32, 32)).astype(np.float32)
    has_box, has_mask = rng.random(num_prompts) < 0.4, rng.random(num_prompts) < 0.4
    boxes[~has_box] = np.nan
    logits[~has_mask] = np.nan
    labels[(labels < 0).all(1) & ~has_box & ~has_mask, 1] = 1
    return Prompts(points, labels, boxes, logits, image_index)


@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10_000), st.integers(1, 9), st.sampled_from([None, 1, 2, 100]))
def test_mixed_prompts_in_one_call_equal_one_at_a_time(segmenter, embedding, seed, num_prompts, chunk_size):
    prompts = mixed_prompts(seed, num_prompts)
    together = segmenter.decode(embedding, prompts, multimask="all", chunk_size=chunk_size)
    assert together.image_index.tolist() == prompts.image_index.tolist()
    assert together.sizes_hw.tolist() == [list(SIZES[i]) for i in prompts.image_index.tolist()]
    for k in range(num_prompts):
        image = int(prompts.image_index[k])
        one = prompts[k]
        alone = Prompts(one.points_xy, one.labels, one.boxes_xyxy, one.mask_logits)  # about the only image
        answer = segmenter.decode(embedding[image], alone, multimask="all")
        torch.testing.assert_close(together.logits[k], answer.logits[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(together.predicted_iou[k], answer.predicted_iou[0], rtol=1e-4, atol=1e-4)
        clear = answer.logits[0].abs() > 1e-3
        assert torch.equal((together.logits[k] > 0)[clear], (answer.logits[0] > 0)[clear])


def test_absent_points_leave_no_trace(segmenter, embedding):
    """A prompt padded with absent points is the prompt without them, not SAM's not-a-point token more."""
    bare = segmenter.decode(embedding, Prompts([[[20.0, 30]]], [[1]]))
    padded = segmenter.decode(embedding, Prompts([[[20.0, 30], [0, 0], [5, 5]]], [[1, -1, -1]]))
    assert torch.equal(bare.logits, padded.logits)


def test_tokens_agree_between_the_three_modes(segmenter, embedding):
    prompts = Prompts([[[20.0, 30]], [[40.0, 50]]], [[1], [1]], image_index=[0, 1])
    every = segmenter.decode(embedding, prompts, multimask="all")
    for multimask, tokens in ((True, [1, 2, 3]), (False, [0])):
        some = segmenter.decode(embedding, prompts, multimask=multimask)
        assert some.token_index.tolist() == tokens
        torch.testing.assert_close(some.logits, every.for_tokens(tokens).logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(some.predicted_iou, every.for_tokens(tokens).predicted_iou, rtol=1e-5, atol=1e-5)


def test_no_prompts(segmenter, embedding):
    cand = segmenter.decode(embedding[0], Prompts([[[5.0, 5]]])[:0])
    assert len(cand) == 0
    assert cand.logits.shape == (0, 3, 32, 32)
    assert cand.masks().shape == (0, 3, *SIZES[0])
    assert len(cand.hierarchy()) == 0


def test_logits_fed_back_refine(segmenter, embedding):
    """Candidates' logits are mask prompts as they are."""
    first = segmenter.decode(embedding[0], Prompts([[[20.0, 30]]], [[1]]), multimask=False)
    second = segmenter.decode(embedding[0], Prompts([[[20.0, 30]]], [[1]], mask_logits=first.logits[:, 0]))
    assert second.logits.shape == (1, 3, 32, 32)
    assert not torch.equal(second.logits, first.logits.expand(-1, 3, -1, -1))


def test_mask_prompts_from_masks(segmenter, embedding):
    mask = torch.zeros(1, *SIZES[1], dtype=torch.bool)
    mask[:, 30:90, 10:50] = True
    prompts = Prompts.from_masks(mask, segmenter, kind="mask+point", image_index=[1])
    assert prompts.mask_logits.shape == (1, *segmenter.mask_input_size)
    assert float(prompts.mask_logits.max()) == pytest.approx(segmenter.mask_logit_scale)
    assert len(segmenter.decode(embedding, prompts, multimask="all")) == 1


# --- gradients and precision ----------------------------------------------------------------------------------------


@pytest.fixture
def trainable(small_sam_of) -> SamSegmenter:

    return SamSegmenter(small_sam_of().requires_grad_(True), name="trainable")


def test_gradients_reach_weights_embedding_and_mask_prompts(trainable, images):
    embedding = trainable.encode(images[:2])
    embedding.features["image"].retain_grad()
    logits = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    prompts = Prompts(
        [[[20.0, 30], [0, 0]], [[5.0, 5], [9, 9]], [[1.0, 1], [2, 2]]],
        [[1, -1], [1, 0], [1, -1]],
        mask_logits=logits,
        image_index=[1, 0, 0],
    )
    cand = trainable.decode(embedding, prompts, chunk_size=1)
    (cand.logits.square().mean() + cand.predicted_iou.sum()).backward()
    assert logits.grad is not None
    assert all(logits.grad[k].any() for k in range(3))
    assert all(embedding.features["image"].grad[i].any() for i in range(2))
    for part in ("image_encoder.patch_embed", "mask_decoder.iou_token", "prompt_encoder.point_embeddings.1"):
        assert all(p.grad is not None and p.grad.any() for p in trainable.model.get_submodule(part).parameters()), part


def test_no_graph_under_no_grad_and_of_frozen_models(trainable, segmenter, images):
    prompts = Prompts([[[20.0, 30]]], [[1]])
    with torch.no_grad():
        assert not trainable.decode(trainable.encode(images[0]), prompts).logits.requires_grad
    assert not segmenter.decode(segmenter.encode(images[0]), prompts).logits.requires_grad


class _Seen:
    """Records the dtypes that pass through modules."""

    def __init__(self, model: Sam) -> None:
        self.dtypes: dict[str, set[torch.dtype]] = {}
        modules = {
            "encoder": model.image_encoder.blocks[0].attn.qkv,
            "transformer": model.mask_decoder.transformer.layers[0].cross_attn_token_to_image.q_proj,
            "mask prompt": model.prompt_encoder.mask_downscaling,
            "upscaling": model.mask_decoder.output_upscaling[0],
            "iou head": model.mask_decoder.iou_prediction_head,
        }
        self.hooks = [module.register_forward_hook(self._hook(name)) for name, module in modules.items()]

    def _hook(self, name: str):
        return lambda module, inputs, output: self.dtypes.setdefault(name, set()).add(output.dtype)


@pytest.mark.parametrize("where", ["segmenter", "caller", "nowhere"])
def test_autocast_covers_encoder_and_transformer_only(small_sam_of, images, where):

    model = small_sam_of()
    seen = _Seen(model)
    segmenter = SamSegmenter(model, name="small", dtype=torch.bfloat16 if where == "segmenter" else None)
    assert segmenter.dtype == (torch.bfloat16 if where == "segmenter" else torch.float32)
    prompts = Prompts([[[20.0, 30]]], [[1]], mask_logits=torch.randn(1, 32, 32))
    with torch.autocast("cpu", torch.bfloat16, enabled=where == "caller"):
        embedding = segmenter.encode(images[0])
        cand = segmenter.decode(embedding, prompts)
    half, full = {torch.bfloat16}, {torch.float32}
    reduced = full if where == "nowhere" else half
    assert seen.dtypes == {
        "encoder": reduced,
        "transformer": reduced,
        "mask prompt": full,
        "upscaling": full,
        "iou head": full,
    }
    assert embedding.features["image"].dtype == cand.logits.dtype == cand.predicted_iou.dtype == torch.float32


def test_bfloat16_is_close_to_float32(segmenter, small_sam, images):
    prompts = Prompts([[[20.0, 30]], [[50.0, 70]]], [[1], [1]])
    half = SamSegmenter(small_sam, name="small", dtype=torch.bfloat16)
    exact = segmenter.decode(segmenter.encode(images[0]), prompts)
    rough = half.decode(half.encode(images[0]), prompts)
    assert not torch.equal(exact.logits, rough.logits)
    agreement = ((exact.logits > 0) == (rough.logits > 0)).float().mean()
    assert agreement > 0.97


def test_decoder_path_can_be_replaced(small_sam, images, segmenter):
    asked = []

    def path(*arguments, **keywords):
        asked.append(arguments[5])
        return stock_decoder(*arguments, **keywords)

    other = SamSegmenter(small_sam, name="small", decoder_path=path)
    prompts = Prompts([[[20.0, 30]]], [[1]])
    answer = other.decode(other.encode(images[0]), prompts)
    torch.testing.assert_close(answer.logits, segmenter.decode(segmenter.encode(images[0]), prompts).logits)
    assert asked == [(1, 2, 3)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_gpu_answers_as_the_cpu(small_sam_of, segmenter, embedding, images):
    on_gpu = SamSegmenter(small_sam_of(), name="small", device="cuda")
    prompts = mixed_prompts(seed=0, num_prompts=9)
    expected = segmenter.decode(embedding, prompts, multimask="all")
    # the embedding may lie on either side
    for came in (on_gpu.decode(on_gpu.encode(images), prompts, "all"), on_gpu.decode(embedding, prompts, "all")):
        assert came.logits.device.type == "cuda"
        torch.testing.assert_close(came.logits.cpu(), expected.logits, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(came.predicted_iou.cpu(), expected.predicted_iou, rtol=1e-3, atol=1e-3)
        assert came.stability.shape == (9, 4)
        first = came.for_image(0)
        assert torch.equal(first.hierarchy().areas.cpu(), first.to("cpu").hierarchy().areas.cpu())


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("point", "label"), [((128, 10), 1), ((10, 96), 0), ((-0.6, 10), 1), ((10, -7), 1), ((127.51, 10), 1)]
)
def test_points_outside_the_image_are_named(segmenter, embedding, point, label):
    prompts = Prompts([[[1.0, 1]], [point]], [[1], [label]])
    x, y = point
    message = rf"the point \(x, y\) = \({x:g}, {y:g}\) of prompt 1 lies outside image 0 of width 128 and height 96"
    with pytest.raises(InputError, match=message):
        segmenter.decode(embedding, prompts)


def test_image_reaches_half_a_pixel_beyond_the_outermost_centres(segmenter, embedding):
    corners = [[[-0.5, -0.5]], [[127.5, 95.5]], [[127.0, 95.0]]]
    assert len(segmenter.decode(embedding, Prompts(corners, [[1]] * 3))) == 3
    # the coordinates of an absent point mean nothing
    assert len(segmenter.decode(embedding, Prompts([[[5.0, 5], [9999, 9999]]], [[1, -1]]))) == 1
    # the same point is inside one image and outside another
    with pytest.raises(InputError, match="outside image 2 of width 33 and height 40"):
        segmenter.decode(embedding, Prompts([[[60.0, 20]], [[60.0, 20]]], image_index=[0, 2]))


def test_boxes_beside_the_image_are_named_and_overhanging_ones_are_not(segmenter, embedding):
    assert len(segmenter.decode(embedding, Prompts(boxes_xyxy=[[-20.0, -20, 40, 40], [100, 80, 300, 300]]))) == 2
    with pytest.raises(InputError, match=r"the box .* = \(130, 10, 140, 20\) of prompt 1 lies outside image 0"):
        segmenter.decode(embedding, Prompts(boxes_xyxy=[[1.0, 1, 9, 9], [130, 10, 140, 20]]))


def test_embedding_of_other_weights_is_refused(small_sam_of, segmenter, embedding):

    other = SamSegmenter(small_sam_of(seed=1), name="other")
    with pytest.raises(EmbeddingMismatchError, match=r"expected one of other, .*encode the image with the segmenter"):
        other.decode(embedding, Prompts([[[1.0, 1]]]))
    with pytest.raises(EmbeddingMismatchError, match="different segmenters"):
        ImageEmbedding.cat([embedding, other.encode(np.zeros((20, 20, 3), dtype=np.uint8))])


@pytest.mark.parametrize("size", [(1, 1), (MIN_IMAGE_SIDE - 1, 50), (50, MIN_IMAGE_SIDE - 1), (8, 600), (1200, 10)])
def test_images_that_are_too_small_or_too_narrow(segmenter, size):
    image = np.zeros((*size, 3), dtype=np.uint8)
    message = rf"width {size[1]} and height {size[0]} is too small or too narrow for small.*at least 8 pixels.*32 times"
    with pytest.raises(InputError, match=message):
        segmenter.encode(image)


def test_smallest_and_narrowest_images_work(segmenter):
    for size in ((8, 8), (8, 256), (320, 10)):
        embedding = segmenter.encode(np.full((*size, 3), 99, dtype=np.uint8))
        assert segmenter.decode(embedding, Prompts([[[4.0, 4]]])).masks().shape == (1, 3, *size)


@pytest.mark.usefixtures("as_at_run_time")
def test_other_errors(segmenter, embedding, tmp_path, as_at_run_time):
    prompts = Prompts([[[1.0, 1]]])
    with pytest.raises(InputError, match="no images; expected at least one"):
        segmenter.encode([])
    with pytest.raises(ImageReadError, match=r"none.png"):
        segmenter.encode([np.zeros((20, 20, 3), dtype=np.uint8), tmp_path / "none.png"])
    with pytest.raises(InputError, match="image_index 3 with 3 embedded images; expected 0 to 2"):
        segmenter.decode(embedding, Prompts([[[1.0, 1]]], image_index=[3]))
    with pytest.raises(ShapeError, match=r"mask_logits is .*expected \(K, 32, 32\).*Prompts.from_masks"):
        segmenter.decode(embedding, Prompts(mask_logits=torch.zeros(1, 64, 64)))
    with pytest.raises(InputError, match=r"embedding is a uint8 array .*segmenter\.encode\(image\)"):
        segmenter.decode(np.zeros((20, 20, 3), dtype=np.uint8), prompts)
    with pytest.raises(InputError, match=r"prompts is a list of 1; expected arrcoc_sam\.Prompts"):
        segmenter.decode(embedding, [[1.0, 1]])
    for multimask in ("both", 2, None, 1):
        with pytest.raises(InputError, match="True, False or 'all'"):
            segmenter.decode(embedding, prompts, multimask=multimask)
    for call in (
        lambda: segmenter.encode(tmp_path, chunk_size=0),
        lambda: segmenter.decode(embedding, prompts, chunk_size=0),
        lambda: segmenter.decode(embedding, prompts, chunk_size=0.5),
    ):
        with pytest.raises(InputError, match="chunk_size=0"):
            call()


def test_an_image_may_be_larger_where_more_pixels_are_allowed(segmenter):
    image = np.zeros((30, 40, 3), dtype=np.uint8)
    with pytest.raises(ImageTooLargeError, match="load_image and a segmenter's encode take a larger max_pixels"):
        segmenter.encode(image, max_pixels=1199)
    assert segmenter.encode(image, max_pixels=1200).sizes_hw == ((30, 40),)


def test_devices(as_at_run_time):
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    for device in ("gpu", "cuda:99", "xpu", None):
        with pytest.raises(InputError, match=f"device={device!r}"):
            choose_device(device)


def test_dtypes(small_sam):
    assert SamSegmenter(small_sam, name="small", dtype=torch.float32).dtype == torch.float32
    with pytest.raises(InputError, match=r"dtype=torch.float64; expected None, torch.float32"):
        SamSegmenter(small_sam, name="small", dtype=torch.float64)
    assert repr(SamSegmenter(small_sam, name="small")) == "SamSegmenter('small', 128 px, cpu, torch.float32)"
