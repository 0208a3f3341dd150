"""Rich scenes: as exact and repeatable as plain ones, of shapes that are what they say."""

from __future__ import annotations

from importlib.metadata import files
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from arrcoc_sam.errors import DataError, UnknownNameError
from arrcoc_sam.scenes import STYLES, TEST_V1, TEST_V2, VALIDATION_SEEDS, generate_scene, photographs
from arrcoc_sam.scenes.blueprint import Blueprint
from arrcoc_sam.scenes.canvas import Canvas, Patch, annotate
from arrcoc_sam.scenes.land import paint_land
from arrcoc_sam.scenes.mixtures import FAMILIES, LIFELIKE, NATURAL
from arrcoc_sam.scenes.photographs import PHOTOGRAPHS, crop_photograph
from arrcoc_sam.scenes.rich import clipped_patches
from arrcoc_sam.scenes.shapes import Band, Contour, Frame, Polygon, Shape, Stroke, Without, rectangle
from arrcoc_sam.scenes.splits import digest

DIGESTS = {
    "lifelike": "472ff4d88fee44f6e8672dc9ab77ea46b7125b253fe8871ec27faf74fe2c529e",
    "natural": "5708ee8c8ce15a736c6b2f9c1ca4d27b984db8d642406fd2ac971c32ec1ce47f",
}
"""Of the first five scenes at 96 pixels."""


@given(seed=st.integers(0, 10_000), style=st.sampled_from(["rich", "lifelike", "natural"]))
@settings(deadline=None, max_examples=40)
def test_hierarchy_is_exact(seed: int, style: str) -> None:
    scene = generate_scene(seed, size=96, style=style)
    assert scene.image.shape == (96, 96, 3)
    assert scene.image.dtype == np.uint8
    assert scene.version == STYLES[style]
    areas = scene.masks.sum(axis=(1, 2))
    assert (areas >= 0.003 * 96 * 96).all()
    assert (scene.levels == 1).any()
    for node, parent in enumerate(scene.parents):
        if parent < 0:
            assert scene.levels[node] == 0
            continue
        assert parent < node
        assert scene.levels[node] == scene.levels[parent] + 1 <= 2
        assert not (scene.masks[node] & ~scene.masks[parent]).any()
        assert areas[node] <= 0.8 * areas[parent]
    assert scene.masks[scene.levels == 0].sum(axis=0).max() <= 1


def test_same_seed_same_bytes_and_other_seeds_and_styles_differ() -> None:
    first, again, other, plain = (
        generate_scene(seed, 96, style=style) for seed, style in ((3, "rich"), (3, "rich"), (4, "rich"), (3, "plain"))
    )
    assert first.image.tobytes() == again.image.tobytes()
    assert first.labels.tobytes() == again.labels.tobytes()
    assert first.image.tobytes() != other.image.tobytes()
    assert first.image.tobytes() != plain.image.tobytes()


def test_masks_follow_the_picture() -> None:
    """Colours change more across mask borders than elsewhere, real textures and all."""
    assert np.median([border_contrast(seed, "rich") for seed in range(16)]) > 2.0


def border_contrast(seed: int, style: str) -> float:
    """How much more colours change across the borders of masks than elsewhere."""
    scene = generate_scene(seed, 192, style=style)
    smooth = ndimage.gaussian_filter(scene.image.astype(float), (1.5, 1.5, 0))
    gradient = np.hypot(ndimage.sobel(smooth, 0), ndimage.sobel(smooth, 1)).sum(axis=2)
    border = ndimage.morphological_gradient(scene.labels, size=3) > 0
    return float(gradient[border].mean() / gradient[~border].mean())


@pytest.mark.parametrize("style", DIGESTS)
def test_styles_are_frozen(style: str) -> None:
    assert digest(generate_scene(seed, 96, style=style) for seed in range(5)) == DIGESTS[style]


def test_land_lies_before_the_background_layer_by_layer() -> None:
    canvas = Canvas(np.full((128, 128, 3), 0.5, np.float32), np.zeros((128, 128), np.uint8))
    paint_land(np.random.default_rng(4), canvas, NATURAL.paint)
    wholes = [node for node, parent in enumerate(canvas.parents) if parent < 0]
    assert 2 <= len(wholes) <= 4
    assert canvas.levels == [0 if parent < 0 else 1 for parent in canvas.parents]
    sky = canvas.labels == 0
    assert sky[0].mean() > sky[-1].mean()
    np.testing.assert_array_equal(canvas.image[sky & (ndimage.maximum_filter(canvas.labels, 3) == 0)], 0.5)
    assert canvas.labels[-1].max() > 0


def test_natural_scenes_are_harder_to_see() -> None:
    """Colours change less at the borders of masks, beside elsewhere, than in rich scenes."""
    contrast = {style: np.median([border_contrast(seed, style) for seed in range(12)]) for style in ("rich", "natural")}
    assert 1.0 < contrast["natural"] < contrast["rich"]


def test_lifelike_scenes_have_no_abstract_objects_and_many_people() -> None:
    shares = dict(zip(FAMILIES, LIFELIKE.shares, strict=True))
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares["nested"] == 0.0
    assert max(shares, key=shares.__getitem__) == "person"


def test_test_split_is_frozen_and_apart() -> None:
    assert len(TEST_V2) >= 500
    assert TEST_V2.seeds.start >= max(VALIDATION_SEEDS.stop, TEST_V1.seeds.stop)
    assert TEST_V2.version == STYLES["rich"]
    assert digest(islice(TEST_V2, 20)) == TEST_V2.sha256_head


