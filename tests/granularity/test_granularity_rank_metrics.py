"""Rank metrics, attention IoU and transport against scikit-learn, scipy, torchmetrics, Quantus and by hand."""

import math

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
import torchmetrics.functional.classification as tm
from hypothesis import given, settings
from hypothesis import strategies as st

from arrcoc_sam.errors import InputError, ShapeError
from arrcoc_sam.geometry import ImageTransform
from arrcoc_sam.granularity import metrics as M
from arrcoc_sam.granularity.rank_kernels import OF_RANKS
from arrcoc_sam.granularity.ranks import LevelSets, Ranking
from arrcoc_sam.granularity.regions import Regions, shells_of

OF_ORDER = [M.spearman, M.normalized_ap, M.rank_accuracy, M.pointing_game, M.auc]
ALL = [*OF_ORDER, M.attention_iou, M.sliced_wasserstein]


def row_masks(*rows: str) -> torch.Tensor:
    return torch.tensor([[int(c) for c in row] for row in rows]).bool()[None, :, None]


def row(*values: float) -> torch.Tensor:
    return torch.tensor([[values]], dtype=torch.float64)


NESTED = row_masks("01111000", "00111000", "00010000")


def nested_masks(generator: torch.Generator, num: int, size: tuple[int, int]) -> torch.Tensor:
    field = torch.rand(num, *size, generator=generator)
    ranks = field.flatten(1).argsort(1).argsort(1).view_as(field) / field[0].numel()
    return torch.stack([ranks < 0.6, ranks < 0.3, ranks < 0.15], dim=1)


def tied_attention(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """Few different values, so that ties are everywhere."""
    return torch.randint(1, 6, shape, generator=generator).double()


def soft_nested(generator: torch.Generator, num: int, size: tuple[int, int]) -> torch.Tensor:
    whole = torch.rand(num, *size, generator=generator, dtype=torch.float64)
    part = whole * torch.rand(num, *size, generator=generator)
    return torch.stack([whole, part, part * 0.5], dim=1)


seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=15, deadline=None)
@given(seed=seeds)
def test_spearman_equals_scipy(seed):
    generator = torch.Generator().manual_seed(seed)
    # in steps of a hundredth: ties in the level, too
    masks, attention = soft_nested(generator, 2, (5, 6)).mul(100).round() / 100, tied_attention(generator, 3, 5, 6)
    value = M.spearman(attention, masks)
    for n, k, level in np.ndindex(3, 2, 3):
        expected = scipy.stats.spearmanr(attention[n].flatten().numpy(), masks[k, level].flatten().numpy())[0]
        assert value[n, k, level].item() == pytest.approx(expected, abs=1e-10)


@settings(max_examples=15, deadline=None)
@given(seed=seeds)
def test_auc_and_ap_equal_scikit_learn_with_ties(seed):
    generator = torch.Generator().manual_seed(seed)
    masks, attention = nested_masks(generator, 2, (5, 6)), tied_attention(generator, 3, 5, 6)
    area, ap = M.auc(attention, masks), M.normalized_ap(attention, masks)
    for n, k, level in np.ndindex(3, 2, 3):
        truth, score = masks[k, level].flatten().numpy(), attention[n].flatten().numpy()
        assert area[n, k, level].item() == pytest.approx(sklearn.metrics.roc_auc_score(truth, score), abs=1e-10)
        precision, share = sklearn.metrics.average_precision_score(truth, score), truth.mean()
        assert ap[n, k, level].item() == pytest.approx((precision - share) / (1 - share), abs=1e-10)


def test_auc_and_ap_equal_torchmetrics():
    generator = torch.Generator().manual_seed(1)
    masks, attention = nested_masks(generator, 1, (8, 8)), torch.rand(4, 8, 8, generator=generator)
    area, ap = M.auc(attention, masks)[:, 0], M.normalized_ap(attention, masks)[:, 0]
    for n, level in np.ndindex(4, 3):
        truth, score = masks[0, level].flatten().long(), attention[n].flatten()
        share = truth.double().mean()
        torch.testing.assert_close(area[n, level], tm.binary_auroc(score, truth))
        expected = (tm.binary_average_precision(score, truth) - share) / (1 - share)
        torch.testing.assert_close(ap[n, level], expected.float())


