from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from filelock import FileLock
from PIL import Image
from scoring_cases import NUM_MASKS, SIZES, masks_of, write_coco, write_folder, write_parquet

from arrcoc_sam.cli.main import run
from arrcoc_sam.errors import DataError, InputError, OutputError
from arrcoc_sam.masks import encode_rle
from arrcoc_sam.quality import MaskQualityEstimator
from arrcoc_sam.quality.score_table import WRITTEN_FIELDS, ScoredChanges
from arrcoc_sam.quality.scoring.local import ScoringSummary, local_engine, score_masks
from arrcoc_sam.quality.scoring.plan import PLAN_KEY
from arrcoc_sam.segmenters.sam import SamSegmenter

FLOATS = (
    "quality",
    "lower_bound",
    "upper_bound",
    "predicted_iou",
    "alignment_iou",
    "stability",
    "soft_iou",
    "area_share",
)


@pytest.fixture
def estimator(toy_segmenter: SamSegmenter) -> MaskQualityEstimator:
    return MaskQualityEstimator(toy_segmenter, keep_masks=False)


@pytest.fixture
def score(estimator: MaskQualityEstimator, tmp_path: Path) -> Callable[..., ScoringSummary]:
    def call(path: Path, name: str = "scores.parquet", **options: Any) -> ScoringSummary:
        return score_masks(path, tmp_path / "out" / name, estimator, **{"part_masks": 3, **options})

    return call


def by_image(table: pa.Table) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        found.setdefault(Path(row["image"]).stem, []).append(row)
    return found


@pytest.mark.parametrize("write", [write_coco, write_parquet, write_folder])
def test_scores_are_the_estimator_s_whatever_the_form(
    write: Callable[[Path], Path], score: Any, estimator: MaskQualityEstimator, tmp_path: Path
) -> None:
    path = write(tmp_path / "set")
    summary = score(path)
    assert (summary.num_masks, summary.num_errors, summary.num_resumed, summary.errors) == (NUM_MASKS, 0, 0, None)
    table = pq.read_table(summary.scores)
    assert len(set(table["id"].to_pylist())) == NUM_MASKS
    rows = by_image(table)
    for image in range(len(SIZES)):
        picture = next((tmp_path / "set").rglob(f"{image}.png"))
        alone = estimator.estimate(picture, np.stack(masks_of(image))).to_frame()
        for row, expected, mask in zip(rows[str(image)], alone.to_dict("records"), masks_of(image), strict=True):
            assert row["area"] == int(mask.sum())
            assert row["quality_kind"] == "bound"
            assert row["token_index"] == expected["token_index"]
            for name in FLOATS:
                wanted = None if np.isnan(expected[name]) else pytest.approx(expected[name], abs=1e-5)
                assert row[name] == wanted
    assert {path.name for path in summary.scores.parent.iterdir()} == {"scores.parquet", "scores.manifest.json"}
    manifest = json.loads(summary.manifest.read_text())
    assert manifest["num_masks"] == manifest["num_scored"] == NUM_MASKS
    assert manifest["plan"]["checkpoint_hash"] == manifest["checkpoint_hash"] == estimator.segmenter.checkpoint_hash
    assert manifest["plan"]["protocol"] == "mask+point"
    assert "torch" in manifest["versions"]


def test_crowds_classes_and_empty_masks(score: Any, tmp_path: Path) -> None:
    rows = {row["id"]: row for row in pq.read_table(score(write_coco(tmp_path)).scores).to_pylist()}
    assert [mask_id for mask_id, row in rows.items() if row["crowd"]] == [123]
    assert {row["category"] for row in rows.values()} == {"a", "b"}
    empty, full = rows[101], rows[111]
    assert (empty["quality"], empty["area"], empty["predicted_iou"], empty["token_index"]) == (0, 0, None, -1)
    assert empty["soft_iou"] == 0.0
    assert full["area_share"] == 1.0
    assert full["predicted_iou"] is not None
    assert 0 < full["soft_iou"] <= 1


