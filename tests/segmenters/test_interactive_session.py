"""Interactive sessions against plain decoding with the same prompts; what is saved and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

import arrcoc_sam as aa
from arrcoc_sam.errors import DataError, EmbeddingMismatchError, InputError, OutputError
from arrcoc_sam.prompts import Prompts
from arrcoc_sam.segmenters.prompt_answers import answer_prompts, is_ambiguous
from arrcoc_sam.segmenters.sam import SamSegmenter

Picture = Callable[[int, int, int], np.ndarray]


@pytest.fixture
def session(segmenter: SamSegmenter, picture: Picture) -> aa.InteractiveSession:
    return aa.InteractiveSession(segmenter, picture(60, 80, 0))


def test_each_step_is_what_decoding_by_hand_gives(session: aa.InteractiveSession, segmenter: SamSegmenter) -> None:
    first = session.click(20, 30)
    by_hand = segmenter.decode(session.embedding, Prompts(points_xy=[[[20, 30]]]), "all")
    torch.testing.assert_close(first.decoded.logits, by_hand.logits)
    assert first.candidates.token_index.tolist() == [1, 2, 3]
    assert first.token == 1 + int(by_hand.predicted_iou[0, 1:].argmax())
    assert first.mask.shape == (60, 80)
    assert torch.equal(first.mask, by_hand.masks()[0, first.token])
    assert first.predicted_iou == float(by_hand.predicted_iou[0, first.token])

    second = session.click(50, 10, label=0)
    prompts = Prompts([[[20, 30], [50, 10]]], [[1, 0]], mask_logits=by_hand.logits[:, first.token])
    by_hand = segmenter.decode(session.embedding, prompts, "all")
    torch.testing.assert_close(second.decoded.logits, by_hand.logits)
    assert second.candidates.token_index.tolist() == [0]
    assert torch.equal(second.mask, by_hand.masks()[0, 0])
    assert torch.equal(second.levels.masks, by_hand.hierarchy().masks)

    third = session.box(5, 5, 60, 50)
    fourth = session.refine()
    prompts = Prompts([[[20, 30], [50, 10]]], [[1, 0]], [[5, 5, 60, 50]], third.logits[None])
    torch.testing.assert_close(fourth.decoded.logits, segmenter.decode(session.embedding, prompts, "all").logits)
    assert [step.action for step in session.steps] == ["prompt", "prompt", "prompt", "refine"]


def test_undo_and_reset(session: aa.InteractiveSession) -> None:
    first = session.click(20, 30)
    second = session.click(50, 10, label=0)
    session.refine(2)
    assert len(session) == 4
    assert session.undo()
    assert session.undo()
    assert session.step is second
    again = session.refine()
    session.undo()
    assert torch.equal(session.refine().mask, again.mask)
    session.reset()
    assert len(session) == 0
    assert not session.undo()
    assert torch.equal(session.click(20, 30).decoded.logits, first.decoded.logits)


def test_another_mask_can_be_chosen_and_is_fed_back(session: aa.InteractiveSession) -> None:
    best = session.click(20, 30).token
    other = 1 + best % 3
    expected = session.step.decoded.logits[0, other]
    assert torch.equal(session.choose(other).logits, expected)
    refined = session.refine().decoded.logits
    session.undo()
    session.undo()
    assert session.step.token == best
    assert not torch.equal(session.refine().decoded.logits, refined)
    with pytest.raises(InputError, match="one mask"):
        session.choose(1)


def test_a_saved_session_goes_on_where_it_was(session: aa.InteractiveSession, picture: Picture, tmp_path: Path) -> None:
    session.prompt([(20, 30), (40, 20)], [1, 0], (5, 5, 60, 50))
    session.choose(2)
    session.refine()
    path = session.save(tmp_path / "sessions" / "a.safetensors")
    assert [file.name for file in path.parent.iterdir()] == ["a.safetensors"]
    again = aa.InteractiveSession.load(path, session.segmenter, picture(60, 80, 0))
    assert len(again) == 3
    for one, other in zip(session.steps, again.steps, strict=True):
        for name in ("action", "points_xy", "labels", "box_xyxy", "token", "ambiguous"):
            assert getattr(one, name) == getattr(other, name)
        assert torch.equal(one.mask, other.mask)
        assert torch.equal(one.decoded.logits, other.decoded.logits)
    assert torch.equal(session.click(30, 30).decoded.logits, again.click(30, 30).decoded.logits)


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_a_session_prompted_by_arrays_can_be_saved(
    kind: Any, session: aa.InteractiveSession, picture: Picture, tmp_path: Path, as_at_run_time: None
) -> None:
    session.prompt(kind([[20, 30], [40, 20]]), kind([1, 0]), kind([5, 5, 60, 50]))
    session.choose(session.step.levels.token_index[0, 1])
    session.click(30, 30, kind(1))
    assert session.step.labels == (1, 0, 1)
    assert all(type(label) is int for label in session.step.labels)
    again = aa.InteractiveSession.load(session.save(tmp_path / "a"), session.segmenter, picture(60, 80, 0))
    assert [step.points_xy for step in again.steps] == [step.points_xy for step in session.steps]
    assert again.steps[1].token == session.steps[1].token


def test_an_empty_session_can_be_saved(session: aa.InteractiveSession, picture: Picture, tmp_path: Path) -> None:
    path = session.save(tmp_path / "empty")
    assert len(aa.InteractiveSession.load(path, session.segmenter, picture(60, 80, 0))) == 0


@pytest.mark.parametrize(
    ("place", "key", "value"),
    [
        ("state", "checkpoint_hash", None),
        ("state", "image_hash", None),
        ("state", "size_hw", None),
        ("state", "steps", None),
        ("step", "token", None),
        ("step", "token", 9),
        ("step", "labels", [1, 0]),
        ("step", "labels", [7]),
        ("step", "points_xy", []),
        ("step", "box_xyxy", [1, 2, 3]),
    ],
)
def test_damaged_sessions(
    session: aa.InteractiveSession, picture: Picture, tmp_path: Path, place: str, key: str, value: object
) -> None:
    session.click(20, 30)
    path = session.save(tmp_path / "a.safetensors")
    with safe_open(path, framework="pt") as file:
        state = json.loads(file.metadata()["state"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    damaged = state if place == "state" else state["steps"][0]
    if value is None:
        del damaged[key]
    else:
        damaged[key] = value
    save_file(tensors, path, metadata={"state": json.dumps(state)})
    with pytest.raises(DataError, match="is no session, or a damaged one"):
        aa.InteractiveSession.load(path, session.segmenter, picture(60, 80, 0))


def test_what_can_t_be_loaded_or_saved(
    session: aa.InteractiveSession, small_sam_of: Callable[..., object], picture: Picture, tmp_path: Path
) -> None:
    session.click(20, 30)
    path = session.save(tmp_path / "a.safetensors")
    image = picture(60, 80, 0)
    with pytest.raises(EmbeddingMismatchError, match="load the segmenter"):
        aa.InteractiveSession.load(path, SamSegmenter(small_sam_of(1), name="other"), image)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="another image"):
        aa.InteractiveSession.load(path, session.segmenter, picture(60, 80, 1))
    with pytest.raises(DataError, match="no file"):
        aa.InteractiveSession.load(tmp_path / "b", session.segmenter, image)
    (tmp_path / "b").write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="no session"):
        aa.InteractiveSession.load(tmp_path / "b", session.segmenter, image)
    with pytest.raises(OutputError, match="can't be written"):
        session.save(path / "c")


def test_a_full_disk_leaves_the_last_session(
    session: aa.InteractiveSession, picture: Picture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.click(20, 30)
    path = session.save(tmp_path / "a.safetensors")
    session.click(30, 30)

    def full(tensors: object, where: Path, metadata: object) -> None:
        where.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("arrcoc_sam.segmenters.interactive_file.save_file", full)
    with pytest.raises(OutputError, match=r"a\.safetensors can't be written .*No space left.*free some"):
        session.save(path)
    assert list(tmp_path.iterdir()) == [path]
    assert len(aa.InteractiveSession.load(path, session.segmenter, picture(60, 80, 0))) == 1


def test_a_refused_step_leaves_the_session_as_it_was(session: aa.InteractiveSession, as_at_run_time: None) -> None:
    for call in (session.refine, lambda: session.step, lambda: session.choose(1)):
        with pytest.raises(InputError, match="a click or a box first"):
            call()
    session.click(20, 30)
    refused: list[tuple[Callable[[], object], str]] = [
        (lambda: session.click(80, 30), "outside image 0"),
        (lambda: session.click(5, 5, label=2), "1 or 0 for each"),
        (lambda: session.box(30, 30, 10, 40), "box"),
        (lambda: session.prompt(), "a step without"),
        (lambda: session.prompt([(1, 2)], [1, 0]), "of 1 points"),
        (lambda: session.refine(0), "rounds=0"),
        (lambda: session.refine("a"), "rounds='a'"),
        (lambda: session.prompt([1, 2]), r"expected \(P, 2\)\. Mend: one click: \[\(x, y\)\]"),
        (lambda: session.prompt([(1, 2, 3)]), r"expected \(…, 2\)"),
        (lambda: session.click("a", 3), "points_xy is"),
        (lambda: session.choose(0), "1, 2 or 3"),
    ]
    for call, words in refused:
        with pytest.raises(InputError, match=words):
            call()
    assert len(session) == 1


def test_many_prompts_on_many_images_are_answered_as_one_by_one(segmenter: SamSegmenter, picture: Picture) -> None:
    embedding = segmenter.encode([picture(60, 80, 0), picture(90, 50, 1)])
    nan = float("nan")
    prompts = Prompts(
        points_xy=[[[20, 30], [0, 0]], [[10, 10], [40, 40]], [[30, 70], [0, 0]], [[0, 0], [7, 9]]],
        labels=[[1, -1], [1, 0], [1, -1], [-1, 1]],
        boxes_xyxy=[[nan] * 4, [nan] * 4, [5, 5, 40, 80], [nan] * 4],
        image_index=[0, 0, 1, 1],
    )
    assert is_ambiguous(prompts).tolist() == [True, False, False, True]
    answers = answer_prompts(segmenter, embedding, prompts)
    assert [len(answer.token_index) for answer in answers] == [3, 1, 1, 3]
    for number, answer in enumerate(answers):
        alone = answer_prompts(segmenter, embedding, prompts[number])[0]
        torch.testing.assert_close(answer.logits, alone.logits)
        torch.testing.assert_close(answer.predicted_iou, alone.predicted_iou)
        assert answer.masks().shape[-2:] == ((60, 80), (90, 50))[int(prompts.image_index[number])]


def test_what_ends_a_notebook_cell_is_short(session: aa.InteractiveSession) -> None:
    session.click(20, 30)
    step = session.click(50, 10, label=0)
    said = f"InteractiveStep({step.action} of 2 points; token 0, predicted IoU {step.predicted_iou:.2f})"
    assert repr(step) == said
    embedding = repr(session.embedding)
    assert embedding.startswith("ImageEmbedding(1 images: ")
    assert "image (1, " in embedding
    assert len(embedding) < 200
