from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from arrcoc_sam.errors import EmbeddingMismatchError, InputError, ShapeError, UnknownNameError
from arrcoc_sam.masks import decode_rle, encode_rle, largest_interior_point
from arrcoc_sam.prompts import PROMPT_KINDS, Prompts
from arrcoc_sam.quality import CalibratedQuality, MaskQuality, MaskQualityEstimator, QualityCalibration, jaccard_bounds
from arrcoc_sam.scenes import generate_scene
from arrcoc_sam.segmenters.sam import SamSegmenter
from arrcoc_sam.upscaling import upscale

FIELDS = (
    "quality",
    "lower_bound",
    "upper_bound",
    "predicted_iou",
    "alignment_iou",
    "stability",
    "soft_iou",
    "area_share",
)


def blob(height: int, width: int, top: int, left: int, side: int) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


def noise_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def same(a: MaskQuality, b: MaskQuality, rows: Any = slice(None)) -> None:
    for name in FIELDS:
        torch.testing.assert_close(getattr(a, name)[rows], getattr(b, name), rtol=0, atol=1e-4, equal_nan=True)
    assert a.token_index[rows].tolist() == b.token_index.tolist()


def degraded(mask: np.ndarray, neighbour: np.ndarray, part: np.ndarray, other: np.ndarray) -> dict[str, np.ndarray]:
    """A mask made worse in eight ways."""
    rng = np.random.default_rng(int(mask.sum()))
    rows, columns = np.nonzero(mask)
    middle = len(rows) // 2
    grid_y, grid_x = np.indices(mask.shape)
    hole = (grid_y - rows[middle]) ** 2 + (grid_x - columns[middle]) ** 2 <= max(2.0, 0.05 * len(rows))
    edge = ndimage.binary_dilation(mask, iterations=2) ^ ndimage.binary_erosion(mask, iterations=2)
    return {
        "dilate": ndimage.binary_dilation(mask, iterations=4),
        "erode": ndimage.binary_erosion(mask, iterations=1),
        "shift": np.roll(mask, (5, -7), (0, 1)),
        "hole": mask & ~hole,
        "boundary noise": mask ^ (edge & (rng.random(mask.shape) < 0.5)),
        "merge": mask | neighbour,
        "part for whole": part,
        "pasted": other,
    }


def test_with_the_true_iou_every_truth_lies_inside_the_bounds(oracle_of: Callable[..., Any]) -> None:
    images, truths, externals, index, names = [], [], [], [], []
    scenes = [generate_scene(seed, 96) for seed in (7_000_001, 7_000_002, 7_000_003)]
    for scene, elsewhere in zip(scenes, scenes[1:] + scenes[:1], strict=True):
        wholes = np.flatnonzero(scene.levels == 0)
        for node in range(len(scene)):
            mask = scene.masks[node]
            if mask.sum() < 60:
                continue
            children = np.flatnonzero(scene.parents == node)
            part = scene.masks[children[0]] if len(children) else ndimage.binary_erosion(mask)
            neighbour = scene.masks[wholes[node % len(wholes)]]
            for name, worse in degraded(mask, neighbour, part, elsewhere.masks[0]).items():
                if worse.any():
                    externals.append(worse)
                    index.append(len(truths))
                    names.append(name)
            images.append(scene.image)
            truths.append(mask)
    assert len(set(names)) == 8
    assert len(externals) > 60
    scores = MaskQualityEstimator(oracle_of(truths, noise=1.5)).estimate(images, externals, image_index=index)
    true = np.array([iou(external, truths[image]) for external, image in zip(externals, index, strict=True)])
    lower, upper = scores.lower_bound.double().numpy(), scores.upper_bound.double().numpy()
    assert ((true >= lower - 1e-6) & (true <= upper + 1e-6)).all()
    assert (lower > 0.2).mean() > 0.3  # bounds that say something
    assert (upper - lower).mean() < 0.6
    # a head that is wrong makes bounds that are wrong: the test can fail
    wrong_lower, wrong_upper = jaccard_bounds(scores.alignment_iou, 1 - scores.predicted_iou)
    assert ((true < wrong_lower.numpy()) | (true > wrong_upper.numpy())).any()


