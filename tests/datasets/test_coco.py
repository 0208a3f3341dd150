from __future__ import annotations

import json
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from arrcoc_sam.datasets import CocoDataset, human_hierarchies
from arrcoc_sam.datasets.chains import nested_chains
from arrcoc_sam.errors import DataError, ImageReadError
from arrcoc_sam.masks.rle import encode_rle

HEIGHT, WIDTH = 12, 16


def box(top: int, bottom: int, left: int, right: int) -> torch.Tensor:
    mask = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


def polygon(top: int, bottom: int, left: int, right: int) -> list[list[float]]:
    """The same pixels: COCO's polygons run along pixel edges."""
    return [[left, top, right, top, right, bottom, left, bottom]]


def record() -> dict:
    """A whole with two parts, one of them with a subpart; a lone mask; a crowd over everything; a second image."""
    return {
        "info": {"description": "by hand"},
        "images": [
            {"id": 7, "file_name": "a/one.png", "height": HEIGHT, "width": WIDTH},
            {"id": 8, "file_name": "b/one.png", "height": HEIGHT, "width": WIDTH},
        ],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [
            annotation(1, polygon(4, 6, 3, 5)),
            annotation(2, encode_rle(box(1, 10, 1, 11))),
            annotation(3, {"size": [HEIGHT, WIDTH], "counts": runs(box(2, 8, 2, 6))}),
            annotation(4, polygon(2, 8, 7, 10)),
            annotation(5, polygon(0, 12, 13, 16)),
            {**annotation(6, encode_rle(box(0, 12, 0, 16))), "iscrowd": 1},
        ],
    }


def annotation(number: int, segmentation: object, image: int = 7) -> dict:
    return {
        "id": number,
        "image_id": image,
        "category_id": 1,
        "iscrowd": 0,
        "bbox": [0, 0, 1, 1],
        "area": 1.5,
        "segmentation": segmentation,
    }


def runs(mask: torch.Tensor) -> list[int]:
    column = mask.T.reshape(-1).int()
    changes = [0, *(column.diff().nonzero()[:, 0] + 1).tolist(), len(column)]
    lengths = np.diff(changes).tolist()
    return [0, *lengths] if column[0] else lengths


TRIPLE = {"id": 1, "image_id": 7, "whole": 2, "part": 3, "subpart": 1, "point": [3, 4]}
PAIR = {"id": 2, "image_id": 7, "whole": 2, "part": 4, "subpart": None}


def write(folder: Path, content: object) -> Path:
    path = folder / "coco.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def pictures(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(tmp_path / "pictures" / name / "one.png")
    return tmp_path / "pictures"


def test_every_way_to_write_a_mask(tmp_path):
    data = CocoDataset.read(write(tmp_path, record()))
    one, other = data.images
    assert (one.id, one.file_name, one.size_hw) == (7, "a/one.png", (HEIGHT, WIDTH))
    expected = [
        box(4, 6, 3, 5),
        box(1, 10, 1, 11),
        box(2, 8, 2, 6),
        box(2, 8, 7, 10),
        box(0, 12, 13, 16),
        box(0, 12, 0, 16),
    ]
    assert torch.equal(data.masks(one), torch.stack(expected))
    assert [a.area for a in data.annotations] == [4, 90, 24, 18, 36, 192]  # pixels, whatever "area" says
    assert [a.crowd for a in data.annotations] == [False] * 5 + [True]
    assert data.categories == {1: "thing"}
    assert data.masks(other).shape == (0, HEIGHT, WIDTH)
    assert data.annotations_of(other) == ()
    assert len(data) == 2
    assert "2 images, 6 masks" in repr(data)


def test_strings_are_ids_too(tmp_path):
    content = record()
    content["images"][0]["id"] = "x"
    content["annotations"] = [{**annotation(1, polygon(1, 3, 1, 3)), "id": "m", "image_id": "x"}]
    data = CocoDataset.read(write(tmp_path, content))
    assert data.annotations[0].image_id == data.image("x").id == "x"
    with pytest.raises(DataError, match="has no image 'y'"):
        data.image("y")


# --- hierarchies -----------------------------------------------------------------------------------------------------


