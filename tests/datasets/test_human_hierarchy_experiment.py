"""The experiment human_hierarchy: its statistics, the conversion of the pack, and the whole of it, small."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr
from sklearn.metrics import cohen_kappa_score

from arrcoc_sam.datasets import CocoDataset
from arrcoc_sam.masks.rle import encode_rle
from arrcoc_sam.scenes import generate_scene

ROOT = Path(__file__).parents[2]
EXPERIMENT = ROOT / "experiments" / "human_hierarchy"
PACK = Path(os.environ.get("ARRCOC_SAM_DATA", ROOT.parent / "shared" / "data")) / "nested-masks"
MODULES = ("agreement", "pack", "run")


@pytest.fixture
def experiment(monkeypatch):
    """The experiment's modules, imported as its command imports them, and forgotten afterwards."""
    monkeypatch.syspath_prepend(str(EXPERIMENT))
    kept = {name: sys.modules.pop(name, None) for name in MODULES}
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    for name in MODULES:
        sys.modules.pop(name, None)
        if kept[name] is not None:
            sys.modules[name] = kept[name]


def test_the_statistics_are_those_of_the_libraries(experiment):
    rng = np.random.default_rng(0)
    ours = rng.integers(0, 4, 90)
    theirs = np.where(rng.random(90) < 0.5, ours, rng.integers(0, 4, 90))
    contrasts, others = rng.normal(size=(90, 3)).round(1), rng.normal(size=(90, 3)).round(1)  # with ties
    contrasts[::7, 2] = np.nan
    found = experiment.agreement.agreement(ours, theirs, contrasts, others, np.repeat(np.arange(30), 3), draws=200)
    both = (ours < 3) & (theirs < 3)
    assert found["both_answer"] == both.sum()
    assert found["equal"][0] == pytest.approx((ours == theirs)[both].mean(), abs=1e-4)
    assert found["kappa"][0] == pytest.approx(cohen_kappa_score(ours[both], theirs[both]), abs=1e-4)
    assert found["abstain"][0] == pytest.approx((ours == 3).mean(), abs=1e-4)
    assert found["abstain_other"][0] == pytest.approx((theirs == 3).mean(), abs=1e-4)
    for i, level in enumerate(("whole", "part", "subpart")):
        expected = spearmanr(contrasts[:, i], others[:, i], nan_policy="omit").statistic
        value, low, high = found["spearman"][level]
        assert value == pytest.approx(expected, abs=1e-4)
        assert low < value < high
    assert np.sum(found["confusion"]) == 90
    assert found["confusion"][0][1] == ((ours == 0) & (theirs == 1)).sum()


def test_a_resample_is_the_sample_with_rows_repeated(experiment):
    rng = np.random.default_rng(1)
    a, b, times = rng.integers(0, 6, 40).astype(float), rng.normal(size=40), rng.integers(0, 4, 40)
    expected = spearmanr(np.repeat(a, times), np.repeat(b, times)).statistic
    assert experiment.agreement.rank_correlation(a, b, times[None].astype(float))[0] == pytest.approx(expected)


def test_intervals_keep_the_triples_of_an_image_together(experiment):
    """Ten equal triples of one image say no more than one: repeating every row must not narrow an interval."""
    rng = np.random.default_rng(2)
    ours, theirs, images = rng.integers(0, 3, 40), rng.integers(0, 3, 40), np.arange(40)
    contrasts = rng.normal(size=(2, 40, 3))
    once = experiment.agreement.agreement(ours, theirs, *contrasts, images, draws=300)
    repeated = (np.repeat(values, 10, 0) for values in (ours, theirs, *contrasts, images))
    assert experiment.agreement.agreement(*repeated, draws=300)["equal"] == once["equal"]


def test_what_is_not_defined_is_none(experiment):
    alike, contrasts = np.zeros(6, dtype=int), (np.full((6, 3), np.nan), np.ones((6, 3)))
    found = experiment.agreement.agreement(alike, alike, *contrasts, np.arange(6), draws=10)
    assert found["equal"] == [1.0, 1.0, 1.0]
    assert experiment.agreement.agreement(alike, alike, *contrasts, alike)["equal"] == [1.0, None, None]  # one image
    assert found["kappa"] == [None, None, None]
    assert found["spearman"]["whole"] == [None, None, None]


