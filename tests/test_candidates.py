"""Candidates: upscaling against segment-anything, mixed images, streaming, and the ways on from there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from segment_anything.modeling import Sam
from torch import nn

from arrcoc_sam.candidates import MaskCandidates, ensemble, select
from arrcoc_sam.errors import HierarchyError, InputError, MixedSizesError, ShapeError, UnknownNameError
from arrcoc_sam.geometry import ImageTransform
from arrcoc_sam.upscaling import interpolate_twice, upscale

LOW = 16  # a quarter of the model's frame of 64 px, as in SAM
FRAME = 64


class _Frame(nn.Module):
    img_size = FRAME


def reference_masks(logits: torch.Tensor, original_hw: tuple[int, int]) -> torch.Tensor:
    """What segment-anything's own postprocessing makes of them."""
    sam = Sam(_Frame(), nn.Identity(), nn.Identity())
    scale = FRAME / max(original_hw)
    input_hw = tuple(int(side * scale + 0.5) for side in original_hw)
    return sam.postprocess_masks(logits, input_hw, original_hw)


def make(
    sizes: list[tuple[int, int]], image_index: list[int], tokens: tuple[int, ...] = (1, 2, 3), seed: int = 0
) -> MaskCandidates:
    generator = torch.Generator().manual_seed(seed)
    shape = (len(image_index), len(tokens))
    # smooth, so that masks are blobs
    noise = torch.randn(*shape, 5, 5, generator=generator)
    logits = nn.functional.interpolate(noise, (LOW, LOW), mode="bicubic") * 4
    return MaskCandidates(
        logits=logits,
        predicted_iou=torch.rand(shape, generator=generator) * 1.2 - 0.1,
        token_index=torch.tensor(tokens),
        image_index=torch.tensor(image_index, dtype=torch.int64),
        transforms=tuple(ImageTransform.letterbox(size, FRAME) for size in sizes),
    )


@pytest.mark.parametrize("size", [(64, 64), (48, 100), (130, 33), (8, 9), (37, 500), (201, 200)])
def test_upscale_equals_segment_anything(size):
    cand = make([size], [0, 0])
    expected = reference_masks(cand.logits, size)
    came = upscale(cand.logits, cand.transforms[0])
    assert came.shape == (2, 3, *size)
    torch.testing.assert_close(came, expected, rtol=0, atol=1e-5)
    for threshold in (0.0, 1.5):
        clear = (expected - threshold).abs() > 1e-5
        assert torch.equal(cand.masks(threshold=threshold)[clear], (expected > threshold)[clear])
    same = interpolate_twice(cand.logits, cand.transforms[0], size)
    torch.testing.assert_close(same, expected, rtol=0, atol=0)


def test_upscale_is_differentiable():
    cand = make([(20, 30)], [0])
    logits = cand.logits.clone().requires_grad_()
    upscale(logits, cand.transforms[0]).sum().backward()
    assert logits.grad is not None
    # what lies under the padding is cut off, but for what the interpolation reaches
    assert logits.grad[..., :10, :].abs().sum() > 0
    assert not logits.grad[..., 13:, :].any()


def test_masks_in_steps_equal_masks_at_once(monkeypatch):
    cand = make([(50, 40)], [0] * 7)
    at_once = cand.masks()
    monkeypatch.setattr("arrcoc_sam.candidates._STEP_CPU", 3 * FRAME * FRAME * 2)
    assert cand._step(cand.transforms[0], (50, 40)) == 2
    assert torch.equal(cand.masks(), at_once)


