from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from report_cases import make_result

from arrcoc_sam.errors import InputError, ShapeError
from arrcoc_sam.report import level_bars, mark_point, outline_masks, overlay_attention, plot_granularity, show_image
from arrcoc_sam.report.labels import LEVEL_STYLES


def drawn(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3]


def words(figure: Figure) -> str:
    return "\n".join(item.get_text() for item in figure.findobj(Text) if item.get_visible())


@pytest.mark.parametrize(("num_prompts", "num_maps"), [(1, 1), (2, 4), (1, 11)])
def test_no_text_is_cut_off(num_prompts: int, num_maps: int) -> None:
    figure = plot_granularity(make_result(num_prompts, num_maps), title="photo.jpg")
    drawn(figure)
    used, width, height = figure.get_tightbbox(), *figure.get_size_inches()
    assert used.x0 >= 0
    assert used.y0 >= 0
    assert used.x1 <= width
    assert used.y1 <= height


def test_the_figure_shows_click_maps_answers_and_every_metric() -> None:
    result = make_result()
    assert result.best_match.tolist() == [["subpart"], ["abstain"]]
    text = words(plot_granularity(result))
    for expected in ("click at (23, 23) px", "inner", "→ subpart", "outer", "→ abstain", "whole (solid)"):
        assert expected in text
    for title in ("Shell contrast", "Information gain", "Log lift", "Mass inside", "Pearson"):
        assert title in text


def test_what_is_not_measurable_and_not_defined_is_said() -> None:
    text = words(plot_granularity(make_result(same_levels=True)))
    assert "abstain (not measurable)" in text
    assert "n/a" in text


def test_prompts_are_chosen_and_hidden_maps_counted() -> None:
    result = make_result(3, 12)
    text = words(plot_granularity(result, prompts=[2], max_maps=5))
    assert "click at (47, 23) px" in text
    assert "click at (23, 23) px" not in text
    assert "the first 5 of 12 maps" in text


def test_maps_are_chosen_by_name_and_number() -> None:
    result = make_result(1, 12)
    first, last = result.maps.names[0], result.maps.names[-1]
    figure = plot_granularity(result, maps=[-1, first])
    titles = [axes.get_title() for axes in figure.subfigs[0].subfigs[0].axes if axes.get_title()]
    assert [title.split(" (scale to")[0] for title in titles[1:]] == [last, first]
    assert "2 of 12 maps" in words(figure)
    assert "the first 2" not in words(figure)
    for one in (first, 0):
        assert "1 of 12 maps" in words(plot_granularity(result, maps=one, prompts=0))
    for maps in ([], [12], ["nobody"], "nobody"):
        with pytest.raises(InputError, match="maps="):
            plot_granularity(result, maps=maps)


@pytest.mark.parametrize("num_maps", [4, 8])
def test_no_title_is_cut_off_at_the_top(num_maps: int) -> None:
    picture = make_result(1, num_maps).plot()._repr_png_()  # type: ignore[attr-defined]
    assert (np.asarray(Image.open(BytesIO(picture)).convert("L"))[:2] == 255).all()


def test_a_notebook_shows_a_figure_as_a_picture() -> None:
    assert make_result().plot(max_maps=1)._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]


def test_wrong_choices_are_refused() -> None:
    result = make_result()
    with pytest.raises(InputError, match="prompts"):
        plot_granularity(result, prompts=[1])
    with pytest.raises(InputError, match="prompts"):
        plot_granularity(result, prompts=[])
    with pytest.raises(InputError, match="max_maps"):
        plot_granularity(result, max_maps=0)


def test_a_figure_of_the_library_leaves_pyplot_alone() -> None:
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    make_result().plot()
    assert pyplot.get_fignums() == before


def test_cells_and_outlines_lie_where_they_belong() -> None:
    figure = Figure(figsize=(4, 4), dpi=100)
    ax = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    image = np.full((40, 40, 3), 128, dtype=np.uint8)
    density = np.zeros((4, 4))
    density[1, 2] = 1.0
    overlay_attention(ax, image, density, opacity=1.0)
    # The grid covers the image: its cell (1, 2) covers rows 100-200 and columns 200-300 of the 400 x 400 picture.
    pixels = drawn(figure).astype(int)
    bright = (pixels[:, :, 0] > 200) & (pixels[:, :, 2] < 120)
    rows, columns = np.nonzero(bright)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == pytest.approx((100, 199, 200, 299), abs=1)

    masks = np.zeros((3, 40, 40), dtype=bool)
    masks[0, 5:35, 5:35] = True
    outline_masks(ax, masks, linewidth=3.0)
    pixels = drawn(figure).astype(float) / 255
    blue = np.abs(pixels - np.array(to_rgb(LEVEL_STYLES["whole"].line))).max(2) < 0.08
    rows, columns = np.nonzero(blue)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == pytest.approx((50, 350, 50, 350), abs=4)


def test_a_click_is_marked_at_its_pixel_s_centre() -> None:
    figure = Figure(figsize=(4, 2), dpi=100)
    ax = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    show_image(ax, np.zeros((10, 20, 3), dtype=np.uint8))
    mark_point(ax, (4.0, 7.0))
    white = drawn(figure).min(2) > 230
    rows, columns = np.nonzero(white)
    assert (rows.mean(), columns.mean()) == pytest.approx((7.5 * 20, 4.5 * 20), abs=1.5)


def test_bars_have_the_values_lengths_and_order() -> None:
    ax = Figure().add_subplot()
    level_bars(ax, np.array([[0.5, -0.25, np.nan]]), ["map"], title="t", unit="u")
    widths = {tuple(patch.get_facecolor()[:3]): patch.get_width() for patch in ax.patches}
    assert widths[to_rgb(LEVEL_STYLES["whole"].fill)] == 0.5
    assert widths[to_rgb(LEVEL_STYLES["part"].fill)] == -0.25
    assert widths[to_rgb(LEVEL_STYLES["subpart"].fill)] == 0.0
    centres = [patch.get_y() + patch.get_height() / 2 for patch in ax.patches]
    assert centres == sorted(centres)
    assert ax.yaxis_inverted()  # so that the whole is on top


def test_bars_of_infinite_values_are_words() -> None:
    """A level that gets no attention at all has a log lift of −∞."""
    figure = Figure(figsize=(4, 2), dpi=100)
    ax = figure.add_subplot()
    level_bars(ax, np.array([[0.5, -np.inf, np.inf], [np.nan, 1.0, 1.0]]), ["a", "b"], title="t")
    drawn(figure)
    assert sorted(text.get_text() for text in ax.texts) == sorted(["−∞", "∞", "n/a"])
    assert sorted(patch.get_width() for patch in ax.patches) == [0, 0, 0, 0.5, 1, 1]
    assert -0.2 < ax.get_xlim()[0] < ax.get_xlim()[1] < 1.2


@pytest.mark.usefixtures("as_at_run_time")
def test_panels_refuse_other_shapes() -> None:
    ax = Figure().add_subplot()
    with pytest.raises(ShapeError, match=r"\(2, 3\)"):
        level_bars(ax, np.zeros((3, 2)), ["a", "b"], title="t")
    with pytest.raises(ShapeError, match="whole, part, subpart"):
        outline_masks(ax, np.zeros((2, 4, 4), dtype=bool))
