from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage.filters import threshold_otsu

from arrcoc_sam.attention import AttentionMaps
from arrcoc_sam.errors import InputError, UnknownNameError
from arrcoc_sam.geometry import ImageTransform
from arrcoc_sam.quality import attention_masks, binarize

MAPS = hnp.arrays(np.float64, (2, 5, 7), elements=st.floats(0, 8, width=16))


def test_values_by_hand() -> None:
    row = torch.tensor([[0.0, 1.0, 1.0, 2.0, 4.0]])
    assert binarize(row, 1).tolist() == [[False, False, False, True, True]]
    assert binarize(row, "mean").tolist() == [[False, False, False, True, True]]  # mean 1.6
    assert binarize(row, "mass", mass_share=0.5).tolist() == [[False, False, False, False, True]]
    assert binarize(row, "mass", mass_share=0.76).tolist() == [[False, True, True, True, True]]  # ties come together
    assert binarize(row, "mass", mass_share=1.0).tolist() == [[False, True, True, True, True]]
    assert binarize(torch.tensor([[0.1, 0.2, 5.0, 5.1]]), "otsu").tolist() == [[False, False, True, True]]


@settings(deadline=None, max_examples=50)
@given(MAPS, st.floats(0.05, 1))
def test_against_definitions(maps: np.ndarray, share: float) -> None:
    otsu, mean, mass = (binarize(maps, how, mass_share=share).numpy() for how in ("otsu", "mean", "mass"))
    for one, by_otsu, by_mean, by_mass in zip(maps, otsu, mean, mass, strict=True):
        np.testing.assert_array_equal(by_otsu, one > threshold_otsu(one))
        np.testing.assert_array_equal(by_mean, one > one.mean())
        inside, outside = one[by_mass], one[~by_mass]
        assert inside.sum() >= share * one.sum() * (1 - 1e-12)
        if len(inside):
            assert outside.max(initial=0.0) < inside.min()
            # without its smallest values it would hold too little
            assert inside[inside > inside.min()].sum() < share * one.sum() * (1 + 1e-12)


@pytest.mark.parametrize(("how", "inside"), [("otsu", 0), ("mean", 0), ("mass", 12)])
def test_constant_maps(how: str, inside: int) -> None:
    assert int(binarize(torch.full((3, 4), 0.5), how).sum()) == inside
    assert int(binarize(torch.zeros(3, 4), how).sum()) == 0


def test_attention_becomes_masks_of_the_image() -> None:
    values = torch.zeros(2, 4, 4)
    values[0, :2, :2] = 1.0
    values[1, 3, 3] = 1.0
    maps = AttentionMaps.from_values(
        values, names=["corner", "cell"], transform=ImageTransform.squash((40, 60), (32, 32))
    )
    masks = attention_masks(maps, "otsu")
    assert masks.shape == (2, 40, 60)
    assert bool(masks[0, :18, :25].all())
    assert not bool(masks[0, 25:].any())
    assert bool(masks[1, 36, 55])
    assert 0.04 < masks[1].float().mean() < 0.09  # a sixteenth
    per_prompt = AttentionMaps.from_values(values[:, None], names=["a", "b"], transform=maps.transform)
    torch.testing.assert_close(attention_masks(per_prompt, "mean")[:, 0], attention_masks(maps, "mean"))


@pytest.mark.usefixtures("as_at_run_time")
def test_bad_input() -> None:
    with pytest.raises(UnknownNameError, match="one of otsu, mean, mass"):
        binarize(torch.ones(2, 2), "median")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="finite number"):
        binarize(torch.ones(2, 2), float("nan"))
    with pytest.raises(InputError, match="mass_share=0"):
        binarize(torch.ones(2, 2), "mass", mass_share=0)
    with pytest.raises(InputError, match="negative"):
        binarize(-torch.ones(2, 2), "mass")
    with pytest.raises(InputError, match="NaN"):
        binarize(torch.full((2, 2), torch.nan), "mean")
    with pytest.raises(InputError, match="it is a mask"):
        binarize(torch.ones(2, 2, dtype=torch.bool), "mean")
