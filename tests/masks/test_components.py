from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage import measure

from arrcoc_sam.errors import InputError
from arrcoc_sam.masks.components import connected_components, inscribed_circle, largest_interior_point

shapes = st.tuples(st.integers(1, 24), st.integers(1, 24))


@settings(deadline=None, max_examples=60)
@given(shapes, st.integers(0, 10**6), st.sampled_from([4, 8]), st.sampled_from([0.0, 0.3, 0.6]))
def test_components_are_skimages_largest_first(shape, seed, connectivity, share):
    mask = np.random.default_rng(seed).random(shape) < share
    labels, count = connected_components(mask, connectivity=connectivity)
    expected, num_expected = measure.label(mask, connectivity=connectivity // 4, return_num=True)
    assert int(count) == num_expected
    pairs = set(zip(labels.numpy().ravel().tolist(), expected.ravel().tolist(), strict=True))
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})  # the same pieces, other names
    assert (0, 0) in pairs or mask.all()
    sizes = np.bincount(labels.numpy().ravel())[1:]
    assert (np.diff(sizes) <= 0).all()


def test_components_by_hand():
    mask = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 1], [1, 0, 0, 1]]).bool()
    labels, counts = connected_components(torch.stack((mask, torch.zeros_like(mask))))
    assert labels[0].tolist() == [[2, 0, 0, 0], [0, 2, 0, 1], [0, 0, 0, 1], [3, 0, 0, 1]]
    assert counts.tolist() == [3, 0]
    assert labels.dtype == torch.int32
    assert int(connected_components(mask, connectivity=4)[1]) == 4


def distance_by_brute_force(mask: np.ndarray) -> np.ndarray:
    """Distance of every pixel to the nearest that is not the mask, the frame around the image included."""
    framed = np.pad(mask, 1)
    outside = np.argwhere(~framed)
    distance = np.zeros(mask.shape)
    for y, x in np.argwhere(mask):
        distance[y, x] = np.sqrt(((outside - (y + 1, x + 1)) ** 2).sum(1).min())
    return distance


@settings(deadline=None, max_examples=60)
@given(shapes, st.integers(0, 10**6), st.sampled_from([0.3, 0.7, 0.95, 1.0]))
def test_the_interior_point_is_farthest_from_everything_else(shape, seed, share):
    mask = np.random.default_rng(seed).random(shape) < share
    (x, y), radius = (value.numpy() for value in inscribed_circle(mask))
    if not mask.any():
        assert np.isnan(x)
        assert np.isnan(y)
        assert radius == 0
        return
    distance = distance_by_brute_force(mask)
    assert float(radius) == pytest.approx(distance.max())
    assert distance[int(y), int(x)] == pytest.approx(distance.max())
    assert (y, x) == tuple(np.argwhere(np.isclose(distance, distance.max()))[0])  # the first of equals


@pytest.mark.parametrize("smoothness", [3, 12, 40])
@pytest.mark.parametrize("shape", [(300, 420), (701, 333)])
def test_large_masks_are_measured_exactly_too(shape, smoothness):
    rng = np.random.default_rng(smoothness)
    for _ in range(3):
        field = ndimage.gaussian_filter(rng.normal(size=shape), smoothness)
        mask = field > np.quantile(field, rng.uniform(0.1, 0.8))
        distance = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
        (x, y), radius = inscribed_circle(mask)
        assert float(radius) == distance.max()
        assert (int(y), int(x)) == np.unravel_index(distance.argmax(), shape)


@pytest.mark.parametrize("kind", ["full", "stripe", "comb", "two discs", "ring"])
def test_large_masks_of_many_equal_maxima(kind):
    mask = np.zeros((640, 800), dtype=bool)
    y, x = np.mgrid[:640, :800]
    if kind == "full":
        mask[:] = True
    elif kind == "stripe":
        mask[200:420] = True
    elif kind == "comb":
        mask[::9] = True
        mask[:, :30] = True
    elif kind == "two discs":
        mask = ((y - 200) ** 2 + (x - 200) ** 2 < 150**2) | ((y - 450) ** 2 + (x - 600) ** 2 < 150**2)
    else:
        mask = abs(np.hypot(y - 320, x - 400) - 250) < 40
    distance = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    (px, py), radius = inscribed_circle(mask)
    assert float(radius) == distance.max()
    assert (int(py), int(px)) == np.unravel_index(distance.argmax(), mask.shape)


def test_the_image_border_is_background():
    mask = torch.zeros(20, 30, dtype=torch.bool)
    mask[:, :11] = True  # cut off by three borders: without them, the point would lie in the first column
    assert largest_interior_point(mask)[0] == 5


def test_batches_keep_their_axes():
    masks = torch.ones(2, 3, 5, 7, dtype=torch.bool)
    masks[1, 2] = False
    points, radii = inscribed_circle(masks)
    assert points.shape == (2, 3, 2)
    assert points.dtype == torch.float64
    assert radii.tolist() == [[3, 3, 3], [3, 3, 0]]
    assert points[1, 2].isnan().all()
    assert inscribed_circle(masks[:0])[0].shape == (0, 3, 2)


def test_connectivity_is_four_or_eight():
    with pytest.raises(InputError, match="connectivity=6"):
        connected_components(torch.ones(2, 2, dtype=torch.bool), connectivity=6)