def test_soft_levels_are_weighted_samples():
    """A cell that belongs by M is a positive of weight M and a negative of weight 1 − M."""
    generator = torch.Generator().manual_seed(2)
    masks, attention = soft_nested(generator, 1, (4, 5)), tied_attention(generator, 2, 4, 5)
    area, ap = M.auc(attention, masks), M.normalized_ap(attention, masks)
    for n, level in np.ndindex(2, 3):
        weight = masks[0, level].flatten().numpy()
        truth, score = np.repeat([1, 0], 20), np.tile(attention[n].flatten().numpy(), 2)
        sample_weight = np.concatenate([weight, 1 - weight])
        expected = sklearn.metrics.roc_auc_score(truth, score, sample_weight=sample_weight)
        assert area[n, 0, level].item() == pytest.approx(expected, abs=1e-10)
        precision = sklearn.metrics.average_precision_score(truth, score, sample_weight=sample_weight)
        share = weight.mean()
        assert ap[n, 0, level].item() == pytest.approx((precision - share) / (1 - share), abs=1e-10)


@pytest.mark.parametrize("name", ["RelevanceRankAccuracy", "AUC", "PointingGame"])
def test_equal_to_quantus(name):
    quantus = pytest.importorskip("quantus")
    generator = torch.Generator().manual_seed(3)
    masks = nested_masks(generator, 1, (8, 8))
    attention = torch.rand(6, 8, 8, generator=generator, dtype=torch.float64)
    metric = getattr(quantus, name)(abs=False, normalise=False, disable_warnings=True)
    for level in range(3):
        theirs = metric(
            model=None,
            x_batch=np.zeros((6, 1, 8, 8)),
            y_batch=np.zeros(6, dtype=int),
            a_batch=attention.numpy()[:, None],
            s_batch=masks[0, level].numpy()[None, None].repeat(6, 0),
        )
        theirs = np.array(theirs, dtype=float)
        if name == "RelevanceRankAccuracy":
            share = masks[0, level].double().mean().item()
            ours, theirs = M.rank_accuracy(attention, masks), (theirs - share) / (1 - share)
        else:
            ours = M.auc(attention, masks) if name == "AUC" else M.pointing_game(attention, masks)
        np.testing.assert_allclose(ours[:, 0, level], theirs, rtol=1e-9)


def test_rank_accuracy_by_hand_shares_ties():
    # the three largest cells are 9, and two of the four 5s: 9 is in the part, two of the 5s are, so ½·2 count
    attention = row(1, 5, 9, 5, 5, 5, 1, 1)
    masks = row_masks("01111000", "00111000", "00010000")
    value = M.rank_accuracy(attention, masks)[0, 0]
    assert value[1].item() == pytest.approx(((1 + 2 * (2 / 4)) / 3 - 3 / 8) / (5 / 8))
    assert value[0].item() == pytest.approx(((1 + 3 * (3 / 4)) / 4 - 4 / 8) / (4 / 8))
    assert value[2].item() == pytest.approx((0 - 1 / 8) / (7 / 8))


def test_rank_accuracy_of_a_level_of_no_cell_is_nan():
    masks = row_masks("01111000", "00111000", "00010000").double() * torch.tensor([1, 1, 0.4])[:, None, None]
    value = M.rank_accuracy(row(1, 5, 9, 5, 5, 5, 1, 1), masks)[0, 0]
    assert value.isnan().tolist() == [False, False, True]


def test_rank_accuracy_of_uniform_attention_is_what_rounding_the_level_leaves():
    masks = row_masks("01111000", "00111000", "00010000").double() * torch.tensor([0.9, 1.0, 0.8])[:, None, None]
    value = M.rank_accuracy(row(*[1] * 8), masks)[0, 0]
    np.testing.assert_allclose(value, [(4 - 3.6) / (8 - 3.6), (3 - 2.7) / (8 - 2.7), (1 - 0.8) / (8 - 0.8)], rtol=1e-6)