def test_mixed_sizes_stream_in_order_and_refuse_one_array():
    sizes = [(30, 50), (64, 20), (30, 50)]
    index = [1, 0, 2, 1, 0, 0, 2]
    cand = make(sizes, index)
    with pytest.raises(MixedSizesError, match=r"2 sizes \[\(30, 50\), \(64, 20\)\].*iter_masks"):
        cand.masks()
    with pytest.raises(MixedSizesError):
        cand.hierarchy()
    for chunk_size in (1, 3, 100):
        came = list(cand.iter_masks(chunk_size=chunk_size))
        assert [k for k, _ in came] == list(range(7))
        for k, masks in came:
            expected = reference_masks(cand.logits[k : k + 1], sizes[index[k]])[0] > 0
            assert torch.equal(masks, expected)
    # images 0 and 2 have one size
    assert cand[torch.tensor([1, 2, 4])].masks().shape == (3, 3, 30, 50)
    # a size that is named brings all to it
    named = cand.masks(size=(12, 17))
    assert named.shape == (7, 3, 12, 17)
    for k in range(7):
        assert torch.equal(
            named[k], upscale(cand.logits[k : k + 1], cand.transforms[index[k]], size_hw=(12, 17))[0] > 0
        )


def test_sizes_rows_and_images():
    cand = make([(30, 50), (64, 20)], [1, 0, 1])
    assert len(cand) == 3
    assert cand.sizes_hw.tolist() == [[64, 20], [30, 50], [64, 20]]
    assert cand[1].sizes_hw.tolist() == [[30, 50]]
    assert torch.equal(cand[-1].logits, cand.logits[2:])
    assert torch.equal(cand[[2, 0]].predicted_iou, cand.predicted_iou[[2, 0]])
    assert torch.equal(cand.for_image(1).logits, cand.logits[[0, 2]])
    assert cand.for_image(1).masks().shape == (2, 3, 64, 20)
    assert [len(one) for one in cand] == [1, 1, 1]
    with pytest.raises(IndexError, match="prompt 3 of 3"):
        cand[3]
    with pytest.raises(InputError, match="image 2 of 2"):
        cand.for_image(2)
    assert len(make([(30, 50), (64, 20)], [1]).for_image(0)) == 0


def test_object_scores_go_along():
    cand = make([(30, 50)], [0, 0, 0])
    with_scores = MaskCandidates(
        cand.logits, cand.predicted_iou, cand.token_index, cand.image_index, cand.transforms, torch.tensor([1.0, -2, 3])
    )
    assert with_scores[1:].object_score.tolist() == [-2, 3]
    assert with_scores.for_tokens([2]).object_score.tolist() == [1, -2, 3]
    assert with_scores.to("cpu").object_score.tolist() == [1, -2, 3]
    assert cand[0].object_score is None


def test_stability_by_counting_without_the_padding():
    cand = make([(32, 64), (64, 16)], [0, 1, 0])
    # the first image takes the upper 8 of 16 rows, the second the left 4 of 16 columns
    shown = [(slice(0, 8), slice(0, 16)), (slice(0, 16), slice(0, 4)), (slice(0, 8), slice(0, 16))]
    for k, (rows, columns) in enumerate(shown):
        for m in range(3):
            logits = cand.logits[k, m, rows, columns].flatten().tolist()
            expected = sum(v > 1 for v in logits) / sum(v > -1 for v in logits)
            assert cand.stability[k, m].item() == pytest.approx(expected)


def test_stability_of_levels_is_that_of_their_tokens():
    cand = make([(32, 64)], [0, 0, 0, 0])
    levels = cand.hierarchy()
    assert levels.token_index.tolist() != [cand.token_index.tolist()] * 4  # levels are sorted by area
    columns = [[cand.token_index.tolist().index(token) for token in row] for row in levels.token_index.tolist()]
    assert torch.equal(cand.stability_of(levels), cand.stability.gather(1, torch.tensor(columns)))


def test_stability_of_nothing_is_nan():
    cand = make([(32, 64)], [0])
    empty = MaskCandidates(
        torch.full_like(cand.logits, -5.0), cand.predicted_iou, cand.token_index, cand.image_index, cand.transforms
    )
    assert empty.stability.isnan().all()


