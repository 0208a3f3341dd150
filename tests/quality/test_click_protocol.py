"""The protocol's figures, by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from arrcoc_sam.errors import InputError
from arrcoc_sam.quality import AnnotatedImage, evaluate_clicks, evaluate_iou_head, summarize_clicks
from arrcoc_sam.quality.click_protocol import ANY_NODE_TOLERANCE
from arrcoc_sam.quality.head_metrics import TARGET_TOLERANCE
from arrcoc_sam.scenes import generate_scene
from arrcoc_sam.segmenters.sam import SamSegmenter
from arrcoc_sam.segmenters.tiny import build_tiny


def test_summary_of_hand_made_rows() -> None:
    nodes = pd.DataFrame(
        {
            "image": ["a", "a"],
            "level": ["whole", "part"],
            "distinct": [True, False],
            "iou_1": [0.9, 0.1],
            "iou_2": [0.5, 0.8],
            "iou_3": [0.2, 0.3],
            "predicted_1": [0.8, 0.7],
            "predicted_2": [0.6, 0.5],
            "predicted_3": [0.1, 0.2],
            # the second row chooses mask 1, which fits another node under the click nearly as well as the best
            "any_iou_1": [0.9, 0.78],
            "any_iou_2": [0.5, 0.8],
            "any_iou_3": [0.2, 0.3],
            "iou_after_3": [1.0, 0.5],
            "predicted_after_3": [0.9, 0.7],
        }
    )
    summary = summarize_clicks(nodes)
    assert summary["oracle_iou"] == pytest.approx(0.85)
    assert summary["automatic_iou"] == pytest.approx(0.5)
    assert summary["oracle_iou/part"] == pytest.approx(0.8)
    assert summary["automatic_iou/part"] == pytest.approx(0.1)
    assert "oracle_iou/subpart" not in summary
    assert summary["selection_accuracy"] == 1.0
    predicted, actual = (nodes[[f"{name}_{k}" for k in (1, 2, 3)]].to_numpy() for name in ("predicted", "iou"))
    assert evaluate_iou_head(predicted, actual).selection_accuracy == 0.5  # by the node that was meant
    assert (ANY_NODE_TOLERANCE, TARGET_TOLERANCE) == (0.05, 0.01)
    assert summary["distinct_share"] == 0.5
    assert summary["mae"] == pytest.approx(np.mean([0.1, 0.6, 0.1, 0.3, 0.1, 0.1]))
    assert summary["mae_after_3"] == pytest.approx(0.15)
    assert summary["pearson_after_3"] == pytest.approx(1.0)
    nodes["any_iou_1"] = [0.9, 0.74]
    assert summarize_clicks(nodes)["selection_accuracy"] == 0.5


def test_protocol_runs_and_is_seeded() -> None:
    torch.manual_seed(0)
    segmenter = SamSegmenter(build_tiny(64), name="untrained")
    scene = generate_scene(3, size=64)
    image = AnnotatedImage("scene-3", scene.image, scene.masks, scene.levels)
    report = evaluate_clicks(segmenter, [image], clicks=(1, 3))
    again = evaluate_clicks(segmenter, [image], clicks=(1, 3))
    pd.testing.assert_frame_equal(report.nodes, again.nodes)
    assert len(report.nodes) == len(scene)
    for node, row in report.nodes.iterrows():
        assert scene.masks[node, row["y"], row["x"]]
    ious = report.nodes[["iou_1", "iou_2", "iou_3"]].to_numpy()
    assert (report.nodes[["any_iou_1", "any_iou_2", "any_iou_3"]].to_numpy() >= ious - 1e-6).all()
    assert not evaluate_clicks(segmenter, [image], seed=1).nodes["x"].equals(report.nodes["x"])


def test_bad_arguments() -> None:
    segmenter = SamSegmenter(build_tiny(64), name="untrained")
    with pytest.raises(InputError, match="images is empty"):
        evaluate_clicks(segmenter, [])
    with pytest.raises(InputError, match="ascending"):
        evaluate_clicks(segmenter, [], clicks=(3, 1))
