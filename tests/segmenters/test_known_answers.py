"""Published checkpoints through our adapters against the numbers that transformers' own test-suite asserts.

    uv run pytest -n 0 -m network tests/segmenters/test_known_answers.py

The numbers are facts of huggingface/transformers, carried over with the tolerances that they have there: SAM of
tests/models/sam/test_modeling_sam.py (032b32a), SAM-HQ of tests/models/sam_hq/test_modeling_sam_hq.py (the later
version, with syscv-community/sam-hq-vit-base), SAM 2 of tests/models/sam2/test_modeling_sam2.py (01841b3), EdgeTAM of
tests/models/edgetam/test_modeling_edgetam.py (06053b8). Left out: answers to no prompt at all, which we refuse, and to
prompts that its processors pad to the length of their neighbours, which changes them.

Nothing here has run on the machine where it was written, which has no network.
"""

from __future__ import annotations

import io
import urllib.request
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from arrcoc_sam.candidates import MaskCandidates
from arrcoc_sam.prompts import Prompts
from arrcoc_sam.segmenters import load_segmenter
from arrcoc_sam.segmenters.hf.segmenter import HuggingFaceSegmenter

pytestmark = [pytest.mark.network, pytest.mark.timeout(1800)]

_HUB = "https://huggingface.co"
IMAGES = {
    "car": f"{_HUB}/ybelkada/segment-anything/resolve/main/assets/car.png",
    "dog": f"{_HUB}/datasets/huggingface/documentation-images/resolve/main/transformers/model_doc/dog-sam.png",
    "truck": f"{_HUB}/datasets/hf-internal-testing/sam2-fixtures/resolve/main/truck.jpg",
    "groceries": f"{_HUB}/datasets/hf-internal-testing/sam2-fixtures/resolve/main/groceries.jpg",
}
SAM, SAM_HQ = "hf:facebook/sam-vit-base", "hf:syscv-community/sam-hq-vit-base"
SAM2, EDGETAM = "hf:facebook/sam2.1-hiera-tiny", "hf:yonigozlan/EdgeTAM-hf"


@cache
def photograph(name: str) -> np.ndarray:
    with urllib.request.urlopen(IMAGES[name], timeout=60) as answer:
        return np.asarray(Image.open(io.BytesIO(answer.read())).convert("RGB"))


@cache
def segmenter_of(name: str) -> HuggingFaceSegmenter:
    segmenter = load_segmenter(name, device="cpu")
    assert isinstance(segmenter, HuggingFaceSegmenter)
    return segmenter


@cache
def embedding_of(name: str, image: str) -> Any:
    with torch.no_grad():
        return segmenter_of(name).encode(photograph(image))


@torch.no_grad()
def answers(name: str, image: str, prompts: Prompts) -> MaskCandidates:
    return segmenter_of(name).decode(embedding_of(name, image), prompts, multimask="all")


def single(cand: MaskCandidates) -> tuple[float, Tensor]:
    """Score and logits as SAM 2 answers for a single mask: token 0, or the best other one where that is unstable."""
    logits = cand.logits[0, 0]
    stability = (logits > 0.05).sum() / (logits > -0.05).sum()
    token = 0 if stability >= 0.98 else 1 + int(cand.predicted_iou[0, 1:].argmax())
    return float(cand.predicted_iou[0, token]), cand.logits[0, token]


def click(*points: tuple[float, float], labels: list[int] | None = None, box: Any = None, mask: Any = None) -> Prompts:
    return Prompts([list(points)], None if labels is None else [labels], None if box is None else [box], mask)


# --- SAM --------------------------------------------------------------------------------------------------------------

CAR, WINDOW = [75.0, 275, 1725, 850], [620.0, 900, 1000, 1255]


@pytest.mark.parametrize(
    ("prompts", "expected", "tolerance"),
    [
        (click((820, 1080)), [0.6765, 0.9379, 0.8803], 1e-3),
        (click((510, 1080)), [0.3317, 0.7264, 0.7646], 1e-3),
        (click((400, 650)), [0.9105, 0.9825, 0.9675], 1e-4),
        (click((220, 470)), [0.7646, 0.7943, 0.7774], 1e-4),
        (Prompts(boxes_xyxy=[WINDOW]), [0.9773, 0.9881, 0.9522], 1e-4),
        (Prompts(boxes_xyxy=[CAR]), [0.5996, 0.7661, 0.7937], 1e-4),
        (click((400, 650), (800, 650)), [None, None, 0.9762], 1e-4),
        (click((820, 1080), labels=[0], box=WINDOW), [None, None, 0.7894], 1e-4),
        (click((820, 1080), box=[650, 900, 1000, 1250]), [None, None, 0.9566], 2e-4),
    ],
)
def test_sam_scores(prompts, expected, tolerance):
    came = answers(SAM, "car", prompts).predicted_iou[0, 1:].tolist()
    for value, known in zip(came, expected, strict=True):
        assert known is None or value == pytest.approx(known, abs=tolerance, rel=tolerance)