@pytest.fixture
def small_pack(tmp_path):
    """Two generated scenes in the form of the pack."""
    manifest = {"info": {"name": "scenes", "version": 1}, "images": [], "masks": [], "triples": []}
    for seed in (3, 4):
        scene, name = generate_scene(seed, size=128), f"s{seed}"
        Image.fromarray(scene.image).save(tmp_path / f"{name}.png")
        manifest["images"].append({"id": name, "source": "ccp", "file": f"{name}.png", "width": 128, "height": 128})
        for node, mask in enumerate(scene.masks):
            rle = encode_rle(torch.from_numpy(mask))
            manifest["masks"].append(
                {"id": f"{name}-{node}", "image_id": name, "label": None, "area": 0, "bbox": [], "segmentation": rle}
            )
        for number, triple in enumerate(scene.triples()):
            y, x = (int(axis[0]) for axis in np.nonzero(scene.masks[triple[2]]))
            ids = dict(zip(("whole", "part", "subpart"), (f"{name}-{node}" for node in triple), strict=True))
            manifest["triples"].append(
                {"id": f"{name}-t{number}", "image_id": name, "levels": 3, "masks": ids, "point": [x, y]}
            )
        pair = {level: manifest["triples"][-1]["masks"][level] for level in ("whole", "part")}
        manifest["triples"].append({**manifest["triples"][-1], "id": f"{name}-p", "levels": 2, "masks": pair})
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path


def test_human_masks_agree_with_themselves(experiment, small_pack):
    """A segmenter that answers with the human masks: every answer equal, every contrast the same."""
    data = CocoDataset.read(experiment.pack.convert_pack(small_pack, small_pack / "coco.json"), images=small_pack)

    class Perfect:
        def encode(self, image):
            return image

        def decode(self, image, prompts):
            (known,) = (known for known in data.images if (data.load_image(known) == image).all())
            hierarchy, points = data.hierarchies(known)
            rows = [points.tolist().index(point) for point in prompts.points_xy[:, 0].tolist()]
            return SimpleNamespace(hierarchy=lambda: hierarchy[rows])

    rows = experiment.run.compare(Perfect(), data, list(data.images), 32)
    assert len(rows["image"]) == sum(len(t.levels) == len(set(t.levels)) for t in data.declared)  # pairs are left out
    summary = experiment.run.summarize(rows, experiment.pack.image_sources(small_pack))
    assert list(summary) == ["ccp"]
    for name, cell in summary["ccp"]["segmenter"]["maps"].items():
        assert cell["abstain"] == cell["abstain_other"]
        assert cell["equal"][0] in (1.0, None), name
        assert cell["spearman"]["whole"][0] == 1.0
    assert any(cell["both_answer"] for cell in summary["ccp"]["segmenter"]["maps"].values())
    assert set(summary["ccp"]["segmenter"]["mean_iou"].values()) == {1.0}
    assert summary["ccp"]["discs"]["mean_iou"]["whole"] < 1
    lines = experiment.run.table({"x": {"agreement": summary, "cpu_seconds": 1.0, "machine": "here"}}).splitlines()
    assert sum(line.startswith("| ccp") for line in lines) == 4 * 2 + 2


def test_discs_have_the_human_areas_and_lie_at_the_click(experiment, small_pack):
    data = CocoDataset.read(experiment.pack.convert_pack(small_pack, small_pack / "coco.json"))
    human, points = data.hierarchies(data.images[0])
    found = experiment.run.discs(human, points)
    assert torch.equal(found.areas, human.areas)
    x, y = points.long().T.tolist()
    assert found.masks[range(len(points)), :, y, x].all()
    assert torch.equal(found.clipped(), found.masks)


@pytest.mark.skipif(not PACK.is_dir(), reason="the nested-mask pack is not here (ARRCOC_SAM_DATA)")
def test_the_real_pack_reads(experiment, tmp_path):
    data = CocoDataset.read(experiment.pack.convert_pack(PACK, tmp_path / "nested.json"), images=PACK)
    assert (len(data), len(data.annotations), len(data.declared)) == (240, 1353, 665)
    manifest = json.loads((PACK / "manifest.json").read_text())
    assert [a.area for a in data.annotations] == [mask["area"] for mask in manifest["masks"]]
    for image in data.images[::60]:
        hierarchy, points = data.hierarchies(image)
        assert len(hierarchy) == len(points)
        assert hierarchy.valid.all()
