"""Which feature works with which family: tried on small random models, and written down in docs/hf_families.md.

ARRCOC_SAM_WRITE_DOCS=1 uv run pytest -n 0 tests/segmenters/test_hf_families.py
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hf_small_models import NAMES, build, build_segmenter, family

from arrcoc_sam.attention import RelevanceAttention
from arrcoc_sam.granularity import GranularityAnalyzer
from arrcoc_sam.hierarchy import MaskHierarchy
from arrcoc_sam.losses import functional as losses
from arrcoc_sam.prompts import Prompts
from arrcoc_sam.quality import MaskQualityEstimator
from arrcoc_sam.segmenters.base import Segmenter
from arrcoc_sam.segmenters.hf.families import FAMILIES
from arrcoc_sam.segmenters.mobile_sam import build_mobile_sam
from arrcoc_sam.segmenters.sam import SamSegmenter
from arrcoc_sam.segmenters.video.frames import ArrayClip
from arrcoc_sam.segmenters.video.prompts import VideoPrompt
from arrcoc_sam.segmenters.video.segmenter import VideoSegmenter

DOCS = Path(__file__).parents[2] / "docs" / "hf_families.md"
OTHERS = ("segment-anything", "MobileSAM")
POINT = Prompts([[[40.0, 30]]])
BOX = Prompts(boxes_xyxy=[[10.0, 10, 70, 50]])


def mask_prompt(segmenter: Segmenter) -> Prompts:
    return Prompts(mask_logits=torch.randn(1, *segmenter.mask_input_size, generator=torch.Generator().manual_seed(0)))


def decodes(segmenter: Segmenter, image: np.ndarray, prompts: Prompts, **keywords: Any) -> bool:
    cand = segmenter.decode(segmenter.encode(image), prompts, **keywords)
    return bool(cand.logits.isfinite().all()) and len(cand) == len(prompts)


def mixed(segmenter: Segmenter, image: np.ndarray) -> bool:
    return decodes(segmenter, image, Prompts.cat([POINT, BOX, mask_prompt(segmenter)]))


def all_four(segmenter: Segmenter, image: np.ndarray) -> bool:
    cand = segmenter.decode(segmenter.encode(image), POINT, multimask="all")
    return cand.token_index.tolist() == [0, 1, 2, 3]


def granularity(segmenter: Segmenter, image: np.ndarray) -> bool:
    result = GranularityAnalyzer(segmenter, RelevanceAttention()).analyze(image, [[40.0, 30]])
    return result.masks.shape[1] == 3


def quality(segmenter: Segmenter, image: np.ndarray) -> bool:
    masks = torch.zeros(1, *image.shape[:2], dtype=torch.bool)
    masks[0, 10:60, 20:90] = True
    return bool(MaskQualityEstimator(segmenter).estimate(image, masks).quality.isfinite().all())


def supervision(segmenter: Segmenter, image: np.ndarray) -> bool:
    hierarchy = segmenter.decode(segmenter.encode(image), POINT).hierarchy()
    assert isinstance(hierarchy, MaskHierarchy)
    logits = torch.zeros(1, 3, *image.shape[:2], requires_grad=True)
    loss = losses.hierarchical_focal_dice_loss(logits, hierarchy.masks, hierarchy.scores)
    loss.backward()
    return logits.grad is not None and bool(logits.grad.isfinite().all())


def gradients(segmenter: Segmenter, image: np.ndarray) -> bool:
    prompts = mask_prompt(segmenter)
    assert prompts.mask_logits is not None
    logits = prompts.mask_logits.requires_grad_(True)
    segmenter.decode(segmenter.encode(image), Prompts([[[40.0, 30]]], mask_logits=logits)).logits.sum().backward()
    return logits.grad is not None and bool((logits.grad != 0).any())


def object_score(segmenter: Segmenter, image: np.ndarray) -> bool:
    return segmenter.decode(segmenter.encode(image), POINT).object_score is not None


def video(segmenter: Segmenter, image: np.ndarray) -> bool:
    name = segmenter.name
    if name in OTHERS or family(name).video_class is None:
        return False
    tracker = VideoSegmenter(build(name, video=True), family(name), name=name)
    return len(tracker.track(ArrayClip([image, image]), [VideoPrompt(0, points_xy=[[40, 30]])])) == 2


FEATURES: dict[str, Callable[[Segmenter, np.ndarray], bool]] = {
    "points": lambda s, i: decodes(s, i, POINT),
    "boxes": lambda s, i: decodes(s, i, BOX),
    "mask prompts": lambda s, i: decodes(s, i, mask_prompt(s)),
    "mixed in one batch": mixed,
    "single mask (token 0)": lambda s, i: decodes(s, i, POINT, multimask=False),
    "all four tokens": all_four,
    "granularity": granularity,
    "mask quality": quality,
    "level supervision": supervision,
    "gradients to prompts": gradients,
    "object score": object_score,
    "video": video,
}
ABSENT = {
    "SAM": {"object score", "video"},
    "SAM-HQ": {"object score", "video"},
    "SAM 2": set(),
    "EdgeTAM": set(),
    "SAM 3 tracker": {"video"},
    "segment-anything": {"object score", "video"},
    "MobileSAM": {"object score", "video"},
}
"""What a family does not have; everything else works."""


def small(name: str) -> Segmenter:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name == "MobileSAM":
            return SamSegmenter(build_mobile_sam(128).requires_grad_(False), name=name)
        segmenter = build_segmenter(name)
        segmenter.name = name
        return segmenter


@pytest.fixture(scope="module")
def tried(small_sam: Any) -> dict[str, dict[str, bool]]:
    """Feature by feature, whether it works."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(1, 3, 6, 6, generator=generator) * 255
    smooth = torch.nn.functional.interpolate(coarse, (90, 130), mode="bicubic")
    image = smooth[0].clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy()
    segmenters = {name: small(name) for name in (*NAMES, "MobileSAM")}
    segmenters["segment-anything"] = SamSegmenter(small_sam, name="segment-anything")
    return {name: {f: works(s, image) for f, works in FEATURES.items()} for name, s in segmenters.items()}


