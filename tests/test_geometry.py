from __future__ import annotations

import contextlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from segment_anything.utils.transforms import ResizeLongestSide
from torchvision.transforms import functional as tv

from arrcoc_sam.errors import InputError, ShapeError
from arrcoc_sam.geometry import ImageTransform

sizes = st.tuples(st.integers(1, 900), st.integers(1, 900))
sides = st.integers(1, 300)


KINDS = ["identity", "letterbox", "squash", "short", "exact", "crop", "pad", "round"]
# what a step is made of, as numbers: the package itself is not called while hypothesis draws
recipes = st.tuples(st.sampled_from(KINDS), *[st.integers(1, 300)] * 4, *[st.floats(0, 1)] * 4, st.booleans())


def step(hw: tuple[int, int], recipe: tuple) -> ImageTransform:
    """Any one of the constructors, for an image of this size."""
    kind, a, b, c, d, top, left, tall, wide, floor = recipe
    if kind == "identity":
        return ImageTransform.identity(hw)
    if kind == "letterbox":
        return ImageTransform.letterbox(hw, a)
    if kind == "squash":
        return ImageTransform.squash(hw, (a, b))
    if kind == "crop":
        y, x = int(top * (hw[0] - 1)), int(left * (hw[1] - 1))
        height, width = max(1, int(tall * (hw[0] - y))), max(1, int(wide * (hw[1] - x)))
        return ImageTransform.crop(hw, (x, y, x + width, y + height))
    if kind in ("pad", "round"):
        return ImageTransform.patch_multiple(hw, (1 + a % 32, 1 + b % 32), how=kind)
    resize = a if kind == "short" else (a, b)
    return ImageTransform.resize_center_crop(hw, resize, (c, d), rounding="floor" if floor else "round")


def chain(hw: tuple[int, int], steps: list[tuple]) -> ImageTransform:
    """One step after the other, as long as something of the image is shown."""
    transform = step(hw, steps[0])
    for recipe in steps[1:]:
        with contextlib.suppress(InputError):  # a crop that takes only padding
            transform = transform.then(step(transform.frame_hw, recipe))
    return transform


chains = st.lists(recipes, min_size=1, max_size=3)


# --- points and boxes ------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=150)
@given(sizes, chains, st.floats(-50, 1000), st.floats(-50, 1000))
def test_a_point_goes_there_and_back(hw, steps, x, y):
    transform = chain(hw, steps)
    point = torch.tensor([x, y], dtype=torch.float64)
    assert (transform.points_to_original(transform.points_to_frame(point)) - point).abs().max() < 1e-6
    assert (transform.points_to_frame(transform.points_to_original(point)) - point).abs().max() < 1e-6


@settings(deadline=None, max_examples=60)
@given(sizes, recipes, recipes, st.floats(0, 900), st.floats(0, 900))
def test_two_steps_are_one_after_the_other(hw, one, other, x, y):
    first = step(hw, one)
    second = step(first.frame_hw, other)
    try:
        both = first.then(second)
    except InputError:
        return
    stepwise = second.points_to_frame(first.points_to_frame([x, y]))
    torch.testing.assert_close(both.points_to_frame([x, y]), stepwise, rtol=1e-9, atol=1e-7)
    assert (both.original_hw, both.frame_hw) == (first.original_hw, second.frame_hw)


def test_points_by_hand():
    # twice the size: the first pixel becomes pixels 0 and 1, whose middle is at index 0.5
    transform = ImageTransform.squash((10, 20), (20, 40))
    points = transform.points_to_frame([[0, 0], [19, 9], [-0.5, -0.5]])
    assert points.tolist() == [[0.5, 0.5], [38.5, 18.5], [-0.5, -0.5]]
    assert transform.boxes_to_frame([0, 0, 19, 9]).tolist() == [0.5, 0.5, 38.5, 18.5]
    assert transform.boxes_to_original(torch.tensor([[0.5, 0.5, 38.5, 18.5]])).tolist() == [[0.0, 0.0, 19.0, 9.0]]