def test_images_are_encoded_once(score: Any, toy_segmenter: SamSegmenter, tmp_path: Path, monkeypatch: Any) -> None:
    encoded = []
    encode = toy_segmenter.encode

    def counted(images: list[np.ndarray]) -> Any:
        encoded.extend(images)
        return encode(images)

    monkeypatch.setattr(toy_segmenter, "encode", counted)
    monkeypatch.setattr("arrcoc_sam.quality.scoring.scorer._MASK_PIXELS", 10_000)
    score(write_coco(tmp_path), part_masks=1)
    assert len(encoded) == len(SIZES)


def test_the_size_of_parts_windows_and_batches_does_not_matter(score: Any, tmp_path: Path, monkeypatch: Any) -> None:
    path = write_coco(tmp_path)
    first = pq.read_table(score(path, "a.parquet", part_masks=1).scores)
    monkeypatch.setattr("arrcoc_sam.quality.scoring.scorer._MASK_PIXELS", 7000)
    monkeypatch.setattr("arrcoc_sam.quality.scoring.scorer._IMAGES", 2)
    second = pq.read_table(score(path, "b.parquet", part_masks=100).scores)
    assert first["id"].equals(second["id"])
    for name in FLOATS:
        a, b = (torch.tensor(table[name].to_numpy()) for table in (first, second))
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5, equal_nan=True)


def test_what_can_t_be_read_is_listed_and_the_rest_scored(score: Any, tmp_path: Path) -> None:
    path = write_coco(tmp_path)
    good = {row["id"]: row for row in pq.read_table(score(path, "good.parquet").scores).to_pylist()}
    document = json.loads(path.read_text())
    broken = {annotation["id"]: annotation for annotation in document["annotations"]}
    broken[100]["segmentation"]["counts"] = "01"  # does not add up
    broken[110]["segmentation"] = encode_rle(np.ones((96, 64), dtype=bool))
    document["annotations"].append({"id": 7, "image_id": 1000, "segmentation": [[0, 0, 9, 0, 9, 9]]})
    path.write_text(json.dumps(document))
    (tmp_path / "1.png").unlink()
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:800])
    summary = score(path)
    assert (summary.num_masks, summary.num_errors) == (NUM_MASKS + 1, 9)
    left = pq.read_table(summary.scores).to_pylist()
    assert [row["id"] for row in left] == [103, 113, 123]
    for row in left:
        assert row["quality"] == pytest.approx(good[row["id"]]["quality"], abs=1e-5)
    assert summary.errors is not None
    lines = {line.split(",", 1)[0]: line for line in summary.errors.read_text().splitlines()}
    assert len(lines) == 10
    assert "add up to" in lines["100"]
    assert "other way round" in lines["110"]
    assert "1.png does not exist" in lines["101"]
    assert "can't be decoded" in lines["102"]
    assert "image 1000" in lines["7"]


