"""The automatic mode against segment-anything's, on a small SAM with random weights, and what it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from segment_anything import SamAutomaticMaskGenerator, build_sam_vit_b
from segment_anything.modeling import Sam

from arrcoc_sam.errors import DataError, InputError
from arrcoc_sam.masks import decode_rle, pairwise_iou
from arrcoc_sam.prompts import Prompts, grid_points_xy
from arrcoc_sam.scenes import generate_scene
from arrcoc_sam.segmenters import load_segmenter
from arrcoc_sam.segmenters.everything.generator import AutomaticMaskGenerator
from arrcoc_sam.segmenters.everything.masks import AutomaticMasks
from arrcoc_sam.segmenters.sam import SamSegmenter
from arrcoc_sam.segmenters.tiny import set_image_size

Picture = Callable[[int, int, int], np.ndarray]

# Thresholds at which random weights leave 50 masks and more: these reach over the whole image, so that no box is
# another's duplicate at 1.0, and their logits are small.
SETTINGS: dict[str, dict[str, Any]] = {
    "wide": {"size_hw": (90, 140)},
    "tall": {"size_hw": (150, 100)},
    "regions": {"size_hw": (90, 140), "min_region_area": 30},
    "crops": {"size_hw": (100, 120), "num_crop_layers": 1, "crop_points_downscale": 3, "min_region_area": 12},
    "all": {"size_hw": (64, 64), "min_predicted_iou": 0.0, "min_stability": 0.0, "points_per_side": 5},
}
NAMES = {
    "min_predicted_iou": "pred_iou_thresh",
    "min_stability": "stability_score_thresh",
    "stability_offset": "stability_score_offset",
    "box_nms_iou": "box_nms_thresh",
    "num_crop_layers": "crop_n_layers",
    "crop_nms_iou": "crop_nms_thresh",
    "crop_points_downscale": "crop_n_points_downscale_factor",
    "min_region_area": "min_mask_region_area",
}


def given(name: str) -> tuple[tuple[int, int], dict[str, Any]]:
    options = {
        "points_per_side": 9,
        "min_predicted_iou": 0.02,
        "min_stability": 0.6,
        "stability_offset": 0.02,
        "box_nms_iou": 1.0,
        "crop_nms_iou": 1.0,
        "min_region_area": 0,
        **SETTINGS[name],
    }
    return options.pop("size_hw"), options


def theirs(sam: Sam, image: np.ndarray, options: dict[str, Any]) -> list[dict[str, Any]]:
    named = {NAMES.get(key, key): value for key, value in options.items()}
    return SamAutomaticMaskGenerator(sam, output_mode="coco_rle", **named).generate(image)


def share_matched(ours: AutomaticMasks, records: list[dict[str, Any]]) -> float:
    """Of the masks of either, the share that the other one has too."""
    masks = decode_rle([record["segmentation"] for record in records])
    iou = pairwise_iou(ours.masks(), masks) >= 0.99
    return min(iou.any(0).float().mean().item(), iou.any(1).float().mean().item())


def assert_same_records(found: AutomaticMasks, expected: list[dict[str, Any]]) -> None:
    """The same masks in the same order, pixel by pixel; scores and clicks to the last digits of their type."""
    assert len(found) == len(expected)
    for record, reference in zip(found, expected, strict=True):
        assert set(record) == set(reference)
        for key in ("segmentation", "area", "bbox", "crop_box", "stability_score"):
            assert record[key] == reference[key]  # type: ignore[literal-required]
        for key in ("point_coords", "predicted_iou"):
            np.testing.assert_allclose(record[key], reference[key], rtol=1e-6, atol=1e-6)  # type: ignore[literal-required]


@pytest.mark.parametrize("name", SETTINGS)
def test_exact_masks_are_those_of_segment_anything(
    small_sam: Sam, segmenter: SamSegmenter, picture: Picture, name: str
) -> None:
    size_hw, options = given(name)
    image = picture(*size_hw, 1)
    expected = theirs(small_sam, image, options)
    found = AutomaticMaskGenerator(segmenter, exact=True, **options).generate(image)
    assert len(expected) >= 50
    assert_same_records(found, expected)


@pytest.mark.parametrize("name", SETTINGS)
def test_fast_masks_are_those_of_segment_anything_but_for_a_few(
    small_sam: Sam, segmenter: SamSegmenter, picture: Picture, name: str
) -> None:
    size_hw, options = given(name)
    image = picture(*size_hw, 1)
    found = AutomaticMaskGenerator(segmenter, **options).generate(image)
    assert len(found) >= 50
    assert share_matched(found, theirs(small_sam, image, options)) >= 0.99


@pytest.mark.parametrize("num_crop_layers", [0, 1])
def test_the_embedded_model(num_crop_layers: int) -> None:
    tiny = load_segmenter("tiny", device="cpu")
    assert isinstance(tiny, SamSegmenter)
    set_image_size(tiny.model, 256)  # a third of the time
    image = generate_scene(3, 130, style="rich").image[:100]  # of noise every new weights make another number of masks
    options: dict[str, Any] = {
        "points_per_side": 16,
        "min_predicted_iou": 0.0,
        "min_stability": 0.1,
        "box_nms_iou": 0.97,
        "num_crop_layers": num_crop_layers,
        "crop_points_downscale": 4,
        "min_region_area": 20,
    }
    expected = theirs(tiny.model, image, options)
    assert len(expected) >= 50
    exact = AutomaticMaskGenerator(tiny, exact=True, **options).generate(image)
    assert_same_records(exact, expected)
    assert share_matched(AutomaticMaskGenerator(tiny, **options).generate(image), expected) >= 0.99


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_vit_b_with_random_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """SAM's true architecture. 88 of 108 candidates are predicted well enough, and most of these are stable."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sam = build_sam_vit_b().requires_grad_(False)
    segmenter, image = SamSegmenter(sam, name="random ViT-B"), generate_scene(0, size=300).image
    with torch.no_grad():
        embedding = segmenter.encode(image)
        monkeypatch.setattr(segmenter, "encode", lambda _: embedding)  # once is enough: it takes most of the time
        clicks = Prompts(points_xy=grid_points_xy(6, (300, 300))[:, None])
        scores = segmenter.decode(embedding, clicks).predicted_iou.flatten().sort().values
    options: dict[str, Any] = {
        "points_per_side": 6,
        "min_predicted_iou": float(scores[19:21].mean()),  # between two of them
        "min_stability": 0.5,
        "stability_offset": 0.02,
        "box_nms_iou": 1.0,
        "min_region_area": 0,
    }
    expected = theirs(sam, image, options)
    assert len(expected) >= 50
    exact = AutomaticMaskGenerator(segmenter, exact=True, **options).generate(image)
    assert len(exact) == len(expected)
    # Clicks go through the decoder 16 at a time, there 36: sums of this size are not the same to the last bit.
    references = decode_rle([record["segmentation"] for record in expected])
    different = (exact.masks() ^ references).sum((1, 2))
    print(f"{len(exact)} masks, {int((different == 0).sum())} the same, at most {int(different.max())} pixels off")
    assert (pairwise_iou(exact.masks(), references).diagonal() >= 0.99).all()
    assert share_matched(AutomaticMaskGenerator(segmenter, **options).generate(image), expected) >= 0.99


