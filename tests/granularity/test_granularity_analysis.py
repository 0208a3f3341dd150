import numpy as np
import pandas as pd
import pytest
import torch

from arrcoc_sam.attention import ArrayAttention, CallableAttention, RelevanceAttention
from arrcoc_sam.attention.maps import AttentionMaps
from arrcoc_sam.errors import InputError, ShapeError, UnknownNameError
from arrcoc_sam.geometry import ImageTransform
from arrcoc_sam.granularity import GranularityAnalyzer
from arrcoc_sam.granularity import metrics as M
from arrcoc_sam.granularity.analysis import sink_mass
from arrcoc_sam.granularity.regions import Regions
from arrcoc_sam.hierarchy import MaskHierarchy

SIZE = 32
IMAGE = np.zeros((SIZE, SIZE, 3), dtype=np.uint8)
LEVELS = ("whole", "part", "subpart")


def square(start: int, stop: int, size: int = SIZE) -> torch.Tensor:
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[start:stop, start:stop] = True
    return mask


def hierarchy(*spans: tuple[int, int]) -> MaskHierarchy:
    return MaskHierarchy.from_masks(torch.stack([square(*span) for span in spans])[None])


NESTED = hierarchy((4, 28), (8, 22), (10, 18))


def levels_source(image, points_xy=None) -> AttentionMaps:
    """Three maps at 16 x 16: evenly on the whole, on the part, on the subpart."""
    masks = torch.stack([square(4, 28), square(8, 22), square(10, 18)]).float()
    grid = torch.nn.functional.avg_pool2d(masks, 2)
    return AttentionMaps.from_values(grid + 0.05, names=LEVELS, transform=ImageTransform.identity((SIZE, SIZE)))


class Decoded:
    def __init__(self, found: MaskHierarchy) -> None:
        self.found = found

    def hierarchy(self) -> MaskHierarchy:
        return self.found


class FixedSegmenter:
    """Answers the same levels at every point, and remembers what it was asked."""

    def __init__(self, found: MaskHierarchy) -> None:
        self.found = found
        self.prompts = None

    def encode(self, image):
        assert image.shape == (SIZE, SIZE, 3)
        return "embedding"

    def decode(self, embedding, prompts):
        assert embedding == "embedding"
        self.prompts = prompts
        return Decoded(MaskHierarchy.from_masks(self.found.masks.expand(len(prompts), -1, -1, -1)))


def test_attention_on_a_level_is_named_after_it():
    result = GranularityAnalyzer(None, levels_source).analyze(IMAGE, None, hierarchy=NESTED)
    assert result.best_match[:, 0].tolist() == list(LEVELS)
    assert not result.calibrated
    assert result.measurable.all()
    assert result.correlations.shape == (3, 1, 3)
    assert result.correlations.argmax(-1).flatten().tolist() == [0, 1, 2]
    assert result.image is not None
    assert result.names == LEVELS


def test_values_are_those_of_the_pure_functions():
    result = GranularityAnalyzer(None, levels_source).analyze(IMAGE, None, hierarchy=NESTED)
    for name, values in result.metrics.items():
        expected = getattr(M, name)(levels_source(IMAGE).values, NESTED.masks, distinct=NESTED.distinct)
        torch.testing.assert_close(values, expected)


@pytest.mark.usefixtures("as_at_run_time")
def test_the_segmenter_is_asked_for_one_click_a_prompt():
    segmenter = FixedSegmenter(NESTED)
    result = GranularityAnalyzer(segmenter, levels_source).analyze(IMAGE, [[11, 12], [15, 3]])
    assert segmenter.prompts.points_xy.tolist() == [[[11, 12]], [[15, 3]]]
    assert segmenter.prompts.labels.tolist() == [[1], [1]]
    assert result.best_match.shape == (3, 2)
    assert result.scores.shape == (2, 3)
    assert result.points_xy.tolist() == [[11, 12], [15, 3]]


def test_only_the_metrics_asked_for_and_the_two_that_are_always_there():
    result = GranularityAnalyzer(None, levels_source, ["log_lift"]).analyze(IMAGE, None, hierarchy=NESTED)
    assert list(result.metrics) == ["shell_contrast", "pearson", "log_lift"]
    with pytest.raises(UnknownNameError, match="correlation"):
        GranularityAnalyzer(None, levels_source, ["correlation"])


