from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from report_cases import make_result

from arrcoc_sam.errors import InputError, OutputError, ShapeError
from arrcoc_sam.report import GranularityPage, Provenance, ReportItem, granularity_report
from arrcoc_sam.report.drawing import relative_density

VOID = {"meta"}


class Page(HTMLParser):
    """Collects elements and text, and insists that every element is closed in order."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.text += " " + data

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_the_page_is_one_file_that_needs_nothing_else(tmp_path: Path) -> None:
    path = granularity_report([make_result(2, 3), make_result()], tmp_path / "page.html")
    source = path.read_text(encoding="utf-8")
    page = Page(source)
    assert not page.of("script")
    assert not page.of("link")
    for _, attributes in page.elements:
        for name in ("src", "href", "srcset", "action", "data"):
            assert attributes.get(name, "#").startswith(("#", "data:image/"))
        assert not any(name.startswith("on") for name in attributes)
    assert "http" not in source
    assert "@import" not in source
    assert "url(" not in source
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


def test_every_reference_inside_the_page_has_its_one_target(tmp_path: Path) -> None:
    page = Page(granularity_report([make_result(2), make_result(2)], tmp_path / "p.html").read_text("utf-8"))
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(names) == len(set(names))
    used = {attributes["href"] for attributes in page.of("use")}
    assert used
    assert used <= {f"#{name}" for name in names}
    photographs = [a for a in page.of("image") if a["href"].startswith("data:image/jpeg")]
    assert len(photographs) == 2  # once an image, however many panels show it


def test_pictures_say_what_they_show(tmp_path: Path) -> None:
    page = Page(granularity_report([make_result()], tmp_path / "p.html").read_text("utf-8"))
    pictures = [a for a in page.of("svg") if a.get("role") == "img"]
    assert len(pictures) == 3  # the photograph and two maps
    assert page.text.count("Attention map inner over Image 1: subpart") == 1
    assert all("scope" in attributes for attributes in page.of("th"))
    assert len(page.of("caption")) == len(page.of("table"))


def test_names_are_escaped(tmp_path: Path) -> None:
    evil = '<script>alert("x")</script>&.png'
    page = GranularityPage(title=evil, provenance=Provenance(command=f"arrcoc-sam analyze '{evil}'"))
    page.add(ReportItem(make_result(), evil, note=evil, prompt_names=[evil]))
    page.skip(evil, evil)
    parsed = Page(page.write(tmp_path / "p.html").read_text("utf-8"))
    assert not parsed.of("script")
    assert parsed.text.count(evil) >= 6


def test_maps_are_drawn_cell_by_cell_where_the_grid_lies(tmp_path: Path) -> None:
    result = make_result()
    page = Page(granularity_report([result], tmp_path / "p.html").read_text("utf-8"))
    first = next(a for a in page.of("image") if a["href"].startswith("data:image/png"))
    picture = Image.open(io.BytesIO(base64.b64decode(first["href"].split(",", 1)[1])))
    assert picture.size == (12, 8)
    shades = np.asarray(picture)  # indices into the palette
    density = relative_density(result.maps, 0, 0)
    assert np.array_equal(shades == shades.max(), density == density.max())
    assert shades.max() == 254
    assert [float(first[key]) for key in ("x", "y", "width", "height")] == [0, 0, 72, 48]


def test_the_numbers_are_the_result_s(tmp_path: Path) -> None:
    result = make_result()
    text = Page(granularity_report([result], tmp_path / "p.html").read_text("utf-8")).text
    for values in result.metrics.values():
        for value in values.flatten().tolist():
            if abs(value) > 5e-5:
                assert f"{value:.4f}".replace("-", "−") in text
    for score in result.scores.flatten().tolist():
        assert f"{score:.3f}" in text


def test_abstentions_are_counted_and_always_shown(tmp_path: Path) -> None:
    page = GranularityPage()
    for same in (False, True):
        page.add(ReportItem(make_result(same_levels=same), "x"))
    # "inner" answers subpart once, and abstains where levels repeat; "outer" abstains twice.
    assert page.answers["inner"] == {"whole": 0, "part": 0, "subpart": 1, "abstain": 1}
    assert page.answers["outer"]["abstain"] == 2
    assert page.abstained == 0.75
    text = re.sub(r"\s+", " ", Page(page.write(tmp_path / "p.html").read_text("utf-8")).text)
    assert "Abstained 75 %" in text
    assert "the grid cannot tell these levels apart" in text
    assert "no shell contrast above 0" in text


def test_uncalibrated_answers_are_flagged_and_calibrated_ones_worded_as_tested(tmp_path: Path) -> None:
    plain = Page(granularity_report([make_result()], tmp_path / "p.html").read_text("utf-8")).text
    assert "Not calibrated." in plain
    assert "largest shell contrast, not calibrated" in plain
    result = make_result(calibrated=True)
    assert result.calibrated
    assert result.best_match[0, 0] == "subpart"
    tested = Page(granularity_report([result], tmp_path / "q.html").read_text("utf-8")).text
    assert "Not calibrated." not in tested
    assert "beyond its image-independent prior, p = " in tested


def test_where_it_comes_from_is_stated(tmp_path: Path) -> None:
    provenance = Provenance(
        command="arrcoc-sam analyze a.jpg", segmenter="tiny", checkpoint_hash="ab" * 32, attention="relevance", seed=7
    )
    text = Page(granularity_report([make_result()], tmp_path / "p.html", provenance=provenance).read_text("utf-8")).text
    for expected in (
        "arrcoc-sam analyze a.jpg",
        "ab" * 32,
        "torch version",
        torch.__version__.split("+")[0],
        "numpy version",
    ):
        assert expected in text
    assert "tiny (demonstration model)" in text
    assert "Demonstration model." in text
    real = Provenance(segmenter="sam_vit_b")
    text = Page(granularity_report([make_result()], tmp_path / "q.html", provenance=real).read_text("utf-8")).text
    assert "emonstration" not in text


def test_a_long_run_counts_all_and_shows_some(tmp_path: Path) -> None:
    results = (make_result(num_maps=5) for _ in range(4))
    source = granularity_report(results, tmp_path / "p.html", max_items=2, max_maps=3).read_text("utf-8")
    text = re.sub(r"\s+", " ", Page(source).text)
    assert "Images 4" in text
    assert "2 more images are in the table of results" in text
    assert "The first 3 of 5 maps" in text
    assert source.count("data:image/jpeg") == 2


def test_extra_columns_of_the_mask_table(tmp_path: Path) -> None:
    item = ReportItem(make_result(), "x", mask_scores={"stability": torch.tensor([[0.111, 0.222, float("nan")]])})
    text = Page(granularity_report([item], tmp_path / "p.html").read_text("utf-8")).text
    assert "stability" in text
    assert "0.222" in text
    with pytest.raises(ShapeError, match="mask_scores"):
        ReportItem(make_result(), "x", mask_scores={"stability": torch.zeros(2, 3)})
    with pytest.raises(ShapeError, match="prompt_names"):
        ReportItem(make_result(), "x", prompt_names=["a", "b"])


def test_what_can_t_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no result"):
        granularity_report([], tmp_path / "p.html")
    with pytest.raises(OutputError, match="is a folder"):
        granularity_report([make_result()], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_library_s_own_way_there(tmp_path: Path) -> None:
    path = make_result().to_html(tmp_path / "deep" / "p.html", command="my script.py")
    assert "my script.py" in path.read_text("utf-8")
