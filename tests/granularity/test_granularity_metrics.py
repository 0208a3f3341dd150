import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arrcoc_sam.errors import InputError, ShapeError, UnknownNameError
from arrcoc_sam.granularity import metrics as M
from arrcoc_sam.granularity.regions import Regions

ALL = [M.shell_contrast, M.pearson, M.information_gain, M.mass_accuracy, M.log_lift]


def row_masks(*rows: str) -> torch.Tensor:
    """Masks of one row of cells from strings such as '0111'."""
    return torch.tensor([[int(c) for c in row] for row in rows]).bool()[None, :, None]


def row(*values: float) -> torch.Tensor:
    return torch.tensor([[values]], dtype=torch.float64)


NESTED = row_masks("01111000", "00111000", "00010000")


def nested_masks(generator: torch.Generator, num: int, size: tuple[int, int]) -> torch.Tensor:
    """Random nested masks; every ring and the background hold at least one pixel."""
    field = torch.rand(num, *size, generator=generator)
    ranks = field.flatten(1).argsort(1).argsort(1).view_as(field) / field[0].numel()
    return torch.stack([ranks < 0.6, ranks < 0.3, ranks < 0.15], dim=1)


def smooth_attention(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=generator, dtype=torch.float64) ** 2 + 0.01


def test_shell_contrast_by_hand():
    # densities: background (1+1+1+1)/4 = 1, whole without part 2, part without subpart (3+5)/2 = 4, subpart 10
    attention = row(1, 2, 3, 10, 5, 1, 1, 1)
    value = M.shell_contrast(attention, NESTED, smoothing=0.0)
    np.testing.assert_allclose(value.flatten(), np.log([2 / 1, 4 / 2, 10 / 4]), rtol=1e-12)
    mean = 24 / 8
    smoothed = M.shell_contrast(attention, NESTED, smoothing=0.5)
    expected = np.log(
        [(2 + mean / 2) / (1 + mean / 2), (4 + mean / 2) / (2 + mean / 2), (10 + mean / 2) / (4 + mean / 2)]
    )
    np.testing.assert_allclose(smoothed.flatten(), expected, rtol=1e-12)


def test_shell_contrast_skips_levels_that_are_not_distinct():
    attention = row(1, 2, 3, 10, 5, 1, 1, 1)
    without_part = M.shell_contrast(attention, NESTED, smoothing=0.0, distinct=torch.tensor([[True, False, True]]))
    shell = (2 + 3 + 5) / 3
    np.testing.assert_allclose(without_part.flatten(), [math.log(shell), np.nan, math.log(10 / shell)], rtol=1e-12)
    without_subpart = M.shell_contrast(attention, NESTED, smoothing=0.0, distinct=torch.tensor([[True, True, False]]))
    np.testing.assert_allclose(without_subpart.flatten(), [math.log(2), math.log(6 / 2), np.nan], rtol=1e-12)
    whole_alone = M.shell_contrast(attention, NESTED, smoothing=0.0, distinct=torch.tensor([[True, False, False]]))
    np.testing.assert_allclose(whole_alone.flatten(), [math.log(20 / 4), np.nan, np.nan], rtol=1e-12)


def test_attention_that_fills_a_level_evenly_is_positive_there_and_zero_within():
    for level, mask in enumerate(NESTED[0]):
        value = M.shell_contrast(1 + 9 * mask.double()[None], NESTED, smoothing=0.0)[0, 0]
        assert value[level] == pytest.approx(math.log(10))
        assert value[level + 1 :].abs().max().item() < 1e-12 if level < 2 else True
        assert int(value.argmax()) == level


def test_mass_and_lift_by_hand():
    attention = row(1, 2, 3, 10, 5, 1, 1, 1)
    np.testing.assert_allclose(M.mass_accuracy(attention, NESTED).flatten(), [20 / 24, 18 / 24, 10 / 24])
    expected = np.log([20 / 24 / (4 / 8), 18 / 24 / (3 / 8), 10 / 24 / (1 / 8)])
    np.testing.assert_allclose(M.log_lift(attention, NESTED).flatten(), expected)


