"""The same weights through us and through segment-anything's own SamPredictor give the same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor
from segment_anything.build_sam import build_sam_vit_b
from segment_anything.modeling import Sam

from arrcoc_sam.prompts import Prompts
from arrcoc_sam.segmenters import load_segmenter
from arrcoc_sam.segmenters.sam import SamSegmenter
from arrcoc_sam.segmenters.tiny import build_tiny
from arrcoc_sam.upscaling import upscale

TOLERANCE = 1e-4


def prompt_kinds(height: int, width: int, mask_size: int, seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
    """Prompts in SamPredictor's own words."""
    rng = np.random.default_rng(seed)
    point = np.array([[0.3 * width, 0.6 * height]])
    points = np.array([[0.3 * width, 0.6 * height], [0.71 * width, 0.2 * height], [width - 1, 0]])
    box = np.array([0.1 * width, 0.2 * height, 0.8 * width, 0.77 * height])
    mask = rng.normal(0, 6, (1, mask_size, mask_size)).astype(np.float32)
    one, three = (
        {"point_coords": point, "point_labels": np.array([1])},
        {
            "point_coords": points,
            "point_labels": np.array([1, 0, 1]),
        },
    )
    return {
        "point": one,
        "background point": {"point_coords": point, "point_labels": np.array([0])},
        "points": three,
        "box": {"box": box},
        "box and point": {"box": box, **one},
        "box and points": {"box": box, **three},
        "mask": {"mask_input": mask},
        "mask and point": {"mask_input": mask, **one},
        "mask and box and points": {"mask_input": mask, "box": box, **three},
    }


def as_prompts(kind: dict[str, Any], image_index: int = 0) -> Prompts:
    """The same prompt in our words."""
    return Prompts(
        points_xy=kind["point_coords"][None] if "point_coords" in kind else None,
        labels=kind["point_labels"][None] if "point_labels" in kind else None,
        boxes_xyxy=kind["box"][None] if "box" in kind else None,
        mask_logits=kind.get("mask_input"),
        image_index=[image_index],
    )


def assert_parity(model: Sam, segmenter: SamSegmenter, image: np.ndarray, kinds: dict[str, Any]) -> None:
    predictor = SamPredictor(model)
    predictor.set_image(image)
    embedding = segmenter.encode(image)
    torch.testing.assert_close(
        embedding.features["image"], predictor.get_image_embedding(), rtol=TOLERANCE, atol=TOLERANCE
    )
    for name, kind in kinds.items():
        answers = {}
        for multimask in (True, False):
            logits, iou, low = predictor.predict(**kind, multimask_output=multimask, return_logits=True)
            answers[multimask] = tuple(torch.from_numpy(value)[None] for value in (logits, iou, low))
        answers["all"] = tuple(torch.cat(pair, 1) for pair in zip(answers[False], answers[True], strict=True))
        for multimask, (logits, iou, low) in answers.items():
            cand = segmenter.decode(embedding, as_prompts(kind), multimask=multimask)
            torch.testing.assert_close(cand.logits, low, rtol=TOLERANCE, atol=TOLERANCE, msg=name)
            torch.testing.assert_close(cand.predicted_iou, iou, rtol=TOLERANCE, atol=TOLERANCE, msg=name)
            full = upscale(cand.logits, cand.transforms[0])
            torch.testing.assert_close(full, logits, rtol=TOLERANCE, atol=TOLERANCE, msg=name)
            clear = logits.abs() > TOLERANCE
            assert torch.equal(cand.masks()[clear], (logits > 0)[clear]), name
            tokens = {True: [1, 2, 3], False: [0], "all": [0, 1, 2, 3]}[multimask]
            assert cand.token_index.tolist() == tokens


@pytest.mark.parametrize("size", [(96, 128), (150, 61), (128, 128), (33, 40), (300, 317)])
def test_small_sam_answers_as_segment_anything(small_sam, segmenter, picture, size):
    assert_parity(small_sam, segmenter, picture(*size, seed=1), prompt_kinds(*size, mask_size=32))


def test_masks_of_the_small_sam_are_not_trivial(segmenter, picture):
    """Parity of empty or full masks would show nothing."""
    embedding = segmenter.encode(picture(96, 128, seed=1))
    kind = prompt_kinds(96, 128, mask_size=32)["point"]
    share = segmenter.decode(embedding, as_prompts(kind), multimask="all").masks().float().mean((-2, -1))
    assert ((share > 0.02) & (share < 0.98)).sum() >= 2


def test_embedded_architecture_answers_as_segment_anything(picture):
    torch.manual_seed(0)
    model = build_tiny().requires_grad_(False)
    segmenter = SamSegmenter(model, name="tiny")
    kinds = prompt_kinds(90, 121, mask_size=segmenter.mask_input_size[0])
    assert_parity(model, segmenter, picture(90, 121, seed=2), kinds)


def test_vit_b_from_a_file_answers_as_segment_anything(tmp_path, picture):
    torch.manual_seed(0)
    model = build_sam_vit_b().requires_grad_(False)
    torch.save(model.state_dict(), tmp_path / "random_vit_b.pth")
    segmenter = load_segmenter("sam_vit_b", checkpoint=tmp_path / "random_vit_b.pth", device="cpu")
    (tmp_path / "random_vit_b.pth").unlink()
    assert isinstance(segmenter, SamSegmenter)
    assert (segmenter.image_size, segmenter.mask_input_size) == (1024, (256, 256))
    kinds = prompt_kinds(120, 160, mask_size=256)
    chosen = {name: kinds[name] for name in ("point", "mask and box and points")}
    assert_parity(model, segmenter, picture(120, 160, seed=3), chosen)