def test_declared_hierarchies(tmp_path):
    data = CocoDataset.read(write(tmp_path, {**record(), "hierarchies": [PAIR, TRIPLE]}))
    hierarchy, points = data.hierarchies(data.image(7))
    assert torch.equal(hierarchy.masks[1], torch.stack([box(1, 10, 1, 11), box(2, 8, 2, 6), box(4, 6, 3, 5)]))
    assert torch.equal(hierarchy.masks[0], torch.stack([box(1, 10, 1, 11), box(2, 8, 7, 10), box(2, 8, 7, 10)]))
    assert hierarchy.token_index.tolist() == [[1, 3, 3], [1, 2, 0]]  # positions in annotations_of
    assert hierarchy.distinct.tolist() == [[True, True, False], [True, True, True]]
    assert hierarchy.valid.tolist() == [True, True]
    assert points[1].tolist() == [3.0, 4.0]
    assert points[0].tolist() == [8.0, 3.0]  # chosen: in the middle of 3 columns, and the first such row
    assert data.hierarchies(data.image(8)) is None


def test_without_a_list_hierarchies_are_found_by_containment(tmp_path):
    data = CocoDataset.read(write(tmp_path, record()))
    hierarchy, points = data.hierarchies(data.image(7))
    # Neither the crowd, which contains everything, nor the mask on its own makes a chain.
    assert sorted(hierarchy.token_index.tolist()) == [[1, 2, 0], [1, 3, 3]]
    for masks, (x, y) in zip(hierarchy.masks, points.long().tolist(), strict=True):
        assert masks[:, y, x].all()
    assert data.hierarchies(data.image(8)) is None


def test_overlapping_masks_are_clicked_where_they_are_innermost():
    """Two parts of one whole overlap, and the deepest pixel of the larger one lies in the smaller one."""
    masks = torch.stack([box(0, 12, 0, 16), box(2, 10, 2, 9), box(4, 9, 4, 12)])
    chains, points = nested_chains(masks)
    assert chains.tolist() == [[0, 1, 1], [0, 2, 2]]
    (x, y), (x_smaller, y_smaller) = points.long().tolist()
    assert masks[:, y, x].tolist() == [True, True, False]
    assert masks[[0, 2], y_smaller, x_smaller].all()


def test_a_mask_covered_by_smaller_ones_makes_no_chain():
    """It is innermost at none of its pixels."""
    masks = torch.stack([box(0, 12, 0, 16), box(2, 10, 4, 12), box(2, 10, 3, 8), box(2, 10, 8, 13)])
    assert nested_chains(masks)[0].tolist() == [[0, 2, 2], [0, 3, 3]]


def test_long_chains_keep_the_outermost_mask():
    masks = torch.stack([box(5, 7, 5, 7), box(4, 8, 4, 8), box(2, 9, 2, 10), box(0, 12, 0, 16)])
    chains, points = nested_chains(masks)
    assert len(chains) == 1
    assert chains[0, 0] == 3
    assert masks[:, int(points[0, 1]), int(points[0, 0])].all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"whole": 3, "part": 2}, "its masks have 24, 90, 4 pixels; expected the whole first"),
        ({"whole": 99}, "its whole is 99"),
        ({"image_id": 8}, "annotation 2, is of image 7"),
        ({"image_id": 9}, "about image 9"),
        ({"point": [16, 3]}, "in an image of 16 x 12"),
        ({"point": [3]}, "its point is"),
        ({"id": None}, "hierarchy number 1: its id is None"),
    ],
)
def test_inconsistent_hierarchies(tmp_path, change, message):
    path = write(tmp_path, {**record(), "hierarchies": [{**TRIPLE, **change}]})
    with pytest.raises(DataError, match=message):
        CocoDataset.read(path)
    assert len(CocoDataset.read(path, strict=False).faults) == 1


def test_hierarchies_that_only_pixels_prove_wrong(tmp_path):
    beside = {**TRIPLE, "point": [2, 2]}  # on whole and part, not on the subpart
    apart = {**TRIPLE, "id": 5, "part": 5, "subpart": None, "point": None}
    for triple, message in (
        (beside, "hierarchy 1: its point .* not on the subpart"),
        (apart, "hierarchy 5: its masks"),
    ):
        data = CocoDataset.read(write(tmp_path, {**record(), "hierarchies": [triple]}))
        with pytest.raises(DataError, match=message):
            data.hierarchies(data.image(7))


