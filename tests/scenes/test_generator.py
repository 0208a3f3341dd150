"""Scenes: the same for the same seed, nested exactly, and worth learning from."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from arrcoc_sam.errors import InputError
from arrcoc_sam.scenes import TEST_V1, TRAIN_SEEDS, VALIDATION_SEEDS, generate_scene
from arrcoc_sam.scenes.contours import CONTOUR_KINDS, Placement, rasterize, sample_contour
from arrcoc_sam.scenes.splits import digest
from arrcoc_sam.scenes.textures import TEXTURE_KINDS, sample_color, sample_texture


@given(seed=st.integers(0, 10_000))
@settings(deadline=None, max_examples=25)
def test_hierarchy_is_exact(seed: int) -> None:
    scene = generate_scene(seed, size=96)
    assert scene.image.shape == (96, 96, 3)
    assert scene.image.dtype == np.uint8
    areas = scene.masks.sum(axis=(1, 2))
    assert (areas >= 0.005 * 96 * 96).all()
    for node, parent in enumerate(scene.parents):
        if parent < 0:
            assert scene.levels[node] == 0
            continue
        assert parent < node
        assert scene.levels[node] == scene.levels[parent] + 1
        assert not (scene.masks[node] & ~scene.masks[parent]).any()
        assert areas[node] <= 0.75 * areas[parent]
    # siblings never share a pixel: a pixel has one innermost node
    wholes = scene.masks[scene.levels == 0]
    assert wholes.sum(axis=0).max() <= 1


def test_same_seed_same_bytes_and_other_seeds_differ() -> None:
    first, again, other = generate_scene(3), generate_scene(3), generate_scene(4)
    assert first.image.tobytes() == again.image.tobytes()
    assert first.labels.tobytes() == again.labels.tobytes()
    assert first.image.tobytes() != other.image.tobytes()


def test_masks_follow_the_picture() -> None:
    """Colours change more across mask borders than elsewhere: what is annotated is visible."""
    ratios = []
    for seed in range(12):
        scene = generate_scene(seed)
        smooth = ndimage.gaussian_filter(scene.image.astype(float), (1.5, 1.5, 0))
        gradient = np.hypot(ndimage.sobel(smooth, 0), ndimage.sobel(smooth, 1)).sum(axis=2)
        border = ndimage.morphological_gradient(scene.labels, size=3) > 0
        ratios.append(gradient[border].mean() / gradient[~border].mean())
    assert np.median(ratios) > 2.5


def test_triples_and_points() -> None:
    scene = next(s for s in map(generate_scene, range(20)) if len(s.triples()))
    rng = np.random.default_rng(0)
    for (whole, part, subpart), masks in zip(scene.triples(), scene.triple_masks(), strict=True):
        assert scene.levels[[whole, part, subpart]].tolist() == [0, 1, 2]
        assert (masks == scene.masks[[whole, part, subpart]]).all()
        x, y = scene.sample_point(int(subpart), rng)
        assert masks[:, y, x].all()


def test_splits_do_not_overlap_and_are_frozen() -> None:
    assert len(TEST_V1) >= 500
    assert TEST_V1.seeds.start >= VALIDATION_SEEDS.stop
    assert VALIDATION_SEEDS.start >= TRAIN_SEEDS.stop
    assert digest(islice(TEST_V1, 20)) == TEST_V1.sha256_head


@pytest.mark.slow
def test_whole_split_is_frozen() -> None:
    assert digest(TEST_V1) == TEST_V1.sha256


@pytest.mark.parametrize("kind", sorted(CONTOUR_KINDS))
def test_contours_cover_their_area(kind: str) -> None:
    """The raster's area equals the polar area integral ½∮r² dθ times the half axes."""
    radii = sample_contour(np.random.default_rng(1), kind)
    assert radii.max() == pytest.approx(1.0)
    assert radii.min() > 0
    window, coverage, _ = rasterize(radii, Placement((63.7, 64.2), (50.0, 30.0), 0.7), 128)
    expected = 0.5 * (radii**2).mean() * 2 * np.pi * 50.0 * 30.0
    assert coverage.sum() == pytest.approx(expected, rel=0.03)
    assert coverage.shape == (window[0].stop - window[0].start, window[1].stop - window[1].start)


def test_contour_outside_of_the_image_is_empty() -> None:
    _, coverage, _ = rasterize(np.ones(360), Placement((-90.0, -90.0), (20.0, 20.0), 0.0), 64)
    assert coverage.size == 0


@pytest.mark.parametrize("kind", sorted(TEXTURE_KINDS))
def test_textures_keep_their_colour(kind: str) -> None:
    color = np.array([0.5, 0.4, 0.6])
    surface = sample_texture(np.random.default_rng(2), (80, 90), color, kind)
    assert surface.shape == (80, 90, 3)
    assert np.abs(surface - color).max() < 0.5
    assert np.abs(surface.mean(axis=(0, 1)) - color).max() < 0.15


def test_colors_keep_their_distance() -> None:
    rng = np.random.default_rng(0)
    colors = [sample_color(rng, [np.zeros(3)], distance=0.4) for _ in range(50)]
    assert min(np.linalg.norm(c) for c in colors) >= 0.4


@pytest.mark.parametrize(("seed", "size"), [(-1, 64), (0, 31)])
def test_bad_arguments(seed: int, size: int) -> None:
    with pytest.raises(InputError, match="expected"):
        generate_scene(seed, size=size)
