from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from report_cases import make_result

from arrcoc_sam.report import GranularityPage, ReportItem
from arrcoc_sam.report.bars import bar
from arrcoc_sam.report.score_section import ScoredMask, score_section

NAN = float("nan")


def scored(name: str = "<b>frayed</b>", **changes: object) -> ScoredMask:
    mask = np.zeros((20, 30), dtype=bool)
    mask[5:12, 4:20] = True
    values: dict[str, object] = {
        "name": name,
        "mask": mask,
        "quality": 0.75,
        "interval": (0.5, 0.9),
        "bounds": (0.1, 0.8),
        "predicted_iou": 0.6,
        "alignment_iou": 0.5,
        "stability": NAN,
        "soft_iou": 0.337,
        "true_iou": 0.4,
    }
    return ScoredMask(**{**values, **changes})  # type: ignore[arg-type]


def test_masks_share_their_picture_and_names_are_only_text() -> None:
    image = np.full((20, 30, 3), 90, dtype=np.uint8)
    section = score_section("Scores", ["Some words."], image, [scored(), scored("clean", true_iou=1.0)], name="one")
    assert section.count("data:image/jpeg") == 1
    assert section.count('<use href="#one">') == 1
    assert "<b>frayed" not in section
    assert "&lt;b&gt;frayed&lt;/b&gt;: quality 0.75, true IoU 0.40" in section
    assert "<span>0.50 to 0.90</span>" in section
    assert section.count('class="nan"') == 2  # the stability of each
    assert section.count("0.337") == 2


def test_a_bound_has_no_interval() -> None:
    image = np.full((20, 30, 3), 90, dtype=np.uint8)
    assert 'class="span"' in score_section("", [], image, [scored()], name="one")
    assert 'class="span"' not in score_section("", [], image, [scored(interval=(NAN, NAN))], name="one")


def test_a_span_lies_where_its_ends_are() -> None:
    drawn = bar("quality", 0.75, (0.0, 1.0), kind="whole", span=(0.5, 1.25))
    found = re.search(r'class="span" style="left:([\d.]+)%;width:([\d.]+)%"', drawn)
    assert found
    assert [float(value) for value in found.groups()] == pytest.approx([50.0, 50.0])  # cut at the scale's end


def test_a_section_of_another_kind_stands_after_the_results_and_counts_nowhere(tmp_path: Path) -> None:
    plain, more = GranularityPage(), GranularityPage()
    for page in (plain, more):
        page.add(ReportItem(make_result(), "one"))
    section = score_section("Scores", [], np.zeros((20, 30, 3), np.uint8), [scored()], name="scored")
    more.append(section)
    assert more.answers == plain.answers
    written = more.write(tmp_path / "page.html").read_text("utf-8")
    assert written.index('id="item0"') < written.index(section) < written.index("Provenance")