@pytest.mark.slow
def test_what_works_is_what_is_written(tried):
    assert {name: {f for f, works in row.items() if not works} for name, row in tried.items()} == ABSENT


def test_the_table_is_up_to_date():
    """What is written is ``ABSENT``, which the test above tries out."""
    text = table({name: {feature: feature not in absent for feature in FEATURES} for name, absent in ABSENT.items()})
    if os.environ.get("ARRCOC_SAM_WRITE_DOCS"):
        DOCS.write_text(text, encoding="utf-8")
    assert DOCS.read_text(encoding="utf-8") == text, "write it anew: see the head of this file"


def table(tried: dict[str, dict[str, bool]]) -> str:
    names = ["segment-anything", "MobileSAM", *NAMES]
    lines = [
        "# Segmenter families",
        "",
        "What loads as what, and which feature works with which family. The second table is written by",
        "`tests/segmenters/test_hf_families.py`, which tries each feature on a small model of each family with random",
        "weights; nothing in it says how good the masks of a published checkpoint are.",
        "",
        "| family | `load_segmenter(…)` | image in the frame | decoder's IoU | note |",
        "| --- | --- | --- | --- | --- |",
        "| segment-anything | `sam_vit_b`, `sam_vit_l`, `sam_vit_h`, `tiny` | letterboxed | raw | |",
        "| MobileSAM | `mobile_sam` | letterboxed | raw | `mobile_sam.pt` on timm's TinyViT |",
    ]
    for known in FAMILIES:
        framing = {"letterbox": "letterboxed", "squash": "squashed to a square"}[known.framing]
        iou = "after a sigmoid" if known.decoder == "sam2" else "raw"
        lines.append(f"| {known.name} | `hf:{known.example}` | {framing} | {iou} | {NOTES[known.name]} |")
    lines += ["", f"| feature | {' | '.join(names)} |", "| --- |" + " --- |" * len(names)]
    for feature in FEATURES:
        marks = ("yes" if tried[name][feature] else "–" for name in names)
        lines.append(f"| {feature} | {' | '.join(marks)} |")
    return "\n".join([*lines, "", REST])


NOTES = {
    "SAM": "the numbers of segment-anything with the same weights, to 1e-4 (tested on random ones)",
    "SAM-HQ": "tokens unsorted; the IoU is that of the SAM part of the mask",
    "SAM 2": "token 0 is never switched for another; `Sam2VideoModel` repositories load as images too",
    "EdgeTAM": "as SAM 2",
    "SAM 3 tracker": "as SAM 2; not tried on the published checkpoint, which is gated",
}
REST = """\
`hf:` takes a repository of the hub or a local folder with `config.json` and safetensors; a pickle is never read, and
weights that lack a tensor are refused. A name that is no promptable SAM is refused before its weights are fetched.

## What differs from calling transformers

- **K masks on one image** work: every prompt brings its image's embedding. transformers adds the mask prompts before
  it repeats the embedding.
- **All four tokens**, in the decoder's own order. transformers' SAM-HQ sorts three of them by predicted IoU; SAM 2
  in evaluation answers another token's mask where token 0 is unstable.
- **A mask alone has no token**, as in the image predictors of segment-anything and SAM 2; transformers' SAM 2 gives it
  two that say "not a point".
- **SAM-HQ's masks are the published decoder's.** transformers (4.57, 5.23) forms them from what goes into the
  two-way transformer, rows and columns swapped, in place of what comes out of it; its scores are not touched by that.
- **SAM 3's tracker** gets the embedding of "no memory" on the features that the decoder reads; transformers' image
  model (5.23) adds it to a level that it drops.
- **Masks of the SAM 2 family** go to the image's size in SAM's two steps, to the model's frame and from there;
  `post_process_masks` takes one step. About 1 % of the pixels differ by that (small random models, a scene of
  300 × 230).
- **Layer norms** of SAM's and SAM-HQ's two-way transformer have segment-anything's epsilon, 1e-5, not 1e-6.

Known answers: `uv run pytest -n 0 -m network tests/segmenters/test_known_answers.py` runs published checkpoints of
SAM, SAM-HQ, SAM 2 and EdgeTAM against the numbers that transformers' own tests assert. It needs a network, and has not
been run where this was written.
"""