@pytest.mark.parametrize(
    "spans",
    [
        ((4, 28), (4, 28), (4, 28)),  # one level thrice: not valid
        ((4, 28), (8, 22), (10, 13)),  # a subpart of 9 pixels, 2.25 cells
        ((0, 32), (8, 22), (10, 18)),  # no background
    ],
)
def test_abstains_where_the_grid_cannot_tell(spans):
    result = GranularityAnalyzer(None, levels_source).analyze(IMAGE, None, hierarchy=hierarchy(*spans))
    assert not result.measurable.any()
    assert set(result.best_match.ravel()) == {"abstain"}


def test_abstains_where_no_level_is_above_what_lies_around_it():
    inverted = CallableAttention(lambda image: 1.2 - levels_source(image).values[:1] * 100)
    result = GranularityAnalyzer(None, inverted).analyze(IMAGE, None, hierarchy=NESTED)
    assert (result.metrics["shell_contrast"][0, 0] <= 1e-6).all()
    assert result.best_match.tolist() == [["abstain"]]


def test_uniform_attention_abstains():
    uniform = CallableAttention(lambda image: torch.rand(5, 1, 1).expand(5, 16, 16) + 0.1)
    result = GranularityAnalyzer(None, uniform).analyze(IMAGE, None, hierarchy=NESTED)
    assert set(result.best_match.ravel()) == {"abstain"}


def test_a_level_that_is_not_distinct_is_never_named():
    pair = hierarchy((4, 28), (5, 28), (10, 18))
    assert pair.distinct.tolist() == [[True, False, True]]
    result = GranularityAnalyzer(None, levels_source).analyze(IMAGE, None, hierarchy=pair)
    assert result.metrics["shell_contrast"][:, 0, 1].isnan().all()
    assert "part" not in result.best_match


def test_masks_go_to_the_maps_frame_with_padding_left_out():
    """A wide image letterboxed: the same as the wide grid without its padding."""
    wide = torch.zeros(3, 16, 32, dtype=torch.bool)
    wide[0, 2:14, 4:28], wide[1, 4:12, 8:20], wide[2, 6:10, 10:16] = True, True, True
    levels = MaskHierarchy.from_masks(wide[None])
    values = torch.rand(2, 8, 16) + 0.1

    def letterboxed(image, points_xy=None):
        padded = torch.nn.functional.pad(values, (0, 0, 0, 8), value=3.0)
        return AttentionMaps.from_values(padded, transform=ImageTransform.letterbox((16, 32), 64))

    result = GranularityAnalyzer(None, letterboxed).analyze(np.zeros((16, 32, 3), np.uint8), None, hierarchy=levels)
    for name, found in result.metrics.items():
        torch.testing.assert_close(found, getattr(M, name)(values, wide[None]), atol=1e-5, rtol=1e-5)


def test_the_area_on_the_grid_is_the_one_that_the_metrics_compare_with():
    """A wide image, of which the model sees the central square."""
    wide = torch.zeros(3, 16, 32, dtype=torch.bool)
    wide[0, 2:14, 4:28], wide[1, 4:12, 10:22], wide[2, 4:12, 10:20] = True, True, True
    levels = MaskHierarchy.from_masks(wide[None])
    assert levels.distinct.tolist() == [[True, True, False]]

    def cropped(image, points_xy=None):
        return AttentionMaps.from_values(
            torch.rand(2, 8, 8) + 0.1, transform=ImageTransform.resize_center_crop((16, 32), 16, 16)
        )

    analyzer = GranularityAnalyzer(None, cropped, ["log_lift", "mass_accuracy"])
    result = analyzer.analyze(np.zeros((16, 32, 3), np.uint8), None, hierarchy=levels)
    assert result.grid_area[0, :2].tolist() == pytest.approx([12 * 16 / 16**2, 8 * 12 / 16**2])
    table = result.to_frame()
    lift = np.log(table["mass_accuracy"] / table["grid_area"])
    np.testing.assert_allclose(lift, table["log_lift"], atol=1e-6)
    assert table["area_share"].iloc[0] == pytest.approx(12 * 24 / (16 * 32))
    assert table["grid_area"].isna().tolist() == [False, False, True] * 2


def test_maps_that_depend_on_the_prompt():
    values = torch.rand(2, 3, 16, 16) + 0.1
    masks = torch.stack([square(4, 28), square(8, 22), square(10, 18)]).expand(3, -1, -1, -1)
    source = CallableAttention(lambda image, points: values, takes_points=True)
    result = GranularityAnalyzer(None, source).analyze(
        IMAGE, [[1, 1], [2, 2], [3, 3]], hierarchy=MaskHierarchy.from_masks(masks)
    )
    torch.testing.assert_close(result.correlations, M.pearson(values, masks))
    assert result.best_match.shape == (2, 3)
    assert len(result.to_frame()) == 2 * 3 * 3