def test_points_keep_their_axes_and_come_as_float64():
    transform = ImageTransform.letterbox((30, 40), 16)
    assert transform.points_to_frame(np.zeros((2, 3, 2), dtype=np.float32)).shape == (2, 3, 2)
    assert transform.points_to_frame(torch.zeros(2, dtype=torch.int32)).dtype == torch.float64
    assert transform.boxes_to_frame(torch.zeros(5, 4)).shape == (5, 4)
    assert transform.boxes_to_frame(torch.full((1, 4), math.nan)).isnan().all()


# --- constructors, against the libraries whose preprocessing they describe --------------------------------------------


@settings(deadline=None, max_examples=100)
@given(st.tuples(st.integers(8, 4000), st.integers(8, 4000)), st.sampled_from([64, 256, 1024]))
def test_letterbox_is_segment_anythings(hw, size):
    expected = ResizeLongestSide.get_preprocess_shape(*hw, size)
    if 0 in expected:
        return
    transform = ImageTransform.letterbox(hw, size)
    assert transform.resized_hw == expected
    assert transform.frame_hw == (size, size)
    point = np.array([[3.25, 7.5]])
    reference = ResizeLongestSide(size).apply_coords(point, hw)
    np.testing.assert_allclose(point * transform.scale_xy, reference)


def test_letterbox_of_a_sliver_keeps_a_pixel():
    assert ImageTransform.letterbox((1, 5000), 256).resized_hw == (1, 256)


@settings(deadline=None, max_examples=60)
@given(sizes, st.integers(1, 64), st.tuples(st.integers(1, 90), st.integers(1, 90)))
def test_resize_center_crop_is_torchvisions(hw, resize, crop):
    resized_hw = tv.resize(torch.zeros(1, *hw), resize, antialias=False).shape[-2:]
    transform = ImageTransform.resize_center_crop(hw, resize, crop)
    assert transform.resized_hw == tuple(resized_hw)
    # a picture of its own coordinates, counted from 1 so that padding is told apart
    y, x = torch.meshgrid(torch.arange(resized_hw[0]) + 1, torch.arange(resized_hw[1]) + 1, indexing="ij")
    cropped = tv.center_crop(torch.stack((x, y)), list(crop))
    left, top = transform.offset_xy
    for row in range(crop[0]):
        inside = 0 <= row - top < resized_hw[0]
        assert cropped[1, row].max() == (row - top + 1 if inside else 0)
    for column in range(crop[1]):
        inside = 0 <= column - left < resized_hw[1]
        assert cropped[0, :, column].max() == (column - left + 1 if inside else 0)


@settings(deadline=None, max_examples=60)
@given(st.tuples(st.integers(1, 60), st.integers(1, 60)), st.tuples(st.integers(1, 60), st.integers(1, 60)))
def test_center_crop_by_floor_is_transformers(hw, crop):
    center_crop = pytest.importorskip("transformers.image_transforms").center_crop
    y, x = np.meshgrid(np.arange(hw[0]) + 1, np.arange(hw[1]) + 1, indexing="ij")
    cropped = center_crop(np.stack((x, y)).astype(np.float32), crop, input_data_format="channels_first")
    left, top = ImageTransform.resize_center_crop(hw, hw, crop, rounding="floor").offset_xy
    rows, columns = np.nonzero(cropped[0])
    first_row, first_column = rows.min(), columns.min()
    assert cropped[1, first_row, first_column] == first_row - top + 1
    assert cropped[0, first_row, first_column] == first_column - left + 1


def test_crop_is_a_slice():
    transform = ImageTransform.crop((20, 30), (5, 2, 15, 12))
    image = np.arange(600).reshape(20, 30)
    part = image[2:12, 5:15]
    assert transform.frame_hw == part.shape
    column, row = transform.points_to_frame([7, 3]).int().tolist()
    assert part[row, column] == image[3, 7]