def test_information_gain_by_hand_is_negative_for_less_than_the_area():
    more, less = row(3, 1, 0, 0), row(0, 0, 1, 3)
    masks = row_masks("1100", "1000", "1000")
    # whole: p = 1, a = 1/2: ln 2; part: p = 3/4, a = 1/4: 3/4 ln 3 + 1/4 ln 1/3 = ln 3 / 2
    np.testing.assert_allclose(M.information_gain(more, masks).flatten()[:2], [math.log(2), math.log(3) / 2])
    # p = 0: −ln(1/(1−a))
    np.testing.assert_allclose(M.information_gain(less, masks).flatten()[:2], [-math.log(2), math.log(0.75)])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_pearson_equals_numpy_and_scipy_equals_ours(seed):
    from scipy.stats import pearsonr

    generator = torch.Generator().manual_seed(seed)
    masks, attention = nested_masks(generator, 2, (6, 7)), smooth_attention(generator, 3, 6, 7)
    value = M.pearson(attention, masks)
    for n, k, level in np.ndindex(3, 2, 3):
        expected = pearsonr(attention[n].flatten().numpy(), masks[k, level].flatten().double().numpy())[0]
        assert value[n, k, level].item() == pytest.approx(expected, abs=1e-10)


def test_pearson_on_a_coarse_grid_correlates_with_the_averaged_mask():
    generator = torch.Generator().manual_seed(3)
    masks, attention = nested_masks(generator, 1, (12, 8)), smooth_attention(generator, 1, 3, 4)
    averaged = torch.nn.functional.avg_pool2d(masks[0].double(), (4, 2))
    expected = [np.corrcoef(attention.flatten(), averaged[level].flatten())[0, 1] for level in range(3)]
    np.testing.assert_allclose(M.pearson(attention, masks).flatten(), expected, atol=1e-6)


def test_mass_accuracy_equals_quantus():
    quantus = pytest.importorskip("quantus")
    generator = torch.Generator().manual_seed(4)
    masks, attention = nested_masks(generator, 1, (8, 8)), smooth_attention(generator, 5, 8, 8)
    ours = M.mass_accuracy(attention, masks)[:, 0]
    metric = quantus.RelevanceMassAccuracy(abs=False, normalise=False, disable_warnings=True)
    for level in range(3):
        segmentation = masks[0, level].numpy()[None, None].repeat(5, 0)
        theirs = metric(
            model=None,
            x_batch=np.zeros((5, 1, 8, 8)),
            y_batch=np.zeros(5, dtype=int),
            a_batch=attention.numpy()[:, None],
            s_batch=segmentation,
        )
        np.testing.assert_allclose(ours[:, level], theirs, rtol=1e-9)


@pytest.mark.parametrize("metric", ALL)
def test_maps_per_prompt_equal_one_prompt_at_a_time(metric):
    generator = torch.Generator().manual_seed(5)
    masks, attention = nested_masks(generator, 4, (12, 12)), smooth_attention(generator, 3, 4, 6, 6)
    together = metric(attention, masks)
    assert together.shape == (3, 4, 3)
    apart = torch.cat([metric(attention[:, k], masks[k : k + 1]) for k in range(4)], dim=1)
    torch.testing.assert_close(together, apart)