def test_sam_corners():
    cand = answers(SAM, "car", click((820, 1080), box=[650, 900, 1000, 1250]))
    expected = torch.tensor([-12.7729, -12.3665, -12.6061])
    torch.testing.assert_close(cand.logits[0, 1, 0, :3], expected, atol=2e-4, rtol=2e-4)
    cand = answers(SAM, "car", click((820, 1080)))
    expected = torch.tensor([-2.8550, -2.7988, -2.9625])
    torch.testing.assert_close(cand.logits[0, 1, 0, :3], expected, atol=1e-3, rtol=1e-3)


# --- SAM-HQ -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompts", "expected", "tolerance"),
    [
        (click((820, 1080)), [0.9195, 0.8316, 0.6614], 1e-3),
        (click((510, 1080)), [0.7598, 0.7388, 0.3110], 1e-3),
        (click((400, 650)), [0.9889, 0.9508, 0.9137], 1e-3),
        (click((220, 470)), [0.8070, 0.7934, 0.7932], 1e-3),
        (Prompts(boxes_xyxy=[WINDOW]), [0.9850, 0.9730, 0.9726], 1e-4),
        (Prompts(boxes_xyxy=[CAR]), [0.8891, 0.8017, 0.6265], 1e-4),
        (click((400, 650), (800, 650)), [None, None, 0.8859], 1e-3),
        (click((820, 1080), labels=[0], box=WINDOW), [None, None, 0.8680], 1e-3),
        (click((820, 1080), box=[650, 900, 1000, 1250]), [None, None, 0.9700], 2e-4),
    ],
)
def test_sam_hq_scores(prompts, expected, tolerance):
    """There sorted, here by token."""
    came = answers(SAM_HQ, "car", prompts).predicted_iou[0, 1:].sort(descending=True).values.tolist()
    for value, known in zip(came, expected, strict=True):
        assert known is None or value == pytest.approx(known, abs=tolerance, rel=tolerance)


def test_sam_hq_corners_of_its_own_forward():
    """The known masks are of transformers' forward, not of the published decoder: our pixels, its forward."""
    segmenter = segmenter_of(SAM_HQ)
    image = photograph("car")
    transform = segmenter.transform_for((image.shape[0], image.shape[1]))
    pixels = segmenter.pixel_values(segmenter._resize(image, transform))[None]
    scale = torch.tensor(transform.scale_xy, dtype=torch.float64)
    point = (torch.tensor([[[[820.0, 1080]]]], dtype=torch.float64) * scale).float()
    box = (torch.tensor([[[650.0, 900, 1000, 1250]]], dtype=torch.float64) * scale.repeat(2)).float()
    with torch.no_grad():
        out = segmenter.model(pixels, input_points=point, input_boxes=box)
    expected = torch.tensor([-9.2033, -8.5505, -7.1361])
    torch.testing.assert_close(out.pred_masks[0, 0, 0, 0, :3], expected, atol=3e-2, rtol=3e-2)


# --- SAM 2 and EdgeTAM ------------------------------------------------------------------------------------------------