def test_masks_that_a_head_answers_with_nan_are_errors(
    score: Any, toy_segmenter: SamSegmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = toy_segmenter.decode

    def nan(*args: Any, **keywords: Any) -> Any:
        candidates = decode(*args, **keywords)
        return replace(candidates, predicted_iou=torch.full_like(candidates.predicted_iou, torch.nan))

    monkeypatch.setattr(toy_segmenter, "decode", nan)
    summary = score(write_coco(tmp_path / "set"))
    assert summary.num_errors == NUM_MASKS - 1
    assert "toy answers NaN for this mask; expected numbers" in summary.errors.read_text()
    assert pq.read_table(summary.scores)["quality"].to_pylist() == [0.0]  # of the empty mask, which nobody asks about


def test_pictures_of_another_size_than_their_masks(score: Any, tmp_path: Path) -> None:
    path = write_parquet(tmp_path)
    (tmp_path / "1.png").replace(tmp_path / "0.png")
    Image.open(tmp_path / "2.png").transpose(Image.Transpose.ROTATE_90).save(tmp_path / "2.png")
    summary = score(path)
    assert summary.num_errors == 8
    assert re.search(r"as if drawn on .* EXIF .*; expected .* Mend: turn the mask upright", summary.errors.read_text())
    assert "height 64 and width 96; expected those of 0.png, upright: 80 and 50" in summary.errors.read_text()


@pytest.mark.usefixtures("as_at_run_time")
def test_what_is_refused_leaves_nothing_behind(score: Any, tmp_path: Path) -> None:
    path = write_coco(tmp_path / "set")
    document = json.loads(path.read_text())
    with pytest.raises(InputError, match=r"ends in \.parquet"):
        score(path, "scores.csv")
    with pytest.raises(InputError, match="part_masks=0"):
        score(path, part_masks=0)
    write_parquet(tmp_path / "out")
    with pytest.raises(InputError, match="in the folder of the data set"):
        score(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    path.write_text(json.dumps({**document, "annotations": document["annotations"] * 2}))
    with pytest.raises(DataError, match="mask id 100 occurs twice"):
        score(path)
    path.write_text(json.dumps({**document, "annotations": []}))
    with pytest.raises(DataError, match="has no masks"):
        score(path)
    assert not list(tmp_path.glob("out/*"))


def test_a_table_that_is_there_is_left_alone(score: Any, estimator: MaskQualityEstimator, tmp_path: Path) -> None:
    path = write_coco(tmp_path / "set")
    before = score(path).scores.read_bytes()
    again = score(path)
    assert (again.num_resumed, again.scores.read_bytes()) == (NUM_MASKS, before)
    assert not list(again.scores.parent.glob("*.work"))
    with pytest.raises(OutputError, match="holds scores of other part_masks"):
        score(path, part_masks=5)
    other = MaskQualityEstimator(estimator.segmenter, "box", keep_masks=False)
    with pytest.raises(OutputError, match="of other protocol"):
        score_masks(path, again.scores, other, part_masks=3)
    again.scores.write_bytes(b"mine")
    with pytest.raises(OutputError, match="is no table of scores"):
        score(path)


def test_a_table_from_before_a_score_was_added(score: Any, tmp_path: Path) -> None:
    path = write_coco(tmp_path / "set")
    scores = score(path).scores
    before = pq.read_table(scores).drop_columns("soft_iou")
    plan = json.loads(before.schema.metadata[PLAN_KEY])
    plan["columns"].remove("soft_iou")
    pq.write_table(before.replace_schema_metadata({PLAN_KEY: json.dumps(plan).encode()}), scores)
    changes = ScoredChanges(scores)
    assert "sam_soft_iou" not in changes.field_types.names
    fields = changes.fields(before["id"][0].as_py())
    assert list(fields) == changes.field_types.names == [f"sam_{name}" for name in WRITTEN_FIELDS if name != "soft_iou"]
    assert fields["sam_lower_bound"] == pytest.approx(before["lower_bound"][0].as_py(), abs=1e-6)
    with pytest.raises(OutputError, match="holds scores of other columns"):
        score(path)


# --- killed and resumed ---------------------------------------------------------------------------------------------


class Killed(BaseException):
    """What no code of ours catches."""


@pytest.fixture
def killed_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Fails at the n-th time from now that a file gets its name, before or after it got it."""

    def arm(number: int, *, after: bool) -> None:
        calls = iter(range(number + 1))

        def deadly(name: str) -> Any:
            rename = getattr(Path, name)

            def call(self: Path, target: Path) -> Path:
                last = next(calls, None) == number
                if last and not after:
                    raise Killed
                done: Path = rename(self, target)
                if last:
                    raise Killed
                return done

            return call

        context = pytest.MonkeyPatch()
        for name in ("replace", "rename"):
            context.setattr(Path, name, deadly(name))
        armed.append(context)

    armed: list[pytest.MonkeyPatch] = []
    arm.disarm = lambda: [context.undo() for context in armed]  # type: ignore[attr-defined]
    return arm  # type: ignore[return-value]


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_any_file_and_resumed(
    score: Any, killed_at: Any, toy_segmenter: SamSegmenter, tmp_path: Path, monkeypatch: Any, after: bool
) -> None:
    path = write_coco(tmp_path / "set", 2)
    reference = score(path, "reference.parquet", part_masks=2)
    asked: list[int] = []
    decode = toy_segmenter.decode
    monkeypatch.setattr(toy_segmenter, "decode", lambda e, p, m: (asked.append(len(p)), decode(e, p, m))[1])
    out, number = tmp_path / "out" / "scores.parquet", 0
    while True:
        killed_at(number, after=after)
        try:
            score(path, part_masks=2)
        except Killed:
            killed_at.disarm()
        else:
            killed_at.disarm()
            break
        at_kill = sum(asked)
        score(path, part_masks=2)
        assert out.read_bytes() == reference.scores.read_bytes()
        assert at_kill <= sum(asked) <= 4 + 2  # the empty mask needs no asking; one part twice at most
        for file in out.parent.glob("scores.*"):
            file.unlink()
        asked.clear()
        number += 1
    assert number >= 7  # the plan, the list, two parts, the table, and its two companions


def test_a_part_that_was_cut_off_is_scored_again(score: Any, killed_at: Any, tmp_path: Path) -> None:
    path = write_coco(tmp_path / "set")
    reference = score(path, "reference.parquet")
    killed_at(4, after=True)
    with pytest.raises(Killed):
        score(path)
    killed_at.disarm()
    parts = sorted((tmp_path / "out" / "scores.parquet.work" / "scores").glob("*.parquet"))
    assert parts
    parts[0].write_bytes(parts[0].read_bytes()[:100])
    (parts[0].parent / ".0000009-half.parquet").write_bytes(b"half")
    assert score(path).scores.read_bytes() == reference.scores.read_bytes()


@pytest.mark.parametrize("write", [write_coco, write_folder])
def test_what_was_mended_since_is_scored(write: Callable[[Path], Path], score: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "set")
    reference = score(path, "reference.parquet")
    pictures = [next((tmp_path / "set").rglob(f"{image}.png")) for image in (1, 2)]
    whole = [picture.read_bytes() for picture in pictures]
    for picture in pictures:
        picture.write_bytes(b"")
    summary = score(path)
    assert (summary.num_errors, summary.num_resumed) == (6, 0)
    before = summary.scores.read_bytes(), summary.scores.stat().st_mtime_ns
    again = score(path)
    assert (again.num_errors, again.num_resumed) == (6, NUM_MASKS)
    assert (again.scores.read_bytes(), again.scores.stat().st_mtime_ns) == before
    assert again.errors is not None
    pd.read_csv(again.errors, dtype=str).drop(columns="category").to_csv(again.errors, index=False)  # as it was before
    pictures[0].write_bytes(whole[0])
    half = score(path)
    assert half.num_errors == 3
    assert half.errors is not None
    assert "category" in pd.read_csv(half.errors)
    assert 0 < half.num_resumed < NUM_MASKS
    pictures[1].write_bytes(whole[1])
    full = score(path)
    assert (full.num_errors, full.errors) == (0, None)
    assert full.scores.read_bytes() == reference.scores.read_bytes()
    assert json.loads(full.manifest.read_text())["num_errors"] == 0
    assert {file.name for file in full.scores.parent.glob("scores*")} == {"scores.parquet", "scores.manifest.json"}


@pytest.mark.parametrize("done", [False, True])
def test_a_run_that_is_killed_while_it_tries_again(score: Any, killed_at: Any, tmp_path: Path, done: bool) -> None:
    path = write_coco(tmp_path / "set", 2)
    reference = score(path, "reference.parquet", part_masks=2)
    picture, out, number = tmp_path / "set" / "1.png", tmp_path / "out" / "scores.parquet", 0
    whole = picture.read_bytes()
    while True:
        picture.write_bytes(b"")
        if done:
            assert score(path, part_masks=2).num_errors == 3
        else:
            killed_at(4, after=False)
            with pytest.raises(Killed):
                score(path, part_masks=2)
            killed_at.disarm()
        picture.write_bytes(whole)
        killed_at(number, after=number % 2 == 0)
        try:
            score(path, part_masks=2)
        except Killed:
            killed_at.disarm()
        else:
            killed_at.disarm()
            break
        summary = score(path, part_masks=2)
        assert (summary.num_errors, summary.errors) == (0, None)
        assert out.read_bytes() == reference.scores.read_bytes()
        for file in out.parent.glob("scores.*"):
            file.unlink()
        number += 1
    assert number >= 4


@pytest.mark.parametrize("done", [True, False])
def test_a_part_that_would_lose_scores_stays(score: Any, killed_at: Any, tmp_path: Path, done: bool) -> None:
    path, folder = write_coco(tmp_path / "set"), tmp_path / "set"
    pictures = [folder / f"{image}.png" for image in range(4)]
    whole = [picture.read_bytes() for picture in pictures]
    pictures[0].unlink()
    if done:
        first = score(path, part_masks=100)
        assert first.num_errors == 2
    else:
        killed_at(4, after=False)  # before the table of errors, when all is scored
        with pytest.raises(Killed):
            score(path, part_masks=100)
        killed_at.disarm()
    pictures[0].write_bytes(whole[0])
    for picture in pictures[1:]:
        picture.unlink()
    second = score(path, part_masks=100)
    assert (second.num_errors, second.num_resumed) == (2, NUM_MASKS)
    assert len(pq.read_table(second.scores)) == NUM_MASKS - 2
    assert re.search(r"1 part stays as before.*: 1\.png had scores", str(second.note))
    for picture, content in zip(pictures, whole, strict=True):
        picture.write_bytes(content)
    third = score(path, part_masks=100)
    assert (third.num_errors, third.note) == (0, None)
    assert third.scores.read_bytes() == score(path, "reference.parquet", part_masks=100).scores.read_bytes()


@pytest.mark.parametrize("killed", [False, True])
def test_pictures_that_go_while_a_part_is_scored_anew(
    score: Any, estimator: MaskQualityEstimator, tmp_path: Path, killed: bool
) -> None:
    path = write_coco(tmp_path / "set")
    pictures = [tmp_path / "set" / f"{image}.png" for image in (0, 1)]
    whole = pictures[0].read_bytes()
    pictures[0].unlink()
    first = score(path, part_masks=100)
    before = pq.read_table(first.scores)
    pictures[0].write_bytes(whole)

    def engine(run: Any, progress: Any) -> None:
        pictures[1].unlink()
        if killed:
            raise Killed
        local_engine(estimator)(run, progress)

    if killed:
        with pytest.raises(Killed):
            score(path, part_masks=100, engine=engine)
        assert pq.read_table(first.scores).equals(before)
        second = score(path, part_masks=100)
    else:
        second = score(path, part_masks=100, engine=engine)
    assert "1.png had scores" in str(second.note)
    assert pq.read_table(second.scores).equals(before)
    assert second.num_errors == 2


def test_nothing_is_listed_again_where_no_picture_can_be_read(
    score: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_coco(tmp_path / "set")
    document = json.loads(path.read_text())
    document["annotations"][0]["segmentation"] = {"size": [5, 5], "counts": [3]}
    document["annotations"].append({"image_id": 50, "category_id": 0, "segmentation": [[1, 1, 9, 1, 9, 9]]})
    path.write_text(json.dumps(document))
    first = score(path)
    assert first.num_errors == 2
    (tmp_path / "set" / "1.png").rename(tmp_path / "away")
    second = score(path, "other.parquet")
    monkeypatch.setattr("arrcoc_sam.quality.scoring.run.MaskIndex", lambda *_, **__: pytest.fail("it was listed"))
    stages: list[str] = []
    for summary, name in ((first, "scores.parquet"), (second, "other.parquet")):
        before = {file: file.stat().st_mtime_ns for file in summary.scores.parent.iterdir()}
        again = score(path, name, progress=lambda stage, *_: stages.append(stage))
        assert (again.num_errors, again.num_resumed) == (summary.num_errors, NUM_MASKS + 1)
        assert {file: file.stat().st_mtime_ns for file in summary.scores.parent.iterdir()} == before
    assert stages == ["Trying again"]  # one picture


def test_a_folder_of_work_that_can_t_be_written_while_it_is_tried_again(
    score: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, picture = write_coco(tmp_path / "set"), tmp_path / "set" / "1.png"
    whole = picture.read_bytes()
    picture.write_bytes(b"")
    before = score(path).scores.read_bytes()
    picture.write_bytes(whole)
    for name in ("touch", "replace"):
        call = getattr(Path, name)

        def full(self: Path, *args: Any, call: Any = call) -> Any:
            if self.name == "reopened" or "earlier" in str(args):
                raise OSError(errno.ENOSPC, "No space left on device")
            return call(self, *args)

        with monkeypatch.context() as context:
            context.setattr(Path, name, full)
            with pytest.raises(OutputError, match=r"work can't be written \(No space left.*the same command goes on"):
                score(path)
        assert (tmp_path / "out" / "scores.parquet").read_bytes() == before
    assert score(path).num_errors == 0


def test_masks_without_an_answer_are_not_asked_about_again(
    score: Any, toy_segmenter: SamSegmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = toy_segmenter.decode
    asked: list[int] = []

    def nan(*args: Any, **keywords: Any) -> Any:
        candidates = decode(*args, **keywords)
        asked.append(1)
        return replace(candidates, predicted_iou=torch.full_like(candidates.predicted_iou, torch.nan))

    monkeypatch.setattr(toy_segmenter, "decode", nan)
    path = write_coco(tmp_path / "set")
    first = score(path)
    asked.clear()
    assert score(path).num_errors == first.num_errors == NUM_MASKS - 1
    assert not asked


@pytest.mark.usefixtures("as_at_run_time")
def test_an_engine_that_does_not_fit_is_refused_before_anything_is_listed(score: Any, tmp_path: Path) -> None:
    class Engine:
        def check(self, plan: dict[str, Any]) -> None:
            raise InputError(f"not {plan['protocol']}")

        def __call__(self, *_: object) -> None:
            pytest.fail("it was called")

    path = write_coco(tmp_path / "set")
    for engine, words in ((Engine(), "not mask"), ("ray", "engine is 'ray'; expected something to call")):
        with pytest.raises(InputError, match=words):
            score(path, engine=engine)
    assert not (tmp_path / "out").exists()


def test_a_data_set_that_changed_meanwhile(score: Any, killed_at: Any, tmp_path: Path) -> None:
    path = write_coco(tmp_path / "set")
    killed_at(2, after=True)
    with pytest.raises(Killed):
        score(path)
    killed_at.disarm()
    path.write_text(path.read_text() + " ")
    with pytest.raises(OutputError, match="of other dataset_digest"):
        score(path)


def test_two_processes_at_once(score: Any, tmp_path: Path) -> None:
    path = write_coco(tmp_path / "set")
    work = tmp_path / "out" / "scores.parquet.work"
    work.mkdir(parents=True)
    with FileLock(work / "lock"), pytest.raises(OutputError, match="another process"):
        score(path)


# --- places that can't be written -----------------------------------------------------------------------------------


def test_a_full_disk_costs_no_scores(score: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_coco(tmp_path / "set")
    reference = score(path, "reference.parquet")
    write_table, written = pq.write_table, []

    def full(table: pa.Table, where: Path) -> None:
        if "quality" in table.column_names:
            if len(written) == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
            written.append(where)
        write_table(table, where)

    with monkeypatch.context() as disk:
        disk.setattr(pq, "write_table", full)
        with pytest.raises(OutputError, match="No space left on device"):
            score(path)
    summary = score(path)
    assert summary.num_resumed > 0
    assert summary.scores.read_bytes() == reference.scores.read_bytes()


def test_a_folder_that_can_t_be_written(estimator: MaskQualityEstimator, tmp_path: Path) -> None:
    path = write_coco(tmp_path / "set")
    for out in (Path("/proc/scores.parquet"), tmp_path / "set" / "0.png" / "scores.parquet"):
        with pytest.raises(OutputError, match="can't be written"):
            score_masks(path, out, estimator)


def test_the_documentation_s_snippet_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = Path(__file__).parents[2] / "docs" / "filtering.md"
    [snippet] = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    write_coco(tmp_path)
    monkeypatch.chdir(tmp_path)
    exec(snippet, {})
    assert "dropped_share" in capsys.readouterr().out


# --- the other forms through the command ----------------------------------------------------------------------------


@pytest.mark.parametrize(("write", "out"), [(write_parquet, "kept.parquet"), (write_folder, "kept")])
def test_what_is_kept_is_a_data_set_again(
    write: Callable[[Path], Path], out: str, score: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = score(write(tmp_path / "set"))
    target = tmp_path / "set" / out if out.endswith("parquet") else tmp_path / out
    words = ["filter", summary.scores, "--min-area", "1", "--max-area-share", "0.9", "--pictures", "1"]
    assert run([*map(str, words), "--out", str(target), "--json"]) == 0, capsys.readouterr().err
    record = json.loads(capsys.readouterr().out)
    assert (record["num_kept"], record["num_dropped"], record["num_images_lost"]) == (NUM_MASKS - 2, 2, 0)
    assert {row["rule"]: row["failed"] for row in record["reasons"]} == {"min_area": 1, "max_area_share": 1}
    before = {row["id"]: row for row in pq.read_table(summary.scores).to_pylist()}
    after = pq.read_table(score(target, "again.parquet").scores).to_pylist()
    assert len(after) == NUM_MASKS - 2
    for row in after:
        assert row["quality"] == pytest.approx(before[row["id"]]["quality"], abs=1e-5)


def test_a_folder_may_have_a_dot_in_its_name(score: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["filter", str(score(write_folder(tmp_path / "set")).scores), "--min-area", "1", "--pictures", "0", "--out"]
    assert run([*words, str(tmp_path / "kept.v2")]) == 0, capsys.readouterr().err
    assert (tmp_path / "kept.v2" / "masks").is_dir()
    assert {path.name for path in tmp_path.glob("kept.v2.*")} == {
        f"kept.v2.{ending}" for ending in ("report.html", "dropped.csv", "manifest.json")
    }
    assert run([*words, str(tmp_path / "kept.json")]) == 2
    assert "expected the name of a folder" in capsys.readouterr().err


def test_a_data_set_of_which_nothing_could_be_scored(
    score: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_coco(tmp_path / "set")
    for image in (tmp_path / "set").glob("*.png"):
        image.unlink()
    summary = score(path)
    assert (summary.num_masks, summary.num_errors) == (NUM_MASKS, NUM_MASKS)
    words = ["filter", str(summary.scores), "--class-quantile", "0.5", "--out", str(tmp_path / "kept.json")]
    assert run(words) == 0, capsys.readouterr().err
    document = json.loads((tmp_path / "kept.json").read_text())
    assert (document["images"], document["annotations"]) == ([], [])