# --- files -----------------------------------------------------------------------------------------------------------


def test_pictures_are_found_by_name_and_folders(tmp_path, pictures):
    data = CocoDataset.read(write(tmp_path, record()), images=pictures)
    assert data.find(pictures / "b" / "one.png").id == 8
    assert data.find(pictures / "c" / "one.png") is None
    assert data.find("one.png") is None  # which of the two?
    assert data.load_image(data.image(7)).shape == (HEIGHT, WIDTH, 3)


def test_the_longest_name_that_fits_is_meant(tmp_path):
    content = {**record(), "annotations": []}
    content["images"][0]["file_name"] = "one.png"
    data = CocoDataset.read(write(tmp_path, content))
    assert data.find("/data/b/one.png").id == 8
    assert data.find("/data/one.png").id == 7
    content["images"][1]["file_name"] = "./one.png"
    with pytest.raises(DataError, match="2 images with the file name"):
        CocoDataset.read(write(tmp_path, content)).find("/data/one.png")


def test_human_hierarchies(tmp_path, pictures):
    path = write(tmp_path, {**record(), "hierarchies": [TRIPLE]})
    hierarchy, points = human_hierarchies(path, pictures / "a" / "one.png", image_hw=(HEIGHT, WIDTH))
    assert len(hierarchy) == len(points) == 1
    assert hierarchy.scores.isnan().all()  # no model predicted an IoU
    data = CocoDataset.read(path)
    assert human_hierarchies(data, "elsewhere/two.png") is None
    assert human_hierarchies(data, pictures / "b" / "one.png") is None
    with pytest.raises(DataError, match=r"as if drawn on .* EXIF .*; expected .* Mend: turn the masks upright"):
        human_hierarchies(data, pictures / "a" / "one.png", image_hw=(WIDTH, HEIGHT))


def test_a_picture_of_another_size(tmp_path, pictures):
    Image.new("RGB", (5, 5)).save(pictures / "a" / "one.png")
    data = CocoDataset.read(write(tmp_path, record()), images=pictures)
    with pytest.raises(DataError, match=r"image 7 has height 12 and width 16; expected .* 5 and 5"):
        data.load_image(data.image(7))
    (pictures / "b" / "one.png").write_bytes(b"no picture")
    with pytest.raises(ImageReadError):
        data.load_image(data.image(8))


def test_missing_pictures(tmp_path, pictures):
    (pictures / "a" / "one.png").unlink()
    path = write(tmp_path, {**record(), "hierarchies": [TRIPLE]})
    with pytest.raises(DataError, match=r"image 7: .*one\.png does not exist"):
        CocoDataset.read(path, images=pictures)
    data = CocoDataset.read(path, images=pictures, strict=False)
    assert [image.id for image in data.images] == [8]
    assert data.annotations == ()
    assert [(fault.kind, fault.id) for fault in data.faults] == [("image", 7)]  # one fault, not one for each mask


# --- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 70}, "annotation 3: it is about image 70"),
        ({"image_id": None}, "annotation 3: it is about image None"),
        ({"category_id": 2}, "annotation 3: it is of category 2"),
        ({"iscrowd": 2}, "annotation 3: iscrowd is 2"),
        ({"segmentation": []}, "annotation 3: the segmentation is an empty list"),
        ({"segmentation": None}, "annotation 3: it has no segmentation: a box at most"),
        ({"segmentation": {"size": [16, 12], "counts": [190, 2]}}, "annotation 3: .* the other way round"),
        ({"segmentation": {"size": [12, 16], "counts": [1, 2]}}, "annotation 3: .* add up to 3"),
        ({"segmentation": {"size": [12, 16], "counts": [192]}}, "annotation 3: the mask has no pixel"),
        ({"segmentation": {"size": [12, 16], "counts": [2**70, 1]}}, "annotation 3: the counts"),
        ({"id": 3.5}, "annotation number 3: its id is 3.5"),
        ({"id": True}, "annotation number 3: its id is True"),
    ],
)
def test_faulty_annotations(tmp_path, change, message):
    content = record()
    content["annotations"][2].update(change)
    path = write(tmp_path, content)
    with pytest.raises(DataError, match=f"coco.json: {message}"):
        CocoDataset.read(path)
    data = CocoDataset.read(path, strict=False)
    assert [a.id for a in data.annotations] == [1, 2, 4, 5, 6]
    (fault,) = data.faults
    assert fault.kind == "annotation"
    assert str(path) in fault.message