def test_hierarchy_is_read_from_tokens_one_to_three():
    cand = make([(40, 64)], [0, 0, 0, 0], tokens=(0, 1, 2, 3))
    hierarchy = cand.hierarchy()
    masks = cand.masks()
    for k in range(4):
        areas = {token: int(masks[k, token].sum()) for token in (1, 2, 3)}
        order = sorted(areas, key=lambda token: -areas[token])
        assert hierarchy.token_index[k].tolist() == order
        assert hierarchy.areas[k].tolist() == [areas[token] for token in order]
        assert hierarchy.scores[k].tolist() == cand.predicted_iou[k, order].tolist()
        assert torch.equal(hierarchy.masks[k], masks[k, order])
    everything = cand.hierarchy(distinct_iou=1.0, nested_share=0.0)
    assert everything.distinct.all()
    for tokens in ((0,), (1, 2), (0, 1, 2)):
        with pytest.raises(HierarchyError, match=r"tokens 1, 2 and 3.*multimask=True"):
            make([(40, 64)], [0], tokens=tokens).hierarchy()


def test_tokens_can_be_taken():
    cand = make([(40, 64)], [0, 0], tokens=(0, 1, 2, 3))
    assert cand.for_tokens([2, 0]).token_index.tolist() == [2, 0]
    assert torch.equal(cand.for_tokens([2, 0]).logits, cand.logits[:, [2, 0]])
    with pytest.raises(InputError, match=r"tokens \[4\] of candidates of tokens \[0, 1, 2, 3\]"):
        cand.for_tokens([4])


def test_select_and_ensemble_work_on_masks_at_the_original_size():
    cand = make([(40, 64)], [0] * 6, tokens=(0, 1, 2, 3))
    masks = cand.masks()
    rows = torch.arange(6)
    chosen = select(cand, "automatic")
    assert chosen.index.tolist() == cand.predicted_iou.argmax(-1).tolist()
    assert torch.equal(chosen.masks, masks[rows, chosen.index])
    assert torch.equal(chosen.score, cand.predicted_iou.amax(-1))
    stable = select(cand, "stability")
    assert torch.equal(cand.stability[rows, stable.index], cand.stability.amax(-1))
    assert torch.equal(select(cand, "largest").index, masks.sum((-2, -1)).argmax(-1))
    oracle = select(cand, "oracle", target=masks[:, 2])
    assert oracle.index.tolist() == [2] * 6
    assert oracle.score.tolist() == [1.0] * 6
    # levels look at tokens 1-3 only, and count candidates as they came
    for rank, level in enumerate(("whole", "part", "subpart")):
        assert torch.equal(select(cand, level).index, cand.hierarchy().token_index[:, rank])
    strict = select(cand, "largest", threshold=2.0)
    assert torch.equal(strict.masks, cand.masks(threshold=2.0)[rows, strict.index])
    assert torch.equal(ensemble(cand, "union"), masks.any(1))
    assert torch.equal(ensemble(cand, "voting"), masks.sum(1) > 2)


def test_select_says_what_is_wrong_before_it_upscales(monkeypatch):
    cand = make([(40, 64)], [0])
    monkeypatch.setattr(MaskCandidates, "masks", lambda self, **kw: pytest.fail("upscaled"))
    with pytest.raises(UnknownNameError, match="expected one of automatic"):
        select(cand, "best")
    with pytest.raises(InputError, match="without target"):
        select(cand, "oracle")
    with pytest.raises(InputError, match="'automatic' with targt"):
        select(cand, "automatic", targt=1)
    with pytest.raises(HierarchyError, match="'whole'"):
        select(cand.for_tokens([1, 2]), "whole")


def test_no_prompts():
    cand = make([(40, 64)], [])
    assert cand.masks().shape == (0, 3, 40, 64)
    assert list(cand.iter_masks()) == []
    assert len(cand.hierarchy()) == 0
    assert cand.stability.shape == (0, 3)
    assert len(select(cand, "automatic")) == 0
    with pytest.raises(MixedSizesError):
        make([(40, 64), (9, 9)], []).masks()


@pytest.mark.usefixtures("as_at_run_time")
def test_shapes_are_checked():
    cand = make([(40, 64)], [0, 0])
    arguments = (cand.token_index, cand.image_index, cand.transforms)
    with pytest.raises(ShapeError, match=r"logits is .*expected \(K, M, h, w\)"):
        MaskCandidates(cand.logits[0], cand.predicted_iou, *arguments)
    with pytest.raises(ShapeError, match=r"predicted_iou is .*expected shape \(2, 3\)"):
        MaskCandidates(cand.logits, cand.predicted_iou[:, :2], *arguments)
    with pytest.raises(InputError, match="chunk_size=0"):
        cand.iter_masks(chunk_size=0)
    with pytest.raises(InputError, match="size="):
        cand.masks(size=(0, 4))