def test_records_forest_and_json(segmenter: SamSegmenter, picture: Picture) -> None:
    size_hw, options = given("wide")
    steps: list[tuple[int, int]] = []
    found = AutomaticMaskGenerator(segmenter, **options).generate(
        picture(*size_hw, 1), on_progress=lambda done, total: steps.append((done, total))
    )
    assert steps == [(done, 81) for done in (16, 32, 48, 64, 80, 81)]
    masks = found.masks()
    assert masks.shape == (len(found), *size_hw)
    assert masks.sum((1, 2)).tolist() == [record["area"] for record in found]
    assert json.loads(found.to_json()) == list(found.records)
    again = AutomaticMasks.from_json(found.to_json())
    assert (again.size_hw, again.records) == (found.size_hw, found.records)
    assert found[-1] is found.records[-1]
    assert repr(found) == f"AutomaticMasks({len(found)} masks; {size_hw[0]} x {size_hw[1]} pixels)"
    forest = found.forest()
    assert 0 < len(forest) <= len(found)
    torch.testing.assert_close(forest.scores, found.scores[forest.index])
    torch.testing.assert_close(forest.masks, masks[forest.index])


def test_point_grids_are_points_per_side_spelled_out(segmenter: SamSegmenter, picture: Picture) -> None:
    (size_hw, options), image = given("wide"), picture(90, 140, 2)
    del size_hw
    side = (np.arange(9) + 0.5) / 9
    grid = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    spelled = AutomaticMaskGenerator(segmenter, **{**options, "points_per_side": 3}, point_grids=[grid])
    assert spelled.generate(image).records == AutomaticMaskGenerator(segmenter, **options).generate(image).records


RECORD = {
    "segmentation": {"size": [2, 2], "counts": "22"},
    "area": 2,
    "bbox": [1, 0, 0, 1],
    "predicted_iou": 0.9,
    "point_coords": [[1.0, 0.5]],
    "stability_score": 1.0,
    "crop_box": [0, 0, 2, 2],
}