def test_whole_numbers_that_are_written_as_floats(tmp_path):
    """As pandas writes them once a single one is missing."""
    content = {**record(), "hierarchies": [TRIPLE, PAIR]}
    plain = CocoDataset.read(write(tmp_path, content))
    for each in (each for name in ("images", "annotations", "categories", "hierarchies") for each in content[name]):
        each |= {key: float(value) for key, value in each.items() if type(value) is int and key != "iscrowd"}
    data = CocoDataset.read(write(tmp_path, content))
    assert (data.images, data.annotations, data.declared) == (plain.images, plain.annotations, plain.declared)
    assert data.categories == plain.categories
    assert all(type(annotation.id) is int for annotation in data.annotations)


@pytest.mark.parametrize("key", ["image_id", "category_id"])
def test_ids_that_are_strings_here_and_numbers_there(tmp_path, key):
    content = record()
    content["annotations"][2][key] = str(content["annotations"][2][key])
    with pytest.raises(DataError, match="Mend: ids are strings here and numbers there: write both alike"):
        CocoDataset.read(write(tmp_path, content))
    content = record()
    for each in content["images"] if key == "image_id" else content["categories"]:
        each["id"] = str(each["id"])
    with pytest.raises(DataError, match="Mend: ids are numbers here and strings there: write both alike"):
        CocoDataset.read(write(tmp_path, content))


@pytest.mark.parametrize(
    "change", [{"file_name": None}, {"file_name": " "}, {"height": 0}, {"width": "16"}, {"height": 12.5}]
)
def test_faulty_images(tmp_path, change):
    content = record()
    content["images"][0].update(change)
    path = write(tmp_path, content)
    with pytest.raises(DataError, match="image 7: "):
        CocoDataset.read(path)
    data = CocoDataset.read(path, strict=False)
    assert [fault.kind for fault in data.faults] == ["image"]
    assert len(data.images) == 1


@pytest.mark.parametrize("name", ["images", "annotations", "categories", "hierarchies"])
def test_ids_that_repeat_are_never_guessed_at(tmp_path, name):
    content = {**record(), "hierarchies": [TRIPLE, PAIR]}
    content[name] = [content[name][0], *content[name]]
    for strict in (True, False):
        with pytest.raises(DataError, match=r"id .* occurs twice"):
            CocoDataset.read(write(tmp_path, content), strict=strict)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is empty"),
        ('{"images": [', "in line 1, column 13"),
        ("[]", "holds a list"),
        ('{"images": []}', "has no 'annotations'"),
        ('{"images": {}, "annotations": []}', "'images' of .* is no list"),
        ("[" * 100_000, "can't be read as JSON"),
        ('{"images": [1], "annotations": []}', "image number 1: it is 1"),
    ],
)
def test_files_that_are_no_coco(tmp_path, text, message):
    path = tmp_path / "coco.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        CocoDataset.read(path)


def test_files_that_are_no_text(tmp_path):
    path = tmp_path / "coco.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="UTF-8"):
        CocoDataset.read(path)
    with pytest.raises(DataError, match="can't be read"):
        CocoDataset.read(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        CocoDataset.read(tmp_path / "none.json")


def test_a_file_takes_little_memory(tmp_path):
    """At its peak a third of what Python's json alone takes, which is what a reader without packing would hold."""
    rng = np.random.default_rng(0)
    content = {"images": record()["images"], "annotations": []}
    for number in range(400):
        angles = np.sort(rng.random(80)) * 2 * np.pi
        ring = np.stack([8 + 6 * np.cos(angles), 6 + 4 * np.sin(angles)], 1).round(2).ravel().tolist()
        content["annotations"].append(annotation(number, [ring]))
    path = write(tmp_path, content)
    del content
    size = path.stat().st_size

    tracemalloc.start()
    json.loads(path.read_text())
    plain = tracemalloc.get_traced_memory()[1] - size  # the text itself is there in both
    tracemalloc.reset_peak()
    data = CocoDataset.read(path)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sys.getsizeof(data) < 1000
    assert peak - size < plain / 3
    assert kept < plain / 6