def test_repr_has_sizes_not_numbers():
    candidates = make([(30, 40), (20, 20)], [0, 1])
    assert repr(candidates) == ("MaskCandidates(2 prompts x 3 masks, tokens 1, 2, 3; 16 x 16 logits, 2 images, on cpu)")
    levels = candidates[0].hierarchy()
    assert repr(levels) == f"MaskHierarchy(1 prompts, {int(levels.valid)} valid; 30 x 40 pixels, on cpu)"


def test_integers_of_every_library_keep_the_axis():
    cand = make([(40, 60), (30, 30)], [0, 1, 1])
    hierarchy = cand.for_image(1).hierarchy()
    for one in (1, np.int64(1), torch.tensor(1), -2):
        assert len(cand[one]) == 1
        assert torch.equal(cand[one].logits[0], cand.logits[1])
        assert hierarchy[one if one != -2 else -1].masks.shape == (1, 3, 30, 30)
    for some in ([2, 0], np.array([2, 0]), torch.tensor([2, 0]), [True, False, True]):
        assert len(cand[some]) == 2
    with pytest.raises(IndexError, match="prompt 3 of 3"):
        cand[np.int64(3)]


def test_an_image_without_prompts_still_has_its_size(as_at_run_time):
    cand = make([(40, 60), (30, 30), (20, 50)], [0, 2])
    assert [tuple(cand.for_image(image).masks().shape) for image in range(3)] == [
        (1, 3, 40, 60),
        (0, 3, 30, 30),
        (1, 3, 20, 50),
    ]
    assert select(cand.for_image(1), "whole").masks.shape == (0, 30, 30)
    for wrong in ("a", 3, -1):
        with pytest.raises(InputError, match="image"):
            cand.for_image(wrong)


@pytest.mark.parametrize("strategy", ["automatic", "stability"])
def test_what_is_chosen_by_numbers_upscales_one_mask_a_prompt(strategy, monkeypatch):
    cand = make([(40, 60)], [0, 0, 0], tokens=(0, 1, 2, 3))
    numbers = cand.stability if strategy == "stability" else cand.predicted_iou
    expected = cand.masks()[torch.arange(3), numbers.argmax(1)]
    sizes = []
    monkeypatch.setattr("arrcoc_sam.candidates.upscale", lambda *a, **k: sizes.append(a[0].shape) or upscale(*a, **k))
    selection = select(cand, strategy)
    assert torch.equal(selection.masks, expected)
    assert torch.equal(selection.index, numbers.argmax(1))
    assert torch.equal(selection.score, cand.predicted_iou[torch.arange(3), numbers.argmax(1)])
    assert sum(shape[0] * shape[1] for shape in sizes) == 3


def test_stability_of_levels_of_tokens_in_another_order():
    cand = make([(40, 60)], [0, 0], tokens=(0, 1, 2, 3))
    for order in ((2, 1, 3), (3, 1, 2)):
        some = cand.for_tokens(order)
        levels = some.hierarchy()
        expected = cand.stability.gather(1, levels.token_index)  # all tokens are there: a token is its column
        torch.testing.assert_close(some.stability_of(levels), expected)


def test_masks_in_place_of_candidates_are_refused_with_the_function_for_them(as_at_run_time):
    masks = torch.zeros(1, 3, 4, 4, dtype=torch.bool)
    with pytest.raises(InputError, match=r"select_masks\(masks, predicted_iou, strategy\)"):
        select(masks, "automatic")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"ensemble_masks\(masks, predicted_iou, method\)"):
        ensemble(masks, "union")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"chunk_size=2\.5; expected a whole number"):
        make([(8, 8)], [0]).iter_masks(chunk_size=2.5)  # type: ignore[arg-type]