@pytest.mark.parametrize("protocol", PROMPT_KINDS)
def test_scores_are_those_of_the_closest_candidate(toy_segmenter: SamSegmenter, protocol: str) -> None:
    image, mask = noise_image(90, 120), blob(90, 120, 20, 30, 40)
    scores = MaskQualityEstimator(toy_segmenter, protocol).estimate(image, mask[None])
    embedding = toy_segmenter.encode(image)
    candidates = toy_segmenter.decode(embedding, Prompts.from_masks(mask[None], toy_segmenter, protocol), "all")
    own = (upscale(candidates.logits, embedding.transforms[0]) > 0)[0].numpy()
    fits = [iou(one, mask) for one in own]
    best = int(np.argmax(fits))
    raw = float(candidates.predicted_iou[0, best])
    predicted = min(max(raw, 0.0), 1.0)
    assert scores.alignment_iou.tolist() == pytest.approx([fits[best]], abs=1e-6)
    assert scores.predicted_iou.tolist() == pytest.approx([predicted], abs=1e-5)
    assert scores.token_index.tolist() == [best]
    assert scores.stability[0].item() == pytest.approx(float(candidates.stability[0, best]), nan_ok=True)
    assert scores.lower_bound.tolist() == pytest.approx([max(0.0, fits[best] + predicted - 1)], abs=1e-5)
    assert scores.upper_bound.tolist() == pytest.approx([1 - abs(fits[best] - predicted)], abs=1e-5)
    assert scores.quality_kind == "bound"
    assert scores.quality.tolist() == scores.lower_bound.tolist()
    assert scores.interval_low.isnan().all()
    assert scores.interval_high.isnan().all()
    assert scores.area_share.tolist() == pytest.approx([mask.mean()])
    assert scores.object_score is None
    [closest] = scores.best_sam_masks
    np.testing.assert_array_equal(closest.numpy(), own[best])


@pytest.mark.parametrize(("multimask", "tokens"), [("all", {0, 1, 2, 3}), (True, {1, 2, 3}), (False, {0})])
def test_only_the_tokens_asked_for_are_compared(toy_segmenter: SamSegmenter, multimask: Any, tokens: set[int]) -> None:
    masks = np.stack([blob(64, 64, top, 5, 20) for top in (2, 15, 30)])
    scores = MaskQualityEstimator(toy_segmenter, multimask=multimask).estimate(noise_image(64, 64), masks)
    assert set(scores.token_index.tolist()) <= tokens


def test_a_batch_over_images_of_several_sizes_equals_one_at_a_time(toy_segmenter: SamSegmenter) -> None:
    images = [noise_image(64, 96, 1), noise_image(80, 50, 2), noise_image(64, 96, 3)]
    index = [2, 1, 0, 0, 1, 2, 2]
    masks = [blob(*images[image].shape[:2], 3 * k + 2, 4 * k + 1, 18) for k, image in enumerate(index)]
    masks[3][:] = False
    estimator = MaskQualityEstimator(toy_segmenter)
    embedding = toy_segmenter.encode(images)
    together = estimator.estimate(embedding, masks, image_index=index)
    same(together, estimator.estimate(images, masks, image_index=np.array(index)))
    for k, image in enumerate(index):
        alone = estimator.estimate(embedding[image], masks[k][None])
        same(together, alone, slice(k, k + 1))
        assert torch.equal(together.best_sam_masks[k], alone.best_sam_masks[0])
        assert together.best_sam_masks[k].shape == masks[k].shape


