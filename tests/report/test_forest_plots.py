"""The figure of a forest: what it shows, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from arrcoc_sam.errors import InputError
from arrcoc_sam.hierarchy import MaskForest
from arrcoc_sam.report.forest_plots import plot_forest


@pytest.fixture
def forest() -> MaskForest:
    masks = torch.zeros(4, 40, 60, dtype=torch.bool)
    masks[0, 2:38, 2:40] = True
    masks[1, 5:20, 5:30] = True
    masks[2, 8:15, 10:20] = True
    masks[3, 10:30, 45:58] = True
    return MaskForest.from_masks(masks, torch.tensor([0.9, 0.8, float("nan"), 0.7]))


def test_every_mask_is_numbered_on_the_image_and_in_the_tree(forest: MaskForest) -> None:
    figure = plot_forest(np.zeros((40, 60, 3), np.uint8), forest, title="A forest")
    photo, tree = figure.axes
    assert [text.get_text() for text in photo.texts] == ["0", "1", "2", "3"]
    # down the tree: the root, what it contains, and the next root
    assert [text.get_text().split(" · ")[0] for text in tree.texts] == ["0", "1", "3", "2"]
    assert tree.texts[2].get_text() == "3 · 2.9 % · –"
    assert len(tree.lines) == 2
    figure.canvas.draw()
    right = max(text.get_window_extent().x1 for text in tree.texts)
    assert right <= figure.bbox.x1


def test_the_largest_are_shown_and_it_says_so(forest: MaskForest) -> None:
    figure = plot_forest(np.zeros((40, 60, 3), np.uint8), forest, max_nodes=2)
    assert "the largest 2 of 4 masks" in figure.axes[0].get_title()
    assert len(figure.axes[1].texts) == 2


def test_an_empty_forest_is_a_picture_too() -> None:
    empty = MaskForest.from_masks(torch.zeros(0, 40, 60, dtype=torch.bool))
    assert "0 masks" in plot_forest(np.zeros((40, 60, 3), np.uint8), empty).axes[0].get_title()


def test_refusals(forest: MaskForest) -> None:
    with pytest.raises(InputError, match="the image that the masks are of"):
        plot_forest(np.zeros((60, 40, 3), np.uint8), forest)
    with pytest.raises(InputError, match="max_nodes=0"):
        plot_forest(np.zeros((40, 60, 3), np.uint8), forest, max_nodes=0)