def test_masks_of_the_command_and_of_amg() -> None:
    """The one says the size of its image; the other writes floats where SAM's generator has them."""
    document = {"image": "a.jpg", "size_hw": [2, 2], "masks": [RECORD]}
    for text in (json.dumps(document), json.dumps([RECORD | {"bbox": [1.0, 0.0, 0.0, 1.0]}])):
        found = AutomaticMasks.from_json(text)
        assert (found.size_hw, found.masks().tolist()) == ((2, 2), [[[False, True], [False, True]]])
    assert AutomaticMasks.from_json(json.dumps(document | {"masks": []})).size_hw == (2, 2)


@pytest.mark.usefixtures("as_at_run_time")
@pytest.mark.parametrize(
    ("records", "size_hw", "words"),
    [
        ([], None, "say its size as size_hw"),
        ({"image": "a.jpg"}, None, "a list of records"),
        ([{"crop_box": [0, 0, 1, 1]}], None, "lacks segmentation, area"),
        ([RECORD | {"predicted_iou": "high"}], None, "predicted_iou of number 0"),
        ([RECORD, RECORD | {"area": 1.5}], None, "area of number 1"),
        ([RECORD, RECORD | {"segmentation": {"size": [2, 2], "counts": "2"}}], None, "mask 1: "),
        ([RECORD | {"segmentation": {"size": [2, 2.5], "counts": [2, 2]}}], None, "whole numbers"),
        ([RECORD | {"segmentation": {"size": [2, 2], "counts": [1.5, 2.5]}}], None, "whole numbers"),
        ([RECORD], (3, 2), "of sizes 2 x 2, 3 x 2"),
        ([RECORD], (2,), "(height, width)"),
    ],
)
def test_records_that_are_no_masks(records: object, size_hw: tuple[int, int] | None, words: str) -> None:
    with pytest.raises((DataError, InputError), match=re.escape(words)):
        AutomaticMasks.from_json(json.dumps(records), size_hw=size_hw)


def test_nothing_found(segmenter: SamSegmenter, picture: Picture) -> None:
    found = AutomaticMaskGenerator(segmenter, points_per_side=2, min_predicted_iou=5.0).generate(picture(40, 50, 0))
    assert len(found) == 0
    assert found.masks().shape == (0, 40, 50)
    assert found.to_json() == "[]"
    assert AutomaticMasks.from_json("[]", size_hw=(40, 50)).masks().shape == (0, 40, 50)
    assert len(found.forest()) == 0
    assert found.scores.shape == (0,)


@pytest.mark.usefixtures("as_at_run_time")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"points_per_side": 0}, "points_per_side=0"),
        ({"min_stability": 1.5}, "min_stability=1.5; expected 0 to 1"),
        ({"min_predicted_iou": float("nan")}, "min_predicted_iou=nan"),
        ({"box_nms_iou": -0.1}, "box_nms_iou=-0.1"),
        ({"num_crop_layers": -1}, "num_crop_layers=-1; expected a whole number, at least 0"),
        ({"num_crop_layers": 1.0}, "num_crop_layers=1.0; expected a whole number"),
        ({"points_per_side": "8"}, "points_per_side='8'; expected a whole number"),
        ({"min_stability": None}, "min_stability=None; expected 0 to 1"),
        ({"min_predicted_iou": None}, "min_predicted_iou=None; expected a number"),
        ({"segmenter": None}, "segmenter is None; expected a segmenter"),
        ({"crop_overlap": 1.0}, "overlap=1.0"),
        ({"min_region_area": -1}, "min_region_area=-1; expected at least 0"),
        ({"num_crop_layers": 1, "point_grids": [np.zeros((1, 2))]}, "1 point_grids for 1 layers"),
        ({"point_grids": [np.full((1, 2), 1.5)]}, "unit square"),
        ({"point_grids": [np.zeros((0, 2))]}, "at least one"),
    ],
)
def test_options_that_make_no_sense(segmenter: SamSegmenter, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        AutomaticMaskGenerator(**{"segmenter": segmenter, **options})
    assert words in str(caught.value)


def test_a_crop_that_is_too_small_is_refused_before_any_work(segmenter: SamSegmenter, picture: Picture) -> None:
    told: list[int] = []
    generator = AutomaticMaskGenerator(segmenter, points_per_side=2, num_crop_layers=3)
    with pytest.raises(InputError, match="too small"):
        generator.generate(picture(40, 50, 0), on_progress=lambda done, _: told.append(done))
    assert told == []