def test_patch_multiples():
    pad = ImageTransform.patch_multiple((30, 43), 14)
    assert (pad.frame_hw, pad.scale_xy, pad.resized_hw) == ((42, 56), (1.0, 1.0), (30, 43))
    near = ImageTransform.patch_multiple((30, 50), 14, how="round")
    assert near.frame_hw == (28, 56)
    assert ImageTransform.patch_multiple((3, 3), (14, 16), how="round").frame_hw == (14, 16)
    assert ImageTransform.patch_multiple((28, 28), 14).frame_hw == (28, 28)


def test_what_a_crop_left_out_is_not_shown_by_the_padding_after_it():
    # 100 px wide, the middle 50 cut out, padded to 56: frame columns 50-56 are padding, though the image went on there
    chain = ImageTransform.crop((10, 100), (25, 0, 75, 10)).then(ImageTransform.patch_multiple((10, 50), 14))
    assert chain.frame_hw == (14, 56)
    assert chain.content_xyxy == (0.0, 0.0, 50.0, 10.0)
    valid = chain.grid_valid((1, 4))
    torch.testing.assert_close(valid, torch.tensor([[1.0, 1.0, 1.0, 8 / 14]]) * (10 / 14))
    mask = torch.zeros(10, 100, dtype=torch.bool)
    mask[:, 75:] = True
    assert chain.masks_to_grid(mask, (1, 4)).sum() == 0
    with pytest.raises(InputError):
        chain.cells_at([77, 5], (1, 4))


# --- masks and grids --------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    recipes.filter(lambda recipe: recipe[0] in ("letterbox", "squash", "pad", "round")),
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
)
def test_a_mask_on_the_grid_keeps_its_area(hw, recipe, grid):
    transform = step(hw, recipe)
    mask = torch.from_numpy(np.random.default_rng(0).random(hw) < 0.5)
    cell = transform.frame_hw[0] * transform.frame_hw[1] / (grid[0] * grid[1])
    on_grid = (transform.masks_to_grid(mask.double(), grid) * transform.grid_valid(grid)).sum() * cell
    expected = mask.sum() * transform.scale_xy[0] * transform.scale_xy[1]
    assert float(on_grid) == pytest.approx(float(expected), rel=1e-5, abs=1e-5)


@settings(deadline=None, max_examples=60)
@given(sizes, chains, st.tuples(st.integers(1, 16), st.integers(1, 16)))
def test_a_full_mask_is_one_wherever_the_image_is(hw, steps, grid):
    transform = chain(hw, steps)
    full = transform.masks_to_grid(torch.ones(transform.original_hw, dtype=torch.bool), grid)
    valid = transform.grid_valid(grid)
    torch.testing.assert_close(full, (valid > 0).float())
    assert float(valid.min()) >= 0
    assert float(valid.max()) <= 1
    x0, y0, x1, y1 = transform.content_xyxy
    cell = transform.frame_hw[0] * transform.frame_hw[1] / valid.numel()
    assert float(valid.double().sum() * cell) == pytest.approx((x1 - x0) * (y1 - y0), rel=1e-5, abs=1e-5)


def test_grid_valid_by_hand():
    # 480 x 640 in 64 x 64: 48 rows of image, then padding; 10 rows of cells of 6.4 px: 7 full, half of the eighth
    valid = ImageTransform.letterbox((480, 640), 64).grid_valid((10, 4))
    torch.testing.assert_close(valid, torch.tensor([1.0] * 7 + [0.5, 0, 0])[:, None].expand(10, 4))
    assert valid.dtype == torch.float32