ONE_CLICK = {  # scores of tokens 1-3, sorted; the corner of the best; score and corner of the single mask
    SAM2: (
        [0.9547, 0.4932, 0.0427],
        [[-24.9288, -41.7466, -31.0128], [-34.5113, -31.1054, -36.5913], [-25.2597, -37.5912, -33.4030]],
        0.9364,
        [[-7.0462, -13.3857, -9.6419], [-10.4565, -9.7174, -12.3528], [-7.3704, -12.4391, -10.5539]],
    ),
    EDGETAM: (
        [0.7621, 0.4859, 0.0461],
        [[-19.5483, -22.3549, -26.0962], [-18.1821, -23.4761, -24.2262], [-20.3549, -24.5518, -22.7232]],
        0.7621,
        [[-19.5483, -22.3549, -26.0962], [-18.1821, -23.4761, -24.2262], [-20.3549, -24.5518, -22.7232]],
    ),
}
TWO_CLICKS_ON_THE_DOG = {
    SAM2: (
        [0.9504, 0.8117, 0.7426],
        [[-13.1182, -17.3217, -14.9651], [-16.2372, -12.7739, -17.6346], [-13.5013, -17.1549, -15.6614]],
    ),
    EDGETAM: (
        [0.7225, 0.6515, 0.6350],
        [[-8.8259, -7.7961, -9.3665], [-8.2648, -8.7771, -9.1390], [-9.5951, -8.3995, -9.0599]],
    ),
}
TWO_CLICKS_ON_GROCERIES = {
    SAM2: (0.9114, [[-8.8229, -10.2760], [-11.3797, -8.7189]]),
    EDGETAM: (0.8723, [[-8.5934, -8.4215], [-8.1873, -8.3722]]),
}
BOXES = {
    "truck": [[75, 275, 1725, 850], [425, 600, 700, 875], [1375, 550, 1650, 800], [1240, 675, 1400, 750]],
    "groceries": [[450, 170, 520, 350], [350, 190, 450, 350], [500, 170, 580, 350], [580, 170, 640, 350]],
}
BOX_ANSWERS = {
    (SAM2, "truck"): [
        (0.9904, [[-11.1540, -18.3994], [-12.4230, -17.4403]]),
        (0.9689, [[-19.3144, -29.3947], [-24.6341, -24.1144]]),
        (0.9770, [[-24.2983, -37.6470], [-31.6659, -31.0893]]),
        (0.9079, [[-25.4313, -44.0231], [-34.0903, -34.7447]]),
    ],
    (SAM2, "groceries"): [
        (0.9739, [[-22.5539, -30.4633], [-32.8940, -21.6813]]),
        (0.9816, [[-23.6637, -31.3489], [-32.5095, -22.4442]]),
        (0.9838, [[-25.2987, -30.9999], [-34.6243, -24.1717]]),
        (0.9781, [[-26.3150, -30.5313], [-35.0152, -24.0271]]),
    ],
    (EDGETAM, "truck"): [
        (0.9773, [[-12.6412, -12.0553], [-11.8415, -13.1696]]),
        (0.9415, [[-16.0378, -19.9641], [-15.4939, -19.0260]]),
        (0.9683, [[-18.8254, -23.6185], [-17.7889, -23.2116]]),
        (0.8792, [[-25.7024, -29.8722], [-22.9264, -30.0557]]),
    ],
    (EDGETAM, "groceries"): [
        (0.9721, [[-19.0264, -17.0396], [-16.9458, -16.3287]]),
        (0.9852, [[-20.9671, -19.2132], [-18.5827, -18.0511]]),
        (0.9812, [[-22.4642, -19.7389], [-19.4541, -19.4717]]),
        (0.9760, [[-21.9226, -18.6297], [-18.9272, -18.8151]]),
    ],
}
FED_BACK = {  # a second click with the first answer's logits; label 1, then label 0
    SAM2: [
        (0.9738, [[-5.3899, -9.7908, -8.4931], [-5.5144, -8.8731, -8.3000], [-5.5976, -9.9249, -9.0761]]),
        (0.9719, [[-15.5081, -21.8641, -18.0479], [-17.4401, -17.4754, -23.6469], [-14.3975, -19.4346, -18.5884]]),
    ],
    EDGETAM: [
        (0.9431, [[-4.1968, -4.9034, -6.0680], [-4.4053, -5.1200, -5.8580], [-4.3920, -5.5096, -5.8166]]),
        (0.9695, [[-14.3212, -15.4295, -17.4482], [-13.2246, -15.9468, -17.1341], [-15.1678, -16.4498, -14.7385]]),
    ],
}
CLOSE: dict[str, Any] = {"atol": 1e-4, "rtol": 1e-4}


def assert_three(cand: MaskCandidates, scores: list[float], corner: list[list[float]]) -> None:
    order = cand.predicted_iou[0, 1:].argsort(descending=True)
    torch.testing.assert_close(cand.predicted_iou[0, 1:][order], torch.tensor(scores), **CLOSE)
    torch.testing.assert_close(cand.logits[0, 1:][order[0], :3, :3], torch.tensor(corner), **CLOSE)


def assert_single(cand: MaskCandidates, score: float, corner: list[list[float]]) -> None:
    came, logits = single(cand)
    side = len(corner)
    assert came == pytest.approx(score, abs=1e-4, rel=1e-4)
    torch.testing.assert_close(logits[:side, :side], torch.tensor(corner), **CLOSE)


@pytest.mark.parametrize("name", [SAM2, EDGETAM])
def test_one_click(name):
    cand = answers(name, "truck", click((500, 375)))
    scores, corner, score, single_corner = ONE_CLICK[name]
    assert_three(cand, scores, corner)
    assert_single(cand, score, single_corner)


@pytest.mark.parametrize("name", [SAM2, EDGETAM])
def test_two_clicks(name):
    dog = click((770, 200), (730, 120), labels=[1, 0])
    assert_three(answers(name, "dog", dog), *TWO_CLICKS_ON_THE_DOG[name])
    groceries = click((630, 300), (550, 300), labels=[1, 1])
    assert_single(answers(name, "groceries", groceries), *TWO_CLICKS_ON_GROCERIES[name])


@pytest.mark.parametrize(("name", "image"), list(BOX_ANSWERS))
def test_boxes(name, image):
    cand = answers(name, image, Prompts(boxes_xyxy=torch.tensor(BOXES[image], dtype=torch.float64)))
    for row, (score, corner) in zip(cand, BOX_ANSWERS[name, image], strict=True):
        assert_single(row, score, corner)


@pytest.mark.parametrize("name", [SAM2, EDGETAM])
def test_logits_fed_back(name):
    first = answers(name, "truck", click((500, 375)))
    mask = first.logits[:, 1 + int(first.predicted_iou[0, 1:].argmax())]
    for label, (score, corner) in zip((1, 0), FED_BACK[name], strict=True):
        again = click((500, 375), (1125, 625), labels=[1, label], mask=mask)
        assert_single(answers(name, "truck", again), score, corner)
