import errno
import json
import os
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError

from arrcoc_sam.attention.maps import AttentionMaps
from arrcoc_sam.errors import CheckpointError, DataError, InputError, OutputError, UnknownNameError
from arrcoc_sam.geometry import ImageTransform
from arrcoc_sam.granularity import metrics as M
from arrcoc_sam.granularity.atlas.build import array_digest, copies
from arrcoc_sam.granularity.atlas.read import AtlasReader, central_square, lattice
from arrcoc_sam.granularity.atlas.run import AtlasResult, Thresholds, run_atlas
from arrcoc_sam.granularity.atlas.store import AtlasStore
from arrcoc_sam.granularity.atlas.values import value_matrix
from arrcoc_sam.granularity.planted import centre_prior, planted, smooth_noise
from arrcoc_sam.hierarchy import MaskHierarchy

NUM = 36
SIZE = 64
GRID = 16


def nested_squares(seed: int) -> torch.Tensor:
    """Whole, part, subpart somewhere in the image, the parts off centre."""
    rng = np.random.default_rng(seed)
    masks = torch.zeros(1, 3, SIZE, SIZE, dtype=torch.bool)
    top, left, low, high, previous = 0, 0, 36, 44, SIZE
    for level in range(3):
        side = int(rng.integers(low, high))
        room = previous - side
        top, left = top + int(rng.integers(0, room + 1)), left + int(rng.integers(0, room + 1))
        masks[0, level, top : top + side, left : left + side] = True
        previous, low, high = side, side // 2, side * 2 // 3
    return masks


IMAGES = [np.full((SIZE, SIZE, 3), number, dtype=np.uint8) for number in range(NUM)]
MASKS = torch.cat([nested_squares(number) for number in range(NUM)])


def number_of(image: np.ndarray) -> int:
    return int(image[0, 0, 0])


def hierarchies(image: np.ndarray) -> MaskHierarchy:
    return MaskHierarchy.from_masks(MASKS[number_of(image)][None])