@pytest.mark.parametrize("metric", ALL)
@settings(max_examples=10, deadline=None)
@given(scale=st.floats(1e-20, 1e20), seed=st.integers(0, 99))
def test_the_scale_of_attention_is_irrelevant(metric, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    masks, attention = nested_masks(generator, 2, (6, 6)), smooth_attention(generator, 2, 6, 6)
    torch.testing.assert_close(metric(attention * scale, masks), metric(attention, masks))


@pytest.mark.parametrize("metric", ALL)
def test_padding_changes_nothing(metric):
    generator = torch.Generator().manual_seed(6)
    masks, attention = nested_masks(generator, 2, (6, 6)), smooth_attention(generator, 2, 6, 6)
    valid = torch.zeros(8, 9)
    valid[:6, :6] = 1
    pad = (0, 3, 0, 2)
    padded = torch.nn.functional.pad(attention, pad, value=7.0)  # what lies on padding must not count
    value = metric(padded, torch.nn.functional.pad(masks, pad), valid=valid)
    torch.testing.assert_close(value, metric(attention, masks))


@pytest.mark.parametrize("metric", ALL)
def test_a_cell_that_the_image_covers_by_half_counts_half(metric):
    """Two cells of weight ½ with half the mass each are one cell."""
    masks = row_masks("01111000", "00111000", "00010000")
    attention = row(1, 2, 3, 10, 5, 1, 1, 1)
    split = row(1, 2, 3, 5, 5, 5, 1, 1, 1)
    split_masks = row_masks("011111000", "001111000", "000110000")
    valid = torch.tensor([[1, 1, 1, 0.5, 0.5, 1, 1, 1, 1]])
    torch.testing.assert_close(metric(split, split_masks, valid=valid), metric(attention, masks))


@pytest.mark.parametrize("metric", ALL)
def test_undefined_values_are_nan(metric):
    attention = row(1, 2, 3, 10, 5, 1, 1, 1)
    empty = metric(attention, row_masks("01111000", "00110000", "00000000"))[0, 0]
    assert empty.isnan().tolist() == [False, False, True]
    not_distinct = metric(attention, NESTED, distinct=torch.tensor([[True, False, True]]))[0, 0]
    assert not_distinct.isnan().tolist() == [False, True, False]
    assert metric(torch.zeros(1, 1, 8), NESTED).isnan().all()


def test_uniform_attention_has_no_contrast_and_no_correlation():
    uniform = torch.full((1, 1, 8), 1 / 8)
    assert M.shell_contrast(uniform, NESTED).abs().max() < 1e-6
    assert M.pearson(uniform, NESTED).isnan().all()
    assert M.information_gain(uniform, NESTED).abs().max() < 1e-6
    assert M.log_lift(uniform, NESTED).abs().max() < 1e-6


def test_softmax_rounding_of_uniform_attention_is_constant():
    noisy = (torch.ones(1, 32, 32) + 1e-7 * torch.rand(1, 32, 32)).div(1024)
    masks = nested_masks(torch.Generator().manual_seed(0), 1, (32, 32))
    assert M.pearson(noisy, masks).isnan().all()


def test_a_whole_that_is_everything():
    attention = row(1, 2, 3, 10, 5, 1, 1, 1)
    everything = row_masks("11111111", "00111000", "00010000")
    assert M.shell_contrast(attention, everything)[0, 0].isnan().tolist() == [True, False, False]
    assert M.pearson(attention, everything)[0, 0].isnan().tolist() == [True, False, False]
    assert M.information_gain(attention, everything)[0, 0, 0] == 0
    # … also where averaging to the grid leaves 1 − 1e-7
    large = torch.ones(1, 3, 210, 330, dtype=torch.bool)
    large[:, 1:, 50:] = False
    large[:, 2, 20:] = False
    value = M.shell_contrast(torch.rand(1, 13, 17), large)
    assert value[0, 0].isnan().tolist() == [True, False, False]


def test_a_whole_that_is_everything_gains_nothing_whatever_rounding_leaves():
    masks = torch.ones(1, 3, 64, 64, dtype=torch.bool)
    masks[:, 1:, 32:] = False
    masks[:, 2, :, 32:] = False
    attention = torch.rand(500, 16, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    gain = M.information_gain(attention, masks)
    assert gain[..., 0].abs().max() == 0
    gain.sum().backward()
    assert attention.grad.isfinite().all()


def test_no_attention_inside_is_minus_infinity_of_lift_and_finite_contrast():
    attention = row(1, 1, 1, 0, 1, 1, 1, 1)
    assert M.log_lift(attention, NESTED)[0, 0, 2] == -torch.inf
    assert M.shell_contrast(attention, NESTED).isfinite().all()
    assert M.mass_accuracy(attention, NESTED)[0, 0, 2] == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_follows_the_attention_in_float32_at_least(dtype):
    value = M.pearson(torch.rand(2, 4, 4).to(dtype), nested_masks(torch.Generator(), 1, (8, 8)))
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_evaluate_equals_the_functions():
    generator = torch.Generator().manual_seed(7)
    masks, attention = nested_masks(generator, 3, (12, 12)), smooth_attention(generator, 2, 4, 4)
    together = M.evaluate([f.__name__ for f in ALL], attention, Regions.from_masks(masks, (4, 4)))
    for metric in ALL:
        torch.testing.assert_close(together[metric.__name__], metric(attention, masks))


@pytest.mark.parametrize("resolution", ["grid", "image"])
def test_masks_may_be_arrays(resolution):
    generator = torch.Generator().manual_seed(8)
    masks, attention = nested_masks(generator, 3, (12, 12)), smooth_attention(generator, 2, 4, 4)
    for name in M.METRICS:
        metric = getattr(M, name)
        expected = metric(attention, masks, resolution=resolution)
        assert torch.equal(metric(attention, masks.numpy(), resolution=resolution), expected)
    expected = M.shuffled_auc(attention, masks, negatives=masks.flip(0), resolution=resolution)
    given = {"negatives": masks.flip(0).numpy(), "resolution": resolution}
    assert torch.equal(M.shuffled_auc(attention, masks.numpy(), **given), expected)


def test_soft_masks_are_differentiable_and_may_lie_beside_by_rounding():
    generator = torch.Generator().manual_seed(9)
    soft = (nested_masks(generator, 2, (8, 8)).float() * (1 + 1e-6)).requires_grad_()
    attention = smooth_attention(generator, 3, 4, 4)
    M.pearson(attention, soft).sum().backward()
    assert soft.grad.abs().max() > 0
    each = torch.vmap(lambda triple: M.pearson(attention, triple[None])[:, 0])(soft.detach())
    torch.testing.assert_close(each.movedim(0, 1), M.pearson(attention, soft.detach()))


@pytest.mark.usefixtures("as_at_run_time")
def test_wrong_inputs_are_refused_before_any_work():
    masks, attention = NESTED, row(1, 2, 3, 10, 5, 1, 1, 1)
    with pytest.raises(ShapeError, match=r"attention\[None\]"):
        M.pearson(attention[0], masks)
    with pytest.raises(ShapeError, match="prompts"):
        M.pearson(attention.expand(2, 3, 1, 8), masks)
    with pytest.raises(ShapeError, match=r"masks\[None\]"):
        M.pearson(attention, masks[0])
    with pytest.raises(InputError, match="negative"):
        M.pearson(-attention, masks)
    with pytest.raises(InputError, match="finite"):
        M.pearson(attention / 0, masks)
    with pytest.raises(InputError, match="resolution"):
        M.pearson(attention, masks, resolution="pixel")
    with pytest.raises(InputError, match="smoothing"):
        M.shell_contrast(attention, masks, smoothing=-1)
    with pytest.raises(InputError, match=r"torch\.as_tensor\(attention\)"):
        M.pearson(attention.numpy(), masks)
    with pytest.raises(InputError, match=r"torch\.as_tensor\(valid\)"):
        M.pearson(attention, masks, valid=np.ones((1, 8)))
    for valid in (torch.zeros(1, 8), -torch.ones(1, 8), torch.full((1, 8), torch.nan)):
        with pytest.raises(InputError, match="valid holds negative or non-finite values, or nothing above 0"):
            M.shuffled_auc(attention, masks, negatives=masks, valid=valid)
    for soft in (masks.float() * 255, masks.float() - 0.5, masks.float() / 0):
        for metric in (M.spearman, M.pearson):
            with pytest.raises(InputError, match=r"masks holds values beside \[0, 1\] or NaN"):
                metric(attention, soft)
        with pytest.raises(InputError, match="negatives holds values beside"):
            M.shuffled_auc(attention, masks, negatives=soft)
    regions = Regions.from_masks(masks, (1, 8))
    with pytest.raises(InputError, match="negative or non-finite"):
        M.evaluate(["pearson"], attention - 2, regions)
    with pytest.raises(UnknownNameError, match="pearson"):
        M.evaluate(["corr"], attention, regions)
    with pytest.raises(ShapeError, match="grid"):
        M.evaluate(["pearson"], attention[..., :4], regions)
