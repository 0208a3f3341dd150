"""A model's own attention is what is trained, and nothing else is asked of it."""

from __future__ import annotations

import pytest
import timm
import torch

from arrcoc_sam.errors import InputError, ShapeError, UnknownNameError
from arrcoc_sam.training.attention.heads import SupervisedHeads

HEADS = {"whole": [(-1, 0)], "part": [(-1, 1)], "subpart": [(0, 0), (0, 1)]}
POINTS = torch.tensor([[3.0, 3.0], [40.0, 20.0]])


def build(query: str = "point", heads: dict[str, list[tuple[int, int]]] = HEADS) -> SupervisedHeads:
    torch.manual_seed(0)
    return SupervisedHeads(timm.create_model("test_vit", img_size=64), heads, query=query)


def test_attention_is_that_of_each_images_own_click() -> None:
    heads = build().eval()
    pixels = torch.randn(2, 3, 64, 64)
    together, output = heads(pixels, POINTS)
    assert together.shape == (2, 3, 4, 4)
    assert bool((together.sum((-2, -1)) <= 1 + 1e-5).all())
    for k in range(2):
        alone, _ = heads(pixels[k : k + 1], POINTS[k : k + 1])
        torch.testing.assert_close(alone[0], together[k], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(output, heads.model(pixels))


def test_the_mass_in_the_masks_grows() -> None:
    heads = build()
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    targets = torch.zeros(2, 3, 8, 8)
    targets[0, 0, :4], targets[0, 1, :4, :4], targets[0, 2, :2, :2] = 1, 1, 1
    targets[1, 0, :, 4:], targets[1, 1, 4:, 4:], targets[1, 2, 6:, 6:] = 1, 1, 1
    optimizer = torch.optim.AdamW(heads.parameters(), lr=3e-3)
    losses = []
    for _ in range(15):
        attention, _ = heads(pixels, POINTS)
        loss = heads.loss(attention, targets, torch.ones(2, 3))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_class_token_asks_for_no_clicks() -> None:
    attention, _ = build("cls")(torch.randn(2, 3, 64, 64))
    assert attention.shape == (2, 3, 4, 4)


@pytest.mark.parametrize(("options", "side"), [({"dynamic_img_size": False}, 3), ({"dynamic_img_pad": True}, 4)])
def test_an_input_that_is_no_multiple_of_the_patch(options: dict[str, bool], side: int) -> None:
    torch.manual_seed(0)
    heads = SupervisedHeads(timm.create_model("test_vit", img_size=62, **options), HEADS).eval()
    pixels = torch.randn(1, 3, 62, 62)
    corners, inside = (heads(pixels, torch.tensor([[x, x]]))[0] for x in (32.0, 47.0))
    assert corners.shape == (1, 3, side, side)
    torch.testing.assert_close(corners, inside, rtol=0, atol=0)  # pixels 32 to 47 are one patch
    assert not torch.equal(corners, heads(pixels, torch.tensor([[31.0, 31.0]]))[0])
    for scale in (1, 2):
        targets = torch.zeros(1, 3, 62 * scale, 62 * scale, dtype=torch.bool)
        targets[..., : 16 * scale, : 16 * scale] = True
        expected = -corners[0, :, 0, 0].log().mean()
        torch.testing.assert_close(heads.loss(corners, targets, torch.ones(1, 3)), expected)
        torch.testing.assert_close(heads.loss(corners, targets, torch.ones(1, 3), frame_hw=(62, 62)), expected)
    if side == 4:  # the last patch shows 14 × 14 pixels and padding
        targets = torch.zeros(1, 3, 62, 62)
        targets[..., 48:, 48:] = 1
        expected = -corners[0, :, 3, 3].log().mean()
        torch.testing.assert_close(heads.loss(corners, targets, torch.ones(1, 3)), expected)
    else:
        with pytest.raises(InputError, match="crop away"):
            heads(pixels, torch.tensor([[50.0, 3.0]]))
    with pytest.raises(ShapeError, match="patches for an input of"):
        heads.loss(corners, targets, torch.ones(1, 3), frame_hw=(32, 32))


def test_losses_after_inputs_of_other_sizes() -> None:
    """Each answer remembers what it was asked of; 4 patches a side cover 64 pixels, and 60 with padding."""
    torch.manual_seed(0)
    options = {"dynamic_img_size": True, "dynamic_img_pad": True}
    heads = SupervisedHeads(timm.create_model("test_vit", img_size=64, **options), HEADS).eval()
    sizes = [(60, 60), (48, 48), (64, 64)]
    targets = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    point, weights = torch.tensor([[8.0, 8.0]]), torch.ones(1, 3)
    answers = [heads(torch.randn(1, 3, *size), point)[0] for size in sizes]
    assert answers[0].shape == answers[2].shape != answers[1].shape
    late = [heads.loss(attention, targets, weights) for attention in answers]
    named = [heads.loss(each, targets, weights, frame_hw=size) for each, size in zip(answers, sizes, strict=True)]
    torch.testing.assert_close(late, named)
    assert not torch.equal(late[0], heads.loss(answers[0], targets, weights, frame_hw=(64, 64)))


@pytest.mark.usefixtures("as_at_run_time")
def test_negative_numbers_count_from_the_end() -> None:
    pixels = torch.randn(2, 3, 64, 64)
    counted = build(heads={"whole": [(-1, -1)], "part": [(0, -2)], "subpart": [(-1, 0)]})
    heads, depth = counted._source.layout.num_heads, len(counted._source.layout.blocks)
    named = build(heads={"whole": [(depth - 1, heads - 1)], "part": [(0, heads - 2)], "subpart": [(depth - 1, 0)]})
    torch.testing.assert_close(counted(pixels, POINTS)[0], named(pixels, POINTS)[0])


@pytest.mark.usefixtures("as_at_run_time")
def test_bad_input() -> None:
    with pytest.raises(InputError, match="for each of whole, part, subpart"):
        build(heads={"whole": [(0, 0)], "part": [(0, 1)]})
    with pytest.raises(InputError, match="at least one"):
        build(heads={"whole": [(0, 0)], "part": [], "subpart": [(0, 0)]})
    with pytest.raises(UnknownNameError, match="layers"):
        build(heads={"whole": [(99, 0)], "part": [(0, 0)], "subpart": [(0, 0)]})
    with pytest.raises(UnknownNameError, match="heads"):
        build(heads={"whole": [(0, -99)], "part": [(0, 0)], "subpart": [(0, 0)]})
    for wrong in (None, {"whole": [8], "part": [(0, 0)], "subpart": [(0, 0)]}, {"whole": None}):
        with pytest.raises(InputError, match=r"heads is .*; expected at least one \(layer, head\) for each of whole"):
            build(heads=wrong)  # type: ignore[arg-type]
    heads = build()
    with pytest.raises(InputError, match=r"pixels is a torch.uint8 .*; expected floats, normalised"):
        heads(torch.zeros(2, 3, 64, 64, dtype=torch.uint8), POINTS)
    with pytest.raises(InputError, match="no points"):
        heads(torch.randn(1, 3, 64, 64))
    with pytest.raises(ShapeError, match="points_xy is"):
        heads(torch.randn(1, 3, 64, 64), POINTS)
    with pytest.raises(InputError, match="the point"):
        heads(torch.randn(2, 3, 64, 64), POINTS + 60)
