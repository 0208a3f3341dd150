"""The atlas's page and figures: what they say, and what they must not say."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from arrcoc_sam.granularity import claims
from arrcoc_sam.granularity.atlas.result import AtlasResult
from arrcoc_sam.hierarchy.levels import LEVELS
from arrcoc_sam.report import Provenance
from arrcoc_sam.report.atlas.page import atlas_html, atlas_report
from arrcoc_sam.report.atlas.plots import atlas_figures
from arrcoc_sam.report.atlas.svg import Scale, interval_bar
from arrcoc_sam.report.atlas.tables import (
    MIN_IMAGES,
    AtlasLike,
    best_heads,
    columns_of,
    contrast_limit,
    laid_out,
    threshold_names,
)

MakeAtlas = Callable[..., AtlasLike]


class Elements(HTMLParser):
    """Elements with their attributes, closed in order; words without those of the style sheet."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.words = ""
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {key: value or "" for key, value in attrs}))
        if tag != "meta":
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.words += " " + data

    def count(self, tag: str, class_: str) -> int:
        return sum(name == tag and attributes.get("class") == class_ for name, attributes in self.found)


def test_the_number_of_images_is_that_of_the_protocol(make_atlas: MakeAtlas) -> None:
    assert MIN_IMAGES == claims.MIN_IMAGES
    atlas = make_atlas()
    result = AtlasResult(atlas.heads, atlas.images, atlas.ablation, dict(atlas.info))
    assert isinstance(result, AtlasLike)


def test_the_page_is_one_file_that_needs_nothing_else(make_atlas: MakeAtlas, tmp_path) -> None:
    source = atlas_report(make_atlas(), tmp_path / "atlas.html").read_text("utf-8")
    page = Elements(source)
    assert "http" not in source
    assert "url(" not in source
    assert "@import" not in source
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.found}
    assert all(not name.startswith("on") for _, attributes in page.found for name in attributes)
    assert [file.name for file in tmp_path.iterdir()] == ["atlas.html"]


def test_every_map_has_its_cell_and_its_claim(make_atlas: MakeAtlas) -> None:
    atlas = make_atlas(60, 4, 3)
    page = Elements(atlas_html(atlas))
    layered = atlas.heads[atlas.heads["group"].isin(["model", "random weights"])]
    for level in LEVELS:
        assert page.count("g", level) == (layered["level"] == level).sum()
    # Three maps of contrast and two of masses, without a hole.
    assert page.count("g", "value") == 5 * 12
    assert page.count("g", "abstain") == (layered["level"] == "abstain").sum()
    for row in layered.itertuples():
        assert f"{row.map}: {row.level}" in page.words


def test_the_claim_is_worded_as_the_protocol_allows(make_atlas: MakeAtlas) -> None:
    atlas = make_atlas()
    words = " ".join(Elements(atlas_html(atlas)).words.split())
    counts = atlas.heads[atlas.heads["group"] == "model"]["level"].value_counts()
    expected = (
        f"Of 12 maps, {counts['whole']} concentrate at the whole, {counts['part']} at a part and "
        f"{counts['subpart']} at a subpart beyond their image-independent prior. Of {counts['abstain']} nothing is"
    )
    assert expected in words
    assert "No claim." not in words
    assert "Random weights: a control." not in words
    for causal in ("causes", "because of the part", "understands", "knows the"):
        assert causal not in words


@pytest.mark.parametrize(("metric", "title"), [("shell_contrast", "Shell contrast"), ("pearson", "Pearson")])
def test_headings_name_the_metric(make_atlas: MakeAtlas, metric: str, title: str) -> None:
    atlas = make_atlas()
    atlas = replace(atlas, info={**atlas.info, "metric": metric})
    words = " ".join(Elements(atlas_html(atlas)).words.split())
    drawn = atlas_figures(atlas)["contrast"]
    assert f"{title}, calibrated How far each map's value" in words
    assert drawn.get_suptitle().startswith(f"{title}, calibrated\n")
    if metric != "shell_contrast":
        bar = drawn.axes[-1].get_ylabel()
        assert "contrast" not in (words + atlas_html(atlas).partition("<body")[2] + bar + drawn.get_suptitle()).lower()


def test_under_thirty_images_nothing_is_claimed_and_the_page_says_so(make_atlas: MakeAtlas) -> None:
    atlas = make_atlas(MIN_IMAGES - 1)
    page = Elements(atlas_html(atlas))
    words = " ".join(page.words.split())
    assert "No claim. Claims take at least 30 images" in words
    assert "here there are 29" in words
    assert "concentrate at the whole" not in words
    assert "Level by layer and head" not in words
    assert not any(page.count("span", f"chip {level}") for level in LEVELS)
    assert set(atlas_figures(atlas)) == {"contrast", "best-heads", "masses"}
    assert "No claim." not in Elements(atlas_html(make_atlas(MIN_IMAGES))).words


def test_a_control_and_the_demonstration_model_are_called_so(make_atlas: MakeAtlas) -> None:
    words = Elements(atlas_html(make_atlas(), control=True, provenance=Provenance(segmenter="tiny"))).words
    assert "Random weights: a control." in words
    assert "never trained" in words
    assert "Demonstration model." in words