@pytest.mark.usefixtures("as_at_run_time")
def test_frame_has_a_row_a_map_prompt_and_level():
    result = GranularityAnalyzer(FixedSegmenter(NESTED), levels_source).analyze(IMAGE, [[11, 12], [15, 3]])
    frame = result.to_frame()
    assert isinstance(frame, pd.DataFrame)
    assert len(frame) == 3 * 2 * 3
    row = frame[(frame["map"] == "part") & (frame["prompt"] == 1) & (frame["level"] == "subpart")].iloc[0]
    assert row["shell_contrast"] == pytest.approx(result.metrics["shell_contrast"][1, 1, 2].item())
    assert row["area_share"] == pytest.approx(64 / 1024)
    assert row["x"] == 15
    assert row["best_match"] == "part"
    assert not frame["calibrated"].any()
    assert "z" not in frame


def random_reference(num: int, seed: int = 0) -> list[AttentionMaps]:
    generator = torch.Generator().manual_seed(seed)
    transform = ImageTransform.identity((SIZE, SIZE))
    return [
        AttentionMaps.from_values(torch.rand(3, 16, 16, generator=generator) + 0.5, names=LEVELS, transform=transform)
        for _ in range(num)
    ]


def test_a_result_is_shown_in_one_line_and_compared_by_identity():
    result = GranularityAnalyzer(None, levels_source, metrics=[]).analyze(IMAGE, None, hierarchy=NESTED)
    assert repr(result) == (
        "GranularityResult(3 maps x 1 prompts, 3 of 3 matched a level, not calibrated; 32 x 32 pixels; "
        "metrics shell_contrast, pearson)"
    )
    assert result in [result.maps, result]  # the comparison of tensors has no truth value
    assert result.maps in {result.maps}


def test_with_a_reference_the_level_stands_out_from_other_images():
    result = GranularityAnalyzer(None, levels_source).analyze(
        IMAGE, None, hierarchy=NESTED, reference=random_reference(39)
    )
    assert result.calibrated
    assert result.best_match[:, 0].tolist() == list(LEVELS)
    assert result.p_value.amin(-1).flatten().tolist() == pytest.approx([1 / 40] * 3)
    contrast = torch.stack([M.shell_contrast(maps.values, NESTED.masks) for maps in random_reference(39)]).double()
    expected = (result.metrics["shell_contrast"] - contrast.mean(0)) / contrast.std(0)
    torch.testing.assert_close(result.z.double(), expected, rtol=1e-4, atol=1e-4)
    assert {"z", "p_value"} <= set(result.to_frame())


def test_a_map_that_looks_alike_on_every_image_says_nothing_about_this_one():
    """A constant prior on the part has a contrast, but not beyond other images'."""
    analyzer = GranularityAnalyzer(None, levels_source)
    assert analyzer.analyze(IMAGE, None, hierarchy=NESTED).best_match[1, 0] == "part"
    result = analyzer.analyze(IMAGE, None, hierarchy=NESTED, reference=[levels_source(IMAGE)] * 39)
    assert set(result.best_match.ravel()) == {"abstain"}
    assert result.z.isnan().all()
    assert (result.p_value == 1).all()


def test_reference_maps_are_taken_at_the_same_places():
    asked = []

    def source(image, points_xy=None):
        asked.append(points_xy)
        values = torch.rand(1, 1, 16, 16)
        return AttentionMaps.from_values(values, transform=ImageTransform.identity(image.shape[:2]))

    analyzer = GranularityAnalyzer(None, source)
    maps = analyzer.reference_maps([np.zeros((64, 64, 3), np.uint8)], [[0.0, 15.5]], (SIZE, SIZE))
    assert len(maps) == 1
    assert asked[0].tolist() == [[0.5, 31.5]]


