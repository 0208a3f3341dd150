from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from arrcoc_sam.report.filter_page import FilterFigures, MaskPicture, filter_report
from arrcoc_sam.report.histogram import histogram
from arrcoc_sam.report.provenance import Provenance


def figures(**changes: object) -> FilterFigures:
    rng = np.random.default_rng(0)
    scores = pd.DataFrame(
        {
            "quality": rng.random(40).astype(np.float32),
            "quality_kind": "bound",
            "stability": np.where(np.arange(40) < 3, np.nan, 0.5).astype(np.float32),
            "area_share": np.float32(0.1),
        }
    )
    values: dict[str, object] = {
        "scores": scores,
        "kept": (scores["quality"] > 0.4).to_numpy(),
        "rules": {"min_quality": 0.4, "crowd": "keep"},
        "reasons": pd.DataFrame({"rule": ["min_quality"], "failed": [16], "alone": [16]}),
        "classes": pd.DataFrame(
            {
                "category": ["<i>cat</i>", "dog"],
                "masks": [30, 10],
                "dropped": [16, 0],
                "dropped_share": [16 / 30, 0.0],
                "kept_quality": [0.7, 0.8],
                "dropped_quality": [0.2, np.nan],
            }
        ),
        "num_unscored": 2,
        "num_lost_images": 1,
        "dataset": "masks.json",
    }
    return FilterFigures(**{**values, **changes})  # type: ignore[arg-type]


def test_bars_are_numpy_s_histogram() -> None:
    rng = np.random.default_rng(1)
    kept, dropped = rng.random(50), np.append(rng.random(30), [np.nan, 1.0])
    drawn = histogram(kept, dropped, title="Quality", unit="quality", limit=0.5, num_bins=10)
    found = [tuple(map(int, pair)) for pair in re.findall(r": (\d+) kept, (\d+) dropped", drawn)]
    expected = [np.histogram(values[~np.isnan(values)], np.linspace(0, 1, 11))[0] for values in (kept, dropped)]
    assert found == list(zip(*(counts.tolist() for counts in expected), strict=True))
    assert "1 without a value" in drawn
    assert "stroke-dasharray" in drawn
    heights = [float(height) for height in re.findall(r'<rect[^>]*height="([\d.]+)"', drawn)]
    assert sum(heights) == pytest.approx(120 * (50 + 31) / (expected[0] + expected[1]).max(), abs=0.2)


def test_the_page_is_whole_and_names_are_only_text(tmp_path: Path) -> None:
    mask = np.zeros((20, 30), dtype=bool)
    mask[5:12, 4:20] = True
    picture = MaskPicture("<b>7</b>", np.full((20, 30, 3), 90, dtype=np.uint8), mask, "quality 0.9")
    path = filter_report(figures(best=[picture], worst=[picture]), tmp_path / "report.html")
    page = path.read_text()
    assert page.count("data:image/jpeg") == 2
    assert "&lt;i&gt;cat" in page
    assert "<i>cat" not in page
    assert "<b>7" not in page
    assert "lower bound" in page
    assert "2 masks have no score" in page
    assert "Demonstration model" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert "53.3 %" in page


def test_what_the_page_says_of_its_scores(tmp_path: Path) -> None:
    scores = figures().scores.assign(quality_kind="calibrated")
    changes = {"scores": scores, "num_unscored": 0, "provenance": Provenance(segmenter="tiny")}
    page = filter_report(figures(**changes), tmp_path / "report.html").read_text()
    assert "calibrated estimate" in page
    assert "have no score" not in page
    assert "Demonstration model" in page
    assert "The best" not in page
