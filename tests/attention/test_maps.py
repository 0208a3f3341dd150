"""AttentionMaps: what is accepted, how it is normalised, indexed, joined and drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from arrcoc_sam.attention.maps import AttentionMaps, as_points
from arrcoc_sam.errors import InputError, ShapeError, UnknownNameError
from arrcoc_sam.geometry import ImageTransform

SQUARE = ImageTransform.identity((6, 6))


def some_maps(num: int = 3, *, prompts: int | None = None, prefix: bool = False) -> AttentionMaps:
    shape = (num, 6, 6) if prompts is None else (num, prompts, 6, 6)
    values = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    mass = values.mean((-2, -1)) if prefix else None
    return AttentionMaps.from_values(values, names=[f"m{i}" for i in range(num)], transform=SQUARE, prefix_mass=mass)


@settings(deadline=None, max_examples=40)
@given(
    hnp.arrays(np.float32, (2, 3, 4, 5), elements=st.floats(0, 2.0**100, width=32)),
    st.sampled_from([1e-40, 1.0, 1e8]),
)
def test_every_map_sums_to_one_at_any_scale(values: np.ndarray, scale: float) -> None:
    values[..., 0, 0] = 2.0**99  # no map is all zero
    tensor = torch.from_numpy(values).double() * scale
    maps = AttentionMaps.from_values(tensor, transform=ImageTransform.identity((4, 5)))
    assert maps.values.dtype == torch.float32
    torch.testing.assert_close(maps.values.sum((-2, -1)), torch.ones(2, 3))
    expected = tensor / tensor.sum((-2, -1), keepdim=True)
    torch.testing.assert_close(maps.values.double(), expected, rtol=1e-4, atol=1e-6)


def test_subnormal_maps_keep_their_shape() -> None:
    maps = AttentionMaps.from_values(torch.tensor([[[1e-44, 3e-44]]]), transform=ImageTransform.identity((1, 2)))
    torch.testing.assert_close(maps.values, torch.tensor([[[0.25, 0.75]]]), rtol=0.05, atol=0)


def test_cells_on_padding_get_nothing_and_cover_is_exact() -> None:
    # 4 wide, 3 high, letterboxed to 4 x 4 cells: the last row is padding.
    transform = ImageTransform.letterbox((3, 4), 4)
    maps = AttentionMaps.from_values(torch.ones(1, 4, 4), transform=transform)
    torch.testing.assert_close(maps.valid, torch.tensor([[1.0] * 4] * 3 + [[0.0] * 4]))
    torch.testing.assert_close(maps.values[0], maps.valid / 12)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.tensor([[[1.0, float("nan")]], [[1.0, 1.0]]]), "'a' holds NaN"),
        (torch.tensor([[[1.0, 1.0]], [[1.0, float("inf")]]]), "'b' holds NaN or infinite"),
        (torch.tensor([[[1.0, 1.0]], [[1.0, -1e-9]]]), "'b' holds negative"),
        (torch.tensor([[[0.0, 0.0]], [[1.0, 1.0]]]), "'a' is zero on all valid cells"),
        (torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]]], dtype=torch.complex64), "real numbers"),
    ],
)
def test_bad_values_are_refused_by_name(values: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        AttentionMaps.from_values(values, names=["a", "b"], transform=ImageTransform.identity((1, 2)))


def test_attention_on_padding_alone_is_all_zero() -> None:
    values = torch.zeros(1, 4, 4)
    values[0, 3] = 1.0
    with pytest.raises(InputError, match="zero on all valid cells"):
        AttentionMaps.from_values(values, transform=ImageTransform.letterbox((3, 4), 4))


@pytest.mark.usefixtures("as_at_run_time")
@pytest.mark.parametrize("shape", [(6,), (6, 6), (1, 1, 1, 6, 6), (0, 6, 6), (2, 0, 6)])
def test_wrong_rank_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="expected non-empty"):
        AttentionMaps.from_values(torch.ones(shape), transform=SQUARE)


@pytest.mark.usefixtures("as_at_run_time")
def test_other_wrong_shapes_are_refused() -> None:
    values = torch.ones(2, 6, 6)
    with pytest.raises(ShapeError, match="3 names came with 2"):
        AttentionMaps.from_values(values, names=["a", "b", "c"], transform=SQUARE)
    with pytest.raises(InputError, match="'a' occurs twice"):
        AttentionMaps.from_values(values, names=["a", "a"], transform=SQUARE)
    with pytest.raises(ShapeError, match="valid has shape"):
        AttentionMaps.from_values(values, transform=SQUARE, valid=torch.ones(6, 5))
    with pytest.raises(ShapeError, match="prefix_mass has shape"):
        AttentionMaps.from_values(values, transform=SQUARE, prefix_mass=torch.ones(3))


def test_arrays_are_taken() -> None:
    values = np.arange(1, 73).reshape(2, 6, 6)
    cover = np.ones((6, 6))
    maps = AttentionMaps.from_values(values, transform=SQUARE, valid=cover, prefix_mass=np.array([0.5, 0.25]))
    assert torch.equal(maps.values, AttentionMaps.from_values(torch.from_numpy(values), transform=SQUARE).values)
    assert maps.prefix_mass is not None
    assert maps.prefix_mass.tolist() == [0.5, 0.25]


@pytest.mark.usefixtures("as_at_run_time")
def test_the_plain_constructor_holds_what_is_promised() -> None:
    even = torch.full((2, 6, 6), 1 / 36)
    rest = {"names": ("a", "b"), "valid": torch.ones(6, 6), "transform": SQUARE}
    AttentionMaps(values=even, **rest)  # type: ignore[arg-type]
    for wrong in (even * 2, even - 0.1, even * torch.nan, torch.randn(2, 6, 6)):
        with pytest.raises(InputError, match=r"'b' is no distribution.*from_values"):
            AttentionMaps(values=torch.stack([even[0], wrong[1]]), **rest)  # type: ignore[arg-type]
    for other in (even.double(), even.numpy()):
        with pytest.raises(InputError, match="expected float32 tensors"):
            AttentionMaps(values=other, **rest)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="'a' is no distribution"):  # a row of its mass lies on padding
        AttentionMaps(values=even, **{**rest, "valid": torch.ones(6, 6).triu()})  # type: ignore[arg-type]
    for weight in (2.0, -1.0, torch.nan):
        valid = torch.ones(6, 6)
        valid[2, 3] = weight
        with pytest.raises(InputError, match="valid holds"):
            AttentionMaps.from_values(even, transform=SQUARE, valid=valid)


def test_gradients_flow_through_the_normalisation() -> None:
    logits = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    maps = AttentionMaps.from_values(logits.exp(), transform=ImageTransform.identity((3, 3)))
    maps.values[:, 1, 1].sum().backward()
    # The softmax's gradient, in closed form.
    p = logits.detach().flatten(1).softmax(1).reshape(2, 3, 3)
    expected = -p * p[:, 1:2, 1:2]
    expected[:, 1, 1] += p[:, 1, 1]
    torch.testing.assert_close(logits.grad, expected, rtol=1e-4, atol=1e-6)
    assert not maps.detach().values.requires_grad


def test_indexing() -> None:
    maps = some_maps(4, prefix=True)
    assert maps["m2"].names == ("m2",)
    assert maps[-1].names == ("m3",)
    assert maps[1:3].names == ("m1", "m2")
    assert maps[["m3", "m0"]].names == ("m3", "m0")
    torch.testing.assert_close(maps[[3, 0]].values, maps.values[[3, 0]])
    torch.testing.assert_close(maps[[3, 0]].prefix_mass, maps.prefix_mass[[3, 0]])
    assert [m.names[0] for m in maps] == ["m0", "m1", "m2", "m3"]
    for picks in (np.array, torch.tensor, list):
        assert maps[picks([True, False, False, True])].names == ("m0", "m3")
        assert maps[picks([3, -4])].names == ("m3", "m0")
    assert maps[np.int64(2)].names == maps[torch.tensor(2)].names == ("m2",)
    assert maps[np.array(["m1"])].names == ("m1",)
    with pytest.raises(ShapeError, match="2 bools; expected one for each of 4"):
        maps[[True, False]]
    with pytest.raises(InputError, match="picks no attention map"):
        maps[np.zeros(4, dtype=bool)]
    for wrong in (np.array([1.5]), torch.tensor([[0]])):
        with pytest.raises(InputError, match="a number or a name"):
            maps[wrong]
    with pytest.raises(UnknownNameError, match="'m9'"):
        maps["m9"]
    with pytest.raises(IndexError):
        maps[4]
    with pytest.raises(InputError, match="picks no attention map"):
        maps[4:]


def test_cat_repeats_what_does_not_depend_on_the_prompt() -> None:
    free, prompted = some_maps(2, prefix=True), some_maps(3, prompts=5, prefix=True)
    joined = AttentionMaps.cat([free.prefixed("a/"), prompted])
    assert joined.names == ("a/m0", "a/m1", "m0", "m1", "m2")
    assert joined.values.shape == (5, 5, 6, 6)
    torch.testing.assert_close(joined.values[1, 3], free.values[1])
    torch.testing.assert_close(joined.values[4], prompted.values[2])
    assert joined.prefix_mass is not None
    assert joined.prefix_mass.shape == (5, 5)
    assert AttentionMaps.cat([free, some_maps(1).prefixed("x")]).prefix_mass is None


def test_cat_refuses_what_does_not_fit() -> None:
    maps = some_maps(2)
    other = AttentionMaps.from_values(torch.ones(1, 6, 6), names=["o"], transform=ImageTransform.squash((7, 7), (6, 6)))
    with pytest.raises(ShapeError, match="one grid"):
        AttentionMaps.cat([maps, other])
    with pytest.raises(InputError, match="occurs twice"):
        AttentionMaps.cat([maps, maps])
    with pytest.raises(ShapeError, match="prompts can't be joined"):
        AttentionMaps.cat([some_maps(1, prompts=2), some_maps(1, prompts=3).prefixed("x")])
    with pytest.raises(InputError, match="no attention maps"):
        AttentionMaps.cat([])


def test_to_image_has_the_original_size() -> None:
    transform = ImageTransform.letterbox((3, 4), 8)
    maps = AttentionMaps.from_values(torch.rand(2, 5, 4, 4) + 0.1, transform=transform)
    for mode in ("nearest", "bilinear"):
        assert maps.to_image(mode).shape == (2, 5, 3, 4)
    # Two cells a frame, nearest: the picture is the cells, enlarged.
    simple = AttentionMaps.from_values(torch.tensor([[[1.0, 3.0]]]), transform=ImageTransform.identity((2, 4)))
    torch.testing.assert_close(simple.to_image()[0], torch.tensor([[0.25, 0.25, 0.75, 0.75]] * 2))


def test_pictures_show_density() -> None:
    # 6 pixels high on 4-pixel cells: the second row of cells is half covered, and uniform attention must look uniform.
    transform = ImageTransform.letterbox((6, 8), 8)
    valid = transform.grid_valid((2, 2))
    maps = AttentionMaps.from_values(valid[None], transform=transform)
    picture = maps.to_image()
    torch.testing.assert_close(picture, torch.full((1, 6, 8), 1 / 3))
    assert repr(maps) == "AttentionMaps(1 maps: map0; 2 x 2 cells)"


@pytest.mark.parametrize(
    "points", [[[1.0, 2.0]], np.array([[1, 2]]), torch.tensor([[1.0, 2.0]], requires_grad=True), [(1, 2)]]
)
def test_points_of_any_kind(points: object) -> None:
    out = as_points(points, (3, 4))  # type: ignore[arg-type]
    assert out.dtype == torch.float64
    assert out.tolist() == [[1.0, 2.0]]


@pytest.mark.usefixtures("as_at_run_time")
@pytest.mark.parametrize(
    ("points", "error"),
    [
        ([1.0, 2.0], ShapeError),
        ([[1.0, 2.0, 3.0]], ShapeError),
        (np.zeros((0, 2)), ShapeError),
        ([[1.0, 2.0], [1.0]], ShapeError),
        ([["a", "b"]], ShapeError),
        ([[4.0, 0.0]], InputError),
        ([[0.0, -1.0]], InputError),
        ([[float("nan"), 0.0]], InputError),
    ],
)
def test_bad_points_are_refused(points: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        as_points(points, (3, 4))  # type: ignore[arg-type]