@pytest.mark.usefixtures("as_at_run_time")
def test_what_does_not_fit_is_refused():
    analyzer = GranularityAnalyzer(None, levels_source)
    with pytest.raises(InputError, match="neither a segmenter nor a hierarchy"):
        analyzer.analyze(IMAGE, [[1, 1]])
    with pytest.raises(InputError, match="points_xy is None"):
        GranularityAnalyzer(FixedSegmenter(NESTED), levels_source).analyze(IMAGE, None)
    with pytest.raises(InputError, match="outside"):
        analyzer.analyze(IMAGE, [[40, 1]], hierarchy=NESTED)
    with pytest.raises(ShapeError, match="2 points came with a hierarchy of 1"):
        analyzer.analyze(IMAGE, [[1, 1], [2, 2]], hierarchy=NESTED)
    with pytest.raises(ShapeError, match="the image's"):
        analyzer.analyze(np.zeros((8, 8, 3), np.uint8), None, hierarchy=NESTED)
    with pytest.raises(InputError, match="at least 19"):
        analyzer.analyze(IMAGE, None, hierarchy=NESTED, reference=random_reference(18))
    with pytest.raises(InputError, match=r"reference holds a uint8 array of .* Mend: .*reference_maps\(images"):
        analyzer.analyze(IMAGE, None, hierarchy=NESTED, reference=[IMAGE] * 19)
    with pytest.raises(ShapeError, match="a reference holds 1 maps"):
        analyzer.analyze(IMAGE, None, hierarchy=NESTED, reference=[maps[0] for maps in random_reference(19)])
    for given in (NESTED.masks, [NESTED], Decoded(NESTED)):
        with pytest.raises(InputError, match=r"expected one MaskHierarchy.*candidates\.hierarchy\(\)"):
            analyzer.analyze(IMAGE, None, hierarchy=given)
    with pytest.raises(InputError, match=r"metrics is 'pearson'.*\['pearson'\]"):
        GranularityAnalyzer(None, levels_source, "pearson")
    with pytest.raises(InputError, match="alpha"):
        GranularityAnalyzer(None, levels_source, alpha=0)
    other_size = ArrayAttention(np.random.default_rng(0).random((1, 4, 4)))
    assert len(GranularityAnalyzer(None, other_size).analyze(IMAGE, None, hierarchy=NESTED).names) == 1


@pytest.mark.parametrize(("alpha", "fewest"), [(0.05, 19), (0.03, 33), (0.06, 16)])
def test_as_many_references_as_an_answer_takes(alpha, fewest):
    analyzer = GranularityAnalyzer(None, levels_source, alpha=alpha)
    with pytest.raises(InputError, match=f"at least {fewest}"):
        analyzer.analyze(IMAGE, None, hierarchy=NESTED, reference=random_reference(fewest - 1))
    result = analyzer.analyze(IMAGE, None, hierarchy=NESTED, reference=random_reference(fewest))
    assert result.best_match[:, 0].tolist() == list(LEVELS)


def test_sink_mass_is_the_share_of_the_largest_cells_outside_the_whole():
    attention = torch.ones(2, 10, 20)
    attention[0, 9, 19], attention[0, 9, 18], attention[0, 0, 0] = 50, 25, 1000
    masks = torch.zeros(1, 3, 10, 20, dtype=torch.bool)
    masks[:, :, :2, :10] = True  # 20 cells; 180 are outside: the top 1 % is 2 cells
    regions = Regions.from_masks(masks, (10, 20))
    found = sink_mass(attention, regions)
    assert found[0, 0].item() == pytest.approx(75 / attention[0].sum().item())
    assert found[1, 0].item() == pytest.approx(2 / 200)
    per_prompt = sink_mass(attention[:, None], regions)
    torch.testing.assert_close(per_prompt, found)
    everything = Regions.from_masks(torch.ones_like(masks), (10, 20))
    assert sink_mass(attention, everything).isnan().all()


@pytest.mark.usefixtures("as_at_run_time")
def test_names_arrays_and_bare_functions_are_refused_with_the_mend():
    with pytest.raises(InputError, match=r"segmenter is 'tiny'.*load_segmenter\('tiny'\)"):
        GranularityAnalyzer("tiny", levels_source)
    for segmenter in (3, FixedSegmenter):
        with pytest.raises(InputError, match=r"segmenter is .*; expected a segmenter.*load_segmenter"):
            GranularityAnalyzer(segmenter, levels_source)
    with pytest.raises(InputError, match=r"source is the class RelevanceAttention.*RelevanceAttention\(\.\.\.\)"):
        GranularityAnalyzer(None, RelevanceAttention)
    for source in ("relevance", np.ones((8, 8))):
        with pytest.raises(InputError, match=r"source is .*expected an attention source.*ViTAttention"):
            GranularityAnalyzer(None, source)
    analyzer = GranularityAnalyzer(None, lambda image, points_xy: image.mean(2))
    with pytest.raises(InputError, match=r"the source answered a float64 array .*CallableAttention"):
        analyzer.analyze(IMAGE, None, hierarchy=NESTED)
