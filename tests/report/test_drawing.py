from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arrcoc_sam.attention import AttentionMaps
from arrcoc_sam.geometry import ImageTransform
from arrcoc_sam.report.drawing import (
    display_peak,
    grid_extent,
    level_shares,
    mask_outlines,
    relative_density,
    thumbnail,
)


def polygon_area(line: np.ndarray) -> float:
    x, y = line[:, 0], line[:, 1]
    return float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]) / 2)


@given(st.integers(0, 20), st.integers(0, 20), st.integers(2, 20), st.integers(2, 20))
@settings(deadline=None, max_examples=40)
def test_an_outline_encloses_its_rectangle_up_to_the_cut_corners(top: int, left: int, high: int, wide: int) -> None:
    mask = np.zeros((41, 43), dtype=bool)
    mask[top : top + high, left : left + wide] = True
    [line] = mask_outlines(mask)
    assert np.array_equal(line[0], line[-1])
    # Each of the four corners is cut by a triangle with legs of half a pixel.
    assert abs(polygon_area(line)) == pytest.approx(high * wide - 0.5, abs=1e-9)
    assert line.min(0) == pytest.approx([left, top])
    assert line.max(0) == pytest.approx([left + wide, top + high])


def test_a_hole_has_an_outline_of_its_own_and_an_empty_mask_none() -> None:
    mask = np.ones((30, 30), dtype=bool)
    mask[10:20, 10:20] = False
    outer, hole = sorted(mask_outlines(mask), key=lambda line: -abs(polygon_area(line)))
    assert abs(polygon_area(outer)) == pytest.approx(900 - 0.5, abs=1)
    assert abs(polygon_area(hole)) == pytest.approx(100 + 0.5, abs=1)
    assert np.sign(polygon_area(outer)) != np.sign(polygon_area(hole))
    assert mask_outlines(np.zeros((5, 5), dtype=bool)) == []


def test_a_large_mask_is_traced_coarsely_in_its_own_coordinates() -> None:
    y, x = np.mgrid[:1500, :2000]
    mask = (x - 1200) ** 2 + (y - 700) ** 2 <= 400**2
    [line] = mask_outlines(mask, max_side=500)
    assert 60 < len(line) < 1000
    assert np.hypot(line[:, 0] - 1200, line[:, 1] - 700) == pytest.approx(400, abs=5)


def test_relative_density_is_one_for_uniform_attention_and_absent_on_padding() -> None:
    transform = ImageTransform.letterbox((30, 60), 64)
    valid = transform.grid_valid((8, 8)).float()
    maps = AttentionMaps.from_values(valid[None].clone(), transform=transform)
    density = relative_density(maps, 0, 0)
    assert np.isnan(density[4:]).all()
    assert density[:4] == pytest.approx(1.0)
    assert display_peak(density) == 2.0


def test_relative_density_of_a_prompt_has_mean_one() -> None:
    values = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(1))
    maps = AttentionMaps.from_values(values, transform=ImageTransform.squash((50, 70), (5, 7)))
    density = relative_density(maps, 1, 2)
    assert density.mean() == pytest.approx(1.0)
    assert density == pytest.approx((values[1, 2] / values[1, 2].mean()).numpy(), rel=1e-5)


def test_one_sink_does_not_set_the_colour_scale() -> None:
    density = np.ones((32, 32))
    density[:4] = 3.0
    density[0, 0] = 400.0
    assert display_peak(density) == 3.0


@pytest.mark.parametrize(
    "transform",
    [
        ImageTransform.letterbox((300, 451), 512),
        ImageTransform.resize_center_crop((300, 451), 256, 224),
        ImageTransform.squash((300, 451), (224, 224)),
    ],
)
def test_the_extent_is_where_the_frame_s_corners_come_from(transform: ImageTransform) -> None:
    height, width = transform.frame_hw
    corners = transform.points_to_original([[-0.5, -0.5], [width - 0.5, height - 0.5]]) + 0.5
    assert grid_extent(transform) == pytest.approx(corners.flatten().tolist())


def test_a_thumbnail_keeps_the_shape_and_leaves_small_images_alone() -> None:
    image = np.random.default_rng(0).integers(0, 255, (400, 1000, 3), dtype=np.uint8)
    assert thumbnail(image, 500).shape == (200, 500, 3)
    assert thumbnail(image, 1000) is image
    assert thumbnail(np.zeros((1, 3000, 3), np.uint8), 100).shape == (1, 100, 3)


def test_a_level_s_share_is_that_of_what_the_maps_see() -> None:
    masks = torch.zeros(1, 3, 40, 80, dtype=torch.bool)
    masks[0, 0, :, 20:40] = True  # a quarter of the image, half of its central square
    masks[0, 1, :20, 20:30] = True
    maps = AttentionMaps.from_values(
        torch.ones(1, 4, 4), transform=ImageTransform.resize_center_crop((40, 80), (40, 80), 40)
    )
    assert level_shares(maps, masks, 0).tolist() == pytest.approx([0.5, 0.125, 0.0])
    padded = ImageTransform.letterbox((40, 80), 80)
    maps = AttentionMaps.from_values(torch.ones(1, 8, 8), transform=padded)
    assert level_shares(maps, masks, 0).tolist() == pytest.approx([0.25, 0.0625, 0.0])
