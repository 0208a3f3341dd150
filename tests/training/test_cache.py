"""The hierarchy cache: what is in it, resuming, reading back, bad input."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from attention_cases import SceneLevels, scene_cache, triples_of, write_scenes
from torch.utils.data import DataLoader

from arrcoc_sam.datasets import CocoDataset
from arrcoc_sam.errors import DataError, ImageReadError, InputError
from arrcoc_sam.hierarchy import MaskHierarchy
from arrcoc_sam.images import load_image
from arrcoc_sam.masks import area_average, decode_rle, encode_rle, mask_iou
from arrcoc_sam.prompts import Prompts
from arrcoc_sam.scenes import generate_scene
from arrcoc_sam.segmenters.sam import SamSegmenter
from arrcoc_sam.segmenters.tiny import build_tiny
from arrcoc_sam.training.attention.settings import AttentionTraining
from arrcoc_sam.training.cache.build import CacheBuild, build_cache
from arrcoc_sam.training.cache.dataset import HierarchyCache, HierarchyDataset, HierarchyStream
from arrcoc_sam.training.cache.prompts import Clicks, GridPrompts, PointPrompts, TruthPrompts
from arrcoc_sam.training.cache.records import MANIFEST, shard_path
from arrcoc_sam.training.cache.samples import SampleReader
from arrcoc_sam.training.cache.sources import SegmenterLevels, TruthLevels, level_rows
from arrcoc_sam.training.samples import AttentionSample, collate_samples, flip_sample
from arrcoc_sam.training.samples_supervision import supervision


@pytest.fixture(scope="module")
def segmenter() -> SamSegmenter:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_tiny(64)
        for mlp in model.mask_decoder.output_hypernetworks_mlps:
            torch.nn.init.normal_(mlp.layers[-1].weight, std=2.0)
    return SamSegmenter(model.eval().requires_grad_(False), name="small")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> HierarchyCache:
    return scene_cache(tmp_path_factory.mktemp("scenes"), range(14))


def test_rows_are_what_the_segmenter_answers(segmenter: SamSegmenter, tmp_path: Path) -> None:
    paths = write_scenes(tmp_path, range(4))[:2]
    report = build_cache(SegmenterLevels(segmenter, GridPrompts(3), quality=True), paths, tmp_path / "cache")
    rows = HierarchyCache.open(tmp_path / "cache", segmenter=segmenter).table().to_pylist()
    assert report.num_samples == len(rows) == 18
    image = load_image(paths[1])
    points = GridPrompts(3).on(paths[1], (48, 48)).points_xy
    expected = segmenter.decode(
        segmenter.encode(image), Prompts(points_xy=points[:, None], labels=torch.ones(9, 1))
    ).hierarchy()
    mine = [row for row in rows if row["image_number"] == 1]
    assert [(row["x"], row["y"]) for row in mine] == [tuple(point) for point in points.tolist()]
    for k, row in enumerate(mine):
        masks = decode_rle([{"size": [48, 48], "counts": counts} for counts in row["counts"]])
        assert torch.equal(masks, expected.masks[k])
        np.testing.assert_allclose(row["score"], expected.scores[k], rtol=1e-5)
        assert row["valid"] == bool(expected.valid[k])
        assert row["token_index"] == expected.token_index[k].tolist()
        assert all(0 <= quality <= 1 for quality in row["quality"])


def test_prompts_from_annotations_keep_how_well_levels_agree(segmenter: SamSegmenter, tmp_path: Path) -> None:
    path = write_scenes(tmp_path, range(6))[0]
    scene = generate_scene(int(path.stem), 48)
    annotations = [
        {"id": i, "image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": encode_rle(torch.from_numpy(mask))}
        for i, mask in enumerate(scene.masks)
    ]
    image = {"id": 1, "file_name": path.name, "height": 48, "width": 48}
    (tmp_path / "coco.json").write_text(
        json.dumps({"images": [image], "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]})
    )
    dataset = CocoDataset.read(tmp_path / "coco.json")
    build_cache(SegmenterLevels(segmenter, TruthPrompts(dataset)), [path], tmp_path / "cache")
    import pyarrow.parquet as pq

    rows = pq.read_table(shard_path(tmp_path / "cache", 0)).to_pylist()
    assert len(rows) == len(scene)
    for row, mask in zip(rows, scene.masks, strict=True):
        assert mask[int(row["y"]), int(row["x"])]
        levels = decode_rle([{"size": [48, 48], "counts": counts} for counts in row["counts"]])
        np.testing.assert_allclose(row["truth_iou"], mask_iou(levels, torch.from_numpy(mask).expand(3, -1, -1)))
    build_cache(TruthLevels(dataset), [path], tmp_path / "truth")
    human = HierarchyCache.open(tmp_path / "truth").table().to_pylist()
    expected, _ = dataset.hierarchies(dataset.images[0]) or (None, None)
    assert expected is not None
    assert len(human) == len(expected)
    assert human[0]["counts"] == [rle["counts"] for rle in encode_rle(expected.masks[0])]


class KilledError(Exception):
    pass


class Dying(SceneLevels):
    """Dies at one picture."""

    at = ""

    def rows(self, path: Path, image: np.ndarray) -> Iterator[dict[str, Any]]:
        if path.name == self.at:
            raise KilledError
        return super().rows(path, image)


def test_a_killed_build_goes_on_where_it_stopped(tmp_path: Path) -> None:
    paths = write_scenes(tmp_path, range(8))
    whole = build_cache(SceneLevels(48), paths, tmp_path / "whole", images_per_shard=2)
    dying = Dying(48)
    dying.at = paths[-1].name
    with pytest.raises(KilledError):
        build_cache(dying, paths, tmp_path / "parts", images_per_shard=2)
    with pytest.raises(DataError, match=r"lacks 1 of .* arrcoc-sam cache again"):
        HierarchyCache.open(tmp_path / "parts")
    again = SceneLevels(48)
    report = build_cache(again, paths, tmp_path / "parts", images_per_shard=2)
    assert report.num_new_shards == 1
    assert len(again.calls) <= 2  # one shard of pictures
    assert replace(report, num_new_shards=whole.num_new_shards) == whole
    ours, theirs = (HierarchyCache.open(tmp_path / name).table() for name in ("parts", "whole"))
    assert ours.drop_columns("quality").equals(theirs.drop_columns("quality"))  # NaN, equal to nothing
    assert not list((tmp_path / "parts").glob(".*"))


def test_a_truncated_shard_is_computed_again(tmp_path: Path) -> None:
    paths = write_scenes(tmp_path, range(8))
    whole = build_cache(SceneLevels(48), paths, tmp_path / "cache", images_per_shard=2)
    before = HierarchyCache.open(tmp_path / "cache").table()
    shard = shard_path(tmp_path / "cache", 1)
    for length in (0, 3, shard.stat().st_size // 2, shard.stat().st_size - 1):
        shard.write_bytes(shard.read_bytes()[:length])
        with pytest.raises(DataError, match=r"shard-00001\.parquet is damaged.* arrcoc-sam cache again"):
            HierarchyCache.open(tmp_path / "cache")
        again = SceneLevels(48)
        report = build_cache(again, paths, tmp_path / "cache", images_per_shard=2)
        assert again.calls == [path.name for path in paths[2:4]]
        assert report == replace(whole, num_new_shards=1)
        after = HierarchyCache.open(tmp_path / "cache").table()
        assert after.drop_columns("quality").equals(before.drop_columns("quality"))  # NaN, equal to nothing


def test_damage_inside_a_shard_is_never_read_as_other_values(tmp_path: Path) -> None:
    paths = write_scenes(tmp_path, range(8))
    whole = build_cache(SceneLevels(48), paths, tmp_path / "cache", images_per_shard=2)
    cache, shard = HierarchyCache.open(tmp_path / "cache"), shard_path(tmp_path / "cache", 1)
    before, content = cache.table().drop_columns("quality"), shard.read_bytes()  # NaN, equal to nothing
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    refused = 0
    for start in range(4, footer - 40, 40):
        shard.write_bytes(content[:start] + bytes(40) + content[start + 40 :])
        try:
            assert cache.table().drop_columns("quality").equals(before)
        except DataError:
            refused += 1
    assert refused > 10
    shard.write_bytes(content[:4] + bytes(footer - 4) + content[footer:])
    advice = r"shard-00001\.parquet is damaged.*delete this file and run arrcoc-sam cache again"
    found = HierarchyCache.open(tmp_path / "cache")
    with pytest.raises(DataError, match=advice):
        HierarchyDataset(found, target_hw=(8, 8))
    with pytest.raises(DataError, match=advice):
        list(HierarchyStream(found, target_hw=(8, 8)))
    with pytest.raises(DataError, match=advice):
        build_cache(SceneLevels(48), paths, tmp_path / "cache", images_per_shard=2)
    shard.unlink()
    report = build_cache(SceneLevels(48), paths, tmp_path / "cache", images_per_shard=2)
    assert report == replace(whole, num_new_shards=1)
    assert HierarchyCache.open(tmp_path / "cache").table().drop_columns("quality").equals(before)


def test_a_bad_picture_is_listed_and_the_rest_done(tmp_path: Path) -> None:
    paths = write_scenes(tmp_path, range(4))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    report = build_cache(SceneLevels(48), [tmp_path / "broken.png", *paths], tmp_path / "cache")
    assert [name for name, _ in report.faults] == ["broken.png"]
    assert report.num_samples > 0


def test_a_picture_that_was_mended_since_is_tried_again(tmp_path: Path) -> None:
    paths = write_scenes(tmp_path, range(6))
    expected = build_cache(SceneLevels(48), paths, tmp_path / "whole", images_per_shard=2)
    whole = paths[0].read_bytes()
    paths[0].write_bytes(b"no picture")
    broken = build_cache(SceneLevels(48), paths, tmp_path / "cache", images_per_shard=2)
    assert len(broken.faults) == 1
    assert build_cache(SceneLevels(48), paths, tmp_path / "cache", images_per_shard=2) == replace(
        broken, num_new_shards=0
    )
    paths[0].write_bytes(whole)
    report = build_cache(SceneLevels(48), paths, tmp_path / "cache", images_per_shard=2)
    assert report == replace(expected, num_new_shards=1)
    tables = [HierarchyCache.open(tmp_path / name).table() for name in ("whole", "cache")]
    assert tables[0].drop_columns("quality").equals(tables[1].drop_columns("quality"))


@pytest.mark.parametrize("meanwhile", [False, True])
def test_a_shard_that_would_lose_an_image_stays(tmp_path: Path, meanwhile: bool) -> None:
    paths = write_scenes(tmp_path, range(4))
    whole = paths[0].read_bytes()
    paths[0].write_bytes(b"no picture")
    first = build_cache(SceneLevels(48), paths, tmp_path / "cache", images_per_shard=2)
    shard = shard_path(tmp_path / "cache", 0)
    before = shard.read_bytes()
    paths[0].write_bytes(whole)
    away = paths[1].read_bytes()

    def engine(build: CacheBuild, progress: object) -> None:
        paths[1].unlink(missing_ok=True)
        for number in build.missing():
            build.compute(number, SceneLevels(48))

    if not meanwhile:
        paths[1].unlink()
    second = build_cache(SceneLevels(48), paths, tmp_path / "cache", images_per_shard=2, engine=engine)
    assert "1 shard stays as before" in str(second.note)
    assert replace(second, note=None) == replace(first, num_new_shards=0)
    assert shard.read_bytes() == before
    paths[1].write_bytes(away)
    third = build_cache(SceneLevels(48), paths, tmp_path / "cache", images_per_shard=2)
    assert (third.num_new_shards, third.faults, third.note) == (1, (), None)


def test_a_cache_stays_whole_until_a_shard_is_replaced(tmp_path: Path) -> None:
    paths = write_scenes(tmp_path, range(4))
    whole = paths[0].read_bytes()
    paths[0].write_bytes(b"no picture")
    build_cache(SceneLevels(48), paths, tmp_path / "cache", images_per_shard=2)
    before = HierarchyCache.open(tmp_path / "cache").table()["image"]
    paths[0].write_bytes(whole)

    def engine(build: CacheBuild, progress: object) -> None:
        assert build.missing() == [0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_cache(SceneLevels(48), paths, tmp_path / "cache", images_per_shard=2, engine=engine)
    assert HierarchyCache.open(tmp_path / "cache").table()["image"].equals(before)
    told: list[tuple[int, int]] = []
    build_cache(
        SceneLevels(48), paths, tmp_path / "cache", images_per_shard=2, progress=lambda *done: told.append(done)
    )
    assert told[0] == (2, 4)


def test_nothing_is_encoded_to_see_what_can_be_used(
    segmenter: SamSegmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_scenes(tmp_path, range(2))
    whole = paths[0].read_bytes()
    paths[0].write_bytes(b"no picture")
    prompts = PointPrompts({path.name: [(1.0, 1.0)] if path is paths[0] else [(99.0, 1.0)] for path in paths})
    source = SegmenterLevels(segmenter, prompts)
    assert len(build_cache(source, paths, tmp_path / "cache", images_per_shard=1).faults) == 2
    paths[0].write_bytes(whole)
    monkeypatch.setattr(segmenter, "encode", lambda *_: pytest.fail("it was encoded"))
    missing: list[int] = []
    build_cache(
        source,
        paths,
        tmp_path / "cache",
        images_per_shard=1,
        engine=lambda build, _: missing.extend(build.missing()),
    )
    assert missing == [0]  # the other one's click lies outside as before


def test_targets_are_the_levels_on_the_grid(cache: HierarchyCache) -> None:
    dataset = HierarchyDataset(cache, target_hw=(16, 16), image_size=32)
    index = 0
    for name in sorted({row["image"] for row in dataset.rows.to_pylist()}, key=lambda name: int(name.split(".")[0])):
        scene = generate_scene(int(Path(name).stem), 48)
        hierarchy, points = triples_of(scene)
        for k in hierarchy.valid.nonzero()[:, 0].tolist():
            sample = dataset[index]
            expected = area_average(hierarchy.masks[k], (16, 16)) * hierarchy.counted[k][:, None, None]
            torch.testing.assert_close(sample.targets, expected, rtol=0.0, atol=1e-6)
            torch.testing.assert_close(sample.point_xy.double(), (points[k] + 0.5) * 32 / 48 - 0.5)
            assert sample.image is not None
            assert sample.image.shape == (3, 32, 32)
            assert sample.valid.tolist() == hierarchy.counted[k].tolist()
            index += 1
    assert index == len(dataset)


def test_a_mask_beside_the_part_is_not_taught_as_the_subpart(tmp_path: Path) -> None:
    masks = torch.zeros(1, 3, 20, 20, dtype=torch.bool)
    masks[0, 0, :, :18], masks[0, 1, :, :8], masks[0, 2, :10, 10:16] = True, True, True
    hierarchy = MaskHierarchy.from_masks(masks)
    assert hierarchy.valid.tolist() == [True]
    assert hierarchy.distinct.tolist() == [[True, True, True]]
    (row,) = level_rows(hierarchy, Clicks(torch.tensor([[3.0, 3.0]], dtype=torch.float64)))
    sample = SampleReader(tmp_path, target_hw=(4, 4)).sample({"image": "a.png", "image_number": 0, **row})
    assert sample.valid.tolist() == [True, True, False]
    assert sample.confidence.tolist() == [1.0, 1.0, 0.0]
    assert not bool(sample.targets[2].any())


def test_the_stream_reads_every_sample_once(cache: HierarchyCache) -> None:
    dataset = HierarchyDataset(cache, target_hw=(8, 8))

    def keys(samples: Iterator[AttentionSample]) -> list[tuple[int, float, float]]:
        return [(sample.image_key, *sample.point_xy.tolist()) for sample in samples]

    expected = keys(dataset[i] for i in range(len(dataset)))
    plain = keys(iter(HierarchyStream(cache, target_hw=(8, 8), shuffle_buffer=0)))
    assert plain == expected
    streams = [HierarchyStream(cache, target_hw=(8, 8), rank=rank, num_processes=2, seed=3) for rank in range(2)]
    dealt = [keys(iter(stream)) for stream in streams]
    assert sorted(dealt[0] + dealt[1]) == sorted(expected)
    assert all(dealt)
    streams[0].set_epoch(1)
    assert keys(iter(streams[0])) != dealt[0]


def test_no_process_goes_without_a_shard_where_there_are_few(
    cache: HierarchyCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = cache.plan.num_shards
    with pytest.raises(InputError, match=f"{shards} shards for {shards + 1} processes"):
        HierarchyStream(cache, num_processes=shards + 1)
    counts = dict.fromkeys(range(shards), 0)
    for rank in counts:
        stream = HierarchyStream(cache, target_hw=(8, 8), rank=rank, num_processes=shards)
        for number in range(8):  # workers of a loader
            worker = SimpleNamespace(id=number, num_workers=8)
            monkeypatch.setattr("arrcoc_sam.training.cache.dataset.get_worker_info", lambda worker=worker: worker)
            counts[rank] += sum(1 for _ in stream)
    assert min(counts.values()) > 0
    assert sum(counts.values()) == len(HierarchyDataset(cache, target_hw=(8, 8)))


@pytest.mark.slow
def test_the_stream_with_workers(cache: HierarchyCache) -> None:
    stream = HierarchyStream(cache, target_hw=(8, 8))
    loader = DataLoader(stream, batch_size=3, num_workers=2, collate_fn=collate_samples)
    assert sum(len(batch) for batch in loader) == len(HierarchyDataset(cache, target_hw=(8, 8)))


def test_workers_that_live_on_follow_the_epoch(cache: HierarchyCache) -> None:
    stream = HierarchyStream(cache, target_hw=(8, 8))
    loader = DataLoader(stream, batch_size=3, num_workers=1, collate_fn=list, persistent_workers=True)
    orders = []
    for epoch in (0, 1, 0):
        stream.set_epoch(epoch)
        orders.append([sample.point_xy.tolist() for batch in loader for sample in batch])
    assert orders[0] == orders[2]
    assert orders[0] != orders[1]


def test_a_batch_holds_a_shared_picture_once(cache: HierarchyCache) -> None:
    dataset = HierarchyDataset(cache, target_hw=(8, 8), image_size=16)
    batch = collate_samples([dataset[i] for i in range(len(dataset))])
    assert len(batch.images) == len({sample.image_key for sample in (dataset[i] for i in range(len(dataset)))})
    for k in range(len(batch)):
        assert torch.equal(batch.images[batch.image_index[k]], dataset[k].image)  # type: ignore[arg-type]


def test_flipping_moves_picture_click_and_targets_together(cache: HierarchyCache) -> None:
    sample = HierarchyDataset(cache, target_hw=(16, 16), image_size=16)[0]
    flipped = flip_sample(sample)
    x, y = sample.point_xy.round().long().tolist()
    fx, fy = flipped.point_xy.round().long().tolist()
    assert flipped.image is not None
    assert sample.image is not None
    assert torch.equal(flipped.image[:, fy, fx], sample.image[:, y, x])
    assert torch.equal(flipped.targets[:, fy, fx], sample.targets[:, y, x])
    assert torch.equal(flip_sample(flipped).targets, sample.targets)


def test_a_cache_of_another_segmenter(cache: HierarchyCache, segmenter: SamSegmenter, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds masks of 'truth'.*build a cache with this segmenter"):
        HierarchyCache.open(cache.folder, segmenter=segmenter)
    paths = write_scenes(tmp_path, range(3))
    with pytest.raises(DataError, match="holds a cache of segmenter 'truth', not 'small'"):
        build_cache(SegmenterLevels(segmenter, GridPrompts(1)), paths, cache.folder)


def test_bad_caches(cache: HierarchyCache, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"no {MANIFEST}"):
        HierarchyCache.open(tmp_path)
    with pytest.raises(DataError, match="were not scored"):
        HierarchyDataset(cache, min_quality=0.5)
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(DataError, match="can't be read"):
        HierarchyCache.open(tmp_path)
    (tmp_path / MANIFEST).write_text((cache.folder / MANIFEST).read_text())
    with pytest.raises(DataError, match="lacks"):
        HierarchyCache.open(tmp_path)
    for number in range(cache.plan.num_shards):
        shard_path(tmp_path, number).write_bytes(b"PAR1")
    with pytest.raises(DataError, match="damaged"):
        HierarchyCache.open(tmp_path)
    with pytest.raises(InputError, match="at least one of each"):
        build_cache(SceneLevels(48), [], tmp_path / "none")


@pytest.mark.usefixtures("as_at_run_time")
def test_images_that_are_no_list_or_are_there_twice(tmp_path: Path) -> None:
    path = write_scenes(tmp_path / "images", range(3))[0]
    for one in (path, str(path)):
        with pytest.raises(
            InputError, match=r"images is the path '.*\.png'; expected a list of paths. Mend: images=\["
        ):
            build_cache(SceneLevels(48), one, tmp_path / "none")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"\.png is there 2 times; expected each image once"):
        build_cache(SceneLevels(48), [path, path], tmp_path / "none")
    assert not (tmp_path / "none").exists()


class ScoredLevels(SceneLevels):
    """Levels with a quality that falls from click to click."""

    quality = True

    def rows(self, path: Path, image: np.ndarray) -> Iterator[dict[str, Any]]:
        for number, row in enumerate(super().rows(path, image)):
            yield row | {"quality": [0.8 - 0.2 * number, 0.3, 0.2]}


def test_clicks_without_a_level_that_is_good_enough_are_left_out(tmp_path: Path) -> None:
    build_cache(ScoredLevels(48), write_scenes(tmp_path, range(8)), tmp_path / "cache")
    cache = HierarchyCache.open(tmp_path / "cache")
    all_of_them = HierarchyDataset(cache, target_hw=(8, 8))
    good = HierarchyDataset(cache, target_hw=(8, 8), min_quality=0.7)
    assert 0 < len(good) < len(all_of_them)
    assert all(sample.valid.tolist() == [True, False, False] for sample in good)
    assert len(list(HierarchyStream(cache, target_hw=(8, 8), min_quality=0.7))) == len(good)
    assert len(HierarchyDataset(cache, min_quality=0.2)) == len(all_of_them)
    with pytest.raises(DataError, match=r"no valid sample with a level of min_quality=0\.9; .*lower min_quality"):
        HierarchyDataset(cache, min_quality=0.9)
    for wrong in (1.5, -0.1, float("nan")):
        with pytest.raises(InputError, match=rf"min_quality={wrong}; expected a quality in \[0, 1\]"):
            HierarchyDataset(cache, min_quality=wrong)
        with pytest.raises(InputError, match=rf"min_quality={wrong}; expected a quality in \[0, 1\]"):
            AttentionTraining(min_quality=wrong)


def test_a_confidence_that_is_no_number(tmp_path: Path) -> None:
    paths = write_scenes(tmp_path, range(4))
    build_cache(SceneLevels(48, score=float("nan")), paths, tmp_path / "cache")
    cache = HierarchyCache.open(tmp_path / "cache")
    with pytest.raises(DataError, match=r"confidence \[nan"):
        HierarchyDataset(cache, target_hw=(8, 8))
    with pytest.raises(DataError, match=r"confidence \[nan"):
        next(iter(HierarchyStream(cache, target_hw=(8, 8))))
    unasked = HierarchyDataset(cache, target_hw=(8, 8), teach=supervision(weighted=False))[0]
    assert unasked.confidence[unasked.valid].tolist() == [1.0] * int(unasked.valid.sum())


def test_given_points(tmp_path: Path) -> None:
    path = tmp_path / "points.json"
    path.write_text('{"a.png": [[1, 2], [3.5, 4]]}')
    prompts = PointPrompts.read(path)
    assert prompts.on(Path("x/a.png"), (10, 10)).points_xy.tolist() == [[1.0, 2.0], [3.5, 4.0]]
    with pytest.raises(DataError, match=r"no clicks are given for b\.png"):
        prompts.on(Path("b.png"), (10, 10))
    with pytest.raises(InputError, match="width 3"):
        prompts.on(Path("a.png"), (10, 3))
    path.write_text('{"a.png": [1, 2]}')
    with pytest.raises(DataError, match="the clicks of"):
        PointPrompts.read(path)


@pytest.mark.usefixtures("as_at_run_time")
@pytest.mark.parametrize(
    ("clicks", "message"),
    [
        ({"b.png": [(10, 20, 30), (40, 50, 60)]}, r"points_xy\['b.png'\] is .*\(2, 3\)"),
        ({"b.png": (1, 2)}, r"the clicks of 'b.png' are \(1, 2\); expected \[\(x, y\), …\]"),
        ({"b.png": [(1, float("nan"))]}, "the clicks of 'b.png' are .*nan.*finite"),
        ({"b.png": [("left", "top")]}, r"points_xy\['b.png'\] is a list of 1; expected numbers"),
        ({"b.png": None}, r"points_xy\['b.png'\] is"),
        ([(1, 2)], "points_xy is a list of 1"),
    ],
)
def test_points_that_are_no_clicks(clicks: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        PointPrompts(clicks)


@pytest.mark.usefixtures("as_at_run_time")
def test_numbers_that_are_not_whole(cache: HierarchyCache) -> None:
    for number in ("3", 2.5, 0):
        with pytest.raises(InputError, match=rf"num_per_side={number!r}; expected a whole number, at least 1"):
            GridPrompts(number)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"image_size=64\.5; expected a whole number"):
        HierarchyDataset(cache, image_size=64.5)
    with pytest.raises(InputError, match=r"steps=2\.5; expected a whole number"):
        AttentionTraining(steps=2.5)  # type: ignore[arg-type]


def test_given_points_of_images_of_one_name(tmp_path: Path) -> None:
    given = {"a/1.png": [(1.0, 0.0)], "x/a/1.png": [(2.0, 0.0)], "1.png": [(3.0, 0.0)], "b\\1.png": [(4.0, 0.0)]}
    prompts = PointPrompts(given)
    found = {
        name: prompts.on(tmp_path / name, (9, 9)).points_xy[0, 0].item()
        for name in ("a/1.png", "x/a/1.png", "y/a/1.png", "c/1.png", "b/1.png", "b\\1.png")
    }
    assert list(found.values()) == [1, 2, 1, 3, 4, 4]
    prompts.check([tmp_path / "a" / "1.png", tmp_path / "x" / "a" / "1.png", tmp_path / "c" / "1.png"])
    with pytest.raises(InputError, match=r"c/1\.png and .*d/1\.png share the clicks of '1\.png'.*d/1\.png"):
        prompts.check([tmp_path / "c" / "1.png", tmp_path / "d" / "1.png"])


def test_pictures_that_were_moved(tmp_path: Path) -> None:
    paths = write_scenes(tmp_path / "old", range(2))
    build_cache(SceneLevels(48), paths, tmp_path / "cache", images_per_shard=1)
    (tmp_path / "old").rename(tmp_path / "new")
    with pytest.raises(ImageReadError):
        HierarchyDataset(HierarchyCache.open(tmp_path / "cache"), target_hw=(8, 8), image_size=16)[0]
    root = tmp_path / "new" / paths[0].parent.relative_to(tmp_path / "old")
    moved = HierarchyDataset(HierarchyCache.open(tmp_path / "cache", images=root), target_hw=(8, 8), image_size=16)
    assert moved[0].image is not None
    assert HierarchyCache.open(tmp_path / "cache").plan.root != str(root)  # the manifest is as it was
    with pytest.raises(DataError, match=r"there is no .* in images=.*Mend: name the folder that"):
        HierarchyCache.open(tmp_path / "cache", images=tmp_path)