def source(image: np.ndarray, points_xy=None) -> AttentionMaps:
    """Two layers of three heads: planted at each level, then three that know nothing."""
    number = number_of(image)
    generator = torch.Generator().manual_seed(number)
    levels = torch.nn.functional.avg_pool2d(MASKS[number].float(), SIZE // GRID)
    maps = [planted(level[None], gain=4.0, generator=generator) for level in levels]
    maps += [smooth_noise(1, (GRID, GRID), generator=generator), centre_prior(1, (GRID, GRID), generator=generator)]
    maps += [torch.ones(1, GRID, GRID)]
    return AttentionMaps.from_values(
        torch.cat(maps),
        names=[f"L{layer:02d}.H{head:02d}" for layer in range(2) for head in range(3)],
        transform=ImageTransform.identity((SIZE, SIZE)),
        prefix_mass=torch.full((6,), 0.25),
    )


def run(folder, images=None, **options) -> AtlasResult:
    options = {"hierarchies": hierarchies, "ablation": (), "toroidal": False} | options
    return run_atlas(IMAGES if images is None else images, options.pop("source", source), None, folder, **options)


@pytest.fixture(scope="module")
def atlas(tmp_path_factory) -> AtlasResult:
    ablation = (Thresholds(distinct_iou=0.1), Thresholds(min_cells=9.0))
    return run(tmp_path_factory.mktemp("atlas"), ablation=ablation, toroidal=True, controls={"noise": source})


def test_planted_heads_are_claimed_at_their_level_and_the_others_abstain(atlas):
    heads = atlas.of()
    assert heads["level"].tolist() == ["whole", "part", "subpart", "abstain", "abstain", "abstain"]
    assert heads["layer"].tolist() == [0, 0, 0, 1, 1, 1]
    assert heads["prefix_mass"].tolist() == [0.25] * 6
    assert atlas.abstained_share == 0.5
    assert atlas.num_images == NUM
    assert atlas.info["num_draws"] == 9_999
    assert (heads[["images_whole", "images_part", "images_subpart"]] == NUM).all(axis=None)
    table = atlas.grid("z_part")
    assert table.shape == (2, 3)
    assert table.loc[0, 1] == heads["z_part"].iloc[1]


def test_controls_abstain(atlas):
    assert set(atlas.heads["group"]) == {"model", "noise", "centred Gaussian", "uniform"}
    for control in ("centred Gaussian", "uniform"):
        row = atlas.of(control).iloc[0]
        assert row["level"] == "abstain"
        assert np.isnan(row["z_whole"])
        assert row["p_any"] == 1
        assert row["layer"] == -1
    with pytest.raises(DataError, match="names no layer"):
        atlas.grid("z_part", group="uniform")


def test_mean_values_are_those_of_the_metrics(atlas):
    found = atlas.of()[[f"pearson_{level}" for level in ("whole", "part", "subpart")]].to_numpy()
    values = [M.pearson(source(image).values, MASKS[number_of(image)][None])[:5, 0].numpy() for image in IMAGES]
    expected = np.nanmean(values, axis=0)
    np.testing.assert_allclose(found[:5], expected, atol=1e-5)
    assert np.isnan(found[5]).all()  # uniform attention correlates with nothing


def test_areas_are_those_of_the_metrics(atlas):
    for group in ("model", "uniform"):
        heads = atlas.of(group)
        for number, level in enumerate(("whole", "part", "subpart")):
            expected = MASKS[:, number].double().mean().item()
            np.testing.assert_allclose(heads[f"grid_area_{level}"], expected, rtol=1e-5)
    np.testing.assert_allclose(heads["mass_accuracy_part"], heads["grid_area_part"], rtol=1e-5)  # of the uniform one


def test_images_that_refute_a_level_are_in_its_mean(tmp_path):
    """Attention that is 0 throughout a level has a log lift of −inf there, and so has the mean."""

    def averted(image, points_xy=None):
        maps = source(image)
        level = torch.nn.functional.max_pool2d(MASKS[number_of(image), 2].float()[None], SIZE // GRID)
        values = maps.values * (1 - level) if number_of(image) == 2 else maps.values
        return AttentionMaps.from_values(values, transform=maps.transform)

    heads = run(tmp_path, IMAGES[:5], source=averted, toroidal=True, metric="log_lift").of()
    assert (heads["log_lift_subpart"] == -np.inf).all()
    assert np.isfinite(heads[["log_lift_whole", "log_lift_part", "mass_accuracy_subpart"]]).all(axis=None)


def test_the_toroidal_null_is_shown_for_sources(atlas):
    heads = atlas.of()
    assert (heads["p_toroidal"].iloc[:3] < 0.05).all()
    assert heads["p_toroidal"].iloc[5] == 1
    assert atlas.of("uniform")["p_toroidal"].isna().all()


def test_ablation_tells_what_hangs_on_the_thresholds(atlas):
    table = atlas.ablation
    assert table["distinct_iou"].tolist() == [0.7, 0.1, 0.7]
    assert table["agreement"].iloc[0] == 1
    assert table["share_whole"].iloc[0] == pytest.approx(1 / 6)
    assert table["measurable_share"].iloc[2] <= table["measurable_share"].iloc[0]
    assert table["num_images"].iloc[0] == NUM


def test_saved_and_read_back(atlas, tmp_path):
    again = AtlasResult.load(atlas.save(tmp_path / "saved"))
    pd.testing.assert_frame_equal(again.heads, atlas.heads)
    assert again.info == json.loads(json.dumps(atlas.info))
    with pytest.raises(DataError, match="holds no atlas"):
        AtlasResult.load(tmp_path)


def test_a_run_goes_on_where_it_stopped(tmp_path):
    calls = []

    def counted(image, points_xy=None):
        calls.append(number_of(image))
        if len(calls) == 6:
            raise KeyboardInterrupt
        return source(image)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, IMAGES[:9], source=counted)
    result = run(tmp_path, IMAGES[:9], source=counted)
    # two images twice: the one that was not finished, and the first, which shows that the models are the same
    assert sorted(calls) == sorted([*range(9), calls[5], 0])
    whole = run(tmp_path / "again", IMAGES[:9])
    pd.testing.assert_frame_equal(result.heads, whole.heads)


def test_a_folder_of_another_run_is_refused(tmp_path):
    run(tmp_path, IMAGES[:5])
    with pytest.raises(OutputError, match="other images, pixels of images"):
        run(tmp_path, IMAGES[:6])
    with pytest.raises(OutputError, match="other description"):
        run(tmp_path, IMAGES[:5], description={"model": "another"})


def test_records_of_other_models_under_the_same_names_are_refused(tmp_path):
    run(tmp_path, IMAGES[:5])
    (tmp_path / "images" / "000000.safetensors").unlink()
    with pytest.raises(CheckpointError, match="source 'model' answers image 1 otherwise"):
        run(tmp_path, IMAGES[:5], source=lambda image, points_xy=None: source(image + 1))
    with pytest.raises(InputError, match="the levels of image 1 are others"):
        run(tmp_path, IMAGES[:5], hierarchies=lambda image: hierarchies(image + 1))
    with pytest.raises(OutputError, match="other pixels of images"):
        run(tmp_path, IMAGES[1:6])


def test_copies_among_images_are_found(tmp_path):
    paths = [str(tmp_path / f"{number}.png") for number in range(3)]
    for number, path in zip((0, 1, 0), paths, strict=True):
        Image.fromarray(IMAGES[number]).save(path)
    broken = [tmp_path / name for name in ("a.png", "b.png")]
    for path in broken:  # two files that hold nothing are left out, as any that can't be read
        path.write_bytes(b"")
    images = [*IMAGES[3:6], *paths, IMAGES[4].copy(), *broken, paths[1]]
    assert copies(images, [array_digest(image) for image in images]) == [(3, 5), (1, 6), (4, 9)]


def test_a_picture_that_is_gone_has_its_record(tmp_path):
    path = tmp_path / "first.png"
    Image.fromarray(IMAGES[0]).save(path)
    options = {"hierarchies": lambda image: hierarchies(IMAGES[0] if isinstance(image, str) else image)}
    images = [str(path), *IMAGES[1:6]]
    whole = run(tmp_path / "atlas", images, **options)
    path.unlink()
    pd.testing.assert_frame_equal(run(tmp_path / "atlas", images, **options).heads, whole.heads)


def test_a_disk_without_room_is_refused_before_all_is_read(tmp_path, monkeypatch):
    def usage(folder):
        return SimpleNamespace(free=1000)

    monkeypatch.setattr("arrcoc_sam.granularity.atlas.run.shutil.disk_usage", usage)
    with pytest.raises(OutputError, match=r"has room for 0\.0 GB; expected .*: 35 records, and 8 maps on 36 images"):
        run(tmp_path)
    assert len(list((tmp_path / "images").iterdir())) == 1


def test_a_full_disk_leaves_no_half_record_and_the_run_goes_on(tmp_path, monkeypatch):
    def full(tensors, where):
        where.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as disk:
        disk.setattr("arrcoc_sam.granularity.atlas.store.save_file", full)
        with pytest.raises(OutputError, match=r"000000\.safetensors can't be written .*No space left.*free some"):
            run(tmp_path, IMAGES[:5])
    assert not list((tmp_path / "images").iterdir())
    assert run(tmp_path, IMAGES[:5]).num_images == 5


def test_a_full_disk_leaves_the_last_tables(tmp_path, monkeypatch):
    before = run(tmp_path, IMAGES[:5])

    def full(frame, where, **_):
        where.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    names = {path.name for path in tmp_path.iterdir()}
    monkeypatch.setattr(pd.DataFrame, "to_parquet", full)
    with pytest.raises(OutputError, match=r"\.parquet can't be written \(No space left"):
        before.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == names
    assert AtlasResult.load(tmp_path).num_images == 5


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="room is not taken ahead here")
def test_values_without_room_are_refused_before_they_are_mapped(tmp_path):
    """A page that is mapped and has no room ends the process without a word."""
    run(tmp_path, IMAGES[:5])
    store, path = AtlasStore(tmp_path, json.loads((tmp_path / "plan.json").read_text())), tmp_path / "v.npy"

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as disk:
        disk.setattr("os.posix_fallocate", full)
        with pytest.raises(OutputError, match=r"v\.npy can't be written \(No space left"):
            value_matrix(store, range(5), "model", "log_lift", path, thresholds=Thresholds())
    assert not path.exists()

    def unknown(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    with pytest.MonkeyPatch.context() as disk:
        disk.setattr("os.posix_fallocate", unknown)
        value_matrix(store, range(5), "model", "log_lift", path, thresholds=Thresholds())
    assert path.exists()


def test_damaged_records_are_named(tmp_path):
    run(tmp_path, IMAGES[:5])
    (tmp_path / "images" / "000003.safetensors").write_bytes(b"nothing")
    with pytest.raises(OutputError, match="000003"):
        run(tmp_path, IMAGES[:5])


def test_images_that_cannot_be_read_are_listed_and_left_out(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    result = run(tmp_path / "atlas", [*IMAGES[:6], str(tmp_path / "broken.jpg")])
    assert result.num_images == 6
    assert (result.images["error"] != "").tolist() == [False] * 6 + [True]
    assert "broken.jpg" in result.images["error"].iloc[6]
    assert set(result.of()["reason"]) == {"fewer than 30 images"}


def test_an_image_that_was_mended_is_read_by_the_next_run(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(b"no image")
    images = [str(path), *IMAGES[1:6]]
    assert run(tmp_path / "atlas", images).num_images == 5
    Image.fromarray(IMAGES[0]).save(path)

    def levels(image):
        return hierarchies(IMAGES[0] if isinstance(image, str) else image)

    result = run(tmp_path / "atlas", images, hierarchies=levels)
    assert result.num_images == 6
    assert set(result.images["error"]) == {""}
    assert not list((tmp_path / "atlas" / "images").glob("*.txt"))


def test_an_engine_that_leaves_images_out_is_found_out(tmp_path):
    def engine(build, progress):
        for number in build.missing()[:-2]:
            build.compute(number, reader)

    reader = AtlasReader({"model": source}, None, hierarchies, 1, True)
    with pytest.raises(OutputError, match="2 images have no record, image 6 first"):
        run(tmp_path, IMAGES[:8], engine=engine)
    assert run(tmp_path, IMAGES[:8]).num_images == 8


def test_levels_that_people_drew_otherwise_are_found_out(tmp_path):
    def engine(build, progress):
        own = AtlasReader({"model": source}, None, hierarchies, 1, True)
        build.check(own)
        others = AtlasReader({"model": source}, None, lambda image: hierarchies(image + 1), 1, True)
        with pytest.raises(InputError, match="levels of image 0 are others"):
            build.check(others)
        for number in build.missing():
            build.compute(number, own)

    run(tmp_path, IMAGES[:5], engine=engine)


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert run("~/atlas", IMAGES[:5]).num_images == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["atlas"]
    assert AtlasResult.load(tmp_path / "atlas").num_images == 5


def test_the_matrix_is_every_image_against_every_other(tmp_path, monkeypatch):
    run(tmp_path, IMAGES[:7])
    plan = json.loads((tmp_path / "plan.json").read_text())
    monkeypatch.setattr("arrcoc_sam.granularity.atlas.values._ATTENTION_BLOCK", 3)
    monkeypatch.setattr("arrcoc_sam.granularity.atlas.values._LEVELS_BLOCK", 2)
    store, path = AtlasStore(tmp_path, plan), tmp_path / "v.npy"
    found = value_matrix(store, range(7), "model", "log_lift", path, thresholds=Thresholds())
    for j, i in [(0, 0), (2, 5), (6, 1)]:
        expected = M.log_lift(source(IMAGES[j]).values, MASKS[i][None])[:, 0]
        np.testing.assert_allclose(found[j, i], expected, atol=1e-5)
    assert np.load(path, mmap_mode="r").shape == (7, 7, 6, 3)


def test_maps_that_depend_on_the_point_are_compared_at_the_same_place(tmp_path):
    """The record holds a map a lattice point; image i's prompt k meets image j's map k."""

    def at_points(image, points_xy=None):
        assert points_xy.shape == (4, 2)
        generator = torch.Generator().manual_seed(number_of(image))
        values = torch.rand(2, 4, GRID, GRID, generator=generator)
        return AttentionMaps.from_values(values, transform=ImageTransform.identity((SIZE, SIZE)))

    class Reader(AtlasReader):
        def _found(self, pixels, points):
            number = number_of(pixels)
            return [MASKS[(number + k) % NUM][None] for k in range(4)]

    reader = Reader({"model": at_points}, None, None, 2, True)
    store = AtlasStore(tmp_path, {})
    for number in range(4):
        record, _ = reader.read(IMAGES[number])
        store.write(number, record)
    found = value_matrix(store, range(4), "model", "pearson", tmp_path / "v.npy", thresholds=Thresholds())
    for j, i in [(0, 0), (1, 3), (3, 2)]:
        own = MASKS[[(i + k) % NUM for k in range(4)]]
        _, measurable = store.levels(i).regions(Thresholds())
        values = M.pearson(at_points(IMAGES[j], torch.zeros(4, 2)).values, own)
        np.testing.assert_allclose(found[j, i], values[:, measurable].nanmean(1), atol=1e-5)


def test_shells_of_stored_rings_follow_the_thresholds():
    reader = AtlasReader({"model": source}, None, hierarchies, 1, True)
    record, names = reader.read(IMAGES[0])
    assert names["model"][0] == "L00.H00"
    for distinct_iou in (0.7, 0.2, 0.3):
        regions, measurable = record.levels.regions(Thresholds(distinct_iou=distinct_iou))
        expected = MaskHierarchy.from_masks(MASKS[:1], distinct_iou=distinct_iou)
        assert torch.equal(regions.distinct, expected.distinct)
        averaged = torch.nn.functional.avg_pool2d(expected.shells().float(), SIZE // GRID)
        torch.testing.assert_close(regions.shells, averaged)
        assert torch.equal(measurable, expected.measurable((GRID, GRID)))


def test_images_are_cropped_to_squares():
    assert central_square((10, 7)) == (1, 0, (7, 7))
    wide = np.zeros((SIZE, SIZE + 20, 3), dtype=np.uint8)
    masks = torch.nn.functional.pad(MASKS[:1], (10, 10))
    reader = AtlasReader({"model": source}, None, lambda image: MaskHierarchy.from_masks(masks), 1, True)
    record, _ = reader.read(wide)
    plain, _ = AtlasReader({"model": source}, None, hierarchies, 1, True).read(IMAGES[0])
    torch.testing.assert_close(record.levels.rings, plain.levels.rings)
    assert lattice((SIZE, SIZE), 3)[4].tolist() == [31.5, 31.5]


@pytest.mark.usefixtures("as_at_run_time")
def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(UnknownNameError, match="correlation"):
        run(tmp_path, metric="correlation")
    with pytest.raises(InputError, match="no images"):
        run(tmp_path, [])
    with pytest.raises(InputError, match="neither a segmenter"):
        run(tmp_path, hierarchies=None)
    with pytest.raises(InputError, match="another name than"):
        run(tmp_path, controls={"uniform": source})
    with pytest.raises(InputError, match="3 images; expected at least 4"):
        run(tmp_path / "few", IMAGES[:3])
    assert not (tmp_path / "few").exists()  # refused before any work
    nothing = MaskHierarchy.from_masks(torch.zeros(1, 3, SIZE, SIZE, dtype=torch.bool))
    with pytest.raises(InputError, match="0 of 4 images"):
        run(tmp_path / "none", IMAGES[:4], hierarchies=lambda image: nothing)

    def other_names(image, points_xy=None):
        return source(image) if number_of(image) < 2 else source(image)[:5]

    with pytest.raises(DataError, match="answers 5 maps"):
        run(tmp_path / "names", source=other_names)
    small = lambda image, points_xy=None: AttentionMaps.from_values(  # noqa: E731
        torch.ones(1, 4, 4), transform=ImageTransform.identity((SIZE, SIZE))
    )
    with pytest.raises(DataError, match="answers a grid"):
        run(tmp_path / "grids", controls={"small": small})


def test_images_that_are_padded_otherwise_are_refused(tmp_path):
    tall = np.zeros((SIZE + 32, SIZE, 3), dtype=np.uint8)

    def letterboxed(image, points_xy=None):
        transform = ImageTransform.letterbox(image.shape[:2], SIZE)
        return AttentionMaps.from_values(torch.rand(1, GRID, GRID), transform=transform)

    def padded(image):
        masks = MASKS[number_of(image)][None]
        return MaskHierarchy.from_masks(torch.nn.functional.pad(masks, (0, 0, 0, image.shape[0] - SIZE)))

    options = {"source": letterboxed, "hierarchies": padded, "square": False}
    with pytest.raises(DataError, match="padded otherwise"):
        run(tmp_path, [*IMAGES[:4], tall], **options)
