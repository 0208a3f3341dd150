from __future__ import annotations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from arrcoc_sam.errors import InputError
from arrcoc_sam.quality import evaluate_iou_head
from arrcoc_sam.report.reliability import plot_reliability


@pytest.mark.parametrize("one_image", [False, True])
def test_the_diagram_shows_every_bin(one_image: bool) -> None:
    rng = np.random.default_rng(0)
    actual = rng.uniform(0, 1, (200, 3))
    predicted = 0.3 + 0.8 * actual + rng.normal(0, 0.1, actual.shape)
    report = evaluate_iou_head(predicted, actual, image_id=[0] * 200 if one_image else None, num_bootstrap=50)
    figure = report.plot(title="head")
    FigureCanvasAgg(figure).draw()
    [panel] = figure.axes
    assert panel.get_xlim()[1] > predicted.max() > 1.03
    points = panel.containers[0].lines[0].get_xydata()
    np.testing.assert_allclose(points, report.reliability[["predicted", "actual"]].to_numpy())
    text = " ".join(entry.get_text() for entry in panel.get_legend().get_texts())
    assert "15 bins, 600 masks" in text
    assert f"{report.ece:.3f}" in text


@pytest.mark.usefixtures("as_at_run_time")
def test_bad_input() -> None:
    report = evaluate_iou_head(np.ones((2, 1)), np.ones((2, 1)), num_bootstrap=0)
    with pytest.raises(InputError, match="without actual_low"):
        plot_reliability(report.reliability.drop(columns="actual_low"))
    with pytest.raises(InputError, match="without rows"):
        plot_reliability(report.reliability.iloc[:0])
