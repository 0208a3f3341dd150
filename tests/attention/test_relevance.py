"""The relevance maps against direct computations, and what they do where there is nothing to see."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from arrcoc_sam.attention import AttentionSource, RelevanceAttention
from arrcoc_sam.attention.relevance import edge_magnitude, local_entropy, query_similarity, texture_features
from arrcoc_sam.errors import InputError, ShapeError

RNG = np.random.default_rng(0)


def two_halves(height: int = 96, width: int = 128) -> np.ndarray:
    """Left half flat blue, right half noise."""
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[:, : width // 2] = (30, 60, 200)
    image[:, width // 2 :] = RNG.integers(0, 256, (height, width - width // 2, 3))
    return image


def test_entropy_of_one_disc_counted_by_hand() -> None:
    image = np.repeat(RNG.integers(0, 4, (15, 15, 1), dtype=np.uint8) * 60, 3, axis=2)
    entropy = local_entropy(image, radius=2)
    rows, columns = np.mgrid[-2:3, -2:3]
    disc = rows**2 + columns**2 <= 4
    for row, column in ((7, 7), (4, 10)):
        window = image[row - 2 : row + 3, column - 2 : column + 3, 0][disc]
        shares = np.unique(window, return_counts=True)[1] / disc.sum()
        assert entropy[row, column].item() == pytest.approx(-(shares * np.log2(shares)).sum(), abs=1e-5)
    assert entropy.max() <= math.log2(disc.sum()) + 1e-6


def test_sobel_of_a_step() -> None:
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    image[:, 4:] = 255
    edges = edge_magnitude(image)
    # Only the two columns beside the step have a gradient; the kernel's weights are 1/4 of Sobel's, over sqrt 2.
    assert set(np.flatnonzero(edges[4].numpy() > 1e-6)) == {3, 4}
    assert edges[4, 3].item() == pytest.approx(1 / math.sqrt(2), abs=1e-4)


def test_cosine_of_known_vectors() -> None:
    features = torch.tensor([[3.0, 0.0, -1.0, 0.0], [4.0, 2.0, 0.0, 0.0]])[:, None]
    similarity = query_similarity(features, torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(similarity, torch.tensor([[[0.6, 0.0, 0.0, 0.0]]]))


def test_shapes_names_and_sums() -> None:
    source = RelevanceAttention()
    assert isinstance(source, AttentionSource)
    image = two_halves()
    free = source(image)
    assert free.names == ("propositional", "perspectival", "balanced")
    assert free.values.shape == (3, 32, 32)
    prompted = source(image, [[10, 10], [100, 50]])
    assert prompted.names == ("propositional", "perspectival", "participatory", "balanced")
    assert prompted.values.shape == (4, 2, 32, 32)
    torch.testing.assert_close(prompted.values.sum((-2, -1)), torch.ones(4, 2))
    torch.testing.assert_close(prompted.values[0, 0], prompted.values[0, 1])
    torch.testing.assert_close(prompted.values[0, 0], free.values[0])
    torch.testing.assert_close(prompted.values[3], prompted.values[:3].mean(0))


def test_letterbox_leaves_the_padding_empty() -> None:
    maps = RelevanceAttention(grid=8)(two_halves(96, 128), [[10, 10]])
    assert maps.transform.frame_hw == (128, 128)
    torch.testing.assert_close(maps.valid[:6], torch.ones(6, 8))
    assert maps.valid[6:].sum() == 0
    assert maps.values[..., 6:, :].sum() == 0


def test_maps_look_where_their_definitions_say() -> None:
    maps = RelevanceAttention(grid=16)(two_halves(), [[10, 50], [120, 50]])
    right = maps.values[..., 8:].sum((-2, -1))
    assert right[0].min() > 0.95  # noise has the entropy
    assert right[1].min() > 0.95  # and the edges
    assert right[2, 0] < 0.05  # a click on the flat half is coupled with the flat half
    assert right[2, 1] > 0.95


def test_the_clicked_cell_is_as_similar_as_can_be() -> None:
    maps = RelevanceAttention(grid=16)(two_halves(), [[100, 20]])
    row, column = maps.transform.cells_at([[100.0, 20.0]], (16, 16))[0].tolist()
    participatory = maps["participatory"].values[0, 0]
    assert participatory[row, column] == participatory.max()


def test_a_flat_image_gives_uniform_attention() -> None:
    maps = RelevanceAttention(grid=8)(np.full((50, 100, 3), 77, dtype=np.uint8), [[3, 3]])
    uniform = maps.valid / maps.valid.sum()
    torch.testing.assert_close(maps.values, uniform.expand(4, 1, 8, 8))


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (37, 3), (600, 900)])
def test_any_size(size: tuple[int, int]) -> None:
    image = RNG.integers(0, 256, (*size, 3), dtype=np.uint8)
    maps = RelevanceAttention(grid=8)(image, [[0, 0]])
    assert maps.values.shape == (4, 1, 8, 8)
    assert torch.isfinite(maps.values).all()


def test_features_of_a_model_and_a_query_vector() -> None:
    def features(image: np.ndarray) -> torch.Tensor:
        assert image.shape == (96, 128, 3)
        out = torch.zeros(2, 6, 8)
        out[0, :, :4] = 1.0
        out[1, :, 4:] = 1.0
        return out

    source = RelevanceAttention(grid=8, features=features, query=torch.tensor([0.0, 5.0]))
    maps = source(two_halves())
    assert maps.values.shape == (4, 8, 8)
    # Channel 1 lives in the right half; bilinear resizing blurs it into one cell of the left.
    expected = (maps.valid / maps.valid.sum())[:, 4:].sum() * 2
    assert expected.item() == pytest.approx(1.0)
    assert maps["participatory"].values[0, :, :3].sum() == 0
    torch.testing.assert_close(maps["participatory"].values[0, :6, 5:].std(), torch.tensor(0.0), atol=1e-6, rtol=0)


def test_weights_are_scaled_and_learnable() -> None:
    image = two_halves()
    fixed = RelevanceAttention(weights=(2, 0, 2))(image, [[10, 10]])
    torch.testing.assert_close(fixed.values[3], (fixed.values[0] + fixed.values[2]) / 2)

    source = RelevanceAttention(weights=(1, 1, 2), learnable=True)
    torch.testing.assert_close(source.weights.detach(), torch.tensor([0.25, 0.25, 0.5]))
    maps = source(image, [[10, 10]])
    maps["balanced"].values[..., :16].sum().backward()
    gradient = source.weight_logits.grad
    assert gradient is not None
    # More weight on the map that looks left (the participatory one) is what raises the mass there.
    assert gradient[2] > 0 > gradient[0]
    assert list(RelevanceAttention().parameters()) == []


@pytest.mark.usefixtures("as_at_run_time")
@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"weights": (1, 1)}, ShapeError),
        ({"weights": (1, -1, 1)}, InputError),
        ({"weights": (0, 0, 0)}, InputError),
        ({"weights": (1, float("nan"), 1)}, InputError),
        ({"weights": (1, 0, 1), "learnable": True}, InputError),
        ({"grid": 0}, InputError),
        ({"weights": None}, InputError),
        ({"weights": "abc"}, InputError),
        ({"features": 5}, InputError),
        ({"query": torch.ones(1, 3)}, ShapeError),
        ({"query": torch.tensor([1.0, torch.nan])}, InputError),
        ({"query": ["a"]}, InputError),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error):
        RelevanceAttention(**options)  # type: ignore[arg-type]


@pytest.mark.usefixtures("as_at_run_time")
def test_bad_calls_are_refused() -> None:
    image = two_halves()
    with pytest.raises(InputError, match="outside the image"):
        RelevanceAttention()(image, [[128, 0]])
    with pytest.raises(ShapeError, match="feature channels"):
        RelevanceAttention(query=torch.ones(3))(image)
    with pytest.raises(InputError, match="there is no query"):
        RelevanceAttention(weights=(0, 0, 1))(image)
    with pytest.raises(ShapeError, match="features are"):
        RelevanceAttention(features=lambda image: torch.ones(3, 4))(image, [[1, 1]])


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused_and_not_uniform(wrong: float) -> None:
    def features(image: np.ndarray) -> np.ndarray:
        found = np.ones((5, 4, 6))
        found[2, 1, 3] = wrong
        return found

    with pytest.raises(InputError, match="the features hold NaN, infinite"):
        RelevanceAttention(features=features)(two_halves(), [[1, 1]])  # type: ignore[arg-type]


def test_a_query_and_weights_may_be_lists_or_arrays() -> None:
    image, vector = two_halves(), [1.0, 0.5, 0, 0, 0, 0, 0, 0, 0]
    expected = RelevanceAttention(query=torch.tensor(vector), weights=(1, 2, 3))(image).values
    for kind in (np.array, list):
        assert torch.equal(RelevanceAttention(query=kind(vector), weights=kind([1, 2, 3]))(image).values, expected)


def test_texture_features_are_finite_and_named_nine() -> None:
    features = texture_features(two_halves())
    assert features.shape == (9, 96, 128)
    assert torch.isfinite(features).all()