def test_pointing_game_by_hand():
    value = M.pointing_game(row(1, 2, 9, 3, 1, 1, 1, 1), NESTED)[0, 0]
    assert value.tolist() == [1, 1, 0]
    shared = M.pointing_game(row(9, 2, 9, 9, 1, 1, 1, 1), NESTED)[0, 0]
    np.testing.assert_allclose(shared, [2 / 3, 2 / 3, 1 / 3])
    averaged = row_masks("01111000", "00111000", "00011000")
    on_grid = M.pointing_game(row(1, 1, 5, 1), averaged)[0, 0]  # cell 2 is all of whole and part, half of the subpart
    assert on_grid.tolist() == [1, 1, 1]
    assert M.pointing_game(row(1, 5, 1, 1), averaged)[0, 0].tolist() == [1, 1, 1]
    assert M.pointing_game(row(5, 1, 1, 1), averaged)[0, 0].tolist() == [1, 0, 0]


def test_attention_iou_by_hand():
    attention = row(1, 0, 0, 1)
    masks = row_masks("1111", "1100", "1000")
    # Â = (½, 0, 0, ½); M̂ of the part = (½, ½, 0, 0): ¼ / Σ(½, ¼, 0, ¼)² = ¼ / ⅜
    value = M.attention_iou(attention, masks)[0, 0]
    assert value[1].item() == pytest.approx((1 / 4) / (1 / 4 + 1 / 16 + 1 / 16))
    assert value[0].item() == pytest.approx((1 / 4) / (2 * (3 / 8) ** 2 + 2 * (1 / 8) ** 2))
    assert M.attention_iou(masks[0, 1][None].double(), masks)[0, 0, 1].item() == pytest.approx(1)


@settings(max_examples=10, deadline=None)
@given(seed=seeds)
def test_attention_iou_by_definition_of_soft_levels(seed):
    generator = torch.Generator().manual_seed(seed)
    masks, attention = soft_nested(generator, 2, (5, 6)), torch.rand(3, 5, 6, generator=generator).double()
    value = M.attention_iou(attention, masks)
    for n, k, level in np.ndindex(3, 2, 3):
        a, m = attention[n] / attention[n].sum(), masks[k, level] / masks[k, level].sum()
        expected = (a * m).sum() / ((a + m) / 2).square().sum()
        assert value[n, k, level].item() == pytest.approx(expected.item(), abs=1e-10)


def test_sliced_wasserstein_equals_scipy_on_every_projection():
    generator = torch.Generator().manual_seed(4)
    masks, attention = nested_masks(generator, 2, (10, 12)), torch.rand(3, 5, 4, generator=generator).double()
    value = M.sliced_wasserstein(attention, masks, num_directions=7)
    y, x = np.mgrid[1:10:2, 1.5:12:3]
    for n, k, level in np.ndindex(3, 2, 3):
        weight = torch.nn.functional.avg_pool2d(masks[k, level].double()[None], (2, 3))[0].flatten().numpy()
        distances = []
        for angle in np.arange(7) * np.pi / 7:
            places = (x * np.cos(angle) + y * np.sin(angle)).ravel()
            distances.append(scipy.stats.wasserstein_distance(places, places, attention[n].flatten().numpy(), weight))
        assert value[n, k, level].item() == pytest.approx(np.mean(distances) / math.hypot(10, 12), abs=1e-7)


def test_sliced_wasserstein_by_hand_along_a_row():
    masks = torch.zeros(1, 3, 1, 4, dtype=torch.bool)
    masks[..., 3] = True
    masks[:, 0] = True
    value = M.sliced_wasserstein(row(1, 0, 0, 0), masks, num_directions=1)[0, 0]  # horizontal only
    np.testing.assert_allclose(value, np.array([1.5, 3, 3]) / math.hypot(1, 4))


def test_shuffled_auc_with_negatives_everywhere_is_auc():
    generator = torch.Generator().manual_seed(5)
    masks, attention = nested_masks(generator, 2, (8, 8)), tied_attention(generator, 3, 4, 4)
    everywhere = torch.ones(1, 3, 8, 8, dtype=torch.bool)
    torch.testing.assert_close(M.shuffled_auc(attention, masks, negatives=everywhere), M.auc(attention, masks))


def test_shuffled_auc_equals_weighted_scikit_learn():
    generator = torch.Generator().manual_seed(6)
    masks, attention = nested_masks(generator, 2, (5, 6)), tied_attention(generator, 3, 5, 6)
    negatives = nested_masks(generator, 4, (5, 6))
    value = M.shuffled_auc(attention, masks, negatives=negatives)
    for n, k, level in np.ndindex(3, 2, 3):
        truth = masks[k, level].flatten().numpy()
        often = negatives[:, level].double().mean(0).flatten().numpy()
        expected = sklearn.metrics.roc_auc_score(
            truth, attention[n].flatten().numpy(), sample_weight=np.where(truth, 1.0, often)
        )
        assert value[n, k, level].item() == pytest.approx(expected, abs=1e-9)


