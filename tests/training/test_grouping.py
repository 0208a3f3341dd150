"""Dense training: masks read off the embedding, and everything that a click may mean."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from arrcoc_sam.errors import InputError
from arrcoc_sam.losses import functional as LF
from arrcoc_sam.scenes import generate_scene
from arrcoc_sam.segmenters.tiny import build_tiny
from arrcoc_sam.training.batches import BatchPlan, PromptBatch, draw_batch
from arrcoc_sam.training.grouping import read_masks
from arrcoc_sam.training.interactive import InteractiveModel, interactive_loss, num_targets
from arrcoc_sam.training.meaning import what_is_meant
from arrcoc_sam.training.recipe import ClickRecipe
from arrcoc_sam.training.segmenter import SegmenterTraining, Stage, train_segmenter
from arrcoc_sam.training.settings import Validation
from arrcoc_sam.training.sources import SceneSource

GROUPING = ClickRecipe(num_rounds=1, box_probability=0.0, supervise_meant=True, transformer=False)


@pytest.fixture(scope="module")
def batch() -> PromptBatch:
    source = SceneSource([generate_scene(seed, 96) for seed in range(3)])
    plan = BatchPlan(image_size=64, mask_size=32, num_targets=4, num_clicks=2, with_meant=True)
    return draw_batch(source, plan, seed=0, step=0, places=range(3))


def test_masks_come_from_the_token_under_the_click() -> None:
    """Where the embedding is constant over each half, so is every mask; and the half that is clicked decides."""
    torch.manual_seed(0)
    decoder = build_tiny(64).mask_decoder
    embedding = torch.randn(1, 128, 8, 1).expand(-1, -1, -1, 8).clone()
    embedding[..., 4:] = torch.randn(1, 128, 8, 1)
    clicks = torch.tensor([[10.0, 20.0], [10.0, 20.0], [50.0, 20.0]])
    masks = read_masks(decoder, embedding, torch.zeros(3, dtype=torch.int64), clicks, 64.0)
    assert masks.shape == (3, 3, 32, 32)
    torch.testing.assert_close(masks[0], masks[1])
    assert not torch.allclose(masks[0], masks[2])


def test_clicks_find_their_own_image() -> None:
    torch.manual_seed(0)
    decoder, embeddings = build_tiny(64).mask_decoder, torch.randn(3, 128, 8, 8)
    clicks = torch.tensor([[10.0, 20.0], [40.0, 3.0], [63.0, 63.0]])
    index = torch.tensor([0, 2, 2])  # the second image has none
    together = read_masks(decoder, embeddings, index, clicks, 64.0)
    for row in range(3):
        alone = read_masks(decoder, embeddings[index[row], None], torch.tensor([0]), clicks[row, None], 64.0)
        torch.testing.assert_close(together[row, None], alone)


def test_only_encoder_upscaling_and_hypernetworks_learn(batch: PromptBatch) -> None:
    model = build_tiny(64).train()
    loss, figures = InteractiveModel(model, GROUPING, autocast=False)(batch, torch.full((2,), float(len(batch))))
    loss.backward()
    learned = {name for name, value in model.named_parameters() if value.grad is not None}
    assert any(name.startswith("image_encoder") for name in learned)
    assert not any("transformer" in name or "iou" in name or "prompt_encoder" in name for name in learned)
    assert not any("hypernetworks_mlps.0" in name for name in learned)
    assert set(figures) == {"mask_loss", "iou_loss", "oracle_iou", "final_iou"}


def test_without_the_meant_masks_it_is_the_minimum_over_masks(batch: PromptBatch) -> None:
    torch.manual_seed(0)
    model = build_tiny(64)
    recipe = replace(GROUPING, supervise_meant=False)
    loss, _ = InteractiveModel(model, recipe, autocast=False)(batch, torch.full((2,), float(len(batch))))
    embeddings = model.image_encoder(model.preprocess(batch.images))
    logits = read_masks(model.mask_decoder, embeddings, batch.image_index, batch.points_xy, 64.0)
    expected, _ = LF.min_over_masks_loss(
        logits.masked_fill(~batch.valid[batch.image_index][:, None], -10.0), batch.targets
    )
    torch.testing.assert_close(loss, expected.mean())


def test_a_click_means_the_masks_that_it_lies_in(batch: PromptBatch) -> None:
    rows = torch.arange(len(batch))
    meant = what_is_meant(batch, rows, torch.zeros(len(batch), dtype=torch.bool))
    torch.testing.assert_close(meant.chance.sum(dim=1), torch.ones(len(batch)))
    areas = meant.masks.flatten(2).sum(dim=2).float()
    for area, chance in zip(areas, meant.chance, strict=True):
        there = chance > 0
        assert (area[there].diff() >= 0).all(), "the smallest is the most probable"
        torch.testing.assert_close(chance[there], (1 / area[there]) / (1 / area[there]).sum(), rtol=0.25, atol=0.02)


def test_a_box_says_what_is_meant(batch: PromptBatch) -> None:
    rows = torch.arange(len(batch))
    boxed = rows % 2 == 0
    meant = what_is_meant(batch, rows, boxed)
    assert (meant.chance[boxed, 0] == 1).all()
    assert (meant.chance[boxed, 1:] == 0).all()
    assert torch.equal(meant.masks[boxed, 0], batch.targets[boxed] > 0.5)


def test_every_meant_mask_is_learned_at_the_first_click(batch: PromptBatch) -> None:
    """As many masks of the first round have a gradient as the click may mean; by SAM's rule it is one."""
    count = len(batch)
    assert batch.meant_chance is not None

    def learned(**options: Any) -> torch.Tensor:
        logits = torch.randn(count, 4, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()

        def decode(*given: Any) -> tuple[torch.Tensor, torch.Tensor]:
            return logits[:, given[-1]], torch.zeros(count, len(given[-1]))

        recipe = ClickRecipe(num_rounds=1, box_probability=0.0, **options)
        interactive_loss(build_tiny(64), torch.zeros(3, 128, 8, 8), batch, recipe, decode=decode)[0].backward()
        assert logits.grad is not None
        return (logits.grad.flatten(2).abs().sum(dim=2) > 0).sum(dim=1)

    assert learned().tolist() == [1] * count
    meant = (batch.meant_chance > 0).sum(dim=1)
    assert learned(supervise_meant=True).tolist() == meant.clamp(max=3).tolist()
    assert meant.max() > 1


def test_batches_that_do_not_tell(batch: PromptBatch) -> None:
    with pytest.raises(InputError, match="with_meant"):
        what_is_meant(replace(batch, meant=None), torch.tensor([0]), torch.zeros(1, dtype=torch.bool))


@pytest.mark.parametrize(
    "options",
    [
        {"num_rounds": 3},
        {"box_probability": 0.2, "num_rounds": 1},
        {"given_mask_probability": 0.2, "num_rounds": 1},
    ],
)
def test_nothing_but_one_click(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="nothing but one click"):
        ClickRecipe(**{"transformer": False, "box_probability": 0.0, **options})


def test_no_validation_of_half_a_decoder() -> None:
    with pytest.raises(InputError, match="whole decoder"):
        SegmenterTraining(stages=(Stage(64, 1),), recipe=GROUPING, validation=Validation(every=10))


def test_it_learns(tmp_path: Any) -> None:
    scenes = [generate_scene(seed, 96) for seed in range(4)]
    config = SegmenterTraining(
        stages=(Stage(64, 50, num_images=4),), recipe=GROUPING, learning_rate=2e-3, warmup_steps=5, ema_decay=0.0
    )
    seen: list[dict[str, float]] = []
    train_segmenter(config, scenes, tmp_path, device="cpu", log_every=1, progress=lambda _, row: seen.append(row))
    first, last = (sum(row["loss"] for row in rows) / 5 for rows in (seen[5:10], seen[-5:]))
    assert last < first - 0.05, "once the masks are empty, which they are after a few steps, it is shapes that lower it"


def test_beside_the_decoder(batch: PromptBatch) -> None:
    """The dense loss is added by its weight."""
    torch.manual_seed(0)
    model, count = build_tiny(64), torch.full((2,), float(len(batch)))
    recipe = ClickRecipe(num_rounds=2, supervise_meant=True)
    alone, _ = InteractiveModel(model, recipe, autocast=False)(batch, count)
    dense, _ = InteractiveModel(model, GROUPING, autocast=False)(batch, count)
    both, figures = InteractiveModel(model, replace(recipe, grouping_weight=0.5), autocast=False)(batch, count)
    torch.testing.assert_close(both, alone + 0.5 * dense)
    torch.testing.assert_close(figures["grouping_loss"], dense.detach())


def test_the_decoder_sees_some_of_the_targets(batch: PromptBatch) -> None:
    """The first one of each image goes through the decoder, and its loss is a mean over those."""
    torch.manual_seed(0)
    model, recipe = build_tiny(64), ClickRecipe(num_rounds=2, grouping_weight=0.5, supervise_meant=True)
    some = replace(recipe, decoded_targets=1)
    assert len(batch) > 3
    assert num_targets(batch, recipe) == (len(batch), len(batch))
    assert num_targets(batch, some) == (len(batch), 3)
    first = batch.first_of_each(1)
    assert first.image_index.tolist() == [0, 1, 2]
    torch.testing.assert_close(first.points_xy[1], batch.points_xy[batch.image_index == 1][0])

    def loss_of(asked: ClickRecipe, given: PromptBatch) -> torch.Tensor:
        normalizers = torch.tensor(num_targets(given, asked), dtype=torch.float32)
        found, _ = InteractiveModel(model, asked, autocast=False)(given, normalizers)
        return found.detach()

    dense, decoded = loss_of(GROUPING, batch), loss_of(replace(recipe, grouping_weight=0.0), first)
    torch.testing.assert_close(loss_of(some, batch), decoded + 0.5 * dense)
    with pytest.raises(InputError, match="decoded_targets"):
        replace(GROUPING, decoded_targets=1)
    with pytest.raises(InputError, match="decoded_targets"):
        replace(recipe, decoded_targets=0)
