"""Work on Ray, through the command line in a process of its own: Ray's threads and warnings stay out of ours."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from arrcoc_sam.attention.maps import AttentionMaps
from arrcoc_sam.errors import CheckpointError, DataError, InputError
from arrcoc_sam.geometry import ImageTransform
from arrcoc_sam.masks import encode_rle
from arrcoc_sam.segmenters.tiny import build_tiny

pytest.importorskip("ray", reason="the extra 'ray' is not installed")

from arrcoc_sam.datasets.mask_forms import open_masks
from arrcoc_sam.distributed import (
    ActorPool,
    AtlasActor,
    CacheActor,
    RayAtlasEngine,
    RayCacheEngine,
    RayEngine,
    ScoringActor,
)
from arrcoc_sam.distributed.pool import _cluster, _ours
from arrcoc_sam.granularity.atlas.build import AtlasBuild
from arrcoc_sam.granularity.atlas.read import AtlasReader
from arrcoc_sam.granularity.atlas.run import run_atlas
from arrcoc_sam.quality.scoring.local import score_masks
from arrcoc_sam.quality.scoring.run import Progress, ScoringRun
from arrcoc_sam.quality.scoring.spec import EstimatorSpec
from arrcoc_sam.scenes import generate_scene
from arrcoc_sam.segmenters import load_segmenter
from arrcoc_sam.training.cache.build import CacheBuild, build_cache
from arrcoc_sam.training.cache.prompts import GridPrompts
from arrcoc_sam.training.cache.records import shard_path
from arrcoc_sam.training.cache.sources import SegmenterLevels

QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1"}
COMMAND = "import sys; from arrcoc_sam.cli.main import run; sys.exit(run(sys.argv[1:]))"


def arrcoc_sam(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **QUIET}
    command = [sys.executable, "-c", COMMAND, *map(str, words)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images with two masks each, one of them missing, and random weights."""
    annotations: list[dict[str, Any]] = []
    for image in range(6):
        pixels = np.random.default_rng(image).integers(0, 255, (40, 60, 3), dtype=np.uint8)
        if image != 4:
            Image.fromarray(pixels).save(tmp_path / f"{image}.png")
        for place in range(2):
            mask = np.zeros((40, 60), dtype=bool)
            mask[5 + place : 25, 8 : 30 + image] = True
            record = {"id": 10 * place + image, "image_id": image, "segmentation": encode_rle(mask)}
            annotations.append(record)
    images = [{"id": i, "file_name": f"{i}.png", "height": 40, "width": 60} for i in range(6)]
    (tmp_path / "masks.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file({k: v.contiguous() for k, v in build_tiny().state_dict().items()}, tmp_path / "tiny.safetensors")
    return tmp_path


def test_actors_that_share_the_parts_make_the_local_engine_s_table(folder: Path) -> None:
    """All but Ray itself: two actors take the parts in turn, backwards, and one part is done by both."""
    spec = EstimatorSpec(checkpoint=str(folder / "tiny.safetensors"), device="cpu")
    estimator, data = spec.build(), open_masks(folder / "masks.json")

    def engine(run: ScoringRun, progress: Progress | None) -> None:
        threads = torch.get_num_threads()
        weights = estimator.segmenter.checkpoint_hash
        actors = [ScoringActor(spec, weights, run.work, run.folders, threads=threads) for _ in range(2)]
        missing = run.missing()
        for place, number in enumerate([*reversed(missing), missing[0]]):
            answer = actors[place % 2]({"part": np.array([number])})
            assert answer["num_masks"].tolist() == [2]
        with pytest.raises(DataError, match="this machine has no folder"):
            ScoringActor(spec, weights, run.work, (folder / "elsewhere", None), threads=threads)
        with pytest.raises(CheckpointError, match="those of the run, 000000000000"):
            ScoringActor(spec, "0" * 64, run.work, run.folders, threads=threads)
        with pytest.raises(InputError, match="an engine of other protocol, components than the estimator"):
            RayEngine(replace(spec, protocol="box", components=True))(run, progress)

    shared = score_masks(data, folder / "shared.parquet", estimator, part_masks=2, engine=engine)
    alone = score_masks(data, folder / "alone.parquet", estimator, part_masks=2)
    assert shared.num_errors == alone.num_errors == 2
    assert shared.scores.read_bytes() == alone.scores.read_bytes()


@pytest.mark.slow  # Ray takes longer to start than all else in this file
@pytest.mark.timeout(900)
def test_ray_scores_as_the_local_engine_does(folder: Path) -> None:
    options = ("--checkpoint", "tiny.safetensors", "--part-masks", 2, "--device", "cpu")
    ray = arrcoc_sam(folder, "score", "masks.json", *options, "--out", "ray.parquet", "--engine", "ray", "--actors", 2)
    assert ray.returncode == 3, ray.stderr
    local = arrcoc_sam(folder, "score", "masks.json", *options, "--out", "local.parquet")
    assert local.returncode == 3, local.stderr
    first, second = pq.read_table(folder / "local.parquet"), pq.read_table(folder / "ray.parquet")
    assert first.schema.equals(second.schema)
    assert len(first) == len(second) == 10
    for name in first.column_names:
        a, b = first[name], second[name]
        if str(a.type) == "float":
            np.testing.assert_allclose(b.to_numpy(), a.to_numpy(), rtol=0, atol=1e-5)
        else:
            assert a.equals(b)
    assert (folder / "ray.errors.csv").read_text() == (folder / "local.errors.csv").read_text()
    assert json.loads((folder / "ray.manifest.json").read_text())["engine"] == "ray"
    assert not list(folder.glob("*.work"))


def test_actors_that_share_the_shards_make_the_local_engine_s_cache(folder: Path) -> None:
    """All but Ray itself: two actors take the shards in turn, backwards, and one shard is done by both."""

    def make() -> SegmenterLevels:
        return SegmenterLevels(load_segmenter("tiny", folder / "tiny.safetensors", "cpu"), GridPrompts(2))

    def engine(build: CacheBuild, progress: object) -> None:
        threads = torch.get_num_threads()
        actors = [CacheActor(make, build, threads=threads) for _ in range(2)]
        missing = build.missing()
        for place, number in enumerate([*reversed(missing), missing[0]]):
            assert actors[place % 2]({"part": np.array([number])})["part"].tolist() == [number]
        other = replace(build, plan=replace(build.plan, checkpoint_hash="0" * 64))
        with pytest.raises(CheckpointError, match="those of the cache, 000000000000"):
            CacheActor(make, other, threads=threads)

    images = sorted(folder.glob("*.png"))
    shared = build_cache(make(), images, folder / "shared", images_per_shard=2, engine=engine)
    alone = build_cache(make(), images, folder / "alone", images_per_shard=2)
    assert shared == alone
    assert shared.num_new_shards == 3
    for number in range(3):
        first, second = (shard_path(folder / name, number).read_bytes() for name in ("alone", "shared"))
        assert first == second


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ray_caches_as_the_local_engine_does(folder: Path) -> None:
    (folder / "bad.png").write_bytes(b"no picture")
    options = ("--checkpoint", "tiny.safetensors", "--grid", 2, "--shard", 2, "--device", "cpu", "--json")
    ray = arrcoc_sam(folder, "cache", "*.png", *options, "--out", "ray", "--engine", "ray", "--actors", 2)
    assert ray.returncode == 3, ray.stderr
    local = arrcoc_sam(folder, "cache", "*.png", *options, "--out", "local")
    assert local.returncode == 3, local.stderr
    assert json.loads(ray.stdout) == json.loads(local.stdout)
    for number in range(json.loads(local.stdout)["num_shards"]):
        first, second = (pq.read_table(shard_path(folder / name, number)) for name in ("local", "ray"))
        assert first.schema.equals(second.schema, check_metadata=True)
        for name in first.column_names:
            a, b = first[name].combine_chunks(), second[name].combine_chunks()
            if name in ("score", "stability", "quality", "truth_iou"):
                np.testing.assert_allclose(b.flatten().to_numpy(), a.flatten().to_numpy(), rtol=0, atol=1e-5)
            else:
                assert a.equals(b), name


def test_actors_that_share_the_images_make_the_local_engine_s_atlas(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but Ray itself: two actors take the images in turn, backwards, and one image is read by both."""
    (folder / "0.png").write_bytes(b"no picture")
    segmenter = load_segmenter("tiny", folder / "tiny.safetensors", "cpu")
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()

    def make(points_per_side: int = 4) -> AtlasReader:
        return AtlasReader({"model": attention, "noise": attention}, segmenter, None, points_per_side, True)

    def engine(build: AtlasBuild, progress: object) -> None:
        threads = torch.get_num_threads()
        missing = build.missing()
        assert missing == [2, 3, 4, 5, 6]  # image 0 can't be read, image 1 began
        with monkeypatch.context() as other:
            there = build.absolute()
            other.chdir(elsewhere)
            actors = [AtlasActor(make, there, threads=threads) for _ in range(2)]
            for place, number in enumerate([*reversed(missing), 4, 0]):
                assert actors[place % 2]({"part": np.array([number])})["part"].tolist() == [number]
        with pytest.raises(InputError, match="points_per_side is 3; expected 4"):
            AtlasActor(lambda: make(3), build, threads=threads)
        with pytest.raises(CheckpointError, match="checkpoint is"):
            AtlasActor(make, replace(build, asked={**build.asked, "checkpoint": "0" * 64}), threads=threads)
        others = replace(make(), sources={"model": attention, "noise": lambda *given: attention(255 - given[0])})
        with pytest.raises(CheckpointError, match=r"source 'noise' answers 1\.png otherwise"):
            AtlasActor(lambda: others, build, threads=threads)

    monkeypatch.chdir(folder)
    images = [f"{number}.png" for number in range(7)]
    for number in (4, 6):
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (50, 60, 3), dtype=np.uint8)).save(
            images[number]
        )
    found = [
        run_atlas(
            images,
            attention,
            segmenter,
            name,
            controls={"noise": attention},
            points_per_side=4,
            ablation=(),
            toroidal=False,
            engine=given,
        )
        for name, given in (("alone", None), ("shared", engine))
    ]
    pd.testing.assert_frame_equal(found[0].heads, found[1].heads)
    pd.testing.assert_frame_equal(found[0].images, found[1].images)
    assert "0.png" in found[1].images["error"].iloc[0]
    records = sorted(path.name for path in (folder / "alone" / "images").iterdir())
    assert records == sorted(path.name for path in (folder / "shared" / "images").iterdir())
    for name in records:
        assert (folder / "alone" / "images" / name).read_bytes() == (folder / "shared" / "images" / name).read_bytes()


def attention(image: np.ndarray, points_xy: Tensor | None = None) -> AttentionMaps:
    """Two maps that follow what is bright."""
    del points_xy
    bright = torch.from_numpy(image).float().mean(dim=2)[None, None]
    values = F.adaptive_avg_pool2d(bright, (16, 16))[0]
    side = image.shape[0]
    return AttentionMaps.from_values(
        torch.cat([values, 256 - values]), transform=ImageTransform.identity((side, image.shape[1]))
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ray_reads_an_atlas_as_the_local_engine_does(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "bad.png").write_bytes(b"no picture")
    for number in range(6):
        Image.fromarray(generate_scene(7_000_000 + number, 192).image).save(tmp_path / "photos" / f"{number}.png")
    options = (
        "--model",
        "vit_tiny_patch16_224",
        "--random-weights",
        "--images",
        "photos",
        "--format",
        "none",
        "--json",
    )
    ray = arrcoc_sam(tmp_path, "atlas", *options, "--out", "ray", "--engine", "ray", "--actors", 2)
    assert ray.returncode == 3, ray.stderr
    local = arrcoc_sam(tmp_path, "atlas", *options, "--out", "local")
    assert local.returncode == 3, local.stderr
    first, second = (pd.read_csv(tmp_path / name / "heads.csv") for name in ("local", "ray"))
    pd.testing.assert_frame_equal(first, second, rtol=0, atol=1e-4)
    assert (tmp_path / "ray" / "errors.csv").read_text() == (tmp_path / "local" / "errors.csv").read_text()
    assert json.loads(ray.stdout)["answers"] == json.loads(local.stdout)["answers"]


@pytest.mark.usefixtures("as_at_run_time")
def test_pools_that_make_no_sense() -> None:
    for options in ({"actors": 0}, {"threads": 0}, {"gpus_per_actor": -1.0}, {"gpus_per_actor": 1.5}):
        with pytest.raises(InputError, match=next(iter(options))):
            RayEngine(EstimatorSpec(), **options)  # type: ignore[arg-type]
        with pytest.raises(InputError, match=next(iter(options))):
            RayCacheEngine(lambda: pytest.fail("made"), **options)  # type: ignore[arg-type]
        with pytest.raises(InputError, match=next(iter(options))):
            RayAtlasEngine(lambda: pytest.fail("made"), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("device", "gpus"), [("auto", 0.0), ("cpu", 4.0)])
def test_actors_do_not_wait_for_gpus_that_are_not_there(device: str, gpus: float) -> None:
    class Cluster:
        @staticmethod
        def cluster_resources() -> dict[str, float]:
            return {"CPU": 8.0} | ({"GPU": gpus} if gpus else {})

    assert ActorPool(device)._size(Cluster()) == (8, 0.0)
    with pytest.raises(InputError, match=r"gpus_per_actor=0\.5 with device"):
        ActorPool(device, gpus_per_actor=0.5)._size(Cluster())


def test_shares_of_gpus() -> None:
    class Cluster:
        @staticmethod
        def cluster_resources() -> dict[str, float]:
            return {"CPU": 8.0, "GPU": 2.0}

    assert ActorPool("cuda:0")._size(Cluster()) == (2, 1.0)
    assert ActorPool("cuda", gpus_per_actor=0.5)._size(Cluster()) == (4, 0.5)
    assert ActorPool("auto", actors=3, gpus_per_actor=0.5)._size(Cluster()) == (3, 0.5)


def test_our_errors_come_out_of_ray_s_wrapping() -> None:
    inner = CheckpointError("this machine has other weights; expected those of the run.")
    wrapped = RuntimeError("actor died")
    wrapped.__cause__ = inner
    found = _ours(wrapped)
    assert type(found) is CheckpointError
    assert str(found) == str(inner)
    assert _ours(wrapped.with_traceback(None)) is not wrapped
    stranger = ValueError("x")
    assert _ours(stranger) is stranger


class _Ray:
    """As much of Ray as a start takes: it fails so many times."""

    def __init__(self, failures: int) -> None:
        self.failures, self.starts, self.stops = failures, [], 0

    def is_initialized(self) -> bool:
        return False

    def init(self, **options: Any) -> None:
        self.starts.append(options)
        if len(self.starts) <= self.failures:
            raise RuntimeError("The current node timed out during startup.\nMore.")

    def shutdown(self) -> None:
        self.stops += 1


def test_a_start_that_times_out_is_tried_again() -> None:
    ray = _Ray(failures=2)
    with _cluster(ray, None, cores=500):
        assert len(ray.starts) == 3
    assert ray.stops == 3
    assert ray.starts[-1]["num_cpus"] == 500
    ray = _Ray(failures=3)
    refused = pytest.raises(InputError, match=r"does not start here \(The current node timed out during startup\.\)")
    with refused, _cluster(ray, None, cores=1):
        pass
    assert len(ray.starts) == 3


def test_an_address_is_tried_once() -> None:
    ray = _Ray(failures=1)
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        with pytest.raises(InputError, match=f"no Ray cluster at '{address}' .The current"):
            _cluster(ray, address, cores=1).__enter__()
    assert ray.starts == [{"address": address, "log_to_driver": False}]


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_at_which_nobody_listens_is_not_left_to_ray(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = f"{scheme}127.0.0.1:{gone.getsockname()[1]}"
    ray = _Ray(failures=0)
    with pytest.raises(InputError, match=f"no Ray cluster at '{address}' .*refused"), _cluster(ray, address, cores=1):
        pass
    assert ray.starts == []


@pytest.mark.parametrize("address", ["auto", "local", "head", "head:none"])
def test_words_in_place_of_an_address_are_left_to_ray(address: str) -> None:
    ray = _Ray(failures=0)
    with _cluster(ray, address, cores=1):
        assert ray.starts == [{"address": address, "log_to_driver": False}]