def test_shuffled_auc_takes_a_centre_prior_out():
    y, x = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    centre = torch.exp(-((y - 5.5) ** 2 + (x - 5.5) ** 2) / 20)[None]
    disc = centre[0] > centre.quantile(0.6)
    half = disc & (x < 6)
    others = disc.expand(1, 3, -1, -1)
    masks = half.expand(1, 3, -1, -1)
    assert M.auc(centre, masks)[0, 0, 0] > 0.7
    assert M.shuffled_auc(centre, masks, negatives=others)[0, 0, 0].item() == pytest.approx(0.5, abs=0.01)


@pytest.mark.usefixtures("as_at_run_time")
def test_negatives_of_another_size_are_refused_and_none_outside_is_nan():
    generator = torch.Generator().manual_seed(5)
    masks, attention = nested_masks(generator, 1, (8, 8)), tied_attention(generator, 1, 4, 4)
    with pytest.raises(ShapeError, match="negatives"):
        M.shuffled_auc(attention, masks, negatives=masks[..., :4])
    assert M.shuffled_auc(attention[:, :, :], masks, negatives=masks & False).isnan().all()


@pytest.mark.parametrize("metric", [*ALL, lambda a, m, **kw: M.shuffled_auc(a, m, negatives=m.roll(3, -1), **kw)])
def test_maps_per_prompt_equal_one_prompt_at_a_time(metric):
    generator = torch.Generator().manual_seed(7)
    masks = nested_masks(generator, 3, (12, 12))
    attention = torch.rand(2, 3, 6, 6, generator=generator, dtype=torch.float64)
    if metric not in ALL:
        masks = masks[:1].expand(3, -1, -1, -1)  # the negatives are made of the masks: keep them the same
    together = metric(attention, masks)
    assert together.shape == (2, 3, 3)
    apart = torch.cat([metric(attention[:, k], masks[k : k + 1]) for k in range(3)], dim=1)
    torch.testing.assert_close(together, apart)


@pytest.mark.parametrize("metric", [*ALL, lambda a, m, **kw: M.shuffled_auc(a, m, negatives=m, **kw)])
def test_padding_changes_nothing(metric):
    generator = torch.Generator().manual_seed(8)
    masks = nested_masks(generator, 2, (6, 6))
    attention = torch.rand(2, 6, 6, generator=generator, dtype=torch.float64)
    valid = torch.zeros(8, 9)
    valid[:6, :6] = 1
    pad = (0, 3, 0, 2)
    value = metric(torch.nn.functional.pad(attention, pad, value=7.0), torch.nn.functional.pad(masks, pad), valid=valid)
    torch.testing.assert_close(value, metric(attention, masks))


@pytest.mark.parametrize("metric", [M.spearman, M.normalized_ap, M.auc, M.attention_iou])
def test_a_cell_that_the_image_covers_by_half_counts_half(metric):
    masks, attention = row_masks("01111000", "00111000", "00010000"), row(1, 2, 3, 10, 5, 1, 1, 1)
    split, split_masks = row(1, 2, 3, 5, 5, 5, 1, 1, 1), row_masks("011111000", "001111000", "000110000")
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


@pytest.mark.parametrize("metric", [M.spearman, M.normalized_ap, M.rank_accuracy, M.auc])
def test_a_whole_that_is_everything_is_nan(metric):
    masks = torch.ones(1, 3, 210, 330, dtype=torch.bool)
    masks[:, 1:, 50:] = False
    masks[:, 2, 20:] = False
    value = metric(torch.rand(1, 13, 17, dtype=torch.float64), masks)[0, 0]
    assert value.isnan().tolist() == [True, False, False]


def test_uniform_attention():
    uniform = torch.full((1, 1, 8), 1 / 8)
    assert M.spearman(uniform, NESTED).isnan().all()
    torch.testing.assert_close(M.auc(uniform, NESTED), torch.full((1, 1, 3), 0.5))
    torch.testing.assert_close(M.normalized_ap(uniform, NESTED), torch.zeros(1, 1, 3))
    torch.testing.assert_close(M.rank_accuracy(uniform, NESTED), torch.zeros(1, 1, 3))
    torch.testing.assert_close(M.pointing_game(uniform, NESTED).flatten(), torch.tensor([4 / 8, 3 / 8, 1 / 8]))