def test_numbers_to_quote_come_from_the_reporting_half(make_atlas: MakeAtlas) -> None:
    atlas = make_atlas()
    judged = atlas.heads[atlas.heads["group"] == "model"]
    words = Elements(atlas_html(atlas)).words
    for level in LEVELS:
        found = best_heads(judged, level, 6)
        assert (found["top"] == level).all()
        assert found[f"selection_z_{level}"].is_monotonic_decreasing
        for head in found.to_dict("records"):
            values = [head[f"selection_z_{level}"], head[f"report_z_{level}"], head["gap"], head["gap_low"]]
            for value in values:
                assert f"{value:.1f}".replace("-", "−").replace("−0.0", "0.0") in words


def test_names_are_escaped(make_atlas: MakeAtlas) -> None:
    evil = '<script>alert("x")</script>&'
    atlas = make_atlas()
    atlas.images.loc[0, ["image", "error"]] = [evil, evil]
    atlas.heads.loc[0, "map"] = f"{evil}.H00"
    page = Elements(atlas_html(atlas, title=evil, notes=[evil], provenance=Provenance(command=evil)))
    assert "script" not in {tag for tag, _ in page.found}
    assert page.words.count(evil) >= 6
    assert "1 left out" in page.words


def test_maps_without_layers_and_undefined_numbers_are_shown(make_atlas: MakeAtlas) -> None:
    atlas = make_atlas()
    judged = atlas.heads["group"] == "model"
    atlas.heads.loc[judged, "map"] = [f"feature {n}" for n in range(judged.sum())]
    numbers = [name for name in atlas.heads if name.startswith(("z_", "sink_mass", "prefix_mass", "gap", "report_z"))]
    atlas.heads.loc[judged, numbers] = np.nan
    atlas.ablation.loc[1, [f"share_{kind}" for kind in (*LEVELS, "abstain")]] = np.nan
    words = Elements(atlas_html(atlas)).words
    assert "feature 3: not defined" in words
    assert "Neither is defined for these maps." in words
    assert len(atlas_figures(atlas)) == 5


def test_the_page_without_an_ablation_has_no_such_section(make_atlas: MakeAtlas) -> None:
    atlas = make_atlas()
    assert "What hangs on the thresholds" in atlas_html(atlas)
    without = replace(atlas, ablation=atlas.ablation.iloc[:1])
    assert "What hangs on the thresholds" not in atlas_html(without)


def test_layers_and_heads_are_laid_out_by_name() -> None:
    assert laid_out(pd.DataFrame({"map": ["edges", "balanced"]}))[:2] == (["edges", "balanced"], [""])
    maps = pd.DataFrame({"map": ["L01.H00", "pool.H01", "L01.H02"]})
    rows, columns, places = laid_out(maps)
    assert (rows, columns) == (["L01", "pool"], ["H00", "H01", "H02"])
    table = columns_of(np.array([1.0, 2.0, 3.0]), places, (2, 3))
    np.testing.assert_array_equal(table, [[1, np.nan, 3], [np.nan, 2, np.nan]])


def test_scales_are_even_around_zero_and_cut_beyond_their_ends() -> None:
    scale = Scale(-2.0, 2.0, "BrBG", "null sd")
    low, middle, high, beyond, missing = scale.colours(np.array([-2.0, 0.0, 2.0, 9.0, np.nan]))
    assert high == beyond
    assert missing == ""
    red, green, blue = (int(middle[k : k + 2], 16) for k in (1, 3, 5))
    assert min(red, green, blue) > 235  # nearly white in the middle
    assert low != high
    maps = pd.DataFrame({f"z_{level}": [-7.5, 1.0, np.nan] for level in LEVELS})
    assert contrast_limit(maps) == 7.5
    assert contrast_limit(maps.iloc[2:]) == 3.0


def test_intervals_are_drawn_where_they_lie() -> None:
    drawn = interval_bar(1.0, 0.0, 3.0, (-1.0, 3.0), kind="part")
    assert [float(x) for x in re.findall(r"left:([\d.]+)%", drawn)] == [25.0, 25.0, 50.0]
    assert "width:75.0%" in drawn
    assert "<i" not in interval_bar(float("nan"), 0.0, 1.0, (-1.0, 1.0), kind="part")


def test_thresholds_are_named_by_what_they_change(make_atlas: MakeAtlas) -> None:
    assert threshold_names(make_atlas().ablation) == [
        "as in this atlas",
        "distinct at IoU ≤ 0.6",
        "nested from a share of 0.8",
        "at least 8 cells",
    ]


@pytest.mark.parametrize(("num_layers", "num_heads"), [(1, 1), (12, 16)])
def test_figures_hold_their_words_within_the_paper(make_atlas: MakeAtlas, num_layers: int, num_heads: int) -> None:
    for name, figure in atlas_figures(make_atlas(40, num_layers, num_heads)).items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=50)
        pixels = np.asarray(Image.open(buffer).convert("L"))
        border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert (border > 250).all(), name
        assert (pixels < 200).any(), name


def test_hover_words_of_cells_are_text(make_atlas: MakeAtlas) -> None:
    source = atlas_html(make_atlas())
    titles = [unescape(title) for title in re.findall(r"<title>([^<]*)</title>", source)]
    assert any(re.fullmatch(r"L00\.H01: -?[\d.]+ null sd", title) for title in titles)