@pytest.mark.slow
def test_whole_test_split_is_frozen() -> None:
    assert digest(TEST_V2) == TEST_V2.sha256


def test_unknown_style() -> None:
    with pytest.raises(UnknownNameError, match="plain, rich, lifelike, natural"):
        generate_scene(0, style="baroque")


UPRIGHT = Frame(np.array([[60.0, 0.0], [0.0, 60.0]]), np.array([100.3, 99.6]), 200)
SLANTED = Frame(np.array([[50.0, 20.0], [-15.0, 40.0]]), np.array([100.3, 99.6]), 200)


@pytest.mark.parametrize("frame", [UPRIGHT, SLANTED])
@pytest.mark.parametrize(
    ("shape", "area"),
    [
        (Contour(np.ones(360), (0.1, 0.0), (0.8, 0.3), 0.4), np.pi * 0.8 * 0.3),
        (rectangle(-0.5, -0.25, 0.5, 0.75), 1.0),
        (Polygon([(0.0, -0.6), (0.8, 0.5), (-0.8, 0.5)]), 0.5 * 1.6 * 1.1),
        (
            Without(Contour(np.ones(360), (0.0, 0.0), (0.9, 0.9)), Contour(np.ones(360), (0.0, 0.0), (0.5, 0.5))),
            np.pi * 0.56,
        ),
    ],
)
def test_shapes_cover_their_area_in_any_frame(shape: Shape, area: float, frame: Frame) -> None:
    coverage = shape.draw(frame).coverage
    assert coverage.sum() == pytest.approx(area * frame.scale**2, rel=0.02)
    assert (coverage > 0.5).sum() == pytest.approx(area * frame.scale**2, rel=0.02)


def test_a_stroke_is_as_wide_as_it_says() -> None:
    patch = Stroke([(-0.5, 0.0), (0.5, 0.0)], [0.1, 0.1]).draw(UPRIGHT)
    assert patch.coverage.sum() == pytest.approx((0.2 + np.pi * 0.01) * 60**2, rel=0.02)
    assert (patch.coverage > 0.5).sum(axis=0).max() == pytest.approx(12, abs=1)


def test_a_band_lies_between_its_lines() -> None:
    patch = Band((0.0, 0.0), 0.2, 0.0).draw(UPRIGHT)
    rows = np.flatnonzero((patch.coverage > 0.5).all(axis=1)) + patch.window[0].start
    assert (rows.min(), rows.max()) == pytest.approx((100 - 12, 100 + 12), abs=1)


def test_shapes_outside_of_the_image_are_empty() -> None:
    disc = Contour(np.ones(360), (0.0, 0.0), (1.0, 1.0))
    away = Frame(np.eye(2) * 20.0, np.array([-90.0, 300.0]), 64)
    for shape in (rectangle(-1.0, -1.0, 1.0, 1.0), Stroke([(0.0, 0.0), (1.0, 1.0)], [0.1, 0.1]), disc):
        assert shape.draw(away).coverage.size == 0


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_families_are_whole_part_and_subpart(family: str) -> None:
    for seed in range(5):
        plan: Blueprint = FAMILIES[family][0](np.random.default_rng(seed))
        levels: list[int] = []
        for number, piece in enumerate(plan.pieces):
            assert piece.parent < number
            levels.append(0 if piece.parent < 0 else levels[piece.parent] + 1)
            made_up = any(other.parent == number for other in plan.pieces)
            assert piece.shape is not None or made_up
        assert levels.count(0) == 1
        assert 1 <= max(levels) <= 2
        patches = clipped_patches(plan, Frame(UPRIGHT.matrix * 1.2, UPRIGHT.origin, 200))
        whole = patches[0].coverage > 0.5
        assert whole.sum() > 0.02 * 200 * 200
        for piece, patch in zip(plan.pieces[1:], patches[1:], strict=True):
            assert inside(patch, patches[piece.parent])


def inside(patch: Patch, parent: Patch) -> bool:
    """Whether what a patch covers is covered by its parent too."""
    canvas = np.zeros((2, 200, 200), bool)
    for layer, each in zip(canvas, (patch, parent), strict=True):
        layer[each.window] = each.coverage > 0.5
    return not (canvas[0] & ~canvas[1]).any()


def test_what_fills_its_parent_gives_it_its_children() -> None:
    labels = np.zeros((20, 20), np.uint8)
    labels[2:18, 2:18], labels[3:18, 2:18], labels[5:10, 5:10] = 1, 2, 3
    canvas = Canvas(np.zeros((20, 20, 3)), labels, parents=[-1, 0, 1], levels=[0, 1, 2])
    _, parents, levels = annotate(canvas, min_area=0.01, max_share=0.8, promote=True)
    assert (parents.tolist(), levels.tolist()) == ([-1, 0], [0, 1])
    _, parents, levels = annotate(canvas, min_area=0.01, max_share=0.8)
    assert (parents.tolist(), levels.tolist()) == ([-1], [0])


def test_photographs_come_inside_the_wheel() -> None:
    """Nothing is fetched: the files are listed by the installed distribution itself."""
    shipped = {Path(str(file)).name for file in files("scikit-image") or [] if "skimage/data/" in str(file)}
    assert set(PHOTOGRAPHS) <= shipped


def test_crops_of_photographs() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        crop = crop_photograph(rng, (40, 70))
        assert crop.shape == (40, 70, 3)
        assert 0.0 <= crop.min() <= crop.max() <= 1.0


def test_a_photograph_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photographs, "files", lambda _: Path("nowhere"))
    photographs._photograph.cache_clear()
    with pytest.raises(DataError, match=r"brick\.png"):
        photographs._photograph("brick.png")