def test_a_half_covered_cell_is_averaged_over_its_covered_half():
    transform = ImageTransform.letterbox((480, 640), 64)
    mask = torch.zeros(480, 640, dtype=torch.bool)
    mask[464:] = True  # the lower half of the 32 image rows in the eighth row of cells
    on_grid = transform.masks_to_grid(mask, (10, 1))
    torch.testing.assert_close(on_grid.flatten(), torch.tensor([0, 0, 0, 0, 0, 0, 0, 0.5, 0, 0]))


def test_masks_on_the_grid_by_a_resized_crop():
    # resize 8 x 16 to 4 x 8, cut the middle 4 x 4: original columns 4 to 12; two cells a side, each of 4 x 4 pixels
    transform = ImageTransform.resize_center_crop((8, 16), 4, 4)
    masks = torch.rand(3, 2, 8, 16) < 0.5
    expected = masks[..., 4:12].float().reshape(3, 2, 2, 4, 2, 4).mean((3, 5))
    torch.testing.assert_close(transform.masks_to_grid(masks, (2, 2)), expected)
    torch.testing.assert_close(transform.masks_to_grid(masks.numpy(), (2, 2)), expected)


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_grid_to_image_is_what_interpolate_does(mode):
    values = torch.randn(2, 3, 5, 7)
    drawn = ImageTransform.squash((33, 20), (224, 224)).grid_to_image(values, mode=mode)
    options = {"mode": "nearest-exact"} if mode == "nearest" else {"mode": "bilinear", "align_corners": False}
    expected = torch.nn.functional.interpolate(values, (33, 20), **options)
    torch.testing.assert_close(drawn, expected)
    assert drawn.dtype == torch.float32


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_grid_to_image_reads_no_padding(mode):
    transform = ImageTransform.letterbox((30, 60), 64)  # 32 of 64 rows, so 4 of 8 rows of cells
    values = torch.full((8, 8), -100.0)
    values[:4] = 1.0
    assert transform.grid_to_image(values, mode=mode).unique().tolist() == [1.0]


def test_grid_to_image_fills_what_was_cropped_away():
    transform = ImageTransform.crop((4, 6), (2, 1, 6, 3))
    drawn = transform.grid_to_image(torch.ones(1, 2, 4), fill=-1.0)
    expected = torch.full((1, 4, 6), -1.0)
    expected[:, 1:3, 2:6] = 1.0
    assert torch.equal(drawn, expected)
    assert transform.grid_to_image(torch.ones(2, 4), fill=math.nan).isnan().sum() == 16


@settings(deadline=None, max_examples=100)
@given(sizes, chains, st.tuples(st.integers(1, 16), st.integers(1, 16)), st.floats(0, 1), st.floats(0, 1))
def test_the_cell_under_a_point_is_where_its_pixel_is_averaged(hw, steps, grid, right, down):
    transform = chain(hw, steps)
    height, width = hw
    x, y = int(right * (width - 1)), int(down * (height - 1))
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[y, x] = True
    x0, y0, x1, y1 = transform.content_xyxy
    u, v = (transform.points_to_frame([x, y]) + 0.5).tolist()
    if min(u - x0, x1 - u, v - y0, y1 - v) < 1e-6:
        return
    row, column = transform.cells_at([x, y], grid).tolist()
    assert transform.masks_to_grid(mask.double(), grid)[row, column] > 0


def test_cells_by_hand():
    transform = ImageTransform.letterbox((480, 640), 64)  # cells of 8 px of the frame, 80 px of the image
    cells = transform.cells_at([[0, 0], [79.4, 0], [79.6, 0], [639, 479], [-0.5, 479.5]], (8, 8))
    assert cells.tolist() == [[0, 0], [0, 0], [0, 1], [5, 7], [5, 0]]
    assert cells.dtype == torch.int64


# --- bad input --------------------------------------------------------------------------------------------------------