def test_uniform_attention_of_a_padded_image():
    transform = ImageTransform.letterbox((300, 512), 512)
    valid = transform.grid_valid((32, 32))
    assert 0.75 in valid  # cells that the image covers in part, where a division leaves rounding
    masks = torch.zeros(1, 3, 300, 512, dtype=torch.bool)
    for level, (top, bottom) in enumerate([(100, 296), (120, 280), (150, 250)]):
        masks[0, level, top:bottom, top : bottom + 10] = True
    grids = transform.masks_to_grid(shells_of(masks), (32, 32))
    regions = Regions(grids, valid, torch.ones(1, 3, dtype=torch.bool))
    values = M.evaluate(list(OF_RANKS), (valid / valid.sum())[None], regions)
    assert values["spearman"].isnan().all()
    torch.testing.assert_close(values["auc"], torch.full((1, 1, 3), 0.5))
    torch.testing.assert_close(values["normalized_ap"], torch.zeros(1, 1, 3))


def test_uniform_attention_at_image_resolution():
    uniform = torch.full((1, 37, 37), 1 / 37**2)
    masks = torch.zeros(1, 3, 518, 518, dtype=torch.bool)
    for level, (top, bottom) in enumerate([(100, 400), (150, 300), (200, 250)]):
        masks[0, level, top:bottom, top:bottom] = True
    area = masks.float().mean((-2, -1))[None]
    found = {name: getattr(M, name)(uniform, masks, resolution="image") for name in OF_RANKS}
    assert found["spearman"].isnan().all()
    torch.testing.assert_close(found["auc"], torch.full((1, 1, 3), 0.5))
    torch.testing.assert_close(found["normalized_ap"], torch.zeros(1, 1, 3))
    torch.testing.assert_close(found["rank_accuracy"], torch.zeros(1, 1, 3))
    torch.testing.assert_close(found["pointing_game"], area)


@pytest.mark.parametrize("metric", OF_ORDER)
@settings(max_examples=10, deadline=None)
@given(power=st.sampled_from([0.5, 3.0]), seed=st.integers(0, 99))
def test_only_the_order_counts(metric, power, seed):
    generator = torch.Generator().manual_seed(seed)
    masks, attention = nested_masks(generator, 2, (6, 6)), tied_attention(generator, 2, 6, 6)
    torch.testing.assert_close(metric(attention**power, masks), metric(attention, masks))


@pytest.mark.parametrize("metric", [*ALL, M.pearson, M.shell_contrast, M.information_gain, M.log_lift, M.mass_accuracy])
def test_image_resolution_is_the_metric_of_upsampled_maps(metric):
    generator = torch.Generator().manual_seed(9)
    masks, attention = nested_masks(generator, 2, (22, 17)), torch.rand(2, 5, 6, generator=generator).double()
    pixels = torch.nn.functional.interpolate(attention[None], size=(22, 17), mode="bilinear", align_corners=False)[0]
    flags = torch.tensor([[True, True, True], [True, False, True]])
    found = metric(attention, masks, resolution="image", distinct=flags)
    torch.testing.assert_close(found, metric(pixels, masks, distinct=flags), atol=2e-7, rtol=1e-6, equal_nan=True)
    stacked = attention[:, None].expand(-1, 2, -1, -1)
    torch.testing.assert_close(
        metric(stacked, masks, resolution="image", distinct=flags), found, equal_nan=True, atol=1e-12, rtol=1e-9
    )