def test_chunks_do_not_change_the_scores(toy_segmenter: SamSegmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    masks = np.stack([blob(64, 64, 3 * k, 2 * k, 10 + k) for k in range(9)])
    image = noise_image(64, 64)
    real, decoded = toy_segmenter.decode, []

    def decode(embedding: Any, prompts: Any, multimask: Any = True) -> Any:
        decoded.append(len(prompts))
        return real(embedding, prompts, multimask)

    monkeypatch.setattr(toy_segmenter, "decode", decode)
    whole = MaskQualityEstimator(toy_segmenter).estimate(image, masks)
    assert decoded == [9]
    monkeypatch.setattr("arrcoc_sam.quality.estimator._CHUNK_MASKS", 2)
    same(whole, MaskQualityEstimator(toy_segmenter).estimate(image, masks))
    assert decoded == [9, 2, 2, 2, 2, 1]


def test_empty_and_full_masks(oracle_of: Callable[..., Any]) -> None:
    segmenter = oracle_of([np.ones((40, 60), dtype=bool)], noise=0.0)
    masks = np.stack([np.zeros((40, 60), bool), np.ones((40, 60), bool)])
    scores = MaskQualityEstimator(segmenter).estimate(noise_image(40, 60), masks)
    assert segmenter.asked == 1  # not about the empty one
    assert scores.quality.tolist() == scores.lower_bound.tolist() == [0.0, 1.0]
    assert scores.upper_bound.tolist() == [0.0, 1.0]
    assert scores.alignment_iou.tolist() == [0.0, 1.0]
    assert scores.predicted_iou.isnan().tolist() == [True, False]
    assert scores.stability.isnan().tolist() == [True, False]
    assert scores.token_index.tolist()[0] == -1
    assert scores.area_share.tolist() == [0.0, 1.0]
    assert [int(mask.sum()) for mask in scores.best_sam_masks] == [0, 2400]


def test_components_are_scored_apart_and_the_worst_stands_for_all(oracle_of: Callable[..., Any]) -> None:
    good, bad, speck = blob(64, 96, 8, 8, 30), blob(64, 96, 40, 70, 16), blob(64, 96, 60, 2, 2)
    segmenter = oracle_of([good], noise=0.0)
    whole = MaskQualityEstimator(segmenter).estimate(noise_image(64, 96), (good | bad)[None])
    apart = MaskQualityEstimator(segmenter, components=True).estimate(
        noise_image(64, 96), np.stack([good | bad | speck, good])
    )
    assert whole.num_components.tolist() == [1]
    assert apart.num_components.tolist() == [2, 1]  # the speck is under a hundredth
    assert whole.lower_bound[0] > 0.6
    assert apart.lower_bound[0] == 0.0
    assert apart.alignment_iou[0] == 0.0
    assert apart.lower_bound[1] > 0.9
    assert apart.area_share.tolist() == pytest.approx([(good | bad | speck).mean(), good.mean()])


def test_the_object_score_of_models_that_have_one(toy_segmenter: SamSegmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = toy_segmenter.decode

    def seen(*arguments: Any) -> Any:
        candidates = decode(*arguments)
        return replace(candidates, object_score=torch.arange(1.0, len(candidates) + 1))

    monkeypatch.setattr(toy_segmenter, "decode", seen)
    masks = np.stack([blob(64, 64, 5, 5, 20), np.zeros((64, 64), bool), blob(64, 64, 20, 20, 30)])
    scores = MaskQualityEstimator(toy_segmenter).estimate(noise_image(64, 64), masks)
    assert scores.object_score is not None
    torch.testing.assert_close(scores.object_score, torch.tensor([1.0, torch.nan, 2.0]), equal_nan=True)
    assert "object_score" in scores.to_frame()


def test_soft_masks_are_cut_by_the_threshold(toy_segmenter: SamSegmenter) -> None:
    mask = blob(64, 64, 10, 12, 30)
    soft = ndimage.gaussian_filter(mask.astype(np.float32), 2.0)
    image = noise_image(64, 64)
    hard = MaskQualityEstimator(toy_segmenter).estimate(image, (soft > 0.5)[None])
    same(MaskQualityEstimator(toy_segmenter, threshold=0.5).estimate(image, [soft]), hard)
    attention = soft / soft.sum()
    by_otsu = MaskQualityEstimator(toy_segmenter, threshold="otsu").estimate(image, attention[None])
    assert by_otsu.area_share.item() == pytest.approx(mask.mean(), rel=0.1)
    with pytest.raises(InputError, match='"otsu", "mean", "mass"'):
        MaskQualityEstimator(toy_segmenter).estimate(image, soft[None])


def test_images_come_as_files_and_pictures(toy_segmenter: SamSegmenter, tmp_path: Any) -> None:
    image, mask = noise_image(50, 64), blob(50, 64, 5, 6, 25)
    Image.fromarray(image).save(tmp_path / "image.png")
    estimator = MaskQualityEstimator(toy_segmenter, keep_masks=False)
    scores = estimator.estimate(str(tmp_path / "image.png"), torch.from_numpy(mask)[None])
    same(scores, estimator.estimate(Image.fromarray(image), mask[None]))
    assert len(scores.best_sam_masks) == 0
    frame = scores.to_frame()
    assert len(frame) == len(scores) == 1
    assert {"quality", "quality_kind", "token_index", "area_share", "interval_low"} <= set(frame.columns)
    assert "object_score" not in frame.columns


def test_best_sam_masks_are_a_sequence(toy_segmenter: SamSegmenter) -> None:
    masks = np.stack([blob(64, 64, 3 * k, 2 * k, 20) for k in range(3)])
    best = MaskQualityEstimator(toy_segmenter).estimate(noise_image(64, 64), masks).best_sam_masks
    assert len(best) == 3
    assert torch.equal(best[1:][0], best[1])
    assert torch.equal(decode_rle(best.rles[2]), list(best)[2])


# --- calibration ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Halved:
    """An estimate that is easy to tell from the bound."""

    checkpoint_hash: str
    protocol: str = "mask+point"
    multimask: Any = "all"
    components: bool = False

    def apply(self, bounds: MaskQuality) -> CalibratedQuality:
        assert bounds.quality_kind == "bound"
        half = bounds.upper_bound / 2
        return CalibratedQuality(half, half - 0.1, half + 0.1)


def test_a_calibration_takes_the_place_of_the_bound(toy_segmenter: SamSegmenter) -> None:
    calibration = Halved(toy_segmenter.checkpoint_hash)
    assert isinstance(calibration, QualityCalibration)
    image, mask = noise_image(64, 64), blob(64, 64, 10, 10, 30)[None]
    bounds = MaskQualityEstimator(toy_segmenter).estimate(image, mask)
    scores = MaskQualityEstimator(toy_segmenter, calibration=calibration).estimate(image, mask)
    assert scores.quality_kind == "calibrated"
    torch.testing.assert_close(scores.quality, bounds.upper_bound / 2)
    torch.testing.assert_close(scores.interval_high - scores.interval_low, torch.tensor([0.2]))
    torch.testing.assert_close(scores.lower_bound, bounds.lower_bound)


@pytest.mark.usefixtures("as_at_run_time")
def test_a_calibration_of_something_else_is_refused(toy_segmenter: SamSegmenter) -> None:
    ours = toy_segmenter.checkpoint_hash
    wrong: dict[str, Any] = {
        "checkpoint_hash": Halved("another"),
        "protocol": Halved(ours, protocol="box"),
        "multimask": Halved(ours, multimask=False),
        "components": Halved(ours, components=True),
        "a calibration with apply": SimpleNamespace(protocol="mask+point"),
    }
    for words, calibration in wrong.items():
        with pytest.raises(InputError, match=words):
            MaskQualityEstimator(toy_segmenter, calibration=calibration)


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("as_at_run_time")
def test_bad_input_is_refused_before_any_work(toy_segmenter: SamSegmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    image, mask = noise_image(64, 96), blob(64, 96, 10, 10, 30)
    embedding = toy_segmenter.encode([image, image])
    monkeypatch.setattr(toy_segmenter, "_encode", None)
    monkeypatch.setattr(toy_segmenter, "_decode", None)
    estimate = MaskQualityEstimator(toy_segmenter).estimate
    with pytest.raises(ShapeError, match=r"64 rows and 90 columns.*has 64 and 96"):
        estimate(image, mask[None, :, :90])
    with pytest.raises(ShapeError, match="transpose it"):
        estimate(image, [mask.T])
    with pytest.raises(ShapeError, match="at least one mask"):
        estimate(image, [])
    with pytest.raises(ShapeError, match=r"\(K, H, W\).*Mend: masks\[None\]"):
        estimate(image, mask)
    with pytest.raises(ShapeError, match=r"without the channel axis: masks\[:, 0\]"):
        estimate(image, mask[None, None])
    with pytest.raises(ShapeError, match=r"masks\[0\]"):
        estimate(image, [mask[None]])
    with pytest.raises(InputError, match=r"uint8 array.*; expected bool masks of shape"):
        estimate(image, mask[None].astype(np.uint8))
    with pytest.raises(InputError, match=r"a map of labels: masks == labels\[:, None, None\]"):
        estimate(image, mask.astype(np.int32) * 3)
    with pytest.raises(InputError, match=r"draw the run lengths: arrcoc_sam\.masks\.decode_rle\(masks\[0\]\)"):
        estimate(image, [encode_rle(mask)])
    with pytest.raises(InputError, match=r'masks\[0\] is dict [^\n]*Mend: masks\[0\]\["segmentation"\]'):
        estimate(image, [{"segmentation": np.asarray(mask)}])
    with pytest.raises(InputError, match="no images"):
        estimate([], mask[None])
    with pytest.raises(InputError, match="image_index=None with 2 images"):
        estimate(embedding, mask[None])
    with pytest.raises(InputError, match="image_index 2 with 2 images"):
        estimate(embedding, mask[None], image_index=[2])
    with pytest.raises(ShapeError, match=r"\(1,\), one number a prompt"):
        estimate(embedding, mask[None], image_index=[0, 1])
    with pytest.raises(InputError, match=r"segmenter is None; expected a segmenter.*make one with load_segmenter"):
        MaskQualityEstimator(None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"segmenter is 'tiny'.*load_segmenter\('tiny'\)"):
        MaskQualityEstimator("tiny")
    with pytest.raises(UnknownNameError, match="protocol='poly'"):
        MaskQualityEstimator(toy_segmenter, "poly")
    with pytest.raises(InputError, match="multimask='some'"):
        MaskQualityEstimator(toy_segmenter, multimask="some")
    with pytest.raises(UnknownNameError, match="threshold='half'"):
        MaskQualityEstimator(toy_segmenter, threshold="half")


def test_another_segmenters_embedding_is_refused(toy_segmenter: SamSegmenter, toy_sam_of: Callable[..., Any]) -> None:
    other = SamSegmenter(toy_sam_of(1), name="other")
    with pytest.raises(EmbeddingMismatchError):
        MaskQualityEstimator(toy_segmenter).estimate(other.encode(noise_image(64, 64)), blob(64, 64, 5, 5, 30)[None])


def test_the_point_of_the_protocol_lies_inside() -> None:
    """A ring's centre of mass is outside; its innermost point is not."""
    ring = blob(64, 64, 5, 5, 50) & ~blob(64, 64, 15, 15, 30)
    x, y = largest_interior_point(ring).long().tolist()
    assert ring[y, x]