MASK = torch.zeros(4, 6, dtype=torch.bool)
LETTERBOX = ImageTransform.letterbox((4, 6), 12)


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: ImageTransform.identity((0, 5)), InputError, "at least 1"),
        (lambda: ImageTransform.identity((4.5, 5)), InputError, "whole pixels"),
        (lambda: ImageTransform.letterbox((4, 5, 3), 8), InputError, "original_hw=(4, 5, 3)"),
        (lambda: ImageTransform.letterbox((4, 5), 0), InputError, "size"),
        (lambda: ImageTransform((4, 4), (4, 4), (0.0, 1.0), (0.0, 0.0)), InputError, "scales > 0"),
        (lambda: ImageTransform((4, 4), (4, 4), (1.0, math.nan), (0.0, 0.0)), InputError, "finite"),
        (lambda: ImageTransform((4, 4), (4, 4), (1.0, 1.0), (9.0, 0.0)), InputError, "shows nothing"),
        (lambda: ImageTransform.crop((4, 6), (0, 0, 7, 4)), InputError, "box_xyxy=(0, 0, 7, 4)"),
        (lambda: ImageTransform.crop((4, 6), (2, 0, 2, 4)), InputError, "x0 < x1"),
        (lambda: ImageTransform.crop((4, 6), (0, 0, 2.5, 4)), InputError, "whole numbers"),
        (lambda: ImageTransform.patch_multiple((4, 6), 2, how="crop"), InputError, "'pad' or 'round'"),
        (lambda: ImageTransform.resize_center_crop((4, 6), 4, 4, rounding="up"), InputError, "'round' or 'floor'"),
        (lambda: LETTERBOX.then(ImageTransform.identity((4, 6))), ShapeError, "(12, 12)"),
        (lambda: LETTERBOX.points_to_frame([[1, 2, 3]]), ShapeError, "(…, 2)"),
        (lambda: LETTERBOX.points_to_frame([[1, 2], [3]]), InputError, "points_xy is a list of 2"),
        (lambda: LETTERBOX.boxes_to_frame(torch.zeros(2, 2)), ShapeError, "(…, 4)"),
        (lambda: LETTERBOX.masks_to_grid(MASK.T, (3, 3)), ShapeError, "(…, 4, 6)"),
        (lambda: LETTERBOX.masks_to_grid(MASK.int(), (3, 3)), InputError, "masks > 0"),
        (lambda: LETTERBOX.masks_to_grid(MASK, (3, 0)), InputError, "grid_hw"),
        (lambda: LETTERBOX.grid_to_image(torch.zeros(3)), ShapeError, "(…, h, w)"),
        (lambda: LETTERBOX.grid_to_image(torch.zeros(3, 3), mode="cubic"), InputError, "mode='cubic'"),
        (lambda: LETTERBOX.cells_at([[1, 1], [6, 1]], (3, 3)), InputError, "(x, y) = (6.0, 1.0)"),
        (lambda: LETTERBOX.cells_at([math.nan, 1], (3, 3)), InputError, "nan"),
    ],
)
def test_errors_say_what_came(call, kind, words, as_at_run_time):
    with pytest.raises(kind) as caught:
        call()
    assert words in str(caught.value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_same_on_the_gpu():
    transform = ImageTransform.letterbox((300, 400), 256)
    masks, points = torch.rand(3, 300, 400) < 0.5, torch.rand(5, 2) * 299
    for grid in ((14, 14), (64, 64), (200, 200)):
        on_gpu = transform.masks_to_grid(masks.cuda(), grid)
        assert on_gpu.is_cuda
        torch.testing.assert_close(on_gpu.cpu(), transform.masks_to_grid(masks, grid))
        assert torch.equal(transform.cells_at(points.cuda(), grid).cpu(), transform.cells_at(points, grid))
        drawn = transform.grid_to_image(on_gpu, mode="bilinear")
        torch.testing.assert_close(drawn.cpu(), transform.grid_to_image(on_gpu.cpu(), mode="bilinear"))
    assert torch.equal(transform.points_to_frame(points.cuda()).cpu(), transform.points_to_frame(points))