@pytest.mark.parametrize(
    ("grid", "size"), [((14, 14), (224, 224)), ((37, 23), (111, 300)), ((9, 9), (9, 9)), ((8, 5), (3, 21))]
)
def test_the_adjoint_is_exact(grid, size):
    """Correlation with the upsampled map to 1e-8, from bool masks as from float64 ones."""
    generator = torch.Generator().manual_seed(10)
    masks = nested_masks(generator, 2, size)
    attention = torch.rand(3, *grid, generator=generator).double() ** 6  # peaked, like attention
    pixels = torch.nn.functional.interpolate(attention[None], size=size, mode="bilinear", align_corners=False)[0]
    stacked = np.concatenate([pixels.flatten(1), masks.flatten(2).flatten(0, 1)])
    expected = np.corrcoef(stacked)[:3, 3:].reshape(3, 2, 3)
    for given_masks in (masks, masks.double()):
        found = M.pearson(attention, given_masks, resolution="image")
        np.testing.assert_allclose(found, expected, atol=1e-8, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("resolution", ["grid", "image"])
def test_autocast_takes_no_digits(dtype, resolution):
    generator = torch.Generator().manual_seed(12)
    masks, attention = nested_masks(generator, 2, (90, 110)), torch.rand(2, 7, 7, generator=generator)
    for metric in (M.pearson, M.shell_contrast, M.mass_accuracy, M.rank_accuracy, M.auc, M.spearman, M.attention_iou):
        expected = metric(attention, masks, resolution=resolution)
        with torch.autocast("cpu", dtype):
            found = metric(attention, masks, resolution=resolution)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7, equal_nan=True)


def test_a_whole_that_is_everything_at_image_resolution():
    masks = torch.zeros(1, 3, 600, 480, dtype=torch.bool)
    masks[0, 0], masks[0, 1, :40, :40], masks[0, 2, :9, :9] = True, True, True
    value = M.pearson(torch.rand(3, 7, 7, generator=torch.Generator().manual_seed(0)), masks, resolution="image")
    assert value.isnan().tolist() == [[[True, False, False]]] * 3


def test_soft_masks_at_image_resolution():
    generator = torch.Generator().manual_seed(11)
    masks, attention = soft_nested(generator, 2, (20, 20)), torch.rand(2, 5, 5, generator=generator).double()
    pixels = torch.nn.functional.interpolate(attention[None], size=(20, 20), mode="bilinear", align_corners=False)[0]
    for metric in (M.pearson, M.attention_iou, M.shell_contrast):
        torch.testing.assert_close(metric(attention, masks, resolution="image"), metric(pixels, masks))


def test_evaluate_equals_the_functions():
    generator = torch.Generator().manual_seed(12)
    masks, attention = nested_masks(generator, 3, (12, 12)), torch.rand(2, 4, 4, generator=generator)
    together = M.evaluate(M.METRICS, attention, Regions.from_masks(masks, (4, 4)))
    assert list(together) == list(M.METRICS)
    for name, values in together.items():
        torch.testing.assert_close(values, getattr(M, name)(attention, masks))


def test_chunks_do_not_show(monkeypatch):
    generator = torch.Generator().manual_seed(13)
    masks, attention = nested_masks(generator, 3, (6, 6)), torch.rand(5, 6, 6, generator=generator)
    before = [M.normalized_ap(attention, masks), M.rank_accuracy(attention, masks)]
    monkeypatch.setattr("arrcoc_sam.granularity.ranks._CHUNK", 700)
    torch.testing.assert_close([M.normalized_ap(attention, masks), M.rank_accuracy(attention, masks)], before)


def test_wrong_options_are_refused():
    attention = row(1, 2, 3, 10, 5, 1, 1, 1)
    with pytest.raises(InputError, match="valid"):
        M.auc(attention, NESTED, resolution="image", valid=torch.ones(1, 8))
    with pytest.raises(InputError, match="num_directions"):
        M.sliced_wasserstein(attention, NESTED, num_directions=0)
    with pytest.raises(InputError, match="negative"):
        M.spearman(-attention, NESTED)


@pytest.mark.parametrize("name", sorted(OF_RANKS))
@pytest.mark.parametrize("values", [3, 50, 10**9])
def test_sets_are_judged_as_shares_of_0_and_1_are(name, values):
    """The path for sets (image resolution), with many ties, with some, and with none."""
    generator = torch.Generator().manual_seed(values)
    density = torch.randint(values, (4, 300), generator=generator).double()
    sets = torch.rand(7, 300, generator=generator) < torch.tensor([0, 0.01, 0.1, 0.3, 0.5, 0.9, 1.1])[:, None]
    ranking = Ranking.of(density, torch.ones(300, dtype=torch.float64))
    shares, found = OF_RANKS[name](ranking, sets.double()), OF_RANKS[name](ranking, LevelSets(sets))
    empty = ~sets.any(1)  # set NaN by whoever calls
    torch.testing.assert_close(found[:, ~empty], shares[:, ~empty], rtol=1e-9, atol=1e-12, equal_nan=True)
